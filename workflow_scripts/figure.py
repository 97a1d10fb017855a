"""Draw one figure."""

from dataclasses import replace
from pathlib import Path

from ldmscale.figures import FIGURES
from ldmscale.figures.load import figure_data
from ldmscale.figures.style import save_figure
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import read_manifest

with job(snakemake):
    params = snakemake.params[0]
    results = Path(snakemake.input.scores).parent
    stages = map(Path, snakemake.input.beside)
    beside = {path.stem: read_manifest(path, path.stem, params["beside"][path.stem]) for path in stages}
    data = figure_data(params, read_scores(snakemake.input.scores, params["scores"]), results, beside)

    def previews(cell):
        # The table has its own digest; the pictures are the cells'.
        read_manifest(results / "cells" / cell.path / "sample.json", "generate", params["drawn"][cell.path])
        return data.previews(cell)

    figure = FIGURES[snakemake.wildcards.figure](replace(data, previews=previews))
    save_figure(figure, snakemake.output.pdf, snakemake.output.png, params["dpi"], params["digest"])
