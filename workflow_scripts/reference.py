"""Features of the real tuning and held-out images: FID's, CLIP's embeddings, and DINOv2's where it is given."""

from pathlib import Path

from ldmscale.data.encoded import save_array
from ldmscale.data.records import read_split
from ldmscale.jobs import job
from ldmscale.metrics.dinov2 import dinov2_features
from ldmscale.metrics.features import study_features
from ldmscale.metrics.real import reference_files
from ldmscale.metrics.score import SPLITS
from ldmscale.models.clip import CLIPConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder

with job(snakemake):
    params, data = snakemake.params[0], Path(snakemake.input.data)
    clip = CLIPConfig(**params["clip"])
    read_manifest(data, "data", params["inputs"]["data"])
    weights = load_encoder(snakemake.input.clip, params["inputs"]["clip"], clip)
    features, label = study_features(clip, weights, params["features"]["clip"], params["features"]["inception"])
    dinov2, dinov2_label = dinov2_features(params["dinov2"]["weights"]) if params["dinov2"] else (None, None)
    for split in SPLITS:
        images = read_split(data.parent, split).images
        arrays = [*features(images), *([dinov2(images)] if dinov2 else [])]
        for name, array in zip(reference_files(split, bool(dinov2)), arrays, strict=True):
            save_array(Path(snakemake.output[0]).with_name(name), array)
    write_manifest(snakemake.output[0], "reference", params["digest"], features=label, dinov2=dinov2_label)
