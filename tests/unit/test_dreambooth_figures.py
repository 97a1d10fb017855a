"""DreamBooth's means over subjects on made tables whose answers are known, and the figures that show them."""

import dataclasses
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from synthetic_dreambooth import IMAGES, REAL, dreambooth_rows, score, with_dreambooth
from synthetic_study import PAPER_FAMILY, STUDY, family, paper_study, settings, small_study

from ldmscale.analysis.dreambooth import MEASURES, by_model, finetuned_minus_before, larger_minus_smaller
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import replicates
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.dreambooth import PANELS, dreambooth_metrics, fig06

MODELS = family(PAPER_FAMILY, 804.3)[:4]
SUBJECTS = list(REAL)

# ---- means and intervals --------------------------------------------------------------------------------------------


def test_means_are_over_prompts_then_subjects():
    rows = dreambooth_rows(MODELS)
    table = by_model(rows.sample(frac=1, random_state=0))
    assert table[["model", "train_step"]].values.tolist() == [[m.name, s] for m in MODELS for s in (0, 100, 200)]
    mine = rows[(rows["model"] == "83M") & (rows["train_step"] == 100)]
    row = table[(table["model"] == "83M") & (table["train_step"] == 100)].iloc[0]
    for measure in MEASURES:
        assert row[measure] == pytest.approx(np.mean([np.mean(v) for v in mine[measure]]))
    assert row["subjects"] == 2 and row["real_dino"] == pytest.approx(0.8) and row["real_clip_i"] == pytest.approx(0.9)
    assert row["params"] == MODELS[1].params and row["subject_features"] == "tiny-clip image features"


def test_a_subject_with_fewer_prompts_counts_as_much():
    rows = dreambooth_rows(MODELS[:1], steps=(200,))
    rows.at[0, "dino"], rows.at[1, "dino"] = [0.0] * 9, [1.0]
    assert by_model(rows.assign(dino=rows["dino"]))["dino"].tolist() == [0.5]


def test_intervals_are_those_of_a_bootstrap_over_prompts():
    """One subject: the interval is as wide as the mean's standard error; several alike subjects that share the luck of
    their prompts are no surer, several of their own luck are."""
    rng = np.random.default_rng(3)
    one = dreambooth_rows(MODELS[:1], SUBJECTS[:1], steps=(200,))
    both = dreambooth_rows(MODELS[:1], steps=(200,))
    values, others = rng.normal(size=(2, 400))

    def width(rows, *lists):
        table = by_model(rows.assign(dino=[v.tolist() for v in lists]))
        low, high = interval(table["dino"].iloc[0], replicates(table, "dino")[0])
        assert low < table["dino"].iloc[0] < high
        return high - low

    alone = width(one, values)
    assert alone == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.12)
    assert width(both, values, values) == pytest.approx(alone)
    assert width(both, values, others) == pytest.approx(alone / np.sqrt(2), rel=0.12)


def test_differences_pair_over_prompts():
    """The luck of the prompts, common to all models, is far larger than the differences; paired, they stay sure."""
    table = by_model(dreambooth_rows(MODELS, luck=0.2, noise=0.001))
    changes = finetuned_minus_before(table, "dino")
    assert [n.label for n in changes] == [m.name for m in MODELS]
    assert all(n.low < n.value < n.high and n.value == pytest.approx(0.1, abs=0.003) for n in changes)
    assert all(n.high - n.low < 0.01 for n in changes)
    last = table[table["train_step"] == 200]
    alone = np.diff(interval(last["dino"].iloc[0], replicates(last, "dino")[0]))[0]
    assert alone > 0.1
    ends, *steps = larger_minus_smaller(last, "dino")
    assert ends.label == "DINO of 223M minus DINO of 39M" and ends.value == pytest.approx(0.09, abs=0.003)
    assert ends.high - ends.low < 0.01
    assert [n.label for n in steps] == [f"DINO of {b} minus DINO of {a}" for a, b in itertools.pairwise(
        m.name for m in MODELS)]  # fmt: skip
    assert larger_minus_smaller(last, "pres")[0].value == pytest.approx(-0.06, abs=0.003)
    assert len(larger_minus_smaller(last[:2], "dino")) == 1 and larger_minus_smaller(last[:1], "dino") == []


def test_a_model_without_step_0_has_no_change():
    rows = dreambooth_rows(MODELS[:2])
    rows = rows[(rows["model"] != "39M") | (rows["train_step"] > 0)]
    assert [n.label for n in finetuned_minus_before(by_model(rows), "dino")] == ["83M"]
    assert finetuned_minus_before(by_model(rows[rows["train_step"] == 0]), "dino") == []


