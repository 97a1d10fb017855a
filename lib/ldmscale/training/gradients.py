"""A task's loss and its gradients, of a batch whole or in microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldmscale.training.watch import by_level


def gradients(task: Any, tree: Callable[[Any], Any], accumulate: int, shardings: Any) -> Callable[..., Any]:
    """``(params, batch, key[, ema, frozen]) -> ((loss, levels), gradients)`` of ``task``, whose parameters are
    ``tree(params)``; ``levels`` is None of a task without ``losses``.

    With ``accumulate`` over 1 the batch goes through the network in so many microbatches, one after the other: the
    activations of one of them are held at a time, and the gradients, which lie as ``shardings`` (None: anywhere) say.
    """

    def leveled(loss: jax.Array, t: jax.Array, each: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss, by_level(t, each, task.schedule.steps)

    def losses(params: Any, *given: Any) -> tuple[jax.Array, jax.Array | None]:
        return leveled(*task.losses(params, *given)) if hasattr(task, "losses") else (task.loss(params, *given), None)

    def whole(params: Any, *given: Any) -> Any:
        return jax.value_and_grad(lambda p: losses(tree(p), *given), has_aux=True)(params)

    def parts(params: Any, batch: Any, key: jax.Array, *given: Any) -> Any:
        # Every accumulate-th example, so that each device cuts what it has. What is random is drawn for all of them:
        # it is what the whole batch would have seen.
        drawn = jax.tree.map(lambda x: jnp.reshape(x, (-1, accumulate, *x.shape[1:])).swapaxes(0, 1),
                             task.draw(batch, key))  # fmt: skip

        def of(part: Any) -> Any:
            return jax.value_and_grad(lambda p: leveled(*task.drawn_losses(tree(p), part, *given)), has_aux=True)(
                params
            )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            measured, grads = jax.tree.map(jnp.add, total, of(part))
            return (measured, grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings)), None

        like = jax.eval_shape(of, jax.tree.map(lambda x: x[0], drawn))
        ((loss, levels), grads), _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), drawn)
        return (loss / accumulate, levels), jax.tree.map(lambda g: g / accumulate, grads)

    return whole if accumulate == 1 else parts
