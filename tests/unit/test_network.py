"""Both families of networks through what the study does with one: every task, sampler and way of keeping weights."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import merged

from ldmscale.cells.cell import Cell
from ldmscale.config.study import Study
from ldmscale.data.encoded import Latents
from ldmscale.diffusion.samplers import DEFAULT_SPACING
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.cells import Generator
from ldmscale.generation.draws import Draws
from ldmscale.generation.export import export
from ldmscale.models.adapter import DiTAdapter, adapter, adapter_parameters
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.dit import DiT, DiTConfig
from ldmscale.models.flops import codi_cost, network_cost
from ldmscale.models.network import first_kernel, inputs, net_config, network, widen, with_guidance
from ldmscale.models.unet import UNet, UNetConfig
from ldmscale.tasks.codi import CoDiTask
from ldmscale.tasks.dreambooth import Concept, DreamBoothTask
from ldmscale.tasks.guided import GuidedTask
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.tasks.preview import preview
from ldmscale.tasks.superres import SuperresTask
from ldmscale.training.checkpoint import save_tree
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_adapted, load_weights, parameter_shapes

UNET = UNetConfig(4, (1,), 1, (True,), heads=2, norm_groups=2, context_width=6)
NET = DiTConfig(8, 2, 2, context_width=6)
SCHEDULE = Schedule()
RUN = TrainConfig(2, 1e-2, 0, 0.0, seed=0, ema=0.9)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(shapes, seed=0):
    """Parameters of which none is zero: freshly initialised, a network predicts nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (0.2 * rng.normal(size=s.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(parameter_shapes(NET))


def latents(count=6):
    rng = np.random.default_rng(1)
    mean = rng.normal(size=(count, 4, 4, 4)).astype(np.float32)
    states = rng.normal(size=(count + 1, 3, 6)).astype(np.float32)
    return Latents(mean, np.full_like(mean, 0.1), states[1:], np.arange(count + 1), states[0], 0.5)


def changed(before, after):
    """Names of the parameters that training moved."""
    flat = jax.tree.leaves_with_path(after)
    pairs = zip(jax.tree.leaves(before), flat, strict=True)
    return {jax.tree_util.keystr(path) for old, (path, new) in pairs if not np.array_equal(old, new)}


def trained(task, folder):
    """Parameters that a short run begins and ends with."""
    begun = task.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, begun)
    (path,) = train(task, RUN, folder, "d", keep=[RUN.steps]).values()
    return before, path


# ---------------------------------------------------------------- which network


def test_params_without_a_family_are_a_u_nets():
    sizes = {"filters": 4, "channel_mult": [1], "blocks_per_level": 1, "attention_levels": [True], "heads": 2}
    rest = {"norm_groups": 2, "context_width": 6}
    given = {**sizes, **rest}
    assert net_config(given) == net_config({**given, "family": "unet"}) == UNET
    assert given == {**sizes, **rest}  # as it was
    dit = {"family": "dit", "width": 8, "depth": 2, "heads": 2, "context_width": 6}
    assert net_config(dit) == NET
    assert isinstance(network(UNET), UNet) and isinstance(network(NET), DiT)


def test_a_study_says_what_every_network_is():
    study = Study(merged("smoke.yaml", {"dit": {"mlp_ratio": 3}, "unet": {"dtype": "bfloat16"}}))
    assert net_config(study.net_params("d8x2")) == DiTConfig(8, 2, 2, 2, 16, 4, 4, 3, "bfloat16")
    assert net_config(study.net_params("d8x2", "superres")).in_channels == 8
    assert net_config(study.net_params("d8x2", "guided")).guidance_width == 256
    assert isinstance(net_config(study.net_params("f8")), UNetConfig)
    assert "family" not in study.net_params("f8")  # by which its digest would change


def test_another_training_of_a_transformer_is_the_same_network():
    study = Study(merged("smoke.yaml", {"training_seeds": 2}))
    again = study.models["d8x2.s1"]
    assert (again.member, again.seed, again.filters) == ("d8x2", 1, None)
    assert study.net_params("d8x2.s1") == study.net_params("d8x2")


# ---------------------------------------------------------------- training


def test_pretraining_begins_at_nothing_and_moves_all_of_it(tmp_path):
    task = PretrainTask(NET, SCHEDULE, latents(), 4, 0.1, 0)
    before, path = trained(task, tmp_path)
    # Zeros of adaLN-zero open one after the other: the last layer first.
    assert "['proj_out_2']['kernel']" in changed(before, load_weights(path, NET))
    loss = quick(task.loss)
    params, batch = drawn(parameter_shapes(NET)), task.batch(0)
    gradient = quick(jax.grad(task.loss))(params, batch, jax.random.key(0))
    dead = {jax.tree_util.keystr(p) for p, g in jax.tree.leaves_with_path(gradient) if not np.abs(g).max() > 1e-7}
    assert all(name.endswith("['to_k']['bias']") for name in dead)
    step = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    assert loss(step, batch, jax.random.key(0)) < loss(params, batch, jax.random.key(0))


def test_the_pictures_of_training_are_a_transformers_too():
    task = PretrainTask(NET, SCHEDULE, latents(), 4, 0.1, 0)
    ae = AutoencoderConfig(channels=4, channel_mult=(1,), blocks_per_level=1, latent_channels=4, norm_groups=2)
    weights = Autoencoder(ae).init(jax.random.key(1), jnp.zeros((1, 4, 4, 3)))["params"]
    images = preview(task, ae, weights, 8, Devices())(task.init(jax.random.key(0)))
    assert images.shape == (6, 4, 4, 3) and images.dtype == np.uint8


@pytest.mark.parametrize("config", [UNET, NET, replace(NET, patch=4)], ids=["unet", "dit", "dit of patch 4"])
def test_a_widened_network_is_what_it_was_whatever_the_new_channels(config):
    wider, narrow = replace(config, in_channels=7), drawn(parameter_shapes(config))
    wide = widen(narrow, config, 3)
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(lambda s: s.shape, parameter_shapes(wider))
    assert first_kernel(narrow, wider).shape[2] == 4 and first_kernel(wide, config).shape[2] == 7
    rng = np.random.default_rng(2)
    z, more = (rng.normal(size=(3, 8, 8, n)).astype(np.float32) for n in (4, 3))
    t, context = np.array([0, 500, 999]), rng.normal(size=(3, 3, 6)).astype(np.float32)
    run = quick(lambda config, params, z: network(config).apply({"params": params}, z, t, context), static_argnums=0)
    seen = np.concatenate([z, more], axis=-1)
    was = run(config, narrow, z)
    assert np.abs(was).max() > 1e-3
    np.testing.assert_allclose(run(wider, wide, seen), was, rtol=1e-5, atol=1e-6)
    # The new weights reach the output once they are something.
    grown = widen(narrow, config, 3)
    _first(grown)["kernel"] = _first(grown)["kernel"] + 0.1
    assert np.abs(run(wider, grown, seen) - run(wider, grown, np.concatenate([z, 0 * more], axis=-1))).max() > 1e-3


def _first(params):
    return params["conv_in"] if "conv_in" in params else params["pos_embed"]["proj"]


def test_super_resolution_finetunes_a_transformer(params, tmp_path):
    data = latents()
    task = SuperresTask(replace(NET, in_channels=8), SCHEDULE, params, data.mean, data.std, 0.5 * data.mean, data.null,
                        0.5, 4, 0)  # fmt: skip
    before, path = trained(task, tmp_path)
    after = load_weights(path, replace(NET, in_channels=8))
    new = first_kernel(after, NET)[:, :, 4:]
    assert not np.any(first_kernel(before, NET)[:, :, 4:]) and np.abs(new).max() > 1e-3
    with pytest.raises(UserError, match="the pretrained network takes 8"):
        replace(task, params=before)


def test_dreambooth_finetunes_a_transformer(params, tmp_path):
    data = latents()
    subject = Concept(data.mean[:2], data.std[:2], data.null)
    task = DreamBoothTask(NET, SCHEDULE, params, subject, subject, 0.5, 0)
    before, path = trained(task, tmp_path)
    assert len(changed(before, load_weights(path, NET))) > len(jax.tree.leaves(params)) / 2


def test_guided_distillation_begins_as_its_teacher_and_learns_the_weight(params, tmp_path):
    told = replace(NET, guidance_width=16)
    teacher = with_guidance(params, told)
    assert jax.tree.map(jnp.shape, teacher) == jax.tree.map(lambda s: s.shape, parameter_shapes(told))
    data = latents()
    z, context, t = data.mean[:2], data.states[:2], np.array([3, 700])
    student = DiT(told).apply({"params": teacher}, z, t, context, np.array([0.5, 7.0], np.float32))
    np.testing.assert_array_equal(student, DiT(NET).apply({"params": params}, z, t, context))
    task = GuidedTask(told, SCHEDULE, teacher, data, 4, 0, steps=4)
    before, path = trained(task, tmp_path)
    assert "['time_embedding']['cond_proj']['kernel']" in changed(before, load_weights(path, told))


# ---------------------------------------------------------------- the adapter


@pytest.mark.parametrize(("depth", "copied"), [(1, 1), (2, 1), (3, 1), (5, 2)])
def test_a_transformers_adapter_begins_with_copies_of_half_and_changes_nothing(depth, copied):
    config = replace(NET, depth=depth)
    params = drawn(parameter_shapes(config))
    added = adapter_parameters(params)
    args = inputs(config, 4, 3)
    like = jax.eval_shape(adapter(config).init, jax.random.key(0), *args)["params"]
    assert jax.tree.map(jnp.shape, added) == jax.tree.map(jnp.shape, like)
    closing = {name for name in added if name.startswith("controlnet_")}
    assert len(closing) == copied and not any(np.any(x) for name in closing for x in jax.tree.leaves(added[name]))
    for name in added.keys() - closing:
        jax.tree.map(np.testing.assert_array_equal, added[name], params[name])
    assert added.keys() - closing == {
        "pos_embed",
        "time_embedding",
        *(f"transformer_blocks_{i}" for i in range(copied)),
    }
    data = latents()
    seen = data.mean[:2], np.array([3, 700]), data.states[:2]
    residuals = DiTAdapter(config).apply({"params": added}, *seen)
    plain = DiT(config).apply({"params": params}, *seen)
    np.testing.assert_array_equal(DiT(config).apply({"params": params}, *seen, residuals=residuals), plain)
    for leaf in jax.tree.leaves(added):  # of its own
        leaf.delete()
    assert np.isfinite(plain).all()


def test_an_adapters_residuals_are_its_blocks_outputs():
    config = replace(NET, depth=4)
    params = drawn(parameter_shapes(config))
    added, seen = adapter_parameters(params), (latents().mean[:2], np.array([3, 700]), latents().states[:2])
    for i in range(2):
        added[f"controlnet_blocks_{i}"]["kernel"] = jnp.eye(8)
    residuals = DiTAdapter(config).apply({"params": added}, *seen)
    _, kept = DiT(config).apply({"params": params}, *seen, capture_intermediates=True)
    blocks = kept["intermediates"]
    for i, residual in enumerate(residuals):
        np.testing.assert_allclose(residual, blocks[f"transformer_blocks_{i}"]["__call__"][0], rtol=1e-5, atol=1e-5)


def test_training_an_adapter_begins_at_its_closing_layers_and_then_reaches_all_of_it(params):
    seen = latents().mean[:2], np.array([3, 700]), latents().states[:2]

    def loss(added):
        residuals = DiTAdapter(NET).apply({"params": added}, *seen)
        return jnp.mean((DiT(NET).apply({"params": params}, *seen, residuals=residuals) - seen[0]) ** 2)

    def reached(added):
        gradient = quick(jax.grad(loss))(added)
        return {jax.tree_util.keystr(p) for p, g in jax.tree.leaves_with_path(gradient) if np.abs(g).max() > 1e-7}

    added = adapter_parameters(params)
    assert reached(added) == {"['controlnet_blocks_0']['kernel']", "['controlnet_blocks_0']['bias']"}
    every = {jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(added)}
    dead = every - reached(drawn(added))
    assert all(name.endswith("['to_k']['bias']") for name in dead)


@pytest.mark.parametrize("trainable", ["adapter", "full"])
def test_codi_trains_a_transformers_adapter(params, tmp_path, trainable):
    task = CoDiTask(NET, SCHEDULE, params, latents(), 4, 0, trainable=trainable)
    before, path = trained(task, tmp_path)
    save_tree(tmp_path / "net.safetensors", params)
    after = load_adapted(path, NET, tmp_path / "net.safetensors" if trainable == "adapter" else None)
    assert after.keys() == {"adapter", "unet"}
    assert "['controlnet_blocks_0']['kernel']" in changed(before["adapter"], after["adapter"])
    assert bool(changed(params, after["unet"])) == (trainable == "full")


# ---------------------------------------------------------------- sampling, costs, weights


@pytest.mark.parametrize(
    ("task", "sampler"),
    [("t2i", "ddim"), ("t2i", "ddpm"), ("t2i", "dpmpp2m"), ("superres", "ddim"), ("codi", "codi"), ("guided", "ddim")],
)
def test_cells_are_drawn_by_a_transformer_whatever_the_batch(params, task, sampler):
    data = latents()
    config, weights, condition = NET, params, None
    if task == "superres":
        config, condition = replace(NET, in_channels=8), data.mean
        weights = drawn(parameter_shapes(config))
    if task == "codi":
        weights = {"unet": params, "adapter": drawn(adapter_parameters(params))}
    if task == "guided":
        config = replace(NET, guidance_width=16)
        weights = drawn(parameter_shapes(config))
    cell = Cell(task, "d", "w", sampler, 3, 1.0 if task == "superres" else 4.0)
    draws = Draws(data.states, data.null, np.arange(6), ["heldout"] * 6, condition)
    small, large = (
        Generator(config, SCHEDULE, 4, batch, 0, adapted=task == "codi").latents(
            weights, cell, DEFAULT_SPACING[sampler], draws
        )
        for batch in (4, 6)
    )
    assert small.shape == (6, 4, 4, 4) and np.isfinite(small).all() and np.ptp(small) > 0.1
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)
    if task == "codi":
        without = Generator(NET, SCHEDULE, 4, 6, 0).latents(params, cell, DEFAULT_SPACING[sampler], draws)
        assert np.abs(large - without).max() > 1e-3


