"""The scorer of each task, opened on tiny folders as the rules leave them: rows of the table from images on disk."""

import numpy as np
import pytest
from helpers import merged
from small_study import random_weights

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.data.encoded import Prompts, save_array
from ldmscale.errors import UserError
from ldmscale.metrics import scorers
from ldmscale.metrics.clip_score import clip_scores
from ldmscale.metrics.dreambooth_score import SubjectNetworks, dreambooth_row
from ldmscale.metrics.features import study_features
from ldmscale.metrics.frechet import frechet_distance, gaussian
from ldmscale.metrics.kernels import CMMD, KID
from ldmscale.metrics.scorers import open_scorer, superres_scorer
from ldmscale.models.clip import CLIPConfig

CHAIN = Chain(Plan(Study(merged("smoke.yaml"))))
CLIP = CLIPConfig(**CHAIN.study.clip_params())
WEIGHTS = {**random_weights(CLIP, 5), "logit_scale": np.float32(2.0)}
COUNTS = {"gallery": 2, "tuning": 12, "heldout": 15}
PAIRS, ALPHAS, NOISES = 2, 3, 2
CELL = Cell("t2i", "f4", "pretrain-40", "ddim", 4, 4.0)


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=(*shape, CLIP.embed_dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def corners(images):
    """What stands in for DINOv2."""
    return images[:, 0, 0].astype(np.float32)


def saved(folder, **arrays):
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array)
    return folder


@pytest.fixture(scope="module")
def features():
    return study_features(CLIP, WEIGHTS, "study CLIP", None)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, features):
    """What the stages leave that tasks are scored against, by stage."""
    root = tmp_path_factory.mktemp("against")
    embeddings = {split: unit(count, seed=count) for split, count in COUNTS.items()}
    states = {split: np.zeros((count, 3, 4), np.float32) for split, count in COUNTS.items()}
    between, ends = np.zeros((PAIRS, ALPHAS, 3, 4), np.float32), unit(PAIRS, 2, seed=8)
    Prompts(states, embeddings, np.zeros((3, 4), np.float32), between, ends).save(root / "prompts")
    for i, split in enumerate(("tuning", "heldout")):
        mine, embedding = features(images(20, 20 + i))
        dinov2 = {f"{split}_dinov2": corners(images(20, 20 + i))}
        saved(root / "reference", **{split: mine, f"{split}_clip": embedding}, **dinov2)
    saved(root / "pairs", hr=images(14, 1))
    saved(root / "subjects" / "hat_circle", images=images(5, 2), embeddings=unit(3, seed=9))
    return {name: root / name for name in ("prompts", "reference", "pairs", "subjects")}


def opened(task, folders, **changes):
    params = {**CHAIN.score(f"task={task}/model=f4"), **changes}
    return open_scorer(params, WEIGHTS, {stage: folders[stage] for stage in params["inputs"] if stage in folders})


def test_text_to_image_is_scored_on_both_splits(folders, features, tmp_path):
    drawn = {split: images(COUNTS[split], 30) for split in ("tuning", "heldout")}
    rows = opened("t2i", folders)(CELL, saved(tmp_path, **drawn))
    assert [(row["split"], row["n"]) for row in rows] == [("tuning", 12), ("heldout", 15)]
    for row in rows:
        mine, embedding = features(drawn[row["split"]])
        real = np.load(folders["reference"] / f"{row['split']}.npy")
        assert row["fid"] == pytest.approx(frechet_distance(*gaussian(mine), *gaussian(real)))
        prompts = Prompts.load(folders["prompts"]).embeddings[row["split"]]
        assert row["clip"] == pytest.approx(float(clip_scores(embedding, prompts).mean()))
        assert (row["fid_features"], row["clip_features"]) == ("study CLIP image features", "study CLIP")
        assert len(row["fid_reps"]) == len(row["cmmd_reps"]) == 50  # the config's replicates
        embeddings = np.load(folders["reference"] / f"{row['split']}_clip.npy")
        assert row["cmmd"] == pytest.approx(CMMD(embeddings)(embedding)) and row["kid"] == pytest.approx(
            KID(real)(mine)
        )
        assert "fd_dino" not in row


def test_dinov2_is_opened_from_the_configs_file_and_compared_with_its_own_features(folders, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scorers, "dinov2_features", lambda path: asked.append(path) or (corners, "corners"))
    drawn = {split: images(COUNTS[split], 30) for split in ("tuning", "heldout")}
    rows = opened("t2i", folders, dinov2={"weights": "dinov2.pth"})(CELL, saved(tmp_path, **drawn))
    assert asked == ["dinov2.pth"]
    for row in rows:
        real = np.load(folders["reference"] / f"{row['split']}_dinov2.npy")
        assert row["dinov2_features"] == "corners"
        expected = frechet_distance(*gaussian(corners(drawn[row["split"]])), *gaussian(real))
        assert row["fd_dino"] == pytest.approx(expected)


