"""The choice of a metric and of a cost axis: what the analysis refuses and chooses, and what the figures then show."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from helpers import SCHEMA, merged
from matplotlib.collections import LineCollection
from synthetic_study import SMALL_FAMILY, STUDY, family, settings, small_study
from test_distilled_figures import small as distilled_study
from test_figures import readable_texts, rendered
from test_superres_figures import superres_study

from ldmscale.analysis.distilled import acceleration, best_setting
from ldmscale.analysis.frontier import COST_AXES, at_budgets, envelope
from ldmscale.analysis.selection import METRIC_NAMES, METRICS, best_cfg, chosen_on_tuning, replicates, select
from ldmscale.config.check import FIGURE_SETTINGS, check
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES, save_figure, style

MACHINE = "a made-up machine, 2 threads, in batches of 64"


def with_metrics(study, **changes):
    """``study`` with further columns: metrics whose best guidance weight is another than FID's, and seconds."""
    scores = study.scores
    wrong = 3 + 0.3 * (scores["cfg"] - 6) ** 2 + scores["fid"] / 10
    columns = {
        "cmmd": 2.0**-wrong, "recall": 1 - wrong / 50, "kid": 0.01 - wrong / 1000, "precision": wrong / 50,
        "seconds": 0.01 * scores["steps"] + scores["params"] / 1e9,  # hardly more for a larger model
        "nfe_cost": 2 * scores["cost"], "sampling_tflops": 0.1 + scores["cost"], "seconds_machine": MACHINE,
    }  # fmt: skip
    scores = scores.assign(**{**columns, **changes})
    scores["cmmd_reps"] = [[v * (1 + 0.01 * r) for r in range(-5, 6)] for v in scores["cmmd"]]
    return dataclasses.replace(study, scores=scores)


@pytest.fixture(scope="module")
def study():
    return with_metrics(small_study())


@pytest.fixture(scope="module")
def drawn(study):
    """``figure(name, **settings)``, on a study that has what the figure shows."""
    pair = [study.models[1].name, study.models[3].name]
    distilled = with_metrics(distilled_study())
    superres = with_metrics(superres_study(family(SMALL_FAMILY, 0.0493)))
    of = {
        "fig08": (study, {"experiment": "grid", "models": pair}),
        "fig09": (study, {"experiment": "grid"}),
        "fig11": (study, {"experiment": "samplers", "baseline": "grid"}),
        "fig12": (superres, {"experiment": "steps"}),
        "fig13": (distilled, {"experiment": "codi", "baseline": "grid", "steps": [4, 8, 20]}),
    }
    return lambda name, **changes: FIGURES[name](settings(of[name][0], **{**of[name][1], **changes}))


def caption(fig) -> str:
    return " ".join(fig._supxlabel.get_text().split())


# ---- the analysis ----------------------------------------------------------------------------------------------------


def test_every_metric_and_axis_has_its_words_and_its_place_in_the_schema():
    assert set(METRICS) == set(METRIC_NAMES) and set(METRICS.values()) == {-1, 1}
    assert set(COST_AXES) == set(style.AXIS_NOTES)
    figure = json.loads(SCHEMA.read_text())["properties"]["figures"]["additionalProperties"]["anyOf"][1]["properties"]
    assert figure["metric"]["enum"] == list(METRICS) and figure["axis"]["enum"] == list(COST_AXES)


def test_there_may_be_no_replicates():
    rows = pd.DataFrame({"recall": [0.1, 0.2], "kid_reps": [None, np.nan], "cmmd_reps": [[1.0, 2.0], [3.0, 4.0]]})
    assert replicates(rows, "recall").shape == replicates(rows, "kid").shape == (2, 0)
    assert replicates(rows, "cmmd").tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(UserError, match="kid_reps differ in length"):
        replicates(rows.assign(kid_reps=[[1.0], None]), "kid")


