"""Initial parameters drawn as one array are those that each tensor's own key draws, bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import CLIP, CLIPConfig
from ldmscale.models.dit import DiTConfig
from ldmscale.models.network import network
from ldmscale.models.unet import UNetConfig
from ldmscale.training.initial import WIDTH, drawn_together

Z, T, CONTEXT = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 3, 10))
SMALL = {"channel_mult": (1, 2), "blocks_per_level": 1, "attention_levels": (True, False), "heads": 1}


def unet(key):
    return network(UNetConfig(6, norm_groups=3, context_width=10, **SMALL)).init(key, Z, T, CONTEXT)["params"]


def transformer(key):
    net = network(DiTConfig(width=12, depth=2, heads=2, patch=2, mlp_ratio=3, context_width=10))
    return net.init(key, Z, T, CONTEXT)["params"]


def autoencoder(key):
    net = Autoencoder(AutoencoderConfig(channels=4, channel_mult=(1, 2), blocks_per_level=1, norm_groups=2))
    return net.init(key, jnp.zeros((1, 8, 8, 3)))["params"]


def clip(key):
    config = CLIPConfig(
        image_size=8, patch=4, image_width=10, image_depth=1, text_width=6, text_depth=2, heads=2, embed_dim=7,
        vocab_size=301, context_length=5,
    )  # fmt: skip
    return CLIP(config).init(key, jnp.zeros((1, 8, 8, 3)), jnp.ones((1, 5), jnp.int32))["params"]


def by_hand(key):
    """More than a row of bits, exactly one, none, and keys of keys."""
    first, second = jax.random.split(key)
    return {
        "long": jax.random.truncated_normal(first, -2, 2, (3, WIDTH - 1)),
        "row": jax.random.uniform(jax.random.fold_in(second, 7), (WIDTH,)),
        "scalar": jax.random.normal(second),
        "ones": jnp.ones((2, 3)),
    }


@pytest.mark.parametrize("seed", (0, 2**31))
@pytest.mark.parametrize("init", (unet, transformer, autoencoder, clip, by_hand))
def test_numbers_are_those_that_it_draws_by_itself(init, seed):
    ours = jax.jit(lambda: drawn_together(init, seed))()
    plain = jax.jit(init)(jax.random.key(seed))
    jax.tree.map(np.testing.assert_array_equal, ours, plain)
    assert jax.tree.structure(ours) == jax.tree.structure(plain)


def test_what_draws_nothing_stays_as_it_is():
    given = jnp.arange(4.0)
    found = jax.jit(lambda given: drawn_together(lambda key: {"kept": given, "zeros": jnp.zeros(3)}, 0))(given)
    np.testing.assert_array_equal(found["kept"], given)


@pytest.mark.parametrize("setting", [jax.default_prng_impl("rbg"), jax.threefry_partitionable(False)])
def test_bits_of_another_generator_are_left_to_it(setting):
    with setting:
        ours = jax.jit(lambda: drawn_together(unet, 0))()
        jax.tree.map(np.testing.assert_array_equal, ours, jax.jit(unet)(jax.random.key(0)))


def test_the_compiled_program_has_the_generator_once():
    compiled = jax.jit(lambda: drawn_together(unet, 0)).lower().compile().as_text()
    assert 4 <= compiled.count(" shift-left(") < 20  # a loop over four rotations, in no tensor's own
