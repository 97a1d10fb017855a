"""Advice: the best setting under a budget, chosen on tuning prompts; its command, its sentences."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from synthetic_study import small_study

from ldmscale.analysis.advice import advise, competing, short
from ldmscale.cells.cell import Cell
from ldmscale.cli.main import main
from ldmscale.errors import UserError
from ldmscale.metrics.scores_file import write_scores


def cell(model, steps, cfg=1.0, task="t2i", weights="pretrain-9", sampler="ddim"):
    return Cell(task, model, weights, sampler, steps, cfg)


def table(entries, **columns):
    """Rows of ``entries`` {cell: (tuning FID, held-out FID)}; model ``m4`` has 4 parameters and costs 4 a step.

    Replicates of all cells share their luck and stray by 0.1 each.
    """
    rng, rows = np.random.default_rng(0), []
    luck = rng.normal(size=200)
    for one, values in entries.items():
        size = int(one.model[1:])
        for split, value in zip(("tuning", "heldout"), values, strict=True):
            reps = value + 3 + luck + 0.1 * rng.normal(size=200)
            rows.append({"cell": one.path, "task": one.task, "model": one.model, "weights": one.weights,
                         "sampler": one.sampler, "steps": one.steps, "cfg": one.cfg, "params": size, "split": split,
                         "n": 64, "trainings": 1, "cost": float(size * one.steps), "nfe_cost": 2.0 * size * one.steps,
                         "seconds": 0.5 + 1 / one.steps, "fid": float(value), "clip": float(value) / 100,
                         "fid_reps": reps.tolist(), "clip_reps": (reps / 100).tolist(),
                         "fid_features": "made-up features", **columns})  # fmt: skip
    return pd.DataFrame(rows)


SMALL, LARGE = cell("m1", 4), cell("m4", 1)
PLAIN = {SMALL: (10, 11), LARGE: (12, 9), cell("m4", 2): (5, 6)}


def names(settings):
    return [(s.model, s.steps, s.cfg) for s in settings]


def test_it_is_chosen_on_tuning_prompts_and_reported_on_held_out_ones():
    best, other = advise(table(PLAIN), 4)
    assert (best.cell, best.tuning, best.value, best.spent, best.verdict) == (SMALL.path, 10, 11, 4, "")
    assert (other.cell, other.tuning, other.value, other.difference) == (LARGE.path, 12, 9, -2)
    assert best.low < 11 < best.high and other.difference_low < -2 < other.difference_high < 0
    assert other.verdict == "better"  # whatever the tuning prompts thought


@pytest.mark.parametrize(("budget", "best"), [(3.999999, SMALL), (4, SMALL), (7.999, SMALL), (8, cell("m4", 2))])
def test_a_budget_holds_what_costs_as_much_to_rounding(budget, best):
    assert advise(table(PLAIN), budget)[0].cell == best.path


def test_each_axis_counts_its_own_way():
    rows = table(PLAIN)
    assert advise(rows, 8, "nfe_cost")[0].cell == SMALL.path
    assert advise(rows, 16, "nfe_cost")[0].cell == cell("m4", 2).path
    assert names(advise(rows, 0.8, "seconds")) == [("m1", 4, 1.0)]


@pytest.mark.parametrize(
    ("metric", "first", "verdict"), [("fid", SMALL, "worse"), ("clip", LARGE, "worse")], ids=["lower", "higher"]
)
def test_the_better_is_what_the_metric_says(metric, first, verdict):
    settings = advise(table({SMALL: (10, 10), LARGE: (12, 12)}), 4, metric=metric)
    assert settings[0].cell == first.path and settings[1].verdict == verdict


def test_a_difference_within_its_interval_is_not_told():
    settings = advise(table({SMALL: (10, 10), LARGE: (12, 10.05)}), 4)
    assert settings[1].verdict == "unsure" and settings[1].difference_low < 0 < settings[1].difference_high
    # Alone, either is unsure by the luck that both share, twenty times as much.
    assert settings[0].high - settings[0].low > 5 * (settings[1].difference_high - settings[1].difference_low)


def test_without_replicates_nothing_is_sure():
    rows = table(PLAIN)
    for missing in (rows.drop(columns="fid_reps"), rows.assign(fid_reps=[[]] * len(rows)), rows.assign(fid_reps=None)):
        best, other = advise(missing, 4)
        assert best.value == 11 and np.isnan(best.low) and other.verdict == "no interval"
        assert "interval" not in best.words("cost", "fid")
        assert best.json()["low"] is None


def test_a_setting_is_one_of_each_model_weights_and_sampler():
    """Steps and CFG of each are chosen on tuning prompts: no list of one model's neighbouring step counts."""
    entries = {cell("m1", s, g): (20 - s + g, 20) for s, g in product((1, 2, 3), (1.0, 2.0))}
    entries |= {cell("m1", 1, weights="pretrain-3"): (30, 30), cell("m1", 1, sampler="ddpm"): (25, 25)}
    entries |= {cell("m1", 1, task="codi", weights="codi-3", sampler="codi"): (24, 24)}
    found = advise(table(entries), 3)
    assert [(s.weights, s.sampler, s.steps, s.cfg) for s in found] == [
        ("pretrain-9", "ddim", 3, 1.0), ("codi-3", "codi", 1, 1.0), ("pretrain-9", "ddpm", 1, 1.0),
        ("pretrain-3", "ddim", 1, 1.0)]  # fmt: skip
    assert {s.weights for s in advise(table(entries), 3, weights="pretrain-3")} == {"pretrain-3"}
    assert {s.sampler for s in advise(table(entries), 3, sampler="ddpm")} == {"ddpm"}
    assert {s.task for s in advise(table(entries), 3, tasks=["codi"])} == {"codi"}


