"""Inception, LPIPS and the DINO transformers against the peers' own code, with weights read from published layouts.

Inception: clean-fid's copy of pytorch-fid. LPIPS: the lpips package, with the linear weights it ships. DINO: timm, and
facebookresearch's call for resampled positions. Backbone weights are random; float32 on the CPU.
"""

import dataclasses
import warnings
import zipfile

import numpy as np
import pytest

import ldmscale  # noqa: F401  (prepares the process for JAX)

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from ldmscale.errors import UserError  # noqa: E402
from ldmscale.metrics.torch_guard import guard_torchvision  # noqa: E402
from ldmscale.models import inception_weights, vit_weights  # noqa: E402
from ldmscale.models.inception import InceptionV3, class_probabilities  # noqa: E402
from ldmscale.models.inception_weights import load_inception  # noqa: E402
from ldmscale.models.lpips import LPIPS  # noqa: E402
from ldmscale.models.lpips_weights import load_lpips  # noqa: E402
from ldmscale.models.vit import DINO_S16, DINOV2_L14, ViT, ViTConfig, imagenet_normalise  # noqa: E402
from ldmscale.models.vit_weights import load_vit, resample_positions  # noqa: E402

TOLERANCE = 1e-4


def _peer(package: str):
    guard_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package, reason=f"the parity tests compare with {package}")


def randomise(module, seed: int) -> None:
    """Weights that keep activations alive through ReLUs; norms, biases and running statistics away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith(("cls_token", "pos_embed")):
                tensor.copy_(0.5 * noise)
            elif tensor.ndim >= 2:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("weight", "gamma")):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.1 * noise)


def nchw(images: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def assert_close(ours, theirs) -> None:
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert scale > 1e-3, "the peer's output is nearly zero: the comparison would show nothing"
    error = np.abs(np.asarray(ours) - theirs).max() / scale
    assert error <= TOLERANCE, f"max error {error:.2e} of the output's scale"


# Inception


@pytest.fixture(scope="module")
def pytorch_fid():
    """clean-fid's copy of pytorch-fid's network with random weights, kept from downloading the published ones."""
    peer = _peer("cleanfid.inception_pytorch")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(peer, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        network = peer.fid_inception_v3().eval()
    randomise(network, seed=1)
    return network


def test_inception_equals_pytorch_fid(pytorch_fid, tmp_path):
    unread = {"AuxLogits.conv0.conv.weight": torch.zeros(1)}  # the published file has the auxiliary classifier
    torch.save({**pytorch_fid.state_dict(), **unread}, tmp_path / "pt_inception.pth")
    params = load_inception(tmp_path / "pt_inception.pth")
    apply = jax.jit(lambda images: InceptionV3().apply({"params": params}, images))
    inputs = []
    pytorch_fid.fc.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for batch in (3, 1):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 299, 299, 3)).astype(np.float32)
        features, logits = apply(images)
        with torch.no_grad():
            their_logits = pytorch_fid((nchw(images) - 128) / 128)
            unbiased = torch.nn.functional.linear(inputs[-1], pytorch_fid.fc.weight)
        assert_close(features, inputs[-1])
        assert_close(logits, their_logits)
        assert_close(class_probabilities(params, features), unbiased.softmax(1))


# The convolutions of NVIDIA's TorchScript archive, in the order of the TensorFlow graph, which torchvision keeps too.
ARCHIVE = """
conv conv_1 conv_2 conv_3 conv_4
mixed{0,1,2}: conv tower.conv tower.conv_1 tower_1.conv tower_1.conv_1 tower_1.conv_2 tower_2.conv
mixed{3}: conv tower.conv tower.conv_1 tower.conv_2
mixed{4,5,6,7}: conv tower.conv tower.conv_1 tower.conv_2
    tower_1.conv tower_1.conv_1 tower_1.conv_2 tower_1.conv_3 tower_1.conv_4 tower_2.conv
