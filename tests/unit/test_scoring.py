"""Images of cells into scores, and scores into the tidy table with its costs."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from helpers import merged

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.data.encoded import save_array
from ldmscale.errors import UserError
from ldmscale.metrics.bootstrap import fid_replicates, resample_counts
from ldmscale.metrics.costs import study_costs
from ldmscale.metrics.extrapolation import fid_infinity
from ldmscale.metrics.frechet import Reference
from ldmscale.metrics.gather import scores_table
from ldmscale.metrics.kernels import CMMD, KID
from ldmscale.metrics.neighbours import Neighbourhoods
from ldmscale.metrics.real import Real
from ldmscale.metrics.score import SPLITS, Scorer, score
from ldmscale.metrics.scores_file import read_scores, write_scores
from ldmscale.models.flops import codi_cost, network_cost
from ldmscale.models.unet import UNetConfig
from ldmscale.provenance import write_manifest

rng = np.random.default_rng(0)
COUNTS = {"tuning": 24, "heldout": 30}
CELLS = [Cell("t2i", "f4", "pretrain-40", "ddim", 4, cfg) for cfg in (1.0, 4.0)]


def features(images):
    """Means of colours and corners as features, and as embeddings of unit length."""
    flat = images.reshape(len(images), -1).astype(np.float64) / 255
    found = np.stack([flat.mean(1), flat[:, 0], flat[:, -1]], axis=1)
    return found, found / np.linalg.norm(found, axis=1, keepdims=True)


ENDS = np.array([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0.6, 0.8, 0]]])  # the prompts of two pairs


@pytest.fixture
def scorer():
    real = {s: rng.normal(size=(n, 3)) for s, n in COUNTS.items()}
    text = {s: x / np.linalg.norm(x, axis=1, keepdims=True) for s, x in real.items()}
    real = {s: Real(x, text[s]) for s, x in real.items()}
    return Scorer(features, "means of colours", "colours", real, text, ENDS, [1.0, 0.0], 20, 0)


def draw(folder, digest="drawn"):
    for cell in CELLS:
        for split, n in COUNTS.items():
            images = np.random.default_rng(len(split) + int(cell.cfg)).integers(0, 256, (n, 4, 4, 3), np.uint8)
            save_array(folder / cell.path / f"{split}.npy", images)
        write_manifest(folder / cell.path / "sample.json", "generate", digest, evaluations=5)


def specs(**changes):
    return [{"path": c.path, "digest": "drawn", "score_digest": f"s{c.cfg}", **changes} for c in CELLS]


def run(folder, scorer, cells=None, keep=True):
    said = []
    rows = score(cells or specs(), folder, lambda cell, images: scorer.rows(cell.task, images), keep, said.append)
    return rows, len(said)


def test_a_cell_has_a_row_for_each_split_that_says_what_it_was_measured_with(tmp_path, scorer):
    draw(tmp_path)
    rows, scored = run(tmp_path, scorer)
    assert scored == 2
    assert [(r["cell"], r["split"]) for r in rows] == [(c.path, s) for c in CELLS for s in SPLITS]
    for row in rows:
        assert row["n"] == row["n_reference"] == COUNTS[row["split"]]
        assert row["fid_features"] == "means of colours" and row["clip_features"] == "colours"
        assert row["evaluations"] == 5
        assert row["fid"] > 0 and -1 <= row["clip"] <= 1
        for name in ("fid", "clip", "cmmd", "kid", "precision", "density"):
            assert len(row[f"{name}_reps"]) == 20 and np.isfinite([row[name], *row[f"{name}_reps"]]).all()
        assert np.isfinite([row["fid_inf"], row["recall"], row["coverage"]]).all()
        assert not {"fid_inf_reps", "recall_reps", "coverage_reps", "fd_dino", "dinov2_features"} & set(row)
        saved = json.loads((tmp_path / row["cell"] / "score.json").read_text())
        assert saved["digest"] == f"s{Cell.parse(row['cell']).cfg}" and row in saved["rows"]


def test_a_row_is_each_metric_of_the_same_features(tmp_path, scorer):
    """FID and KID and neighbours of the FID features, CMMD of the embeddings, against the split's own real images."""
    draw(tmp_path)
    row = run(tmp_path, scorer)[0][1]
    mine, embeddings = features(np.load(tmp_path / row["cell"] / "heldout.npy"))
    real = scorer.real["heldout"]
    assert row["split"] == "heldout" and row["fid"] == Reference(real.features).distance(mine)
    assert row["fid_inf"] == fid_infinity(mine, Reference(real.features), 0)
    counts = resample_counts(30, 20, 0)
    for name, metric, of, to in (("kid", KID, mine, real.features), ("cmmd", CMMD, embeddings, real.embeddings)):
        assert row[name] == pytest.approx(metric(to)(of))
        np.testing.assert_allclose(row[f"{name}_reps"], metric(to).of_resamples(of, counts))
    found = Neighbourhoods(real.features).of(mine)
    for name, values in (("precision", found.precise), ("density", found.dense)):
        assert row[name] == values.mean()
        np.testing.assert_allclose(row[f"{name}_reps"], counts @ values / 30)
    assert (row["recall"], row["coverage"]) == (found.recalled.mean(), found.covered.mean())


