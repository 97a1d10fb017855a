"""The DiT against diffusers' DiT and PixArt-alpha: weights by name, outputs, gradients, the paper's family's shapes."""

import math

import numpy as np
import pytest
from peers import assert_close, compiled, error, nchw, peer, randomise, shapes, torch

import ldmscale  # noqa: F401  before JAX

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip

from ldmscale.models import layers
from ldmscale.models.dit import TIME_FEATURES, DiT, DiTConfig
from ldmscale.models.weights import to_tree, torch_name

CONFIGS = {
    "small": DiTConfig(16, 2, 4, context_width=24),
    "odd": DiTConfig(24, 3, 3, patch=1, context_width=10, in_channels=3, out_channels=5, mlp_ratio=2),
    "wide patches": DiTConfig(36, 2, 1, patch=3, context_width=7, in_channels=8, out_channels=4),
    "paper's S/2, 2 blocks": DiTConfig(384, 2, 6, context_width=64),
}


def published_name(dotted: str) -> str:
    """Name of our parameter in a file of diffusers' DiT."""
    dotted = dotted.replace("time_embedding.", "transformer_blocks_0.norm1.emb.timestep_embedder.")
    return torch_name(dotted.replace("proj_out_1.linear.", "proj_out_1."), ("transformer_blocks", "net", "to_out"))


# What a diffusers' DiT holds besides: copies of the first block's embedding, and classes, of which ours has none.
BESIDE = (r"transformer_blocks\.\d+\.norm1\.emb\.(timestep|class)_embedder\..*",)


def inputs(config: DiTConfig, rows: int, columns: int, batch: int):
    """Latents of ``rows`` x ``columns`` patches, timesteps, text states."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, rows * config.patch, columns * config.patch, config.in_channels), np.float32)
    context = rng.standard_normal((batch, 5, config.context_width), np.float32)
    return z, np.array([3, 500, 999], np.int32)[:batch], context


def arguments(config: DiTConfig, rows: int) -> dict:
    """What diffusers' models of both kinds are made with."""
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "patch_size": config.patch,
        "sample_size": rows * config.patch,
        "norm_eps": 1e-6,  # of PixArt's and of DiT's own code; diffusers' default for DiT is 1e-5
    }


def theirs_of(config: DiTConfig, rows: int):
    """diffusers' DiT, all random, on ``rows`` x ``rows`` patches, with cross-attention in its public blocks: before it
    PixArt has no norm."""
    diffusers = peer("diffusers")
    from diffusers.models.attention import BasicTransformerBlock, FeedForward

    theirs = diffusers.DiTTransformer2DModel(**arguments(config, rows), num_embeds_ada_norm=3).eval()
    head = config.width // config.heads
    for i in range(config.depth):
        block = BasicTransformerBlock(
            config.width, config.heads, head, cross_attention_dim=config.context_width, attention_bias=True,
            activation_fn="gelu-approximate", norm_type="ada_norm_zero", num_embeds_ada_norm=3, norm_eps=1e-6,
            norm_elementwise_affine=False, ff_inner_dim=config.mlp_ratio * config.width,
        )  # fmt: skip
        assert isinstance(block.ff, FeedForward)
        block.norm2 = torch.nn.Identity()
        theirs.transformer_blocks[i] = block
    positions = theirs.pos_embed.pos_embed.clone()
    randomise(theirs, seed=1)
    theirs.pos_embed.pos_embed.copy_(positions)  # a buffer, and no weight
    first = theirs.transformer_blocks[0].norm1.emb
    first.class_embedder.embedding_table.weight.data.zero_()
    first.time_proj.downscale_freq_shift = 0  # as DiT's own code has it
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb = first
    return theirs.eval()


def run(theirs, z, t, context):
    """The output of :func:`theirs_of`'s network, its blocks shown the text."""
    shown = {"encoder_hidden_states": context}
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **shown}), with_kwargs=True)
        for block in theirs.transformer_blocks
    ]
    out = theirs(z, torch.from_numpy(t), torch.zeros(len(t), dtype=torch.long)).sample
    for hook in hooks:
        hook.remove()
    return out


def loaded(theirs, like):
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    wanted = {published_name(".".join(k.key for k in path)) for path, _ in jax.tree.leaves_with_path(like)}
    kept = {name: tensor for name, tensor in state.items() if name in wanted or "norm1.emb." not in name}
    return to_tree(kept, like, published_name, "their DiT", BESIDE)


@pytest.mark.parametrize(
    ("name", "rows", "batch", "backend"),
    [
        ("small", 4, 3, "cpu"),
        ("small", 5, 3, "tpu"),  # the branches that accelerators take, run here
        ("odd", 7, 2, "cpu"),
        ("wide patches", 3, 1, "cpu"),
        ("paper's S/2, 2 blocks", 5, 3, "cpu"),
    ],
)
def test_outputs_equal_diffusers(name, rows, batch, backend, monkeypatch):
    config = CONFIGS[name]
    theirs, module = theirs_of(config, rows), DiT(config)
    monkeypatch.setattr(layers, "backend", lambda: backend)
    z, t, context = inputs(config, rows, rows, batch)
    params = loaded(theirs, shapes(module, z, t, context))
    ours = compiled(module.apply)({"params": params}, z, t, context)
    with torch.no_grad():
        # Closer than elsewhere: GELU's other form would be off by 4e-5.
        assert error(ours, run(theirs, nchw(z), t, torch.from_numpy(context))) <= 1e-5
        # Each of the inputs counts.
        assert error(ours, run(theirs, nchw(z), t, torch.from_numpy(context + 1))) > 1e-3
        assert error(ours, run(theirs, nchw(z), t + 1, torch.from_numpy(context))) > 1e-3


