"""The weights of a network, whoever wrote them: this pipeline's own checkpoints and published files."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

import ldmscale.models
from ldmscale.errors import UserError
from ldmscale.models.adapter import adapter_parameters
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.autoencoder_weights import load_autoencoder
from ldmscale.models.clip import CLIP, CLIPConfig, TextModel, TextTower
from ldmscale.models.clip_weights import load_clip, load_text_model
from ldmscale.models.dit import DiTConfig
from ldmscale.models.network import NetConfig, inputs, least_size, network
from ldmscale.models.unet import UNetConfig
from ldmscale.models.unet_weights import load_unet
from ldmscale.provenance import file_digest, read_json, write_checked
from ldmscale.training.checkpoint import is_checkpoint, load_tree, named

Config = AutoencoderConfig | CLIPConfig | TextTower | NetConfig


def _no_published_transformer(path: str | Path, like: Any) -> Any:
    raise UserError(f"{path} is no checkpoint of this pipeline, and published transformers are not read")


PUBLISHED = {
    AutoencoderConfig: load_autoencoder,
    CLIPConfig: load_clip,
    TextTower: load_text_model,
    UNetConfig: load_unet,
    DiTConfig: _no_published_transformer,
}


def parameter_shapes(config: Config) -> Any:
    """Shapes of the network's parameters, nothing allocated.

    Tracing a network for them takes up to a CPU-second, which every job of a study would spend again: where there is a
    compile cache (:func:`ldmscale.runtime.use_compile_cache`) they are kept in it.
    """
    described = _described(config).items()
    shapes = {name: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for name, (shape, dtype) in described}
    return unflatten_dict(shapes, sep=".")


@cache
def _described(config: Config) -> dict[str, tuple[list[int], str]]:
    """Shape and type of each parameter by its dotted name, kept for this version of the networks' code."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        return _traced(config)
    made = f"{config!r} {version('jax')} {version('flax')} {file_digest(ldmscale.models.__path__[0])}"
    path = Path(folder) / f"shapes-{hashlib.sha256(made.encode()).hexdigest()[:32]}.json"
    try:
        return read_json(path)["parameters"]
    except (UserError, KeyError):
        found = _traced(config)
        with suppress(OSError):  # a cache that may only be read
            path.parent.mkdir(parents=True, exist_ok=True)
            write_checked(path, {"parameters": found})
        return found


def _traced(config: Config) -> dict[str, tuple[list[int], str]]:
    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    match config:
        case AutoencoderConfig():
            net, args = Autoencoder(config), (shape(1, 8 * config.factor, 8 * config.factor, 3),)
        case CLIPConfig():
            images = shape(1, config.image_size, config.image_size, 3)
            net, args = CLIP(config), (images, shape(1, config.context_length, dtype=jnp.int32))
        case TextTower():
            net, args = TextModel(config), (shape(1, config.context_length, dtype=jnp.int32),)
        case UNetConfig() | DiTConfig():  # of any latent: the parameters do not depend on it
            net, args = network(config), inputs(config, least_size(config), 1)
    found = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
    return {name: (list(x.shape), x.dtype.name) for name, x in named(found)}


def load_weights(path: str | Path, config: Config) -> Any:
    """Parameters of ``config``'s network from one of this pipeline's checkpoints or a published file or folder.

    Raises:
        UserError: naming the tensor that is missing, extra, mis-shaped or not finite, or what is wrong with the file.
    """
    like = parameter_shapes(config)
    return load_tree(path, like)[0] if is_checkpoint(path) else PUBLISHED[type(config)](path, like)


def load_adapted(path: str | Path, config: NetConfig, unet: str | Path | None) -> dict[str, Any]:
    """What CoDi samples with: {"unet": parameters, "adapter": parameters} of ``config``'s network.

    The network's ("unet") are those of the file ``unet``, or with None, where distillation trained them too, in
    ``path`` as well.

    Raises:
        UserError: as :func:`load_weights`.
    """
    shapes = parameter_shapes(config)
    like = {"adapter": jax.eval_shape(adapter_parameters, shapes)} | ({} if unet else {"unet": shapes})
    tree = load_tree(path, like)[0]
    return {**tree, "unet": load_weights(unet, config)} if unet else tree


def check_weights(path: str | Path, config: Config) -> Path:
    """The path itself, once every tensor of the file fits ``config``; ``UserError`` otherwise."""
    load_weights(path, config)
    return Path(path)