def test_ties_go_to_the_cheaper_the_less_guided_the_smaller():
    tied = {cell("m4", 2, 2.0): (5, 1), cell("m4", 1, 3.0): (5, 2), cell("m4", 1, 2.0): (5, 3), cell("m1", 9): (5, 4)}
    assert names(advise(table(tied), 9)) == [("m1", 9, 1.0), ("m4", 1, 2.0)]


def test_cells_that_lack_a_number_do_not_compete():
    rows = table(PLAIN)
    rows.loc[(rows["cell"] == SMALL.path) & (rows["split"] == "heldout"), "fid"] = np.nan
    assert names(advise(rows, 4)) == [("m4", 1, 1.0)]
    rows.loc[rows["cell"] == LARGE.path, "cost"] = np.inf
    assert names(advise(rows, 9)) == [("m4", 2, 1.0)]
    alone = table(PLAIN)
    alone = alone[(alone["cell"] != SMALL.path) | (alone["split"] == "heldout")]
    assert set(competing(alone)["model"]) == {"m4"}


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("cheapest is 4, m1 with weights pretrain-9, sampler ddim, 4 steps, CFG 1", {"budget": 3.9}),
        ("'norm' is not a cost axis: use one of cost, nfe_cost", {"axis": "norm"}),
        ("has no sampling_tflops", {"axis": "sampling_tflops"}),
        ("'FID' is not a metric: use one of fid", {"metric": "FID"}),
        ("has no kid", {"metric": "kid"}),
        ("no sampler 'ddpm' to choose from: it has ddim", {"sampler": "ddpm"}),
        ("no weights 'final' to choose from: it has pretrain-9", {"weights": "final"}),
        ("no task 'codi' to choose from: it has t2i", {"tasks": ["codi"]}),
        ("must be a positive number", {"budget": 0}),
        ("must be a positive number", {"budget": float("nan")}),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(said, question):
    with pytest.raises(UserError, match=re.escape(said)):
        advise(table(PLAIN), **{"budget": 4, **question})


def test_a_damaged_table_is_a_sentence():
    rows = table(PLAIN)
    with pytest.raises(UserError, match="twice in one split"):
        advise(pd.concat([rows, rows.iloc[:1]]), 4)
    with pytest.raises(UserError, match="no cell to choose from has FID on tuning and held-out"):
        advise(rows.assign(fid=np.nan), 4)


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.0, "6"), (7.5, "7.5"), (11.1649, "11.16"), (0.000151342, "0.0001513"), (0.0000151342, "1.513e-5"),
     (-0.5, "-0.5"), (123456.7, "123500"), (2_000_000, "2e6"), (0.0, "0"), (1.5e-12, "1.5e-12")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert short(value) == text


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "scores.parquet"
    scores = small_study().scores.assign(trainings=1)
    write_scores(path, scores, "0" * 16)
    return scores, path