def test_gradients_equal_diffusers():
    config = CONFIGS["small"]
    theirs, module = theirs_of(config, 5), DiT(config)
    z, t, context = inputs(config, 5, 5, 3)
    like = shapes(module, z, t, context)
    params = loaded(theirs, like)
    target = np.random.default_rng(1).standard_normal((*z.shape[:3], config.out_channels), np.float32)

    def loss(params, z, context):
        return jnp.mean((module.apply({"params": params}, z, t, context) - target) ** 2)

    ours = compiled(jax.grad(loss, argnums=(0, 1, 2)))(params, z, context)
    latent, text = nchw(z).requires_grad_(), torch.from_numpy(context).requires_grad_()
    torch.nn.functional.mse_loss(run(theirs, latent, t, text), nchw(target)).backward()
    assert_close(ours[1], latent.grad)
    assert_close(ours[2], text.grad)
    gradients = {n: p.grad.numpy() for n, p in theirs.named_parameters(remove_duplicate=True) if "class" not in n}
    expected = to_tree(gradients, like, published_name, "gradients", BESIDE)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for mine, wanted in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(expected), strict=True):
        # To each tensor's own scale, or to rounding where a gradient is nearly zero.
        assert np.abs(mine - wanted).max() <= max(1e-4 * np.abs(wanted).max(), 1e-6 * scale)


def pixart_tensors(theirs, t: int) -> dict[str, np.ndarray]:
    """PixArt-alpha's weights as a DiT's: its blocks share one linear layer and add a table to it, and its last norm
    takes the timestep's embedding itself, here that of ``t``."""
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    shared = "adaln_single.linear"
    for i in range(len(theirs.transformer_blocks)):
        block = f"transformer_blocks.{i}"
        table = state.pop(f"{block}.scale_shift_table")
        state[f"{block}.norm1.linear.weight"] = state[f"{shared}.weight"]
        state[f"{block}.norm1.linear.bias"] = state[f"{shared}.bias"] + table.flatten()
    table = state.pop("scale_shift_table")
    with torch.no_grad():
        embedded = theirs.adaln_single(torch.tensor([t]), batch_size=1, hidden_dtype=torch.float32)[1][0]
    state["proj_out_1.weight"] = torch.zeros(table.numel(), table.shape[1])
    state["proj_out_1.bias"] = (table + embedded).flatten()
    for kind in ("weight", "bias"):
        state[f"proj_out_2.{kind}"] = state.pop(f"proj_out.{kind}")
        del state[f"{shared}.{kind}"]
        for layer in ("linear_1", "linear_2"):
            name = f"emb.timestep_embedder.{layer}.{kind}"
            state[f"transformer_blocks.0.norm1.{name}"] = state.pop(f"adaln_single.{name}")
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.mark.parametrize(("name", "rows", "columns"), [("small", 3, 5), ("paper's S/2, 2 blocks", 4, 2)])
def test_outputs_equal_pixart_alpha_at_any_aspect(name, rows, columns):
    config, t = CONFIGS[name], 421
    from_grid = peer("diffusers").models.embeddings.get_2d_sincos_pos_embed_from_grid
    theirs = peer("diffusers").PixArtTransformer2DModel(
        **arguments(config, rows), cross_attention_dim=config.context_width, use_additional_conditions=False
    )
    randomise(theirs, seed=1)
    # diffusers stretches its positions over other grids than a square of the trained size.
    grid = torch.meshgrid(torch.arange(columns).float(), torch.arange(rows).float(), indexing="xy")
    theirs.pos_embed.pos_embed = from_grid(config.width, torch.stack(grid), output_type="pt").float()[None]
    theirs.pos_embed.height, theirs.pos_embed.width = rows, columns
    z, _, context = inputs(config, rows, columns, 3)
    module, times = DiT(config), np.full(3, t, np.int32)
    like = shapes(module, z, times, context)
    params = to_tree(pixart_tensors(theirs, t), like, published_name, "their PixArt")
    ours = compiled(module.apply)({"params": params}, z, times, context)
    with torch.no_grad():
        assert_close(ours, theirs.eval()(nchw(z), torch.from_numpy(context), torch.from_numpy(times)).sample)


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16)],
    ids=["S", "B", "L", "XL"],
)
def test_the_papers_family_has_diffusers_parameters(width, depth, heads):
    config = DiTConfig(width, depth, heads, out_channels=8)
    with torch.device("meta"):  # shapes only
        theirs = peer("diffusers").DiTTransformer2DModel(**arguments(config, 16))
    wanted = {name: p.numel() for name, p in theirs.named_parameters() if "class" not in name}
    args = ((1, 8, 8, 4), jnp.float32), ((1,), jnp.int32), ((1, 3, config.context_width), jnp.float32)
    ours = shapes(DiT(config), *(jax.ShapeDtypeStruct(*arg) for arg in args))
    dotted = {".".join(k.key for k in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(ours)}
    found = {published_name(name): math.prod(shape) for name, shape in dotted.items() if ".attn2." not in name}
    copies = {name for name in wanted if "timestep_embedder" in name and not name.startswith("transformer_blocks.0.")}
    assert found == {name: size for name, size in wanted.items() if name not in copies}
    assert dotted["time_embedding.linear_1.kernel"] == (TIME_FEATURES, width)
