"""Every figure of text-to-image on made-up studies of several shapes: what it shows, its files, that nothing overlaps
or is cut off."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from synthetic_study import (
    AWKWARD,
    LONG,
    PAPER_FAMILY,
    STUDY,
    architecture,
    family,
    make_study,
    paper_study,
    settings,
    small_study,
    with_interpolation,
)

from ldmscale.analysis.selection import best_cfg, optimal_cfg, select
from ldmscale.cells.cost import steps_at_cost
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES, save_figure, style
from ldmscale.figures.architecture import groups
from ldmscale.figures.pictures import resized
from ldmscale.models.unet import UNetConfig, skeleton


def four_models():
    """Four models of 512-pixel pictures, three step counts, six guidance weights."""
    models = family(PAPER_FAMILY, 804.3)[2:6]
    return make_study(
        models, (4, 10, 50), (1.5, 2, 3, 4, 6, 8), headline=(50, 6.0), image_size=512, checkpoints=(100, 500)
    )


def long_names():
    """Five models whose names are long."""
    models = [dataclasses.replace(m, name=f"baseline-wide_{m.name}.v2") for m in family(PAPER_FAMILY, 804.3)[:5]]
    return make_study(models, (4, 50), (2, 4), headline=(50, 4.0))


def nine_steps():
    """Nine models, nine step counts, eight guidance weights, FIDs over two orders of magnitude."""
    models = family(PAPER_FAMILY, 804.3)[:9]
    return make_study(
        models, (4, 5, 6, 8, 10, 15, 20, 30, 50), (1.5, 2, 3, 4, 5, 6, 7, 8), headline=(50, 7.0), image_size=64,
        fid_of=lambda model, models, train, steps, cfg, sampler: 4 + 400 / steps + (cfg - 3) ** 2 + 100 * (1 - train),
    )  # fmt: skip


STUDIES = {"small": small_study, "paper": paper_study, "four": four_models, "nine": nine_steps, "named": long_names}
DOWNSTREAM = (
    "fig04",
    "fig05",
    "fig06",
    "fig12",
    "fig13",
    "fig17",
    "fig18",
    "fig19",
    "fig20",
    "dreambooth",
    "fits",
    "validation",
    "latency",
    "families",
)  # in test files of their own
T2I = [figure for figure in FIGURES if figure not in DOWNSTREAM]
GRIDS = ("fig01", "fig07", "fig10", "fig14", "fig15", "fig16", "fig21", "fig22", "fig23", "fig24")


@pytest.fixture(scope="module")
def studies():
    return {name: make() for name, make in STUDIES.items()}


def section(figure: str, study) -> dict:
    """The figure's section of a config."""
    pair = [study.models[1].name, study.models[3].name]
    costs = sorted({6, 3} if len(study.models) < 11 else {6, 12})
    return {
        "fig01": {"experiment": "headline", "prompts": [0, 1, 2, 3, 0, 1, 2]},
        "fig02": {},
        "fig03": {"experiment": "training"},
        "fig07": {"experiment": "grid", "models": pair, "prompt": 1},
        "fig08": {"experiment": "grid", "models": pair},
        "fig09": {"experiment": "grid"},
        "fig10": {"experiment": "same_cost", "rows": [{"cost": c, "prompt": i} for i, c in enumerate(costs)]},
        "fig11": {"experiment": "samplers", "baseline": "grid"},
        "fig14": {"experiment": "headline", "prompts": [0, 1, 2]},
        "fig15": {"experiment": "headline", "prompts": [3], "models": pair},
        "fig16": {"experiment": "headline", "prompts": [3, 1]},
        "fig21": {"experiment": "same_cost", "rows": [{"cost": 6, "prompt": i} for i in (1, 2)]},
        "fig22": {"experiment": "same_cost", "rows": [{"cost": 6, "prompt": 0}]},
        "fig23": {"experiment": "same_cost", "rows": [{"cost": 6, "prompt": i} for i in (0, 3)]},
        "fig24": {"experiment": "interpolation", "pair": 0},
    }[figure]


def drawn(figure: str, study, **changes):
    study = settings(study, **{**section(figure, study), **changes})
    if figure == "fig02":
        study = dataclasses.replace(study, architecture=architecture())
    if figure == "fig24":
        study = with_interpolation(study, [(AWKWARD, LONG)])
    return FIGURES[figure](study)


def rendered(fig):
    """Lay the figure out, any warning (a layout that collapsed, a missing glyph) being an error."""
    canvas = FigureCanvasAgg(fig)
    with warnings.catch_warnings(), style.style():
        warnings.simplefilter("error")
        canvas.draw()
    return canvas.get_renderer()