def test_an_interpolation_is_scored_by_pair_and_alpha(folders, features, tmp_path):
    drawn = images(PAIRS * ALPHAS * NOISES, 31)
    rows = opened("interpolation", folders)(CELL.at(task="interpolation"), saved(tmp_path, interpolation=drawn))
    assert [(row["pair"], row["alpha"]) for row in rows] == [(p, a) for p in range(PAIRS) for a in (1.0, 0.5, 0.0)]
    ends = Prompts.load(folders["prompts"]).ends
    np.testing.assert_allclose(rows[0]["clip_a"], features(drawn[:NOISES])[1] @ ends[0, 0], atol=1e-6)


def test_super_resolution_is_scored_against_its_originals(folders, tmp_path):
    hr = np.load(folders["pairs"] / "hr.npy")
    cell = CELL.at(task="superres", weights="superres-6", cfg=1.0)
    near = np.clip(hr.astype(int) + images(14, 3) // 32, 0, 255).astype(np.uint8)
    rows_of = opened("superres", folders)
    (row,) = rows_of(cell, saved(tmp_path / "near", superres=near))
    assert row["split"] == "superres" and row["n"] == row["n_reference"] == 14
    assert row["perceptual_features"] == "study CLIP image features, 1 - cosine" and row["lpips_alex"] is None
    assert row["is_features"] == "study CLIP, zero-shot over 12 captions"  # the tuning prompts'
    (poor,) = rows_of(cell, saved(tmp_path / "poor", superres=images(14, 4)))
    assert poor["psnr"] < row["psnr"] and poor["perceptual"] > row["perceptual"] and poor["fid"] > row["fid"]


def test_baselines_are_scored_as_cells_are(folders, tmp_path):
    """The scorer of the baselines' params gives the row that a cell of the same images has."""
    made = saved(tmp_path, superres=images(14, 5))
    (row,) = opened("superres", folders)(CELL.at(task="superres", weights="superres-6", cfg=1.0), made)
    assert superres_scorer(CHAIN["baselines"], WEIGHTS, folders).row(images(14, 5)) == row


def test_dreambooth_is_scored_against_its_subject(folders, features, tmp_path):
    cell = CELL.at(task="dreambooth", weights="dreambooth_hat_circle-4")
    made = saved(tmp_path, dreambooth=images(6, 6), **{"class": images(4, 7)})
    (row,) = opened("dreambooth", folders)(cell, made)
    networks = SubjectNetworks(features, "study CLIP image features", "study CLIP")
    real, prompts = (np.load(folders["subjects"] / "hat_circle" / f"{name}.npy") for name in ("images", "embeddings"))
    assert row == dreambooth_row("hat_circle", images(6, 6), images(4, 7), real, prompts, networks)
    assert row["subject"] == "hat_circle" and len(row["dino"]) == 3 and len(row["pres"]) == 4


@pytest.mark.parametrize("task", ["superres", "dreambooth"])
def test_given_networks_are_opened_from_the_configs_files(folders, tmp_path, monkeypatch, task):
    files = {net: {"backbone": f"{net}.pth", "linear": f"{net}-linear.pth"} for net in ("alex", "vgg")}
    asked = []

    def lpips(net, backbone, linear):
        asked.append((net, backbone, linear))
        return lambda one, other: np.full(len(one), 2.0 if net == "alex" else 3.0)

    monkeypatch.setattr(scorers, "lpips_distance", lpips)
    monkeypatch.setattr(scorers, "dino_features", lambda path: asked.append(path) or (lambda x: x.reshape(len(x), -1)))
    changes = {"superres": {"weights": "superres-6", "cfg": 1.0}, "dreambooth": {"weights": "dreambooth_hat_circle-4"}}
    made = saved(tmp_path, superres=images(14, 3), dreambooth=images(6, 6), **{"class": images(4, 7)})
    (row,) = opened(task, folders, lpips=files, dino="dino.pth")(CELL.at(task=task, **changes[task]), made)
    wanted = [(net, f"{net}.pth", f"{net}-linear.pth") for net in files]
    if task == "superres":
        assert asked == wanted
        assert (row["lpips_alex"], row["lpips_vgg"], row["perceptual_features"]) == (2.0, 3.0, "LPIPS AlexNet")
    else:
        assert asked == [*wanted, "dino.pth"]
        assert row["diversity_features"] == "LPIPS AlexNet" and row["subject_features"] == "DINO ViT-S/16"
        assert set(row["div"]) == {2.0}


def test_files_that_are_not_there_are_named(folders):
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        opened("superres", folders, lpips={"alex": {"backbone": "nowhere.pth", "linear": "l.pth"}, "vgg": None})
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        opened("dreambooth", folders, dino="nowhere.pth")
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        opened("t2i", folders, dinov2={"weights": "nowhere.pth"})
    with pytest.raises(UserError, match="gone.*hr.npy cannot be read"):
        opened("superres", {**folders, "pairs": folders["pairs"] / "gone"})
