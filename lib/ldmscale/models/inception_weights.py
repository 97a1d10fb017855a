"""Published weights of FID's Inception-v3: pytorch-fid's state dict, and NVIDIA's TorchScript archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.models.inception import IMAGE_SIZE, InceptionV3
from ldmscale.models.torchscript import is_torchscript, read_archive
from ldmscale.models.weights import read_tensors, to_tree, torch_name
from ldmscale.storage import fetch

UNUSED = (r"AuxLogits\..*", r".*\.num_batches_tracked")
LEAVES = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}

# The archive's own names (those of the TensorFlow graph), as openai/consistency_models, evaluations/inception_v3.py,
# spells the same network out. It has no batch-norm weight: the graph's is one.
ARCHIVE_LEAVES = {"kernel": "weight", "scale": "gamma", "bias": "beta", "mean": "mean", "var": "var"}
ARCHIVE_BLOCKS = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_2a_3x3": "conv_1",
    "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3",
    "Conv2d_4a_3x3": "conv_4",
    "Mixed_5b": "mixed",
    "Mixed_5c": "mixed_1",
    "Mixed_5d": "mixed_2",
    "Mixed_6a": "mixed_3",
    "Mixed_6b": "mixed_4",
    "Mixed_6c": "mixed_5",
    "Mixed_6d": "mixed_6",
    "Mixed_6e": "mixed_7",
    "Mixed_7a": "mixed_8",
    "Mixed_7b": "mixed_9",
    "Mixed_7c": "mixed_10",
}
_INCEPTION_A = {
    "branch1x1": "conv",
    "branch5x5_1": "tower.conv",
    "branch5x5_2": "tower.conv_1",
    "branch3x3dbl_1": "tower_1.conv",
    "branch3x3dbl_2": "tower_1.conv_1",
    "branch3x3dbl_3": "tower_1.conv_2",
    "branch_pool": "tower_2.conv",
}
_INCEPTION_B = {
    "branch3x3": "conv",
    "branch3x3dbl_1": "tower.conv",
    "branch3x3dbl_2": "tower.conv_1",
    "branch3x3dbl_3": "tower.conv_2",
}
_INCEPTION_C = {
    "branch1x1": "conv",
    "branch7x7_1": "tower.conv",
    "branch7x7_2": "tower.conv_1",
    "branch7x7_3": "tower.conv_2",
    "branch7x7dbl_1": "tower_1.conv",
    "branch7x7dbl_2": "tower_1.conv_1",
    "branch7x7dbl_3": "tower_1.conv_2",
    "branch7x7dbl_4": "tower_1.conv_3",
    "branch7x7dbl_5": "tower_1.conv_4",
    "branch_pool": "tower_2.conv",
}
_INCEPTION_D = {
    "branch3x3_1": "tower.conv",
    "branch3x3_2": "tower.conv_1",
    "branch7x7x3_1": "tower_1.conv",
    "branch7x7x3_2": "tower_1.conv_1",
    "branch7x7x3_3": "tower_1.conv_2",
    "branch7x7x3_4": "tower_1.conv_3",
}
_INCEPTION_E = {
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}
ARCHIVE_BRANCHES = {
    "Mixed_5": _INCEPTION_A,
    "Mixed_6": _INCEPTION_C,
    "Mixed_6a": _INCEPTION_B,
    "Mixed_7": _INCEPTION_E,
    "Mixed_7a": _INCEPTION_D,
}


def published_name(dotted: str) -> str:
    """Name of our parameter in pytorch-fid's state dict (torchvision's names)."""
    module, leaf = dotted.rsplit(".", 1)
    return torch_name(dotted) if module == "fc" else f"{module}.{LEAVES[leaf]}"


def archive_name(dotted: str) -> str:
    """Name of our parameter in NVIDIA's archive; ``gamma``, which the archive lacks, stands for ones."""
    block, *branch, leaf = dotted.split(".")
    if block == "fc":
        return torch_name(f"output.{leaf}")
    modules = ["layers", ARCHIVE_BLOCKS[block]]
    if branch:
        branches = ARCHIVE_BRANCHES.get(block) or ARCHIVE_BRANCHES[block[:-1]]
        modules.append(branches[branch[0]])
    return ".".join([*modules, ARCHIVE_LEAVES[leaf]])


def load_inception(path: str | Path) -> Any:
    """Parameters of :class:`ldmscale.models.inception.InceptionV3` from a published file.

    ``path`` is pytorch-fid's or torch-fidelity's ``pt_inception-2015-12-05-6726825d.pth`` (a state dict; its auxiliary
    classifier is not read), or ``inception-2015-12-05.pt``, the TorchScript archive of NVIDIA that clean-fid uses, or
    a state dict with the archive's names. No program of an archive is run. Raises UserError naming what does not fit.
    """
    path = fetch(path)
    stored = read_archive(path) if is_torchscript(path) else read_tensors(path)
    image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    like = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    if "output.weight" not in stored:
        return to_tree(stored, like, published_name, path, UNUSED)
    gammas = {
        name.removesuffix("beta") + "gamma": np.ones_like(beta)
        for name, beta in stored.items()
        if name.endswith(".beta")
    }
    return to_tree(stored | gammas, like, archive_name, path)
