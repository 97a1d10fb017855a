"""The figures of super-resolution on made-up studies: what they show, what they refuse, and that nothing overlaps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from synthetic_study import PAPER_FAMILY, SMALL_FAMILY, STUDY, family
from test_figures import overlap, readable_texts, rendered

from ldmscale.analysis.intervals import interval
from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.superres import BASELINES, LABEL_GAP, fig04, fig12, fig17, superres_grid

FIGURES = {"fig04": fig04, "fig12": fig12, "fig17": fig17, "fig05": superres_grid}
SECTIONS = {
    "fig04": {"experiment": "training"},
    "fig17": {"experiment": "training"},
    "fig12": {"experiment": "steps"},
    "fig05": {"experiment": "final", "patches": [0, 3, 2]},
}
REPLICATES = 30


def superres_study(
    models,
    *,
    checkpoints=(0, 500, 1000, 2000),
    steps=(4, 10, 20, 50),
    patches=7,
    size=32,
    bicubic=44.0,
    floor=12.0,
    worst=10.0,
    wobble=0.5,
    labels=("LPIPS AlexNet", "Inception-v3 classes"),
) -> FigureData:
    """Made-up scores of super-resolution, better with size, finetuning and steps; ``worst`` is added to FID early on,
    ``wobble`` is the replicates' spread."""
    rng = np.random.default_rng(7)
    experiments = {
        "training": [Cell("superres", m.name, f"superres-{c}", "ddim", steps[-1], 1.0)
                     for m, c in itertools.product(models, checkpoints)],
        "steps": [Cell("superres", m.name, f"superres-{checkpoints[-1]}", "ddim", s, 1.0)
                  for m, s in itertools.product(models, steps)],
    }  # fmt: skip
    experiments["final"] = [c for c in experiments["training"] if c.train_step == checkpoints[-1]]
    experiments["both"] = [*experiments["training"], *experiments["steps"]]
    by_name = {m.name: (rank, m) for rank, m in enumerate(models)}
    rows = []
    for cell in dict.fromkeys(experiments["both"]):
        rank, model = by_name[cell.model]
        left = 1 - checkpoints.index(cell.train_step) / (len(checkpoints) - 1)
        fid = 30 - 8 * rank / len(models) + worst * left**3 + 30 / cell.steps + rng.normal(scale=0.1)
        scores = {"fid": fid, "perceptual": 0.25 + fid / 300, "is1": 9 - fid / 10}
        reps = {m: v + wobble * v / fid * rng.normal(size=REPLICATES) for m, v in scores.items()}
        rows.append(
            {
                "cell": cell.path, **dataclasses.asdict(cell), "train_step": cell.train_step,
                "filters": model.filters, "params": model.params, "gflops": model.gflops, "norm_cost": model.norm_cost,
                "split": "superres", "n": 1500, "n_reference": 1500, "evaluations": cell.steps,
                "cost": model.norm_cost * cell.steps, "train_gflops": model.gflops * cell.train_step,
                **scores, "is10": scores["is1"] - 0.4, "is10_std": 0.1,
                "fid_features": STUDY.fid_features, "perceptual_features": labels[0], "is_features": labels[1],
                "fid_reps": reps["fid"].tolist(), "perceptual_reps": reps["perceptual"].tolist(),
                "is_reps": reps["is1"].tolist(), "clip": None,
            }
        )  # fmt: skip
    # What else a table holds, with the columns that it alone has.
    other = Cell("t2i", models[0].name, "pretrain-9", "ddim", 4, 2.0)
    rows.append({**rows[0], **dataclasses.asdict(other), "cell": other.path, "split": "heldout", "is1": None,
                 "perceptual_reps": None, "is_reps": None, "clip": 0.3, "clip_reps": [0.3] * REPLICATES})  # fmt: skip
    baselines = [
        {"baseline": name, "fid": fid, "perceptual": 0.25 + fid / 300, "is1": 9 - fid / 10}
        for name, fid in (("reconstruction", floor), ("bicubic", bicubic))
    ]

    def images(*key: int, side: int = size) -> np.ndarray:
        draw = np.random.default_rng(key)
        coarse = draw.integers(0, 256, (patches, 4, 4, 3), dtype=np.uint8)
        return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)

    arrays = {"superres/hr": images(1), "superres/reconstruction": images(2), "superres/lr": images(3, side=size // 4)}
    return FigureData(
        pd.DataFrame(rows), experiments, {}, lambda cell: images(*cell.path.encode()), [], STUDY, models,
        arrays=arrays.__getitem__, baselines=baselines,
    )  # fmt: skip


def paper():
    """Eleven models; the encoders' labels are the longest."""
    label = "OpenCLIP ViT-H/14 trained on LAION-2B image features, 1 - cosine"
    return superres_study(
        family(PAPER_FAMILY, 804.3), checkpoints=(0, 10_000, 30_000, 60_000, 130_000), steps=(4, 6, 8, 10, 20, 50, 250),
        labels=(label, "OpenCLIP ViT-H/14 trained on LAION-2B, zero-shot over 1,000 captions"),
    )  # fmt: skip


def two():
    """Two models whose names are long, one checkpoint, two step counts; both baselines are worth the same."""
    models = [dataclasses.replace(m, name=f"baseline-wide_{m.name}.v2") for m in family(PAPER_FAMILY, 804.3)[:2]]
    return superres_study(models, checkpoints=(0, 500), steps=(4, 50), bicubic=12.0, floor=12.0)


def extreme():
    """FIDs over two orders of magnitude with whiskers beyond zero, and baselines far from them."""
    models = family(PAPER_FAMILY, 804.3)[:9]
    return superres_study(models, checkpoints=(0, 1, 5, 5000), worst=1800.0, wobble=60.0, floor=0.0002, bicubic=31.0)


def small():
    return superres_study(family(SMALL_FAMILY, 0.0493))


STUDIES = {"small": small, "paper": paper, "two": two, "extreme": extreme}


@pytest.fixture(scope="module")
def studies():
    return {name: make() for name, make in STUDIES.items()}


def drawn(figure: str, study: FigureData, **changes):
    return FIGURES[figure](dataclasses.replace(study, settings={**SECTIONS[figure], **changes}))


def texts_of(fig) -> list[str]:
    with style.style():
        return [" ".join(t.get_text().split()) for t in fig.findobj(Text)]


def caption(fig) -> str:
    return next(text for text in texts_of(fig) if text.startswith("Study"))


@pytest.mark.parametrize("name,figure", [*itertools.product(STUDIES, ("fig04", "fig12", "fig05")), ("paper", "fig17")])
def test_nothing_overlaps_or_is_cut_off(name, figure, studies):
    fig = drawn(figure, studies[name])
    renderer = rendered(fig)
    texts = readable_texts(fig, renderer)
    panels = [ax for ax in fig.axes if ax.axison and ax.get_frame_on()]
    for ax in panels:  # the names of the baselines stand beside the curves, not on them
        assert all(overlap(t.get_window_extent(renderer), ax.get_window_extent(renderer)) <= 0 for t in ax.texts)
    for legend in fig.legends:
        assert all(overlap(legend.get_window_extent(renderer), ax.get_tightbbox(renderer)) <= 0 for ax in panels)
    pictures = [ax.get_window_extent(renderer) for ax in fig.axes if ax.images]
    assert all(overlap(a, b) <= 0 for a, b in itertools.combinations(pictures, 2))
    assert all(overlap(box, picture) < 0.5 for _, box in texts for picture in pictures)


# ---- curves ---------------------------------------------------------------------------------------------------------


def split_lines(ax) -> tuple[list, dict[str, float]]:
    """The panel's curves, and the heights of its baselines by key."""
    keys = {baseline.key for baseline in BASELINES}
    baselines = [line for line in ax.lines if line.get_label() in keys]
    for line in baselines:
        assert len(set(line.get_ydata())) == 1 and list(line.get_xdata()) == [0, 1]  # across the panel
        assert line.get_linestyle() == "--"
    heights = {line.get_label(): line.get_ydata()[0] for line in baselines}
    return [line for line in ax.lines if line not in baselines], heights


@pytest.mark.parametrize("figure,metrics", [("fig04", ("fid", "perceptual")), ("fig17", ("is1", "fid"))])
def test_finetuning_curves_are_the_table(figure, metrics, studies):
    study = studies["small"]
    fig = drawn(figure, study)
    rows = study.scores.set_index("cell")
    looks = style.model_styles(study.models)
    for ax, metric in zip(fig.axes, metrics, strict=True):
        curves, heights = split_lines(ax)
        assert ax.get_xscale() == "log" and len(curves) == 5
        low, high = ax.get_ylim()
        for line, whiskers, model in zip(curves, ax.collections, study.models, strict=True):
            mine = rows.loc[[c.path for c in study.experiments["training"] if c.model == model.name][1:]]
            assert line.get_xdata().tolist() == [model.gflops * step for step in (500, 1000, 2000)]
            assert line.get_ydata().tolist() == mine[metric].tolist()
            assert line.get_color() == looks[model.name]["color"]
            reps = mine["is_reps" if metric == "is1" else f"{metric}_reps"]
            limits = [interval(v, np.array(r)) for v, r in zip(mine[metric], reps, strict=True)]
            segments = [tuple(segment[:, 1]) for segment in whiskers.get_segments()]
            np.testing.assert_allclose(segments, limits)
            assert low < np.min(limits) and np.max(limits) < high
        assert heights == {row["baseline"]: row[metric] for row in study.baselines}
        assert [t.get_text().split()[-1] for t in ax.texts] == [f"{v:.3g}" for v in sorted(heights.values())]
    assert [ax.get_ylabel().split("(")[0].strip() for ax in fig.axes] == [
        {"fid": "FID", "perceptual": "LPIPS AlexNet", "is1": "Inception score"}[m] for m in metrics
    ]


def test_captions_say_what_the_axes_cannot(studies):
    study = studies["small"]
    rows = study.scores[study.scores["task"] == "superres"]
    before = rows[rows["train_step"] == 0]
    text = caption(drawn("fig04", study))
    for metric, name in (("fid", "FID"), ("perceptual", "perceptual distance")):
        assert f"{name} {before[metric].min():.3g} to {before[metric].max():.3g}" in text
    assert STUDY.name in text and f"FID on {STUDY.fid_features}, n = 1,500 patches" in text
    assert "50-step DDIM, no guidance" in text and "over patches" in text and "prompts" not in text
    later = dataclasses.replace(
        study, experiments={"training": [c for c in study.experiments["training"] if c.train_step]}
    )
    assert "Before finetuning" not in caption(drawn("fig04", later))
    done = rows[(rows["train_step"] > 0) & (rows["steps"] == 50)]
    text = caption(drawn("fig17", study))
    assert f"10 splits: {done['is10'].min():.3g} to {done['is10'].max():.3g} instead of" in text
    assert "by Inception-v3 classes, 1 split" in text
    one = dataclasses.replace(study, scores=study.scores.assign(is10=None))
    assert "10 splits" not in caption(drawn("fig17", one))


def test_fig12_splits_the_steps(studies):
    study = studies["small"]
    rows = study.scores.set_index("cell")
    for split, few in ((20, (4, 10, 20)), (5, (4,))):
        left, right = drawn("fig12", study, split=split).axes
        for ax, steps in ((left, few), (right, tuple(s for s in (4, 10, 20, 50) if s not in few))):
            curves, _ = split_lines(ax)
            for line, model in zip(curves, study.models, strict=True):
                cells = [c for c in study.experiments["steps"] if c.model == model.name and c.steps in steps]
                np.testing.assert_allclose(line.get_xdata(), model.norm_cost * np.array(steps))
                assert line.get_ydata().tolist() == rows.loc[[c.path for c in cells], "fid"].tolist()
        assert [ax.get_title("left") for ax in (left, right)] == [f"At most {split} steps", f"More than {split} steps"]
    assert drawn("fig12", study).axes[0].get_title("left") == "At most 20 steps"
    assert "after 2,000 iterations of finetuning" in caption(drawn("fig12", study))


def test_far_baselines_go_to_the_caption():
    near = superres_study(family(SMALL_FAMILY, 0.0493), floor=15.0, bicubic=60.0)
    fig = drawn("fig04", near)
    values = [v for line in split_lines(fig.axes[0])[0] for v in line.get_ydata()]
    low, high = fig.axes[0].get_ylim()
    assert (max(values) - min(values)) / (high - low) > 0.3  # the curves keep their part of the height
    assert split_lines(fig.axes[0])[1] == {"reconstruction": 15.0}  # the nearer one
    text = caption(fig)
    assert "bicubic upsampling, FID 60" in text and "own reconstruction, FID" not in text
    text = caption(drawn("fig12", near))
    assert "bicubic upsampling, FID 60. Whiskers" in text  # out of both panels, said once
    wide = superres_study(family(SMALL_FAMILY, 0.0493))
    assert "bicubic upsampling, FID 44 (more than 20 steps)" in caption(drawn("fig12", wide))


def test_wide_ranges_get_a_log_axis_and_keep_it_finite(studies):
    study = studies["extreme"]
    fid, perceptual = drawn("fig04", study).axes
    assert fid.get_yscale() == "log" and perceptual.get_yscale() == "linear"
    assert fid.get_ylim()[0] > 1 and split_lines(fid)[1] == {"bicubic": 31.0}
    assert "own reconstruction, FID 0.0002" in caption(drawn("fig04", study))
    assert drawn("fig04", studies["small"]).axes[0].get_yscale() == "linear"


def test_near_baselines_are_told_apart(studies):
    right = drawn("fig04", studies["two"]).axes[1]
    assert split_lines(right)[1] == {"bicubic": 0.29, "reconstruction": 0.29}
    heights = sorted(t.get_position()[1] for t in right.texts)
    assert heights[1] - heights[0] == pytest.approx(LABEL_GAP) and heights[0] > 0 and heights[1] < 1


def test_the_models_asked_for_in_their_colours(studies):
    study = studies["small"]
    some, whole = (split_lines(drawn("fig04", study, **s).axes[0])[0] for s in ({"models": ["f8", "f24"]}, {}))
    assert [line.get_color() for line in some] == [whole[0].get_color(), whole[3].get_color()]


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_grid_shows_patches_from_low_resolution_to_original(studies):
    study = studies["small"]
    fig = drawn("fig05", study, patches=[5, 0], models=["f32", "f8"])
    shown = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    lr, rec, hr = (study.arrays(f"superres/{name}") for name in ("lr", "reconstruction", "hr"))
    cells = [next(c for c in study.experiments["final"] if c.model == name) for name in ("f8", "f32")]
    want = []
    for i in (5, 0):
        low = np.kron(lr[i], np.ones((4, 4, 1), np.uint8))
        want += [low, *(study.previews(cell)[i] for cell in cells), rec[i], hr[i]]
    assert len(shown) == len(want) == 10
    for got, expected in zip(shown, want, strict=True):
        factor = got.shape[0] // 32
        np.testing.assert_array_equal(got[::factor, ::factor], expected)
    texts = [text.get_text() for text in fig.findobj(Text)]
    heads = [texts.index(head) for head in ("LR\n8 px", "f8\n61k", "f32\n905k", "autoencoder", "HR\n32 px")]
    assert heads == sorted(heads)
    text = caption(fig)
    assert "4× super-resolution, DDIM, 50 steps" in text and "patches 5, 0 of 7" in text and "not picked" in text


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_what_a_figure_cannot_draw_is_refused(studies):
    study = studies["small"]
    for figure in FIGURES:
        with pytest.raises(UserError, match="no 'experiment'"):
            FIGURES[figure](study)
        with pytest.raises(UserError, match="'f99', which its experiment lacks"):
            drawn(figure, study, models=["f99"])
    with pytest.raises(UserError, match="fig04 needs one steps, its experiment has 4: 4, 10, ..."):
        drawn("fig04", study, experiment="steps")
    with pytest.raises(UserError, match="fig17 needs one steps"):
        drawn("fig17", study, experiment="both")
    with pytest.raises(UserError, match="fig12 draws one weights a model, but its experiment has 4 of f12"):
        drawn("fig12", study, experiment="both")
    for split in (3, 50):
        with pytest.raises(UserError, match=f"at {split} steps, which leaves a panel empty .it has 4 to 50 steps"):
            drawn("fig12", study, split=split)
    untrained = [c for c in study.experiments["training"] if c.train_step == 0 or c.model != "f16"]
    study = dataclasses.replace(study, experiments={"training": untrained})
    with pytest.raises(UserError, match="no finetuned weights of f16"):
        drawn("fig04", study)


def test_broken_scores_are_refused(studies):
    study = studies["small"]
    cell = study.experiments["training"][1]
    scores = study.scores.copy()
    scores.loc[scores["cell"] == cell.path, "perceptual"] = np.nan
    with pytest.raises(UserError, match=f"fig04 draws the perceptual of {cell.path}"):
        drawn("fig04", dataclasses.replace(study, scores=scores))
    scores = study.scores.copy()
    scores.loc[scores["cell"] == cell.path, "perceptual_features"] = "LPIPS VGG"
    with pytest.raises(UserError, match="one perceptual_features, its experiment has 2: LPIPS"):
        drawn("fig04", dataclasses.replace(study, scores=scores))
    for baselines in (study.baselines[:1], [study.baselines[0], {**study.baselines[1], "fid": None}]):
        with pytest.raises(UserError, match="the fid of the baseline 'bicubic'"):
            drawn("fig12", dataclasses.replace(study, baselines=baselines))
    wrong = [Cell("t2i", study.models[0].name, "pretrain-9", "ddim", 4, 2.0)]
    for figure in FIGURES:
        with pytest.raises(UserError, match="super-resolution, its experiment holds task=t2i"):
            drawn(figure, dataclasses.replace(study, experiments={SECTIONS[figure]["experiment"]: wrong}))


def test_grids_that_cannot_be_drawn_are_refused(studies):
    study = studies["small"]
    cells = study.experiments["final"]
    two = dataclasses.replace(study, experiments={"final": [*cells, cells[0].at(sampler="ddpm")]})
    with pytest.raises(UserError, match=f"one cell a model, its experiment has several of {cells[0].model} in"):
        drawn("fig05", two)
    with pytest.raises(UserError, match="shows 7 steps, which f8 lacks"):
        drawn("fig05", study, experiment="steps", steps=7)
    for patch in (7, -1):
        with pytest.raises(UserError, match=f"shows patch {patch}, but the study has 7"):
            drawn("fig05", study, patches=[0, patch])
    with pytest.raises(UserError, match="shows no patch"):
        drawn("fig05", study, patches=[])
    with pytest.raises(UserError, match="no 'patches'"):
        FIGURES["fig05"](dataclasses.replace(study, settings={"experiment": "final"}))
    with pytest.raises(UserError, match="needs the evaluation patches"):
        drawn("fig05", dataclasses.replace(study, arrays=None))
    short = dataclasses.replace(study, previews=lambda cell: study.previews(cell)[:3])
    with pytest.raises(UserError, match=r"images of task=superres/model=f8/.* \[3, 32, 32, 3\]"):
        drawn("fig05", short)

    def cropped(name: str) -> np.ndarray:
        return study.arrays(name)[:, :7] if name == "superres/lr" else study.arrays(name)

    with pytest.raises(UserError, match=r"superres/lr is \[7, 7, 8, 3\]"):
        drawn("fig05", dataclasses.replace(study, arrays=cropped))
