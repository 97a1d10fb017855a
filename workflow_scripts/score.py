"""Features and scores of a job's cells."""

import re
from pathlib import Path

from ldmscale.data.encoded import Prompts, load_array
from ldmscale.jobs import job
from ldmscale.metrics.features import study_features
from ldmscale.metrics.score import SPLITS, Scorer, score
from ldmscale.models.clip import CLIPConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder

with job(snakemake.log[0], snakemake.threads) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    clip = CLIPConfig(**params["clip"])
    weights = load_encoder(snakemake.input.clip, inputs["clip"], clip)
    read_manifest(snakemake.input.prompts, "prompts", inputs["prompts"])
    read_manifest(snakemake.input.reference, "reference", inputs["reference"])
    name = params["features"]["clip"]
    features, label = study_features(clip, weights, name, params["features"]["inception"])
    reference = {s: load_array(Path(snakemake.input.reference).with_name(f"{s}.npy")) for s in SPLITS}
    prompts = Prompts.load(Path(snakemake.input.prompts).parent)
    scorer = Scorer(
        features, label, name, reference, prompts.embeddings, prompts.ends, params["alphas"], params["replicates"],
        params["seed"],
    )  # fmt: skip
    root = Path(re.sub(r"task=.*", "", snakemake.output[0]))
    rows = score(params["cells"], root, scorer, params["keep_images"], say)
    write_manifest(snakemake.output[0], "score", params["digest"], rows=rows)