def visible_texts(fig) -> list[Text]:
    """The texts that the figure shows: tick labels outside an axis' limits are not drawn."""
    hidden = set()
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                inside = low - 1e-9 <= tick.get_loc() <= high + 1e-9
                hidden |= {id(label) for label in (tick.label1, tick.label2) if not inside}
        if not ax.axison:
            hidden |= {id(text) for axis in (ax.xaxis, ax.yaxis) for text in axis.findobj(Text)}
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]


def overlap(a, b) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return min(width, height)


DRAWN = [
    *itertools.product(("small", "paper"), [f for f in T2I if f not in ("fig15", "fig16", "fig22", "fig23")]),
    *itertools.product(("four", "nine"), ("fig03", "fig07", "fig08", "fig09", "fig11", "fig14")),
    *itertools.product(("named",), ("fig03", "fig07", "fig08", "fig10")),
]


def readable_texts(fig, renderer) -> list[tuple[Text, Bbox]]:
    """The figure's texts and where they lie, once none is cut off, overlaps another or is read as mathematics."""
    texts = [(t, t.get_window_extent(renderer)) for t in visible_texts(fig)]
    for text, box in texts:
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= fig.bbox.x1 + 0.5 and box.y1 <= fig.bbox.y1 + 0.5
        assert inside, f"{text.get_text()!r} is cut off"
        assert not text.get_parse_math()
    for (a, box_a), (b, box_b) in itertools.combinations(texts, 2):
        assert overlap(box_a, box_b) < 1.0, f"{a.get_text()!r} overlaps {b.get_text()!r}"
    return texts


@pytest.mark.parametrize("name,figure", DRAWN)
def test_nothing_overlaps_or_is_cut_off(name, figure, studies):
    fig = drawn(figure, studies[name])
    renderer = rendered(fig)
    texts = readable_texts(fig, renderer)
    panels = [ax for ax in fig.axes if ax.axison and ax.get_frame_on()]
    for legend in fig.legends:
        assert all(overlap(legend.get_window_extent(renderer), ax.get_tightbbox(renderer)) <= 0 for ax in panels)
    if figure in GRIDS:
        pictures = [ax.get_window_extent(renderer) for ax in fig.axes if ax.images]
        assert all(overlap(a, b) <= 0 for a, b in itertools.combinations(pictures, 2))
        assert all(overlap(box, picture) < 0.5 for _, box in texts for picture in pictures)


@pytest.mark.parametrize("figure", T2I)
def test_caption_and_text_are_literal(figure, studies):
    fig = drawn(figure, studies["small"])
    with style.style():  # as save_figure does: matplotlib makes ticks when they are first asked for
        texts = fig.findobj(Text)
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts)
    lines = [" ".join(text.get_text().split()) for text in texts]
    caption = next(line for line in lines if line.startswith("Study"))
    assert STUDY.name in caption and STUDY.data in caption
    if figure in ("fig03", "fig08", "fig09", "fig11"):
        assert STUDY.fid_features in caption and "n = 256" in caption
    if figure in ("fig01", "fig07", "fig14", "fig16", "fig21"):
        assert f"“{AWKWARD}”" in lines


def test_files_are_the_same_every_time(tmp_path, studies):
    files = []
    for i, size in enumerate((8.0, 30.0)):
        with mpl.rc_context(
            {"font.size": size, "axes.grid": False, "axes.facecolor": "red" if i else "white", "lines.linewidth": 9}
        ):  # a user's own settings
            save_figure(drawn("fig03", studies["small"]), tmp_path / f"{i}.pdf", tmp_path / f"{i}.png", 80)
        files.append([(tmp_path / f"{i}.{ending}").read_bytes() for ending in ("pdf", "png")])
    assert files[0] == files[1]
    assert b"CreationDate" not in files[0][0] and b"Software" not in files[0][1]
    assert files[0][0].startswith(b"%PDF") and files[0][1][16:20] == (80 * 7.2).__ceil__().to_bytes(4)


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_fig03_draws_every_checkpoint(studies):
    study = studies["small"]
    left, right = drawn("fig03", study).axes
    rows = study.scores[(study.scores["split"] == "heldout")].set_index("cell")
    for ax, metric in ((left, "fid"), (right, "clip")):
        assert ax.get_xscale() == "log" and len(ax.lines) == 5
        for line, model in zip(ax.lines, study.models, strict=True):
            mine = rows.loc[[c.path for c in study.experiments["training"] if c.model == model.name]]
            assert line.get_xdata().tolist() == [model.gflops * step for step in (250, 500, 1000, 2000)]
            assert line.get_ydata().tolist() == mine[metric].tolist()


