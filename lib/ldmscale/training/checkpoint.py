"""Parameter trees as safetensors files, written whole or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path, json_crc32
from ldmscale.storage import fetch, push

METADATA = "ldmscale"
CHECKSUMS = "crc32"


def save_tree(path: str | Path, tree: Any, **metadata: object) -> None:
    """Write a pytree of arrays, each with its checksum, and JSON-able ``metadata``; tensor names are the tree's key
    paths joined by dots."""
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in named(jax.device_get(tree))}
    metadata[CHECKSUMS] = {"": json_crc32(metadata), **{name: _crc32(x) for name, x in tensors.items()}}
    with atomic_path(path) as temporary:
        # One entry: several are written in random order, and equal trees should be equal files.
        save_file(tensors, temporary, metadata={METADATA: json.dumps(metadata, sort_keys=True)})
    push(path)


def load_tree(path: str | Path, like: Any, branch: str = "") -> tuple[Any, dict[str, Any]]:
    """Read what :func:`save_tree` wrote into the structure of ``like`` (arrays or shapes) -> (tree, metadata).

    With ``branch``, the name of one of the tree's top-level entries, that entry alone is read.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing, extra, mis-shaped, of another type or not
            finite.
    """
    prefix = f"{branch}." if branch else ""
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]
        try:
            stored = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"types of numbers unknown here: {error}") from None
        metadata, checksums = _metadata(file)
        for name in names:
            if checksums.get(name, -1) not in (-1, _crc32(stored[name.removeprefix(prefix)])):
                raise UserError(
                    f"{path} is damaged (tensor '{name}' has another checksum): delete it and make it again"
                )
    names = [name for name, _ in named(like)]
    for problem, odd in (("lacks", set(names) - set(stored)), ("has the unknown", set(stored) - set(names))):
        if odd:
            raise UserError(f"{path} {problem} tensor '{min(odd)}': it belongs to another network")
    leaves = []
    for name, want in named(like):
        if stored[name].shape != tuple(want.shape):
            raise UserError(
                f"{path}: tensor '{name}' has shape {stored[name].shape}, the network needs {tuple(want.shape)}"
            )
        if stored[name].dtype != want.dtype:
            raise UserError(f"{path}: tensor '{name}' is {stored[name].dtype}, the network needs {want.dtype}")
        if np.issubdtype(stored[name].dtype, np.floating) and not np.isfinite(stored[name]).all():
            raise UserError(f"{path}: tensor '{name}' holds values that are not finite")
        leaves.append(stored[name])
    return jax.tree.unflatten(jax.tree.structure(like), leaves), metadata


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What :func:`save_tree` was given besides the tree; no tensor is read. Raises UserError: missing or damaged."""
    with _opened(path) as file:
        return _metadata(file)[0]


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a safetensors file with tensors named and laid out as :func:`save_tree` does."""
    path = fetch(path)
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return any(name.endswith("kernel") for name in file.keys())  # PyTorch's have weights
    except (SafetensorError, OSError):
        return False


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their key paths as dotted names."""

    def text(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    return [(".".join(map(text, path)), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _metadata(file: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """What :func:`save_tree` was given besides the tree, and the tensors' checksums; ValueError for another's."""
    try:
        metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except RecursionError:
        metadata = None
    checksums = metadata.pop(CHECKSUMS, {}) if isinstance(metadata, dict) else None
    if not isinstance(checksums, dict):
        raise ValueError("its metadata is another's")
    if checksums and checksums.get("") != json_crc32(metadata):
        raise ValueError("its metadata has another checksum")
    return metadata, checksums


def _crc32(tensor: np.ndarray) -> int:
    return zlib.crc32(tensor.reshape(-1).view(np.uint8))


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """The safetensors file ``path``, open; UserError where it is missing, or found to be damaged while it is."""
    try:
        with safe_open(fetch(path), framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the rule that makes it again with --forcerun") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): delete it and make it again") from None
