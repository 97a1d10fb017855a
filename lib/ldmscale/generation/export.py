"""A model as a folder that ``diffusers.StableDiffusionPipeline.from_pretrained`` loads."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from ldmscale.data.tokenizer import save_for_transformers
from ldmscale.errors import UserError
from ldmscale.generation.pipeline import ORIGIN, Pipeline
from ldmscale.models import autoencoder_weights, clip_weights, unet_weights
from ldmscale.models.unet import UNetConfig
from ldmscale.provenance import atomic_path, write_json


def export(pipeline: Pipeline, folder: str | Path) -> None:
    """Write ``pipeline`` to ``folder``, whole or not at all.

    Its scheduler is DDIM as this package samples it; weights are float32. Raises UserError unless ``folder`` is new or
    empty, and for a transformer, which diffusers has no pipeline for.
    """
    if not isinstance(pipeline.unet, UNetConfig):
        model = pipeline.origin["model"]
        raise UserError(f"'{model}' is a transformer: diffusers has no pipeline for it; export takes U-Nets alone")
    weights, factor = pipeline.weights, pipeline.autoencoder.factor
    with _whole_folder(Path(folder)) as out:
        config = unet_weights.diffusers_config(pipeline.unet, pipeline.latent_size)
        _network(out / "unet", config, unet_weights.diffusers_tensors(weights["unet"]))
        config = autoencoder_weights.diffusers_config(
            pipeline.autoencoder, pipeline.latent_size * factor, pipeline.scale
        )
        _network(out / "vae", config, autoencoder_weights.diffusers_tensors(weights["autoencoder"]))
        config = clip_weights.transformers_config(pipeline.text, pipeline.tokenizer.pad_id)
        tensors = clip_weights.transformers_tensors(weights["text"])
        _network(out / "text_encoder", config, tensors, "model.safetensors")
        tokenizer = save_for_transformers(pipeline.tokenizer, out / "tokenizer", pipeline.context_length)
        write_json(out / "scheduler" / "scheduler_config.json", _scheduler(pipeline))
        write_json(out / "model_index.json", _index(tokenizer))
        write_json(out / ORIGIN, {**pipeline.origin, "made_by": f"ldmscale {version('ldmscale')}"})


def _network(folder: Path, config: dict[str, Any], tensors: dict[str, Any],
             name: str = "diffusion_pytorch_model.safetensors") -> None:  # fmt: skip
    write_json(folder / "config.json", config)
    with atomic_path(folder / name) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers reads no file without


def _scheduler(pipeline: Pipeline) -> dict[str, Any]:
    """DDIM to the last digit: as in Stable Diffusion it ends at abar_0 and clips nothing; diffusers' own defaults are
    those of pixel models."""
    schedule = pipeline.schedule
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.steps,
        "beta_schedule": schedule.kind,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "trained_betas": None,
        "prediction_type": "epsilon",
        "timestep_spacing": pipeline.spacing["ddim"],
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def _index(tokenizer: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` to write to; renamed to ``folder`` on success, removed on failure."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give the path of a new or empty folder")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        os.rename(temporary, folder)  # an empty folder in its place goes
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
