"""Super-resolution's task: where finetuning starts, what a batch holds, the loss by hand, and a short run."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.models.network import widen
from ldmscale.models.unet import UNet, UNetConfig
from ldmscale.tasks.diffuse import diffuse
from ldmscale.tasks.superres import SuperresTask
from ldmscale.training.checkpoint import load_tree
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.weights import parameter_shapes

SCHEDULE = Schedule()
PRETRAINED = UNetConfig(
    filters=8, channel_mult=(1,), blocks_per_level=1, attention_levels=(False,), heads=2, norm_groups=2, context_width=6
)
WIDENED = replace(PRETRAINED, in_channels=8)


@pytest.fixture(scope="module")
def pretrained():
    """A small U-Net whose every parameter is random: untrained ones would predict nothing."""
    rng = np.random.default_rng(8)
    return jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), parameter_shapes(PRETRAINED))


def arrays(count=6, seed=0, noise=0.3):
    """Latents, and conditions that tell most of them."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(count, 4, 4, 4)).astype(np.float32)
    condition = (0.5 * mean + noise * rng.normal(size=mean.shape)).astype(np.float32)
    null = rng.normal(size=(3, 6)).astype(np.float32)
    return {"mean": mean, "std": np.full_like(mean, 0.1), "condition": condition, "null": null}


def made(params, **changes):
    settings = {"scale": 0.5, "batch_size": 4, "seed": 3} | arrays() | changes
    return SuperresTask(settings.pop("config", WIDENED), SCHEDULE, params, **settings)


# ---------------------------------------------------------------- the start


def test_the_widened_network_is_the_pretrained_one_whatever_the_condition(pretrained):
    params = made(pretrained).init(jax.random.key(0))
    jax.tree.map(lambda leaf, want: None if leaf.shape == want.shape else 1 / 0, params, parameter_shapes(WIDENED))
    rng = np.random.default_rng(1)
    z, context = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4, 4, 4), (5, 3, 6)))
    t = np.array([0, 1, 500, 998, 999])
    run = jax.jit(lambda config, params, x: UNet(config).apply({"params": params}, x, t, context), static_argnums=0)
    wanted = run(PRETRAINED, pretrained, z)
    assert np.abs(wanted).max() > 0.1
    for condition in (np.zeros_like(z), rng.normal(size=z.shape), 1e6 * rng.normal(size=z.shape)):
        seen = np.concatenate([z, condition.astype(np.float32)], axis=-1)
        np.testing.assert_array_equal(run(WIDENED, params, seen), wanted)


def test_widening_leaves_everything_else_and_its_argument_alone(pretrained):
    before = jax.tree.map(np.copy, pretrained)
    params = widen(pretrained, PRETRAINED, 4)
    kernel = params["conv_in"]["kernel"]
    assert kernel.shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(kernel[:, :, :4], pretrained["conv_in"]["kernel"])
    np.testing.assert_array_equal(kernel[:, :, 4:], 0)
    params["conv_in"]["kernel"] = kernel[:, :, :4]
    jax.tree.map(np.testing.assert_array_equal, params, pretrained)
    jax.tree.map(np.testing.assert_array_equal, pretrained, before)


