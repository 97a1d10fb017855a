"""The KL autoencoder against diffusers' own, weights through published files."""

import numpy as np
import pytest
from peers import assert_close, compiled, nchw, peer, randomise, shapes, torch

import ldmscale  # noqa: F401  before JAX

import jax  # isort: skip

from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.autoencoder_weights import OLD_NAMES, diffusers_config, diffusers_tensors, load_autoencoder

SMALL = AutoencoderConfig(channels=16, channel_mult=(1, 2, 2), blocks_per_level=1, norm_groups=8)
CONFIGS = {
    "attention": SMALL,
    "no attention": AutoencoderConfig(
        channels=8, channel_mult=(1, 2), blocks_per_level=2, latent_channels=8, norm_groups=4, mid_attention=False
    ),
}


def theirs_of(config):
    return peer("diffusers").AutoencoderKL.from_config(diffusers_config(config, 32, 0.18215)).eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_encode_and_decode_equal_diffusers(config, tmp_path):
    theirs = theirs_of(config)
    randomise(theirs, seed=2)
    theirs.save_pretrained(tmp_path)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 24, 20, 3)).astype(np.float32)
    module = Autoencoder(config)
    params = load_autoencoder(tmp_path, shapes(module, images))
    mean, logvar = compiled(lambda p, x: module.apply({"params": p}, x, method="encode"))(params, images)
    with torch.no_grad():
        moments = theirs.encode(nchw(images)).latent_dist
        assert_close(mean, moments.mean)
        assert_close(logvar, moments.logvar)
        decoded = theirs.decode(moments.mean).sample
    latents = moments.mean.numpy().transpose(0, 2, 3, 1)
    ours = compiled(lambda p, z: module.apply({"params": p}, z, method="decode"))(params, latents)
    assert_close(ours, decoded)
    assert ours.shape == images.shape


def test_the_attentions_old_names_are_read_and_export_is_the_inverse(tmp_path):
    theirs = theirs_of(SMALL)
    randomise(theirs, seed=2)
    state = theirs.state_dict()
    like = shapes(Autoencoder(SMALL), np.zeros((1, 8, 8, 3), np.float32))
    old = {}
    for name, tensor in state.items():
        for before, after in OLD_NAMES.items():
            name = name.replace(f".{after}.", f".{before}.")
        old[name] = tensor
    assert any(".proj_attn." in name for name in old)
    torch.save(old, tmp_path / "vae.pt")
    tensors = diffusers_tensors(load_autoencoder(tmp_path / "vae.pt", like))
    assert sorted(tensors) == sorted(state)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, state[name].numpy(), err_msg=name)


def test_stable_diffusions_own_has_our_parameters():
    config = AutoencoderConfig()  # KL-f8
    with torch.device("meta"):  # shapes only
        theirs = {name: tuple(tensor.shape) for name, tensor in theirs_of(config).state_dict().items()}
    ours = jax.tree.leaves(shapes(Autoencoder(config), jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)))
    assert sum(x.size for x in ours) == sum(int(np.prod(s)) for s in theirs.values()) == 83_653_863
