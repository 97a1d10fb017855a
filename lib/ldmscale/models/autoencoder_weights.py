"""Published KL autoencoders (Stable Diffusion's KL-f8): diffusers' ``AutoencoderKL`` files and configs, in and out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.published_config import PublishedConfig
from ldmscale.models.weights import Stored, from_tree, read_tensors, to_tree, torch_name

LISTS = ("down_blocks", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers", "to_out")
# Files from before diffusers 0.13, Stable Diffusion's own among them, name the attention's projections like this.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# What a config.json may say, with diffusers' defaults: what is read, what has to stay, what changes nothing.
SHAPE = {
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "scaling_factor": 0.18215,
}
FIXED = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
    "act_fn": ("silu", "swish"),
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": (None, 0),
    "latents_mean": None,
    "latents_std": None,
}
FREE = ("sample_size", "force_upcast")


def published_name(dotted: str) -> str:
    """Name of our parameter in a diffusers file."""
    return torch_name(dotted, LISTS)


def load_autoencoder(path: str | Path, like: Any) -> Any:
    """Parameters of :class:`ldmscale.models.autoencoder.Autoencoder` from a diffusers file or folder.

    ``like`` is the tree of their shapes. Raises UserError naming what does not fit.
    """
    old = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.(weight|bias)")
    stored = {
        f"{match[1]}.{OLD_NAMES[match[2]]}.{match[3]}" if (match := old.fullmatch(name)) else name: tensor
        for name, tensor in read_tensors(path).items()
    }
    return to_tree(stored, like, published_name, path)


def diffusers_tensors(params: Any) -> Stored:
    """``params`` as the tensors of a diffusers file, for :func:`diffusers_config`'s network."""
    return from_tree(params, published_name)


def diffusers_config(config: AutoencoderConfig, image_size: int, scale: float) -> dict[str, Any]:
    """``config.json`` of the same network in diffusers; ``scale`` is what latents are multiplied by."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": image_size,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks_per_level,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": config.norm_groups,
        "act_fn": "silu",
        "mid_block_add_attention": config.mid_attention,
        "scaling_factor": scale,
    }


def autoencoder_config(path: str | Path) -> tuple[AutoencoderConfig, float]:
    """The network that a diffusers ``config.json`` describes, and what its latents are multiplied by.

    The inverse of :func:`diffusers_config`. Raises UserError naming the file and the key where the network is not one
    of ours, or the file is missing or broken.
    """
    stored = PublishedConfig(path, SHAPE, FIXED)
    stored.refuse_others(FREE)
    channels, multiples = stored.multiples("block_out_channels")
    if not isinstance(stored["mid_block_add_attention"], bool):
        raise stored.refuse("mid_block_add_attention", "true or false")
    config = stored.made(
        AutoencoderConfig,
        channels,
        multiples,
        stored.whole("layers_per_block"),
        stored.whole("latent_channels"),
        stored.whole("norm_num_groups"),
        stored["mid_block_add_attention"],
    )
    return config, stored.number("scaling_factor")
