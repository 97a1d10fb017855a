"""TorchScript archives: their tensors, read as data, and what can be said of their programs before PyTorch runs them.

PyTorch runs code of an archive as soon as it loads it (``__setstate__``), and that code can write files. There is no
safe way to load one (https://github.com/pytorch/pytorch/blob/main/SECURITY.md), so what needs tensors alone reads them
here. Format: torch/csrc/jit/docs/serialization.md of PyTorch: a zip of a pickle, raw storages and source text.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ldmscale.errors import UserError

STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
            "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
            "BoolStorage": "?"}  # fmt: skip
# Typed lists are pickled as calls of these, with the list first.
LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
LARGEST_TEXT = 1 << 24  # bytes of one file of source or of the pickle; an Inception's are under 100 KB

# Names in a program that reach beyond tensors: files, code that runs at loading, and classes and operators of others.
REACHING = re.compile(
    r"\b(?:save|from_file|load_tensor|__setstate__|__torch__\.torch\.classes|ops\.(?!prim\b|aten\b)\w+)\b"
)
TENSORS = re.compile(r"class (\w+)\(Module\):\s+__parameters__ = \[([^\]]*)\]\s+__buffers__ = \[([^\]]*)\]")


class _Object:
    """A module or another instance of an archive's class."""

    kind = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Unpickles a module without importing or calling anything but what is here."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Object", (_Object,), {"kind": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in LISTS:
            return lambda values, *_: values
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(f"it names {module}.{name}, which no network needs")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, _, count = pid[:5]
        found = np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), kind)
        if len(found) < count:
            raise ValueError(f"its storage {key} is cut short")
        return found


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if np.prod([float(n) for n in shape]) > len(storage) or min((offset, *shape, *strides)) < 0:
        raise ValueError("a tensor is larger than its data")
    if 0 not in shape and last >= len(storage):
        raise ValueError("a tensor reaches beyond its data")
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def is_torchscript(path: str | Path) -> bool:
    """Whether ``path`` is a TorchScript archive: only those keep a table of constants, which is PyTorch's test too."""
    if not Path(path).is_file():  # a pipe would be waited for
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def read_archive(path: str | Path) -> dict[str, np.ndarray]:
    """Parameters and buffers of the archive's module by their dotted names; none of its programs is run.

    Raises UserError where the archive is damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
            if archive.getinfo(f"{root}/data.pkl").file_size > LARGEST_TEXT:
                raise ValueError("its pickle is too large for a network's")
            tensors = {}
            for name, text in _sources(archive):
                module = name.removeprefix(f"{root}/code/").removesuffix(".py").replace("/", ".")
                for kind, *lists in TENSORS.findall(text):
                    tensors[f"{module}.{kind}"] = set(re.findall(r'"([^"]+)"', "".join(lists)))
            found: dict[str, np.ndarray] = {}
            _collect(_Reader(archive, root).load(), "", tensors, found)
            return found
    except Exception as error:  # whatever the zip and the pickle of a foreign file lead to
        raise UserError(f"{path} is not a whole TorchScript archive ({_reason(error)})") from None


def check_programs(path: str | Path) -> None:
    """Raises UserError where a program of the archive names what no network needs, such as files, or is damaged.

    PyTorch may run the programs after it. It is no proof that they are harmless.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name, text in _sources(archive):
                if found := REACHING.search(re.sub(r"\s*\.\s*", ".", text)):
                    raise UserError(
                        f"{path} is refused: its program {name} uses '{found[0]}', which reaches beyond tensors; take "
                        "the file from NVIDIA's own address"
                    )
    except UserError:
        raise
    except Exception as error:  # as in read_archive
        raise UserError(f"{path} is not a whole TorchScript archive ({_reason(error)})") from None


def _sources(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    texts = []
    for info in archive.infolist():
        if info.filename.lower().endswith(".py"):  # PyTorch's lookup does not tell A from a
            if info.file_size > LARGEST_TEXT:
                raise ValueError(f"its {info.filename} is too large for a network's")
            texts.append((info.filename, archive.read(info).decode("utf-8")))
    return texts


def _collect(module: Any, prefix: str, tensors: dict[str, set[str]], found: dict[str, np.ndarray]) -> None:
    for name, value in module.state.items():
        if isinstance(value, _Object) and isinstance(value.state, dict):
            _collect(value, f"{prefix}{name}.", tensors, found)
        elif isinstance(value, np.ndarray) and name in tensors.get(module.kind, ()):
            found[prefix + name] = value


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