def test_dinov2_adds_its_distance_and_its_name(tmp_path, scorer):
    draw(tmp_path)

    def corners(images):
        return images[:, 0, 0].astype(np.float64)

    seen = {split: rng.normal(100, 50, size=(n, 3)) for split, n in COUNTS.items()}
    real = {split: Real(x.features, x.embeddings, seen[split]) for split, x in scorer.real.items()}
    rows, _ = run(tmp_path, dataclasses.replace(scorer, real=real, dinov2=(corners, "corners")))
    for row in rows:
        images, reference = np.load(tmp_path / row["cell"] / f"{row['split']}.npy"), Reference(seen[row["split"]])
        assert row["dinov2_features"] == "corners" and row["fd_dino"] == reference.distance(corners(images))
        np.testing.assert_allclose(row["fd_dino_reps"], fid_replicates(corners(images), reference, 20, 0))


@pytest.mark.parametrize(("drawn", "real"), [(2, 2), (3, 6), (4, 5)])
def test_too_few_images_have_no_neighbours_and_no_nonsense(drawn, real):
    x, y = rng.normal(size=(drawn, 3)), Real(rng.normal(size=(real, 3)), rng.normal(size=(real, 3)))
    row = y.neighbours(x, 20, 0)
    assert set(row.values()) == {None} and len(row) == 6
    distances = y.distances(x, x, None, 20, 0)
    assert np.isfinite([distances["fid"], distances["kid"], distances["cmmd"]]).all()
    assert (distances["fid_inf"] is None) == (drawn < 4)


def test_scored_cells_are_read_back_not_scored_again(tmp_path, scorer):
    draw(tmp_path)
    first, _ = run(tmp_path, scorer)
    assert run(tmp_path, scorer) == (first, 0)
    cells = specs()
    cells[1]["score_digest"] = "another"
    assert run(tmp_path, scorer, cells) == (first, 1)


def test_images_go_only_where_asked_and_only_once_they_are_scored(tmp_path, scorer):
    draw(tmp_path)
    first, _ = run(tmp_path, scorer)
    assert len(list(tmp_path.rglob("*.npy"))) == 4
    assert run(tmp_path, scorer, keep=False) == (first, 0)
    assert not list(tmp_path.rglob("*.npy"))
    assert run(tmp_path, scorer, keep=False) == (first, 0)
    # Another score of images that are gone: a sentence that says so, and nothing in the way of what it says to do.
    with pytest.raises(UserError, match="and of 1 more cells are gone.*--forcerun generate") as caught:
        run(tmp_path, scorer, specs(score_digest="another"), keep=False)
    assert CELLS[0].path in str(caught.value)
    assert not list(tmp_path.rglob("sample.json"))
    draw(tmp_path)
    assert run(tmp_path, scorer, specs(score_digest="another")) == (first, 2)


