"""Published weights of LPIPS: torchvision's backbone and the lpips package's linear weights, two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ldmscale.models.lpips import LPIPS
from ldmscale.models.weights import read_tensors, to_tree, torch_name


def _feature_name(dotted: str) -> str:
    return torch_name(dotted, ("features",))


def _linear_name(dotted: str) -> str:
    return torch_name(dotted.replace(".", ".model.1."))  # model.0 is a dropout


def load_lpips(backbone: str | Path, linear: str | Path, net: str) -> Any:
    """Parameters of :class:`ldmscale.models.lpips.LPIPS` with the backbone ``net``, "alex" or "vgg".

    ``backbone`` is torchvision's ``alexnet-owt-7be5be79.pth`` or ``vgg16-397923af.pth`` (ImageNet; its classifier is
    not read); ``linear`` is ``alex.pth`` or ``vgg.pth`` of the lpips package, version 0.1. Raises UserError naming
    what does not fit.
    """
    stored = read_tensors(backbone), read_tensors(linear)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    like = jax.eval_shape(LPIPS(net).init, jax.random.key(0), image, image)["params"]
    features = {name: tree for name, tree in like.items() if name.startswith("features_")}
    linears = {name: tree for name, tree in like.items() if name not in features}
    return {
        **to_tree(stored[0], features, _feature_name, backbone, (r"classifier\..*",)),
        **to_tree(stored[1], linears, _linear_name, linear),
    }
