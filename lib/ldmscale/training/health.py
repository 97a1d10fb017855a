"""Whether a training is still sound: its losses, its gradients, and the parameters that it is about to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.errors import UserError
from ldmscale.training.watch import Measured

# Losses here are of the order of 1 at the start, or less; one that is so many times that (or, where it began above 1,
# so many times the first) has exploded, even while float32 can hold it.
EXPLODED = 1e4


class Health:
    """Looks at every step of a run in ``folder`` whose last saved state is of step ``saved`` (0: there is none).

    A step is looked at when the next one is under way, so that a device never waits to be looked at.
    """

    def __init__(self, folder: str | Path, saved: int):
        self.saved = saved
        self._folder, self._first = folder, 0.0
        self._pending: list[tuple[int, Measured]] = []

    def step(self, done: int, found: Measured) -> None:
        """Note what step ``done`` (counted from 1) measured, and look at the one before it.

        Raises UserError, as the others do, where it has gone wrong: with the step, the cause and what is kept.
        """
        self._pending.append((done, found))
        while len(self._pending) > 1:
            self._look(*self._pending.pop(0))

    def now(self) -> None:
        """Look at the steps that are not looked at yet."""
        while self._pending:
            self._look(*self._pending.pop(0))

    def state(self, done: int, state: Any) -> None:
        """Look at the arrays of the state after step ``done`` too, before anything of it is kept: a finite loss says
        that the parameters were finite before the step."""
        self.now()
        if not _finite(state):
            raise self._wrong(f"the parameters were not finite after step {done}")

    def _look(self, done: int, found: Measured) -> None:
        loss = float(np.asarray(found.loss))
        self._first = self._first or loss
        if not np.isfinite(loss):
            raise self._wrong(f"the loss was {loss} at step {done}")
        if abs(loss) > EXPLODED * max(1.0, abs(self._first)):
            raise self._wrong(f"the loss was {loss:.3g} at step {done}, of {self._first:.3g} at the start")
        if np.isnan(np.asarray(found.grad_norm)):  # infinite: too large for float32, and clipped to nothing
            raise self._wrong(f"the gradient was nan at step {done}, of a loss of {loss:.3g}")

    def _wrong(self, what: str) -> UserError:
        kept = f"the last good state, of step {self.saved}, is kept in" if self.saved else "no state was saved yet in"
        return UserError(
            f"{what}: lower learning_rate or lengthen warmup, which begins it anew ({kept} {self._folder}, from which "
            "the same settings go on)"
        )


def _finite(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):  # on the host nothing has to be compiled
        return all(np.isfinite(leaf).all() for leaf in leaves)
    return bool(_finite_on_devices(leaves))


@jax.jit
def _finite_on_devices(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
