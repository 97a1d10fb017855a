"""The U-Net told a guidance weight, and the adapter: where they begin, what they reach, what they cost.

That they compute what diffusers' do is tests/parity's to show.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.models.adapter import Adapter, adapter_parameters
from ldmscale.models.flops import codi_cost, network_cost
from ldmscale.models.network import inputs, with_guidance
from ldmscale.models.unet import Residuals, UNet, UNetConfig
from ldmscale.models.unet_layers import guidance_features

PLAIN = UNetConfig(8, (1, 2), 1, (False, True), heads=2, norm_groups=4, context_width=6)
TOLD = dataclasses.replace(PLAIN, guidance_width=16)
# Each program runs once or twice: compiling it well would take longer.
jitted = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


Z, T, CONTEXT = normal(3, 5, 6, 4), jnp.array([3, 500, 999]), normal(3, 4, 6, seed=1)


def shapes(module, config):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs(config, 4, 2))["params"]


def drawn(tree):
    """Parameters of ``tree``'s shapes, none zero."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = [jnp.asarray(0.3 * normal(*leaf.shape, seed=i)) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


@pytest.fixture(scope="module")
def params():
    return drawn(shapes(UNet(PLAIN), PLAIN))


@pytest.fixture(scope="module")
def plain(params):
    return jitted(UNet(PLAIN).apply)({"params": params}, Z, T, CONTEXT)


@jitted
def adapted(params, added):
    residuals = Adapter(PLAIN).apply({"params": added}, Z, T, CONTEXT)
    return UNet(PLAIN).apply({"params": params}, Z, T, CONTEXT, residuals=residuals)


@jitted
def told(params, w):
    return UNet(TOLD).apply({"params": params}, Z, T, CONTEXT, w)


def dead(gradients):
    """Names of the parameters that no gradient reaches."""
    return {jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradients) if not jnp.abs(g).max() > 0}


# ---------------------------------------------------------------- the adapter


def test_an_adapter_begins_by_changing_nothing(params, plain):
    np.testing.assert_array_equal(adapted(params, adapter_parameters(params)), plain)
    # So does one that was drawn: only its closing convolutions count.
    fresh = jitted(Adapter(PLAIN).init)(jax.random.key(0), Z, T, CONTEXT)["params"]
    np.testing.assert_array_equal(adapted(params, fresh), plain)


@pytest.mark.parametrize("config", [PLAIN, UNetConfig(8, (1, 3, 2, 2), 2, (True, False, False, True), 2, 4, 7)])
def test_an_adapter_begins_with_copies_of_the_encoder(config):
    unet = drawn(shapes(UNet(config), config))
    added, like = adapter_parameters(unet), shapes(Adapter(config), config)
    assert jax.tree.map(jnp.shape, added) == jax.tree.map(jnp.shape, like)
    closing = {name for name in added if name.startswith("controlnet_")}
    levels = len(config.widths)
    assert len(closing) == 1 + levels * config.blocks_per_level + (levels - 1) + 1
    assert not any(np.any(leaf) for name in closing for leaf in jax.tree.leaves(added[name]))
    copied = added.keys() - closing
    assert copied == {name for name in unet if not name.startswith(("up_", "conv_norm_out", "conv_out"))}
    for name in copied:
        jax.tree.map(np.testing.assert_array_equal, added[name], unet[name])


def test_an_adapter_can_be_given_up_while_its_u_net_is_kept(params):
    added = adapter_parameters(params)
    for leaf in jax.tree.leaves(added):
        leaf.delete()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_training_an_adapter_begins_at_its_closing_convolutions_and_then_reaches_all_of_it(params):
    gradient = jitted(jax.grad(lambda added: jnp.mean((adapted.__wrapped__(params, added) - Z) ** 2)))
    added = adapter_parameters(params)
    begun = gradient(added)
    assert dead(begun) == {name for name in dead(jax.tree.map(jnp.zeros_like, added)) if "controlnet_" not in name}
    assert not dead(gradient(drawn(added)))