def test_the_condition_is_learnt_from(pretrained):
    """Though they are zero, the new weights have a gradient, and it is the condition's doing."""
    task = made(pretrained)
    batch, key = task.batch(0), jax.random.key(1)
    params = task.init(key)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @jax.grad
    def gradient_of(kernel, condition):
        conv_in = {**params["conv_in"], "kernel": kernel}
        return task.loss({**params, "conv_in": conv_in}, {**batch, "condition": condition}, key)

    def gradient(condition):
        return np.asarray(gradient_of(params["conv_in"]["kernel"], condition))[:, :, 4:]

    found = gradient(batch["condition"])
    assert (np.abs(found).max((0, 1, 3)) > 1e-4).all()
    np.testing.assert_array_equal(gradient(0 * batch["condition"]), 0)
    np.testing.assert_allclose(gradient(2 * batch["condition"]), 2 * found, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- the loss


class Made:
    """A network whose prediction is the noisy latent, plus twice the condition, t/1000 and the mean of the states."""

    def apply(self, variables, x, t, context):
        z, condition = jnp.split(x, 2, axis=-1)
        rest = (t / 1000)[:, None, None, None] + context.mean((1, 2))[:, None, None, None]
        return z + variables["params"]["w"] * condition + rest


def test_the_loss_by_hand(pretrained):
    task = made(pretrained)
    object.__setattr__(task, "net", Made())
    batch, key = task.batch(2), jax.random.key(9)
    latent, time, noise = jax.random.split(key, 3)
    sample, epsilon = (np.asarray(jax.random.normal(k, (4, 4, 4, 4)), np.float64) for k in (latent, noise))
    t = np.asarray(jax.random.randint(time, (4,), 0, 1000))
    abar = SCHEDULE.alphas_cumprod[t][:, None, None, None]
    # The latent is scaled here, the condition came scaled.
    z = np.sqrt(abar) * 0.5 * (batch["mean"] + batch["std"] * sample) + np.sqrt(1 - abar) * epsilon
    prediction = z + 2.0 * batch["condition"] + (t / 1000)[:, None, None, None] + task.null.mean(dtype=np.float64)
    found = task.loss({"w": 2.0}, batch, key)
    np.testing.assert_allclose(found, np.mean((prediction - epsilon) ** 2), rtol=2e-5)


def test_the_forward_process_keeps_the_variance_and_sees_every_timestep():
    """Latents of variance 1 stay so at every timestep, and the noise given is the noise that is in them."""
    mean = np.random.default_rng(0).normal(0, 2 * np.sqrt(1 - 0.36), (4000, 4, 4, 1)).astype(np.float32)
    z, t, noise = diffuse(Schedule(steps=10), 0.5, mean, np.full_like(mean, 1.2), jax.random.key(0))
    abar = Schedule(steps=10).alphas_cumprod
    for step in range(10):
        chosen = np.asarray(t) == step
        assert 300 < chosen.sum() < 500
        assert np.asarray(z)[chosen].var() == pytest.approx(1, abs=0.08)
        correlation = np.corrcoef(np.asarray(z)[chosen].ravel(), np.asarray(noise)[chosen].ravel())[0, 1]
        assert correlation == pytest.approx(np.sqrt(1 - abar[step]), abs=0.05)


# ---------------------------------------------------------------- batches


def test_a_batch_pairs_each_latent_with_its_condition(pretrained):
    task = made(pretrained, batch_size=2)
    for epoch in range(2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = task.batch(step)
            jax.tree.map(np.testing.assert_array_equal, batch, made(pretrained, batch_size=2).batch(step))
            for mean, condition in zip(batch["mean"], batch["condition"], strict=True):
                row = int(np.flatnonzero((task.mean == mean).all((1, 2, 3)))[0])
                np.testing.assert_array_equal(condition, task.condition[row])
                seen.append(row)
        assert sorted(seen) == list(range(6))


# ---------------------------------------------------------------- faults, and a run


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"std": np.zeros((5, 4, 4, 4))},
            "their deviations [5, 4, 4, 4] and their conditions [6, 4, 4, 4]; all must be",
        ),
        ({"condition": np.zeros((6, 2, 2, 4))}, "conditions [6, 2, 2, 4]; all must be [N,h,w,C]"),
        ({name: np.zeros((0, 4, 4, 4)) for name in ("mean", "std", "condition")}, "N at least 1"),
        ({name: np.zeros((6, 4, 4, 3)) for name in ("mean", "std", "condition")}, "latents have 3 channels"),
        (
            {"config": PRETRAINED},
            "pretrained network takes 4, the finetuned one 4 and predicts 4; these must be 4, 8 and 4",
        ),
        ({"null": np.zeros((3, 5))}, "states have shape [3, 5]; they must be [L,6]"),
        ({"null": np.zeros(6)}, "states have shape [6]; they must be [L,6]"),
    ],
)
def test_what_does_not_fit_is_refused(pretrained, changes, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        made(pretrained, **changes)
    assert "\n" not in str(error.value)


def test_a_network_that_is_widened_already_is_refused(pretrained):
    with pytest.raises(UserError, match="the pretrained network takes 8"):
        made(widen(pretrained, PRETRAINED, 4))


def test_the_loop_trains_it_and_it_learns_to_use_the_condition(pretrained, tmp_path):
    task = made(pretrained, **arrays(32, noise=0.02), batch_size=16)
    config = TrainConfig(steps=150, learning_rate=0.01, warmup=5, weight_decay=0.0, seed=2)
    kept = train(task, config, tmp_path, "digest", [150], log_every=75, say=lambda line: None)
    start = task.init(jax.random.key(0))
    params, _ = load_tree(kept[150], jax.eval_shape(lambda: start))
    assert np.abs(params["conv_in"]["kernel"][:, :, 4:]).max() > 0.01
    loss = jax.jit(task.loss)

    def mean_loss(params, turn=0):
        batches = ({**b, "condition": np.roll(b["condition"], turn, axis=0)} for b in map(task.batch, range(20)))
        return np.mean([float(loss(params, b, jax.random.key(100 + i))) for i, b in enumerate(batches)])

    trained = mean_loss(params)
    assert trained < 0.8 * mean_loss(start)
    # Another image's condition misleads it: what it learnt is to look.
    assert mean_loss(params, turn=1) > 1.05 * trained
