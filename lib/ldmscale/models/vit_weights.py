"""Published weights of DINO and DINOv2: facebookresearch's files, or timm's or Hugging Face's of the same networks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.errors import UserError
from ldmscale.models.vit import DINOV2_L14, ViT, ViTConfig
from ldmscale.models.weights import Stored, read_tensors, to_tree, torch_name

CUBIC = -0.75  # PyTorch's parameter of the cubic convolution kernel
OFFSET = 0.1
DINOV2_HEAD = 64  # width of an attention head, of every DINOv2

# Hugging Face's names of DINOv2's tensors -> facebookresearch's, in turn; query, key and value are apart there.
HUGGING_FACE = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.(\w+_token)", r"\1"),
    (r"encoder\.layer\.", "blocks."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"^layernorm\.", "norm."),
)


def published_name(dotted: str) -> str:
    """Name of our parameter in a DINO, DINOv2 or timm file."""
    return torch_name(dotted, ("blocks",))


def load_vit(path: str | Path, config: ViTConfig) -> Any:
    """Parameters of :class:`ldmscale.models.vit.ViT` with ``config``'s shape from a published file.

    ``path`` is for example ``dino_deitsmall16_pretrain.pth`` or ``dinov2_vitl14_pretrain.pth`` of facebookresearch, or
    timm's of the same network. Positions of another resolution (DINOv2's are of 518 pixels) are resampled to
    ``config``'s. DINOv2's mask token is not read. Raises UserError naming what does not fit.
    """
    return _params(read_tensors(path), config, path)


def load_dinov2(path: str | Path) -> tuple[Any, ViTConfig]:
    """Parameters of a DINOv2 ViT for images of 224 pixels, and its shape, which the file tells.

    ``path`` is ``dinov2_vitl14_pretrain.pth`` of facebookresearch or another size's, timm's of the same network, or
    Hugging Face's (``facebook/dinov2-large``: the file or its folder). Raises UserError, naming what does not fit, for
    other networks; the giant one, whose blocks differ, and those with registers are such.
    """
    stored = from_hugging_face(read_tensors(path))
    tokens, patches = stored.get("cls_token"), stored.get("patch_embed.proj.weight")
    blocks = {int(match[1]) for name in stored if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    size = DINOV2_L14.image_size
    sound = tokens is not None and patches is not None and tokens.ndim == 3 and patches.ndim == 4
    sound = (
        sound and tokens.size and patches.size and not tokens.shape[-1] % DINOV2_HEAD and not size % patches.shape[-1]
    )
    # Blocks without gaps: a network as deep as the largest number says would be traced before one is missed.
    if not sound or not blocks or blocks != {*range(len(blocks))}:
        raise UserError(f"{path} is no DINOv2 vision transformer: give dinov2_vitl14_pretrain.pth or another size's")
    width = tokens.shape[-1]
    config = ViTConfig(size, patches.shape[-1], width, len(blocks), width // DINOV2_HEAD, layer_scale=True)
    return _params(stored, config, path), config


def from_hugging_face(stored: Stored) -> Stored:
    """The tensors of DINOv2 under facebookresearch's names; those that are not Hugging Face's stay as they are."""
    renamed = {}
    for name, tensor in stored.items():
        for pattern, ours in HUGGING_FACE:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [renamed.pop(name.replace("query", part), np.zeros(0)) for part in ("query", "key", "value")]
        if (
            parts[0].ndim and parts[0].shape == parts[1].shape == parts[2].shape
        ):  # if not, the import says what is lacking
            renamed[name.replace(".attention.attention.query.", ".attn.qkv.")] = np.concatenate(parts)
    return renamed


def _params(stored: Stored, config: ViTConfig, path: str | Path) -> Any:
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    like = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    positions = stored.get("pos_embed")
    if positions is not None and positions.ndim == 3 and positions.shape[1] > 1:
        stored["pos_embed"] = resample_positions(positions, config.grid)
    return to_tree(stored, like, published_name, path, (r"mask_token",))


def resample_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings [1,1+M*M,C] of the class token and M x M patches -> [1,1+grid*grid,C].

    As facebookresearch/dino and /dinov2 do when they run at another resolution: bicubic, not antialiased, and with
    the scale (grid + 0.1) / M, an old guard against rounding that shifts the samples. timm resamples the same table
    with antialiasing and the plain scale, so its features differ slightly at other sizes than the published one.
    """
    patches = math.isqrt(table.shape[1] - 1)
    if patches == grid or patches**2 != table.shape[1] - 1:  # no square: the import says what is wrong with it
        return table
    kernel = _cubic_matrix(patches, grid)
    plane = table[0, 1:].astype(np.float64).reshape(patches, patches, -1)
    plane = np.einsum("im,jn,mnc->ijc", kernel, kernel, plane, optimize=True).astype(np.float32)
    return np.concatenate([table[:, :1], plane.reshape(1, grid * grid, -1)], axis=1)


def _cubic_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target,source] of each source sample in each target one; beyond the border its sample repeats."""
    centre = (np.arange(target) + 0.5) * source / (target + OFFSET) - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        place = np.floor(centre) + tap
        np.add.at(matrix, (np.arange(target), np.clip(place, 0, source - 1).astype(int)), _cubic(centre - place))
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel for |x| <= 2."""
    x = np.abs(x)
    near = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
    return np.where(x <= 1, near, CUBIC * (x**3 - 5 * x**2 + 8 * x - 4))
