"""The figures of distilled models on made-up studies: what they show, what they refuse, and that nothing overlaps."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from matplotlib.text import Text
from synthetic_study import AWKWARD, LONG, PAPER_FAMILY, SMALL_FAMILY, STUDY, family
from test_distilled_analysis import ADAPTER, made_study
from test_figures import overlap, readable_texts, rendered

from ldmscale.analysis.distilled import best_setting
from ldmscale.analysis.intervals import interval
from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.distilled import DASHED, DISTILLED, FACTOR, fig13, fig19, fig20

FIGURES = {"fig13": fig13, "fig19": fig19, "fig20": fig20}
COST = 2  # of Fig. 20's small model


def falls(model: int, steps: int) -> float:
    return 42 - 1.5 * model - 4 * math.log2(steps)


def study_of(models, steps, equal: tuple[int, ...], **changes) -> FigureData:
    """:func:`made_study` of ``models`` undistilled in ``steps``, and ``equal`` steps in ``same_cost``, not scored."""
    study = made_study(
        **{"models": models, "plain": falls, "steps": steps, "gallery": ("a cat", AWKWARD, LONG), **changes}
    )
    cells = [Cell("t2i", m.name, "pretrain-900", "ddim", n, g) for m in models for n in equal for g in (2.0, 4.0)]
    return dataclasses.replace(study, experiments={**study.experiments, "same_cost": cells})


def small():
    """Five small models: the factors are 4, 5, 6, 7 and 8."""
    models = family(SMALL_FAMILY, 0.0493)
    return study_of(
        models, (2, 4, 8, 20, 40), (12, 16), codi=lambda m, n: falls(m, 16 + 4 * m) - 0.1 * math.log2(n / 4)
    )


def paper():
    """Eleven models: distilled, the smallest two are worse than in the fewest steps, the largest two better than in
    the most."""

    def distilled(model, steps):
        return falls(model, 20) + 20 * (model < 2) - 8 * (model > 8) - 0.1 * steps

    return study_of(
        family(PAPER_FAMILY, 804.3), (4, 6, 8, 10, 20, 50), (16,), codi=distilled, few=(1, 2, 4, 8), noise=1.0
    )


def named():
    """Two models whose names are long; nothing but what the figures need; FIDs over two orders of magnitude."""
    models = [dataclasses.replace(m, name=f"baseline-wide_{m.name}.v2") for m in family(PAPER_FAMILY, 804.3)[:2]]
    return study_of(
        models, (4, 50), (16,), few=(4,), students=(4,), cfgs=(2.0,),
        plain=lambda m, n: 2000 / n, codi=lambda m, n: 60.0, guided=lambda m, n, s: 100.0,
    )  # fmt: skip


STUDIES = {"small": small, "paper": paper, "named": named}


@pytest.fixture(scope="module")
def studies():
    return {name: make() for name, make in STUDIES.items()}


def section(figure: str, study: FigureData) -> dict:
    """The figure's section of a config."""
    names = [m.name for m in study.models]
    most = max(c.steps for c in study.experiments["grid"])
    return {
        "fig13": {"experiment": "codi", "baseline": "grid", "steps": [n for n in (8, 10, 20, 50) if n <= most and n in
                                                                      {c.steps for c in study.experiments["grid"]}]},
        "fig19": {"experiment": "guided", "baseline": "grid", "models": names[:4]},
        "fig20": {"experiment": "codi", "baseline": "grid", "equal": "same_cost", "model": names[-1], "small": names[1],
                  "cost": COST, "cfg": 2.0, "prompts": [0, 1, 2]},
    }[figure]  # fmt: skip


def drawn(figure: str, study: FigureData, **changes):
    return FIGURES[figure](dataclasses.replace(study, settings={**section(figure, study), **changes}))


def texts_of(fig) -> list[str]:
    with style.style():
        return [" ".join(t.get_text().split()) for t in fig.findobj(Text)]


def caption(fig) -> str:
    return next(text for text in texts_of(fig) if text.startswith("Study"))


def legend(fig) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


