"""DreamBooth's task: where it starts, what a batch holds, and the loss, computed by hand on a made network."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.models.unet import UNetConfig
from ldmscale.tasks.dreambooth import RECIPE, Concept, DreamBoothTask
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training.checkpoint import load_tree
from ldmscale.training.loop import TrainConfig, build_step, initial_state, packing, train

SCHEDULE = Schedule()
UNET = UNetConfig(
    filters=8, channel_mult=(1,), blocks_per_level=1, attention_levels=(False,), heads=2, norm_groups=2, context_width=6
)


def concept(count, seed, channels=4, std=0.1):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(count, 4, 4, channels)).astype(np.float32)
    return Concept(mean, np.full_like(mean, std), rng.normal(size=(3, 6)).astype(np.float32))


class Made:
    """A network whose prediction is w z + b + t/1000 + the mean of the states."""

    def apply(self, variables, z, t, context):
        w, b = variables["params"]["w"], variables["params"]["b"]
        return w * z + b + (t / 1000)[:, None, None, None] + context.mean((1, 2))[:, None, None, None]


PARAMS = {"w": jnp.float32(0.7), "b": jnp.float32(-0.2)}


def made(net=None, **settings):
    """The task on the made network, or ``net``."""
    defaults = {"instance": concept(5, 0), "prior": concept(7, 1), "scale": 0.5, "seed": 3}
    task = DreamBoothTask(UNET, SCHEDULE, PARAMS, **(defaults | settings))
    object.__setattr__(task, "net", net or Made())
    return task


# ---------------------------------------------------------------- the start


@pytest.fixture(scope="module")
def unet_task():
    """The task on a real, small U-Net whose every parameter is random."""
    task = DreamBoothTask(UNET, SCHEDULE, None, concept(5, 0), concept(7, 1), 0.5, 3)
    shapes = jax.eval_shape(
        task.net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 3, 6))
    )["params"]
    rng = np.random.default_rng(8)
    params = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    return replace(task, params=params)


def test_training_starts_from_the_pretrained_network_and_moves_at_the_recipes_rate(unet_task):
    config = TrainConfig(**RECIPE, seed=1)
    tree = packing(unet_task).unpack
    for seed in (0, 1):
        state = initial_state(unet_task, replace(config, seed=seed))
        jax.tree.map(np.testing.assert_array_equal, tree(state.params), unet_task.params)
        jax.tree.map(np.testing.assert_array_equal, tree(state.ema), unet_task.params)
    after, (loss, *_) = build_step(unet_task, config)(state, unet_task.batch(0))
    assert np.isfinite(loss)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), tree(after.params), unet_task.params)
    # AdamW's first step is at most the rate, and the decay a hundredth of it.
    assert all(0 <= x <= 5e-6 * 1.02 + 3e-8 for x in jax.tree.leaves(moved))
    assert max(jax.tree.leaves(moved)) > 4e-6
    # Finetuning averages nothing: what is kept is what was trained.
    jax.tree.map(np.testing.assert_array_equal, after.ema, after.params)


def test_without_a_prior_it_is_pretraining_on_the_subject(unet_task):
    """Term for term the loss of the pretraining task, on the same data and random numbers."""
    alone = DreamBoothTask(UNET, SCHEDULE, None, unet_task.instance, None, 0.5, 3, batch_size=3, prior_weight=0)
    one = unet_task.instance
    latents = Latents(one.mean, one.std, np.stack([one.states] * 5), np.arange(6), one.states * 0, 0.5)
    pretraining = PretrainTask(UNET, SCHEDULE, latents, batch_size=3, text_dropout=0.0, seed=3)
    batch, key = alone.batch(0), jax.random.key(5)
    assert set(batch) == {"instance_mean", "instance_std", "instance_context"}
    plain = {name.removeprefix("instance_"): array for name, array in batch.items()}
    jax.tree.map(np.testing.assert_array_equal, plain, pretraining.batch(0))
    found = alone.loss(unet_task.params, batch, key)
    np.testing.assert_allclose(found, pretraining.loss(unet_task.params, plain, jax.random.fold_in(key, 0)), rtol=1e-6)


# ---------------------------------------------------------------- the loss


def by_hand(part, scale, key):
    """Squared errors [B,h,w,C] of the made network in float64, from the random numbers of ``key``."""
    latent, time, noise = jax.random.split(key, 3)
    mean, std, context = (part[name].astype(np.float64) for name in ("mean", "std", "context"))
    z0 = scale * (mean + std * np.asarray(jax.random.normal(latent, mean.shape), np.float64))
    t = np.asarray(jax.random.randint(time, mean.shape[:1], 0, 1000))
    epsilon = np.asarray(jax.random.normal(noise, mean.shape), np.float64)
    abar = SCHEDULE.alphas_cumprod[t][:, None, None, None]
    z = np.sqrt(abar) * z0 + np.sqrt(1 - abar) * epsilon
    prediction = float(PARAMS["w"]) * z + float(PARAMS["b"])
    prediction = prediction + (t / 1000)[:, None, None, None] + context.mean((1, 2))[:, None, None, None]
    return (prediction - epsilon) ** 2


@pytest.mark.parametrize("weight", [1.0, 0.25, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_loss_is_the_instances_and_the_weighted_priors(weight, batch_size):
    task = made(prior_weight=weight, batch_size=batch_size)
    batch, key = task.batch(6), jax.random.key(9)
    parts = [
        {n.removeprefix(f"{name}_"): a for n, a in batch.items() if n.startswith(name)}
        for name in ("instance", "prior")
    ]
    terms = [by_hand(part, 0.5, jax.random.fold_in(key, i)).mean() for i, part in enumerate(parts)]
    np.testing.assert_allclose(task.loss(PARAMS, batch, key), terms[0] + weight * terms[1], rtol=2e-5)


def test_the_network_sees_each_latent_with_its_own_states_and_timestep():
    """A network that knows each prompt's constant latent can undo the noise; with states mixed up it cannot."""

    class Oracle:
        def apply(self, variables, z, t, context):
            abar = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)[t][:, None, None, None]
            z0 = 0.5 * context[:, 0, 0][:, None, None, None]
            return (z - jnp.sqrt(abar) * z0) / jnp.sqrt(1 - abar)

    def constant(count, value):
        mean = np.full((count, 4, 4, 4), value, np.float32)
        return Concept(mean, 0 * mean, np.full((3, 6), value, np.float32))

    task = made(Oracle(), instance=constant(5, 2.0), prior=constant(7, -3.0), batch_size=4)
    batch = task.batch(0)
    assert float(task.loss(PARAMS, batch, jax.random.key(0))) < 1e-5
    swapped = {**batch, "instance_context": batch["prior_context"], "prior_context": batch["instance_context"]}
    assert float(task.loss(PARAMS, swapped, jax.random.key(0))) > 1


