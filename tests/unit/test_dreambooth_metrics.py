"""DreamBooth's metrics on made features: known answers, invariances, bootstrap over prompts, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.metrics.bootstrap import interval, mean_replicates, paired_difference
from ldmscale.metrics.clip_score import clip_scores
from ldmscale.metrics.dreambooth import (
    cosine_distance,
    diversity,
    per_prompt,
    real_similarity,
    subject_similarity,
)


def angles(*degrees):
    """Features [N,2] at these angles, of different lengths."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], -1) * (1 + np.arange(len(degrees)))[:, None]


def random(n, d=16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


# ---------------------------------------------------------------- similarity to the subject


def test_similarity_of_known_angles():
    found = subject_similarity(angles(0, 90, 180, 45), angles(0, 90), "DINO")
    np.testing.assert_allclose(found, [0.5, 0.5, -0.5, np.sqrt(0.5)], atol=1e-12)
    np.testing.assert_allclose(real_similarity(angles(0, 60, 120), "DINO"), [0, 0.5, 0], atol=1e-12)


def test_similarity_is_the_mean_of_all_pairs_of_cosines():
    images, real = random(7), random(5, seed=1)
    pairs = np.array([[cosine(a, b) for b in real] for a in images])
    found = subject_similarity(images, real, "DINO")
    np.testing.assert_allclose(found, pairs.mean(1), rtol=1e-12)
    # From the other side the values differ, and their mean does not.
    other = subject_similarity(real, images, "DINO")
    np.testing.assert_allclose(other, pairs.mean(0), rtol=1e-12)
    assert found.mean() == pytest.approx(other.mean(), rel=1e-12)
    others = np.array([np.mean([cosine(a, b) for j, b in enumerate(real) if j != i]) for i, a in enumerate(real)])
    np.testing.assert_allclose(real_similarity(real, "DINO"), others, rtol=1e-12)


def test_similarity_depends_on_directions_alone():
    images, real = random(6), random(4, seed=1)
    found = subject_similarity(images, real, "DINO")
    rotation = np.linalg.qr(random(16, 16, 2))[0]
    scaled = images * np.geomspace(1e-3, 1e3, 6)[:, None]
    for same in (
        subject_similarity(scaled, real * 7, "DINO"),
        subject_similarity(images @ rotation, real @ rotation, "DINO"),
        subject_similarity(images, real[::-1], "DINO"),
        subject_similarity(images[::-1], real, "DINO")[::-1],
    ):
        np.testing.assert_allclose(same, found, atol=1e-12)
    np.testing.assert_allclose(subject_similarity(-images, real, "DINO"), -found, atol=1e-12)
    single = subject_similarity(images.astype(np.float32), real.astype(np.float32), "DINO")
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, found, atol=1e-6)


def test_copies_of_the_subject_score_above_its_kind_and_that_above_others():
    """The order that DINO must give, and, of images of the class alone, the one that PRES calls a collapse."""
    subject = random(1, 64)
    real, copies = (subject + 0.3 * random(n, 64, seed) for n, seed in ((5, 1), (12, 2)))
    kind, others = 0.5 * subject + random(12, 64, 3), random(12, 64, 4)
    scores = [subject_similarity(images, real, "DINO").mean() for images in (copies, kind, others)]
    assert real_similarity(real, "DINO").mean() > 0.85 and scores[0] > 0.85 > scores[1] > 0.25 > abs(scores[2])
    # A similarity to itself would lift the ceiling; it is left out.
    assert real_similarity(real, "DINO").mean() < subject_similarity(real, real, "DINO").mean()


@pytest.mark.parametrize("order", [1, -1])
def test_features_without_a_direction_are_named(order):
    sound, spoilt = random(6), random(6, seed=1)
    spoilt[4] = 0
    for value, words in ((0.0, "zero"), (np.nan, "not finite"), (np.inf, "not finite")):
        spoilt[4, :] = value
        images, real = (sound, spoilt)[::order]
        name = "DINO features of real image 4" if order == 1 else "DINO features of image 4"
        with pytest.raises(UserError, match=f"^the {name} are {words}; they have no direction"):
            subject_similarity(images, real, "DINO")
    with pytest.raises(UserError, match="^the CLIP features of real image 4"):
        real_similarity(spoilt, "CLIP")


