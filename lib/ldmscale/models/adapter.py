"""The adapter of conditional distillation (CoDi, Mei et al., arXiv 2310.01407): a trainable copy of a network's front.

It is ControlNet's (Zhang et al., arXiv 2302.05543; diffusers' ``ControlNetModel``) without an image to condition on:
the U-Net's way down and middle block, whose outputs reach the U-Net through 1x1 convolutions that start at zero. A
transformer's is PixArt-delta's (Chen et al., arXiv 2401.05252): its first half, whose blocks' outputs are added to
those of the same blocks through linear layers that start at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.models.dit import ZEROS, DiTConfig, dit_block, embed
from ldmscale.models.layers import Conv, Dense
from ldmscale.models.network import NetConfig
from ldmscale.models.unet import Residuals, UNetConfig, encode


class Adapter(nn.Module):
    """What to add inside the U-Net of ``config``: z, t, context as :class:`ldmscale.models.unet.UNet` takes them.

    The U-Net is applied to the same z, t and context with ``residuals=`` the result. ``config.guidance_width`` must be
    0: an adapted network is guided by two evaluations (ValueError otherwise).
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, context: jax.Array) -> Residuals:
        skips, mid, _, _ = encode(self.config, z, t, context)

        def closing(x: jax.Array, name: str) -> jax.Array:
            return Conv(x.shape[-1], size=1, zero=True, name=name)(x)

        skips = [closing(skip, f"controlnet_down_blocks_{i}") for i, skip in enumerate(skips)]
        return Residuals(skips, closing(mid, "controlnet_mid_block"))


class DiTAdapter(nn.Module):
    """What to add to the outputs of the first blocks of the transformer of ``config``, [B,T,width] each; called and
    applied as :class:`Adapter`, whose conditions hold."""

    config: DiTConfig

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, context: jax.Array) -> list[jax.Array]:
        config, residuals = self.config, []
        x, embedding, context = embed(config, z, t, context)
        for i in range(adapted_blocks(config.depth)):
            x = dit_block(config, i)(x, embedding, context)
            residuals.append(Dense(config.width, init=ZEROS, name=f"controlnet_blocks_{i}")(x))
        return residuals


def adapted_blocks(depth: int) -> int:
    """How many of a transformer's ``depth`` blocks its adapter copies: half, at least one."""
    return max(1, depth // 2)


def adapter(config: NetConfig) -> nn.Module:
    """The adapter of the network of ``config``."""
    return DiTAdapter(config) if isinstance(config, DiTConfig) else Adapter(config)


def adapter_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with which the adapter of the network with ``params`` begins: copies of its encoder's and middle
    block's (of a transformer, of its first half), and zeros, so that nothing is added yet.

    They share no memory with ``params``: one can be trained, and its buffers given up, while the other is kept.
    """
    if "pos_embed" in params:
        return _dit_parameters(params)
    blocks = [params[f"down_blocks_{i}"] for i in range(sum(name.startswith("down_blocks_") for name in params))]
    # The kernels whose outputs are the skips, in the order in which they run; their last axis is the channels.
    sources = [params["conv_in"]]
    for block in blocks:
        resnets = sum(name.startswith("resnets_") for name in block)
        sources += [block[f"resnets_{i}"]["conv2"] for i in range(resnets)]
        sources += [block["downsamplers_0"]["conv"]] if "downsamplers_0" in block else []

    def zeros(source: Mapping[str, Any]) -> dict[str, jax.Array]:
        channels = source["kernel"].shape[-1]
        return {"kernel": jnp.zeros((1, 1, channels, channels)), "bias": jnp.zeros(channels)}

    copied = {name: part for name, part in params.items() if name in ("conv_in", "time_embedding", "mid_block")}
    copied |= {f"down_blocks_{i}": block for i, block in enumerate(blocks)}
    return {
        **jax.tree.map(jnp.array, copied),
        **{f"controlnet_down_blocks_{i}": zeros(source) for i, source in enumerate(sources)},
        "controlnet_mid_block": zeros(params["mid_block"]["resnets_1"]["conv2"]),
    }


def _dit_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    count = adapted_blocks(sum(name.startswith("transformer_blocks_") for name in params))
    width = params["pos_embed"]["proj"]["kernel"].shape[-1]
    copied = {name: params[name] for name in ("pos_embed", "time_embedding")}
    copied |= {f"transformer_blocks_{i}": params[f"transformer_blocks_{i}"] for i in range(count)}
    closing = {
        f"controlnet_blocks_{i}": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)} for i in range(count)
    }
    return {**jax.tree.map(jnp.array, copied), **closing}
