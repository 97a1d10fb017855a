"""Crossovers, the compute-optimal frontier and what is written of them, on made studies whose answers are known."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_study import PAPER_FAMILY, STUDY, family, make_study, settings

from ldmscale.analysis.crossover import COLUMNS, crossing, frontier, sampling_crossovers
from ldmscale.analysis.fits import FINAL, FITS, FRONTIER, Points, law_table, loss_points, optimal_size, study_fits
from ldmscale.analysis.fits_text import crossover_markdown, crossover_words, fits_markdown, fits_section
from ldmscale.analysis.selection import select
from ldmscale.errors import UserError
from ldmscale.figures.fits import fits
from ldmscale.figures.validation import validation

INF = math.inf


def curve(*points):
    return tuple(np.array(column, float) for column in zip(*points, strict=True))


# ---- crossings ------------------------------------------------------------------------------------------------------

SMALL = curve((1, 20), (2, 16), (4, 12))


@pytest.mark.parametrize(
    "larger, extend, cost",
    [
        (curve((2, 20), (8, 8)), True, 2 * 4 ** (2 / 3)),  # the gap: 4 at cost 2, 2 at 4, -4 at 8; from 4 to 8 linear
        (curve((2, 15), (8, 8)), True, -INF),  # wins where it begins
        (curve((2, 30), (8, 12.5)), True, INF),
        (curve((4, 12), (8, 12)), True, INF),  # a draw is no win
        (curve((2, 20), (8, 8)), False, INF),  # up to 4 alone
        (curve((2, 15), (3, 18), (8, 8)), True, None),  # ahead, behind, ahead: the last time counts
        (curve((5, 1), (8, 1)), False, math.nan),  # nothing in common
    ],
)
def test_a_crossing_is_where_the_larger_stays_ahead(larger, extend, cost):
    found, least, most = crossing(SMALL, larger, extend)
    assert least == max(1, larger[0][0]) and most == (8 if extend else 4)
    if cost is None:
        assert 4 < found < 8
    elif larger[1][0] == 20 and extend:
        assert found == pytest.approx(math.exp(math.log(4) + math.log(2) * 2 / 6))
    else:
        assert found == pytest.approx(cost, nan_ok=True)


def test_a_frontier_keeps_what_beats_everything_cheaper():
    costs, losses = frontier(np.array([4, 1, 2, 2, 8.0]), np.array([7, 10, 11, 9, 7.0]), np.array([1, 2, 3, 4, 5.0]))
    assert costs.tolist() == [1, 2, 4] and losses.tolist() == [2, 4, 1]  # at 8 it is no better than at 4


def crossed(gap_at, **changes):
    """A study of three models in which the larger of two overtakes at a sampling cost of ``gap_at`` times its own."""
    models = family(PAPER_FAMILY, 804.3)[2:5]

    def fid_of(model, models, train, steps, cfg, sampler):
        # Linear in log cost; the slopes of neighbours differ, and they meet at gap_at times the larger's cost.
        i, cost = models.index(model), model.norm_cost * steps
        value = 60.0
        for j, m in enumerate(models[1 : i + 1], 1):
            value -= 2.0 * math.log(cost / (gap_at * m.norm_cost)) * j
        return value - 3 * math.log(cost) + 5 * (1 - train) + 4 * (cfg - 3) ** 2

    options = {"headline": (20, 3.0), "replicates": 60, "point_noise": 0.0, "noise": 0.15, "fid_of": fid_of, **changes}
    return make_study(models, tuple(range(1, 41)), (2, 3, 4), **options)


def test_sampling_crossovers_are_found_with_their_intervals():
    data = crossed(10.0)
    rows = select(data.scores, data.experiments["grid"] + data.experiments["samplers"])
    table = sampling_crossovers(rows, ["fid"])
    assert list(table.columns) == COLUMNS and len(table) == 3 * 2 * len(set(table["axis"]))
    assert set(table["axis"]) >= {"cost", "nfe_cost", "sampling_tflops"}
    for r in table[table["axis"] == "cost"].itertuples():
        larger = next(m for m in data.models if m.name == r.larger)
        truth = 10 * larger.norm_cost
        assert r.low <= truth <= r.high and r.crossover == pytest.approx(truth, rel=0.05)
        assert r.least == pytest.approx(larger.norm_cost) and r.most == pytest.approx(40 * larger.norm_cost)
        assert 0.7 * truth < r.low < r.high < 1.4 * truth and r.beyond == 0
    doubled = table[table["axis"] == "nfe_cost"]["crossover"].to_numpy()
    np.testing.assert_allclose(doubled, 2 * table[table["axis"] == "cost"]["crossover"])


@pytest.mark.parametrize("gap_at, value, words", [(0.2, -INF, "from"), (300.0, INF, "not up to")])
def test_crossovers_outside_the_grid_are_said_to_be(gap_at, value, words):
    data = crossed(gap_at)
    table = sampling_crossovers(select(data.scores, data.experiments["grid"]), ["fid"])
    table = table[table["axis"] == "cost"]
    assert (table["crossover"] == value).all() and (table["beyond"] == float(value > 0)).all()
    assert all(crossover_words(r).startswith(words) for r in table.to_dict("records"))
    assert "inf" not in crossover_markdown({"crossover": table.to_dict("records")})


def test_noise_near_the_end_of_the_grid_shows_as_an_interval_beyond_it():
    data = crossed(39.5, noise=2.0, replicates=200)
    r = sampling_crossovers(select(data.scores, data.experiments["grid"]), ["fid"]).to_dict("records")[0]
    assert 0.05 < r["beyond"] < 0.95 and r["high"] == INF and r["low"] < r["most"]
    assert "beyond" in crossover_words(r)


def test_guidance_is_chosen_on_tuning_prompts():
    data = crossed(10.0)
    lucky = (
        (data.scores["split"] == "heldout") & (data.scores["cfg"] == 4) & (data.scores["model"] == data.models[0].name)
    )
    data.scores.loc[lucky, "fid"] = 0.0  # on held-out prompts alone: nobody may profit from it
    table = sampling_crossovers(select(data.scores, data.experiments["grid"]), ["fid"])
    assert np.isfinite(table["crossover"]).all()


def test_a_metric_without_replicates_has_no_interval():
    data = crossed(10.0)
    scores = data.scores.drop(columns="fid_reps")
    r = sampling_crossovers(select(scores, data.experiments["grid"]), ["fid"]).to_dict("records")[0]
    assert math.isfinite(r["crossover"]) and math.isnan(r["low"]) and "interval" not in crossover_words(r)


# ---- training compute -----------------------------------------------------------------------------------------------


def losses_of(data, law, images=50, levels=3, noise=0.3, seed=0):
    """Losses [levels, images] of every checkpoint: ``law(params, flops)`` as their mean, images alike in all models."""
    rng = np.random.default_rng(seed)
    image = 1 + noise * rng.uniform(-1, 1, size=(levels, images))
    image /= image.mean()
    known = data.scores.drop_duplicates(["model", "weights"])
    found = {}
    for r in known.itertuples():
        found.setdefault(r.model, {})[r.weights] = (law(r.params, r.train_flops) * image).astype(np.float32)
    return found


def parabolas(params, flops):
    """Loss whose best size at compute C is 1e8 (C / 1e18)^0.6, and is there 0.1 (C / 1e18)^-0.05."""
    best = 1e8 * (flops / 1e18) ** 0.6
    return 0.1 * (flops / 1e18) ** -0.05 * math.exp(0.05 * math.log(params / best) ** 2)


@pytest.fixture(scope="module")
def family_study():
    checkpoints = tuple(int(v) for v in np.geomspace(1000, 3_000_000, 24))
    return make_study(family(PAPER_FAMILY, 804.3)[:8], (4, 20), (3, 4), headline=(20, 4.0), checkpoints=checkpoints)


def test_the_optimal_size_grows_with_the_exponent_it_was_made_with(family_study):
    points = loss_points(family_study.scores, losses_of(family_study, parabolas), 100, 0)
    found = optimal_size(points)
    assert found["n"] >= 5 and found["exponent"]["value"] == pytest.approx(0.6, abs=0.05)
    assert found["exponent"]["low"] <= found["exponent"]["value"] <= found["exponent"]["high"]
    for pair in found["pairs"]:
        sizes = {m.name: m.params for m in family_study.models}
        best = math.sqrt(sizes[pair["smaller"]] * sizes[pair["larger"]])
        if math.isfinite(pair["compute"]):
            assert pair["compute"] == pytest.approx(1e18 * (best / 1e8) ** (1 / 0.6), rel=0.1)
            assert pair["low"] <= pair["compute"] <= pair["high"]


def test_two_models_do_not_give_the_optimal_size_an_exponent(family_study):
    points = loss_points(family_study.scores, losses_of(family_study, parabolas), 100, 0)
    two = points.where(points.rows["model"].isin(["39M", "83M"]).to_numpy())
    found = optimal_size(two)
    assert len(found["pairs"]) == found["n"] == 1 and found["exponent"] is None
    assert "not determined" in fits_section({"fits": [], "optimum": [found], "crossover": []})
    one = optimal_size(points.where((points.rows["model"] == "39M").to_numpy()))
    assert one["pairs"] == [] and one["exponent"] is None


def test_the_frontier_is_what_nothing_cheaper_beats(family_study):
    points = loss_points(family_study.scores, losses_of(family_study, parabolas), 100, 0)
    kept = points.where(points.on_frontier).rows.sort_values("train_flops")
    assert (np.diff(kept["value"]) < 0).all() and kept["model"].nunique() > 4
    for r in points.rows[~points.on_frontier].itertuples():
        assert (points.rows["value"][points.rows["train_flops"] <= r.train_flops] < r.value).any()
    free = Points("loss", points.rows.assign(train_flops=0), points.reps)
    assert not free.on_frontier.any()


def test_laws_of_size_and_compute_are_recovered(family_study):
    def law(params, flops):
        return 0.05 + 2.0 * (flops / 1e18) ** -0.3

    points = loss_points(family_study.scores, losses_of(family_study, law), 100, 0)
    table = law_table(points, 0).set_index(["against", "over", "law"])
    assert list(table.reset_index().columns) == [
        "against",
        "over",
        "law",
        *(c for c in FITS if c not in ("against", "over", "law")),
    ]
    found = table.loc[("train_flops", FRONTIER, "floor")]
    assert found["determined"] and found["exponent"] == pytest.approx(0.3, abs=1e-3)
    assert found["floor"] == pytest.approx(0.05, rel=0.01)
    final = table.loc[("params", FINAL, "power")]
    assert final["n"] == 8 and final["measured"] == points.rows["value"].iloc[-1] < points.rows["value"].iloc[-2]
    assert {m.name for m in family_study.models} < set(table.index.get_level_values("over"))
    undetermined = table[~table["determined"].astype(bool)]
    assert undetermined[["exponent", "scale", "floor"]].isna().all(axis=None)
    assert undetermined["floor_high"].notna().all()


@pytest.fixture(scope="module")
def content():
    data = crossed(10.0, checkpoints=(250, 500, 1000, 2000, 4000))
    return data, study_fits(data.scores, data.experiments, losses_of(data, lambda n, c: 1e3 * c**-0.2), 0)


def test_a_study_is_fitted_whole(content):
    data, found = content
    points = pd.DataFrame(found["points"])
    assert points.groupby("metric").size().to_dict() == {"loss": 15, "fid": 15}
    assert np.isfinite(points[["value", "low", "high"]]).all(axis=None)
    assert (points["low"] <= points["value"]).all()
    exponent = pd.DataFrame(found["fits"]).set_index(["metric", "over", "law"]).loc[("loss", FRONTIER, "power")]
    assert exponent["exponent"] == pytest.approx(0.2, abs=1e-6)
    levels = pd.DataFrame(found["levels"])
    assert len(levels) == 3 * 3 and (levels["low"] < levels["loss"]).all()
    json.loads(json.dumps(found))  # as the manifest holds it
    again = study_fits(data.scores, data.experiments, losses_of(data, lambda n, c: 1e3 * c**-0.2), 0)
    assert json.dumps(again) == json.dumps(found)


def test_cmmd_is_fitted_where_it_is_measured_and_above_zero(content):
    data, _ = content
    for value, fitted in ((2.0, True), (-2.0, False)):
        scores = data.scores.assign(cmmd=value * data.scores["fid"].abs())
        found = study_fits(scores, data.experiments, {}, 0)
        assert ("cmmd" in {r["metric"] for r in found["fits"]}) is fitted
        assert found["levels"] == [] and "loss" not in {r["metric"] for r in found["fits"]}


def test_without_training_the_headline_is_fitted(content):
    data, _ = content
    found = study_fits(data.scores, {"headline": data.experiments["headline"]}, {}, 0)
    assert {(r["against"], r["over"]) for r in found["fits"]} == {("params", FINAL), ("train_flops", FRONTIER)}
    assert found["crossover"] == []


def test_a_study_without_text_to_image_has_no_fits(content):
    data, _ = content
    found = study_fits(data.scores.assign(task="superres"), {}, {}, 0)
    assert found == {"points": [], "fits": [], "crossover": [], "optimum": [], "levels": []}
    assert "Too few" in fits_section(found) and fits_markdown(found) and crossover_markdown(found)


def test_what_is_written_has_every_number_with_its_interval(content):
    _, found = content
    text = fits_section(found)
    assert text.startswith("## Fits\n") and "### From which sampling cost" in text
    assert "| DDIM | FID | 145M to 223M | " in text and "interval" in text
    for bad in ("nan", "inf", "None"):
        assert bad not in text.replace("-infinity", "") and bad not in fits_markdown(found)
    assert text.count("not determined") >= 2  # three models fix no floor of size
    assert "0.2 (0.2 to 0.2)" in text
    assert all(axis in crossover_markdown(found) for axis in ("nfe_cost", "sampling_tflops"))


# ---- figures --------------------------------------------------------------------------------------------------------


def draw(figure, data, content, **changes):
    content = {**content, "timesteps": [100, 500, 900], **changes}
    fig = figure(dataclasses.replace(settings(data), fits=content))
    FigureCanvasAgg(fig).draw()
    return fig


def test_the_figure_of_fits_shows_points_frontier_and_laws(content):
    data, found = content
    fig = draw(fits, data, found)
    assert [ax.get_ylabel().split("  ")[0] for ax in fig.axes] == ["Validation loss", "FID"]
    points = pd.DataFrame(found["points"])
    for ax, metric in zip(fig.axes, ("loss", "fid"), strict=True):
        assert ax.get_xscale() == ax.get_yscale() == "log"
        mine = points[points["metric"] == metric]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), mine["value"][:5])
        rings = ax.lines[-1].get_xdata()
        assert sorted(rings) == sorted(mine.loc[mine["frontier"], "train_flops"])
    law = next(line for line in fig.axes[0].lines if len(line.get_xdata()) == 60)
    np.testing.assert_allclose(law.get_ydata(), 1e3 * np.asarray(law.get_xdata()) ** -0.2, rtol=1e-3)
    assert "loss exponent 0.20" in fig._supxlabel.get_text() and STUDY.data[:10] in fig._supxlabel.get_text()


def test_the_figure_of_validation_shows_a_curve_a_level(content):
    data, found = content
    fig = draw(validation, data, found)
    left, right = fig.axes
    assert len(left.lines) == len(right.lines) == 3
    assert all(line.get_ydata()[0] == 1 for line in right.lines)
    np.testing.assert_allclose(left.lines[1].get_xdata(), [m.params for m in data.models])
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["100", "500", "900"]


def test_figures_that_have_nothing_to_show_say_so(content):
    data, found = content
    with pytest.raises(UserError, match="figures.fits to null"):
        draw(fits, data, {})
    with pytest.raises(UserError, match="figures.fits to null"):
        draw(fits, data, found, points=[{**p, "train_flops": 0} for p in found["points"]])
    with pytest.raises(UserError, match="figures.validation to null"):
        draw(validation, data, {})
