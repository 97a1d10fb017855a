"""Published Stable Diffusion U-Nets: diffusers' ``UNet2DConditionModel`` files and configs, in and out.

Adapters go as ``ControlNetModel``'s. Its files also hold an embedding of the image that it is conditioned on, whose
output is added to ``conv_in``'s. Ours has none: one that is read has to end in zeros, so that it adds nothing
whatever the image (so it begins, and so it stays where no image was given in training), and one of zeros is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ldmscale.errors import UserError
from ldmscale.models.published_config import PublishedConfig
from ldmscale.models.unet import NORM_EPSILON, UNetConfig
from ldmscale.models.weights import Stored, from_tree, read_tensors, to_tree, torch_name

LISTS = (
    "down_blocks",
    "up_blocks",
    "controlnet_down_blocks",
    "resnets",
    "attentions",
    "transformer_blocks",
    "downsamplers",
    "upsamplers",
    "net",
    "to_out",
)

# What a config.json may say, with diffusers' defaults: shapes that are read, ...
SHAPE = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "norm_num_groups": 32,
    "time_cond_proj_dim": None,
}
# ... what has to stay as it is in Stable Diffusion (several values mean the same), ...
FIXED = {
    "_class_name": "UNet2DConditionModel",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "mid_block_only_cross_attention": (None, False),
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": ("silu", "swish"),
    "norm_eps": NORM_EPSILON,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "cross_attention_norm": None,
}
# ... and what changes nothing in a network of this kind: how projections are stored, dropout, half precision.
FREE = (
    "use_linear_projection",
    "dropout",
    "upcast_attention",
    "addition_time_embed_dim",
    "addition_embed_type_num_heads",
    "projection_class_embeddings_input_dim",
    "class_embeddings_concat",
)

CONDITION = "controlnet_cond_embedding"
CONDITION_HALVINGS = 3  # of the image's side, as Stable Diffusion's autoencoder does; one channel is the least width


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


def load_adapter(path: str | Path, like: Any) -> Any:
    """Parameters of :class:`ldmscale.models.adapter.Adapter` from a ControlNet's file or folder, as :func:`load_unet`.

    Raises UserError also where an image would change what the ControlNet says.
    """
    stored = read_tensors(path)
    for name, tensor in stored.items():
        if name.startswith(f"{CONDITION}.conv_out.") and tensor.any():
            raise UserError(
                f"{path}: tensor '{name}' is not zero, so it is a ControlNet that was trained on images; an adapter "
                "takes none"
            )
    return to_tree(stored, like, published_name, path, ignore=[rf"{CONDITION}\..*"])


def adapter_tensors(params: Any) -> Stored:
    """``params`` as the tensors of a diffusers file, for :func:`adapter_config`'s network."""
    stored = from_tree(params, published_name)
    widths = {"conv_in": (1, 3), "conv_out": (len(stored["conv_in.bias"]), 1)}
    widths |= {f"blocks.{i}": (1, 1) for i in range(2 * CONDITION_HALVINGS)}
    for name, (cout, cin) in widths.items():
        stored[f"{CONDITION}.{name}.weight"] = np.zeros((cout, cin, 3, 3), np.float32)
        stored[f"{CONDITION}.{name}.bias"] = np.zeros(cout, np.float32)
    return stored


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
        "time_cond_proj_dim": config.guidance_width or None,
        "use_linear_projection": True,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "center_input_sample": False,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
    }


def adapter_config(config: UNetConfig) -> dict[str, Any]:
    """``config.json`` of the adapter of ``config``'s network in diffusers."""
    unet_alone = ("sample_size", "out_channels", "up_block_types", "time_cond_proj_dim", "center_input_sample")
    shared = {key: value for key, value in diffusers_config(config, 1).items() if key not in unet_alone}
    widths = [1] * (CONDITION_HALVINGS + 1)
    return {**shared, "_class_name": "ControlNetModel", "conditioning_embedding_out_channels": widths}


def unet_config(path: str | Path) -> tuple[UNetConfig, int]:
    """The network that a diffusers ``config.json`` describes, and the side of the latents that it was trained on.

    The inverse of :func:`diffusers_config`. Raises UserError naming the file and the key where the network is not one
    of ours, or the file is missing or broken.
    """
    stored = PublishedConfig(path, SHAPE, FIXED)
    stored.refuse_others(FREE)
    filters, multiples = stored.multiples("block_out_channels")
    attention = []
    for key, kind, order in (("down_block_types", "Down", 1), ("up_block_types", "Up", -1)):
        kinds = {f"CrossAttn{kind}Block2D": True, f"{kind}Block2D": False}
        names = stored[key]
        if not isinstance(names, list) or len(names) != len(multiples) or any(name not in kinds for name in names):
            raise stored.refuse(key, f"{' or '.join(kinds)} for each of the {len(multiples)} levels")
        attention.append(tuple(kinds[name] for name in names)[::order])
    if attention[0] != attention[1]:
        raise stored.refuse("up_block_types", "down_block_types backwards")
    heads = stored.wholes("attention_head_dim")
    config = stored.made(
        UNetConfig,
        filters,
        multiples,
        stored.whole("layers_per_block"),
        attention[0],
        heads[0] if len(heads) == 1 else heads,
        stored.whole("norm_num_groups"),
        stored.whole("cross_attention_dim"),
        stored.whole("in_channels"),
        stored.whole("out_channels"),
        guidance_width=0 if stored["time_cond_proj_dim"] is None else stored.whole("time_cond_proj_dim"),
    )
    return config, stored.whole("sample_size")
