"""The way between two prompts: its bend on made similarities where it is known, and the figure that shows it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_study import small_study

from ldmscale.analysis.interpolation import way
from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES

ALPHAS = [0.0, 1.0, 0.2, 0.8, 0.5]  # in no order


def rows_of(progress, noises=40, noise=0.0, span=0.2, pair=0, **columns):
    """Rows of one cell whose similarity difference goes from -span/2 to span/2 by ``progress(alpha)``."""
    draw = noise * np.random.default_rng(0).normal(size=(len(ALPHAS), noises))
    rows = []
    for alpha, wobble in zip(ALPHAS, draw, strict=True):
        half = span * (progress(alpha) - 0.5) / 2
        rows.append({"alpha": alpha, "pair": pair, "clip_a": (0.3 + half + wobble).tolist(),
                     "clip_b": [0.3 - half] * noises, **columns})  # fmt: skip
    return pd.DataFrame(rows)


def test_a_straight_way_has_no_bend():
    measured = way(rows_of(lambda a: a))
    assert measured.alphas.tolist() == [1.0, 0.8, 0.5, 0.2, 0.0]
    assert measured.bend == pytest.approx(0) and measured.low == pytest.approx(0) and measured.high == pytest.approx(0)
    np.testing.assert_allclose(measured.clip_a, [0.35, 0.33, 0.3, 0.27, 0.25])
    np.testing.assert_allclose(measured.clip_b, [0.25, 0.27, 0.3, 0.33, 0.35])


@pytest.mark.parametrize(("progress", "bend"), [(lambda a: a**3, 0.5 - 0.5**3), (lambda a: float(a > 0.6), 0.5)])
def test_the_bend_is_the_largest_distance_from_the_straight_line(progress, bend):
    assert way(rows_of(progress)).bend == pytest.approx(bend)
    noisy = way(rows_of(progress, noise=0.02))
    assert noisy.low < bend < noisy.high and noisy.high - noisy.low < 0.4


def test_images_that_do_not_tell_the_prompts_apart_have_no_bend():
    measured = way(rows_of(lambda a: a, noise=0.05, span=0.001))
    assert np.isnan([measured.bend, measured.low, measured.high]).all()


@pytest.fixture
def study():
    """A figure's data with an interpolation of two pairs in three models."""
    base = small_study()
    cells = [Cell("interpolation", m.name, "pretrain-800", "ddim", 20, 4.0) for m in base.models[:3]]
    first = base.scores.iloc[0]
    tables = [
        rows_of(lambda a, bent=bent: a**bent, pair=pair, noise=0.01).assign(
            cell=cell.path, model=cell.model, split="interpolation", clip_features=first["clip_features"],
            fid_features=first["fid_features"], n=40,
        )
        for bent, cell in enumerate(cells, 1)
        for pair in (0, 1)
    ]  # fmt: skip
    draw = np.random.default_rng(0).integers(0, 256, (2 * len(ALPHAS) * 40, 8, 8, 3), np.uint8)
    return dataclasses.replace(
        base,
        scores=pd.concat([base.scores, *tables], ignore_index=True),
        experiments={**base.experiments, "interpolation": cells},
        settings={"experiment": "interpolation", "pair": 1},
        previews=lambda cell: draw,
        interpolation={"pairs": [["a", "b"], ["an old computer", "a fancy phone"]], "alphas": ALPHAS, "noises": 40},
    )


def texts(fig):
    FigureCanvasAgg(fig).draw()
    return [t.get_text() for ax in fig.axes for t in ax.texts]


def test_the_figure_shows_each_model_with_its_bend_and_the_similarities(study):
    said = texts(FIGURES["fig24"](study))
    assert [t for t in said if t.startswith("α = ")] == ["α = 1", "α = 0.8", "α = 0.5", "α = 0.2", "α = 0"]
    assert sum(t.startswith("A 0.") and "B 0." in t for t in said) == 15
    bends = [t for t in said if "bend" in t and "\n" in t and not t.startswith("Study")]
    assert sum("bend 0." in t for t in bends) >= 3
    assert any("an old computer" in t and "a fancy phone" in t for t in said)


def test_two_cells_of_a_model_are_refused(study):
    cells = [*study.experiments["interpolation"], study.experiments["interpolation"][0].at(cfg=2.0)]
    with pytest.raises(UserError, match="fig24 needs one cell a model"):
        FIGURES["fig24"](dataclasses.replace(study, experiments={"interpolation": cells}))
