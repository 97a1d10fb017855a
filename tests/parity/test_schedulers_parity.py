"""Sampler tables against diffusers' schedulers, on a nonlinear toy eps-model."""

from __future__ import annotations

import numpy as np
import pytest

import ldmscale  # noqa: F401  (prepares the process before jax)
from ldmscale.diffusion.samplers import step_table
from ldmscale.diffusion.schedule import Schedule

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SCHEDULE = Schedule()
BETAS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = [1, 2, 3, 4, 5, 7, 10, 13, 20, 50]
SHAPE = (2, 4, 4, 4)


def scheduler(sampler: str, spacing: str):
    """diffusers' counterpart, with the settings of Stable Diffusion (its own defaults are those of pixel DDPM)."""
    common = {**BETAS, "prediction_type": "epsilon", "timestep_spacing": spacing}
    offset = 1 if spacing == "leading" else 0
    if sampler == "ddim":
        return diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False, steps_offset=offset)
    if sampler == "ddpm":
        return diffusers.DDPMScheduler(**common, clip_sample=False, variance_type="fixed_small", steps_offset=offset)
    return diffusers.DPMSolverMultistepScheduler(
        **common,
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )


def toy_eps(z, t):
    """Nonlinear in z and of about unit size, as a trained network's; float64 NumPy."""
    return np.tanh(0.8 * z + 0.3 * np.cos(t / 90.0)) + 0.2 * np.sin(3 * z)


def by_diffusers(sampler, spacing, steps, eta, z, noises, monkeypatch):
    reference = scheduler(sampler, spacing)
    reference.set_timesteps(steps)
    z = torch.from_numpy(z)
    for i, t in enumerate(reference.timesteps):
        noise = torch.from_numpy(noises[i])
        eps = torch.from_numpy(toy_eps(z.numpy(), int(t)))
        if sampler == "ddim":
            z = reference.step(eps, t, z, eta=eta, variance_noise=noise).prev_sample
        elif sampler == "ddpm":  # takes its noise from nowhere but this function
            module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
            monkeypatch.setattr(module, lambda *args, noise=noise, **kwargs: noise)
            z = reference.step(eps, t, z).prev_sample
        else:
            z = reference.step(eps, t, z).prev_sample
    return z.numpy(), reference.timesteps.numpy()


def by_table(table, z, noises):
    x0 = np.zeros_like(z)
    for i, t in enumerate(table.timesteps):
        x0_prev, x0 = x0, (z - table.sigma[i] * toy_eps(z, t)) / table.alpha[i]
        z = table.a[i] * z + table.b[i] * x0 + table.c[i] * x0_prev + table.s[i] * noises[i]
    return z


CASES = [
    ("ddim", "leading", 0.0),
    ("ddim", "leading", 1.0),
    ("ddim", "trailing", 0.0),
    ("ddim", "trailing", 0.5),
    ("ddpm", "leading", 0.0),
    ("ddpm", "trailing", 0.0),
    ("dpmpp2m", "linspace", 0.0),
    ("dpmpp2m", "trailing", 0.0),
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("sampler", "spacing", "eta"), CASES)
def test_table_matches_diffusers(sampler, spacing, eta, steps, monkeypatch):
    rng = np.random.default_rng(steps)
    z, noises = rng.standard_normal(SHAPE), rng.standard_normal((steps, *SHAPE))
    table = step_table(sampler, SCHEDULE, steps, spacing, eta)
    want, timesteps = by_diffusers(sampler, spacing, steps, eta, z, noises, monkeypatch)
    np.testing.assert_array_equal(table.timesteps, timesteps)
    got = by_table(table, z, noises)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [("ddim", "leading"), ("ddpm", "trailing"), ("dpmpp2m", "linspace"), ("dpmpp2m", "trailing")],
)
def test_timesteps_match_for_all_steps(sampler, spacing):
    reference = scheduler(sampler, spacing)
    for steps in range(1, 1000, 3):
        reference.set_timesteps(steps)
        theirs, ours = reference.timesteps.numpy(), step_table(sampler, SCHEDULE, steps, spacing).timesteps
        assert len(ours) == steps
        # Rounding gives diffusers' trailing grid a step too many, to timestep -1, at 62 of the 999 step counts.
        assert len(theirs) == steps or (spacing == "trailing" and len(theirs) == steps + 1 and theirs[-1] == -1)
        np.testing.assert_array_equal(ours, theirs[:steps])


def test_sampling_program_matches_diffusers(monkeypatch):
    """The device's loop end to end, in float32, with its own noise handed to diffusers."""
    import jax
    import jax.numpy as jnp

    from ldmscale.diffusion.sampling import build_sampler, device_table

    def apply_fn(params, z, t, context):
        t = t[:, None, None, None]
        return jnp.tanh(0.8 * z + 0.3 * jnp.cos(t / 90.0)) + 0.2 * jnp.sin(3 * z)

    sample = build_sampler(apply_fn)
    keys = jax.random.split(jax.random.key(3), SHAPE[0])
    z = jax.random.normal(jax.random.key(4), SHAPE)
    context, null = jnp.zeros((SHAPE[0], 1, 1)), jnp.zeros((1, 1))
    for sampler, spacing, steps in [("ddim", "leading", 7), ("ddpm", "leading", 13), ("dpmpp2m", "linspace", 10)]:
        noises = [
            np.stack([jax.random.normal(jax.random.fold_in(k, i), SHAPE[1:]) for k in keys]) for i in range(steps)
        ]
        noises = np.asarray(noises, np.float64)
        want, _ = by_diffusers(sampler, spacing, steps, 0.0, np.asarray(z, np.float64), noises, monkeypatch)
        table = device_table(step_table(sampler, SCHEDULE, steps, spacing))
        got = np.asarray(sample({}, table, None, z, context, null, keys))
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max(), sampler
