"""Validation losses: what is measured, that all models see the same, that nothing depends on the batch."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_study import random_weights

from ldmscale.cells.cell import Cell
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.cells import Generator
from ldmscale.generation.draws import Draws
from ldmscale.metrics.validation import Validator, level_timesteps
from ldmscale.models.unet import UNet, UNetConfig

NET = UNetConfig(8, channel_mult=(1, 2), blocks_per_level=1, attention_levels=(True, False), heads=2, norm_groups=4,
                 context_width=6, in_channels=3, out_channels=3)  # fmt: skip
SCHEDULE = Schedule()
RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(5, 4, 4, 3)).astype(np.float32)
STATES = RNG.normal(size=(5, 7, 6)).astype(np.float32)
T = level_timesteps(1000, 4)


@pytest.fixture(scope="module")
def weights():
    return random_weights(NET, 1)


@lru_cache  # a compilation each
def generator(batch=2):
    return Generator(NET, SCHEDULE, 4, batch, 0)


def test_levels_lie_in_the_middle_of_equal_stretches():
    assert T.tolist() == [125, 375, 625, 875]
    assert level_timesteps(1000, 10).tolist() == list(range(50, 1000, 100))
    assert level_timesteps(3, 3).tolist() == [0, 1, 2] and level_timesteps(1000, 1).tolist() == [500]
    for levels in (0, 1001):
        with pytest.raises(UserError, match=f"validation.levels is {levels}"):
            level_timesteps(1000, levels)


def test_the_program_returns_the_noise_that_the_network_predicts(weights):
    for t in (0, 400, 999):
        found = generator().noise(weights, LATENTS, t, STATES)
        expected = UNet(NET).apply({"params": weights}, jnp.asarray(LATENTS), jnp.full(5, t), jnp.asarray(STATES))
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.shape == LATENTS.shape and np.abs(found).max() > 0.1


def test_it_is_the_sampling_program_that_unguided_cells_compile(weights):
    made = generator.__wrapped__(2)  # that has compiled nothing
    draws = Draws(STATES, STATES[0], np.arange(5), ["tuning"] * 5)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if "backend_compile" in event else None
    )
    try:
        made.latents(weights, Cell("t2i", "m", "pretrain-1", "ddim", 2, 1.0), "leading", draws)
        longest, count = max(compiled), len(compiled)
        made.noise(weights, LATENTS, 10, STATES)
        assert max(compiled[count:], default=0.0) < longest / 5  # no network again, if an odd slice or sum
    finally:
        jax.monitoring.clear_event_listeners()


def test_losses_are_the_mean_squared_error_of_the_noise(weights):
    validator = Validator(SCHEDULE, LATENTS, STATES, T, 0)
    losses = validator.losses(generator(), weights)
    assert losses.shape == (4, 5) and losses.dtype == np.float32
    for k, t in enumerate(T):
        abar = SCHEDULE.alphas_cumprod[t]
        noise = validator.noises[k]
        noisy = np.sqrt(abar) * LATENTS + np.sqrt(1 - abar) * noise
        predicted = generator().noise(weights, noisy.astype(np.float32), int(t), STATES)
        np.testing.assert_allclose(losses[k], ((predicted - noise) ** 2).mean((1, 2, 3)), rtol=1e-4)


def test_noises_are_standard_normal_and_differ_by_image_and_level():
    many = Validator(SCHEDULE, np.zeros((200, 4, 4, 3), np.float32), np.zeros((200, 7, 6)), T, 0).noises
    assert abs(many.mean()) < 0.02 and many.std() == pytest.approx(1, abs=0.02)
    flat = many.reshape(-1, 48)
    assert len(np.unique(flat[:, 0])) == len(flat)
    assert np.abs(np.corrcoef(flat[:50]) - np.eye(50)).max() < 0.7


def test_an_image_does_not_depend_on_batch_or_on_the_others(weights):
    whole = Validator(SCHEDULE, LATENTS, STATES, T, 0).losses(generator(), weights)
    np.testing.assert_allclose(
        Validator(SCHEDULE, LATENTS, STATES, T, 0).losses(generator(5), weights), whole, rtol=1e-4
    )
    fewer = Validator(SCHEDULE, LATENTS[:3], STATES[:3], T, 0).losses(generator(), weights)
    np.testing.assert_allclose(fewer, whole[:, :3], rtol=1e-4)
    other = Validator(SCHEDULE, LATENTS, STATES, T, 1).losses(generator(), weights)
    assert not np.allclose(other, whole, rtol=1e-2)


def test_captions_matter(weights):
    plain = Validator(SCHEDULE, LATENTS, STATES, T, 0).losses(generator(), weights)
    assert not np.allclose(
        Validator(SCHEDULE, LATENTS, STATES[::-1], T, 0).losses(generator(), weights), plain, rtol=1e-3
    )


def test_broken_weights_are_refused(weights):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), weights)
    with pytest.raises(UserError, match="not finite"):
        Validator(SCHEDULE, LATENTS, STATES, T, 0).losses(generator(), broken)
