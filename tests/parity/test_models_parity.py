"""The U-Net and the autoencoder against diffusers' own, with the same random weights (float32 on the CPU)."""

import re
import warnings

import numpy as np
import pytest

import ldmscale  # noqa: F401  (prepares the process for JAX)

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from ldmscale.metrics.torch_guard import guard_torchvision  # noqa: E402
from ldmscale.models import layers  # noqa: E402
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig  # noqa: E402
from ldmscale.models.flops import parameter_count  # noqa: E402
from ldmscale.models.unet import UNet, UNetConfig  # noqa: E402

TOLERANCE = 1e-4


def _peer(package: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package)


@pytest.fixture(scope="module", autouse=True)
def torchvision_schemas():
    """diffusers imports torchvision, whose compiled operators a CPU build of torch may lack."""
    guard_torchvision()


def randomise(module, seed: int) -> None:
    """Weights with a spread that keeps activations alive, norms away from the identity, and non-zero biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.add_(0.1 * noise)


def rename(state: dict, shapes: dict) -> dict:
    """A torch state dict as the nested parameters of a module whose parameters have ``shapes``."""
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    leaves = {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in paths}
    tree: dict = {}
    for name, value in state.items():
        value = np.asarray(value.detach().numpy(), np.float32)
        if name.endswith("position_ids"):
            continue
        *scope, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        if leaf == "weight":
            leaf = next(k for k in ("kernel", "scale", "embedding") if "/".join([*scope, k]) in leaves)
        shape = leaves.pop("/".join([*scope, leaf]))
        if leaf == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            value = value.reshape(shape)
        assert value.shape == shape, (name, value.shape, shape)
        node = tree
        for part in scope:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(value)
    assert not leaves, f"the peer has no {sorted(leaves)}"
    return tree


def copied(module, peer, *args) -> dict:
    return {"params": rename(peer.state_dict(), jax.eval_shape(module.init, jax.random.key(0), *args)["params"])}


def assert_close(ours, theirs, channels_first=True) -> None:
    theirs = theirs.detach().numpy()
    if channels_first and theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert scale > 1e-3, "the peer's output is nearly zero: the comparison would show nothing"
    error = np.abs(np.asarray(ours) - theirs).max() / scale
    assert error <= TOLERANCE, f"max error {error:.2e} of the output's scale"


def nchw(x: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


UNETS = {
    "embedded": UNetConfig(8, (1, 2, 4), 1, (True, True, True), heads=2, norm_groups=8, context_width=24),
    "embedded-wide": UNetConfig(16, (1, 2, 4), 1, (False, True, True), heads=4, norm_groups=8, context_width=24),
    "paper": UNetConfig(32, (1, 2, 4, 4), 2, (True, True, True, False), heads=8, norm_groups=32, context_width=32),
}


def make_peer_unet(config: UNetConfig):
    diffusers = _peer("diffusers")
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention_levels)]
    return diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks_per_level,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=config.heads,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=config.context_width,
    ).eval()


@pytest.mark.parametrize("filters", [64, 256, 320, 512])
def test_paper_family_has_diffusers_parameter_count(filters):
    config = UNetConfig(filters)
    with torch.device("meta"):  # shapes only
        theirs = sum(parameter.numel() for parameter in make_peer_unet(config).parameters())
    args = ((1, 8, 8, 4), jnp.float32), ((1,), jnp.int32), ((1, 3, config.context_width), jnp.float32)
    assert parameter_count(UNet(config), *(jax.ShapeDtypeStruct(*arg) for arg in args)) == theirs


@pytest.mark.parametrize(
    ("name", "size", "batch", "backend"),
    [
        ("embedded", (8, 8), 3, "cpu"),
        ("embedded", (8, 8), 3, "tpu"),  # the branches that accelerators take, run here
        ("embedded-wide", (8, 8), 1, "cpu"),
        ("embedded-wide", (7, 9), 3, "cpu"),
        ("paper", (16, 16), 1, "cpu"),
        ("paper", (13, 11), 1, "cpu"),
    ],
)
def test_unet_equals_diffusers(name, size, batch, backend, monkeypatch):
    config = UNETS[name]
    peer = make_peer_unet(config)
    randomise(peer, seed=1)
    monkeypatch.setattr(layers, "backend", lambda: backend)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, *size, 4), np.float32)
    t = np.array([3, 500, 999], np.int32)[:batch]
    context = rng.standard_normal((batch, 5, config.context_width), np.float32)
    module = UNet(config)
    ours = jax.jit(module.apply)(copied(module, peer, z, t, context), z, t, context)
    with torch.no_grad():
        theirs = peer(nchw(z), torch.from_numpy(t), torch.from_numpy(context)).sample
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    "config",
    [
        AutoencoderConfig(channels=16, channel_mult=(1, 2, 2), blocks_per_level=1, norm_groups=8),
        AutoencoderConfig(channels=8, channel_mult=(1, 2), blocks_per_level=2, norm_groups=4, mid_attention=False),
    ],
    ids=["attention", "no-attention"],
)
def test_autoencoder_equals_diffusers(config):
    diffusers = _peer("diffusers")
    levels = len(config.channel_mult)
    peer = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks_per_level,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.mid_attention,
    ).eval()
    randomise(peer, seed=2)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 16, 3)).astype(np.float32)
    module = Autoencoder(config)
    params = copied(module, peer, images)
    mean, logvar = jax.jit(lambda p, x: module.apply(p, x, method="encode"))(params, images)
    with torch.no_grad():
        theirs = peer.encode(nchw(images)).latent_dist
        assert_close(mean, theirs.mean)
        assert_close(logvar, theirs.logvar)
        decoded = peer.decode(theirs.mean).sample
    ours = jax.jit(lambda p, z: module.apply(p, z, method="decode"))(params, theirs.mean.numpy().transpose(0, 2, 3, 1))
    assert_close(ours, decoded)
    assert ours.shape == images.shape
