"""A tree of parameters with its small arrays in one vector: what an optimiser and an average do to each array, and the
compiler to each of these operations, then costs all of them together as much as one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 2**16  # elements from which an array stays by itself: to copy it into a vector and back takes longer than that


class Packed(NamedTuple):
    """``small`` float32 [P], all small arrays behind one another, and ``large``, the others as they are."""

    small: jax.Array
    large: list[jax.Array]


class Packing:
    """How the arrays of a tree, float32 all, are packed; of its shapes alone."""

    def __init__(self, like: Any):
        leaves, self._tree = jax.tree.flatten(like)
        if any(leaf.dtype != jnp.float32 for leaf in leaves):
            raise ValueError("parameters must be float32, all of them, to lie in one vector")
        self._shapes = [None if leaf.size >= LARGE else leaf.shape for leaf in leaves]
        self._ends = np.cumsum([leaf.size for leaf in leaves if leaf.size < LARGE])[:-1]

    @staticmethod
    def pack(tree: Any) -> Packed:
        """The tree's arrays, packed."""
        leaves = jax.tree.leaves(tree)
        small = [leaf.reshape(-1) for leaf in leaves if leaf.size < LARGE]
        vector = _library(*leaves).concatenate(small) if small else np.zeros(0, np.float32)
        return Packed(vector, [leaf for leaf in leaves if leaf.size >= LARGE])

    def unpack(self, packed: Packed) -> Any:
        """The tree again. Its derivative is one concatenation, for ``split`` is (slices would each add to a vector)."""
        small = iter(_library(packed.small).split(packed.small, self._ends))
        large = iter(packed.large)
        return self._tree.unflatten(
            [next(large) if shape is None else next(small).reshape(shape) for shape in self._shapes]
        )


def is_packed(x: Any) -> bool:
    """For ``jax.tree.map``'s ``is_leaf``."""
    return isinstance(x, Packed)


def _library(*arrays: Any) -> Any:
    """numpy for numpy's arrays: on the host nothing has to be compiled."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
