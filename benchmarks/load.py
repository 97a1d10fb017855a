"""What large studies take: CPU seconds, peak memory and growth, each measurement in a process of its own.

`python benchmarks/load.py [CASE ...]` (default: all) prints three sizes a case and the exponent p of seconds ~ n^p
between the two largest. `--quick` divides the sizes by ten. CPU seconds, of the process and its children, say the same
on a busy machine as on an idle one.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.check import check
from ldmscale.config.read import SCHEMA, merge, read_yaml
from ldmscale.config.study import Study

REPO = Path(__file__).resolve().parents[1]
MODELS = [("f8", 8, 61_000, 0.004), ("f12", 12, 132_000, 0.008), ("f20", 20, 360_000, 0.02), ("f32", 32, 905_000, 0.05)]
REPLICATES = 10  # a score; a study has 200: what that takes is 20 times the memory of these columns


def overlay(cells: int, level: str) -> dict:
    """Over config.yaml: about so many ``cells``, in generation jobs cut at ``level``."""
    side = max(16, round((cells / len(MODELS)) ** 0.5))  # at least the step counts that figures name
    grid = {"steps": list(range(1, side + 1)), "cfg": [1 + i / 16 for i in range(side)]}
    return {"study": "load", "sampling": {"cells_per_job": level}, "experiments": {"grid": grid}}


def plan_cells(n: int, folder: Path, level: str = "cell") -> float:
    """Params of every job, as the Snakefile asks for them."""
    config = merge(read_yaml(REPO / "config.yaml"), overlay(n, level))
    began = spent()
    check(config, REPO / SCHEMA)
    plan = Plan(Study(config))
    chain = Chain(plan)
    for job in plan.generation_jobs():
        chain.generate(job)
    for job in plan.scoring_jobs():
        chain.score(job)
    for figure, settings in config["figures"].items():
        if settings is not None:
            chain.figure(figure)
    chain.summary(), chain.explorer()
    return spent() - began


def dry_run(n: int, folder: Path, level: str) -> float:
    """`snakemake -n` of a study that has not begun."""
    (folder / "config.yaml").write_bytes((REPO / "config.yaml").read_bytes())
    (folder / "over.yaml").write_text(yaml.safe_dump(overlay(n, level)))
    began = spent()
    command = ["-n", "--snakefile", REPO / "Snakefile", "--cores", "1", "--configfile", "over.yaml", "--quiet", "all"]
    subprocess.run([sys.executable, "-m", "snakemake", *command], cwd=folder, check=True, capture_output=True)
    return spent() - began


def images(n: int, folder: Path) -> list[str]:
    """So many images of 2 x 2 pixels in ``folder``: their names."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = [f"{i:07d}.png" for i in range(n)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (2, 2, 3), np.uint8)).save(folder / name)
    return names


def digest_folder(n: int, folder: Path) -> float:
    """What every start of Snakemake reads of a folder of images."""
    from ldmscale.provenance import listing_digest

    images(n, folder / "images")
    began = spent()
    listing_digest(folder / "images")
    return spent() - began


