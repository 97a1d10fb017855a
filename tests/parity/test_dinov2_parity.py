"""DINOv2 against transformers' own, with weights read from the file that it writes; random weights, float32."""

import jax
import numpy as np
import pytest
from peers import TOLERANCE, error, peer, randomise

torch = pytest.importorskip("torch")

from ldmscale.errors import UserError  # noqa: E402
from ldmscale.metrics.dinov2 import dinov2_features, resized  # noqa: E402
from ldmscale.models import vit_weights  # noqa: E402
from ldmscale.models.vit import ViT, imagenet_normalise  # noqa: E402
from ldmscale.models.vit_weights import load_dinov2  # noqa: E402


def transformers_model(**changes):
    transformers = peer("transformers")
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 98, "patch_size": 14}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**{**shape, **changes})).eval()
    randomise(model, seed=3)
    return model


@pytest.fixture(scope="module")
def theirs():
    return transformers_model()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    theirs.save_pretrained(folder)
    return folder


def features_of(model, images):
    with torch.no_grad():
        pixels = torch.from_numpy(np.asarray(imagenet_normalise(images)).transpose(0, 3, 1, 2).copy())
        return model(pixels, interpolate_pos_encoding=True).pooler_output


def test_features_are_transformers_where_positions_need_no_resampling(tmp_path):
    model = transformers_model(image_size=224)
    model.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    features, label = dinov2_features(tmp_path, batch=2)
    assert label == "DINOv2 ViT-128-wide/14"
    assert error(features(images), features_of(model, images)) <= TOLERANCE


def test_positions_are_transformers_but_for_the_offset_of_the_published_code(theirs, folder, monkeypatch):
    """facebookresearch's shifts its samples by a tenth of a patch over the grid; without that the two agree."""
    images = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = features_of(theirs, images)

    def ours():
        params, config = load_dinov2(folder)
        return jax.jit(ViT(config).apply)({"params": params}, imagenet_normalise(images))

    shifted = error(ours(), expected)
    monkeypatch.setattr(vit_weights, "OFFSET", 0.0)
    assert error(ours(), expected) <= TOLERANCE < shifted


def test_the_shape_comes_from_the_file(folder):
    _, config = load_dinov2(folder)
    assert (config.width, config.depth, config.heads, config.patch) == (128, 2, 2, 14)
    assert config.image_size == 224 and config.layer_scale


def test_facebooks_file_and_hugging_faces_of_one_network_are_one(folder, tmp_path):
    """Written under facebookresearch's names by the exporter that the importer shares its names with."""
    from safetensors.numpy import save_file

    params, _ = load_dinov2(folder)
    stored = vit_weights.from_hugging_face(vit_weights.read_tensors(folder))
    assert {"cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "blocks.1.attn.qkv.bias",
            "blocks.0.ls2.gamma", "norm.weight"} <= set(stored)  # fmt: skip
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}, tmp_path / "f.safetensors")
    again, _ = load_dinov2(tmp_path / "f.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_images_are_resized_as_torchvision_does():
    transforms = peer("torchvision.transforms")
    from PIL import Image

    resize = transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC)
    images = np.random.default_rng(2).integers(0, 256, (2, 301, 257, 3), np.uint8)
    expected = np.stack([np.asarray(resize(Image.fromarray(image))) for image in images])
    np.testing.assert_array_equal(resized(images, 224), expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks.0.ls1.gamma": None}, "lacks the tensor 'blocks.0.ls1.gamma'"),  # DINO's first version
        ({"register_tokens": np.zeros((1, 4, 128), np.float32)}, "unknown tensor 'register_tokens'"),
        ({"blocks.0.mlp.fc1.weight": None}, "lacks the tensor 'blocks.0.mlp.fc1.weight'"),  # the giant's SwiGLU
        ({"cls_token": None}, "is no DINOv2 vision transformer"),
        ({"cls_token": np.zeros((1, 1, 100), np.float32)}, "is no DINOv2 vision transformer"),
        ({"patch_embed.proj.weight": None}, "is no DINOv2 vision transformer"),
    ],
)
def test_other_networks_are_refused(folder, tmp_path, changes, said):
    from safetensors.numpy import save_file

    stored = {**vit_weights.from_hugging_face(vit_weights.read_tensors(folder)), **changes}
    kept = {name: np.ascontiguousarray(tensor) for name, tensor in stored.items() if tensor is not None}
    save_file(kept, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="vit.safetensors.*" + said):
        load_dinov2(tmp_path / "vit.safetensors")
