"""The typed view of ``config.yaml``: one frozen dataclass a stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Model:
    """A member of the family: its ``filters`` and its pretraining settings, overrides applied."""

    name: str
    filters: int
    pretrain: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A checked config (see :mod:`ldmscale.config.check`) and what follows from it by arithmetic."""

    config: dict[str, Any]

    def __post_init__(self):
        # Snakemake compares params as text: the order of a mapping's keys must not look like a change.
        object.__setattr__(self, "config", json.loads(json.dumps(self.config, sort_keys=True)))

    @property
    def name(self) -> str:
        return self.config["study"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @cached_property
    def models(self) -> dict[str, Model]:
        """The family by name, ascending in size."""
        common = self.config["pretrain"]
        return {
            m["name"]: Model(m["name"], m["filters"], {**common, **m.get("pretrain", {})})
            for m in self.config["models"]
        }

    @property
    def latent_size(self) -> int:
        """Side of a latent: the image's over two to the number of halvings."""
        return self.config["data"]["image_size"] // 2 ** (len(self.config["autoencoder"]["channel_mult"]) - 1)

    @property
    def checkpoints(self) -> list[str]:
        """Names of the weights along training, ``pretrain-<step>``, ascending."""
        return [f"pretrain-{step}" for step in self.config["pretrain"]["checkpoints"]]

    def unet_params(self, model: str) -> dict[str, Any]:
        """Keyword arguments of :class:`ldmscale.models.unet.UNetConfig` for ``model``."""
        return {
            "filters": self.models[model].filters,
            **self.config["unet"],
            "context_width": self.config["clip"]["text_width"],
            "in_channels": self.config["autoencoder"]["latent_channels"],
            "out_channels": self.config["autoencoder"]["latent_channels"],
        }

    def autoencoder_params(self) -> dict[str, Any]:
        """Keyword arguments of :class:`ldmscale.models.autoencoder.AutoencoderConfig`."""
        keys = ("channels", "channel_mult", "blocks_per_level", "latent_channels", "norm_groups", "mid_attention")
        return {key: self.config["autoencoder"][key] for key in keys}

    def clip_params(self) -> dict[str, Any]:
        """Keyword arguments of :class:`ldmscale.models.clip.CLIPConfig`."""
        keys = ("patch", "image_width", "image_depth", "text_width", "text_depth", "heads", "embed_dim")
        return {
            "image_size": self.config["data"]["image_size"],
            **{key: self.config["clip"][key] for key in keys},
            **self.config["tokenizer"],
        }
