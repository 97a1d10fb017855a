"""The same config makes the same bytes, in another folder, on another number of cores, in another order; another seed
makes others. The comparison of two whole studies is a command: ``python tests/workflow/reproduce.py``."""

import shutil

from folders import RESULTS, Folder, chain_of
from reproduce import content, differences, files

from ldmscale.cells.lineage import Lineage
from ldmscale.data.records import read_split

JOB = "cells/task=t2i/model=f4/weights=pretrain-40/sampler=ddim"
REMADE = rf"^models/f4/pretrain(/|\.)|^{JOB}/steps="


def test_trained_drawn_and_scored_elsewhere_on_one_core_the_bytes_are_the_same(study, copy):
    """One model from the same data, in the opposite order of what the fixture's two cores did side by side."""
    for path in ("models/f4/pretrain", JOB):
        shutil.rmtree(copy / RESULTS / path)
    (copy / RESULTS / "models/f4/pretrain.json").unlink()
    copy.run(RESULTS / JOB / "scores.json", "--cores", "1", "--scheduler", "greedy")
    compared, differ = differences(study / RESULTS, copy / RESULTS, REMADE)
    assert compared[".safetensors"] >= 3 and compared["images of cells"] >= 3 and compared[".json"] >= 4
    assert differ == []
    # They are new, and the comparison is of more than names.
    weights = RESULTS / "models/f4/pretrain/step-40.safetensors"
    assert (copy / weights).stat().st_mtime_ns > (study / weights).stat().st_mtime_ns
    (copy / weights).write_bytes((copy / weights).read_bytes()[:-1] + b"?")
    assert differences(study / RESULTS, copy / RESULTS, REMADE)[1] == ["models/f4/pretrain/step-40.safetensors"]


def test_another_seed_is_behind_every_file(study):
    """By the digests, which every reader checks: no file made under one seed is taken for one of another."""
    here, there = (Lineage(chain_of({"seed": seed})) for seed in (0, 1))
    made = [name for name in files(study / RESULTS) if name != "config.yaml"]
    same = {name for name in made if here.of(name).digest is not None and here.of(name).digest == there.of(name).digest}
    # What follows from the networks' shapes alone.
    assert {name.split("/")[0] for name in same} <= {"costs.json"}, sorted(same)
    assert len(made) > 300


def test_another_seed_draws_other_images(study, tmp_path):
    other = Folder(tmp_path / "other")
    other.run(RESULTS / "data" / "data.json", overlay={"seed": 1})
    for split in ("train", "tuning", "heldout"):
        mine, theirs = (read_split(folder / RESULTS / "data", split) for folder in (study, other))
        assert mine.images.shape == theirs.images.shape
        assert not (mine.images == theirs.images).all(axis=(1, 2, 3)).any()
    made = files(other / RESULTS / "data")
    assert made and all(content(path) != content(study / RESULTS / "data" / name) for name, path in made.items())
