"""The programs that devices run, lowered from shapes alone: the loop's training step, and sampling with guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.stages import Lowered

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.samplers import step_table
from ldmscale.diffusion.sampling import build_sampler, device_table
from ldmscale.diffusion.schedule import Schedule
from ldmscale.models.network import NetConfig, network
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training.loop import TrainConfig, build_step, initial_state
from ldmscale.training.sharding import AXES, batch_sharding, replicated, state_shardings
from ldmscale.training.weights import parameter_shapes


def training_step(
    net: NetConfig, latent_size: int, tokens: int, batch: int, mesh: Mesh, accumulate: int = 1
) -> Lowered:
    """The training loop's own step of pretraining ``net`` on ``mesh``, lowered: ``batch`` images a device, in
    ``accumulate`` parts."""
    task = _pretraining(net, latent_size, tokens, batch * mesh.size)
    config = _config(flat=mesh.size == 1)
    state = jax.eval_shape(partial(initial_state, task, config))
    shardings = state_shardings(state, mesh)
    examples = {
        key: jax.ShapeDtypeStruct((task.batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(mesh))
        for key, value in replace(task, batch_size=1).batch(0).items()
    }
    return build_step(task, config, shardings, accumulate=accumulate).lower(_placed(state, shardings), examples)


def sampling(net: NetConfig, latent_size: int, tokens: int, batch: int, mesh: Mesh) -> Lowered:
    """The sampling program of ``net`` with guidance, any sampler and step count, on ``mesh``, lowered."""
    denoiser, images = network(net), batch * mesh.size
    params = parameter_shapes(net)
    table = jax.eval_shape(lambda: device_table(step_table("ddim", Schedule(), 50, "leading")))
    everywhere, cut = replicated(mesh), batch_sharding(mesh)

    def spec(shape: tuple[int, ...], sharding: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    sample = build_sampler(lambda params, z, t, context: denoiser.apply({"params": params}, z, t, context))
    return jax.jit(sample, out_shardings=cut).lower(
        _placed(params, state_shardings(params, mesh)),
        _placed(table, jax.tree.map(lambda _: everywhere, table)),
        spec((), everywhere),
        spec((images, latent_size, latent_size, net.in_channels), cut),
        spec((images, tokens, net.context_width), cut),
        spec((tokens, net.context_width), everywhere),
        spec((images,), cut, jax.random.key(0).dtype),
    )


@dataclass(frozen=True)
class Held:
    """Bytes that training holds on each device whatever its batch: the state (weights, their average, two moments), and
    the gradients, which lie as the weights do."""

    state: int
    gradients: int

    @property
    def total(self) -> int:
        return self.state + self.gradients


def held(net: NetConfig, fsdp: Sequence[int]) -> list[Held]:
    """What training ``net`` holds on each device, for each length of the axis "fsdp": from shapes, of no device."""
    state = jax.eval_shape(partial(initial_state, _pretraining(net, 8, 1, 1), _config(flat=False)))
    meshes = [AbstractMesh((1, parts), AXES, (AxisType.Auto,) * 2) for parts in fsdp]
    return [Held(shard_bytes(state, mesh), shard_bytes(state.params, mesh)) for mesh in meshes]


def shard_bytes(tree: Any, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of a state's ``tree`` on each device of ``mesh``."""
    places = state_shardings(tree, mesh)
    sizes = jax.tree.map(lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize, tree, places)
    return sum(jax.tree.leaves(sizes))


def _pretraining(net: NetConfig, latent_size: int, tokens: int, batch: int) -> PretrainTask:
    # One image stands for the data: the step's shapes follow from it, its compiled form does not depend on values.
    moments = np.zeros((1, latent_size, latent_size, net.in_channels), np.float32)
    states = np.zeros((1, tokens, net.context_width), np.float32)
    latents = Latents(moments, moments, states, np.arange(2), states[0], 1.0)
    return PretrainTask(net, Schedule(), latents, batch, text_dropout=0.1, seed=0)


def _config(**changes: Any) -> TrainConfig:
    return TrainConfig(500_000, 1e-4, 10_000, 0.01, seed=0, ema=0.9999, **changes)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
