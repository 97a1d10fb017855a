"""A tree of parameters as one vector: what an optimiser and an average do to each array costs them one operation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Packing:
    """How the arrays of a tree, float32 all, lie behind one another in a vector float32 [P]; of its shapes alone."""

    def __init__(self, like: Any):
        leaves, self._tree = jax.tree.flatten(like)
        if any(leaf.dtype != jnp.float32 for leaf in leaves):
            raise ValueError("parameters must be float32, all of them, to lie in one vector")
        self._shapes = [leaf.shape for leaf in leaves]
        self._ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    @staticmethod
    def pack(tree: Any) -> jax.Array:
        """The tree's arrays as one vector."""
        leaves = jax.tree.leaves(tree)
        return _library(*leaves).concatenate([leaf.reshape(-1) for leaf in leaves])

    def unpack(self, vector: jax.Array) -> Any:
        """The tree again. Its derivative is one concatenation, for ``split`` is (slices would each add to a vector)."""
        parts = _library(vector).split(vector, self._ends)
        return self._tree.unflatten([part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)])


def _library(*arrays: Any) -> Any:
    """numpy for numpy's arrays: on the host nothing has to be compiled."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
