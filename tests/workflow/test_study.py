"""The smoke study, run once from nothing: everything that it should leave is there and makes sense."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from folders import RESULTS, chain_of
from helpers import merged
from PIL import Image
from safetensors.numpy import load_file

from ldmscale.cells.cell import ON_PROMPTS, Cell
from ldmscale.data.encoded import Latents
from ldmscale.metrics.image_quality import psnr_y
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import read_json, read_manifest

FIGURES = (
    "fig01",
    "fig02",
    "fig03",
    "fig04",
    "fig05",
    "fig06",
    "fig07",
    "fig08",
    "fig09",
    "fig10",
    "fig11",
    "fig12",
    "fig13",
    "fig14",
    "fig15",
    "fig17",
    "fig18",
    "fig19",
    "fig20",
    "fig21",
    "fig22",
    "fig24",
    "dreambooth",
    "families",
    "fits",
    "latency",
    "validation",
)
UNETS = ("f4", "f8")  # in every task; the transformer in text-to-image and CoDi


@pytest.fixture(scope="module")
def chain():
    return chain_of()


@pytest.fixture(scope="module")
def results(study):
    return study / RESULTS


def test_nothing_is_left_half_written(results):
    assert [path for path in results.rglob(".*") if path.is_file()] == []
    assert [path for path in results.rglob("*") if path.is_file() and path.stat().st_size == 0] == []


def test_every_job_ended_and_said_so(results):
    logs = [path for path in (results / "logs").rglob("*.log")]
    assert len(logs) > 20
    for path in logs:
        assert path.read_text().endswith("s] done\n"), path


def test_a_second_run_has_nothing_to_do_and_says_so(study):
    assert "Nothing to be done" in study.run().said


def test_the_config_is_kept_beside_what_it_made(results):
    assert yaml.safe_load((results / "config.yaml").read_text()) == merged("smoke.yaml")


# ---------------------------------------------------------------- models and cells


def test_every_stage_was_made_from_what_the_config_says(results, chain):
    places = {"data": "data", "tokenizer": "encoders", "autoencoder": "encoders", "clip": "encoders",
              "latents": "latents", "prompts": "prompts", "reference": "reference", "pairs": "superres",
              "baselines": "superres", "subjects": "dreambooth"}  # fmt: skip
    for stage, place in places.items():
        read_manifest(results / place / f"{stage}.json", stage, chain[stage]["digest"])
    for model in chain.study.models:
        finetuned = ("superres", "class_images", "dreambooth") if model in UNETS else ()
        guided = ("guided",) if model == "f8" else ()
        for stage in ("pretrain", "codi", *finetuned, *guided):
            read_manifest(results / "models" / model / f"{stage}.json", stage, getattr(chain, stage)(model)["digest"])
    for cell in chain.plan.cells:
        read_manifest(results / "cells" / cell.path / "sample.json", "generate", chain.cell(cell)["digest"])


def test_every_model_has_its_checkpoints_and_learned_something(study, results, chain):
    for model in chain.study.models:
        weights = read_json(results / "models" / model / "pretrain.json")["weights"]
        assert set(weights) == {"pretrain-20", "pretrain-40"}
        assert (study / weights["pretrain-20"]).read_bytes() != (study / weights["pretrain-40"]).read_bytes()
        losses = pd.read_json(results / "models" / model / "pretrain" / "metrics.jsonl", lines=True)
        assert losses["step"].iloc[-1] == 40 and losses["step"].is_monotonic_increasing
        # The untrained network predicts zero, at a loss of one.
        assert 0.9 < losses["loss"].iloc[0] < 1.1
        assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]


def test_finetuning_starts_at_the_pretrained_weights_and_leaves_them(study, results, chain):
    def read(model, task):
        weights = read_json(results / "models" / model / f"{task}.json")["weights"]
        return {name: load_file(study / path) for name, path in weights.items()}

    for model in UNETS:
        base = read(model, "pretrain")["pretrain-40"]
        restoring, personal = read(model, "superres"), read(model, "dreambooth")
        assert list(restoring) == ["superres-0", "superres-3", "superres-6"]
        assert list(personal) == ["dreambooth_hat_circle-0", "dreambooth_hat_circle-4"]
        for start in (restoring["superres-0"], personal["dreambooth_hat_circle-0"]):
            for name, tensor in start.items():
                if name == "conv_in.kernel" and start is restoring["superres-0"]:
                    assert tensor.shape[2] == 8 and (tensor[:, :, 4:] == 0).all()  # the condition's, blind to it yet
                    tensor = tensor[:, :, :4]
                np.testing.assert_array_equal(tensor, base[name])
        # A few steps later it is another network, and sees the condition.
        assert (restoring["superres-3"]["conv_in.kernel"][:, :, 4:] != 0).any()
        for later, start in ((restoring["superres-6"], restoring["superres-3"]), [*personal.values()][::-1]):
            assert any((later[name] != start[name]).any() for name in later)


def test_latents_have_unit_variance(results):
    scale = read_json(results / "latents" / "latents.json")["scale"]
    latents = Latents.load(results / "latents", scale)
    mean, std = latents.mean[:], latents.std[:]
    assert scale**2 * (mean.var() + (std**2).mean()) == pytest.approx(1, rel=1e-5)
    assert mean.shape == (256, 8, 8, 4)


def test_every_cell_has_its_images(results, chain):
    counts = {"gallery": 2, "tuning": 48, "heldout": 64}
    for cell in chain.plan.cells:
        folder = results / "cells" / cell.path
        drawn = counts if chain.plan.is_scored(cell) else {"gallery": 2}
        if cell.task not in ON_PROMPTS:
            drawn = {
                "interpolation": {"interpolation": 3 * 4},  # alphas, noises
                "superres": {"superres": 64},  # the held-out images
                "dreambooth": {"dreambooth": 25 * 2, "class": 4},  # prompts, images of each
            }[cell.task]
        assert {path.stem for path in folder.glob("*.npy")} == set(drawn)
        for split, count in drawn.items():
            images = np.load(folder / f"{split}.npy")
            assert images.shape == (count, 16, 16, 3) and images.dtype == np.uint8
            assert len(np.unique(images.reshape(count, -1), axis=0)) == count


def test_the_evaluation_patches_are_kept_as_arrays_and_pictures(results):
    arrays = {name: np.load(results / "superres" / f"{name}.npy") for name in ("hr", "lr", "bicubic", "reconstruction")}
    assert arrays["lr"].shape == (64, 4, 4, 3)
    assert all(array.shape == (64, 16, 16, 3) for name, array in arrays.items() if name != "lr")
    for name in ("hr", "lr"):
        files = sorted((results / "superres" / name).iterdir())
        assert [path.name for path in files] == [f"{i:05d}.png" for i in range(64)]
        np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in files], arrays[name])
    assert np.load(results / "superres" / "train-condition.npy").shape == (64, 8, 8, 4)
    assert np.isfinite(np.load(results / "superres" / "train-std.npy")).all()


def test_every_model_made_class_images_of_its_own(study, results, chain):
    drawn = []
    for model in UNETS:
        latents = read_json(results / "models" / model / "class_images.json")["latents"]
        assert list(latents) == ["circle"]
        drawn.append(np.load(study / latents["circle"]))
        assert drawn[-1].shape == (8, 8, 8, 4) and np.isfinite(drawn[-1]).all()
    assert (drawn[0] != drawn[1]).any()


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


NUMBERS = ["params", "gflops", "norm_cost", "cost", "nfe_cost", "sampling_tflops", "train_gflops", "train_flops"]


def test_super_resolution_has_a_row_for_every_cell_and_one_for_each_baseline(results, chain):
    table = read_scores(results / "scores.parquet", chain.scores()["digest"])
    table = table[table["task"] == "superres"]
    assert sorted(table["cell"]) == sorted(cell.path for cell in chain.plan.cells if cell.task == "superres")
    assert set(table["split"]) == {"superres"} and set(table["n"]) == {64} and set(table["cfg"]) == {1.0}
    scores = ["fid", "psnr", "ssim", "perceptual", "is1", "is10", "is10_std"]
    assert np.isfinite(table[[*scores, *NUMBERS]].to_numpy(float)).all()
    for name in ("fid_reps", "psnr_reps", "ssim_reps", "perceptual_reps", "is_reps"):
        assert all(len(reps) == 50 and np.isfinite(reps).all() for reps in table[name])
    assert (table["nfe_cost"] == table["cost"]).all()  # unguided
    assert (table.loc[table["train_step"] == 0, ["train_gflops", "train_flops"]] == 0).all(axis=None)
    assert set(table["perceptual_features"]) == {"study CLIP image features, 1 - cosine"}
    baselines = read_manifest(results / "superres" / "baselines.json", "baselines", chain["baselines"]["digest"])
    rows = {row["baseline"]: row for row in baselines["rows"]}
    assert list(rows) == ["bicubic", "reconstruction"]
    assert all(np.isfinite(row[score]) for row in rows.values() for score in scores)
    hr = np.load(results / "superres" / "hr.npy")
    for name, row in rows.items():
        assert row["psnr"] == pytest.approx(psnr_y(np.load(results / "superres" / f"{name}.npy"), hr).mean())


def test_dreambooth_has_a_row_for_every_cell(results, chain):
    table = read_scores(results / "scores.parquet", chain.scores()["digest"])
    table = table[table["task"] == "dreambooth"]
    assert sorted(table["cell"]) == sorted(cell.path for cell in chain.plan.cells if cell.task == "dreambooth")
    assert set(table["split"]) == {"dreambooth"} and set(table["n"]) == {50} and set(table["subject"]) == {"hat_circle"}
    assert np.isfinite(table[["real_dino", "real_clip_i", *NUMBERS]].to_numpy(float)).all()
    for name, count in {"dino": 25, "clip_i": 25, "clip_t": 25, "div": 25, "pres": 4}.items():
        assert all(len(values) == count and np.isfinite(values).all() for values in table[name])
    assert (table["nfe_cost"] == 2 * table["cost"]).all()  # guided
    final = table[table["train_step"] == 4]
    assert np.allclose(final["train_flops"], 3 * final["gflops"] * 1e9 * 4 * (2 + 2))  # and as many of the class


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
    assert len(table) == 3
    scores = read_scores(results / "scores.parquet", chain.scores()["digest"])
    headline = scores[
        (scores["split"] == "heldout") & scores["cell"].isin(c.path for c in chain.plan.experiments["headline"])
    ]
    text = table.to_string()
    for row in headline.itertuples():
        assert row.model in text and (str(row.filters) in text or row.family == "dit")
        assert any(abs(value - row.fid) < 0.006 for value in table.select_dtypes("number").to_numpy().ravel())
    for suffix, mark in (("md", "|"), ("tex", r"\begin{tabular}")):
        text = (results / "tables" / f"table1.{suffix}").read_text()
        assert mark in text and "f4" in text and "f8" in text


def test_the_summary_gives_a_verdict_on_every_finding_and_says_what_was_measured_in(results):
    text = (results / "summary.md").read_text()
    (section,) = [part for part in re.split(r"^## ", text, flags=re.M) if part.startswith("Finding by finding")]
    findings = re.split(r"^### ", section, flags=re.M)[1:]
    assert len(findings) >= 4
    for finding in findings:
        assert re.search(r"\*\*(Supported|Not supported|Cannot tell)\.\*\*", finding), finding
    assert "study CLIP image features" in text
    assert "95% interval" in text
    for said in ("Super-resolution: finetuning lowers FID", "DreamBooth: finetuning raises DINO"):
        assert f"- **{said}:** in " in text
    bicubic, floor = (row["fid"] for row in read_json(results / "superres" / "baselines.json")["rows"])
    assert f"bicubic {bicubic:.3g}, reconstruction {floor:.3g}" in text


def test_the_report_holds_the_figures_and_needs_nothing_else(results):
    text = (results / "report.html").read_text()
    assert len(text) > 500_000
    for name in FIGURES:
        assert name in text
    assert "summary" in text and "table1" in text


def test_cells_are_found_where_their_names_say(results, chain):
    found = {str(p.parent.relative_to(results / "cells")) for p in (results / "cells").rglob("sample.json")}
    assert {Cell.parse(path) for path in found} == set(chain.plan.cells)