@pytest.mark.parametrize("name,figure", [*itertools.product(STUDIES, FIGURES)])
def test_nothing_overlaps_or_is_cut_off(name, figure, studies):
    fig = drawn(figure, studies[name])
    renderer = rendered(fig)
    texts = readable_texts(fig, renderer)
    panels = [ax for ax in fig.axes if ax.axison and ax.get_frame_on()]
    below = next(box for text, box in texts if text.get_text().startswith("Study"))
    for shown in fig.legends:
        box = shown.get_window_extent(renderer)
        assert all(overlap(box, ax.get_tightbbox(renderer)) <= 0 for ax in panels)
        assert overlap(box, below) <= 0 and box.y0 >= 0
    pictures = [ax.get_window_extent(renderer) for ax in fig.axes if ax.images]
    assert all(overlap(a, b) <= 0 for a, b in itertools.combinations(pictures, 2))
    assert all(overlap(box, picture) < 0.5 for _, box in texts for picture in pictures)


def best(study: FigureData, experiment: str):
    rows = study.scores[study.scores["cell"].isin([c.path for c in study.experiments[experiment]])]
    return best_setting(rows[rows["sampler"] != "ddpm"])


# ---- Fig. 13 --------------------------------------------------------------------------------------------------------


def test_fig13_left_is_fid_against_size(studies):
    study = studies["small"]
    left, _, second = drawn("fig13", study).axes
    assert left.get_xscale() == "log" and len(left.lines) == 3
    distilled = next(line for line in left.lines if line.get_color() == DISTILLED["color"])
    for line, steps in zip([*(x for x in left.lines if x is not distilled), distilled], (8, 20, 4), strict=True):
        table = best(study, "codi" if line is distilled else "grid")
        table = table[table["steps"] == steps]
        assert line.get_xdata().tolist() == [m.params for m in study.models]
        assert line.get_ydata().tolist() == table["fid"].tolist()
    assert left.get_xlabel() == "Parameters of the network"
    assert "100k" in [t.get_text() for t in left.get_xticklabels()]
    assert second.get_xlim() == left.get_xlim()


def test_fig13_second_axis_is_the_acceleration(studies):
    second = drawn("fig13", studies["small"]).axes[2]
    (line,) = second.lines
    np.testing.assert_allclose(line.get_ydata(), [4, 5, 6, 7, 8], rtol=1e-6)
    assert second.get_ylabel() == "Acceleration factor" and second.get_ylim()[0] == 0
    for whisker, factor in zip(second.collections[0].get_segments(), (4, 5, 6, 7, 8), strict=True):
        assert whisker[0, 1] < factor < whisker[1, 1] < 1.2 * factor


def test_fig13_makes_no_number_up_beyond_the_grid(studies):
    fig = drawn("fig13", studies["paper"])
    second = fig.axes[2]
    line, more, less = second.lines
    known = np.isfinite(line.get_ydata())
    assert known.tolist() == [False] * 2 + [True] * 7 + [False] * 2
    params = [m.params for m in studies["paper"].models]
    assert more.get_marker() == "^" and less.get_marker() == "v"
    assert more.get_xdata().tolist() == params[9:] and set(more.get_ydata()) == {50 / 4}
    assert less.get_xdata().tolist() == params[:2] and set(less.get_ydata()) == {4 / 4}
    assert legend(fig)[6:9] == ["acceleration factor", "more than 12.5", "less than 1"]
    text = caption(fig)
    assert "39M less than 1; 83M less than 1; 145M" in text and text.count("5B more than 12.5") == 1
    assert "more than" not in " ".join(legend(drawn("fig13", studies["small"])))


def test_fig13_right_is_fid_against_cost_with_the_adapter(studies):
    study = studies["small"]
    fig = drawn("fig13", study)
    right, looks = fig.axes[1], style.model_styles(study.models)
    assert len(right.lines) == 2 * 5 and "adapter counted" in right.get_xlabel()
    for model, (dashed, solid) in zip(study.models, zip(right.lines[::2], right.lines[1::2], strict=True), strict=True):
        for line, experiment, steps, factor in (
            (dashed, "grid", (2, 4, 8, 20, 40), 1),
            (solid, "codi", (2, 4, 8), ADAPTER),
        ):
            mine = best(study, experiment)
            assert line.get_color() == looks[model.name]["color"]
            np.testing.assert_allclose(line.get_xdata(), model.norm_cost * np.array(steps) * factor)
            assert line.get_ydata().tolist() == mine[mine["model"] == model.name]["fid"].tolist()
        assert dashed.get_linestyle() == "--" and solid.get_linestyle() == "-"
    # The distilled curves alone have whiskers, of the table's replicates.
    assert len(right.collections) == 5
    row = best(study, "codi").iloc[0]
    segment = right.collections[0].get_segments()[0]
    assert segment[:, 1].tolist() == list(interval(row["fid"], np.array(row["fid_reps"])))
    text = caption(fig)
    assert STUDY.name in text and STUDY.fid_features in text and "n = 256 held-out" in text
    assert "second evaluation not counted" in text and "CoDi, steps 2, 4, 8" in text


