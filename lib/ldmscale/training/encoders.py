"""The frozen encoders of a study: trained here or given as a file, and read back by every later stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import CLIP, CLIPConfig
from ldmscale.provenance import read_manifest
from ldmscale.training.checkpoint import load_tree
from ldmscale.training.loop import Task, TrainConfig, train


def train_encoder(task: Task, params: dict[str, Any], folder: Path, say: Callable[[str], None]) -> Path:
    """Train ``task`` under ``params["train"]`` in ``folder`` -> the file of its weights."""
    settings = {key: value for key, value in params["train"].items() if key != "batch"}
    config = TrainConfig(**settings, seed=params["seed"])
    return train(task, config, folder, params["digest"], keep=[config.steps], say=say)[config.steps]


def parameter_shapes(config: AutoencoderConfig | CLIPConfig) -> Any:
    """Shapes of the network's parameters, nothing allocated."""
    key = jax.random.key(0)
    if isinstance(config, AutoencoderConfig):
        return jax.eval_shape(Autoencoder(config).init, key, jnp.zeros((1, 8 * config.factor, 8 * config.factor, 3)))[
            "params"
        ]
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    return jax.eval_shape(CLIP(config).init, key, images, jnp.zeros((1, config.context_length), jnp.int32))["params"]


def check_weights(path: str, config: AutoencoderConfig | CLIPConfig) -> Path:
    """The path itself, once every tensor of the file fits ``config``; ``UserError`` otherwise."""
    load_tree(path, parameter_shapes(config))
    return Path(path)


def load_encoder(manifest: str | Path, digest: str, config: AutoencoderConfig | CLIPConfig) -> Any:
    """Parameters of the autoencoder or CLIP whose rule wrote ``manifest`` under ``digest``."""
    stage = "autoencoder" if isinstance(config, AutoencoderConfig) else "clip"
    path = read_manifest(manifest, stage, digest)["weights"]
    return load_tree(path, parameter_shapes(config))[0]
