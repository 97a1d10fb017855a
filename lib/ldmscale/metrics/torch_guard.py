"""Lets torchvision (and so clean-fid) be imported where its compiled operators cannot load."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

# The operators that `import torchvision` attaches shape functions to, whether or not its library has defined them.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None  # kept: the definitions live as long as this object


def guard_torchvision() -> bool:
    """Call before the first import of torchvision, clean-fid, or anything that imports them. Returns whether it acted.

    torchvision's wheel from PyPI is built for CUDA. Beside a CPU-only PyTorch its library of operators does not load,
    and the import ends in "operator torchvision::nms does not exist". Declaring the schemas of those operators,
    without implementations, is enough for the import; calling them still fails, and nothing here does. Where the
    library loads, where there is no torchvision, or where it is imported already, nothing is changed.
    """
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return False
    package = importlib.util.find_spec("torchvision")
    if package is None or _operators_load(Path(package.origin).parent):
        return False
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _library.define(schema)
    return True


def _operators_load(folder: Path) -> bool:
    """Whether torchvision's own library loads, found and loaded as torchvision does it."""
    import torch

    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    library = importlib.machinery.FileFinder(str(folder), loader).find_spec("_C")
    if library is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except (ImportError, OSError):
        return False
    return True
