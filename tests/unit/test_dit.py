"""The transformer family: its sizes and costs, where it begins, what its inputs reach, checks.

That it computes what diffusers' DiT and PixArt-alpha do is tests/parity's to show.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.cells.cost import DiTShape, codi_ratio, dit_adapter_macs, dit_macs, dit_params
from ldmscale.cells.cost import flops as flops_of
from ldmscale.cells.cost import params as params_of
from ldmscale.errors import UserError
from ldmscale.models.dit import DiT, DiTBlock, DiTConfig, PatchEmbedding, positions
from ldmscale.models.flops import codi_cost, network_cost
from ldmscale.models.network import inputs

PLAIN = DiTConfig(16, 3, 2, context_width=6)
TOLD = dataclasses.replace(PLAIN, guidance_width=12)
# Each program runs once or twice: compiling it well would take longer.
jitted = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


Z, T, CONTEXT = normal(3, 4, 6, 4), jnp.array([3, 500, 999]), normal(3, 5, 6, seed=1)


def shapes(config, size=4, tokens=2):
    return jax.eval_shape(DiT(config).init, jax.random.key(0), *inputs(config, size, tokens))["params"]


def drawn(tree):
    """Parameters of ``tree``'s shapes, none zero."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [0.3 * normal(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def params():
    return drawn(shapes(PLAIN))


@jitted
def plain(params, z, t, context):
    return DiT(PLAIN).apply({"params": params}, z, t, context)


# ---------------------------------------------------------------- sizes and costs

# Width, depth, heads; millions of parameters and G multiply-adds of arXiv 2212.09748, Tables 1 and 4: class-conditional
# on 32 x 32 latents, with variances predicted beside the noise.
PAPER = {
    "S/2": (384, 12, 6, 33, 6.06),
    "B/2": (768, 12, 12, 130, 23.01),
    "L/2": (1024, 24, 16, 458, 80.71),
    "XL/2": (1152, 28, 16, 675, 118.64),
}
CLASSES = 1000 + 1


def shape_of(config, size, length):
    return DiTShape(
        config.width, config.depth, config.patch, config.mlp_ratio, size, config.in_channels,
        (length, config.context_width),
    )  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_parameters_and_gflops(name):
    w, depth, heads, millions, giga = PAPER[name]
    shape, n = shape_of(DiTConfig(w, depth, heads), 32, 77), 16 * 16
    dense = w * (w + 1)
    cross = depth * (2 * dense + 2 * (1024 + 1) * w)
    variances = (w + 1) * 4 * 4  # the paper's network predicts them beside the noise
    assert round((dit_params(shape) - cross + variances + CLASSES * w) / 1e6) == millions
    cross = depth * (2 * n * w * w + 2 * 77 * 1024 * w + 2 * n * 77 * w)
    # The paper's "flops" are multiply-adds, of some element-wise work as well.
    assert (dit_macs(shape) - cross + n * w * 4 * 4) / 1e9 == pytest.approx(giga, rel=2e-4, abs=0.005)


@pytest.mark.parametrize(
    ("config", "size", "length"),
    [
        (PLAIN, 4, 3),
        (TOLD, 6, 77),
        (DiTConfig(24, 3, 3, 3, 10, 8, 8, mlp_ratio=2, dtype="bfloat16"), 9, 5),
        (DiTConfig(384, 12, 6), 64, 77),
    ],
    ids=["small", "told", "other", "S/2"],
)
def test_the_arithmetic_is_the_traced_programs_count(config, size, length):
    shape = shape_of(config, size, length)
    told = config.guidance_width * 256  # a weight without a bias, and a multiply-add each
    traced = network_cost(config, size, length)
    assert (traced.params, traced.flops) == (dit_params(shape) + told, 2 * (dit_macs(shape) + told))
    assert (params_of(shape), flops_of(shape)) == (dit_params(shape), 2 * dit_macs(shape))
    if not told:
        adapted = codi_cost(config, size, length)
        assert adapted.flops - traced.flops == 2 * dit_adapter_macs(shape)
        assert codi_ratio(shape) == pytest.approx(adapted.flops / traced.flops)


# ---------------------------------------------------------------- where it begins, what its inputs reach


def test_it_begins_with_no_prediction_and_blocks_that_do_nothing():
    fresh = jitted(DiT(PLAIN).init)(jax.random.key(0), Z, T, CONTEXT)["params"]
    assert not np.any(plain(fresh, Z, T, CONTEXT))
    x, embedding = normal(3, 6, 16), normal(3, 16, seed=1)
    block = fresh["transformer_blocks_1"]
    np.testing.assert_array_equal(DiTBlock(PLAIN).apply({"params": block}, x, embedding, CONTEXT), x)
    # Zero are those layers alone, and biases.
    silent = {name for name, leaf in flat(fresh).items() if name.endswith("kernel") and not np.any(leaf)}
    assert {name.split("/", 1)[-1] if "blocks" in name else name for name in silent} == {
        "norm1/linear/kernel", "attn2/to_out_0/kernel", "proj_out_1/linear/kernel", "proj_out_2/kernel",
    }  # fmt: skip


def flat(tree):
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_every_parameter_is_trained():
    told = drawn(shapes(TOLD))
    w = jnp.array([0, 1.5, 6.5])
    target = normal(3, 4, 6, 4, seed=2)

    def loss(params):
        return jnp.mean((DiT(TOLD).apply({"params": params}, Z, T, CONTEXT, w) - target) ** 2)

    # No softmax heeds what it adds to all keys alike.
    dead = {name for name, g in flat(jitted(jax.grad(loss))(told)).items() if not np.abs(g).max() > 1e-6}
    assert {name.split("/", 1)[1] for name in dead} <= {"attn1/to_k/bias", "attn2/to_k/bias"}