def test_tables_that_cannot_be_compared_are_refused():
    rows = dreambooth_rows(MODELS)
    with pytest.raises(UserError, match="no DreamBooth row for the subject 'dog_2-b' of model 223M after 200 steps"):
        by_model(rows[:-1])
    with pytest.raises(UserError, match="'hat_circle' of model 39M after 0 steps of finetuning twice"):
        by_model(pd.concat([rows, rows[:1]]))
    rows.at[3, "pres"] = rows.at[3, "pres"][:-1]
    with pytest.raises(UserError, match="'dog_2-b' has PRES of 6 prompts or class images in one row.* of 7 in another"):
        by_model(rows)


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies():
    return {"small": with_dreambooth(small_study()), "paper": with_dreambooth(paper_study())}


def grid(study, **changes):
    return fig06(settings(study, **{"experiment": "dreambooth", "subjects": SUBJECTS, "prompt": 1, **changes}))


def metrics(study, **changes):
    return dreambooth_metrics(settings(study, **{"experiment": "dreambooth", **changes}))


def texts(fig) -> list[str]:
    with style.style():
        return [" ".join(t.get_text().split()) for t in fig.findobj(lambda a: hasattr(a, "get_text"))]


def overlap(a, b) -> float:
    return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))


@pytest.mark.parametrize("draw", [grid, metrics])
@pytest.mark.parametrize("name", ["small", "paper"])
def test_nothing_overlaps_or_is_cut_off(name, draw, studies):
    fig = draw(studies[name], **({"prompt": 3} if draw is grid else {}))
    canvas = FigureCanvasAgg(fig)
    with warnings.catch_warnings(), style.style():
        warnings.simplefilter("error")
        canvas.draw()
    renderer = canvas.get_renderer()
    shown = []
    for ax in fig.axes:
        shown += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label] if ax.axison else ax.texts
        legend = ax.get_legend()
        shown += legend.get_texts() if legend else []
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            if ax.axison:
                shown += [t.label1 for t in axis.get_major_ticks() if limits[0] <= t.get_loc() <= limits[1]]
                for end in limits:  # nothing beyond the limits is drawn into the neighbour
                    assert np.isfinite(end)
    shown += [t for legend in fig.legends for t in legend.get_texts()] + ([fig._supxlabel] if fig._supxlabel else [])
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in shown if t.get_visible() and t.get_text().strip()]
    assert len(boxes) > 5
    for text, box in boxes:
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= fig.bbox.x1 + 0.5 and box.y1 <= fig.bbox.y1 + 0.5
        assert inside, f"{text!r} is cut off"
    for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
        assert overlap(box_a, box_b) < 1.0, f"{a!r} overlaps {b!r}"
    pictures = [ax.get_window_extent(renderer) for ax in fig.axes if ax.images]
    assert all(overlap(a, b) <= 0 for a, b in itertools.combinations(pictures, 2))
    assert all(overlap(box, picture) < 0.5 for _, box in boxes for picture in pictures)


def test_fig06_shows_the_subject_and_every_model_at_its_last_checkpoint(studies):
    study = studies["small"]
    fig = grid(study)
    shown = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    expected = []
    for subject in SUBJECTS:
        expected.append(study.arrays(f"dreambooth/{subject}/images")[0])
        for model in study.models:
            name = f"dreambooth_{subject}-200"
            cell = next(c for c in study.experiments["dreambooth"] if c.model == model.name and c.weights == name)
            expected.append(study.previews(cell)[1 * IMAGES])  # the first of prompt 1
    assert len(shown) == len(expected) == 2 * 6
    for got, want in zip(shown, expected, strict=True):
        factor = got.shape[0] // want.shape[0]
        np.testing.assert_array_equal(got[::factor, ::factor], want)
    said = texts(fig)
    assert said.index("A real image") < said.index("f8 61k") < said.index("f32 905k")
    assert "“a circle on $top$ of a <b>mirror</b>”, the circle being the subject hat_circle" in said
    assert "“a dog on $top$ of a <b>mirror</b>”, the dog being the subject dog_2-b" in said
    caption = next(line for line in said if line.startswith("Study"))
    assert STUDY.name in caption and "200 steps" in caption and "20-step DDIM, CFG 4" in caption


def test_fig06_shows_what_is_asked_for(studies):
    fig = grid(studies["small"], models=["f12"], subjects=["dog_2-b"], prompt=4)
    assert sum(bool(ax.images) for ax in fig.axes) == 2
    assert any("a dog alone" in line for line in texts(fig)) and "f8 61k" not in texts(fig)


