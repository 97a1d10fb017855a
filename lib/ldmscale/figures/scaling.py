"""Fig. 3: how FID and CLIP score follow from pretraining compute."""

from __future__ import annotations

from matplotlib.figure import Figure

from ldmscale.analysis.selection import heldout
from ldmscale.analysis.study import SAMPLER_NAMES
from ldmscale.figures import style
from ldmscale.figures.data import FigureData


@style.styled
def fig03(data: FigureData) -> Figure:
    """FID and CLIP score of every checkpoint against the compute spent on it, one curve a model.

    Compute is the paper's axis: GFLOPs of one U-Net evaluation times training iterations.
    """
    models = data.shown(data.cells())
    rows = heldout(data.rows(models=models))
    looks = style.model_styles(data.models)
    fig = style.new_figure(7.2, 3.1)
    for ax, metric in zip(fig.subplots(1, 2), ("fid", "clip"), strict=True):
        for model in models:
            style.curve(ax, rows[rows["model"] == model.name], "train_gflops", metric, **looks[model.name])
        style.log_axis(ax, "x", rows["train_gflops"])
        ax.set_xlabel("Training compute (GFLOPs × iterations)")
    left, right = fig.axes
    style.metric_axis(left, rows["fid"])
    right.set_ylabel("CLIP score  (higher is better)")
    style.side_legend(fig, style.model_handles(models, looks), "Model, parameters")
    first = rows.iloc[0]
    style.add_caption(
        fig,
        f"{style.study_line(data.study, rows)} CLIP score by {data.study.clip_features}. {first.steps}-step "
        f"{SAMPLER_NAMES[first.sampler]}, CFG {first.cfg:g}. {style.WHISKERS}",
    )
    return fig
