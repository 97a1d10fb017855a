"""Fit laws of size and training compute to losses and scores, and find where larger models start to win."""

from pathlib import Path

import pandas as pd

from ldmscale.analysis.crossover import COLUMNS
from ldmscale.analysis.fits import FITS, study_fits
from ldmscale.analysis.fits_text import crossover_markdown, fits_markdown
from ldmscale.data.encoded import load_array
from ldmscale.figures.load import experiments_of
from ldmscale.jobs import job
from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import atomic_path, read_manifest, write_manifest

with job(snakemake):
    params, output = snakemake.params[0], snakemake.output
    losses = {}
    for model, digest in params["losses"].items():
        folder = Path(snakemake.input.validation).parent / "models" / model
        made = read_manifest(folder / "validation.json", "validation", digest)
        losses[model] = dict(zip(made["weights"], load_array(folder / "validation.npy"), strict=True))
    scores = read_scores(snakemake.input.scores, params["scores"])
    found = study_fits(scores, experiments_of(params), losses, params["seed"])
    texts = {
        "fits_csv": pd.DataFrame(found["fits"], columns=FITS).to_csv(index=False),
        "fits_md": fits_markdown(found),
        "crossover_csv": pd.DataFrame(found["crossover"], columns=COLUMNS).to_csv(index=False),
        "crossover_md": crossover_markdown(found),
    }
    for name, text in texts.items():
        with atomic_path(output[name]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_manifest(output.fits, "fits", params["digest"], timesteps=made["timesteps"], **found)
