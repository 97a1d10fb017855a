"""Published Stable Diffusion U-Nets: diffusers' ``UNet2DConditionModel`` files and configs, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmscale.models.unet import NORM_EPSILON, UNetConfig
from ldmscale.models.weights import Stored, from_tree, read_tensors, to_tree, torch_name

LISTS = (
    "down_blocks",
    "up_blocks",
    "resnets",
    "attentions",
    "transformer_blocks",
    "downsamplers",
    "upsamplers",
    "net",
    "to_out",
)


def published_name(dotted: str) -> str:
    """Name of our parameter in a diffusers file."""
    return torch_name(dotted, LISTS)


def load_unet(path: str | Path, like: Any) -> Any:
    """Parameters of :class:`ldmscale.models.unet.UNet` from a diffusers file or folder.

    ``like`` is the tree of their shapes. The transformers' projections may be stored as 1x1 convolutions (Stable
    Diffusion 1) or linear layers (2). Raises UserError naming what does not fit.
    """
    return to_tree(read_tensors(path), like, published_name, path)


def diffusers_tensors(params: Any) -> Stored:
    """``params`` as the tensors of a diffusers file, for :func:`diffusers_config`'s network."""
    return from_tree(params, published_name)


def diffusers_config(config: UNetConfig, latent_size: int) -> dict[str, Any]:
    """``config.json`` of the same network in diffusers."""

    def blocks(kind: str, attention: tuple[bool, ...]) -> list[str]:
        return [f"CrossAttn{kind}Block2D" if on else f"{kind}Block2D" for on in attention]

    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": latent_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks_per_level,
        "down_block_types": blocks("Down", config.attention_levels),
        "up_block_types": blocks("Up", config.attention_levels[::-1]),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        # What diffusers calls the dimension of a head is the number of heads, for reasons of its history.
        "attention_head_dim": list(config.level_heads),
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.norm_groups,
        "norm_eps": NORM_EPSILON,
        "use_linear_projection": True,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "center_input_sample": False,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
    }
