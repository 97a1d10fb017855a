"""Schedule, sampler tables and the sampling program, against closed forms and a float64 loop."""

from __future__ import annotations

import numpy as np
import pytest

import ldmscale  # noqa: F401  (prepares the process before jax)
from ldmscale.diffusion.samplers import DEFAULT_SPACING, SAMPLERS, SPACINGS, step_table
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError

SCHEDULE = Schedule()
CONFIGS = [(sampler, spacing) for sampler in SAMPLERS for spacing in SPACINGS[sampler] if sampler != "codi"]


def test_schedule_is_stable_diffusions():
    abar = SCHEDULE.alphas_cumprod
    assert abar.shape == (1000,) and abar.dtype == np.float64
    assert abar[0] == pytest.approx(1 - 0.00085, abs=1e-12)
    assert np.sqrt(1 / abar[-1] - 1) == pytest.approx(14.6146, abs=1e-4)  # sigma_max as k-diffusion prints it for SD
    assert np.all(np.diff(abar) < 0)
    assert SCHEDULE.alphas_cumprod is abar
    with pytest.raises(ValueError):
        abar[0] = 1.0


def test_linear_schedule_is_ddpms():
    abar = Schedule(kind="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod
    assert abar[-1] == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "cosine"}, ["kind", "'cosine'", "scaled_linear, linear"]),
        ({"steps": 0}, ["steps", "0", "at least 1"]),
        ({"beta_start": 0.5, "beta_end": 0.1}, ["beta_start", "0.5", "0.1"]),
    ],
)
def test_schedule_refuses(settings, words):
    with pytest.raises(UserError) as error:
        Schedule(**settings)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("sampler", "spacing"), CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 20, 50, 333, 999])
