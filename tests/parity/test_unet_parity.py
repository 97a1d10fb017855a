"""The U-Net and its adapter against diffusers' own: weights through published files, outputs, gradients, and back."""

import dataclasses
import json

import numpy as np
import pytest
from peers import assert_close, compiled, error, nchw, peer, randomise, shapes, torch
from safetensors.numpy import save_file

import ldmscale  # noqa: F401  before JAX

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip

from ldmscale.errors import UserError
from ldmscale.models import layers
from ldmscale.models.adapter import Adapter, adapter_parameters
from ldmscale.models.flops import parameter_count
from ldmscale.models.unet import UNet, UNetConfig
from ldmscale.models.unet_layers import guidance_features
from ldmscale.models.unet_weights import (
    CONDITION,
    adapter_config,
    adapter_tensors,
    diffusers_config,
    diffusers_tensors,
    load_adapter,
    load_unet,
    published_name,
)
from ldmscale.models.weights import to_tree

UNETS = {
    "embedded": UNetConfig(8, (1, 2, 4), 1, (True, True, True), heads=2, norm_groups=8, context_width=24),
    "mixed": UNetConfig(16, (1, 2, 4), 1, (False, True, True), heads=4, norm_groups=8, context_width=24),
    "paper's shape": UNetConfig(32, context_width=40),
    "heads by level": UNetConfig(32, (1, 2, 4), 1, (True, True, False), heads=(1, 2, 4), context_width=16),
    "paper's 39M": UNetConfig(64),
    "guided": UNetConfig(
        16, (1, 2, 4), 1, (False, True, True), heads=4, norm_groups=8, context_width=24, guidance_width=256
    ),
}


def theirs_of(config: UNetConfig, **changes):
    model = peer("diffusers").UNet2DConditionModel
    return model.from_config({**diffusers_config(config, 8), **changes}).eval()


def inputs(config: UNetConfig, size=(8, 8), batch=1):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, *size, config.in_channels), np.float32)
    context = rng.standard_normal((batch, 5, config.context_width), np.float32)
    return z, np.array([3, 500, 999], np.int32)[:batch], context


def saved(module, folder):
    """The peer's weights, all random, as it publishes them -> the folder."""
    randomise(module, seed=1)
    module.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "size", "batch", "backend"),
    [
        ("embedded", (8, 8), 3, "cpu"),
        ("embedded", (8, 8), 3, "tpu"),  # the branches that accelerators take, run here
        ("mixed", (7, 9), 3, "cpu"),
        ("paper's shape", (13, 11), 1, "cpu"),
        ("heads by level", (5, 8), 3, "cpu"),
        ("paper's 39M", (9, 7), 1, "cpu"),
    ],
)
def test_outputs_equal_diffusers(name, size, batch, backend, monkeypatch, tmp_path):
    config = UNETS[name]
    theirs = theirs_of(config)
    monkeypatch.setattr(layers, "backend", lambda: backend)
    z, t, context = inputs(config, size, batch)
    module = UNet(config)
    params = load_unet(saved(theirs, tmp_path), shapes(module, z, t, context))
    ours = compiled(module.apply)({"params": params}, z, t, context)
    with torch.no_grad():
        assert_close(ours, theirs(nchw(z), torch.from_numpy(t), torch.from_numpy(context)).sample)


def test_gradients_equal_diffusers(tmp_path):
    config = UNETS["mixed"]
    theirs, module = theirs_of(config), UNet(config)
    z, t, context = inputs(config, (7, 9), 3)
    like = shapes(module, z, t, context)
    params = load_unet(saved(theirs, tmp_path), like)
    target = np.random.default_rng(1).standard_normal((3, 7, 9, config.out_channels), np.float32)

    def loss(params, z, context):
        return jnp.mean((module.apply({"params": params}, z, t, context) - target) ** 2)

    ours = compiled(jax.grad(loss, argnums=(0, 1, 2)))(params, z, context)
    latent, text = nchw(z).requires_grad_(), torch.from_numpy(context).requires_grad_()
    torch.nn.functional.mse_loss(theirs(latent, torch.from_numpy(t), text).sample, nchw(target)).backward()
    assert_close(ours[1], latent.grad)
    assert_close(ours[2], text.grad)
    gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    expected = to_tree(gradients, like, published_name, "gradients")
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for mine, wanted in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(expected), strict=True):
        # To each tensor's own scale, or to rounding where a gradient is nearly zero.
        assert np.abs(mine - wanted).max() <= max(1e-4 * np.abs(wanted).max(), 1e-6 * scale)


