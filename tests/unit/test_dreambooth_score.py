"""The row of DreamBooth's metrics: on a made network with known answers, and DINO as its authors feed it."""

import json
import re

import jax
import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.metrics import dreambooth_score
from ldmscale.metrics.clip_score import clip_scores
from ldmscale.metrics.dreambooth import cosine_distance, diversity, real_similarity, subject_similarity
from ldmscale.metrics.dreambooth_score import SubjectNetworks, dino_features, dino_pixels, dreambooth_row
from ldmscale.metrics.torch_guard import guard_torchvision
from ldmscale.models.vit import ViT, ViTConfig, imagenet_normalise
from ldmscale.models.vit_weights import load_vit, published_name
from ldmscale.models.weights import from_tree

RNG = np.random.default_rng(0)
POOLED, EMBEDDED, OTHER = (RNG.normal(size=(192, d)) for d in (12, 8, 10))
P, K, M, R = 3, 4, 6, 5


def through(images, matrix):
    return (images.astype(np.float64) / 127.5 - 1).reshape(len(images), -1) @ matrix


def features(images):
    embeddings = through(images, EMBEDDED)
    return through(images, POOLED), embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def random_images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)


IMAGES, CLASS = random_images(P * K, 1), random_images(M, 2)
REAL = (random_images(1, 3) // 4 * 3 + random_images(R, 4) // 4).astype(np.uint8)  # views of one thing
PROMPTS = np.random.default_rng(4).normal(size=(P, 8))
NETWORKS = SubjectNetworks(features, "made features", "made CLIP")


def row(networks=NETWORKS, images=IMAGES, class_images=CLASS, real=REAL, prompts=PROMPTS):
    return dreambooth_row("dog6", images, class_images, real, prompts, networks)


def test_the_row_by_its_parts():
    found = row()
    (pooled, clip), (pooled_class, _), (pooled_real, clip_real) = map(features, (IMAGES, CLASS, REAL))
    wanted = {
        "dino": subject_similarity(pooled, pooled_real, "").reshape(P, K).mean(1),
        "clip_i": subject_similarity(clip, clip_real, "").reshape(P, K).mean(1),
        "clip_t": clip_scores(clip, PROMPTS.repeat(K, axis=0)).reshape(P, K).mean(1),
        "div": diversity(pooled.reshape(P, K, 12), cosine_distance),
        "pres": subject_similarity(pooled_class, pooled_real, ""),
        "real_dino": real_similarity(pooled_real, "").mean(),
        "real_clip_i": real_similarity(clip_real, "").mean(),
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found.pop(name), values, rtol=1e-9, err_msg=name)
    assert found == {
        "split": "dreambooth", "n": P * K, "subject": "dog6", "subject_features": "made features",
        "clip_features": "made CLIP", "diversity_features": "made features, 1 - cosine",
    }  # fmt: skip
    assert json.loads(json.dumps(row())) == row()


def test_dino_and_lpips_take_the_places_of_their_stand_ins():
    plain = row()
    squared = lambda a, b: ((a.astype(float) - b) ** 2).mean((1, 2, 3)) / 1e4  # noqa: E731
    found = row(SubjectNetworks(features, "made features", "made CLIP", lambda x: through(x, OTHER), squared))
    assert (found["subject_features"], found["diversity_features"]) == ("DINO ViT-S/16", "LPIPS AlexNet")
    real = through(REAL, OTHER)
    np.testing.assert_allclose(found["pres"], subject_similarity(through(CLASS, OTHER), real, ""), rtol=1e-9)
    np.testing.assert_allclose(np.mean(found["dino"]), subject_similarity(through(IMAGES, OTHER), real, "").mean())
    assert found["real_dino"] == pytest.approx(real_similarity(real, "").mean())
    np.testing.assert_allclose(found["div"], diversity(IMAGES.reshape(P, K, 8, 8, 3), squared), rtol=1e-9)
    for name in ("clip_i", "clip_t", "real_clip_i", "clip_features", "n"):
        assert found[name] == plain[name]
    for name in ("dino", "pres", "div"):
        assert not np.allclose(found[name], plain[name])


def test_copies_of_the_subject_are_faithful_and_all_alike():
    found = row(images=np.repeat(REAL[:1], P * K, axis=0), class_images=REAL)
    np.testing.assert_allclose(found["div"], 0, atol=1e-12)
    assert np.mean(found["dino"]) > np.mean(row()["dino"]) and np.mean(found["clip_i"]) > np.mean(row()["clip_i"])
    # A class that has become the subject, which is what PRES is there to tell.
    assert np.mean(found["pres"]) > found["real_dino"] > np.mean(row()["pres"])


def test_the_prompts_images_are_in_succession():
    order = np.arange(P * K).reshape(P, K)[[2, 0, 1]].ravel()
    found, moved = row(), row(images=IMAGES[order], prompts=PROMPTS[[2, 0, 1]])
    for name in ("dino", "clip_i", "clip_t", "div"):
        np.testing.assert_allclose(moved[name], np.array(found[name])[[2, 0, 1]], rtol=1e-9)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": IMAGES[:-1]}, "subject dog6 has 11 images of 3 prompts; it must have as many of each"),
        ({"images": IMAGES[:0]}, "has 0 images of 3 prompts"),
        ({"prompts": PROMPTS[:0]}, "has 12 images of 0 prompts"),
        ({"images": IMAGES[:3]}, "diversity needs [P,K,...] with at least 2 a prompt"),
        ({"real": REAL[:1]}, "a subject needs at least 2"),
        ({"class_images": CLASS[:0]}, "features of images have shape [0, 12]"),
    ],
)
def test_what_cannot_be_scored_is_refused(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        row(**changes)


# ---------------------------------------------------------------- DINO


@pytest.mark.parametrize("size", [32, 300])
def test_dino_sees_what_its_authors_show_it(size):
    """facebookresearch/dino, eval_knn.py: Resize(256, interpolation=3), CenterCrop(224), ToTensor, Normalize."""
    guard_torchvision()
    from PIL import Image
    from torchvision import transforms

    theirs = transforms.Compose([
        transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    pixels = dino_pixels(images)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 224, 224, 3)
    wanted = np.stack([theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0) for image in images])
    np.testing.assert_allclose(imagenet_normalise(pixels), wanted, atol=1e-5)
    with pytest.raises(UserError, match="32 pixels high and 40 wide; DINO needs square"):
        dino_pixels(np.zeros((1, 32, 40, 3), np.uint8))


def test_dino_from_a_file(monkeypatch, tmp_path):
    """Shallow and narrow here, to be quick; tests/parity compares the network itself."""
    import torch

    config = ViTConfig(image_size=224, patch=32, width=16, depth=1, heads=2)
    monkeypatch.setattr(dreambooth_score, "DINO_S16", config)
    image = np.zeros((1, 224, 224, 3), np.float32)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    tree = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    stored = from_tree(tree, published_name)
    kernel = tree["patch_embed"]["proj"]["kernel"].reshape(32, 32, 3, 16).transpose(3, 2, 0, 1)
    stored[published_name("patch_embed.proj.kernel")] = kernel
    torch.save({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in stored.items()}, tmp_path / "dino.pth")
    extract = dino_features(tmp_path / "dino.pth", batch=4)
    images = random_images(6, 7)
    found = extract(images)
    params = load_vit(tmp_path / "dino.pth", config)
    wanted = ViT(config).apply({"params": params}, imagenet_normalise(dino_pixels(images)))
    assert found.shape == (6, 16) and found.std() > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        dino_features(tmp_path / "nowhere.pth")