def test_validation_losses_use_a_transformers_prediction(params):
    data = latents()
    found = Generator(NET, SCHEDULE, 4, 4, 0).noise(params, data.mean, 500, data.states)
    direct = DiT(NET).apply({"params": params}, data.mean, np.full(6, 500), data.states)
    np.testing.assert_allclose(found, direct, rtol=1e-4, atol=1e-5)


def test_codis_cost_counts_the_adapter():
    plain, both = network_cost(NET, 8, 5), codi_cost(NET, 8, 5)
    added = sum(
        int(np.prod(s.shape)) for s in jax.tree.leaves(jax.eval_shape(adapter_parameters, parameter_shapes(NET)))
    )
    assert both.params == plain.params + added and plain.flops < both.flops < 2 * plain.flops


def test_weights_of_another_shape_and_published_ones_are_refused(params, tmp_path):
    save_tree(tmp_path / "net.safetensors", params)
    kept = load_weights(tmp_path / "net.safetensors", NET)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    with pytest.raises(UserError, match="transformer_blocks_2"):
        load_weights(tmp_path / "net.safetensors", replace(NET, depth=3))
    (tmp_path / "published").mkdir()
    with pytest.raises(UserError, match="published transformers are not read"):
        load_weights(tmp_path / "published", NET)


def test_a_transformer_is_not_exported_to_diffusers(tmp_path):
    class Pipeline:
        unet, origin = NET, {"model": "d8x2"}

    with pytest.raises(UserError, match="'d8x2' is a transformer: .* U-Nets alone"):
        export(Pipeline(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
