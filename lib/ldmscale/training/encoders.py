"""The frozen encoders of a study: trained here or given as a file, and read back by every later stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import CLIPConfig, TextTower
from ldmscale.provenance import read_manifest
from ldmscale.training.checkpoint import is_checkpoint, load_tree
from ldmscale.training.loop import Task, TrainConfig, train
from ldmscale.training.weights import load_weights, parameter_shapes


def train_encoder(task: Task, params: dict[str, Any], folder: Path, say: Callable[[str], None]) -> Path:
    """Train ``task`` under ``params["train"]`` in ``folder`` -> the file of its weights."""
    settings = {key: value for key, value in params["train"].items() if key != "batch"}
    config = TrainConfig(**settings, seed=params["seed"])
    return train(task, config, folder, params["digest"], keep=[config.steps], say=say)[config.steps]


def load_encoder(manifest: str | Path, digest: str, config: AutoencoderConfig | CLIPConfig | TextTower) -> Any:
    """Parameters of the autoencoder, CLIP or text encoder whose rule wrote ``manifest`` under ``digest``.

    A text encoder may be the text tower of a CLIP.
    """
    stage = Path(manifest).stem
    path = read_manifest(manifest, stage, digest)["weights"]
    if stage == "clip" and isinstance(config, TextTower) and is_checkpoint(path):
        return load_tree(path, parameter_shapes(config), branch="text_model")[0]
    return load_weights(path, config)