mixed{8}: tower.conv tower.conv_1 tower_1.conv tower_1.conv_1 tower_1.conv_2 tower_1.conv_3
mixed{9,10}: conv tower_conv tower_mixed_conv tower_mixed_conv_1
    tower_1_conv tower_1_conv_1 tower_1_mixed_conv tower_1_mixed_conv_1 tower_2_conv
"""


def archive_convolutions() -> list[str]:
    names: list[str] = []
    for line in ARCHIVE.strip().replace("\n    ", " ").splitlines():
        block, _, convolutions = line.rpartition(":")
        numbers = block.partition("{")[2].rstrip("}").split(",")
        mixed = [f"layers.mixed{f'_{n}' * (n != '0')}." for n in numbers] if block else ["layers."]
        names += [prefix + conv for prefix in mixed for conv in convolutions.split()]
    return names


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archive_reads_as_the_state_dict(pytorch_fid, tmp_path):
    """The same numbers under the archive's names, in its format and in a state dict; its batch-norm weight is one."""
    state = {
        name: torch.ones_like(value) if name.endswith("bn.weight") else value
        for name, value in pytorch_fid.state_dict().items()
    }
    torch.save(state, tmp_path / "pt_inception.pth")
    names = [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]
    renamed = {"output.weight": state["fc.weight"], "output.bias": state["fc.bias"]}
    for ours, theirs in zip(names, archive_convolutions(), strict=True):
        renamed[f"{theirs}.weight"] = state[f"{ours}.conv.weight"]
        renamed[f"{theirs}.beta"] = state[f"{ours}.bn.bias"]
        renamed[f"{theirs}.mean"] = state[f"{ours}.bn.running_mean"]
        renamed[f"{theirs}.var"] = state[f"{ours}.bn.running_var"]
    root = torch.nn.Module()
    for name, value in renamed.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(leaf, value)
    torch.jit.script(root).save(str(tmp_path / "inception-2015-12-05.pt"))
    torch.save(renamed, tmp_path / "renamed.pth")
    want = load_inception(tmp_path / "pt_inception.pth")
    for file in ("inception-2015-12-05.pt", "renamed.pth"):
        jax.tree.map(np.testing.assert_array_equal, load_inception(tmp_path / file), want)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_damaged_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inception/constants.pkl", b"cut short")
    with pytest.raises(UserError, match="inception-2015-12-05.pt is not a whole TorchScript archive"):
        load_inception(path)


# LPIPS


def lpips_peer(net: str, folder):
    """The lpips package with its own linear weights on a random backbone, and our parameters read from both files."""
    lpips = _peer("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    randomise(peer.net, seed=2)
    features = {
        "features." + name.split(".", 1)[1]: value  # slice2.3.weight is torchvision's features.3.weight
        for name, value in peer.net.state_dict().items()
    }
    torch.save({**features, "classifier.1.weight": torch.zeros(1)}, folder / "backbone.pth")
    linear = lpips.__path__[0] + f"/weights/v0.1/{net}.pth"
    return peer, load_lpips(folder / "backbone.pth", linear, net)


@pytest.mark.parametrize("net", ["alex", "vgg"])
@pytest.mark.parametrize("size", [(64, 64), (67, 83)])
def test_lpips_and_its_gradient_equal_the_package(net, size, tmp_path):
    peer, params = lpips_peer(net, tmp_path)
    rng = np.random.default_rng(3)
    images = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    others = np.clip(images + rng.normal(0, 0.3, images.shape), -1, 1).astype(np.float32)

    def total(x):
        distances = LPIPS(net).apply({"params": params}, x, others)
        return distances.sum(), distances

    gradient, distances = jax.jit(jax.grad(total, has_aux=True))(images)
    leaf = nchw(images).requires_grad_()
    theirs = peer(leaf, nchw(others))
    theirs.sum().backward()
    assert_close(distances, theirs.detach()[:, 0, 0, 0])
    their_gradient = leaf.grad.numpy().transpose(0, 2, 3, 1)
    # Not the largest error: a rectifier or a pool that rounding tips over changes the gradient of its pixels by a jump.
    deviation = np.sqrt(np.mean((gradient - their_gradient) ** 2))
    assert deviation <= 1e-3 * np.abs(their_gradient).max()


# DINO


SMALL = {
    "dino": ViTConfig(image_size=48, patch=16, width=48, depth=3, heads=6),
    "dinov2": ViTConfig(image_size=70, patch=14, width=64, depth=2, heads=4, layer_scale=True),
}


def timm_vit(config: ViTConfig):
    """timm's network of the same shape with random weights."""
    timm = _peer("timm")
    peer = timm.models.vision_transformer.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        init_values=1e-5 if config.layer_scale else None,
        num_classes=0,
    ).eval()
    randomise(peer, seed=5)
    with torch.no_grad():
        for tensor in (peer.cls_token, peer.pos_embed, *peer.patch_embed.parameters()):
            tensor.mul_(3e-3)  # small enough for the norms' epsilon to show
    return peer


