"""The sampling program: one compiled loop that serves every sampler, step count and guidance weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.diffusion.samplers import StepTable
from ldmscale.errors import UserError


class DeviceTable(NamedTuple):
    """A :class:`StepTable` for the device: every column float32 [max_steps] (timesteps int32), of which ``n`` count."""

    n: jax.Array
    timesteps: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array
    s: jax.Array
    alpha: jax.Array
    sigma: jax.Array


def device_table(table: StepTable, max_steps: int = 1000) -> DeviceTable:
    """Pad ``table`` to ``max_steps`` rows, so that all tables have one shape and share one compiled program.

    Raises :class:`UserError` if the table has more than ``max_steps`` steps.
    """
    steps = len(table)
    if steps > max_steps:
        raise UserError(f"steps is {steps}; the sampling program was built for at most {max_steps}.")

    def padded(column: np.ndarray, dtype) -> jax.Array:
        return jnp.asarray(np.pad(column, (0, max_steps - steps)).astype(dtype))

    columns = (table.a, table.b, table.c, table.s, table.alpha, table.sigma)
    return DeviceTable(
        jnp.asarray(steps, jnp.int32), padded(table.timesteps, np.int32), *(padded(x, np.float32) for x in columns)
    )


def build_sampler(
    apply_fn: Callable[..., jax.Array], max_steps: int = 1000, told: bool = False,
    options: dict[str, bool] | None = None,
) -> Callable[..., jax.Array]:  # fmt: skip
    """Compile-once sampler of the network ``apply_fn(params, z[R,...], t[R] int32, context[R,L,D]) -> eps[R,...]``.

    Returns ``sample(params, table, cfg, z_T[B,...], context[B,L,D], null_context[L,D], keys[B]) -> z_0[B,...]``:
    ``table`` from :func:`device_table` with the same ``max_steps``; ``cfg`` the guidance weight g of
    eps = eps_null + g (eps_cond - eps_null) (arXiv 2207.12598), both halves in one batch of R = 2B, or None without
    guidance, where R = B and ``null_context`` is ignored; ``keys`` one random key per image. The number of steps, g and
    whether there is one are traced, so B guided images and 2B others share a program. ``options`` are the compiler's.

    The noise of step i for image j depends on (keys[j], i) alone, so an image does not depend on its batch. A network
    that is ``told`` the weight, a student of guided distillation (arXiv 2210.03142), is evaluated once an image:
    ``apply_fn(params, z, t, context, w[B])`` with w = cfg - 1.
    """

    def run(params, table: DeviceTable, cfg, guided, z_T, context, keys):
        def eps_of(z, t):
            w = (jnp.broadcast_to(cfg - 1.0, z.shape[:1]),) if told else ()
            eps = apply_fn(params, z, jnp.broadcast_to(t, z.shape[:1]), context, *w).astype(z.dtype)
            if told or len(z) % 2:
                return eps
            cond, null = jnp.moveaxis(eps.reshape(-1, 2, *eps.shape[1:]), 1, 0)
            return jnp.where(guided, _beside(*[null + cfg * (cond - null)] * 2), eps)

        def step(i, carry):
            z, x0_prev = carry
            t, a, b, c, s, alpha, sigma = (column[i] for column in table[1:])
            eps = eps_of(z, t)
            x0 = (z - sigma * eps) / alpha
            z = a * z + b * x0 + c * x0_prev
            # Deterministic steps skip the random numbers.
            z = jax.lax.cond(s > 0, lambda z: z + s * _noise(keys, i, z), lambda z: z, z)
            return z, x0

        return jax.lax.fori_loop(0, table.n, step, (z_T, jnp.zeros_like(z_T)))[0]

    program = jax.jit(run, compiler_options=options)

    def sample(params, table, cfg, z_T, context, null_context, keys):
        if table.timesteps.shape != (max_steps,):
            raise ValueError(f"table is padded to {table.timesteps.shape[0]} steps, the sampler to {max_steps}")
        if told and cfg is None:
            raise ValueError("cfg is None, and the network is told it: give the weight, 1.0 for no guidance")
        guided = cfg is not None and not told
        if guided:
            z_T, context, keys = _pairs(z_T, context, null_context, keys)
        # One type for every cfg: 2, 2.0 and float32(2) would otherwise compile three programs.
        weight = jnp.asarray(1.0 if cfg is None else cfg, jnp.float32)
        z = program(params, table, weight, jnp.asarray(guided), z_T, context, keys)
        return _firsts(z) if guided else z

    return sample


def _beside(one: jax.Array, other: jax.Array) -> jax.Array:
    """Two batches [B,...] as one [2B,...], an image's two rows side by side: both lie on its device, and no step sends
    anything to another."""
    return jnp.stack([one, other], axis=1).reshape(-1, *one.shape[1:])


@jax.jit
def _pairs(z: jax.Array, context: jax.Array, null: jax.Array, keys: jax.Array) -> tuple[jax.Array, ...]:
    """Of every image two rows, with its caption and without."""
    return _beside(z, z), _beside(context, jnp.broadcast_to(null, context.shape)), _beside(keys, keys)


@jax.jit
def _firsts(z: jax.Array) -> jax.Array:
    return z.reshape(-1, 2, *z.shape[1:])[:, 0]


def _noise(keys: jax.Array, i: jax.Array, z: jax.Array) -> jax.Array:
    """Standard normal [B,...]: image j's from (keys[j], i)."""
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
    return jax.vmap(lambda key: jax.random.normal(key, z.shape[1:], z.dtype))(step_keys)
