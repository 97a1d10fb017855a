"""Conditional distillation: the loss written out, what learns and what does not, and a problem with a known answer."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic_distillation import (
    ABAR,
    NET,
    QUICK,
    SCHEDULE,
    SHAPE,
    Point,
    a_resumed_run_replays,
    batches_hold_captions_of_their_images,
    captioned_latents,
    column,
    draws,
    largest_gradients,
    random_parameters,
    shaken,
    shares_memory,
    trained,
    what_reaches_the_program,
    with_networks,
)

from ldmscale.errors import UserError
from ldmscale.models.unet import UNet
from ldmscale.tasks.codi import CoDiTask, boundary_scalings


@pytest.fixture(scope="module")
def teacher():
    return random_parameters(NET)


def made(params=None, **changes):
    settings = {"latents": captioned_latents(), "batch_size": 4, "seed": 3} | changes
    return CoDiTask(settings.pop("config", NET), SCHEDULE, params, **settings)


# ---------------------------------------------------------------- the loss, with networks that can be written out


def waves(z, t):
    """A different function of z at every timestep."""
    return (jnp if isinstance(t, jax.Array) else np).cos(t / 200)[:, None, None, None] * z


class Made:
    """p waves + mean of the states + what the adapter adds."""

    def apply(self, variables, z, t, context, residuals=0.0):
        return variables["params"]["p"] * waves(z, t) + context.mean((1, 2))[:, None, None, None] + residuals


class MadeAdapter:
    """r (z + the first number of the states)."""

    def apply(self, variables, z, t, context):
        return variables["params"]["r"] * (z + context[:, 0, 0][:, None, None, None])


def by_hand(task, params, batch, key, ema, frozen):
    (sample, epsilon), (time, _, guide) = draws(key)
    t = np.broadcast_to(jax.random.randint(time, (1 if task.shared_t else 4,), 0, 1000), (4,))
    s = np.maximum(t - task.stride, 0)
    g = column(jax.random.uniform(guide, (4,), minval=task.cfg[0], maxval=task.cfg[1]))
    x = 0.5 * (batch["mean"].astype(np.float64) + batch["std"] * sample)
    context = batch["context"].astype(np.float64)
    null = np.broadcast_to(task.latents.null.astype(np.float64), context.shape)

    def read(output, z, t):
        a, b = column(np.sqrt(ABAR[t])), column(np.sqrt(1 - ABAR[t]))
        if task.prediction == "v":
            return a * z - b * output, a * output + b * z
        return (z - b * output) / a, output

    def student(params, z, t):
        def half(states):
            residuals = MadeAdapter().apply({"params": params["adapter"]}, z, t, states)
            return Made().apply(
                {"params": params["unet"] if task.trainable == "full" else frozen}, z, t, states, residuals
            )

        with_caption, without = half(context), half(null)
        x, eps = read((1 - g) * without + g * with_caption, z, t)
        if not task.boundary:
            return x, eps
        tau = column(10.0 * t)
        x = 0.25 / (tau**2 + 0.25) * z + tau / np.sqrt(tau**2 + 0.25) * x
        return x, (z - column(np.sqrt(ABAR[t])) * x) / column(np.sqrt(1 - ABAR[t]))

    z = column(np.sqrt(ABAR[t])) * x + column(np.sqrt(1 - ABAR[t])) * epsilon
    clean, noise = read(Made().apply({"params": frozen}, z, t, context), z, t)
    z_s = column(np.sqrt(ABAR[s])) * clean + column(np.sqrt(1 - ABAR[s])) * noise
    (x_t, eps_t), (x_s, eps_s) = student(params, z, t), student(ema, z_s, s)
    return (
        task.consistency * np.mean((x_t - x_s) ** 2)
        + task.noise_consistency * np.mean((eps_t - eps_s) ** 2)
        + task.signal * np.mean((x_t - x) ** 2)
    )


OPTIONS = [
    {},
    {"trainable": "full", "stride": 50, "cfg": (3.0, 3.5)},
    {"prediction": "v"},
    {"consistency": 0.0, "noise_consistency": 1.0, "signal": 1.0, "prediction": "v", "shared_t": True},
    {"consistency": 0.5, "noise_consistency": 2.0, "signal": 0.1, "boundary": True},
    {"boundary": True, "stride": 999},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_by_hand(options):
    task = with_networks(made(**options), net=Made(), adapter=MadeAdapter())
    params, ema = ({"adapter": {"r": r}, "unet": {"p": p}} for r, p in ((0.3, 0.9), (0.2, 1.2)))
    if task.trainable == "adapter":
        params, ema = ({"adapter": tree["adapter"]} for tree in (params, ema))
    for step in range(4):
        arguments = params, task.batch(step), jax.random.key(step), ema, {"p": 1.1}
        np.testing.assert_allclose(task.loss(*arguments), by_hand(task, *arguments), rtol=2e-4)


def test_a_network_that_is_consistent_has_no_loss():
    """Along the flow of one point every x is that point, whatever t, s and the guidance."""
    for options in ({}, {"stride": 1}, {"stride": 400}, {"noise_consistency": 1.0, "signal": 1.0}):
        task = with_networks(made(**options), net=Point(), adapter=MadeAdapter())
        params, batch = {"adapter": {"r": 0.0}}, task.batch(0)
        batch |= {"mean": np.full(SHAPE, 1.4, np.float32), "std": np.zeros(SHAPE, np.float32)}
        assert task.loss(params, batch, jax.random.key(0), params, {}) < 1e-8
        batch["mean"] = batch["mean"] + 1.0
        signal = options.get("signal", 0)
        assert (task.loss(params, batch, jax.random.key(0), params, {}) > 0.1) == bool(signal)


def test_the_boundary_condition_is_z_itself_at_t_0_and_x_anywhere_else():
    c_skip, c_out = boundary_scalings(jnp.array([0, 1, 20, 999]))
    np.testing.assert_allclose(c_skip, [1, 0.25 / 100.25, 0.25 / 40000.25, 0], atol=1e-8)
    np.testing.assert_allclose(c_out, [0, 10 / np.sqrt(100.25), 1, 1], atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_one_t_a_batch_or_one_a_sample(shared):
    task, seen = made(shared_t=shared, batch_size=64), []

    class Watching(Point):
        def apply(self, variables, z, t, context, residuals=None):
            seen.append(np.asarray(t))
            return super().apply(variables, z, t, context)

    with_networks(task, net=Watching(), adapter=MadeAdapter())
    task.loss({"adapter": {"r": 0.0}}, task.batch(0), jax.random.key(0), {"adapter": {"r": 0.0}}, {})
    teacher, student, target = seen
    assert (len(np.unique(teacher)) == 1) == shared
    np.testing.assert_array_equal(student, np.tile(teacher, 2))
    np.testing.assert_array_equal(target, np.maximum(np.tile(teacher, 2) - 20, 0))


def test_nothing_is_captured_when_the_loss_is_traced():
    for trainable in ("adapter", "full"):
        params = {"adapter": {"r": np.float32(0.3)}}
        params |= {"unet": {"p": np.float32(0.9)}} if trainable == "full" else {}
        task = with_networks(made({"p": np.float32(1.1)}, trainable=trainable), net=Made(), adapter=MadeAdapter())
        assert what_reaches_the_program(task, params) == [True] * 5


# ---------------------------------------------------------------- with the real networks


def test_the_student_begins_as_the_teacher(teacher):
    task = made(teacher)
    params = task.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    z, context = (rng.normal(size=shape).astype(np.float32) for shape in (SHAPE, (4, 3, 6)))
    t = np.array([0, 30, 500, 999])

    @partial(jax.jit, compiler_options=QUICK)
    def both(params, teacher):
        student = task._student(params, teacher, z, t, context, jnp.ones(4))[0]
        return student, UNet(NET).apply({"params": teacher}, z, t, context)

    clean, predicted = (np.asarray(x, np.float64) for x in both(params, teacher))
    wanted = (z - column(np.sqrt(1 - ABAR[t])) * predicted) / column(np.sqrt(ABAR[t]))
    assert np.abs(predicted).max() > 0.1
    np.testing.assert_allclose(clean, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trainable", ["adapter", "full"])
def test_gradients_reach_what_is_trainable_alone(teacher, trainable):
    task = made(teacher, trainable=trainable)
    params = shaken(task.init(jax.random.key(0)))
    assert sorted(params) == (["adapter"] if trainable == "adapter" else ["adapter", "unet"])
    student, target, frozen = largest_gradients(task, params, shaken(params), task.frozen)
    assert min(jax.tree.leaves(student)) > 0
    assert max(jax.tree.leaves((target, frozen))) == 0


def test_batches():
    batches_hold_captions_of_their_images(made(batch_size=2))
    one, other = made().batch(5), made().batch(5)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.array_equal(one["mean"], made(seed=4).batch(5)["mean"])


class Stopping(CoDiTask):
    def batch(self, step):
        if step == 10:
            raise RuntimeError("stopped")
        return super().batch(step)


def test_it_learns_a_resumed_run_replays_and_the_teacher_outlives_the_state(teacher, tmp_path):
    """The parameters are arrays of the device already, as those of a stage before would be."""
    on_device = jax.tree.map(jnp.asarray, teacher)
    task = made(on_device, trainable="full", signal=1.0)
    assert not shares_memory(task.init(jax.random.key(0)), on_device)
    fields = {name: getattr(task, name) for name in ("latents", "batch_size", "seed", "trainable", "signal")}
    stopping = Stopping(NET, SCHEDULE, on_device, **fields)
    losses = a_resumed_run_replays(task, stopping, tmp_path, learning_rate=3e-3, ema=0.9)
    assert losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, on_device, teacher)


# ---------------------------------------------------------------- a problem whose answer is known

BINS = 50
VARIANCE = 0.25


class Gaussian:
    """The exact network of data N(0, VARIANCE), plus what is added to its x per unit of z, in bins of t."""

    def apply(self, variables, z, t, context, residuals=0.0):
        alpha, sigma = (jnp.sqrt(a)[t][:, None, None, None] for a in jnp.asarray((ABAR, 1 - ABAR), jnp.float32))
        x = (alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) + residuals) * z
        return (z - alpha * x) / sigma


class Bins:
    def apply(self, variables, z, t, context):
        return variables["params"]["x"][t * BINS // 1000][:, None, None, None]


def test_it_learns_where_the_flow_leads():
    """From (z, t) the flow of a Gaussian reaches z sd(0) / sd(t). The network's x is the mean, and learns that instead,
    backwards from the boundary."""
    data = captioned_latents()
    values = np.random.default_rng(1).normal(0, np.sqrt(VARIANCE), (64, *SHAPE[1:])).astype(np.float32)
    data = replace(data, mean=values, std=0 * values, scale=1.0, first=np.arange(65), states=np.zeros((64, 3, 6)))
    task = made({}, latents=data, batch_size=64, boundary=True)
    with_networks(task, net=Gaussian(), adapter=Bins())
    params = trained(task, 2000, {"adapter": {"x": jnp.zeros(BINS)}}, learning_rate=0.01, ema=0.9, decay=True)
    t = np.arange(10, 1000, 20)
    deviation = np.sqrt(ABAR * VARIANCE + 1 - ABAR)
    mean, exact = (np.sqrt(ABAR) * VARIANCE / deviation**2)[t], (deviation[0] / deviation)[t]
    assert np.abs(mean - exact).max() > 0.4
    # What is left is mostly the error of the teacher's 50 steps.
    assert np.abs(mean + params["adapter"]["x"] - exact).max() < 0.04


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainable": "unet"}, "trainable is 'unet'; it must be adapter or full"),
        ({"prediction": "x"}, "prediction is 'x'; it must be epsilon or v"),
        ({"stride": 0}, "stride is 0; it must be from 1 to 999 timesteps"),
        ({"stride": 1000}, "stride is 1000;"),
        ({"consistency": 0.0}, "the loss's weights are consistency 0.0, noise_consistency 0.0, signal 0.0;"),
        ({"signal": -1.0}, "signal -1.0; none may be negative"),
        ({"cfg": (3.0, 2.0)}, "cfg is [3.0, 2.0]; it must be two guidance weights"),
        ({"cfg": (0.5, 2.0)}, "cfg is [0.5, 2.0]; it must be two guidance weights, 1 (none) or more"),
        ({"cfg": (1.0, float("inf"))}, "cfg is [1.0, inf]"),
        ({"cfg": (1.0,)}, "cfg is [1.0]"),
        ({"config": replace(NET, in_channels=8)}, "takes and predicts 8 and 4 channels"),
        ({"config": replace(NET, context_width=5)}, "attends to states of width 5; the latents have 4 channels and"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        made(**changes)
    assert "\n" not in str(error.value)