def test_features_of_other_shapes_are_refused():
    for images, real, words in (
        (random(3, 4), random(3, 5), "have 4 DINO features and the real images 5"),
        (random(0, 4), random(3, 4), "features of images have shape [0, 4]"),
        (random(3, 4), random(0, 4), "features of real images have shape [0, 4]"),
        (random(3, 4)[0], random(3, 4), "features of images have shape [4]"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            subject_similarity(images, real, "DINO")
    with pytest.raises(UserError, match="at least 2"):
        real_similarity(random(1, 4), "DINO")


# ---------------------------------------------------------------- diversity


def squared(one, other):
    return ((one.astype(np.float64) - other) ** 2).reshape(len(one), -1).mean(1)


def test_diversity_of_known_images():
    images = np.zeros((3, 4, 2, 2, 3), np.uint8)
    images[1] += np.array([0, 1, 2, 3], np.uint8)[:, None, None, None]
    images[2, 0] = 6
    # Squared differences of 0,1,2,3: 1,4,9,1,4,1; one image of four that is 6 away from the others: three times 36.
    np.testing.assert_allclose(diversity(images, squared), [0, 20 / 6, 18])
    np.testing.assert_allclose(diversity(images[:, ::-1], squared), [0, 20 / 6, 18])
    np.testing.assert_allclose(diversity(images[::-1, [2, 0, 3, 1]], squared), [18, 20 / 6, 0])


@pytest.mark.parametrize("batch", [1, 4, 5, 64])
def test_diversity_is_the_mean_of_all_pairs_within_a_prompt(batch):
    items = np.random.default_rng(0).normal(size=(6, 4, 5))
    sizes = []

    def distance(one, other):
        sizes.append(len(one))
        return squared(one, other)

    pairs = [[squared(a[None], b[None])[0] for i, a in enumerate(p) for b in p[i + 1 :]] for p in items]
    np.testing.assert_allclose(diversity(items, distance, batch), np.mean(pairs, axis=1), rtol=1e-12)
    assert set(sizes) == {batch}  # one shape, so that a compiled distance is compiled once
    # Where one prompt's images lie tells nothing of another's.
    moved = items.copy()
    moved[2] *= 3
    assert np.flatnonzero(diversity(moved, distance) != diversity(items, distance)).tolist() == [2]


def test_diversity_takes_a_compiled_distance_and_features():
    features = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    compiled = jax.jit(lambda a, b: jnp.abs(a - b).mean(-1))
    assert diversity(features, compiled).dtype == np.float64
    found = diversity(features, cosine_distance)
    units = features / np.linalg.norm(features, axis=-1, keepdims=True)
    gram = np.einsum("pid,pjd->pij", units, units)
    np.testing.assert_allclose(found, 1 - (gram.sum((1, 2)) - 4) / 12, rtol=1e-5)
    # Equal images: rounding must not make a distance of less than nothing a fault.
    np.testing.assert_allclose(diversity(np.repeat(features[:, :1], 4, 1), cosine_distance), 0, atol=1e-12)


def test_what_has_no_diversity_is_refused():
    for shape in ((3, 1, 2, 2, 3), (0, 4, 2, 2, 3), (4, 5)):
        with pytest.raises(UserError, match=re.escape(f"shape {list(shape)}; diversity needs [P,K,...]")):
            diversity(np.zeros(shape), squared)
    items = np.random.default_rng(0).normal(size=(3, 4, 5))
    items[1, 2] = np.nan
    with pytest.raises(UserError, match="distance of images 0 and 2 of prompt 1 is nan; a distance must be finite"):
        diversity(items, squared)
    with pytest.raises(UserError, match="is -1.0; a distance must be"):
        diversity(items, lambda a, b: -np.ones(len(a)))
    with pytest.raises(UserError, match="features of image 2 are zero"):
        cosine_distance(random(4), random(4) * np.array([1, 1, 0, 1])[:, None])
    with pytest.raises(UserError, match="must be equal"):
        cosine_distance(random(4), random(3))


# ---------------------------------------------------------------- prompts


def test_values_per_prompt_and_their_mean():
    values = np.arange(12.0)
    np.testing.assert_array_equal(per_prompt(values, 4), [1.5, 5.5, 9.5])
    np.testing.assert_array_equal(per_prompt(values, 1), values)
    assert per_prompt(values, 3).mean() == values.mean()
    for bad, count in ((values, 5), (values, 0), (values[:0], 4), (values.reshape(3, 4), 4)):
        with pytest.raises(UserError, match="must be"):
            per_prompt(bad, count)


def test_a_paired_bootstrap_over_prompts_sees_what_prompts_share():
    """Two networks that differ by little, on prompts that differ by much: the pairing finds the difference."""
    real, hard = random(5, 32), np.linspace(0.2, 6, 25).repeat(4)[:, None]
    noise = hard * random(100, 32, 1)
    weaker = real.mean(0) + noise
    stronger = 1.25 * real.mean(0) + noise
    a, b = (per_prompt(subject_similarity(images, real, "DINO"), 4) for images in (stronger, weaker))
    reps = [mean_replicates(values, 400, 0) for values in (a, b)]
    assert all(np.isfinite(r).all() for r in reps)
    difference, low, high = paired_difference(a.mean(), reps[0], b.mean(), reps[1])
    assert 0 < low < difference < high
    wide = np.diff(interval(a.mean(), reps[0]))[0]
    assert high - low < 0.5 * wide and difference < wide


def test_prompt_fidelity_is_the_clip_score_of_the_prompt_without_the_identifier():
    """Four images a prompt against that prompt's embedding: the repetition is by prompt, as the images are."""
    text, rows = angles(0, 90), angles(0, 0, 90, 180, 90, 90, 0, 45)
    found = per_prompt(clip_scores(rows, text.repeat(4, axis=0)), 4)
    np.testing.assert_allclose(found, [(1 + 1 + 0 - 1) / 4, (1 + 1 + 0 + np.sqrt(0.5)) / 4], atol=1e-12)