def test_images_made_under_another_config_are_refused(tmp_path, scorer):
    draw(tmp_path, digest="older")
    with pytest.raises(UserError, match="--forcerun generate") as caught:
        run(tmp_path, scorer)
    assert CELLS[0].path in str(caught.value)


def test_damaged_images_are_named_and_can_be_drawn_again(tmp_path, scorer):
    draw(tmp_path)
    path = tmp_path / CELLS[1].path / "heldout.npy"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="gone or damaged.*--forcerun generate") as caught:
        run(tmp_path, scorer)
    assert CELLS[1].path in str(caught.value) and CELLS[0].path not in str(caught.value)
    assert [(tmp_path / cell.path / "sample.json").exists() for cell in CELLS] == [True, False]


def test_an_interpolation_has_a_row_for_each_pair_and_alpha_with_every_images_similarities(tmp_path, scorer):
    cell = CELLS[0].at(task="interpolation")
    images = np.random.default_rng(0).integers(0, 256, (2 * 2 * 3, 4, 4, 3), np.uint8)  # pairs, alphas, noises
    save_array(tmp_path / cell.path / "interpolation.npy", images)
    write_manifest(tmp_path / cell.path / "sample.json", "generate", "drawn", evaluations=5)
    rows, _ = run(tmp_path, scorer, [{**specs()[0], "path": cell.path}], keep=False)
    assert [(row["pair"], row["alpha"]) for row in rows] == [(0, 1.0), (0, 0.0), (1, 1.0), (1, 0.0)]
    embeddings = features(images)[1]
    for i, row in enumerate(rows):
        mine = embeddings[3 * i : 3 * i + 3]
        np.testing.assert_allclose(row["clip_a"], mine @ ENDS[row["pair"], 0])
        np.testing.assert_allclose(row["clip_b"], mine @ ENDS[row["pair"], 1])
        assert row["n"] == 3 and row["clip_features"] == "colours"
    assert (tmp_path / cell.path / "interpolation.npy").exists()  # the figure shows them


@pytest.mark.parametrize(
    ("task", "weights", "files"),
    [("superres", "superres-6", ["superres"]), ("dreambooth", "dreambooth_hat_circle-4", ["dreambooth", "class"])],
)
def test_cells_of_downstream_tasks_are_scored_once_and_their_lost_images_named(tmp_path, task, weights, files):
    cell, asked = CELLS[0].at(task=task, weights=weights), []

    def rows_of(scored, folder):
        asked.append((scored, folder))
        return [{"split": task, "n": 3}]

    def scores(**changes):
        return score([{**specs()[0], "path": cell.path, **changes}], tmp_path, rows_of, True, lambda line: None)

    def draw_them(names):
        for name in names:
            save_array(tmp_path / cell.path / f"{name}.npy", np.zeros((3, 4, 4, 3), np.uint8))
        write_manifest(tmp_path / cell.path / "sample.json", "generate", "drawn", evaluations=4)

    draw_them(files)
    expected = [{"cell": cell.path, "evaluations": 4, "split": task, "n": 3}]
    assert scores() == scores() == expected and asked == [(cell, tmp_path / cell.path)]
    (tmp_path / cell.path / f"{files[-1]}.npy").unlink()
    with pytest.raises(UserError, match="gone or damaged.*--forcerun generate"):
        scores(score_digest="another")
    assert not (tmp_path / cell.path / "sample.json").exists() and len(asked) == 1
    draw_them(files)
    assert scores(score_digest="another") == expected and len(asked) == 2


# ---------------------------------------------------------------- the tidy table


@pytest.fixture(scope="module")
def chain():
    return Chain(Plan(Study(merged("smoke.yaml"))))


@pytest.fixture(scope="module")
def costs(chain):
    return study_costs(chain["costs"])