def test_projections_stored_as_convolutions_are_read(tmp_path):
    # Stable Diffusion 1's layout.
    config = UNETS["mixed"]
    theirs, module = theirs_of(config, use_linear_projection=False), UNet(config)
    z, t, context = inputs(config)
    params = load_unet(saved(theirs, tmp_path), shapes(module, z, t, context))
    with torch.no_grad():
        expected = theirs(nchw(z), torch.from_numpy(t), torch.from_numpy(context)).sample
    assert_close(compiled(module.apply)({"params": params}, z, t, context), expected)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_and_sharded_files_are_read(half, tmp_path):
    config = UNETS["embedded"]
    theirs = theirs_of(config)
    randomise(theirs, seed=1)
    theirs.to(half).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    params = load_unet(tmp_path, shapes(UNet(config), *inputs(config)))
    kernel = theirs.conv_in.weight.float().detach().numpy()
    np.testing.assert_array_equal(params["conv_in"]["kernel"], kernel.transpose(2, 3, 1, 0))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["heads by level", "guided"])
def test_export_is_the_inverse_of_import(name, tmp_path):
    config = UNETS[name]
    theirs = theirs_of(config)
    w = (np.zeros(1, np.float32),) if config.guidance_width else ()
    params = load_unet(saved(theirs, tmp_path), shapes(UNet(config), *inputs(config), *w))
    tensors = diffusers_tensors(params)
    state = theirs.state_dict()
    assert sorted(tensors) == sorted(state)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, state[name].numpy(), err_msg=name)


@pytest.mark.parametrize("filters", [64, 256, 320, 512])
def test_the_papers_family_has_diffusers_parameters(filters):
    config = UNetConfig(filters)
    with torch.device("meta"):  # shapes only
        theirs = {name: tuple(p.shape) for name, p in theirs_of(config).named_parameters()}
    args = ((1, 8, 8, 4), jnp.float32), ((1,), jnp.int32), ((1, 3, config.context_width), jnp.float32)
    args = [jax.ShapeDtypeStruct(*arg) for arg in args]
    assert parameter_count(UNet(config), *args) == sum(int(np.prod(shape)) for shape in theirs.values())


@pytest.mark.parametrize("name", ["mixed", "paper's shape"])
def test_bfloat16_changes_the_output_by_little(name, tmp_path):
    config = UNETS[name]
    z, t, context = inputs(config, (8, 8), 1)
    params = load_unet(saved(theirs_of(config), tmp_path), shapes(UNet(config), z, t, context))
    full = compiled(UNet(config).apply)({"params": params}, z, t, context)
    half = compiled(UNet(dataclasses.replace(config, dtype="bfloat16")).apply)({"params": params}, z, t, context)
    assert half.dtype == jnp.float32
    deviation = float(jnp.sqrt(jnp.mean((half - full) ** 2) / jnp.mean(full**2)))
    # bfloat16 rounds to 2**-9 = 0.2 %; 3 % of the output is what these random networks make of it.
    assert 1e-4 < deviation < 0.03


def broken(state, tmp_path):
    """A file of ``state``, as PyTorch saves it."""
    path = tmp_path / "unet.bin"
    torch.save(state, path)
    return path


def test_a_tensor_that_does_not_fit_is_named(tmp_path):
    config = UNETS["embedded"]
    theirs, like = theirs_of(config), shapes(UNet(config), *inputs(config))
    state, name = theirs.state_dict(), "mid_block.resnets.0.conv1.weight"
    assert error(load_unet(broken(state, tmp_path), like)["conv_in"]["bias"], state["conv_in.bias"]) == 0
    wrong = {
        f"lacks the tensor '{name}'": {k: v for k, v in state.items() if k != name},
        "unknown tensor 'extra.weight'": {**state, "extra.weight": torch.ones(1)},
        f"tensor '{name}' has shape \\[32, 31, 3, 3\\]": {**state, name: state[name][:, :31]},
        f"tensor '{name}' holds values that are not finite": {**state, name: state[name] / 0},
    }
    for message, changed in wrong.items():
        with pytest.raises(UserError, match=message):
            load_unet(broken(changed, tmp_path), like)


def lcm_features(w: np.ndarray, width: int):
    """The embedding of guidance weights in latent consistency models' pipeline."""
    pipeline = peer("diffusers").LatentConsistencyModelPipeline
    return pipeline.get_guidance_scale_embedding(None, torch.from_numpy(w), embedding_dim=width)


@pytest.mark.parametrize("width", [256, 9, 4])
def test_guidance_features_are_latent_consistency_models(width):
    w = np.array([0, 0.5, 6.5, 14, 3.2159], np.float32)
    theirs = lcm_features(w, width)
    # An ulp of a frequency is 1e-3 of a radian at 14,000.
    assert np.abs(np.asarray(guidance_features(jnp.asarray(w), width)) - theirs.numpy()).max() < 2e-3


def test_guided_outputs_equal_diffusers(tmp_path):
    config = UNETS["guided"]
    theirs, module = theirs_of(config), UNet(config)
    (z, t, context), w = inputs(config, (10, 14), 3), np.array([0, 6.5, 3.25], np.float32)
    params = load_unet(saved(theirs, tmp_path), shapes(module, z, t, context, w))
    ours = compiled(module.apply)({"params": params}, z, t, context, w)
    args = nchw(z), torch.from_numpy(t), torch.from_numpy(context)
    with torch.no_grad():
        assert_close(ours, theirs(*args, timestep_cond=lcm_features(w, config.guidance_width)).sample)
        assert error(ours, theirs(*args, timestep_cond=lcm_features(w + 1, config.guidance_width)).sample) > 0.01