def answer(capsys, *arguments):
    status = main(["advise", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_says_what_the_table_says(capsys, study):
    scores, path = study
    settings = advise(scores, 6, "nfe_cost")
    status, out, err = answer(capsys, "--budget", 6, "--axis", "nfe_cost", "--scores", path, "--top", 4)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert settings[0].words("nfe_cost", "fid") in " ".join(out.split())
    rows = [line.split() for line in out.splitlines() if re.match(r"f\d+ ", line)]
    assert [(r[0], r[1], r[2], int(r[3]), float(r[4])) for r in rows] == [
        (s.model, s.weights, s.sampler, s.steps, s.cfg) for s in settings[1:4]
    ]
    assert [r[-1] for r in rows] == [s.verdict for s in settings[1:4]]
    assert f"and {len(settings) - 4} more" in out and "lower is better" in out and "made-up features" in out


def test_the_command_as_json(capsys, study):
    scores, path = study
    found = json.loads(answer(capsys, "--budget", 3, "--metric", "clip", "--scores", path, "--json", "--top", 3)[1])
    settings = advise(scores, 3, metric="clip")
    assert [found["best"], *found["runners_up"]] == [s.json() for s in settings[:3]]
    assert found["question"]["axis"] == "cost" and found["settings"] == len(settings)


def test_norm_cost_is_another_name_for_cost(capsys, study):
    _, path = study
    said = [answer(capsys, "--budget", 3, "--axis", axis, "--scores", path)[1] for axis in ("cost", "norm_cost")]
    assert said[0] == said[1] != ""


def test_it_says_what_the_intervals_cover(capsys, tmp_path):
    path = tmp_path / "scores.parquet"
    for trainings, said in ((1, "training again from another seed may move more"), (3, "and over 3 trainings.")):
        write_scores(path, table(PLAIN, trainings=trainings), "0" * 16)
        assert said in " ".join(answer(capsys, "--budget", 4, "--scores", path)[1].split())
        assert said in json.loads(answer(capsys, "--budget", 4, "--scores", path, "--json")[1])["note"]


def test_long_names_fit_a_terminal(capsys, tmp_path):
    entries = {cell("m4", s, 7.5, weights=f"guided_s{s}-500000", sampler="dpmpp2m"): (s, s + 0.123) for s in (4, 8, 16)}
    path = tmp_path / "scores.parquet"
    write_scores(path, table(entries), "0" * 16)
    out = answer(capsys, "--budget", 99, "--scores", path)[1]
    assert "guided_s16-500000" in out and max(map(len, out.splitlines())) <= 80


def test_one_setting_alone(capsys, tmp_path):
    path = tmp_path / "scores.parquet"
    write_scores(path, table({SMALL: (1, 2)}), "0" * 16)
    assert "Nothing else: 1 within the budget." in answer(capsys, "--budget", 4, "--scores", path)[1]


def test_tables_that_are_none(capsys, tmp_path, monkeypatch):
    path = tmp_path / "scores.parquet"
    assert answer(capsys, "--budget", 1, "--scores", path)[::2] == (
        1, f"error: {path} is not there: `snakemake --profile profiles/local {path}` makes it (with --configfile where "
        "the study has one), as `make study` does\n")  # fmt: skip
    path.write_text("nothing")
    status, _, err = answer(capsys, "--budget", 1, "--scores", path)
    assert status == 1 and f"{path} cannot be read as a table of scores" in err
    table(PLAIN).drop(columns="cfg").to_parquet(path)
    assert "it has no column 'cfg'" in answer(capsys, "--budget", 1, "--scores", path)[2]
    monkeypatch.chdir(tmp_path)
    assert "--scores results/<study>/scores.parquet" in answer(capsys, "--budget", 1)[2]
