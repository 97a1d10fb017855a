"""Large studies: work grows with the study, counted in calls and file operations, not in seconds."""

import json
import sys
import tarfile
from collections import Counter
from io import BytesIO

import pytest
from helpers import merged
from PIL import Image
from synthetic_study import small_study

from ldmscale.cells import chain as chain_module
from ldmscale.cells.cell import LEVELS, Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.data import tars
from ldmscale.data.folder import FolderSource
from ldmscale.data.tars import TarSource
from ldmscale.explorer import page
from ldmscale.provenance import ENDS, listing_digest


def opened(work) -> Counter:
    """How often ``work`` opens each file, by its name without folders."""
    names, on = Counter(), True

    def hook(event, arguments):
        if on and event == "open" and isinstance(arguments[0], (str, bytes)):
            names[str(arguments[0]).rpartition("/")[2]] += 1

    sys.addaudithook(hook)  # for good: silenced below
    work()
    on = False
    return names


def calls(side: int, level: str, monkeypatch) -> tuple[int, int]:
    """(cells, digests made) of planning everything that the Snakefile asks for, of a grid of side x side a model."""
    grid = {"steps": [*range(1, side), 16], "cfg": [1 + i / 16 for i in range(side)]}
    config = merged({"experiments": {"grid": grid}, "sampling": {"cells_per_job": level}, "figures": {"fig07": None}})
    made = Counter()
    digest = chain_module.digest
    with monkeypatch.context() as patch:
        patch.setattr(chain_module, "digest", lambda stage, *parts: made.update([stage]) or digest(stage, *parts))
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
    assert made["score"] < 1.1 * len(plan.cells) + 100  # each cell's once, though job and table ask
    return len(plan.cells), made.total()


@pytest.mark.parametrize("level", ["model", "cfg"])
def test_planning_makes_each_digest_once(level, monkeypatch):
    (few, before), (many, after) = calls(4, level, monkeypatch), calls(12, level, monkeypatch)
    assert many > 3 * few
    # A cell's own, that of its weights and of its score; its job's where it has one.
    assert (after - before) / (many - few) <= (4 if level == "cfg" else 3) + 0.1


def test_a_cell_is_written_once(monkeypatch):
    written = Counter()
    text = chain_module.Cell.path.func.__globals__["_text"]
    monkeypatch.setitem(Cell.path.func.__globals__, "_text", lambda value: written.update([1]) or text(value))
    cell = Cell("t2i", "f8", "pretrain-40", "ddim", 4, 1.5)
    prefixes = [cell.prefix(level) for _ in range(5) for level in LEVELS]
    assert written.total() == len(LEVELS)
    assert prefixes[:2] == ["task=t2i", "task=t2i/model=f8"]
    assert prefixes[-1] == cell.path == "task=t2i/model=f8/weights=pretrain-40/sampler=ddim/steps=4/cfg=1.5"
    assert cell.at(steps=5).path.endswith("steps=5/cfg=1.5")


def test_experiments_are_not_gone_through_for_every_figure():
    plan = Plan(Study(merged()))
    chain = Chain(plan)
    figures = [name for name, settings in chain.config["figures"].items() if settings is not None]
    for name in figures:
        chain.figure(name)
    assert chain._experiment.cache_info().misses <= len(plan.experiments) < len(figures)
    # What is shared is not handed out.
    chain.figure("fig09")["drawn"].clear()
    chain.figure("fig09")["experiments"]["grid"].clear()
    assert chain.figure("fig09")["drawn"] and chain.figure("fig09")["experiments"]["grid"]


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    return buffer.getvalue()


def test_a_folder_of_images_is_opened_once_for_its_digest(tmp_path):
    sizes = (0, 1, ENDS - 1, ENDS, ENDS + 1, 2 * ENDS, 3 * ENDS)
    for k, size in enumerate(sizes):
        (tmp_path / f"{k}.png").write_bytes(bytes([k + 1]) * size)
    found = []
    names = opened(lambda: found.append(listing_digest(tmp_path)))
    assert [names[f"{k}.png"] for k in range(len(sizes))] == [1] * len(sizes)
    assert found == ["beedf63bfce37e37"]  # a digest is never to change: all that follows would be made again


def test_a_folder_of_images_is_read_in_few_file_operations(tmp_path):
    for k in range(40):
        (tmp_path / f"{k}.png").write_bytes(picture())
    lines = [json.dumps({"file_name": f"{k}.png", "text": "a picture"}) for k in range(40)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    source = FolderSource(tmp_path, 2, "crop", 10, 10, "refuse", 0)
    names = opened(lambda: source.size("train"))
    assert source.size("train") == 20
    assert set(names.values()) == {1}


def test_lists_of_tars_are_read_once_for_all_candidates(tmp_path, monkeypatch):
    for number in range(12):
        with tarfile.open(tmp_path / f"{number:02d}.tar", "w") as tar:
            for i in range(20):
                for kind, content in (("png", picture()), ("txt", b"a picture")):
                    info = tarfile.TarInfo(f"{i}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
    looked = Counter()
    whole = tars._list
    monkeypatch.setattr(tars, "_list", lambda index, path: looked.update([path.name]) or whole(index, path))
    source = TarSource(tmp_path, 2, "crop", 60, 40, "refuse", 0, tmp_path / "index")
    keys = {source.example(split, i).key for split in ("heldout", "tuning") for i in range(source.size(split))}
    assert len(keys) == 100
    assert set(looked.values()) == {1}  # besides the survey's, in its own processes


def test_an_explorer_of_many_cells_keeps_every_choice(monkeypatch):
    data = small_study(image_size=8, gallery=("a picture",))
    scores = data.scores.assign(trainings=1)
    arguments = (scores, data.study, data.models, data.gallery, data.previews)
    whole = page.explorer_data(*arguments)
    monkeypatch.setattr(page, "POINTS", 10)
    cut = page.explorer_data(*arguments)
    shown = [point for point in whole["points"] if point["picture"]]
    assert cut["points"] == shown and 10 < len(shown) < len(whole["points"])
    assert f"Of {len(whole['points'])} cells sampled, the {len(shown)}" in cut["about"]
    assert "cells sampled" not in whole["about"]
