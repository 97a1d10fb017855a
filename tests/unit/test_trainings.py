"""Several trainings of every model, folded into one row each."""

import numpy as np
import pandas as pd
import pytest

from ldmscale.analysis.trainings import over_trainings
from ldmscale.cells.cell import Cell
from ldmscale.config.study import repeated
from ldmscale.errors import UserError

R = 4000


def row(model, training, fid, cfg=4.0, split="heldout", spread=0.0):
    name = repeated(model, training) if training else model
    noise = np.random.default_rng(5).normal(0, spread, R)  # of the prompts: the same for every cell
    return {
        "cell": Cell("t2i", name, "pretrain-4", "ddim", 2, cfg).path, "task": "t2i", "model": model,
        "training": training, "cfg": cfg, "split": split, "cost": 0.1, "fid": fid, "fid_reps": fid + noise,
        "dino": np.array([fid, fid + 2]), "label": "CLIP",
    }  # fmt: skip


def test_one_training_stays_as_it_is():
    table = pd.DataFrame([row("f8", 0, 5.0), row("f8", 0, 6.0, split="tuning")])
    folded = over_trainings(table)
    assert list(folded.columns) == [*(c for c in table if c != "training"), "trainings"]
    assert (folded["trainings"] == 1).all()
    pd.testing.assert_frame_equal(folded.drop(columns="trainings"), table.drop(columns="training"))


def test_scores_are_means_under_the_first_trainings_name():
    table = pd.DataFrame(
        [row("f8", k, fid) for k, fid in enumerate((5.0, 6.0, 10.0))] + [row("f9", k, 1.0) for k in range(3)]
    )
    folded = over_trainings(table.sample(frac=1, random_state=0)).set_index("model")
    assert len(folded) == 2 and (folded["trainings"] == 3).all()
    assert folded.loc["f8", "fid"] == 7 and folded.loc["f9", "fid"] == 1
    assert folded.loc["f8", "cell"] == Cell("t2i", "f8", "pretrain-4", "ddim", 2, 4.0).path
    assert folded.loc["f8", "cfg"] == 4 and folded.loc["f8", "cost"] == 0.1  # to the bit
    np.testing.assert_array_equal(folded.loc["f8", "dino"], [7, 9])


def test_replicates_cover_prompts_and_training():
    fids = np.array([5.0, 6.0, 10.0])
    table = pd.DataFrame([row("f8", k, fid, spread=0.5) for k, fid in enumerate(fids)])
    reps = over_trainings(table)["fid_reps"].iloc[0]
    assert reps.mean() == pytest.approx(7.0, abs=0.1)
    # The variance of a mean of three, without bias, and the prompts' on top.
    assert reps.var() == pytest.approx(fids.var(ddof=1) / 3 + 0.25, rel=0.08)


def test_the_luck_of_training_cancels_within_a_model_and_not_between_models():
    rows = [
        row(m, k, 5.0 + k + shift, cfg) for m in ("f8", "f9") for k in range(3) for cfg, shift in ((1.0, 0), (4.0, 2))
    ]
    folded = over_trainings(pd.DataFrame(rows)).set_index(["model", "cfg"])["fid_reps"]
    assert (folded["f9", 4.0] - folded["f9", 1.0]).std() < 1e-9
    between = (folded["f9", 4.0] - folded["f8", 4.0]).var()
    assert between == pytest.approx(folded["f8", 4.0].var() + folded["f9", 4.0].var(), rel=0.1)


def test_rows_without_replicates_have_none():
    table = pd.DataFrame([row("f8", k, 5.0) for k in range(2)])
    table["fid_reps"] = None
    assert over_trainings(table)["fid_reps"].tolist() == [None]


def test_several_rows_of_a_cell_and_split_stay_apart():
    rows = [row("f8", k, fid) for fid in (1.0, 2.0) for k in range(2)]
    assert over_trainings(pd.DataFrame(rows))["fid"].tolist() == [1.0, 2.0]


def test_a_training_that_lacks_a_row_is_refused():
    table = pd.DataFrame([row("f8", 0, 5.0), row("f8", 1, 5.0), row("f8", 0, 5.0, cfg=1.0)])
    with pytest.raises(UserError, match="training 1 was scored on other cells"):
        over_trainings(table)
