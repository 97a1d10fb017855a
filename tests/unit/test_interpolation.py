"""The way between two prompts: its bend on made similarities where it is known, and the figure that shows it."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_study import rows_between, settings, small_study, with_interpolation

from ldmscale.analysis.interpolation import way
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES


def test_a_straight_way_has_no_bend():
    measured = way(rows_between(lambda a: a))
    assert measured.alphas.tolist() == [1.0, 0.8, 0.5, 0.2, 0.0]
    assert measured.bend == pytest.approx(0) and measured.low == pytest.approx(0) and measured.high == pytest.approx(0)
    np.testing.assert_allclose(measured.clip_a, [0.35, 0.33, 0.3, 0.27, 0.25])
    np.testing.assert_allclose(measured.clip_b, [0.25, 0.27, 0.3, 0.33, 0.35])


@pytest.mark.parametrize(("progress", "bend"), [(lambda a: a**3, 0.5 - 0.5**3), (lambda a: float(a > 0.6), 0.5)])
def test_the_bend_is_the_largest_distance_from_the_straight_line(progress, bend):
    assert way(rows_between(progress)).bend == pytest.approx(bend)
    noisy = way(rows_between(progress, noise=0.02))
    assert noisy.low < bend < noisy.high and noisy.high - noisy.low < 0.4


def test_images_that_do_not_tell_the_prompts_apart_have_no_bend():
    measured = way(rows_between(lambda a: a, noise=0.05, span=0.001))
    assert np.isnan([measured.bend, measured.low, measured.high]).all()


@pytest.fixture
def study():
    between = with_interpolation(small_study(), [("a", "b"), ("an old computer", "a fancy phone")])
    return settings(between, experiment="interpolation", pair=1, models=[m.name for m in between.models[:3]])


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