def controlnet_of(config: UNetConfig, **changes):
    """diffusers' ControlNet of ``config``, all random but for the end of what it makes of an image."""
    theirs = peer("diffusers").ControlNetModel.from_config({**adapter_config(config), **changes}).eval()
    randomise(theirs, seed=2)
    for tensor in theirs.controlnet_cond_embedding.conv_out.parameters():
        torch.nn.init.zeros_(tensor)
    return theirs


@pytest.mark.parametrize(("name", "size", "batch"), [("mixed", (10, 14), 3), ("paper's shape", (13, 11), 1)])
def test_adapters_outputs_equal_diffusers(name, size, batch, tmp_path):
    config = UNETS[name]
    unet, adapter = UNet(config), Adapter(config)
    z, t, context = inputs(config, size, batch)
    their_unet = theirs_of(config)
    their_adapter = controlnet_of(config, conditioning_embedding_out_channels=[3, 5])
    params = load_unet(saved(their_unet, tmp_path / "unet"), shapes(unet, z, t, context))
    their_adapter.save_pretrained(tmp_path / "adapter")
    added = load_adapter(tmp_path / "adapter", shapes(adapter, z, t, context))

    def run(params, added, z, t, context):
        residuals = adapter.apply({"params": added}, z, t, context)
        return residuals, unet.apply({"params": params}, z, t, context, residuals=residuals)

    residuals, ours = compiled(run)(params, added, z, t, context)
    args = nchw(z), torch.from_numpy(t), torch.from_numpy(context)
    with torch.no_grad():
        image = torch.rand(batch, 3, 2 * size[0], 2 * size[1])
        skips, mid = their_adapter(*args, controlnet_cond=image, return_dict=False)
        theirs = their_unet(*args, down_block_additional_residuals=skips, mid_block_additional_residual=mid).sample
        assert error(ours, their_unet(*args).sample) > 0.01
    assert len(residuals.skips) == len(skips)
    for mine, wanted in zip([*residuals.skips, residuals.mid, ours], [*skips, mid, theirs], strict=True):
        assert_close(mine, wanted)


def test_an_adapter_begins_as_diffusers_controlnet_of_the_unet(tmp_path):
    config = UNETS["heads by level"]
    theirs = theirs_of(config)
    params = load_unet(saved(theirs, tmp_path), shapes(UNet(config), *inputs(config)))
    state = peer("diffusers").ControlNetModel.from_unet(theirs).state_dict()
    tensors = adapter_tensors(adapter_parameters(params))
    assert sorted(tensors) == sorted(state)
    for name in (name for name in tensors if not name.startswith(CONDITION)):
        np.testing.assert_array_equal(tensors[name], state[name].numpy(), err_msg=name)


def test_an_exported_adapter_is_a_controlnet_that_does_not_see_its_image(tmp_path):
    config = UNETS["mixed"]
    z, t, context = inputs(config, (8, 8), 2)
    like = shapes(Adapter(config), z, t, context)
    controlnet_of(config).save_pretrained(tmp_path / "in")
    params = load_adapter(tmp_path / "in", like)
    save_file(adapter_tensors(params), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(adapter_config(config)))
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path, like), params)
    model = peer("diffusers").ControlNetModel
    theirs, info = model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours = compiled(Adapter(config).apply)({"params": params}, z, t, context)
    image = 9 * torch.ones(2, 3, 64, 64)  # eight times the latents' side
    with torch.no_grad():
        skips, mid = theirs(nchw(z), torch.from_numpy(t), torch.from_numpy(context), image, return_dict=False)
    for mine, wanted in zip([*ours.skips, ours.mid], [*skips, mid], strict=True):
        assert_close(mine, wanted)


def test_a_controlnet_that_is_no_adapter_is_refused(tmp_path):
    config = UNETS["mixed"]
    like = shapes(Adapter(config), *inputs(config))
    theirs = controlnet_of(config)
    state, name = theirs.state_dict(), f"{CONDITION}.conv_out.bias"
    with pytest.raises(UserError, match=f"tensor '{name}' is not zero, so it is a ControlNet that was trained on"):
        load_adapter(broken({**state, name: state[name] + 1e-3}, tmp_path), like)
    with pytest.raises(UserError, match="lacks the tensor 'controlnet_mid_block.weight'"):
        load_adapter(broken({k: v for k, v in state.items() if k != "controlnet_mid_block.weight"}, tmp_path), like)
    with pytest.raises(UserError, match="unknown tensor 'conv_out.weight'"):
        load_adapter(broken({**state, "conv_out.weight": torch.ones(1)}, tmp_path), like)