@pytest.mark.parametrize("metric", ["recall", "cmmd", "precision"])
def test_what_is_chosen_is_best_on_the_tuning_split_in_the_metrics_direction(study, metric):
    rows = select(study.scores, study.experiments["grid"])
    best = best_cfg(rows, metric)
    tuning = rows[rows["split"] == "tuning"]
    assert len(best) == 5 * 5 and set(best["split"]) == {"heldout"}
    for row in best.itertuples():
        mine = tuning[(tuning["model"] == row.model) & (tuning["steps"] == row.steps)]
        end = mine[metric].max() if metric in ("recall", "precision") else mine[metric].min()
        assert mine.loc[mine["cfg"] == row.cfg, metric].item() == end == getattr(row, f"tuning_{metric}")
    assert list(best["cfg"]) != list(best_cfg(rows)["cfg"])


def test_an_unknown_metric_or_axis_is_a_sentence(study):
    rows = study.scores
    for metric, words in (
        ("fdi", "'fdi' is not a metric: use one of fid, clip"),
        ("density", "no density .it has fid"),
    ):
        for refused in (lambda m: chosen_on_tuning(rows, ["model"], m), lambda m: envelope(rows, "cost", m)):
            with pytest.raises(UserError, match=words):
                refused(metric)
    for axis, words in (("dollars", "'dollars' is not a cost axis: use one of cost"), ("seconds", "has no seconds")):
        for refused in (lambda a: at_budgets(rows.drop(columns="seconds"), [1.0], a),
                        lambda a: envelope(rows.drop(columns="seconds"), a)):  # fmt: skip
            with pytest.raises(UserError, match=words):
                refused(axis)


def test_budgets_in_seconds_count_what_the_paper_leaves_out(study):
    """The same rows, dearer by what every image takes: the smallest budget affords fewer of the small models' steps."""
    rows = select(study.scores, study.experiments["grid"])
    rows = rows.assign(seconds=rows["cost"] + 1.0)
    by_cost, by_seconds = at_budgets(rows, [0.5]), at_budgets(rows, [1.5], "seconds")
    assert by_seconds["cell"].tolist() == by_cost["cell"].tolist() and len(by_cost)
    assert at_budgets(rows, [1.0], "seconds").empty
    best = envelope(rows, "seconds")
    assert best["seconds"].is_monotonic_increasing and best["cell"].tolist() == envelope(rows)["cell"].tolist()


def test_acceleration_follows_the_metrics_direction():
    study = distilled_study()
    scores = study.scores.assign(recall=-study.scores["fid"])
    scores["recall_reps"] = [[-v for v in reps] for reps in scores["fid_reps"]]
    tables = [[best_setting(select(scores, study.experiments[name]), metric) for name in ("codi", "grid")]
              for metric in ("fid", "recall")]  # fmt: skip
    for table in tables:
        table[1] = table[1][table[1]["sampler"] == "ddim"]
    by_fid, by_recall = acceleration(*tables[0]), acceleration(*tables[1], metric="recall")
    assert [f.value for f in by_fid] == pytest.approx([f.value for f in by_recall])
    assert [(f.low, f.high) for f in by_fid] == [(f.low, f.high) for f in by_recall]
    assert by_fid[0].value == pytest.approx(4, rel=0.2)


# ---- the figures -----------------------------------------------------------------------------------------------------

CHOICES = [
    *(("fig08", {"metric": metric}) for metric in ("clip", "cmmd", "recall")),
    *((figure, {"metric": metric, "axis": axis})
      for figure in ("fig09", "fig11", "fig13")
      for metric, axis in (("cmmd", "seconds"), ("recall", "sampling_tflops"), ("kid", "nfe_cost"))),
    *(("fig12", {"axis": axis}) for axis in ("nfe_cost", "sampling_tflops", "seconds")),
]  # fmt: skip