def test_every_step_preserves_the_marginals(sampler, spacing, steps):
    """From z = alpha x0 + sigma e with the true x0, z' must be alpha' x0 + noise of standard deviation sigma'."""
    table = step_table(sampler, SCHEDULE, steps, spacing)
    assert len(table) == steps == len(np.unique(table.timesteps))
    assert table.timesteps.dtype == np.int32
    assert np.all(np.diff(table.timesteps) < 0) and 0 <= table.timesteps[-1] <= table.timesteps[0] <= 999
    abar = SCHEDULE.alphas_cumprod
    np.testing.assert_allclose(table.alpha**2, abar[table.timesteps], rtol=1e-14)
    np.testing.assert_allclose(table.alpha**2 + table.sigma**2, 1, rtol=1e-14)
    if sampler == "ddim":
        after = abar[np.maximum(table.timesteps - 1000 // steps, 0)]
    else:
        after = np.append(abar[table.timesteps[1:]], 1.0)
    np.testing.assert_allclose(table.a * table.alpha + table.b + table.c, np.sqrt(after), rtol=1e-9)
    np.testing.assert_allclose((table.a * table.sigma) ** 2 + table.s**2, 1 - after, rtol=1e-9, atol=1e-15)


def test_leading_is_the_field_grid():
    np.testing.assert_array_equal(step_table("ddim", SCHEDULE, 4).timesteps, [751, 501, 251, 1])
    np.testing.assert_array_equal(step_table("ddpm", SCHEDULE, 6).timesteps, np.arange(6)[::-1] * 166 + 1)
    np.testing.assert_array_equal(step_table("ddim", SCHEDULE, 50).timesteps, np.arange(981, 0, -20))
    np.testing.assert_array_equal(step_table("dpmpp2m", SCHEDULE, 3).timesteps, [999, 666, 333])
    np.testing.assert_array_equal(step_table("dpmpp2m", SCHEDULE, 4, "trailing").timesteps, [999, 749, 499, 249])
    assert DEFAULT_SPACING == {"ddim": "leading", "ddpm": "leading", "dpmpp2m": "linspace", "codi": "grid"}


@pytest.mark.parametrize("steps", range(1, 1000, 37))
def test_trailing_has_as_many_steps_as_asked(steps):
    for sampler in ("ddim", "ddpm", "dpmpp2m"):
        timesteps = step_table(sampler, SCHEDULE, steps, "trailing").timesteps
        assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_with_all_its_noise_is_ddpm(spacing):
    """arXiv 2010.02502, section 4.1; all but the last step, where the two end at different abar."""
    stochastic = step_table("ddim", SCHEDULE, 20, spacing, eta=1.0)
    ancestral = step_table("ddpm", SCHEDULE, 20, spacing)
    for column in ("a", "b", "c", "s"):
        np.testing.assert_allclose(getattr(stochastic, column)[:-1], getattr(ancestral, column)[:-1], atol=1e-12)
    assert ancestral.s[-1] == 0 and stochastic.s[-1] > 0


def test_second_order_converges_faster():
    """On data N(0, v) the probability flow keeps z / sd(t), sd(t)^2 = abar v + 1 - abar: 2M's error falls as steps^-2.

    At timestep 199, which is on all the grids below: the last jump, to x0, is first order in every sampler.
    """
    variance = 0.25

    def error(sampler, steps):
        table = step_table(sampler, SCHEDULE, steps, "trailing")
        deviation = np.sqrt(table.alpha**2 * variance + table.sigma**2)
        z, x0 = deviation[0], 0.0
        end = list(table.timesteps).index(199)
        for i in range(end):
            x0_prev, x0 = x0, table.alpha[i] * variance / deviation[i] ** 2 * z
            z = table.a[i] * z + table.b[i] * x0 + table.c[i] * x0_prev
        return abs(z / deviation[end] - 1)

    assert 1.7 < error("ddim", 50) / error("ddim", 100) < 2.4
    assert 3.4 < error("dpmpp2m", 50) / error("dpmpp2m", 100) < 5
    assert error("dpmpp2m", 20) < 0.3 * error("ddim", 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("euler", 10), ["sampler", "'euler'", "ddim, ddpm, dpmpp2m"]),
        (("ddim", 10, "linspace"), ["spacing", "'linspace'", "'ddim'", "leading, trailing"]),
        (("ddpm", 10, "linspace"), ["spacing", "'linspace'", "'ddpm'", "leading, trailing"]),
        (("dpmpp2m", 10, "leading"), ["spacing", "'leading'", "'dpmpp2m'", "linspace, trailing"]),
        (("ddim", 10, "karras"), ["spacing", "'karras'", "leading, trailing"]),
        (("ddim", 0), ["steps", "0", "1 to 1000"]),
        (("ddim", 1001), ["steps", "1001", "1 to 1000"]),
        (("ddim", 2.5), ["steps", "2.5", "1 to 1000"]),
        (("ddim", 1000, "leading"), ["steps", "1000", "leading", "at most 999"]),
        (("dpmpp2m", 1000, "linspace"), ["steps", "1000", "linspace", "at most 999"]),
        (("codi", 4, "leading"), ["spacing", "'leading'", "'codi'", "grid"]),
        (("codi", 51), ["stride", "20", "51", "'codi'", "1 to 19"]),
        (("codi", 4, None, 0.0, 0), ["stride", "0", "1 to 250"]),
        (("codi", 4, None, 0.0, 251), ["stride", "251", "1 to 250"]),
        (("codi", 4, None, 0.5), ["eta", "0.5", "codi", "ddim"]),
        (("ddim", 10, "leading", 1.5), ["eta", "1.5", "0", "1"]),
        (("ddpm", 10, "leading", 0.5), ["eta", "0.5", "ddpm", "ddim"]),
    ],
)
def test_step_table_refuses(arguments, words):
    sampler, *rest = arguments
    with pytest.raises(UserError) as error:
        step_table(sampler, SCHEDULE, *rest)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_thousand_steps_where_possible():
    for sampler in ("ddim", "ddpm", "dpmpp2m"):
        table = step_table(sampler, SCHEDULE, 1000, "trailing")
        np.testing.assert_array_equal(table.timesteps, np.arange(999, -1, -1))