def rows_of(cells, **changes):
    row = {"evaluations": 6, "fid": 20.0, "clip": 0.3, "n": 9, "fid_reps": [1.0], "clip_reps": [0.1], **changes}
    return [{"cell": c.path, "split": split, **row} for c in cells for split in SPLITS]


def test_the_table_has_every_cost_of_a_cell(chain, costs):
    study = chain.study
    cells = [Cell("t2i", m, "pretrain-20", "ddim", 5, g) for m in ("f8", "f4") for g in (4.0, 1.0)]
    table = scores_table(rows_of(cells), chain.scores()["family"], costs)
    assert len(table) == 8
    assert table["filters"].is_monotonic_increasing
    nets = {m: network_cost(UNetConfig(**study.net_params(m)), 8, 12) for m in ("f4", "f8")}
    for row in table.itertuples():
        cost, guided = nets[row.model], 1 + (row.cfg != 1)
        norm = cost.flops / nets["f8"].flops  # reference_filters: 8
        assert row.params == cost.params and row.gflops == cost.flops / 1e9
        assert row.norm_cost == pytest.approx(norm)
        assert (row.steps, row.evaluations, row.train_step) == (5, 6, 20)
        assert row.cost == pytest.approx(6 * norm)  # the paper's axis: by what the sampler really does
        assert row.nfe_cost == pytest.approx(6 * norm * guided)
        assert row.train_gflops == pytest.approx(20 * cost.flops / 1e9)
        assert row.train_flops == pytest.approx(3 * cost.flops * 16 * 20)
        # A whole image is dearer than its U-Net, by the same text encoder and decoder for every cell.
        assert row.sampling_tflops > cost.flops * 6 * guided / 1e12
    rest = table["sampling_tflops"] - table["gflops"] * table["evaluations"] * (1 + (table["cfg"] != 1)) / 1e3
    assert np.ptp(rest) < 1e-12


def test_the_table_names_its_cells_exactly(chain, costs):
    cells = chain.plan.experiments["grid"]
    table = scores_table(rows_of(cells), chain.scores()["family"], costs)
    for row in table.itertuples():
        assert Cell(row.task, row.model, row.weights, row.sampler, row.steps, row.cfg) == Cell.parse(row.cell)
    assert set(table["cell"]) == {cell.path for cell in cells}


def test_super_resolution_pays_for_its_wider_network_and_for_encoding_an_image(chain, costs):
    """What the paper's axes name is the family's network; what an image takes is its own."""
    cells = [Cell("superres", m, f"superres-{n}", "ddim", 5, 1.0) for m in ("f4", "f8") for n in (0, 6)]
    rows = [{"cell": c.path, "split": "superres", "evaluations": 6, "fid": 1.0} for c in cells]
    family = chain.scores()["family"]
    table = scores_table([*rows_of(CELLS[:1]), *rows], family, costs).set_index("task").loc["superres"]
    table = table.set_index(["model", "train_step"])
    fixed = costs["encode"] + costs["decode"] + costs["caption"]
    for (model, step), row in table.iterrows():
        net = UNetConfig(**chain.study.net_params(model))
        cost, own = (network_cost(dataclasses.replace(net, in_channels=n), 8, 12) for n in (4, 8))
        assert own.flops - cost.flops == 2 * 9 * 4 * net.filters * 8 * 8  # four more inputs of a 3 x 3 convolution
        assert row["gflops"] == cost.flops / 1e9 and row["params"] == cost.params
        assert row["cost"] == row["nfe_cost"] == pytest.approx(6 * row["norm_cost"])
        assert row["sampling_tflops"] == pytest.approx((own.flops * 6 + fixed) / 1e12)
        assert row["train_gflops"] == pytest.approx(step * cost.flops / 1e9)
        assert row["train_flops"] == pytest.approx(3 * own.flops * 8 * step)  # superres.finetune.batch