def test_fig13_shows_the_models_asked_for(studies):
    fig = drawn("fig13", studies["small"], models=["f8", "f24"])
    whole = drawn("fig13", studies["small"])
    assert fig.axes[1].lines[2].get_color() == whole.axes[1].lines[6].get_color()
    assert legend(fig)[-2:] == ["f8, 61k", "f24, 512k"]
    assert fig.axes[2].lines[0].get_ydata() == pytest.approx([4, 7])


def test_fig13_without_replicates_has_no_whiskers(studies):
    study = studies["small"]
    bare = dataclasses.replace(study, scores=study.scores.assign(fid_reps=None))
    assert not any(ax.collections for ax in drawn("fig13", bare).axes)


# ---- Fig. 19 --------------------------------------------------------------------------------------------------------


def test_fig19_is_a_panel_a_model_and_a_curve_a_student(studies):
    study = studies["small"]
    fig = drawn("fig19", study)
    assert len(fig.axes) == 4 and legend(fig) == ["s16", "s8", "s4", "undistilled"]
    guided, grid = best(study, "guided"), best(study, "grid")
    for ax, model in zip(fig.axes, study.models, strict=False):
        assert ax.get_title("left").split(",")[0] == model.name
        for line, student in zip(ax.lines, (16, 8, 4, 0), strict=True):
            mine = (
                guided[guided["weights"] == f"guided_s{student}-70"] if student else grid[grid["steps"].isin((2, 4, 8))]
            )
            mine = mine[mine["model"] == model.name]
            assert line.get_xdata().tolist() == [2, 4, 8]  # the undistilled's 20 and 40 are out of the students' range
            assert line.get_ydata().tolist() == mine["fid"].tolist()
        assert ax.lines[-1].get_linestyle() == "--"
        assert ax.get_xlabel() == "Sampling steps"
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    text = caption(fig)
    assert "halved to 16 steps" in text and "one evaluation a step" in text and STUDY.fid_features in text


def test_fig19_of_two_models_stands_in_one_row(studies):
    fig = drawn("fig19", studies["small"], models=["f24", "f8"])
    assert [ax.get_title("left") for ax in fig.axes] == ["f8, 61k", "f24, 512k"]
    rendered(fig)
    assert len({round(ax.get_position().y0, 6) for ax in fig.axes}) == 1


def test_wide_fid_ranges_get_a_log_axis(studies):
    assert [ax.get_yscale() for ax in drawn("fig13", studies["named"]).axes] == ["linear", "log", "linear"]
    assert drawn("fig13", studies["small"]).axes[1].get_yscale() == "linear"


# ---- Fig. 20 --------------------------------------------------------------------------------------------------------


def test_fig20_shows_three_ways_to_spend_a_cost(studies):
    study = studies["small"]
    fig = drawn("fig20", study, prompts=[2, 0], cost=2.63)
    cells = [
        Cell("codi", "f32", "codi-50", "codi", 4, 2.0),
        Cell("t2i", "f32", "pretrain-900", "ddim", 4, 2.0),
        Cell("t2i", "f12", "pretrain-900", "ddim", 16, 2.0),  # 2.63 / (0.0081 / 0.0493)
    ]
    shown = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    expected = [study.previews(cell)[i] for i in (2, 0) for cell in cells]
    assert len(shown) == 6
    for got, want in zip(shown, expected, strict=True):
        factor = got.shape[0] // 32
        np.testing.assert_array_equal(got[::factor, ::factor], want)
    texts = [text.get_text() for text in fig.findobj(Text)]
    headers = [
        "f32, 905k\ndistilled, 4 steps\ncost 5.33 (10.7)",
        "f32, 905k\nundistilled, 4 steps\ncost 4 (8)",
        "f12, 132k\nundistilled, 16 steps\ncost 2.63 (5.26)",
    ]
    assert [texts.index(header) for header in headers] == sorted(texts.index(header) for header in headers)
    text = caption(fig)
    assert "CFG 2." in text and "with its adapter" in text and "second evaluation" in text and "not picked" in text