def test_no_prior_weight_ignores_the_prior():
    key, spoilt = jax.random.key(4), concept(7, 1)
    spoilt.mean[:] = np.nan
    losses = [
        float(task.loss(PARAMS, task.batch(2), key))
        for task in (made(prior=p, prior_weight=0) for p in (None, concept(7, 1), spoilt))
    ]
    assert np.isfinite(losses[0]) and losses[0] == losses[1] == losses[2]
    # And with the prior there the instance's part is the same, random numbers too.
    with_prior = made(prior_weight=1e-9)
    np.testing.assert_allclose(with_prior.loss(PARAMS, with_prior.batch(2), key), losses[0], rtol=1e-5)
    assert not np.isfinite(made(prior=spoilt).loss(PARAMS, made(prior=spoilt).batch(2), key))


# ---------------------------------------------------------------- batches


def which(array, concept):
    """Indices of the rows of ``array`` among the images of ``concept``."""
    return [int(np.flatnonzero((concept.mean == row).all((1, 2, 3)))[0]) for row in array]


def test_batches_are_functions_of_seed_and_step():
    task, again, other = made(), made(), made(seed=4)
    order = [9, 0, 30, 9, 12]
    for step in order:
        jax.tree.map(np.testing.assert_array_equal, task.batch(step), again.batch(step))
    for name in ("instance_mean", "prior_mean"):
        differ = [not np.array_equal(task.batch(step)[name], other.batch(step)[name]) for step in range(35)]
        assert 10 < sum(differ) < 35


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_cover_all_images_with_their_prompt(batch_size):
    task = made(batch_size=batch_size)
    for name, concept, count in (("instance", task.instance, 5), ("prior", task.prior, 7)):
        per_epoch = count // batch_size
        for epoch in range(3):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            seen = [i for step in steps for i in which(task.batch(step)[f"{name}_mean"], concept)]
            assert len(set(seen)) == len(seen) == per_epoch * batch_size
        batch = task.batch(11)
        assert batch[f"{name}_context"].shape == (batch_size, 3, 6)
        assert (batch[f"{name}_context"] == concept.states).all() and (batch[f"{name}_std"] == np.float32(0.1)).all()


def test_as_many_class_images_are_not_paired_with_the_instances():
    task = made(prior=concept(5, 1))
    pairs = {
        (*which(batch["instance_mean"], task.instance), *which(batch["prior_mean"], task.prior))
        for batch in map(task.batch, range(100))
    }
    assert len(pairs) > 15


def test_a_batch_beyond_the_images_repeats_them():
    batch = made(batch_size=6).batch(0)
    assert batch["instance_mean"].shape == (6, 4, 4, 4)


# ---------------------------------------------------------------- faults, and a run


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"prior": None}, "needs class images; set it to 0"),
        ({"prior_weight": -1.0}, "prior_weight is -1.0"),
        ({"prior_weight": float("nan")}, "prior_weight is nan"),
        ({"prior": concept(7, 1, channels=3)}, r"prior latents have shape \[7, 4, 4, 3\]"),
        ({"prior": concept(0, 1)}, r"prior latents have shape \[0, 4, 4, 4\]"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, words):
    with pytest.raises(UserError, match=words) as error:
        made(**settings)
    assert "\n" not in str(error.value)


def test_the_loop_trains_it_and_the_subjects_error_falls(tmp_path):
    task = made(batch_size=2)
    config = TrainConfig(**(RECIPE | {"steps": 120, "learning_rate": 0.02}), seed=2)
    kept = train(task, config, tmp_path, "digest", [120], log_every=60, say=lambda line: None)
    params, _ = load_tree(kept[120], jax.eval_shape(lambda: PARAMS))
    losses = [
        np.mean([float(task.loss(p, task.batch(s), jax.random.fold_in(jax.random.key(7), s))) for s in range(30)])
        for p in (PARAMS, jax.tree.map(jnp.asarray, params))
    ]
    assert losses[1] < 0.9 * losses[0]