def test_what_an_image_costs_beside_the_u_net(chain, costs):
    """One empty caption and one image encoded against two captions; decoded is each."""
    cells = {"t2i": CELLS[1], "superres": Cell("superres", "f4", "superres-6", "ddim", 4, 1.0),
             "codi": Cell("codi", "f4", "codi-4", "codi", 4, 4.0),
             "guided": Cell("guided", "f4", "guided_s4-3", "ddim", 4, 4.0)}  # fmt: skip
    rows = [row for cell in cells.values() for row in rows_of([cell], evaluations=0)]
    table = scores_table(rows, chain.scores()["family"], costs).drop_duplicates("task").set_index("task")
    found = table["sampling_tflops"] * 1e12
    assert found["t2i"] == found["codi"] == pytest.approx(costs["decode"] + 2 * costs["caption"])
    assert found["guided"] == pytest.approx(costs["decode"] + costs["caption"])
    assert found["superres"] == pytest.approx(costs["encode"] + costs["decode"] + costs["caption"])
    longer = study_costs({**chain["costs"], "text": {**chain["costs"]["text"], "depth": 2}})
    assert longer["caption"] > costs["caption"] and longer["decode"] == costs["decode"]
    # To encode is more than a first convolution.
    ae, side = chain["costs"]["ae"], chain.study.config["data"]["image_size"]
    assert costs["encode"] > 2 * 9 * 3 * ae["channels"] * side**2


def test_distilled_models_pay_for_their_adapter_their_guidance_and_their_teachers(chain, costs):
    net = UNetConfig(**chain.study.net_params("f8"))
    plain, adapted = network_cost(net, 8, 12), codi_cost(net, 8, 12)
    told = network_cost(dataclasses.replace(net, guidance_width=256), 8, 12)
    assert plain.flops < told.flops < 1.01 * plain.flops < 1.2 * plain.flops < adapted.flops < 1.5 * plain.flops
    cells = [Cell("codi", "f8", "codi-4", "codi", 4, g) for g in (1.0, 4.0)]
    cells += [Cell("guided", "f8", "guided_s4-3", "ddim", 4, 4.0), Cell("t2i", "f8", "pretrain-20", "ddim", 4, 4.0)]
    table = scores_table(rows_of(cells, evaluations=4), chain.scores()["family"], costs).set_index("cell")
    table = table[table["split"] == "heldout"]
    unguided, codi, guided, undistilled = (table.loc[cell.path] for cell in cells)
    assert undistilled["cost"] == pytest.approx(4) and undistilled["nfe_cost"] == pytest.approx(8)
    ratio = adapted.flops / plain.flops
    assert codi["cost"] == unguided["cost"] == unguided["nfe_cost"] == pytest.approx(4 * ratio)
    assert codi["nfe_cost"] == pytest.approx(8 * ratio)
    assert guided["cost"] == guided["nfe_cost"] == pytest.approx(4)
    assert {row["norm_cost"] for row in (codi, guided, undistilled)} == {1.0}
    fixed = costs["decode"] + 2 * costs["caption"]
    assert codi["sampling_tflops"] == pytest.approx((8 * adapted.flops + fixed) / 1e12)
    assert guided["sampling_tflops"] == pytest.approx((4 * told.flops + fixed - costs["caption"]) / 1e12)
    batch = chain.scores()["family"]["finetune"]
    assert codi["train_flops"] == pytest.approx((8 * adapted.flops + plain.flops) * batch["codi"] * 4)
    assert guided["train_flops"] == pytest.approx((3 + 2) * told.flops * batch["guided"] * 3)


