"""Initial parameters whose random bits are drawn as one array: the same numbers, a tenth of the program to compile.

A network draws each of its tensors with a key of its own (flax folds the tensor's path in), and XLA compiles Threefry
once for every tensor, longer than a small network's forward pass. Here it is computed once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

WIDTH = 1024  # bits are drawn in rows of so many, which share a key
ROTATIONS = np.array([[13, 15, 26, 6], [17, 29, 16, 24]], np.uint32)
Bits = Callable[[jax.Array, tuple[int, ...]], Any]


def drawn_together(init: Callable[[jax.Array], Any], seed: int) -> Any:
    """``init(jax.random.key(seed))``, to be called in a program; every number is the one that it draws by itself."""
    with jax.ensure_compile_time_eval():
        key = jax.random.key(seed)
    closed, out = jax.make_jaxpr(init, return_shape=True)(key)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))  # without the network's output
    given = [x for x, needed in zip([key], used, strict=True) if needed]

    asked: list[tuple[jax.Array, int]] = []

    def note(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        asked.append((key, math.prod(shape)))
        return jnp.zeros(shape, jnp.uint32)

    _evaluate(jaxpr, closed.consts, given, note)
    if not asked or not jax.config.jax_threefry_partitionable or jax.random.key_data(key).shape != (2,):
        return init(key)  # whose bits are none, or drawn another way (jax_default_prng_impl)
    rows = [-(-size // WIDTH) for _, size in asked]
    with jax.ensure_compile_time_eval():
        keys = np.asarray(jax.random.key_data(jnp.stack([key for key, _ in asked])))
    keys = np.repeat(keys, rows, axis=0)
    counts = np.concatenate([np.arange(n, dtype=np.uint32) for n in rows]) * np.uint32(WIDTH)
    bits = _threefry(keys[:, :1], keys[:, 1:], counts[:, None])
    parts = iter(jnp.split(bits, np.cumsum(rows)[:-1]))

    def take(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return next(parts).reshape(-1)[: math.prod(shape)].reshape(shape)

    return jax.tree.unflatten(jax.tree.structure(out), _evaluate(jaxpr, closed.consts, given, take))


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Any], bits: Bits) -> list[Any]:
    """The values of ``jaxpr`` with random bits of a key from ``bits``; keys are computed as it is traced."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True))
    for eqn in jaxpr.eqns:
        arguments = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if eqn.primitive.name == "random_bits" and eqn.params["bit_width"] == 32:
            found = [bits(arguments[0], eqn.params["shape"])]
        elif eqn.primitive.name == "jit":
            inner = eqn.params["jaxpr"]
            found = _evaluate(inner.jaxpr, inner.consts, arguments, bits)
        else:
            of_keys = jax.dtypes.issubdtype(eqn.outvars[0].aval.dtype, jax.dtypes.prng_key)
            with jax.ensure_compile_time_eval() if of_keys else nullcontext():
                found = eqn.primitive.bind(*arguments, **eqn.params)
            found = found if eqn.primitive.multiple_results else [found]
        values.update(zip(eqn.outvars, found, strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _threefry(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> jax.Array:
    """Random bits uint32 [R,WIDTH] of keys (``first``, ``second``) [R,1] from ``counts`` [R,1] on: Threefry-2x32 of 20
    rounds (Salmon et al., SC 2011), its two words exclusive-or'd, as JAX draws 32 bits (jax_threefry_partitionable)."""
    keys = jnp.stack([first, second, first ^ second ^ np.uint32(0x1BD11BDA)])
    x = jnp.broadcast_to(keys[0], (len(counts), WIDTH))  # the count's upper word is 0
    y = counts + keys[1] + jnp.arange(WIDTH, dtype=jnp.uint32)

    def four(i: jax.Array, words: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, y = words
        for rotation in jnp.asarray(ROTATIONS)[i % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        return x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)

    # A loop, for no tensor can compute its bits again in its own.
    x, y = jax.lax.fori_loop(0, 5, four, (x, y))
    return x ^ y