@pytest.mark.parametrize("name,choice", CHOICES)
def test_a_figure_says_what_it_shows_and_nothing_overlaps(drawn, name, choice):
    fig = drawn(name, **choice)
    readable_texts(fig, rendered(fig))
    metric, axis = choice.get("metric", "fid"), choice.get("axis", "cost")
    label, better = METRIC_NAMES[metric], "higher" if METRICS[metric] > 0 else "lower"
    ylabels, xlabels = ([getattr(ax, f"get_{a}label")() for ax in fig.axes] for a in "yx")
    assert f"{label[0].upper()}{label[1:]}  ({better} is better)" in ylabels
    assert name == "fig08" or COST_AXES[axis] in xlabels
    assert (MACHINE in caption(fig)) == (axis == "seconds")
    features = STUDY.clip_features if metric in ("clip", "cmmd") else STUDY.fid_features
    assert f"{label[0].upper()}{label[1:]} {'by' if metric == 'clip' else 'on'} {features}" in caption(fig)
    # Whiskers, and words on them, where there are replicates alone.
    there = metric in ("fid", "clip", "cmmd")
    whiskers = [c for ax in fig.axes for c in ax.collections if isinstance(c, LineCollection)]
    assert bool(whiskers) == there == ("95% bootstrap" in caption(fig))


def test_the_curves_are_the_metric_against_the_axis(study, drawn):
    rows = select(study.scores, study.experiments["grid"])
    best = best_cfg(rows, "cmmd")
    left, right, _ = drawn("fig09", metric="cmmd", axis="seconds").axes
    for panel, x, y in ((left, "steps", "seconds"), (right, "seconds", "cmmd")):
        for line, model in zip(panel.lines, study.models, strict=True):
            mine = best[best["model"] == model.name].sort_values(x)
            assert line.get_xdata().tolist() == mine[x].tolist() and line.get_ydata().tolist() == mine[y].tolist()
    assert right.get_yscale() == "log"  # over more than a factor of eight
    strip = drawn("fig09", metric="recall", axis="seconds").axes[2]
    starts = envelope(rows, "seconds", "recall")["seconds"].tolist()
    assert len(starts) > 2 and [patch.get_x() for patch in strip.patches] == pytest.approx(starts)
    heat = drawn("fig08", metric="recall").axes[2]
    assert {t.get_text() for t in heat.texts} == {"6"}  # the best by recall everywhere, by the formula


def test_shares_are_never_on_a_log_axis(study):
    rows = study.scores.assign(recall=study.scores["steps"] / 40)  # over a factor of twenty
    fig = FIGURES["fig09"](settings(dataclasses.replace(study, scores=rows), experiment="grid", metric="recall"))
    assert fig.axes[1].get_yscale() == "linear"


@pytest.mark.parametrize("name,defaults", [("fig09", {"metric": "fid", "axis": "cost"}), ("fig12", {"axis": "cost"})])
def test_the_defaults_are_fid_and_the_papers_cost(drawn, tmp_path, name, defaults):
    files = [tmp_path / "plain.png", tmp_path / "asked.png"]
    for file, choice in zip(files, ({}, defaults), strict=True):
        save_figure(drawn(name, **choice), tmp_path / "figure.pdf", file, 60)
    assert files[0].read_bytes() == files[1].read_bytes()


# ---- the config ------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"fig09": {"metric": "fdi"}}, ["figures.fig09.metric", "'fdi'", "fid"]),
    ({"fig09": {"axis": "dollars"}}, ["figures.fig09.axis", "'dollars'", "seconds"]),
    ({"fig03": {"metric": "kid"}}, ["figures.fig03 has no 'metric'", "fig08, fig09, fig11, fig13"]),
    ({"fig08": {"axis": "seconds"}}, ["figures.fig08 has no 'axis'", "fig12"]),
    ({"fig13": {"metric": "fd_dino"}}, ["figures.fig13.metric is 'fd_dino'", "metrics.dinov2 is null"]),
]


@pytest.mark.parametrize("figures,words", REFUSED)
def test_a_choice_that_cannot_be_drawn_is_refused_before_the_study(figures, words):
    with pytest.raises(UserError) as caught:
        check(merged("smoke.yaml", {"figures": figures}), SCHEMA)
    (line,) = str(caught.value).splitlines()
    assert all(word in line for word in words)


@pytest.mark.parametrize("setting,value", [("metric", "cmmd"), ("axis", "seconds")])
def test_a_choice_that_can_be_drawn_is_accepted(setting, value):
    check(merged("smoke.yaml", {"figures": {f: {setting: value} for f in FIGURE_SETTINGS[setting]}}), SCHEMA)
