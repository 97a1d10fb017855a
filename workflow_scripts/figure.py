"""Draw one figure."""

from pathlib import Path

from ldmscale.figures import FIGURES
from ldmscale.figures.load import figure_data
from ldmscale.figures.style import save_figure
from ldmscale.jobs import job
from ldmscale.metrics.gather import read_scores

with job(snakemake.log[0], snakemake.threads):
    params = snakemake.params[0]
    cells = Path(snakemake.input.scores).parent / "cells"
    data = figure_data(params, read_scores(snakemake.input.scores, params["scores"]), cells)
    figure = FIGURES[snakemake.wildcards.figure](data)
    save_figure(figure, snakemake.output.pdf, snakemake.output.png, params["dpi"])
