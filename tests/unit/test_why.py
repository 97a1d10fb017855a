"""``ldmscale why``: the chain behind a file, from a made folder of manifests; the real one is in tests/workflow."""

import os

import pytest
import yaml
from helpers import merged
from PIL import Image, PngImagePlugin

from ldmscale.cells.chain import Chain
from ldmscale.cells.lineage import Lineage
from ldmscale.cells.plan import Plan
from ldmscale.cli.main import main
from ldmscale.config.study import Study
from ldmscale.provenance import read_json, write_json

FIGURE = "figures/fig09.png"


def make(path, digest):
    """A file that carries ``digest`` as the study's own does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text("digest", digest)
        Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"digest": digest}), path)
    else:
        write_json(path, {"digest": digest})


def links():
    return Lineage(Chain(Plan(Study(merged("smoke.yaml"))))).of(FIGURE).walk()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The folder of a finished smoke study as far as Figure 9 reads it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "smoke"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(merged("smoke.yaml")))
    for link in links():
        make(folder / link.file, link.digest)
    return folder


def why(capsys, file, status):
    assert main(["why", os.fspath(file)]) == status
    said = capsys.readouterr()
    return said.out if not said.err else said.err


def test_a_figure_goes_back_to_config_and_data_each_link_told_once(study, capsys):
    said = why(capsys, study / FIGURE, 0)
    for link in links():
        assert said.count(f"{link.file}  [{link.stage} {link.digest}]") == 1
    assert "data/data.json  (above)" in said and "<-" not in said
    assert '"source": "scenes"' in said and "learning_rate" in why(capsys, study / "models/f4/pretrain.json", 0)
    assert "image_size 16" in said


@pytest.mark.parametrize("broken", ["data/data.json", "models/f4/pretrain.json", "scores.parquet", FIGURE])
def test_a_link_of_another_config_is_named(study, capsys, broken):
    make(study / broken, "0123456789abcdef")
    said = why(capsys, study / FIGURE, 1)
    assert f"{study / broken} is made from another config: everything after it" in said
    assert said.count("<- MADE FROM ANOTHER CONFIG") == 1


def test_a_link_that_is_missing_and_one_that_is_damaged(study, capsys):
    (study / "latents/latents.json").unlink()
    assert f"{study}/latents/latents.json is missing" in why(capsys, study / FIGURE, 1)
    (study / "data/data.json").write_text("{")
    assert f"{study}/data/data.json is made from another config" in why(capsys, study / FIGURE, 1)


def test_an_edited_config_breaks_the_chain_from_where_it_bears(study, capsys):
    config = merged("smoke.yaml")
    config["pretrain"]["learning_rate"] = 5.0e-4
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    said = why(capsys, study / FIGURE, 1)
    assert "latents/latents.json  [latents " in said and "models/f4/pretrain.json  [pretrain " in said
    lines = {line.split()[0]: line for line in said.splitlines() if "[" in line}
    assert "<-" not in lines["latents/latents.json"] and "<-" in lines["models/f4/pretrain.json"]


def test_files_outside_of_a_study_or_of_no_stage_are_refused(study, capsys, tmp_path):
    assert "is not in a study's folder" in why(capsys, tmp_path / "x.png", 1)
    assert "nothing.txt is not made by any stage" in why(capsys, study / "nothing.txt", 1)
    assert "'task=t2i/model=f3' is not a cell" in why(capsys, study / "cells/task=t2i/model=f3/sample.json", 1)
    config = read_json(study / "data/data.json") and merged("smoke.yaml")
    del config["autoencoder"]["photos"]
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    assert "lacks 'photos': another version of ldmscale wrote it" in why(capsys, study / FIGURE, 1)