def test_metrics_draws_the_tables_numbers(studies):
    study = studies["small"]
    fig = metrics(study)
    rows = study.scores[study.scores["task"] == "dreambooth"]
    table = by_model(rows).set_index(["model", "train_step"])
    looks = style.model_styles(study.models)
    for ax, measure in zip(fig.axes, PANELS, strict=False):
        points = {}
        for line in ax.lines:
            if len(line.get_xdata()) == 1 and line.get_marker() != "None":
                filled = line.get_markerfacecolor() != "white"
                model = next(m for m in study.models if looks[m.name]["color"] == to_rgb(line.get_color()))
                assert line.get_xdata()[0] == pytest.approx(model.params, rel=0.04)
                points[model.name, 200 if filled else 0] = line.get_ydata()[0]
        assert points == {key: value for key, value in table[measure].to_dict().items() if key[1] != 100}
        whiskers = [c.get_segments()[0][:, 1].tolist() for c in ax.collections]
        for key, value in points.items():
            low, high = interval(value, table.loc[key, f"{measure}_reps"])
            assert [low, high] in whiskers
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        ceiling = {"dino": 0.8, "clip_i": 0.9}.get(measure)
        assert [line.get_ydata()[0] for line in dashed] == ([pytest.approx(ceiling)] if ceiling else [])
        assert ax.get_title(loc="left") == MEASURES[measure] and ax.get_xscale() == "log"
        assert ("lower" if measure == "pres" else "higher") in ax.get_ylabel()
    labels = [" ".join(ax.get_ylabel().split()) for ax in fig.axes[:5]]
    assert all("stand-in: tiny-clip image features" in labels[i] for i in (0, 3))
    assert "stand-in" not in labels[1] + labels[2] + labels[4] and "LPIPS AlexNet" in labels[4]
    assert "before finetuning" in texts(fig) and not any("one number here" in line for line in texts(fig))


def test_metrics_says_which_networks_measured(studies):
    study = studies["small"]
    scores = study.scores.assign(subject_features="DINO ViT-S/16", diversity_features="tiny-clip, 1 - cosine",
                                 clip_i=study.scores["dino"])  # fmt: skip
    fig = metrics(dataclasses.replace(study, scores=scores))
    labels = [" ".join(ax.get_ylabel().split()) for ax in fig.axes[:5]]
    assert labels[0].startswith("DINO ViT-S/16") and labels[3].startswith("DINO ViT-S/16")
    assert labels[4].startswith("stand-in: tiny-clip, 1 - cosine")
    assert any("one number here" in line for line in texts(fig))


def test_metrics_without_step_0_has_no_open_points(studies):
    study = studies["small"]
    later = [c for c in study.experiments["dreambooth"] if c.train_step]
    fig = metrics(dataclasses.replace(study, experiments={"dreambooth": later}), models=["f8", "f32"])
    assert all(line.get_markerfacecolor() != "white" for ax in fig.axes for line in ax.lines)
    assert "before finetuning" not in texts(fig) and "finetuned" in texts(fig)
    assert sum(len(line.get_xdata()) == 1 for line in fig.axes[0].lines) == 2


def test_bad_settings_are_named(studies):
    study = studies["small"]
    with pytest.raises(UserError, match="no 'experiment'"):
        dreambooth_metrics(settings(study))
    with pytest.raises(UserError, match="no 'subjects'"):
        fig06(settings(study, experiment="dreambooth", prompt=0))
    with pytest.raises(UserError, match="no 'prompt'"):
        fig06(settings(study, experiment="dreambooth", subjects=SUBJECTS))
    with pytest.raises(UserError, match="subject 'cat', which the study lacks: it has hat_circle, dog_2-b"):
        grid(study, subjects=["cat"])
    with pytest.raises(UserError, match="at least one name"):
        grid(study, subjects=[])
    with pytest.raises(UserError, match="prompt 5 of 'hat_circle', which has 5 prompts"):
        grid(study, prompt=5)
    with pytest.raises(UserError, match="'f99', which its experiment lacks"):
        metrics(study, models=["f99"])
    for draw in (grid, metrics):
        with pytest.raises(UserError, match="shows DreamBooth, its experiment holds task=t2i"):
            draw(study, experiment="headline")
    more = [*study.experiments["dreambooth"], study.experiments["dreambooth"][0].at(cfg=7.5)]
    with pytest.raises(UserError, match="one sampler, step count and CFG, its experiment has 2: .*CFG 4, .*CFG 7.5"):
        metrics(dataclasses.replace(study, experiments={"dreambooth": more}))
    only = [c for c in study.experiments["dreambooth"] if c.subject == "hat_circle" or not c.train_step]
    with pytest.raises(UserError, match="'dog_2-b' by model f8, which its experiment has no finetuned cell of"):
        grid(dataclasses.replace(study, experiments={"dreambooth": only}))
    start = [c for c in study.experiments["dreambooth"] if not c.train_step]
    with pytest.raises(UserError, match="f8 at step 0 only"):
        metrics(dataclasses.replace(study, experiments={"dreambooth": start}))
    short = dataclasses.replace(study, previews=lambda cell: study.previews(cell)[:7])
    with pytest.raises(
        UserError, match=r"images of task=dreambooth/model=f8/.* uint8 \[7, 8, 8, 3\].*each of 5 prompts"
    ):
        grid(short)


def test_the_formula_is_what_the_rows_hold():
    exact = by_model(dreambooth_rows(MODELS, noise=0.0, luck=0.0))
    for i, model in enumerate(MODELS):
        for step in (0, 200):
            row = exact[(exact["model"] == model.name) & (exact["train_step"] == step)].iloc[0]
            assert all(row[m] == pytest.approx(score(i, step, m)) for m in MEASURES)
