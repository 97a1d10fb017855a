"""The commands that read a finished study, on the files that its rules wrote."""

import shutil

import numpy as np
from folders import RESULTS
from helpers import REPO, merged
from PIL import Image

from ldmscale.cli.main import main


def test_a_finished_study_is_sampled_and_exported(copy, monkeypatch):
    """The gallery's prompts, with the study's seed, are the cells' gallery; the export draws it too."""
    shutil.copytree(REPO / "schemas", copy / "schemas")
    monkeypatch.chdir(copy.path)
    model = ["--model", "f8", "--config", str(REPO / "configs" / "smoke.yaml")]
    prompts = [x for prompt in merged("smoke.yaml")["gallery"] for x in ("--prompt", prompt)]
    settings = [*prompts, "--steps", "4", "--cfg", "4"]
    assert main(["sample", *model, *settings, "--out", "drawn"]) == 0
    assert main(["export", *model, "f8"]) == 0
    assert main(["sample", "--pipeline", "f8", *settings, "--out", "again"]) == 0
    cell = "cells/task=t2i/model=f8/weights=pretrain-40/sampler=ddim/steps=4/cfg=4"
    gallery = np.int32(np.load(copy / RESULTS / cell / "gallery.npy"))
    for folder in ("drawn", "again"):
        images = [np.asarray(Image.open(copy / folder / f"{n:04d}.png")) for n in range(len(gallery))]
        assert np.abs(images - gallery).max() <= 1  # one level: the programs of another batch round otherwise
    assert not np.array_equal(*gallery[:2])