@pytest.mark.parametrize("stride", [20, 7, 50, 1000])
def test_codi_steps_down_the_grid_it_was_taught_on(stride):
    points = 1000 // stride
    for steps in range(1, points + 1):
        table = step_table("codi", SCHEDULE, steps, stride=stride)
        assert len(table) == steps and table.timesteps.dtype == np.int32
        assert table.timesteps[0] == stride * (points - 1) and not (table.timesteps % stride).any()
        assert np.all(np.diff(table.timesteps) < 0)
        # No evaluation is wasted on t = 0, from where nothing leads further, unless every point was asked for.
        assert (table.timesteps[-1] == 0) == (steps == points)
        jump = -(-points // steps)
        regular = stride * np.arange(points - 1, -1, -jump)
        if len(regular) == steps and regular[-1] > 0:
            np.testing.assert_array_equal(table.timesteps, regular)
        else:  # evenly: no jump is more than one point longer than another
            assert np.ptp(np.diff(table.timesteps)) <= stride if steps > 2 else True


def test_codi_in_four_steps():
    """As the authors sample: t = 980, 720, 460, 200 and then 0, each step through x and eps."""
    table = step_table("codi", SCHEDULE, 4)
    np.testing.assert_array_equal(table.timesteps, [980, 720, 460, 200])
    np.testing.assert_array_equal(step_table("codi", SCHEDULE, 1).timesteps, [980])
    np.testing.assert_array_equal(step_table("codi", SCHEDULE, 2).timesteps, [980, 480])
    z = found = np.random.default_rng(0).normal(size=7)
    for i, (t, s) in enumerate([(980, 720), (720, 460), (460, 200), (200, 0)]):
        alpha, sigma = np.sqrt(SCHEDULE.alphas_cumprod[t]), np.sqrt(1 - SCHEDULE.alphas_cumprod[t])
        x = np.tanh(z + t / 500)
        z = np.sqrt(SCHEDULE.alphas_cumprod[s]) * x + np.sqrt(1 - SCHEDULE.alphas_cumprod[s]) * (z - alpha * x) / sigma
        found = table.a[i] * found + table.b[i] * np.tanh(found + t / 500)
        np.testing.assert_allclose(found, z, rtol=1e-12)
        np.testing.assert_allclose((table.alpha[i], table.sigma[i]), (alpha, sigma), rtol=1e-14)
    assert not table.c.any() and not table.s.any()


# ---- the sampling program -------------------------------------------------------------------------------------------

SHAPE, LENGTH, WIDTH = (4, 4, 2), 3, 5


class Toy:
    """eps(z, t, context) = tanh(p z) + mean(context) cos(t / 100): nonlinear in z, affine in the context."""

    def __init__(self):
        self.traces = 0

    def __call__(self, params, z, t, context):
        import jax.numpy as jnp

        self.traces += 1
        assert t.dtype == jnp.int32 and t.shape == z.shape[:1]
        shift = context.mean((1, 2)) * jnp.cos(t / 100.0)
        return jnp.tanh(params * z) + shift[:, None, None, None]


@pytest.fixture(scope="module")
def inputs():
    import jax

    keys = jax.random.split(jax.random.key(7), 4)
    z = jax.random.normal(keys[0], (6, *SHAPE))
    context = jax.random.normal(keys[1], (6, LENGTH, WIDTH))
    null = jax.random.normal(keys[2], (LENGTH, WIDTH))
    return z, context, null, jax.random.split(keys[3], 6)


@pytest.fixture(scope="module")
def program():
    from ldmscale.diffusion.sampling import build_sampler

    toy = Toy()
    return toy, build_sampler(toy)


@pytest.fixture(scope="module")
def unguided():
    from ldmscale.diffusion.sampling import build_sampler

    sample = build_sampler(Toy())

    def without(params, table, cfg, *rest):
        return sample(params, table, None, *rest)

    return without


def run(sample, sampler, steps, cfg, z, context, null, keys):
    from ldmscale.diffusion.sampling import device_table

    table = device_table(step_table(sampler, SCHEDULE, steps))
    return np.asarray(sample(np.float32(0.3), table, cfg, z, context, null, keys))


def reference(sampler, steps, cfg, z, context, null, keys):
    """The same in a Python loop, float64, with guidance written out."""
    import jax

    table = step_table(sampler, SCHEDULE, steps)
    z, context, null = (np.asarray(x, np.float64) for x in (z, context, null))
    x0 = np.zeros_like(z)
    for i, t in enumerate(table.timesteps):
        shared, wave = np.tanh(np.float32(0.3) * z), np.cos(t / 100)
        conditional = shared + context.mean((1, 2))[:, None, None, None] * wave
        unconditional = shared + null.mean() * wave
        eps = unconditional + cfg * (conditional - unconditional)
        x0_prev, x0 = x0, (z - table.sigma[i] * eps) / table.alpha[i]
        noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), SHAPE) for key in keys])
        z = table.a[i] * z + table.b[i] * x0 + table.c[i] * x0_prev + table.s[i] * noise
    return z


