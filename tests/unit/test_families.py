"""U-Nets and transformers in one study: whom claims and figures are about, who wins at which cost, and Table 1."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pandas as pd
import pytest
from helpers import OF_ALL, SCHEMA, merged
from synthetic_distillation import NET  # noqa: F401  (starts JAX once for all)
from synthetic_study import SMALL_FAMILY, STUDY, family, make_study, settings, small_study
from test_figures import rendered, visible_texts

from ldmscale.analysis.advice import advise
from ldmscale.analysis.claims import evaluate, load_claims
from ldmscale.analysis.families import contest, contest_words, families_section, within_a_family
from ldmscale.analysis.fits import study_fits
from ldmscale.analysis.frontier import at_budgets
from ldmscale.analysis.study import ModelInfo, models_of
from ldmscale.analysis.summary import summary_markdown
from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.cost import dit_params, model_shape, norm_costs
from ldmscale.cells.plan import Plan
from ldmscale.config.check import check
from ldmscale.config.study import Study
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES, style, table1, write_table
from ldmscale.metrics.costs import study_costs
from ldmscale.metrics.gather import scores_table
from ldmscale.metrics.scores_file import read_scores, write_scores

UNETS = family(SMALL_FAMILY[:3], 0.0493)
DITS = [
    ModelInfo("d32", None, 110_000, 0.0034, 0.0034 / 0.0493, "dit"),
    ModelInfo("d64", None, 580_000, 0.0158, 0.0158 / 0.0493, "dit"),
]
WIDTHS = {"d32": (32, 4), "d64": (64, 6)}


def fid_of(model, models, train, steps, cfg, sampler):
    """Transformers have a head start, U-Nets gain more by steps."""
    start, gain = (20, 10) if model.family == "dit" else (14, 50)
    return start + gain / steps + 5 * (1 - train) + (cfg - 4) ** 2 - np.log(model.params / 1e5)


def made(models=(*UNETS, *DITS), **changes):
    models = sorted(models, key=lambda m: m.params)
    study = make_study(models, (2, 4, 8, 20, 40), (2.5, 4.0), headline=(20, 4.0), fid_of=fid_of, **changes)
    scores = study.scores.astype({"filters": "Int64"})
    sizes = pd.DataFrame([WIDTHS.get(m, (None, None)) for m in scores["model"]], columns=["width", "depth"])
    return dataclasses.replace(study, scores=pd.concat([scores, sizes.astype("Int64")], axis=1))


@pytest.fixture(scope="module")
def both():
    return made()


@pytest.fixture(scope="module")
def alone():
    """Transformers alone."""
    return made(DITS)


# ---------------------------------------------------------------- the table


def test_the_models_of_a_table_know_their_family(both):
    assert models_of(both.scores) == list(both.models)
    plain = small_study()
    assert models_of(plain.scores.drop(columns="family")) == list(plain.models)  # a table from before


def test_a_real_table_of_both_families_survives_its_file(tmp_path):
    chain = Chain(Plan(Study(merged("smoke.yaml"))))
    costs, told = study_costs(chain["costs"]), chain.scores()["family"]
    cells = [Cell("t2i", m, "pretrain-40", "ddim", 4, 4.0) for m in ("f8", "d8x2", "f4")]
    cells += [Cell("codi", "d8x2", "codi-4", "codi", 4, 4.0), Cell("superres", "d8x2", "superres-6", "ddim", 4, 1.0)]
    rows = [{"cell": c.path, "split": "heldout", "evaluations": 4, "fid": 20.0, "clip": 0.3, "n": 9} for c in cells]
    table = scores_table(rows, told, costs)
    assert table["params"].is_monotonic_increasing
    write_scores(tmp_path / "scores.parquet", table, "d")
    table = read_scores(tmp_path / "scores.parquet", "d")
    pd.testing.assert_series_equal(table["filters"], pd.Series([None] * 3 + [4, 8], dtype="Int64"), check_names=False)
    assert [(r.model, r.family) for r in table.itertuples()][2:] == [("d8x2", "dit"), ("f4", "unet"), ("f8", "unet")]
    first = table.set_index(["task", "model"])
    assert tuple(first.loc[("t2i", "d8x2"), ["width", "depth"]]) == (8, 2)
    study, t2i = chain.study, first.loc[("t2i", "d8x2")]
    # One unit of cost for both.
    assert t2i["norm_cost"] == pytest.approx(norm_costs(study)["d8x2"]) and t2i["cost"] == 4 * t2i["norm_cost"]
    assert t2i["params"] == dit_params(model_shape(study, study.models["d8x2"]))
    assert first.loc[("t2i", "f8"), "norm_cost"] == 1
    codi, restored = first.loc[("codi", "d8x2")], first.loc[("superres", "d8x2")]
    assert 1.3 < codi["cost"] / t2i["cost"] < 2 and restored["cost"] == t2i["cost"]
    assert restored["sampling_tflops"] != t2i["sampling_tflops"]


def test_a_table_of_u_nets_alone_has_no_columns_for_transformers():
    config = merged("smoke.yaml")
    config["models"] = config["models"][:2]
    chain = Chain(Plan(Study(config)))
    cell = Cell("t2i", "f4", "pretrain-40", "ddim", 4, 4.0)
    rows = [{"cell": cell.path, "split": "heldout", "evaluations": 4, "fid": 20.0, "clip": 0.3, "n": 9}]
    assert "dit" not in chain.scores()["family"]  # on which the table's digest depends
    table = scores_table(rows, chain.scores()["family"], study_costs(chain["costs"]))
    assert not {"width", "depth"} & set(table) and table["filters"].dtype == np.int64


# ---------------------------------------------------------------- whom claims and laws are about


def test_claims_and_laws_are_of_the_u_nets(both):
    mine = made(UNETS, seed=0)
    rows, experiments = within_a_family(both.scores, both.experiments)
    assert set(rows["model"]) == {m.name for m in UNETS}
    assert {c.model for cells in experiments.values() for c in cells} == {m.name for m in UNETS}
    claims = load_claims()
    verdicts = [(each.claim.id, each.finding.verdict) for each in evaluate(both.scores, both.experiments, claims)]
    of_unets = evaluate(rows, experiments, claims)
    assert verdicts == [(each.claim.id, each.finding.verdict) for each in of_unets]
    found = [str(n) for each in of_unets for n in each.finding.numbers]
    assert any("f16" in text for text in found) and not any("d32" in text or "d64" in text for text in found)
    fits = study_fits(both.scores, both.experiments, {}, 0)
    assert {p["model"] for p in fits["points"]} == {m.name for m in mine.models}
    assert {p["larger"] for p in fits["crossover"]} <= {m.name for m in UNETS}


def test_of_transformers_alone_they_are_of_those(alone):
    rows, experiments = within_a_family(alone.scores, alone.experiments)
    assert len(rows) == len(alone.scores) and experiments == {k: list(v) for k, v in alone.experiments.items()}
    judged = {each.claim.id: each for each in evaluate(alone.scores, alone.experiments, load_claims())}
    assert any("d64" in str(n) for each in judged.values() for n in each.finding.numbers)


def test_a_metric_without_replicates_still_ranks(both):
    """As FID-infinity has none where CLIP score has."""
    scores = both.scores.assign(fid_inf=both.scores["fid"])
    claim = next(c for c in load_claims() if c.test == "metrics_agree")
    (judged,) = evaluate(scores, both.experiments, [claim])
    under = judged.under["fid_inf"].numbers[0]
    assert np.isnan(under.low) and under.value == pytest.approx(judged.finding.numbers[0].value)


# ---------------------------------------------------------------- who wins at which cost


def test_each_family_is_given_its_best_at_every_budget_that_both_can_spend(both):
    rows = both.scores[both.scores["cell"].isin([c.path for c in both.experiments["grid"]])]
    found = contest(rows)
    least = {f: rows.loc[rows["family"] == f, "cost"].min() for f in ("unet", "dit")}
    assert found["budget"].min() == pytest.approx(max(least.values())) and found["budget"].is_monotonic_increasing
    for row in found.itertuples():
        # By hand: on tuning prompts among all cells at or under the budget, on held-out ones what is compared.
        values = {}
        for name in ("unet", "dit"):
            mine = rows[(rows["family"] == name) & (rows["cost"] <= row.budget * (1 + 1e-6))]
            tuning = mine[mine["split"] == "tuning"].sort_values("fid").iloc[0]
            assert tuning["model"] == getattr(row, name)
            values[name] = mine[(mine["split"] == "heldout") & (mine["cell"] == tuning["cell"])]["fid"].iloc[0]
        assert row.difference == pytest.approx(values["dit"] - values["unet"])
        clear = {"dit": row.high < 0, "unet": row.low > 0, "": row.low <= 0 <= row.high}
        assert clear[row.winner]
    assert (found["winner"].iloc[0], found["winner"].iloc[-1]) == ("dit", "unet")
    # Of a metric that should be large, the other sign.
    clip = contest(rows, metric="clip")
    assert (clip["winner"].iloc[0], clip["winner"].iloc[-1]) == ("dit", "unet") and clip["high"].iloc[-1] < 0


def test_without_replicates_nobody_wins(both):
    rows = both.scores[both.scores["sampler"] == "ddim"].drop(columns="fid_reps")
    found = contest(rows)
    assert set(found["winner"]) == {""} and found["low"].isna().all() and "interval" not in contest_words(found)


def test_there_is_no_contest_of_one_family(alone):
    assert contest(alone.scores).empty and families_section(alone.scores, alone.experiments) == ""


def test_the_words_name_winner_costs_and_interval():
    found = pd.DataFrame(
        [(1.0, "f8", "d32", -2.0, -3.0, -1.0, "dit"), (2.0, "f8", "d64", -1.0, -2.0, -0.5, "dit"),
         (4.0, "f12", "d64", 0.1, -1.0, 1.0, ""), (8.0, "f16", "d64", 2.0, 1.0, 3.0, "unet")],
        columns=["budget", "unet", "dit", "difference", "low", "high", "winner"],
    )  # fmt: skip
    assert contest_words(found) == (
        "at costs 1 to 2 transformers win (d64 minus f8 at 2: -1, 95% interval -2 to -0.5); at cost 4 neither family "
        "is surely better (d64 minus f12: +0.1, 95% interval -1 to +1); at cost 8 U-Nets win (d64 minus f16: +2, 95% "
        "interval +1 to +3)"
    )


def test_the_summary_says_who_wins_and_whom_findings_are_of(both, alone):
    section = families_section(both.scores, both.experiments)
    assert "transformers win" in section and "U-Nets win" in section
    text = summary_markdown([], STUDY, both.scores.assign(trainings=1), (), [section])
    assert "| Models (U-Net parameters) | f8, 61k; f12, 132k; f16, 230k |" in text
    assert "| Models (transformer parameters) | d32, 110k; d64, 580k |" in text and "the U-Nets alone" in text
    assert "the U-Nets alone" not in summary_markdown([], STUDY, alone.scores.assign(trainings=1))


def test_advice_is_of_whichever_family_is_better(both):
    assert advise(both.scores, 0.5)[0].model.startswith("d")
    budget = at_budgets(both.scores)["budget"].max()
    assert advise(both.scores, budget)[0].model.startswith("f")


# ---------------------------------------------------------------- figures


def test_families_have_ramps_and_markers_of_their_own(both):
    looks = style.model_styles(both.models)
    assert {name: looks[name] for name in ("f8", "f12", "f16")} == style.model_styles(UNETS)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)
    assert not {looks[m.name]["marker"] for m in UNETS} & {looks[m.name]["marker"] for m in DITS}


@pytest.mark.parametrize(("metric", "axis"), [("fid", "cost"), ("clip", "nfe_cost"), ("fid", "sampling_tflops")])
def test_the_figure_of_families(both, metric, axis):
    fig = FIGURES["families"](settings(both, experiment="grid", metric=metric, axis=axis))
    rendered(fig)
    said = " ".join(" ".join(text.get_text().split()) for text in visible_texts(fig))
    for words in ("U-Nets", "Transformers", "d64, 580k", "f16, 230k", "transformers win", "95% interval"):
        assert words in said
    # A curve a model and a band a family.
    assert len(fig.axes[0].lines) == len(both.models) + 2


def test_the_figure_of_families_needs_both(alone):
    with pytest.raises(UserError, match="needs U-Nets and transformers"):
        FIGURES["families"](settings(alone, experiment="grid"))


SECTIONS = {
    "fig01": {"experiment": "headline", "prompts": [0]},
    "fig03": {"experiment": "training"},
    "fig09": {"experiment": "grid"},
    "fig10": {"experiment": "same_cost", "rows": [{"cost": 6, "prompt": 0}]},
    "fig11": {"experiment": "samplers", "baseline": "grid"},
}


@pytest.mark.parametrize("figure", SECTIONS)
def test_the_papers_figures_show_u_nets_and_of_transformers_alone_those(both, alone, figure):
    def shown(study, **changes):
        fig = FIGURES[figure](settings(study, **SECTIONS[figure], **changes))
        rendered(fig)
        said = " ".join(text.get_text() for text in visible_texts(fig)).replace("\n", " ")
        return {m.name for m in both.models if f"{m.name}," in said or f"{m.name} " in said}

    assert shown(both) == {"f8", "f12", "f16"}
    assert shown(alone) == {"d32", "d64"}
    assert shown(both, models=["f8", "d64"]) == {"f8", "d64"}


@pytest.mark.parametrize(("pair", "others"), [(["f8", "f16"], ["f12"]), (["d32", "d64"], [])])
def test_the_heat_map_of_guidance_is_of_the_pairs_family(both, pair, others):
    fig = FIGURES["fig08"](settings(both, experiment="grid", models=pair))
    rendered(fig)
    assert {t.get_text() for t in fig.axes[2].get_xticklabels()} == {*pair, *others}


# ---------------------------------------------------------------- Table 1


def test_table_1_has_both_families_by_size(both, alone, tmp_path):
    files = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    write_table(table1(both.scores, both.experiments["headline"], both.study), *files)
    csv = pd.read_csv(files[0])
    assert csv["model"].tolist() == ["f8", "d32", "f12", "f16", "d64"]
    assert csv["filters"].fillna(0).tolist() == [8, 0, 12, 16, 0] and csv["depth"].fillna(0).tolist() == [0, 4, 0, 0, 6]
    header, _, *rows = [line.strip("| ").split(" | ") for line in files[1].read_text().splitlines()[:7]]
    assert [row[header.index("Filters, or width × depth")] for row in rows] == ["8", "32 × 4", "12", "16", "64 × 6"]
    write_table(table1(alone.scores, alone.experiments["headline"], alone.study), *files)
    assert "| Width × depth |" in files[1].read_text() and "filters" not in pd.read_csv(files[0])


# ---------------------------------------------------------------- configs


def test_the_studies_of_both_families_are_accepted_and_share_one_plan():
    for config in (merged("families.yaml"), merged("smoke.yaml")):
        check(config, SCHEMA)
    plan = Plan(Study(merged("families.yaml")))
    same = plan.experiments["same_cost"]
    norm = norm_costs(plan.study)
    for model, cost in product(("dit32x4", "f32"), (1, 5)):
        assert any(c.model == model and abs(c.steps * norm[model] - cost) <= norm[model] / 2 for c in same)


def test_a_study_of_transformers_alone_is_accepted():
    config = merged("smoke.yaml", OF_ALL)
    config["models"] = [{**config["models"][2], "name": name, "width": width} for name, width in (("a", 4), ("b", 8))]
    config["experiments"]["codi_timesteps"] = None
    for name in ("fig02", "fig20", "families"):
        config["figures"][name] = None
    for name in ("fig07", "fig08", "fig19"):
        config["figures"][name]["models"] = ["a", "b"]
    check(config, SCHEMA)
    chain = Chain(Plan(Study(config)))
    assert {chain.study.models[c.model].family for c in chain.plan.cells} == {"dit"}
    assert chain.scores()["family"]["filters"] == {"a": None, "b": None}
    chain.figure("fig09")
