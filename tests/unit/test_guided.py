"""Guided distillation: each stage's target by brute force, one program for all stages, what learns, and resuming."""

import inspect
import re
from dataclasses import replace

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

from ldmscale.diffusion.samplers import step_table
from ldmscale.errors import UserError
from ldmscale.models.network import with_guidance
from ldmscale.models.unet import UNet
from ldmscale.tasks.guided import GuidedTask, halving, stage_one
from ldmscale.training.loop import TrainConfig, train

TOLD = replace(NET, guidance_width=8)
STAGES = [None, 16, 8, 4, 1]


@pytest.fixture(scope="module")
def teacher():
    return with_guidance(random_parameters(NET), TOLD)


NONE = {"time_embedding": {"cond_proj": {"kernel": np.zeros((8, 8), np.float32)}}}  # of networks without parameters


def made(params=NONE, steps=None, **changes):
    settings = {"latents": captioned_latents(), "batch_size": 4, "seed": 3} | changes
    return GuidedTask(settings.pop("config", TOLD), SCHEDULE, params, steps=steps, **settings)


# ---------------------------------------------------------------- the targets


def level(t):
    return np.sqrt(ABAR[t]), np.sqrt(1 - ABAR[t])


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 12, 16, 100, 499, 500])
def test_a_step_of_the_student_arrives_where_two_of_the_teacher_do(steps):
    targets = halving(SCHEDULE, steps)
    rng = np.random.default_rng(steps)
    teacher = rng.normal(size=1000)  # what it predicts as x at every t, times tanh(z)
    ends = [*targets.t[1:], 0]
    for i, (t, middle, end) in enumerate(zip(targets.t, targets.t2, ends, strict=True)):
        z = rng.normal(size=5)
        x1 = teacher[t] * np.tanh(z)
        eps1 = (z - level(t)[0] * x1) / level(t)[1]
        z2 = level(middle)[0] * x1 + level(middle)[1] * eps1
        x2 = teacher[middle] * np.tanh(z2)
        eps2 = (z2 - level(middle)[0] * x2) / level(middle)[1]
        arrived = level(end)[0] * x2 + level(end)[1] * eps2
        np.testing.assert_allclose(targets.a[i] * z + targets.b[i] * x1, z2, rtol=1e-9, atol=1e-12)
        target = targets.q[i] * x1 + (1 - targets.q[i]) * x2
        ratio = level(end)[1] / level(t)[1]
        literally = (arrived - ratio * z) / (level(end)[0] - ratio * level(t)[0])
        np.testing.assert_allclose(target, literally, rtol=1e-6, atol=1e-9)
        eps = (z - level(t)[0] * target) / level(t)[1]
        np.testing.assert_allclose(level(end)[0] * target + level(end)[1] * eps, arrived, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(targets.weight, np.maximum(ABAR[targets.t] / (1 - ABAR[targets.t]), 1), rtol=1e-12)
    assert not targets.guide.any()


def test_a_student_has_the_timesteps_it_is_sampled_at_and_its_teacher_as_many_between():
    for steps in range(1, 501):
        targets = halving(SCHEDULE, steps)
        np.testing.assert_array_equal(targets.t, step_table("ddim", SCHEDULE, steps, "trailing").timesteps)
        teacher = step_table("ddim", SCHEDULE, 2 * steps, "trailing").timesteps
        np.testing.assert_array_equal(targets.t2, teacher[1::2])
        assert np.abs(targets.t - teacher[::2]).max() <= 1  # ties are rounded either way
        assert (targets.t > targets.t2).all() and (targets.t2[:-1] > targets.t[1:]).all()
    np.testing.assert_array_equal(halving(SCHEDULE, 4).t, [999, 749, 499, 249])
    np.testing.assert_array_equal(halving(SCHEDULE, 4).t2, [874, 624, 374, 124])


def test_the_first_stage_is_at_every_timestep():
    targets = stage_one(SCHEDULE)
    np.testing.assert_array_equal(targets.t, np.arange(1000))
    np.testing.assert_array_equal(targets.t2, targets.t)
    np.testing.assert_allclose(targets.weight, np.maximum(ABAR / (1 - ABAR), 1), rtol=1e-12)


# ---------------------------------------------------------------- the loss, with a network that can be written out


class Made:
    """p z cos(t / 200) + the mean of the states (1 + w / 10)."""

    def apply(self, variables, z, t, context, w):
        wave = (jnp if isinstance(t, jax.Array) else np).cos(t / 200)
        states = context.mean((1, 2)) * (1 + w / 10)
        return variables["params"]["p"] * wave[:, None, None, None] * z + states[:, None, None, None]


def by_hand(task, params, batch, key, frozen):
    """The target of the first stage, or through the levels of two steps of the teacher."""
    (sample, epsilon), (_, guide) = draws(key, 3)
    t = batch["t"]
    w = np.asarray(jax.random.uniform(guide, (4,), minval=task.cfg[0] - 1, maxval=task.cfg[1] - 1), np.float64)
    context = batch["context"].astype(np.float64)
    null = np.broadcast_to(task.latents.null.astype(np.float64), context.shape)

    def clean(p, z, t, states):
        eps = Made().apply({"params": p}, z, t, states, w)
        return (z - column(level(t)[1]) * eps) / column(level(t)[0]), eps

    z = column(level(t)[0]) * 0.5 * (batch["mean"] + batch["std"] * sample) + column(level(t)[1]) * epsilon
    if task.steps is None:
        assert t.max() > 500 and len(set(t)) > 1
        target = (1 + column(w)) * clean(frozen, z, t, context)[0] - column(w) * clean(frozen, z, t, null)[0]
    else:
        grid = np.append(np.round(np.linspace(1000, 0, 2 * task.steps, endpoint=False)).astype(int) - 1, 0)
        here = np.array([int(np.flatnonzero(grid == now)[0]) for now in t])
        assert not (here % 2).any()
        current = z
        for now, then in ((grid[here], grid[here + 1]), (grid[here + 1], grid[here + 2])):
            x, eps = clean(frozen, current, now, context)
            current = column(level(then)[0]) * x + column(level(then)[1]) * eps
        ratio = column(level(then)[1] / level(t)[1])
        target = (current - ratio * z) / (column(level(then)[0]) - ratio * column(level(t)[0]))
    weight = column(np.maximum(ABAR[t] / (1 - ABAR[t]), 1))
    return np.mean(weight * (clean(params, z, t, context)[0] - target) ** 2)


@pytest.mark.parametrize("steps", STAGES)
def test_the_loss_by_hand(steps):
    task = with_networks(made(steps=steps, cfg=(3.0, 9.0)), net=Made())
    for step in range(4):
        batch, key = task.batch(step), jax.random.key(step)
        found = task.loss({"p": 0.9}, batch, key, None, {"p": 1.1})
        np.testing.assert_allclose(found, by_hand(task, {"p": 0.9}, batch, key, {"p": 1.1}), rtol=1e-3)


@pytest.mark.parametrize("steps", STAGES)
def test_a_teacher_whose_flow_is_straight_is_already_its_student(steps):
    """Two steps towards one point are one step, and its prediction is the same with the caption and without."""
    task = with_networks(made(steps=steps), net=Point())
    batch = task.batch(0) | {"mean": np.full(SHAPE, 1.4, np.float32), "std": np.zeros(SHAPE, np.float32)}
    assert task.loss({}, batch, jax.random.key(0), None, {}) < 1e-6
    with_networks(task, net=Made())
    assert task.loss({"p": 1.0}, batch, jax.random.key(0), None, {"p": 1.0}) > 1e-3


def test_nothing_is_captured_when_the_loss_is_traced():
    for steps in (None, 4):
        task = with_networks(made(NONE | {"p": np.float32(1.1)}, steps), net=Made())
        # Everything but the average, of which no stage makes use.
        assert what_reaches_the_program(task, {"p": np.float32(0.9)}) == [True, True, True, False, True]


# ---------------------------------------------------------------- with the real network


def test_all_stages_are_one_program(teacher):
    def lowered(task):
        batch = task.batch(0)
        return (
            jax.jit(jax.value_and_grad(task.loss)).lower(teacher, batch, jax.random.key(0), teacher, teacher).as_text()
        )

    texts = [lowered(made(teacher, steps)) for steps in (None, 16, 4)]
    assert texts[1:] == texts[:1] * 2
    assert texts[0] != lowered(made(teacher, cfg=(1.0, 5.0)))


def test_a_program_that_stages_share_trains_each_as_its_own_does(teacher, tmp_path):
    config, programs = TrainConfig(steps=2, learning_rate=1e-3, warmup=0, weight_decay=0.0, seed=3), {}

    def kept(folder, steps, programs):
        task = made(teacher, steps)
        return train(task, config, tmp_path / folder, "digest", [2], say=lambda line: None, programs=programs)[2]

    for steps in (None, 4):
        shared = kept(f"shared-{steps}", steps, programs).read_bytes()
        assert shared == kept(f"own-{steps}", steps, None).read_bytes()
    (program,) = programs.values()
    parts = inspect.getclosurevars(program).nonlocals
    assert (parts["gradient"]._cache_size(), parts["update"]._cache_size()) == (1, 1)


def test_the_student_begins_as_the_teacher(teacher):
    """Told not to guide, the first stage has nothing to teach; told to, it has."""
    losses = []
    for cfg in ((1.0, 1.0), (3.0, 3.0)):
        task = made(teacher, cfg=cfg)
        loss = jax.jit(task.loss, compiler_options=QUICK)
        losses.append(loss(task.init(jax.random.key(0)), task.batch(0), jax.random.key(0), None, task.frozen))
    assert losses[0] < 1e-9 and losses[1] > 1e-4
    z, context = np.ones(SHAPE, np.float32), np.ones((4, 3, 6), np.float32)
    t, w = np.array([0, 30, 500, 999]), np.array([0.0, 1.0, 6.5, 10.0], np.float32)
    run = jax.jit(lambda net, p, *rest: net.apply({"params": p}, z, t, context, *rest), static_argnums=0)
    plain = {**teacher, "time_embedding": {k: v for k, v in teacher["time_embedding"].items() if k != "cond_proj"}}
    np.testing.assert_array_equal(run(UNet(TOLD), task.init(jax.random.key(0)), w), run(UNet(NET), plain))


@pytest.mark.parametrize("steps", [None, 4])
def test_gradients_reach_the_student_alone(teacher, steps):
    task = made(teacher, steps)
    student, average, frozen = largest_gradients(task, shaken(teacher), shaken(teacher), task.frozen)
    assert min(jax.tree.leaves(student)) > 0
    assert max(jax.tree.leaves((average, frozen))) == 0


class Stopping(GuidedTask):
    def batch(self, step):
        if step == 10:
            raise RuntimeError("stopped")
        return super().batch(step)


def test_a_resumed_run_replays_and_the_teacher_outlives_the_state(teacher, tmp_path):
    """The parameters are arrays of the device already, as those of a stage before would be."""
    on_device = jax.tree.map(jnp.array, teacher)
    task = made(on_device, 4)
    assert not shares_memory(task.init(jax.random.key(0)), on_device)
    fields = {name: getattr(task, name) for name in ("latents", "batch_size", "seed", "steps")}
    stopping = Stopping(TOLD, SCHEDULE, on_device, **fields)
    a_resumed_run_replays(task, stopping, tmp_path, steps=20, learning_rate=1e-3)
    jax.tree.map(np.testing.assert_array_equal, on_device, jax.tree.map(np.asarray, teacher))


class Told:
    """The states' mean is the noise; the guidance weight adds its share of it, times a parameter that learns."""

    def apply(self, variables, z, t, context, w):
        states = context.mean((1, 2)) * (1 + variables["params"]["share"] * w)
        return jnp.broadcast_to(states[:, None, None, None], z.shape)


def test_it_learns_to_guide():
    """With no noise in the empty caption the guided noise is (1 + w) times the caption's."""
    data = captioned_latents()
    task = made(NONE | {"share": jnp.zeros(())}, latents=replace(data, null=0 * data.null))
    with_networks(task, net=Told())
    params = trained(task, 100, task.params, learning_rate=0.05, decay=True)
    assert params["share"] == pytest.approx(1, abs=0.02)


# ---------------------------------------------------------------- batches, faults


@pytest.mark.parametrize("steps", STAGES)
def test_a_batch_brings_one_row_of_the_targets_a_sample(steps):
    task = made(steps=steps, batch_size=50)
    seen = []
    for step in range(20):
        batch = task.batch(step)
        jax.tree.map(np.testing.assert_array_equal, batch, made(steps=steps, batch_size=50).batch(step))
        for i in range(50):
            row = int(np.flatnonzero(task.targets.t == batch["t"][i])[0])
            for name, column_ in task.targets._asdict().items():
                assert batch[name][i] == column_.astype(batch[name].dtype)[row], name
            seen.append(row)
    counts = np.bincount(seen, minlength=len(task.targets.t))
    assert (
        len(counts) == len(task.targets.t) and abs(np.mean(seen) / max(1, len(counts) - 1) - 0.5) < 0.05 or steps == 1
    )
    batches_hold_captions_of_their_images(made(steps=steps, batch_size=2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0; a student of halved steps takes from 1 to 500"),
        ({"steps": 501}, "steps is 501;"),
        ({"config": NET}, "guidance_width is 0; a student of guided distillation needs one"),
        ({"params": {"time_embedding": {}}}, "the parameters have no time_embedding/cond_proj"),
        ({"cfg": (8.0, 2.0)}, "cfg is [8.0, 2.0]; it must be two guidance weights"),
        ({"config": replace(TOLD, out_channels=8)}, "takes and predicts 4 and 8 channels"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        made(**changes)
    assert "\n" not in str(error.value)