CELLS = [
    ("ddim", 1, 1),
    ("ddim", 13, 7.5),
    ("ddpm", 4, 2),
    ("ddpm", 20, 1.5),
    ("dpmpp2m", 1, 4.0),
    ("dpmpp2m", 10, 7.5),
    ("codi", 4, 7.5),
]


@pytest.mark.parametrize(("sampler", "steps", "cfg"), CELLS)
def test_program_follows_the_table(program, inputs, sampler, steps, cfg):
    got = run(program[1], sampler, steps, cfg, *inputs)
    want = reference(sampler, steps, cfg, *inputs)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_one_program_serves_every_cell(inputs):
    import jax.numpy as jnp

    from ldmscale.diffusion.sampling import build_sampler

    toy = Toy()
    sample = build_sampler(toy)
    run(sample, "ddim", 2, 7.5, *inputs)
    first = toy.traces
    cells = [*CELLS, ("ddim", 999, 3), ("ddpm", 2, np.float64(2)), ("dpmpp2m", 3, jnp.float32(5))]
    results = [run(sample, *cell, *inputs) for cell in cells]
    z, context, null, keys = inputs
    twice = [jnp.concatenate([x, x[::-1]]) for x in (z, context, keys)]
    results.append(run(sample, "ddim", 13, None, twice[0], twice[1], null, twice[2]))  # as many rows, without guidance
    assert toy.traces == first
    assert len({result.tobytes() for result in results}) == len(results)


@pytest.mark.parametrize(("sampler", "cfg"), [("ddim", 7.5), ("ddpm", 3.0)])
def test_an_image_does_not_depend_on_its_batch(program, inputs, sampler, cfg):
    z, context, null, keys = inputs
    whole = run(program[1], sampler, 5, cfg, z, context, null, keys)
    order = np.array([5, 0, 3, 1, 4, 2])
    np.testing.assert_array_equal(
        run(program[1], sampler, 5, cfg, z[order], context[order], null, keys[order]), whole[order]
    )
    parts = [run(program[1], sampler, 5, cfg, z[j], context[j], null, keys[j]) for j in (slice(0, 1), slice(1, 6))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-6)


def test_weight_one_is_unguided(program, unguided, inputs):
    guided = run(program[1], "ddpm", 8, 1.0, *inputs)
    np.testing.assert_allclose(guided, run(unguided, "ddpm", 8, 1.0, *inputs), rtol=1e-5, atol=1e-5)


def test_guidance_extrapolates_from_null_to_condition(program, unguided, inputs):
    """The toy is affine in the context, so guidance by g is one unguided run with null + g (context - null)."""
    z, context, null, keys = inputs
    guided = run(program[1], "ddim", 10, 6.0, *inputs)
    shifted = run(unguided, "ddim", 10, 1.0, z, null + 6.0 * (context - null), null, keys)
    np.testing.assert_allclose(guided, shifted, rtol=1e-4, atol=1e-4)
    assert np.abs(guided - run(unguided, "ddim", 10, 6.0, *inputs)).max() > 0.1


def test_keys_matter_only_to_noisy_samplers(program, inputs):
    import jax

    z, context, null, keys = inputs
    other = jax.random.split(jax.random.key(99), len(z))
    for sampler, noisy in [("ddim", False), ("dpmpp2m", False), ("ddpm", True)]:
        first, second = (run(program[1], sampler, 6, 2.0, z, context, null, k) for k in (keys, other))
        assert np.array_equal(first, second) != noisy


def test_tables_that_do_not_fit_are_refused(inputs):
    from ldmscale.diffusion.sampling import build_sampler, device_table

    with pytest.raises(UserError, match="steps is 20.*at most 10"):
        device_table(step_table("ddim", SCHEDULE, 20), max_steps=10)
    with pytest.raises(ValueError, match="10 steps.*1000"):
        build_sampler(Toy())(0.3, device_table(step_table("ddim", SCHEDULE, 4), max_steps=10), 1.0, *inputs)
