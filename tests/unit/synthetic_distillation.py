"""What the tests of the distillations share: captioned latents, a small U-Net, and networks that can be written out."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.models.unet import UNetConfig
from ldmscale.training.loop import TrainConfig, TrainState, build_step, train
from ldmscale.training.weights import parameter_shapes

SCHEDULE = Schedule()
NET = UNetConfig(
    filters=8, channel_mult=(1,), blocks_per_level=1, attention_levels=(False,), heads=2, norm_groups=2, context_width=6
)
SHAPE = (4, 4, 4, 4)  # of the latents of a batch
ABAR = SCHEDULE.alphas_cumprod
QUICK = {"xla_backend_optimization_level": 0}


def captioned_latents(count=6, std=0.1):
    """``count`` latents of ``scale`` 0.5, with one to three captions each."""
    rng = np.random.default_rng(0)
    first = np.concatenate([[0], np.cumsum(1 + np.arange(count) % 3)])
    mean = rng.normal(0, 2, (count, *SHAPE[1:])).astype(np.float32)
    states, null = (rng.normal(size=shape).astype(np.float32) for shape in ((first[-1], 3, 6), (3, 6)))
    return Latents(mean, np.full_like(mean, std), states, first, null, 0.5)


def random_parameters(config, seed=8):
    """A small U-Net whose every parameter is random: an untrained one would predict nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), parameter_shapes(config))


def shaken(params, seed=4):
    """``params``, every one a little off."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.05, np.shape(x)), np.float32), params)


def with_networks(task, **networks):
    for name, network in networks.items():
        object.__setattr__(task, name, network)
    return task


class Point:
    """The exact network of data that are all ``x``: whatever the guidance, it predicts the noise that is in z."""

    def __init__(self, x=0.7):
        self.x = x

    def apply(self, variables, z, t, context, *rest, residuals=None):
        abar = jnp.asarray(ABAR, jnp.float32)[t][:, None, None, None]
        return (z - jnp.sqrt(abar) * self.x) / jnp.sqrt(1 - abar)


def column(values):
    return np.asarray(values, np.float64)[:, None, None, None]


def draws(key, count=4):
    """The standard normals of the latents and of the noise, float64, and the keys between them (``count`` in all)."""
    keys = jax.random.split(key, count)
    return [np.asarray(jax.random.normal(keys[i], SHAPE), np.float64) for i in (0, count - 2)], keys[1:]


def batches_hold_captions_of_their_images(task):
    """Each epoch shows every latent once, with one of its own captions; another task of the seed shows the same."""
    data = task.latents
    for epoch in range(2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = task.batch(step)
            for mean, context in zip(batch["mean"], batch["context"], strict=True):
                row = int(np.flatnonzero((data.mean == mean).all((1, 2, 3)))[0])
                caption = int(np.flatnonzero((data.states == context).all((1, 2)))[0])
                assert data.first[row] <= caption < data.first[row + 1]
                seen.append(row)
        assert sorted(seen) == list(range(6))


def what_reaches_the_program(task, params):
    """Of one compiled loss: whether other parameters, batch, key, average or teacher change its value."""
    traces = []

    def traced(*args):
        traces.append(0)
        return task.loss(*args)

    loss = jax.jit(traced)
    start = [params, task.batch(0), jax.random.key(0), shaken(params), shaken(task.frozen)]
    others = [shaken(params, 5), task.batch(1), jax.random.key(1), shaken(params, 6), shaken(task.frozen, 7)]
    values = [loss(*start)]
    for i, other in enumerate(others):
        values.append(loss(*[other if i == j else value for j, value in enumerate(start)]))
    assert len(traces) == 1
    return [bool(value != values[0]) for value in values[1:]]


def largest_gradients(task, params, ema, frozen):
    """By argument: the largest absolute gradient of every array."""
    gradient = jax.jit(jax.grad(task.loss, argnums=(0, 3, 4)), compiler_options=QUICK)
    found = gradient(params, task.batch(0), jax.random.key(2), ema, frozen)
    return [jax.tree.map(lambda g: float(np.abs(g).max()), tree) for tree in found]


def shares_memory(one, other):
    """Whether any array of two trees of device arrays is the same buffer."""
    buffers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)} for tree in (one, other)]
    return bool(buffers[0] & buffers[1])


def a_resumed_run_replays(task, stopping, folder: Path, steps=40, **settings):
    """``stopping`` is ``task`` but for a batch that fails at step 10: started again, it ends as if it had not.

    Returns the mean losses of each ten steps.
    """
    config = TrainConfig(steps=steps, warmup=2, weight_decay=0.0, seed=2, **settings)

    def run(task, name):
        return train(task, config, folder / name, "d", [steps], log_every=10, say=lambda line: None)[steps].read_bytes()

    whole = run(task, "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(stopping, "parts")
    assert (folder / "parts" / "state.safetensors").exists()
    assert run(task, "parts") == whole
    return [json.loads(line)["loss"] for line in open(folder / "parts" / "metrics.jsonl")][-steps // 10 :]


def trained(task, steps, init, **settings):
    """Parameters after ``steps`` of the loop's own step from ``init``."""
    config = TrainConfig(steps=steps, warmup=0, weight_decay=0.0, seed=1, flat=False, **settings)
    step = build_step(task, config)
    copies = [jax.tree.map(jnp.array, init) for _ in range(2)]
    state = TrainState(jnp.zeros((), jnp.int32), *copies, config.optimizer().init(init))
    for i in range(steps):
        state, _ = step(state, task.batch(i), task.frozen)
    return jax.device_get(state.params)
