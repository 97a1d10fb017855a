"""The study's networks, whichever the family: from a config's keys to a module, and what is read of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.models.dit import DiT, DiTConfig
from ldmscale.models.unet import UNet, UNetConfig

NetConfig = UNetConfig | DiTConfig


def net_config(params: Mapping[str, Any], remat: bool = False) -> NetConfig:
    """The shape of a network from ``params`` (see :meth:`ldmscale.config.study.Study.net_params`): ``family``, "unet"
    where it is absent, and the keyword arguments of that family's config, whose UserErrors it passes on. ``remat`` is
    no part of the shape: how its gradient is computed."""
    params = dict(params)
    return {"unet": UNetConfig, "dit": DiTConfig}[params.pop("family", "unet")](**params, remat=remat)


def network(config: NetConfig) -> nn.Module:
    """The module of that shape; both families are called alike (see :class:`ldmscale.models.unet.UNet`)."""
    return DiT(config) if isinstance(config, DiTConfig) else UNet(config)


def inputs(config: NetConfig, size: int, tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of what the network takes for one latent of ``size`` x ``size`` and ``tokens`` text states: z, t, context
    and, where it takes one, w."""
    shapes = (1, size, size, config.in_channels), (1,), (1, tokens, config.context_width), (1,)
    types = jnp.float32, jnp.int32, jnp.float32, jnp.float32
    found = tuple(jax.ShapeDtypeStruct(*one) for one in zip(shapes, types, strict=True))
    return found if config.guidance_width else found[:3]


def least_size(config: NetConfig) -> int:
    """The side of a small latent that the network can take."""
    return config.patch if isinstance(config, DiTConfig) else 2 ** len(config.widths)


def with_guidance(params: Mapping[str, Any], config: NetConfig) -> dict[str, Any]:
    """A network's ``params`` as those of ``config``, which takes a guidance weight and, so far, makes nothing of
    it."""
    embedding = params["time_embedding"]
    features = embedding["linear_1"]["kernel"].shape[0]
    cond_proj = {"kernel": jnp.zeros((config.guidance_width, features))}
    return {**params, "time_embedding": {**embedding, "cond_proj": cond_proj}}


def first_kernel(params: Mapping[str, Any], config: NetConfig) -> jax.Array:
    """What a network's ``params`` (of ``config``, its input channels apart) multiply its latents by: the U-Net's first
    convolution [k,k,Cin,Cout], a transformer's patch embedding likewise, k its patch."""
    if isinstance(config, UNetConfig):
        return jnp.asarray(params["conv_in"]["kernel"])
    kernel = jnp.asarray(params["pos_embed"]["proj"]["kernel"])
    return kernel.reshape(config.patch, config.patch, -1, config.width)


def widen(params: Mapping[str, Any], config: NetConfig, extra: int) -> dict[str, Any]:
    """:func:`first_kernel`'s ``params`` with ``extra`` more input channels, after the others, whose weights are 0."""
    kernel = first_kernel(params, config)
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, extra), (0, 0)))
    found = jax.tree.map(jnp.asarray, dict(params))
    if isinstance(config, UNetConfig):
        return {**found, "conv_in": {**found["conv_in"], "kernel": kernel}}
    proj = {**found["pos_embed"]["proj"], "kernel": kernel.reshape(-1, config.width)}
    return {**found, "pos_embed": {"proj": proj}}