def read_folder(n: int, folder: Path) -> float:
    """A folder of captioned images listed, checked, split, and a thousand of them read."""
    from ldmscale.data.folder import FolderSource

    lines = [json.dumps({"file_name": name, "text": f"image {name}"}) for name in images(n, folder / "images")]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    began = spent()
    read_thousand(FolderSource(folder / "images", 2, "crop", n // 10, n // 10, "refuse", 0))
    return spent() - began


def read_coco(n: int, folder: Path) -> float:
    """The same from COCO's annotations, five captions an image."""
    from ldmscale.data.coco import CocoSource

    names = images(n, folder / "images")
    captions = [{"image_id": i, "caption": f"caption {k} of {name}"} for i, name in enumerate(names) for k in range(5)]
    listed = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": captions}))
    began = spent()
    read_thousand(CocoSource(folder / "captions.json", folder / "images", 2, "crop", n // 10, n // 10))
    return spent() - began


def read_tars(n: int, folder: Path) -> float:
    """Samples in tars of 5,000, a tenth of them held out: listed, split, a thousand read."""
    from ldmscale.data.tars import TarSource

    buffer = BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    (folder / "tars").mkdir()
    for start in range(0, n, 5000):
        with tarfile.open(folder / "tars" / f"{start:07d}.tar", "w") as tar:
            for i in range(start, min(n, start + 5000)):
                for kind, content in (("png", buffer.getvalue()), ("txt", b"an image")):
                    info = tarfile.TarInfo(f"{i:07d}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
    began = spent()
    read_thousand(TarSource(folder / "tars", 2, "crop", n // 20, n // 20, "refuse", 0, folder / "index"))
    return spent() - began


def read_thousand(source) -> None:
    for split in ("train", "tuning"):
        for i in range(min(500, source.size(split))):
            source.example(split, i)


def grid_of(n: int) -> list[Cell]:
    """The cells of about ``n`` scores, of two splits: models x samplers x steps x guidance weights."""
    side = max(2, round((n / 2 / len(MODELS) / 3) ** 0.5))
    axes = product([m[0] for m in MODELS], ("ddim", "ddpm", "dpmpp2m"), range(1, side + 1), range(side))
    return [Cell("t2i", model, "pretrain-1", sampler, steps, 1 + i / 16) for model, sampler, steps, i in axes]


def table_of(cells: list[Cell]) -> pd.DataFrame:
    """A made-up table of scores."""
    sizes, draw = {name: rest for name, *rest in MODELS}, np.random.default_rng(0)
    frame = pd.DataFrame([(c.path, c.task, c.model, c.weights, c.sampler, c.steps, c.cfg) for c in cells],
                         columns=["cell", "task", "model", "weights", "sampler", "steps", "cfg"])  # fmt: skip
    for k, column in enumerate(("filters", "params", "gflops")):
        frame[column] = frame["model"].map(lambda name, k=k: sizes[name][k])
    frame = frame.assign(family="unet", norm_cost=frame["gflops"] / 0.05, train_step=1, evaluations=frame["steps"],
                         n=128, n_reference=128, fid_features="made up", clip_features="made up", trainings=1,
                         train_gflops=frame["gflops"], train_flops=frame["gflops"] * 1e9)  # fmt: skip
    frame["cost"] = frame["norm_cost"] * frame["steps"]
    frame = frame.assign(nfe_cost=2 * frame["cost"], sampling_tflops=frame["cost"] / 10, seconds=frame["cost"] / 9)
    table = pd.concat([frame.assign(split=split) for split in ("tuning", "heldout")], ignore_index=True)
    fid = 30 - np.log(table["params"]) + 20 / table["steps"] + (table["cfg"] - 3) ** 2 / 9 + draw.random(len(table)) / 9
    noise = draw.normal(size=(len(table), REPLICATES))
    reps = {"fid_reps": list(fid.to_numpy()[:, None] + noise), "clip_reps": list(0.3 + noise / 1000)}
    return table.assign(fid=fid, clip=0.4 - fid / 1000, **{k: pd.Series(v, dtype=object) for k, v in reps.items()})


def written(n: int, folder: Path) -> tuple[list[Cell], Path]:
    from ldmscale.metrics.scores_file import write_scores

    cells = grid_of(n)
    write_scores(folder / "scores.parquet", table_of(cells), "made up")
    return cells, folder / "scores.parquet"


def gather(n: int, folder: Path) -> float:
    """Rows of ``n`` cells' two splits to the tidy table, with seconds, averaged over trainings and written."""
    from ldmscale.analysis.trainings import over_trainings
    from ldmscale.metrics.gather import scores_table, with_seconds
    from ldmscale.metrics.scores_file import write_scores

    rows = [{"cell": cell.path, "split": split, "evaluations": cell.steps, "n": 128, "fid": 20.0, "clip": 0.3,
             "fid_reps": [20.0] * REPLICATES}
            for cell in grid_of(2 * n) for split in ("tuning", "heldout")]  # fmt: skip
    each = {name: {"flops": 1000, "params": params} for name, _, params, _ in MODELS}
    costs = {"models": each, "finetuned": {}, "reference": 1000, "decode": 1, "encode": 1, "caption": 1}
    second, names = {"median": 1.0}, [name for name, *_ in MODELS]
    runs = {name: {kind: {"start": second, "step": second} for kind in ("guided", "unguided")} for name in names}
    timing = {
        "encode": second,
        "decode": second,
        "caption": second,
        "networks": {"t2i": runs},
        "machine": "",
        "batch": 1,
    }
    family = {"filters": {name: filters for name, filters, *_ in MODELS}, "batch": dict.fromkeys(names, 1),
              "trainings": {name: [name, 0] for name in names}, "finetune": {}}  # fmt: skip
    began = spent()
    table = over_trainings(with_seconds(scores_table(rows, family, costs), timing))
    write_scores(folder / "scores.parquet", table, "")
    return spent() - began


def read_table(n: int, folder: Path) -> float:
    """A table of ``n`` scores read."""
    from ldmscale.metrics.scores_file import read_scores

    path = written(n, folder)[1]
    began = spent()
    read_scores(path, "made up")
    return spent() - began


def experiments(cells: list[Cell]) -> dict[str, list[Cell]]:
    grid = [cell for cell in cells if cell.sampler == "ddim"]
    headline = [cell for cell in grid if cell.steps == max(c.steps for c in grid[-1:]) and cell.cfg == 1]
    return {"grid": grid, "samplers": [cell for cell in cells if cell.sampler != "ddim"], "headline": headline,
            "training": headline}  # fmt: skip


def claims(n: int, folder: Path) -> float:
    """Every claim evaluated on ``n`` scores."""
    from ldmscale.analysis.claims import evaluate, load_claims

    cells = grid_of(n)
    table, known = table_of(cells), load_claims()
    began = spent()
    evaluate(table, experiments(cells), known)
    return spent() - began


def crossovers(n: int, folder: Path) -> float:
    """The costs from which larger models win, with intervals."""
    from ldmscale.analysis.crossover import sampling_crossovers

    table = table_of(grid_of(n))
    began = spent()
    sampling_crossovers(table, ["fid"])
    return spent() - began


def figure(n: int, folder: Path, name: str) -> float:
    """A figure drawn from a table of ``n`` scores."""
    from ldmscale.analysis.study import StudyInfo, models_of
    from ldmscale.figures import FIGURES, FigureData, save_figure

    cells = grid_of(n)
    table = table_of(cells)
    settings = {"fig08": {"models": ["f8", "f32"]}, "fig11": {"baseline": "grid"}}.get(name, {})
    settings = {"experiment": {"fig03": "training", "fig11": "samplers"}.get(name, "grid"), **settings}
    info = StudyInfo("load", "made up", "made up", "made up", 128, 64, 32, 64)
    data = FigureData(table, experiments(cells), settings, None, ["a"], info, models_of(table))
    began = spent()
    save_figure(FIGURES[name](data), folder / "a.pdf", folder / "a.png", 100, "")
    return spent() - began


def advice(n: int, folder: Path) -> float:
    """`ldmscale advise` on a table of ``n`` scores."""
    path = written(n, folder)[1]
    began = spent()
    command = [sys.executable, "-m", "ldmscale.cli.main", "advise", "--budget", "6", "--scores", path]
    subprocess.run(command, check=True, capture_output=True)
    return spent() - began


def explorer(n: int, folder: Path) -> float:
    """The explorer of a table of ``n`` scores."""
    from ldmscale.analysis.study import StudyInfo, models_of
    from ldmscale.explorer import explorer_page

    table = table_of(grid_of(n))
    info = StudyInfo("load", "made up", "made up", "made up", 128, 64, 32, 64)
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    began = spent()
    explorer_page(table, info, models_of(table), ["a prompt"], lambda cell: picture)
    return spent() - began


CELLS, FILES, SCORES = (1_250, 3_500, 10_000), (20_000, 63_000, 200_000), (62_500, 250_000, 1_000_000)
CASES = {
    "plan, a job a model": (plan_cells, CELLS, ("model",)),
    "plan, a job a cell": (plan_cells, CELLS, ("cfg",)),
    "snakemake -n, a job a model": (dry_run, CELLS, ("model",)),
    "snakemake -n, a job a cell": (dry_run, CELLS, ("cfg",)),
    "gather": (gather, CELLS, ()),
    "digest of a folder": (digest_folder, FILES, ()),
    "folder of images": (read_folder, FILES, ()),
    "COCO": (read_coco, FILES, ()),
    "tars": (read_tars, FILES, ()),
    "table read": (read_table, SCORES, ()),
    "claims": (claims, SCORES, ()),
    "crossovers": (crossovers, SCORES, ()),
    "fig08": (figure, SCORES, ("fig08",)),
    "fig09": (figure, SCORES, ("fig09",)),
    "fig11": (figure, SCORES, ("fig11",)),
    "advise": (advice, SCORES, ()),
    "explorer": (explorer, SCORES, ()),
}


def spent() -> float:
    """CPU seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def one(case: str, n: int) -> dict:
    """A measurement, in this process."""
    work, _, more = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        seconds = work(n, Path(folder), *more)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "mib": peak / 1024}


def main(arguments: argparse.Namespace) -> None:
    print(f"{'case':>28}  " + "  ".join(f"{'n: CPU s, MiB':>26}" for _ in range(3)) + "  exponent")
    for case in arguments.cases or CASES:
        sizes = [n // (10 if arguments.quick else 1) for n in CASES[case][1]]
        found = []
        for n in sizes:
            process = [sys.executable, __file__, "--one", str(n), case]
            found.append(json.loads(subprocess.run(process, check=True, stdout=subprocess.PIPE).stdout))
        grown = math.log(found[2]["seconds"] / found[1]["seconds"]) / math.log(sizes[2] / sizes[1])
        row = [f"{n:>9,}: {f['seconds']:7.2f}, {f['mib']:6.0f}" for n, f in zip(sizes, found, strict=True)]
        print(f"{case:>28}  " + "  ".join(row) + f"  {grown:8.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", metavar="CASE", nargs="*", choices=[*CASES, []])
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.cases[0], given.one)))
    else:
        main(given)