@partial(jitted, static_argnames="module")
def passed_up(module, params, residuals):
    """What the way up begins with."""
    seen = []

    def record(call, args, kwargs, context):
        if (context.module.name, context.method_name) == ("up_blocks_0", "__call__"):
            seen.append(Residuals(list(args[1]), args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        module.apply({"params": params}, Z, T, CONTEXT, residuals=residuals)
    return seen[0]


def test_residuals_are_added_to_the_skips_in_order_and_to_the_middle(params):
    own = passed_up(UNet(PLAIN), params, None)
    assert [skip.shape[1:] for skip in own.skips] == [(5, 6, 8), (5, 6, 8), (3, 3, 8), (3, 3, 16)]
    # Closed by identities, the copy of the encoder says what the encoder passes on: added, it is there twice.
    added = adapter_parameters(params)
    for name in (name for name in added if name.startswith("controlnet_")):
        added[name]["kernel"] = jnp.eye(added[name]["kernel"].shape[-1])[None, None]
    residuals = jitted(Adapter(PLAIN).apply)({"params": added}, Z, T, CONTEXT)
    both = passed_up(UNet(PLAIN), params, residuals)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, residuals, own)
    jax.tree.map(close, both, jax.tree.map(lambda x: 2 * x, own))
    with pytest.raises(ValueError, match="zip"):
        passed_up(UNet(PLAIN), params, Residuals(residuals.skips[:-1], residuals.mid))


# ---------------------------------------------------------------- the guidance weight


def test_a_student_begins_as_its_teacher_whatever_the_weight(params, plain):
    student = with_guidance(params, TOLD)
    assert jax.tree.map(jnp.shape, student) == jax.tree.map(jnp.shape, shapes(UNet(TOLD), TOLD))
    assert "cond_proj" not in params["time_embedding"]
    for w in (np.zeros(3), np.array([0.5, 6.5, 10])):
        np.testing.assert_array_equal(told(student, jnp.asarray(w, jnp.float32)), plain)


def test_drawn_parameters_are_those_of_the_network_that_is_not_told():
    def some(config, *w):  # only the layers looked at, so that no more is compiled
        params = UNet(config).init(jax.random.key(3), Z, T, CONTEXT, *w)["params"]
        return {name: params[name] for name in ("time_embedding", "conv_in", "mid_block")}

    told, alone = jitted(partial(some, TOLD))(jnp.zeros(3)), jitted(partial(some, PLAIN))()
    jax.tree.map(np.testing.assert_array_equal, told, with_guidance(alone, TOLD))


def test_the_weight_is_each_samples_own_and_is_learned(params):
    student, w = with_guidance(params, TOLD), jnp.array([0.5, 6.5, 10])
    gradient = jitted(jax.grad(lambda p: jnp.mean((told.__wrapped__(p, w) - Z) ** 2)))(student)
    assert not dead(gradient["time_embedding"])
    learned = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), student, gradient)
    change = np.abs(told(learned, w) - told(learned, w.at[1].set(6.0))).max((1, 2, 3))
    assert change[1] > 1e-4 and change[0] == change[2] == 0


@pytest.mark.parametrize("width", [16, 9, 4])
def test_guidance_features_in_double_precision(width):
    w = np.array([0, 0.25, 6.5, 10])
    half = width // 2
    angles = 1000 * w[:, None] * 10_000.0 ** (-np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((4, width % 2))], axis=1)
    np.testing.assert_allclose(guidance_features(jnp.asarray(w, jnp.float32), width), expected, atol=2e-3)


def test_a_weight_where_none_is_taken_and_a_missing_one_are_refused(params):
    with pytest.raises(ValueError, match="guidance_width is 0, but w is given"):
        UNet(PLAIN).apply({"params": params}, Z, T, CONTEXT, jnp.zeros(3))
    with pytest.raises(ValueError, match="guidance_width is 16, but w is missing"):
        UNet(TOLD).apply({"params": with_guidance(params, TOLD)}, Z, T, CONTEXT)
    with pytest.raises(ValueError, match="guidance_width is 16, but w is missing"):
        jax.eval_shape(Adapter(TOLD).init, jax.random.key(0), Z, T, CONTEXT)
    for width in (-1, 3):
        with pytest.raises(UserError, match=f"guidance_width is {width}: it must be 0 "):
            dataclasses.replace(PLAIN, guidance_width=width)


# ---------------------------------------------------------------- costs

# Millions of parameters of an adapter and its share of the U-Net's cost for the paper's family (arXiv 2404.01367,
# Table 1) on 64 x 64 latents with 77 tokens: by the widths. CoDi's adapter of the 866M model has 364M by its authors.
PAPER_ADAPTERS = {64: (16.4, 0.361), 320: (363.1, 0.335)}


@pytest.mark.parametrize("filters", PAPER_ADAPTERS)
def test_adapters_of_the_papers_family(filters):
    plain, both = network_cost(UNetConfig(filters), 64, 77), codi_cost(UNetConfig(filters), 64, 77)
    millions, share = PAPER_ADAPTERS[filters]
    assert round((both.params - plain.params) / 1e6, 1) == millions
    assert both.flops / plain.flops == pytest.approx(1 + share, abs=6e-4)


def test_a_guidance_weight_costs_its_projection():
    plain, student = network_cost(PLAIN, 8, 5), network_cost(TOLD, 8, 5)
    assert student.params - plain.params == 16 * 8
    assert student.flops - plain.flops == 2 * 16 * 8
