"""Published weights in and out: reading tensor files, and the way between their names and layouts and ours.

A network's importer says how a parameter of ours is called in the published file; layouts follow from the shapes. The
same naming writes weights back, so import and export cannot disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from ldmscale.errors import UserError
from ldmscale.storage import fetch

Stored = dict[str, np.ndarray]

# What a folder of Hugging Face's holds, most trusted first; an index names the shards of a large file.
FOLDER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def weights_file(path: str | Path) -> Path:
    """The file of tensors that ``path`` names: itself, or the well-known one of a folder. Raises UserError."""
    path = fetch(path, beside=str(path).endswith(".index.json"))
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds no weights; a folder of published weights has one of: {', '.join(FOLDER_FILES)}")


def read_tensors(path: str | Path) -> Stored:
    """Every tensor of a published file, half precision as float32.

    ``path`` is a .safetensors file, a PyTorch file (read with ``weights_only``: no code in it can run), an index of
    shards, or a folder that holds one of these under its well-known name.

    Raises:
        UserError: the file is missing, damaged, of another kind, or a pickle of more than tensors.
    """
    path = weights_file(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of weights (.safetensors, .pt, .pth, .bin) or its folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise UserError(f"{path} is no file of weights: its name must end in .safetensors or {', '.join(PICKLED)}")


def _read_safetensors(path: Path) -> Stored:
    try:
        with safe_open(path, framework="flax") as file:  # numpy has no bfloat16
            return {name: _full(np.asarray(file.get_tensor(name))) for name in file.keys()}
    except Exception as error:  # a type that only other libraries know can be any error
        reason = " ".join(f"{error or type(error).__name__}".split())
        raise UserError(
            f"{path} is not a whole safetensors file, or has types of numbers unknown here ({reason})"
        ) from None


def _read_shards(index: Path) -> Stored:
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{index} is no index of shards: it must be JSON with a 'weight_map' of tensor to file"
        ) from None
    stored: Stored = {}
    for name in files:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}: shards must lie beside their index")
        if not name.endswith((".safetensors", *PICKLED)):
            raise UserError(f"{index} names the shard {name!r}, which is no file of tensors (.safetensors, .bin)")
        stored |= read_tensors(index.with_name(name))
    return stored


def _read_pickled(path: Path) -> Stored:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a PyTorch file of tensors alone ({reason}); files that would run code are refused: "
            "convert it to safetensors where you trust it"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(v, torch.Tensor) for name, v in content.items()
    ):
        raise UserError(f"{path} is no state dict: it must hold tensors by name")
    return {name: _unpickled(tensor.detach(), name, path) for name, tensor in content.items()}


def _unpickled(tensor: Any, name: str, path: Path) -> np.ndarray:
    """A tensor of PyTorch's as an array; UserError for one that would be larger than what the file has of it."""
    try:
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise RuntimeError("it is larger than its data")
        return _full((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    except (RuntimeError, TypeError, ValueError) as error:  # sparse, quantised, without data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: tensor '{name}' is no plain array ({reason})") from None


def _full(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind in "fV" else array


def torch_name(dotted: str, lists: Iterable[str] = ()) -> str:
    """Our parameter path in PyTorch's spelling: ``blocks_0.norm1.scale`` is ``blocks.0.norm1.weight`` if ``lists``,
    the names of the module lists, has ``blocks``."""
    *modules, leaf = dotted.split(".")
    pattern = re.compile(rf"({'|'.join(lists)})_(\d+)")
    modules = [".".join(match.groups()) if (match := pattern.fullmatch(m)) else m for m in modules]
    return ".".join([*modules, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def to_tree(
    stored: Stored, like: Any, published_name: Callable[[str], str], source: str | Path, ignore: Iterable[str] = ()
) -> Any:
    """The tensors of a published file in the structure of ``like``, a tree of arrays or shapes.

    ``published_name`` gives the stored name of each of our dotted parameter paths; ``ignore`` are patterns of stored
    names that the network has no use for; ``source`` names the file in what is said of it. A linear layer's
    [out,in] becomes our [in,out], a convolution's OIHW our HWIO, and a convolution whose strides tile its input (a
    1x1 or a patch embedding) the [height*width*in,out] of our linear layer; everything else stays.

    Raises:
        UserError: naming a tensor that is missing, unknown, mis-shaped or not finite.
    """
    unused = set(stored)
    leaves = []
    for path, want in _dotted(like):
        name = published_name(path)
        if name not in stored:
            raise UserError(f"{source} lacks the tensor '{name}': it belongs to another network")
        unused.discard(name)
        tensor, shape = stored[name], tuple(want.shape)
        if path.endswith("kernel"):
            tensor = _kernel(tensor, len(shape))
        if tensor.shape != shape:
            raise UserError(
                f"{source}: tensor '{name}' has shape {list(stored[name].shape)}, which does not fit our {list(shape)}"
            )
        if tensor.dtype.kind != "f":
            raise UserError(f"{source}: tensor '{name}' is {tensor.dtype}, but must be of floating-point numbers")
        if not np.isfinite(tensor).all():
            raise UserError(f"{source}: tensor '{name}' holds values that are not finite")
        leaves.append(np.asarray(tensor, want.dtype, order="C"))
    ignored = re.compile("|".join(ignore) or r"(?!)")
    unknown = sorted(name for name in unused if not ignored.fullmatch(name))
    if unknown:
        raise UserError(f"{source} has the unknown tensor '{unknown[0]}': it belongs to another network")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _kernel(tensor: np.ndarray, rank: int) -> np.ndarray:
    tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > rank == 2 and tensor.size else tensor


def from_tree(tree: Any, published_name: Callable[[str], str]) -> Stored:
    """The inverse of :func:`to_tree`: our parameters under their published names, in PyTorch's layouts."""
    stored = {}
    for path, leaf in _dotted(tree):
        array = np.asarray(leaf)
        if path.endswith("kernel"):
            array = array.transpose(-1, -2, *range(array.ndim - 2))
        stored[published_name(path)] = np.asarray(array, order="C")
    return stored


def _dotted(tree: Any) -> list[tuple[str, Any]]:
    return [(".".join(k.key for k in path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