def test_fig08_shows_each_cfg_the_optimum_and_the_map(studies):
    study = studies["small"]
    left, _, heat = drawn("fig08", study).axes
    rows = select(study.scores, study.experiments["grid"])
    best = best_cfg(rows)
    assert len(left.lines) == 4 + 1  # four guidance weights and the optimum
    mine = best[best["model"] == study.models[1].name].sort_values("steps")
    assert left.lines[-1].get_ydata().tolist() == mine["fid"].tolist()
    matrix = optimal_cfg(rows)
    assert [t.get_text() for t in heat.texts] == [f"{v:g}" for v in matrix.to_numpy().ravel()]
    assert [t.get_text() for t in heat.get_xticklabels()] == [m.name for m in study.models]
    with pytest.raises(UserError, match="two models"):
        drawn("fig08", study, models=["f8"])


def test_fig09_cost_is_steps_times_norm_cost(studies):
    study = studies["small"]
    left, right, strip = drawn("fig09", study).axes
    for line, model in zip(left.lines, study.models, strict=True):
        np.testing.assert_allclose(line.get_ydata(), model.norm_cost * np.array([2, 4, 8, 20, 40]))
    assert len(right.lines) == 5 and strip.patches
    # The strip begins with the smallest model, the only one at the least cost, and ends with the largest.
    looks = style.model_styles(study.models)
    ends = [strip.patches[i].get_facecolor()[:3] for i in (0, -1)]
    assert ends == [looks["f8"]["color"], looks["f32"]["color"]]


def test_fig09_shows_the_models_asked_for(studies):
    left, right, _ = drawn("fig09", studies["small"], models=["f8", "f24"]).axes
    assert len(left.lines) == len(right.lines) == 2
    whole = drawn("fig09", studies["small"]).axes[1]
    assert right.lines[1].get_color() == whole.lines[3].get_color()  # a model has one colour in all figures


def test_fig11_keeps_to_the_steps_asked_for(studies):
    study = studies["small"]
    left, right = drawn("fig11", study, steps=8).axes
    assert len(left.lines) == len(right.lines) == 2 * 5
    assert {len(line.get_xdata()) for line in right.lines} == {3}  # 2, 4 and 8 steps
    assert {len(line.get_xdata()) for line in left.lines} == {5}
    with pytest.raises(UserError, match="no dpmpp2m or DDIM cells of 1 steps"):
        drawn("fig11", study, steps=1)


def test_wide_fid_ranges_get_a_log_axis(studies):
    assert drawn("fig03", studies["nine"]).axes[0].get_yscale() == "linear"
    assert drawn("fig09", studies["nine"]).axes[1].get_yscale() == "log"


# ---- grids ----------------------------------------------------------------------------------------------------------


def pictures(fig) -> list[np.ndarray]:
    return [ax.images[0].get_array() for ax in fig.axes if ax.images]


def test_sample_grid_shows_the_right_pictures(studies):
    study = studies["small"]
    fig = drawn("fig14", study)
    shown = pictures(fig)
    cells = [next(c for c in study.experiments["headline"] if c.model == m.name) for m in study.models]
    expected = [study.previews(cell)[i] for i in (0, 1, 2) for cell in cells]
    assert len(shown) == len(expected)
    for got, want in zip(shown, expected, strict=True):
        factor = got.shape[0] // want.shape[0]
        np.testing.assert_array_equal(got[::factor, ::factor], want)


def test_same_cost_grid_says_the_steps(studies):
    study = studies["paper"]
    fig = drawn("fig10", study)
    texts = [text.get_text() for text in fig.findobj(Text)]
    for cost in (6, 12):
        assert f"Sampling cost ≈ {cost}" in texts
        for model in study.models:
            steps = steps_at_cost(cost, model.norm_cost)
            assert f"{steps} steps" in texts or (steps == 1 and "1 step" in texts)
    row = [c for c in study.experiments["same_cost"] if c.steps == steps_at_cost(6, study.models[0].norm_cost)]
    small = study.previews(next(c for c in row if c.model == "39M"))[0]
    factor = pictures(fig)[0].shape[0] // 32
    np.testing.assert_array_equal(pictures(fig)[0][::factor, ::factor], small)
    header = [text.get_text() for text in drawn("fig22", study).findobj(Text)]
    assert "39M\n91 steps" in header and "5B\n1 step" in header


