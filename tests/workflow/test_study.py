"""The smoke study, run once from nothing: everything that it should leave is there and makes sense."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from folders import RESULTS, chain_of, cpu_seconds
from helpers import merged
from PIL import Image

from ldmscale.cells.cell import Cell
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import read_json, read_manifest

FIGURES = (
    "fig01",
    "fig02",
    "fig03",
    "fig07",
    "fig08",
    "fig09",
    "fig10",
    "fig11",
    "fig14",
    "fig15",
    "fig21",
    "fig22",
    "fig24",
)
CPU_SECONDS = 4 * 60 * 2  # four minutes on two cores, with other work on the machine not counted


@pytest.fixture(scope="module")
def chain():
    return chain_of()


@pytest.fixture(scope="module")
def results(study):
    return study / RESULTS


def test_it_takes_at_most_four_minutes_on_two_cores(study):
    assert study.seconds[0] < CPU_SECONDS


def test_nothing_is_left_half_written(results):
    assert [path for path in results.rglob(".*") if path.is_file()] == []
    assert [path for path in results.rglob("*") if path.is_file() and path.stat().st_size == 0] == []


def test_every_job_ended_and_said_so(results):
    logs = [path for path in (results / "logs").rglob("*.log")]
    assert len(logs) > 20
    for path in logs:
        assert path.read_text().endswith("s] done\n"), path


def test_a_second_run_has_nothing_to_do_and_says_so_in_seconds(study):
    with cpu_seconds() as seconds:
        assert "Nothing to be done" in study.run().said
    assert seconds[0] < 10


def test_the_config_is_kept_beside_what_it_made(results):
    assert yaml.safe_load((results / "config.yaml").read_text()) == merged("smoke.yaml")


# ---------------------------------------------------------------- models and cells


def test_every_stage_was_made_from_what_the_config_says(results, chain):
    places = {"data": "data", "tokenizer": "encoders", "autoencoder": "encoders", "clip": "encoders",
              "latents": "latents", "prompts": "prompts", "reference": "reference"}  # fmt: skip
    for stage, place in places.items():
        read_manifest(results / place / f"{stage}.json", stage, chain[stage]["digest"])
    for model in chain.study.models:
        read_manifest(results / "models" / model / "pretrain.json", "pretrain", chain.pretrain(model)["digest"])
    for cell in chain.plan.cells:
        read_manifest(results / "cells" / cell.path / "sample.json", "generate", chain.cell(cell)["digest"])


def test_every_model_has_its_checkpoints_and_learned_something(study, results, chain):
    for model in chain.study.models:
        weights = read_json(results / "models" / model / "pretrain.json")["weights"]
        assert set(weights) == {"pretrain-20", "pretrain-40"}
        assert (study / weights["pretrain-20"]).read_bytes() != (study / weights["pretrain-40"]).read_bytes()
        losses = pd.read_json(results / "models" / model / "pretrain" / "loss.jsonl", lines=True)
        assert losses["step"].iloc[-1] == 40 and losses["step"].is_monotonic_increasing
        # The untrained network predicts zero, at a loss of one.
        assert 0.9 < losses["loss"].iloc[0] < 1.1
        assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]


def test_latents_have_unit_variance(results):
    mean, std = (np.load(results / "latents" / f"{name}.npy") for name in ("mean", "std"))
    scale = read_json(results / "latents" / "latents.json")["scale"]
    assert scale**2 * (mean.var() + (std**2).mean()) == pytest.approx(1, rel=1e-5)
    assert mean.shape == (256, 8, 8, 4)


def test_every_cell_has_its_images(results, chain):
    counts = {"gallery": 2, "tuning": 48, "heldout": 64}
    for cell in chain.plan.cells:
        folder = results / "cells" / cell.path
        drawn = counts if chain.plan.is_scored(cell) else {"gallery": 2}
        if cell.task == "interpolation":
            drawn = {"interpolation": 3 * 4}  # alphas, noises
        assert {path.stem for path in folder.glob("*.npy")} == set(drawn)
        for split, count in drawn.items():
            images = np.load(folder / f"{split}.npy")
            assert images.shape == (count, 16, 16, 3) and images.dtype == np.uint8
            assert len(np.unique(images.reshape(count, -1), axis=0)) == count


def test_cells_that_differ_in_one_thing_differ_in_their_images(results, chain):
    cell = chain.plan.experiments["headline"][0]
    others = [cell.at(cfg=1.0), cell.at(steps=2), cell.at(sampler="ddpm"), cell.at(weights="pretrain-20"),
              cell.at(model="f8")]  # fmt: skip
    images = [np.load(results / "cells" / c.path / "heldout.npy") for c in (cell, *others)]
    for other in images[1:]:
        assert (other != images[0]).any()


# ---------------------------------------------------------------- scores


def test_the_table_of_scores_has_a_row_for_every_scored_cell_and_split(results, chain):
    table = read_scores(results / "scores.parquet", chain.scores()["digest"])
    between = table[table["task"] == "interpolation"]
    asked = [(cell.path, alpha) for cell in chain.plan.experiments["interpolation"] for alpha in (1.0, 0.5, 0.0)]
    assert sorted(zip(between["cell"], between["alpha"], strict=True)) == sorted(asked)
    assert all(len(values) == 4 for values in (*between["clip_a"], *between["clip_b"]))
    table = table[table["task"] == "t2i"]
    scored = [cell for cell in chain.plan.scored if cell.task == "t2i"]
    assert sorted(zip(table["cell"], table["split"], strict=True)) == sorted(
        (cell.path, split) for cell in scored for split in ("heldout", "tuning")
    )
    assert np.isfinite(table[["fid", "clip", "cost", "nfe_cost", "sampling_tflops"]].to_numpy()).all()
    assert (table["fid"] > 0).all() and table["clip"].between(-1, 1).all()
    assert set(table["fid_features"]) == {"study CLIP image features"}  # no Inception weights are given
    assert set(table["clip_features"]) == {"study CLIP"}
    assert dict(table.groupby("split")["n"].first()) == {"heldout": 64, "tuning": 48}
    assert all(len(reps) == 50 for reps in (*table["fid_reps"], *table["clip_reps"]))
    final = table[table["train_step"] == 40]
    assert (final.loc[final["cfg"] != 1, "nfe_cost"] == 2 * final.loc[final["cfg"] != 1, "cost"]).all()
    assert (final.loc[final["cfg"] == 1, "nfe_cost"] == final.loc[final["cfg"] == 1, "cost"]).all()
    assert set(table["evaluations"]) == {2, 4}
    assert dict(table.groupby("model")["norm_cost"].first())["f8"] == 1.0


# ---------------------------------------------------------------- what people read


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(results, name):
    assert (results / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
    with Image.open(results / "figures" / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 50
    assert pixels.std() > 5  # not an empty page


def test_no_other_figure_is_there(results):
    assert {path.stem for path in (results / "figures").iterdir()} == set(FIGURES)


def test_table_1_names_every_model_in_three_formats(results, chain):
    table = pd.read_csv(results / "tables" / "table1.csv")
    assert len(table) == 2
    scores = read_scores(results / "scores.parquet", chain.scores()["digest"])
    headline = scores[
        (scores["split"] == "heldout") & scores["cell"].isin(c.path for c in chain.plan.experiments["headline"])
    ]
    text = table.to_string()
    for row in headline.itertuples():
        assert row.model in text and str(row.filters) in text
        assert any(abs(value - row.fid) < 0.006 for value in table.select_dtypes("number").to_numpy().ravel())
    for suffix, mark in (("md", "|"), ("tex", r"\begin{tabular}")):
        text = (results / "tables" / f"table1.{suffix}").read_text()
        assert mark in text and "f4" in text and "f8" in text


def test_the_summary_gives_a_verdict_on_every_finding_and_says_what_was_measured_in(results):
    text = (results / "summary.md").read_text()
    findings = re.split(r"^### ", text, flags=re.M)[1:]
    assert len(findings) >= 4
    for finding in findings:
        assert re.search(r"\*\*(Supported|Not supported|Cannot tell)\.\*\*", finding), finding
    assert "study CLIP image features" in text
    assert "95% interval" in text


def test_the_report_holds_the_figures_and_needs_nothing_else(results):
    text = (results / "report.html").read_text()
    assert len(text) > 500_000
    for name in FIGURES:
        assert name in text
    assert "summary" in text and "table1" in text


def test_cells_are_found_where_their_names_say(results, chain):
    found = {str(p.parent.relative_to(results / "cells")) for p in (results / "cells").rglob("sample.json")}
    assert {Cell.parse(path) for path in found} == set(chain.plan.cells)
