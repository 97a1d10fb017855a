"""Scores and previews turned into the paper's figures and its Table 1. Nothing here trains, samples or scores."""

from ldmscale.figures.architecture import fig02
from ldmscale.figures.data import FigureData
from ldmscale.figures.distilled import fig13, fig19, fig20
from ldmscale.figures.dreambooth import dreambooth_metrics, fig06
from ldmscale.figures.efficiency import fig09
from ldmscale.figures.families import families
from ldmscale.figures.fits import fits
from ldmscale.figures.grids import fig07, same_cost_grid, sample_grid
from ldmscale.figures.guidance import fig08
from ldmscale.figures.interpolation import fig24
from ldmscale.figures.latency import latency
from ldmscale.figures.samplers import fig11
from ldmscale.figures.scaling import fig03
from ldmscale.figures.style import save_figure
from ldmscale.figures.superres import fig04, fig12, fig17, superres_grid
from ldmscale.figures.table import table1, write_table
from ldmscale.figures.validation import validation

FIGURES = {
    "fig01": sample_grid,
    "fig02": fig02,
    "fig03": fig03,
    "fig04": fig04,
    "fig05": superres_grid,
    "fig06": fig06,
    "fig07": fig07,
    "fig08": fig08,
    "fig09": fig09,
    "fig10": same_cost_grid,
    "fig11": fig11,
    "fig12": fig12,
    "fig13": fig13,
    "fig14": sample_grid,
    "fig15": sample_grid,
    "fig16": sample_grid,
    "fig17": fig17,
    "fig18": superres_grid,
    "fig19": fig19,
    "fig20": fig20,
    "fig21": same_cost_grid,
    "fig22": same_cost_grid,
    "fig23": same_cost_grid,
    "fig24": fig24,
    "dreambooth": dreambooth_metrics,
    "latency": latency,
    "families": families,
    "fits": fits,
    "validation": validation,
}

__all__ = ["FIGURES", "FigureData", "save_figure", "table1", "write_table"]
