"""Numbers gone wrong: a run that diverges, features that say nothing, scores that are none. Each is an error, or is
flagged; none becomes a plausible figure."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from ldmscale.analysis.study import StudyInfo
from ldmscale.cli.advise import _read
from ldmscale.data.encoded import load_array, save_array, save_shard
from ldmscale.errors import UserError
from ldmscale.generation.latents import finish
from ldmscale.metrics.finite import require_finite, require_numbers
from ldmscale.metrics.image_quality import inception_score, ssim_y
from ldmscale.metrics.real import Real
from ldmscale.metrics.scores_file import read_scores, write_scores
from ldmscale.training.health import EXPLODED
from ldmscale.training.loop import TrainConfig, train

# ---------------------------------------------------------------- training

PROGRAMS = {}  # one compiled step for all runs of Square
CONFIG = TrainConfig(steps=40, learning_rate=0.01, warmup=0, weight_decay=0.0, seed=0)


@dataclass(frozen=True)
class Square:
    """The square of a number; from step ``bad`` on its ``loss``, or the gradient alone, is spoilt."""

    bad: int = 10**6
    how: str = "gradient"
    asked: list = field(default_factory=list)
    batch_size = 4

    def init(self, key):
        return {"w": jnp.ones((2, 2))}

    def batch(self, step):
        self.asked.append(step)
        x = {"loss": np.nan, "large": 1e6, "rough": 1e3, "gradient": 0.0}[self.how] if step >= self.bad else 1.0
        return {"x": np.full(4, x, np.float32)}

    def loss(self, params, batch, key):
        x = jnp.mean(batch["x"])
        # At x = 0 the root is 0 and its slope infinite: a loss that is finite with a gradient that is not.
        return jnp.mean(params["w"] ** 2) * x + jnp.sqrt(jnp.abs(params["w"].sum()) * jnp.abs(x)) * 0.1


def run(folder, task, keep=(20, 40), config=CONFIG):
    return train(task, config, folder, "d", keep, log_every=1000, say=lambda line: None, programs=PROGRAMS)


def end(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, Square())
    return end(folder)


# A state is saved every fourth step: 22 and 24 spoil a step between two, 23 the one before step 24's.
@pytest.mark.parametrize(
    ("how", "bad", "kept"),
    [("loss", 0, 0), ("loss", 22, 20), ("loss", 23, 20), ("gradient", 0, 0), ("gradient", 22, 20), ("gradient", 23, 20),
     ("gradient", 24, 24), ("large", 22, 20), ("large", 24, 24)],
)  # fmt: skip
def test_a_run_that_diverges_ends_at_once_and_goes_on_from_the_last_good_state(tmp_path, whole, how, bad, kept):
    task = Square(bad, how)
    with pytest.raises(UserError) as caught:
        run(tmp_path, task)
    said = str(caught.value)
    cause = {"loss": "the loss was nan", "large": "the loss was", "gradient": "not finite|was nan"}[how]
    assert any(word in said for word in cause.split("|")) and f"step {bad + 1}" in said
    assert "learning_rate" in said and str(tmp_path) in said
    assert (f"of step {kept}," in said) if kept else ("no state was saved" in said)
    assert task.asked[-1] <= bad + 1  # the step under way, and no other
    for name, tensors in ((path.name, load_file(path)) for path in tmp_path.glob("*.safetensors")):
        assert all(np.isfinite(tensor).all() for tensor in tensors.values()), name
    good = Square()
    run(tmp_path, good)
    assert good.asked[0] == kept
    assert end(tmp_path) == whole


def test_losses_of_the_usual_size_are_no_explosion(tmp_path):
    assert EXPLODED >= 1e3
    run(tmp_path, Square(20, "rough"), keep=(40,))


# ---------------------------------------------------------------- arrays, latents


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_not_written(tmp_path, bad):
    array = np.ones((5, 2), np.float32)
    array[3, 1] = bad
    with pytest.raises(UserError, match=r"a\.npy would hold values that are not finite \(first in row 3\)"):
        save_array(tmp_path / "a.npy", array)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="too large for float16"):
        save_array(tmp_path / "a.npy", np.full((2, 2), np.inf, np.float16))
    save_array(tmp_path / "a.npy", array[:3])
    assert (load_array(tmp_path / "a.npy") == 1).all()


def test_an_autoencoder_that_encodes_all_alike_is_refused(tmp_path):
    states, captions = np.zeros((4, 3, 8), np.float32), np.ones(4, np.int64)
    for mean, ends in ((np.full((4, 2, 2, 4), 0.3), "all the same"), (np.zeros((4, 2, 2, 4)), "all the same")):
        save_shard(tmp_path, 0, "d", mean.astype(np.float32), np.full(mean.shape, 1e-3, np.float32), states, captions)
        save_array(tmp_path / "null.npy", states[0])
        with pytest.raises(UserError, match=ends):
            finish(tmp_path, 1, {"digest": "d", "scale": None})


# ---------------------------------------------------------------- metrics

FEATURES = np.random.default_rng(1).normal(size=(40, 8))
SAME = np.repeat(FEATURES[:1], 40, axis=0)


@pytest.mark.parametrize("broken", [SAME, np.zeros((40, 8)), SAME + 1e-9 * FEATURES])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_real_features_that_are_all_the_same_measure_nothing(broken, which):
    arrays = [FEATURES, FEATURES, FEATURES]
    Real(*arrays)
    arrays[which] = broken
    with pytest.raises(UserError, match=("FID features", "CLIP embeddings", "DINOv2 features")[which] + " of all 40"):
        Real(*arrays)


def test_drawn_images_that_are_all_the_same_are_far_away_and_cover_nothing():
    """A model that draws one image, be it a real one: a number, and a bad one."""
    real = Real(FEATURES, FEATURES)
    good = FEATURES + 0.1 * np.random.default_rng(2).normal(size=FEATURES.shape)
    one, many = ({**real.distances(x, x, None, 5, 0), **real.neighbours(x, 5, 0)} for x in (SAME, good))
    for name in ("fid", "fid_inf", "kid", "cmmd"):
        assert one[name] > 3 * abs(many[name])
    assert one["recall"] == 0 and one["coverage"] < 0.5 < many["coverage"]
    require_numbers([{"cell": "c", "split": "s", **row} for row in (one, many)])


def test_too_few_images_have_no_number():
    real = Real(FEATURES, FEATURES)
    with pytest.raises(UserError, match="at least 2"):
        real.distances(FEATURES[:1], FEATURES[:1], None, 5, 0)
    with pytest.raises(UserError):
        real.distances(FEATURES[:0], FEATURES[:0], None, 5, 0)
    few = real.neighbours(FEATURES[:3], 5, 0) | real.distances(FEATURES[:3], FEATURES[:3], None, 5, 0)
    assert {few[name] for name in ("precision", "recall", "density", "coverage", "fid_inf")} == {None}


def test_fewer_images_than_dimensions_are_flagged():
    study = StudyInfo("s", "d", "features", "clip", 200, 100, 32, 512)
    assert "FID of 200 images, no more than its features' 512 dimensions" in study.few(200)
    assert study.few(512) and not study.few(513)


def test_constant_images_have_a_similarity_and_a_score_of_no_variety():
    flat = np.full((3, 16, 16, 3), 128, np.uint8)
    drawn = np.random.default_rng(0).integers(0, 256, flat.shape, dtype=np.uint8)
    assert ssim_y(flat, flat) == pytest.approx(1) and (ssim_y(flat, drawn) < 0.1).all()
    assert inception_score(np.full((6, 4), 0.25), 2, 0) == pytest.approx((1, 0))


# ---------------------------------------------------------------- scores


def table(**changes):
    rows = [{"cell": f"c{i}", "task": "t2i", "split": split, "model": "m", "weights": "w", "sampler": "ddim",
             "steps": i, "cfg": 1.0, "params": 10, "n": 9, "trainings": 1, "cost": 1.0 * i, "fid": 5.0 + i,
             "clip": 0.3, "fid_inf": None, "filters": None if i else 4}
            for i in range(3) for split in ("tuning", "heldout")]  # fmt: skip
    return pd.DataFrame(rows).astype({"fid_inf": float}).assign(**changes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["fid", "clip", "cost"])
def test_a_table_with_a_score_that_is_no_number_is_read_by_none(tmp_path, bad, column):
    """Figures, fits, claims, crossovers and the explorer read it by one way, advice by the other."""
    write_scores(tmp_path / "t.parquet", whole := table(), "d")
    pd.testing.assert_frame_equal(read_scores(tmp_path / "t.parquet", "d"), whole)
    assert len(_read(tmp_path / "t.parquet", "fid")) == len(whole)
    whole.loc[3, column] = bad
    write_scores(tmp_path / "t.parquet", whole, "d")
    for read in (lambda path: read_scores(path, "d"), lambda path: _read(path, "fid")):
        with pytest.raises(UserError, match=rf"{column} of c1 \(heldout\) is no finite number"):
            read(tmp_path / "t.parquet")


def test_what_no_cell_of_a_split_has_may_be_missing():
    require_finite(table(fid_inf=[1.0, None] * 3))
    with pytest.raises(UserError, match=r"fid_inf of c2 \(tuning\)"):
        require_finite(table(fid_inf=[1.0, None, 1.0, None, None, None]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")], [float("inf"), float("-inf")]])
def test_a_score_that_is_no_number_is_refused_where_it_is_made(value):
    require_numbers([{"cell": "c", "split": "s", "fid": 1.0, "fid_reps": [1.0, 2.0], "ssim": None, "n": 3}])
    with pytest.raises(UserError, match=r"fid of c \(s\) is not finite"):
        require_numbers([{"cell": "c", "split": "s", "fid": value}])
