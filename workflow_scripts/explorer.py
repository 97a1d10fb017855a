"""Write the page that answers which model to use at a budget."""

from pathlib import Path

from ldmscale.analysis.study import models_of
from ldmscale.data.encoded import load_array
from ldmscale.explorer import explorer_page
from ldmscale.figures.load import study_info
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import atomic_path, read_manifest

with job(snakemake) as say:
    params = snakemake.params[0]
    scores = read_scores(snakemake.input.scores, params["scores"])
    cells = Path(snakemake.input.scores).parent / "cells"

    def previews(cell):
        # The table has its own digest; the pictures are the cells'.
        read_manifest(cells / cell.path / "sample.json", "generate", params["drawn"][cell.path])
        return load_array(cells / cell.path / "gallery.npy")

    page = explorer_page(scores, study_info(params["label"], scores), models_of(scores), params["gallery"], previews)
    with atomic_path(snakemake.output[0]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"{len(page) / 1e6:.1f} MB")
