"""The networks: sizes and costs of the paper's family, the CPU's own formulations, initialisation, input checks.

That the networks compute what they should is tests/parity's to show.
"""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ldmscale.errors import UserError
from ldmscale.models import attention, layers, norms, resnet
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.clip import CLIP, PRESETS, CLIPConfig, TextModel, TextTower
from ldmscale.models.clip_weights import load_clip, load_text_model, published_name
from ldmscale.models.flops import count_flops, network_cost, parameter_count
from ldmscale.models.unet import UNet, UNetConfig, skeleton, timestep_features
from ldmscale.models.weights import from_tree

SMALL = UNetConfig(8, (1, 2, 4), 1, (False, True, True), heads=2, norm_groups=8, context_width=12)
SMALL_CLIP = CLIPConfig(
    image_size=16, patch=8, image_width=16, image_depth=1, text_width=16, text_depth=2, heads=2,
    vocab_size=40, context_length=9, embed_dim=12,
)  # fmt: skip


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def unet_args(config, batch=1, size=8, length=3):
    z = spec(batch, size, size, config.in_channels)
    return z, spec(batch, dtype=jnp.int32), spec(batch, length, config.context_width)


def constants(module, *args):
    """Parameters of ``module``'s shapes, all different, without compiling its initialisation."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(lambda x: 0.3 * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), shapes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# The paper's family (arXiv 2404.01367, Table 1): millions of parameters, recomputed with a context of width 1024.
PAPER_PARAMS = {
    64: 38.8, 96: 83.4, 128: 144.8, 160: 223.0, 192: 318.0, 224: 429.8,
    256: 558.3, 288: 703.7, 320: 865.9, 512: 2191.7, 768: 4900.2,
}  # fmt: skip
# GFLOPs (2*MAC) of one forward pass on a 64x64x4 latent with 77 text tokens.
PAPER_GFLOPS = {64: 53.0, 320: 804.3, 768: 4195.1}


@pytest.mark.parametrize("filters", PAPER_PARAMS)
def test_paper_parameter_counts(filters):
    config = UNetConfig(filters)
    assert round(parameter_count(UNet(config), *unet_args(config)) / 1e6, 1) == PAPER_PARAMS[filters]


@pytest.mark.parametrize("filters", PAPER_GFLOPS)
def test_paper_gflops(filters):
    cost = network_cost(UNetConfig(filters), latent_size=64, context_length=77)
    assert cost.flops / 1e9 == pytest.approx(PAPER_GFLOPS[filters], rel=0.005)
    assert round(cost.params / 1e6, 1) == PAPER_PARAMS[filters]


def test_costs_do_not_depend_on_the_backend():
    costs = []
    for backend in ("cpu", "tpu"):
        with layers.traced_for(backend):
            costs.append(network_cost(SMALL, latent_size=8, context_length=5))
    assert costs[0] == costs[1]


def test_count_flops_by_hand():
    x, w = spec(5, 7), spec(7, 3)
    product = 2 * 5 * 7 * 3
    assert count_flops(jnp.dot, x, w) == product
    assert count_flops(jax.jit(lambda x, w: jnp.tanh(x @ w)), x, w) == product
    assert count_flops(lambda x, w: jax.vmap(lambda row: row @ w)(x), x, w) == product
    assert count_flops(jax.value_and_grad(lambda x, w: (x @ w).sum(), argnums=(0, 1)), x, w) == 3 * product

    square = spec(4, 4)
    assert count_flops(lambda m: jax.lax.scan(lambda c, _: (c @ c, None), m, length=6)[0], square) == 6 * 2 * 64
    branches = (lambda m: m @ m, lambda m: m @ m @ m, lambda m: m)
    assert count_flops(lambda i, m: jax.lax.switch(i, branches, m), spec(dtype=jnp.int32), square) == 2 * 2 * 64
    assert count_flops(jax.checkpoint(lambda m: m @ m), square) == 2 * 64

    # The definitions' costs, not those of the CPU's own ways.
    assert count_flops(layers.nearest_conv2d, spec(2, 4, 5, 3), spec(3, 3, 3, 7)) == 2 * (2 * 8 * 10 * 7) * (9 * 3)
    texts = spec(2, 11, 6), spec(2, 11, 6)
    assert count_flops(lambda *a: attention.attend(*a, 3), spec(2, 5, 6), *texts) == 2 * (2 * 2 * 5 * 11 * 6)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_flops(convolve, spec(2, 8, 6, 5), spec(3, 3, 5, 7)) == 2 * (2 * 4 * 3 * 7) * (9 * 5)


def test_count_flops_refuses_an_unknown_trip_count():
    def until_large(m):
        return jax.lax.while_loop(lambda m: m.sum() < 10, lambda m: m @ m, m)

    with pytest.raises(ValueError, match="trip count"):
        count_flops(until_large, spec(4, 4))


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(2, 2, 1), (1, 1, 1), (2, 5, 1), (1, 2, 1), (4, 4, 2), (3, 4, 2), (2, 2, 2)]
)
@pytest.mark.parametrize("whole", [layers.WHOLE, 0])
def test_conv_of_small_planes_equals_the_plain_one(height, width, stride, whole, monkeypatch):
    monkeypatch.setattr(layers, "WHOLE", whole)
    x, kernel = normal(3, height, width, 6), normal(3, 3, 6, 4, seed=1)

    def run(backend):
        monkeypatch.setattr(layers, "backend", lambda: backend)
        jaxpr = str(jax.make_jaxpr(lambda x, k: layers.conv2d(x, k, stride))(x, kernel))
        out, vjp = jax.vjp(lambda x, k: layers.conv2d(x, k, stride), x, kernel)
        return "conv_general_dilated" in jaxpr, [out, *vjp(jnp.cos(out))]

    cpu_convolves, cpu = run("cpu")
    plain_convolves, plain = run("tpu")
    assert plain_convolves and not cpu_convolves
    for ours, reference in zip(cpu, plain, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_spread_gradient_is_the_sum_over_rows(monkeypatch):
    row, cotangent = normal(5), normal(2, 3, 4, 5, seed=1)
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(layers, "backend", lambda backend=backend: backend)
        out, vjp = jax.vjp(lambda row: layers.spread(row, cotangent.shape), row)
        np.testing.assert_array_equal(out, np.broadcast_to(row, cotangent.shape))
        np.testing.assert_allclose(vjp(jnp.asarray(cotangent))[0], cotangent.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)


def test_group_norm_in_double_precision():
    x = normal(2, 4, 3, 12) * 3 + 1.5
    scale, bias = normal(12, seed=1), normal(12, seed=2)
    ours = norms.GroupNorm(groups=4, epsilon=1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)
    groups = x.astype(np.float64).reshape(2, 12, 4, 3)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(2, 4, 3, 12), (1, 1, 1, 16), (3, 1, 5, 36)])
def test_normalisations_and_their_gradients_are_torchs(shape, platform):
    import torch
    import torch.nn.functional as F

    x, scale, bias, cotangent = (
        3 * normal(*shape) + 1.5,
        normal(shape[-1], seed=1),
        normal(shape[-1], seed=2),
        normal(*shape, seed=3),
    )

    def channels_first(function):
        return lambda x, scale, bias: function(x.movedim(-1, 1), scale, bias).movedim(1, -1)

    def applied(module, x, scale, bias):
        return module.apply({"params": {"scale": scale, "bias": bias}}, x)

    def group_norm(x, scale, bias):
        return F.group_norm(x, 4, scale, bias, 1e-5)

    cases = [
        (norms.GroupNorm(4, 1e-5), channels_first(group_norm)),
        (norms.GroupNorm(4, 1e-5, silu=True), channels_first(lambda *a: F.silu(group_norm(*a)))),
        (norms.LayerNorm(), lambda x, scale, bias: F.layer_norm(x, shape[-1:], scale, bias)),
    ]
    for module, theirs in cases:
        doubles = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, scale, bias)]
        expected = theirs(*doubles)
        expected.backward(torch.tensor(cotangent, dtype=torch.float64))
        with layers.traced_for(platform):
            out, vjp = jax.vjp(partial(applied, module), x, scale, bias)
            found = [out, *vjp(jnp.asarray(cotangent))]
        for ours, double in zip(found, [expected.detach(), *(d.grad for d in doubles)], strict=True):
            np.testing.assert_allclose(ours, double.numpy(), rtol=1e-4, atol=1e-4 * np.abs(double.numpy()).max())


def test_a_saturated_silu_and_a_flat_image_have_finite_gradients():
    x = np.concatenate([np.full((1, 2, 2, 4), 7.0, np.float32), 1e4 * normal(1, 2, 2, 4)])
    for silu in (False, True):
        module = norms.GroupNorm(2, 1e-5, silu=silu)
        variables = {"params": {"scale": np.full(4, 1e3, np.float32), "bias": np.full(4, -500, np.float32)}}
        out, vjp = jax.vjp(module.apply, variables, x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves([out, vjp(out)]))


def test_attention_in_double_precision():
    query, key, value = normal(2, 5, 8), normal(2, 7, 8, seed=1), normal(2, 7, 8, seed=2)
    expected = np.zeros((2, 5, 8))
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = np.einsum("bqd,bkd->bqk", query[..., part].astype(np.float64), key[..., part]) / 2
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected[..., part] = weights @ value[..., part]
    np.testing.assert_allclose(attention.attend(query, key, value, heads=2), expected, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads,queries,keys", [(1, 3, 3), (2, 5, 7), (4, 9, 9)])
def test_attention_has_the_gradients_of_softmax(monkeypatch, heads, queries, keys, masked):
    """On the CPU attention and its gradients are written out; elsewhere they are softmax and its."""
    query, key, value = (2 * normal(2, n, 8, seed=i) for i, n in enumerate((queries, keys, keys)))
    mask = jnp.where(jnp.tril(jnp.ones((queries, keys), bool)), 0.0, jnp.finfo(jnp.float32).min) if masked else None
    found = {}
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(attention, "backend", lambda backend=backend: backend)
        out, vjp = jax.vjp(lambda *args: attention.attend(*args, heads, mask), query, key, value)
        found[backend] = (out, *vjp(jnp.asarray(normal(2, queries, 8, seed=3))))
    for ours, expected in zip(found["cpu"], found["tpu"], strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_attention_keeps_the_type_and_does_not_overflow():
    query, key, value = (jnp.asarray(normal(1, 4, 8, seed=i), jnp.bfloat16) for i in range(3))
    out, vjp = jax.vjp(lambda *args: attention.attend(*args, 2), 1000 * query, 1000 * key, value)
    gradients = vjp(jnp.ones_like(out))
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype("bfloat16")}
    assert all(jnp.isfinite(x.astype(jnp.float32)).all() for x in (out, *gradients))


@pytest.mark.parametrize("rows,inputs,outputs", [(6, 5, 7), (64, 80, 80), (300, 24, 8), (1, 96, 200), (16, 300, 96)])
def test_gradients_of_a_product(rows, inputs, outputs):
    kernel = normal(inputs, outputs, seed=1)
    for shape in ((rows,), (2, rows)):
        x, g = normal(*shape, inputs), normal(*shape, outputs, seed=2)
        out, vjp = jax.vjp(layers.product, x, kernel)
        dx, dkernel = vjp(jnp.asarray(g))
        wide = x.astype(np.float64)
        np.testing.assert_allclose(out, wide @ kernel, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(dx, g.astype(np.float64) @ kernel.T, rtol=1e-5, atol=1e-4)
        expected = wide.reshape(-1, inputs).T @ g.reshape(-1, outputs)
        np.testing.assert_allclose(dkernel, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("height,width", [(1, 1), (2, 3), (5, 4)])
def test_a_convolution_of_the_doubled_image(height, width):
    x, kernel = normal(2, height, width, 3), normal(3, 3, 3, 5, seed=1)
    g = jnp.asarray(normal(2, 2 * height, 2 * width, 5, seed=2))
    plain = jnp.asarray(x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(layers.nearest(x), plain)
    out, vjp = jax.vjp(layers.nearest_conv2d, x, kernel)
    expected, plain_vjp = jax.vjp(layers.conv2d, plain, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    (dx, dkernel), (dplain, dexpected) = vjp(g), plain_vjp(g)
    np.testing.assert_allclose(dkernel, dexpected, atol=1e-4)
    np.testing.assert_allclose(dx, dplain.reshape(2, height, 2, width, 2, 3).sum((2, 4)), atol=1e-4)


def test_timestep_features():
    t = np.array([0, 7, 999])
    angles = t[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_features(jnp.asarray(t), 8), expected, atol=1e-4)
    assert timestep_features(jnp.asarray(t), 9).shape == (3, 9)


def test_unet_residual_branches_start_at_zero():
    closing = ("conv2", "proj_out", "conv_out")

    @jax.jit
    def start(key):  # only the layers looked at, so that no more is compiled
        params = UNet(SMALL).init(key, *(jnp.zeros(a.shape, a.dtype) for a in unet_args(SMALL)))["params"]
        paths = jax.tree.leaves_with_path(params)
        return {jax.tree_util.keystr(path): leaf for path, leaf in paths if path[-2].key in (*closing, "conv_in")}

    kernels = {name: leaf for name, leaf in start(jax.random.key(0)).items() if name.endswith("['kernel']")}
    zero = {name for name, kernel in kernels.items() if not np.any(kernel)}
    assert zero == {name for name in kernels if "conv_in" not in name}
    blocks = skeleton(SMALL, 8)
    resnets, transformers = sum(b["kind"] == "resnet" for b in blocks), sum(b["attention"] for b in blocks)
    assert len(zero) == resnets + transformers + 1


def test_unet_trains_every_parameter():
    config = UNetConfig(4, (1, 2), 1, (False, True), heads=2, norm_groups=2, context_width=6)
    module = UNet(config)
    z, t, context = normal(2, 4, 4, 4), jnp.array([3, 900]), normal(2, 3, 6)
    gradient = jax.jit(jax.grad(lambda p: ((module.apply(p, z, t, context) - z) ** 2).mean()))
    gradients = gradient(constants(module, z, t, context))
    # The embeddings of context and time, the deepest block, both attentions: none is cut off from the loss.
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradients) if not jnp.abs(g).max() > 0]
    assert not dead


def test_unet_config_names_what_does_not_divide():
    with pytest.raises(UserError, match="filters: 12 .* norm_groups: 8 .* multiple of 8"):
        UNetConfig(12, (1, 2, 4), 1, (True, True, True), heads=2, norm_groups=8)
    with pytest.raises(UserError, match="filters: 8 .* heads: 3 "):
        UNetConfig(8, (1, 2, 4), 1, (True, True, True), heads=3, norm_groups=8)
    with pytest.raises(UserError, match="filters: 70 "):
        UNetConfig(70)
    with pytest.raises(UserError, match="attention_levels has 2 entries and channel_mult 3"):
        UNetConfig(8, (1, 2, 4), 1, (True, True), heads=2, norm_groups=8)
    with pytest.raises(UserError, match="heads is 0"):
        UNetConfig(8, heads=0)
    # Without attention at a level its channels need not be a multiple of the heads.
    UNetConfig(8, (1, 3), 1, (False, True), heads=3, norm_groups=8)
    # Lists, as a parsed configuration holds them, give the same, hashable configuration.
    assert hash(UNetConfig(64, [1, 2], 1, [True, False])) == hash(UNetConfig(64, (1, 2), 1, (True, False)))


@pytest.mark.parametrize("size", [8, 7])
def test_skeleton_is_the_network(size):
    """The drawn blocks are those that run, in their order, with their shapes."""
    ran = []
    kinds = {resnet.ResnetBlock: "resnet", resnet.Downsample: "downsample", resnet.Upsample: "upsample"}

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        path = context.module.path or ("",)
        if type(context.module) in kinds or path in (("conv_in",), ("conv_out",)):
            ran.append([kinds.get(type(context.module), path[-1]), out.shape[-1], out.shape[1], False])
        elif path[-1].startswith("attentions_"):
            ran[-1][3] = True
        return out

    module = UNet(SMALL)
    with nn.intercept_methods(record):
        jax.eval_shape(module.init, jax.random.key(0), *unet_args(SMALL, size=size))
    drawn = skeleton(SMALL, size)
    assert [[b["kind"], b["channels"], b["resolution"], b["attention"]] for b in drawn] == ran
    resolutions = {b["level"]: b["resolution"] for b in drawn}
    assert all(b["resolution"] == resolutions[b["level"]] for b in drawn)
    assert resolutions == {0: size, 1: 4, 2: 2}


def test_autoencoder_shapes_and_range():
    config = AutoencoderConfig(channels=4, channel_mult=(1, 2, 2), blocks_per_level=1, norm_groups=2)
    module = Autoencoder(config)
    images = np.clip(normal(2, 8, 12, 3), -1, 1)
    params = constants(module, images)
    params["params"]["quant_conv"]["bias"] = np.array([100] * 4 + [-100, 100, -100, 100], np.float32)
    reconstruction, mean, logvar = jax.jit(module.apply)(params, images)
    assert config.factor == 4 and mean.shape == logvar.shape == (2, 2, 3, 4)
    assert reconstruction.shape == images.shape
    assert float(mean.min()) > 50 and set(np.unique(logvar)) == {-30.0, 20.0}
    with pytest.raises(UserError, match="10x12 .* multiples of 4"):
        module.apply(params, images[:, :1].repeat(10, 1), method="encode")


def test_autoencoder_config_names_what_does_not_divide():
    with pytest.raises(UserError, match="channels: 12 .* norm_groups: 8 "):
        AutoencoderConfig(channels=12, norm_groups=8)


def test_stable_diffusion_autoencoder_has_84m_parameters():
    assert parameter_count(Autoencoder(AutoencoderConfig()), spec(1, 64, 64, 3)) == 83_653_863


@pytest.fixture(scope="module")
def clip():
    module = CLIP(SMALL_CLIP)
    images, tokens = normal(2, 16, 16, 3), np.array([[38, 5, 6, 39, 0, 0, 0, 0, 0], [38, 7, 8, 9, 39, 0, 0, 0, 0]])
    return module, jax.jit(module.init)(jax.random.key(0), images, tokens), images, tokens


def test_clip_embeddings_have_unit_norm(clip):
    module, params, images, tokens = clip
    image, text, scale = module.apply(params, images, tokens)
    assert image.shape == text.shape == (2, 12)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1, rtol=1e-5)
    assert float(scale) == pytest.approx(1 / 0.07, rel=1e-5)


def test_clip_text_is_causal_and_read_at_the_end_token(clip):
    module, params, _, tokens = clip
    states, embedding = module.apply(params, tokens, method="encode_text")
    changed = tokens.copy()
    changed[:, 5:] = 11  # behind both end tokens
    other_states, other = module.apply(params, changed, method="encode_text")
    np.testing.assert_allclose(other, embedding, atol=1e-6)
    np.testing.assert_allclose(other_states[:, :5], states[:, :5], atol=1e-6)
    assert float(jnp.abs(other_states[:, 5:] - states[:, 5:]).max()) > 1e-3
    changed = tokens.copy()
    changed[:, 1] = 11
    assert float(jnp.abs(module.apply(params, changed, method="encode_text")[1] - embedding).max()) > 1e-3
    short = module.apply(params, tokens[:, :6], method="encode_text")[1]
    np.testing.assert_allclose(short, embedding, atol=1e-6)


def test_clip_checks_its_input(clip):
    module, params, images, _ = clip
    with pytest.raises(UserError, match="16x16 pixels, not 8x16"):
        module.apply(params, images[:, :8], method="encode_image")
    with pytest.raises(UserError, match="texts of 9 tokens, not 10"):
        module.apply(params, np.ones((1, 10), np.int32), method="encode_text")
    with pytest.raises(UserError, match="heads: 3 does not divide image_width: 16"):
        CLIPConfig(16, 8, 16, 1, 24, 1, heads=3, vocab_size=40, context_length=9, embed_dim=12)
    with pytest.raises(UserError, match="heads: 3 does not divide text_width: 16"):
        CLIPConfig(16, 8, 24, 1, 16, 1, 40, 9, 12, image_heads=4, text_heads=3)
    with pytest.raises(UserError, match="needs heads, or image_heads and text_heads"):
        CLIPConfig(16, 8, 16, 1, 16, 1, 40, 9, 12, image_heads=4)
    with pytest.raises(UserError, match="patch: 6 does not divide image_size: 16"):
        CLIPConfig(16, 6, 16, 1, 16, 1, heads=2, vocab_size=40, context_length=9, embed_dim=12)
    with pytest.raises(UserError, match="activation: 'relu' must be one of quick_gelu, gelu"):
        TextTower(width=16, depth=1, heads=2, activation="relu")


def test_clip_towers_have_their_own_heads_and_widths():
    config = CLIPConfig(16, 8, 16, 1, 24, 2, 40, 9, 12, heads=2, text_heads=3, image_mlp=20, activation="gelu")
    assert (config.image.heads, config.text.heads) == (2, 3)
    assert (config.image.mlp_width, config.text.mlp_width) == (20, 96)
    assert config.image.activation == config.text.activation == "gelu" and config.text.end_token == 39
    giant = PRESETS["ViT-g/14"]
    assert (giant.image.width // giant.image.heads, giant.text.width // giant.text.heads) == (88, 64)


@pytest.fixture
def clip_file(clip, tmp_path):
    """Writes the weights as transformers stores them, with changes (None removes a tensor)."""

    def write(**changes):
        stored = from_tree(clip[1]["params"], published_name) | changes
        path = tmp_path / "model.safetensors"
        save_file({name: np.asarray(t) for name, t in stored.items() if t is not None}, path)
        return path

    return write


def shapes_of(tree):
    return jax.tree.map(lambda x: spec(*x.shape), tree)


def test_clip_is_read_whole_or_in_parts(clip, clip_file):
    module, params, images, tokens = clip
    params, path = params["params"], clip_file()
    jax.tree.map(np.testing.assert_array_equal, load_clip(path, shapes_of(params)), params)
    image_side = {key: params[key] for key in ("vision_model", "visual_projection", "logit_scale")}
    read = load_clip(path, shapes_of(image_side))
    assert read.keys() == image_side.keys()
    features, embedding = module.apply({"params": read}, images, method="encode_image")
    assert features.shape == (2, 16) and embedding.shape == (2, 12)
    # A text encoder that ends one layer early: the file's second layer is left alone.
    tower = TextTower(width=16, depth=1, heads=2, vocab_size=40, context_length=9)
    like = jax.eval_shape(TextModel(tower).init, jax.random.key(0), tokens)["params"]
    read = load_text_model(path, like)
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(jnp.shape, like)
    states = TextModel(tower).apply({"params": read}, tokens)
    whole = TextModel(SMALL_CLIP.text).apply({"params": params["text_model"]}, tokens)
    np.testing.assert_array_equal(module.apply({"params": params}, tokens, method="encode_text")[0], whole)
    assert float(jnp.abs(states - whole).max()) > 1e-3


LAYER = "vision_model.encoder.layers.1.layer_norm1.weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_model.final_layer_norm.bias": None}, "lacks the tensor 'text_model.final_layer_norm.bias'"),
        ({LAYER: np.ones(16, np.float32)}, f"unknown tensor '{LAYER}'"),
        ({"visual_projection.weight": np.ones((9, 16), np.float32)}, "'visual_projection.weight' has shape"),
        ({"visual.layer1.0.conv1.weight": np.ones(3, np.float32)}, "image encoder is a ResNet"),
        ({"classifier.weight": np.ones(3, np.float32)}, "unknown tensor 'classifier.weight'"),
    ],
)
def test_clip_file_that_does_not_fit(changes, said, clip, clip_file):
    path = clip_file(**changes)
    with pytest.raises(UserError, match=re.escape(said)) as refusal:
        load_clip(path, shapes_of(clip[1]["params"]))
    assert "model.safetensors" in str(refusal.value)