def by_facebook(table, grid: int):
    """Positions at another resolution as in interpolate_pos_encoding of facebookresearch/dino and /dinov2."""
    side = int((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    patches = torch.nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], dim=1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("published_grid", ["own", 7])
def test_vit_equals_timm(name, published_grid, tmp_path):
    config = SMALL[name]
    peer = timm_vit(config)
    stored = {**peer.state_dict(), "mask_token": torch.zeros(1, config.width)}
    if published_grid != "own":
        table = 3e-3 * torch.randn(1, 1 + published_grid**2, config.width, generator=torch.Generator().manual_seed(6))
        stored["pos_embed"] = table
        peer.pos_embed.data = by_facebook(table, config.grid)
    torch.save(stored, tmp_path / "vit.pth")
    params = load_vit(tmp_path / "vit.pth", config)
    size = config.image_size
    images = np.random.default_rng(7).integers(0, 256, (3, size, size, 3), np.uint8)
    normalised = imagenet_normalise(images)
    with torch.no_grad():
        theirs = peer(nchw(np.asarray(normalised)))
    assert_close(jax.jit(ViT(config).apply)({"params": params}, normalised), theirs)


@pytest.mark.parametrize(("published", "ours"), [(37, 16), (14, 32), (5, 1)])
def test_positions_resample_as_facebook_does(published, ours):
    table = torch.randn(1, 1 + published**2, 24, generator=torch.Generator().manual_seed(8))
    theirs = by_facebook(table, ours)
    assert_close(resample_positions(table.numpy(), ours), theirs)
    np.testing.assert_array_equal(resample_positions(table.numpy(), published), table)


def test_imagenet_normalisation_equals_torchvision():
    functional = _peer("torchvision.transforms.functional")
    timm = _peer("timm")
    images = np.random.default_rng(9).integers(0, 256, (2, 5, 7, 3), np.uint8)
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    theirs = functional.normalize(nchw(images).float() / 255, mean, std).permute(0, 2, 3, 1)
    assert_close(imagenet_normalise(images), theirs)


@pytest.mark.parametrize(
    ("config", "model"), [(DINO_S16, "vit_small_patch16_224.dino"), (DINOV2_L14, "vit_large_patch14_dinov2.lvd142m")]
)
def test_published_vits_have_our_names_and_shapes(config, model):
    with torch.device("meta"):  # shapes only
        peer = _peer("timm").create_model(model, pretrained=False)
    theirs = {name: tuple(value.shape) for name, value in peer.state_dict().items()}
    published = dataclasses.replace(config, image_size=peer.patch_embed.img_size[0])
    image = jax.ShapeDtypeStruct((1, published.image_size, published.image_size, 3), jnp.float32)
    params = jax.eval_shape(ViT(published).init, jax.random.key(0), image)["params"]
    ours = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = vit_weights.published_name(".".join(key.key for key in path))
        ours[name] = leaf.shape[::-1] if path[-1].key == "kernel" else leaf.shape
    ours["patch_embed.proj.weight"] = (config.width, 3, config.patch, config.patch)
    assert ours == theirs
    # What timm builds them with, which shapes do not tell.
    block = peer.blocks[0]
    assert (block.attn.num_heads, block.norm1.eps, peer.norm.eps) == (config.heads, 1e-6, 1e-6)
    assert peer.global_pool == "token" and block.mlp.act.approximate == "none"


# All importers


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """For each importer: how it reads a file, the shapes that belong there, and a tensor to spoil."""
    lpips = _peer("lpips")
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    params = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    fid = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shape = leaf.shape
        shape = (*shape[:-3:-1], *shape[:-2]) if path[-1].key == "kernel" else shape
        fid[inception_weights.published_name(".".join(key.key for key in path))] = shape
    alex = {}
    for index, shape in {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }.items():
        alex |= {f"features.{index}.weight": (*shape, shape[-1]), f"features.{index}.bias": shape[:1]}
    linear = lpips.__path__[0] + "/weights/v0.1/alex.pth"
    linears = {name: tuple(value.shape) for name, value in torch.load(linear, map_location="cpu").items()}
    backbone = tmp_path_factory.mktemp("files") / "backbone.pth"
    write(backbone, alex)
    vit = {name: tuple(value.shape) for name, value in timm_vit(SMALL["dinov2"]).state_dict().items()}
    return {
        "inception": (load_inception, fid, "Mixed_6b.branch7x7_2.bn.running_var"),
        "lpips backbone": (lambda path: load_lpips(path, linear, "alex"), alex, "features.6.weight"),
        "lpips linear": (lambda path: load_lpips(backbone, path, "alex"), linears, "lin2.model.1.weight"),
        "vit": (lambda path: load_vit(path, SMALL["dinov2"]), vit, "blocks.1.attn.qkv.weight"),
    }


def write(path, shapes) -> None:
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, path)


