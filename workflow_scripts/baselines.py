"""Score what needs no model: bicubic upsampling, and the autoencoder's reconstruction of the original."""

from pathlib import Path

from ldmscale.data.encoded import load_array
from ldmscale.jobs import job
from ldmscale.metrics.scorers import superres_scorer
from ldmscale.models.clip import CLIPConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder

with job(snakemake) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    files = {"pairs": Path(snakemake.input.pairs), "prompts": Path(snakemake.input.prompts)}
    for stage, path in files.items():
        read_manifest(path, stage, inputs[stage])
    folders = {stage: path.parent for stage, path in files.items()}
    weights = load_encoder(snakemake.input.clip, inputs["clip"], CLIPConfig(**params["clip"]))
    scorer = superres_scorer(params, weights, folders)
    rows = []
    for name in ("bicubic", "reconstruction"):
        rows.append({"baseline": name, **scorer.row(load_array(folders["pairs"] / f"{name}.npy"))})
        say(f"{name}: FID {rows[-1]['fid']:.3f}, PSNR {rows[-1]['psnr']:.2f} dB")
    write_manifest(snakemake.output[0], "baselines", params["digest"], rows=rows)