def test_fig20_without_guidance_costs_one_evaluation_a_step():
    study = study_of(family(SMALL_FAMILY, 0.0493), (2, 4, 8), (12,), cfgs=(1.0,))
    cells = [c.at(cfg=1.0) for c in study.experiments["same_cost"] if c.cfg == 2.0]
    study = dataclasses.replace(study, experiments={**study.experiments, "same_cost": cells})
    texts = [text.get_text() for text in drawn("fig20", study, cfg=1).findobj(Text)]
    assert "f32, 905k\nundistilled, 4 steps\ncost 4 (4)" in texts
    assert "f32, 905k\ndistilled, 4 steps\ncost 5.33 (5.33)" in texts


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_what_a_figure_cannot_draw_is_refused(studies):
    study = studies["small"]
    for figure in ("fig13", "fig19"):
        with pytest.raises(UserError, match="no 'baseline'"):
            settings = {k: v for k, v in section(figure, study).items() if k != "baseline"}
            FIGURES[figure](dataclasses.replace(study, settings=settings))
        with pytest.raises(UserError, match="'f99', which its experiment lacks"):
            drawn(figure, study, models=["f99"])
        with pytest.raises(UserError, match=f"{figure} draws the task '.*', its experiment holds task=t2i"):
            drawn(figure, study, experiment="grid")
        with pytest.raises(UserError, match="by DDIM, but its baseline has none of f8"):
            drawn(figure, study, baseline="codi")
    with pytest.raises(UserError, match="undistilled in 7 steps, but its baseline has none of f8"):
        drawn("fig13", study, steps=[8, 7])
    with pytest.raises(UserError, match="no 'steps'"):
        FIGURES["fig13"](dataclasses.replace(study, settings={"experiment": "codi", "baseline": "grid"}))
    few = [c for c in study.experiments["codi"] if c.steps != 4 or c.model != "f12"]
    with pytest.raises(UserError, match="distilled in 4 steps, but its experiment has none of f12"):
        drawn("fig13", dataclasses.replace(study, experiments={**study.experiments, "codi": few}))
    long = [c for c in study.experiments["grid"] if c.steps > 8]
    with pytest.raises(UserError, match="in as many steps as students, but its baseline has none of f8"):
        drawn("fig19", dataclasses.replace(study, experiments={**study.experiments, "grid": long}))


def test_what_fig20_cannot_draw_is_refused(studies):
    study = studies["small"]
    with pytest.raises(UserError, match="shows the model 'f99', which its study lacks"):
        drawn("fig20", study, small="f99")
    with pytest.raises(UserError, match="one cell of f12 in 61 steps at CFG 2 from its equal 'same_cost', which has 0"):
        drawn("fig20", study, cost=10)
    with pytest.raises(UserError, match="one cell of f32 in 4 steps at CFG 3 from its experiment 'codi', which has 0"):
        drawn("fig20", study, cfg=3.0)
    with pytest.raises(UserError, match="its experiment 'grid', which has 0"):
        drawn("fig20", study, experiment="grid")
    twice = [*study.experiments["codi"], Cell("codi", "f32", "codi-9", "codi", 4, 2.0)]
    with pytest.raises(UserError, match="its experiment 'codi', which has 2"):
        drawn("fig20", dataclasses.replace(study, experiments={**study.experiments, "codi": twice}))
    with pytest.raises(UserError, match="gallery prompt 3, but the gallery has 3"):
        drawn("fig20", study, prompts=[3])
    for setting in ("equal", "model", "small", "cost", "cfg", "prompts"):
        settings = {k: v for k, v in section("fig20", study).items() if k != setting}
        with pytest.raises(UserError, match=f"no '{setting}'"):
            FIGURES["fig20"](dataclasses.replace(study, settings=settings))


def test_looks_are_told_apart():
    assert len({DISTILLED["color"], FACTOR["color"], style.INK}) == 3 and DASHED["linestyle"] != "-"
