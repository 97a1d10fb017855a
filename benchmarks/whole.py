"""A finished study, stage by stage: seconds, the floor that its FLOPs set, compilation, peak memory, growth.

`python benchmarks/whole.py results/<study> [FOLDER]` reads what Snakemake measured of each job (the study's folder
`benchmarks`: the last run of each, so a study made in one go) and counts FLOPs from its config (`ldmscale estimate`).
The floor is those FLOPs at the rate of a large float32 matrix product on one thread, measured now. FOLDER holds what
jobs compiled, where the study was made with

    PYTHONPATH=benchmarks/listen LDMSCALE_COMPILED=FOLDER make study

Floor and compilation are compared with the wall seconds of the jobs, each of one thread, which mean something only
where nothing else ran: Snakemake looks at a job's CPU seconds now and then, and misses the last of them. Growth is the
exponent of wall seconds in FLOPs over the models, where there are at least three. A second table adds the jobs up by
parts of the study.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import seconds

from ldmscale.cells.chain import Chain
from ldmscale.cells.estimate import Passes, estimate
from ldmscale.cells.plan import Plan
from ldmscale.config.read import read_yaml
from ldmscale.config.study import Study
from ldmscale.metrics.costs import study_costs
from ldmscale.runtime import use_threads


def matmul_rate():
    """FLOP/s of a product of two float32 [1024,1024] on one thread, the median of some."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1024, 1024), np.float32))
    product = jax.jit(jnp.matmul)
    times = [seconds(lambda: jax.block_until_ready(product(x, x))) for _ in range(12)]
    return 2 * 1024**3 / statistics.median(times[2:])


def jobs(folder):
    """Where each job's measurements lie below ``folder``, in parts, and what Snakemake measured of it."""
    for path in sorted(folder.rglob("*.tsv")):
        with open(path) as file:
            yield path.relative_to(folder).with_suffix("").parts, list(csv.DictReader(file, delimiter="\t"))


def measured(folder):
    """{stage: {model (empty where a job is for all): [what Snakemake measured of each job]}}."""
    found = defaultdict(lambda: defaultdict(list))
    for parts, rows in jobs(folder):
        named = [part.removeprefix("model=") for part in parts if part.startswith("model=")]
        model = named[0] if named else "" if len(parts) == 1 or "=" in parts[1] else parts[1]
        found[parts[0]][model] += rows
    return found


PARTS = {
    "distillation": {"codi", "guided"},
    "super-resolution and DreamBooth": {"superres", "dreambooth", "pairs", "baselines", "subjects", "class_images"},
    "timing": {"timing"},
}


def shares(folder):
    """Lines of a table: the seconds of the jobs of each part of the study, by what trains for it or is its task."""
    found = defaultdict(list)
    for parts, rows in jobs(folder):
        names = {part.removeprefix("task=") for part in parts}
        part = next((part for part, stages in PARTS.items() if stages & names), "text-to-image")
        found[part] += [number(row["s"]) for row in rows]
    whole = sum(map(sum, found.values()))
    yield from ("| part | jobs | wall s | share |", "|---|---:|---:|---:|")
    for part, times in sorted(found.items(), key=lambda item: -sum(item[1])):
        yield f"| {part} | {len(times)} | {sum(times):.1f} | {100 * sum(times) / whole:.1f} % |"


def work(results):
    """{stage: {model: FLOPs}} of the study that made ``results``."""
    study = Study(read_yaml(results / "config.yaml"))
    plan = Plan(study)
    counted = study_costs({**Chain(plan)["costs"], "models": {}, "finetuned": {}})
    passes, found = Passes(*(counted[name] for name in ("encode", "decode", "caption"))), defaultdict(dict)
    for each in estimate(plan, passes, study.config["data"]["counts"]["train"]):
        found[each.stage][each.model] = each.flops
    return found


def compiled(folder):
    """{stage: [compile seconds, programs, of these from the cache]}."""
    found = defaultdict(lambda: [0.0, 0, 0])
    for path in folder.glob("*.json"):
        said = json.loads(path.read_text())
        stage = said["script"].removesuffix(".py").rpartition(".")[2]  # Snakemake's copy is called tmp....stage.py
        found[stage] = [a + b for a, b in zip(found[stage], list(said.values())[1:], strict=True)]
    return found


def number(value):
    """What Snakemake measured; it says NA of a job shorter than its first look."""
    return 0.0 if value in (None, "NA", "-") else float(value)


def growth(wall, flops):
    both = [(flops[model], wall[model]) for model in wall if flops.get(model)]
    if len(both) < 3:
        return "-"
    return f"{np.polyfit(*np.log(np.array(both)).T, 1)[0]:.2f}"


def main(results, folder):
    stages, flops, rate = measured(results / "benchmarks"), work(results), matmul_rate()
    compiling = compiled(folder) if folder else {}
    columns = "stage", "jobs", "wall s", "CPU s", "GFLOP", "floor s", "reached", "compile s", "programs", "peak MB"
    lines = [f"| {' | '.join(columns)} | growth |", "|---" + "|---:" * len(columns) + "|"]
    total = np.zeros(5)
    spent = {}
    for stage, models in stages.items():
        every = [job for of_model in models.values() for job in of_model]
        by_model = {model: sum(number(job["s"]) for job in of_model) for model, of_model in models.items()}
        spent[stage] = sum(by_model.values()), by_model, every
    for stage, (wall, by_model, every) in sorted(spent.items(), key=lambda item: -item[1][0]):
        cpu, peak = (how(number(job[key]) for job in every) for how, key in ((sum, "cpu_time"), (max, "max_rss")))
        giga = sum(flops.get(stage, {}).values()) / 1e9
        floor = giga * 1e9 / rate
        seconds_compiling, programs, cached = compiling.get(stage, (0.0, 0, 0))
        total += wall, cpu, giga, floor, seconds_compiling
        made = (f"{seconds_compiling:.1f}", f"{programs} ({cached} cached)") if folder else ("-", "-")
        lines.append(
            f"| {stage} | {len(every)} | {wall:.1f} | {cpu:.1f} | {giga:.0f} | {floor:.1f} | "
            f"{100 * floor / wall:.0f} % | {' | '.join(made)} | {peak:.0f} | {growth(by_model, flops.get(stage, {}))} |"
        )
    wall, cpu, giga, floor, seconds_compiling = total
    lines.append(
        f"| all | {sum(len(s[2]) for s in spent.values())} | {wall:.1f} | {cpu:.1f} | {giga:.0f} | {floor:.1f} | "
        f"{100 * floor / wall:.0f} % | {f'{seconds_compiling:.1f}' if folder else '-'} | - | - | - |"
    )
    print("\n".join(lines))
    print("\n" + "\n".join(shares(results / "benchmarks")))
    print(f"\nA matrix product reaches {rate / 1e9:.0f} GFLOP/s on one thread.", end=" ")
    if folder:
        rest = sum(value[0] for stage, value in compiling.items() if stage not in spent)
        print(
            f"Compilation is {100 * seconds_compiling / wall:.0f} % of the seconds; jobs not listed took {rest:.1f} s."
        )
    else:
        print("What was compiled was not recorded.")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    use_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