def test_fig07_is_models_by_cfg(studies):
    study = studies["small"]
    fig = drawn("fig07", study, steps=8)
    cells = [c for c in study.experiments["grid"] if c.steps == 8 and c.model in ("f12", "f24")]
    assert len(pictures(fig)) == len(cells) == 8
    factor = pictures(fig)[0].shape[0] // 32
    np.testing.assert_array_equal(pictures(fig)[-1][::factor, ::factor], study.previews(cells[-1])[1])


@pytest.mark.parametrize("size,pixels", [(32, 300), (64, 300), (200, 300), (512, 300), (300, 300), (8, 9)])
def test_resized_keeps_pixels_square(size, pixels):
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = resized(picture, pixels)
    assert out.dtype == np.uint8 and out.shape[0] == out.shape[1] >= pixels
    if 2 * size <= pixels:
        factor = out.shape[0] // size
        np.testing.assert_array_equal(out, np.kron(picture, np.ones((factor, factor, 1), np.uint8)))
    else:
        assert out.shape[0] == pixels


def test_bad_settings_are_named(studies):
    study = studies["small"]
    with pytest.raises(UserError, match="'f99', which its experiment lacks"):
        drawn("fig14", study, models=["f99"])
    with pytest.raises(UserError, match="'headlin', which is not among the experiments"):
        drawn("fig14", study, experiment="headlin")
    with pytest.raises(UserError, match="gallery prompt 4, but the gallery has 4"):
        drawn("fig14", study, prompts=[4])
    with pytest.raises(UserError, match="one cell for cost 5"):
        drawn("fig22", study, rows=[{"cost": 5, "prompt": 0}])
    with pytest.raises(UserError, match="no 'rows'"):
        FIGURES["fig22"](settings(study, experiment="same_cost"))
    with pytest.raises(UserError, match="needs the architecture"):
        FIGURES["fig02"](study)
    short = dataclasses.replace(study, previews=lambda cell: study.previews(cell)[:2])
    with pytest.raises(UserError, match=r"previews of task=t2i/model=f8/.* \[2, 32, 32, 3\]"):
        drawn("fig14", short)


# ---- architecture ---------------------------------------------------------------------------------------------------

SHAPES = [
    (UNetConfig(320), 64),
    (UNetConfig(8, (1, 2, 4), 1, (True, True, False), 4, 4, 64), 8),
    (UNetConfig(32, (1, 2), 3, (False, False), 4, 4, 64), 16),
    (UNetConfig(32, (1,), 1, (True,), 4, 4, 64), 9),
]


@pytest.mark.parametrize("config,size", SHAPES)
def test_groups_hold_every_block_of_the_network(config, size):
    blocks = skeleton(config, size)
    parts = groups(blocks)
    assert [block for part in parts for block in part.blocks] == blocks
    levels, n = len(config.channel_mult), config.blocks_per_level
    resnets = [(p.phase, p.level, sum(b["kind"] == "resnet" for b in p.blocks)) for p in parts]
    down = [("down", level, n) for level in range(levels)]
    up = [("up", level, n + 1) for level in reversed(range(levels))]
    assert resnets == [*down, ("middle", levels - 1, 2), *up]


@pytest.mark.parametrize("config,size", SHAPES)
def test_fig02_shows_every_shape(config, size, studies):
    plan = dataclasses.replace(architecture(), unet=config, latent_size=size, name="a_model")
    fig = FIGURES["fig02"](dataclasses.replace(studies["small"], architecture=plan))
    rendered(fig)
    texts = [text.get_text() for text in fig.findobj(Text)]
    for level, channels in enumerate(config.widths):
        resolution = math.ceil(size / 2**level)
        assert f"{resolution}×{resolution}\n{channels}" in texts
    assert f"77×{config.context_width}" in texts and "U-Net a_model" in texts


# ---- text -----------------------------------------------------------------------------------------------------------


@settings_of(max_examples=60, deadline=None)
@given(st.text(st.characters(max_codepoint=0x24F), max_size=150), st.floats(20, 300))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = style.wrap(text, width, 7.0).split("\n")
    assert all(style.text_width(line, 7.0) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(style.one_line(text).split())


def test_long_text_ends_in_an_ellipsis():
    lines = style.wrap(LONG, 200, 7.0, max_lines=3).split("\n")
    assert len(lines) == 3 and lines[-1].endswith("…") and style.text_width(lines[-1], 7.0) <= 200
    assert style.wrap("short", 200, 7.0, max_lines=3) == "short"
