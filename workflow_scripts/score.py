"""Features and scores of a job's cells."""

import re
from pathlib import Path

from ldmscale.jobs import job
from ldmscale.metrics.score import score
from ldmscale.metrics.scorers import open_scorer
from ldmscale.models.clip import CLIPConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder

with job(snakemake) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    weights = load_encoder(snakemake.input.clip, inputs["clip"], CLIPConfig(**params["clip"]))
    folders = {}
    for path in map(Path, snakemake.input.against):
        read_manifest(path, path.stem, inputs[path.stem])
        folders[path.stem] = path.parent
    root = Path(re.sub(r"task=.*", "", snakemake.output[0]))
    rows = score(params["cells"], root, open_scorer(params, weights, folders), params["keep_images"], say)
    write_manifest(snakemake.output[0], "score", params["digest"], rows=rows)