@pytest.mark.parametrize("changed", ["z", "t", "context"])
def test_every_sample_has_its_own_inputs(params, changed):
    given = {"z": Z, "t": T, "context": CONTEXT}
    other = {**given, changed: jnp.asarray(given[changed]).at[1].add(7)}
    before, after = plain(params, **given), plain(params, **other)
    differs = np.abs(np.asarray(before - after)).max((1, 2, 3))
    assert differs[1] > 1e-2 and differs[0] == differs[2] == 0


def test_positions_tell_patches_apart(params):
    # Without them the network would not notice that its patches change places.
    moved = plain(params, Z[:, :, ::-1].reshape(3, 4, 3, 2, 4)[..., ::-1, :].reshape(Z.shape), T, CONTEXT)
    restored = np.asarray(moved).reshape(3, 4, 3, 2, 4)[:, :, ::-1].reshape(Z.shape)
    assert np.abs(restored - plain(params, Z, T, CONTEXT)).max() > 1e-2
    grid = np.asarray(positions(3, 4, 8))
    # Columns are in the first half of the channels, rows in the second.
    for half, axis in ((slice(0, 4), 0), (slice(4, 8), 1)):
        assert (np.ptp(grid[..., half], axis=axis) == 0).all() and (np.ptp(grid[..., half], axis=1 - axis) > 0).any()
    np.testing.assert_allclose(grid[2, 3, :4], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], atol=1e-6)


def test_residuals_are_added_to_the_first_blocks_outputs(params):
    added = [normal(3, 6, 16, seed=i) for i in (3, 4)]

    rest = iter(added)

    def add(call, args, kwargs, context):
        out = call(*args, **kwargs)
        return out + next(rest, 0) if isinstance(context.module, DiTBlock) else out

    with nn.intercept_methods(add):
        by_hand = DiT(PLAIN).apply({"params": params}, Z, T, CONTEXT)
    ours = jitted(lambda p, r: DiT(PLAIN).apply({"params": p}, Z, T, CONTEXT, residuals=r))(params, added)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-4, atol=1e-4)
    assert np.abs(ours - plain(params, Z, T, CONTEXT)).max() > 1e-2
    with pytest.raises(ValueError, match="4 residuals for 3 blocks"):
        DiT(PLAIN).apply({"params": params}, Z, T, CONTEXT, residuals=[added[0]] * 4)


def test_a_told_weight_counts_and_one_without_kernel_does_not(params):
    told = drawn(shapes(TOLD))

    @jitted
    def run(params, w):
        return DiT(TOLD).apply({"params": params}, Z, T, CONTEXT, w)

    low, high = run(told, jnp.zeros(3)), run(told, jnp.array([0, 0, 6.5]))
    assert np.abs(low - high)[2].max() > 1e-3 and not np.any((low - high)[:2])
    deaf = {**params["time_embedding"], "cond_proj": {"kernel": np.zeros((12, 256), np.float32)}}
    ours = run({**params, "time_embedding": deaf}, jnp.array([0, 1, 6.5]))
    np.testing.assert_array_equal(ours, plain(params, Z, T, CONTEXT))
    with pytest.raises(ValueError, match="guidance_width is 12, but w is missing"):
        DiT(TOLD).apply({"params": told}, Z, T, CONTEXT)
    with pytest.raises(ValueError, match="guidance_width is 0, but w is given"):
        DiT(PLAIN).apply({"params": params}, Z, T, CONTEXT, jnp.zeros(3))


def test_bfloat16_changes_the_output_by_little(params):
    params = jax.tree.map(lambda leaf: leaf / 2, params)
    half = jitted(DiT(dataclasses.replace(PLAIN, dtype="bfloat16")).apply)({"params": params}, Z, T, CONTEXT)
    full = plain(params, Z, T, CONTEXT)
    assert half.dtype == jnp.float32
    deviation = float(jnp.sqrt(jnp.mean((half - full) ** 2) / jnp.mean(full**2)))
    assert 1e-4 < deviation < 0.03  # bfloat16 rounds to 2**-9 = 0.2 %


# ---------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 0}, "depth is 0: it must be a positive whole number"),
        ({"patch": 0}, "patch is 0: it must be a positive whole number"),
        ({"width": 18}, r"width is 18: it must be a multiple of 4 and of heads: 2, for example 16\."),
        ({"heads": 3}, r"width is 16: it must be a multiple of 4 and of heads: 3, for example 12\."),
        ({"guidance_width": 3}, "guidance_width is 3: it must be 0"),
        ({"dtype": "float16"}, "dtype is 'float16': it must be float32 or bfloat16"),
    ],
)
def test_config_names_what_cannot_be(changes, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(PLAIN, **changes)


def test_latents_that_patches_do_not_divide_are_refused(params):
    with pytest.raises(UserError, match="latents are 4 x 5, which patch: 2 does not divide"):
        DiT(PLAIN).apply({"params": params}, Z[:, :, :5], T, CONTEXT)


def test_patches_are_read_in_rows():
    config = dataclasses.replace(PLAIN, in_channels=1)
    z = np.arange(2 * 4).reshape(1, 2, 4, 1).astype(np.float32)
    kernel = np.eye(4, 16, dtype=np.float32)
    tokens = PatchEmbedding(config).apply({"params": {"proj": {"kernel": kernel, "bias": np.zeros(16)}}}, z)
    np.testing.assert_allclose(
        (tokens - positions(1, 2, 16).reshape(1, 2, 16))[..., :4], [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    )