@pytest.mark.parametrize("importer", ["inception", "lpips backbone", "lpips linear", "vit"])
@pytest.mark.parametrize("fault", ["missing", "extra", "mis-shaped"])
def test_importers_refuse_what_does_not_fit(importer, fault, files, tmp_path):
    load, shapes, victim = files[importer]
    path = tmp_path / "weights.pth"
    write(path, shapes)
    load(path)
    if fault == "missing":
        write(path, {name: shape for name, shape in shapes.items() if name != victim})
    elif fault == "extra":
        victim = "register_tokens"
        write(path, {**shapes, victim: (1, 4, 8)})
    else:
        write(path, {**shapes, victim: (*shapes[victim][:-1], shapes[victim][-1] + 1)})
    with pytest.raises(UserError, match=victim.replace(".", r"\.")):
        load(path)


@pytest.mark.parametrize(
    ("network", "shapes", "said"),
    [
        (InceptionV3(), [(1, 298, 299, 3)], "299"),
        (LPIPS("squeeze"), [(1, 64, 64, 3)] * 2, "alex, vgg"),
        (LPIPS("alex"), [(1, 64, 64, 3), (2, 64, 64, 3)], "one shape"),
        (LPIPS("alex"), [(1, 30, 64, 3)] * 2, "31"),
        (LPIPS("vgg"), [(1, 64, 15, 3)] * 2, "16"),
        (ViT(DINO_S16), [(1, 225, 224, 3)], "224"),
    ],
)
def test_networks_refuse_other_images(network, shapes, said):
    with pytest.raises(UserError, match=said):
        jax.eval_shape(network.init, jax.random.key(0), *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_lpips_takes_its_smallest_images(net, smallest):
    image = jax.ShapeDtypeStruct((1, smallest, smallest, 3), jnp.float32)
    assert jax.eval_shape(LPIPS(net).init_with_output, jax.random.key(0), image, image)[0].shape == (1,)