def test_dreambooth_trains_on_as_many_images_of_the_class(chain, costs):
    cell = Cell("dreambooth", "f8", "dreambooth_hat_circle-4", "ddim", 5, 4.0)
    row = {"cell": cell.path, "split": "dreambooth", "evaluations": 6, "subject": "hat_circle", "dino": [0.5]}
    lone = Chain(Plan(Study(merged("smoke.yaml", {"dreambooth": {"prior": None}}))))
    both, alone = (
        scores_table([row, *rows_of(CELLS[:1])], of.scores()["family"], costs).set_index("task").loc["dreambooth"]
        for of in (chain, lone)
    )
    flops = network_cost(UNetConfig(**chain.study.net_params("f8")), 8, 12).flops
    assert both["train_flops"] == pytest.approx(3 * flops * (2 + 2) * 4)
    assert alone["train_flops"] == pytest.approx(3 * flops * 2 * 4)
    for found in (both, alone):
        assert found["train_step"] == 4 and found["train_gflops"] == pytest.approx(flops / 1e9 * 4)
        assert found["nfe_cost"] == pytest.approx(2 * found["cost"])
        assert found["subject"] == "hat_circle" and found["dino"] == [0.5]


def test_rows_of_all_tasks_stand_in_one_table_and_come_back(chain, costs, tmp_path):
    """Columns that a task lacks are empty, and survive the file."""
    restored = Cell("superres", "f4", "superres-6", "ddim", 5, 1.0)
    personal = Cell("dreambooth", "f4", "dreambooth_hat_circle-4", "ddim", 5, 4.0)
    rows = rows_of(CELLS[:1]) + [
        {"cell": restored.path, "split": "superres", "evaluations": 5, "fid": 3.0, "psnr": 20.0, "lpips_alex": None,
         "fid_reps": [1.0, 2.0], "ssim": None, "ssim_reps": None},
        {"cell": personal.path, "split": "dreambooth", "evaluations": 5, "dino": [0.5, 0.25], "subject": "hat_circle"},
    ]  # fmt: skip
    write_scores(tmp_path / "scores.parquet", scores_table(rows, chain.scores()["family"], costs), "right")
    table = read_scores(tmp_path / "scores.parquet", "right").set_index("task")
    assert table.loc["superres", "psnr"] == 20 and np.isnan(table.loc["superres", "clip"])
    assert pd.isna(table.loc["superres", ["lpips_alex", "ssim", "ssim_reps"]]).all()
    assert table.loc["superres", "fid_reps"].tolist() == [1.0, 2.0]
    assert table.loc["dreambooth", "dino"].tolist() == [0.5, 0.25] and np.isnan(table.loc["dreambooth", "fid"])
    assert table.loc["t2i", "dino"].isna().all() and set(table.loc["t2i", "split"]) == set(SPLITS)


def test_a_score_that_is_not_finite_is_refused_naming_the_cell(chain, costs):
    rows = rows_of(CELLS)
    rows[2]["fid"] = float("nan")
    with pytest.raises(UserError, match="not finite") as caught:
        scores_table(rows, chain.scores()["family"], costs)
    assert rows[2]["cell"] in str(caught.value)


def test_a_table_is_read_back_by_who_asks_for_what_it_was_made_from(tmp_path, chain, costs):
    table = scores_table(rows_of(CELLS, fid_reps=[1.0, 2.5]), chain.scores()["family"], costs)
    path = tmp_path / "scores.parquet"
    write_scores(path, table, "right")
    pd.testing.assert_frame_equal(read_scores(path, "right").drop(columns=["fid_reps", "clip_reps"]),
                                  table.drop(columns=["fid_reps", "clip_reps"]))  # fmt: skip
    assert read_scores(path, "right")["fid_reps"].iloc[0].tolist() == [1.0, 2.5]
    with pytest.raises(UserError, match="different config") as caught:
        read_scores(path, "wrong")
    assert str(path) in str(caught.value) and "--forcerun gather" in str(caught.value)


def test_a_table_that_is_none_is_refused(tmp_path):
    path = tmp_path / "scores.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)  # by another hand, without a digest
    whole = path.read_bytes()
    with pytest.raises(UserError, match="different config"):
        read_scores(path, "right")
    for content in (b"", b"cell,fid\n", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_scores(path, "right")
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_scores(path, "right")
