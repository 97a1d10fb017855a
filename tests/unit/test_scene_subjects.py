"""The embedded DreamBooth subjects: of the scenes' world, and in none of its scenes."""

import itertools
import re

import numpy as np
import pytest

from ldmscale.data.dreambooth import IDENTIFIER, name_prompt, prompts
from ldmscale.data.scenes import Scene, SceneSource, captions, render
from ldmscale.data.scenes.draw import RGB, background, paint
from ldmscale.data.scenes.grammar import (
    BACKGROUNDS,
    COLOUR_WORDS,
    COLOURS,
    RELATIONS,
    SHAPE_WORDS,
    SHAPES,
    SIZE_WORDS,
    SIZES,
    TEXTURES_OF,
    Thing,
)
from ldmscale.data.scenes.subjects import (
    DESIGNS,
    NEW_BACKGROUNDS,
    REACH,
    VIEW_BACKGROUNDS,
    VIEW_RADII,
    draw_view,
    pose,
    scene_subjects,
)
from ldmscale.data.tokenizer import train_tokenizer
from ldmscale.errors import UserError

PALETTE = np.array(list(RGB.values()), np.float32)
WORDS = {
    "shape": {word for shape in SHAPES for word in SHAPE_WORDS.get(shape, (shape,))},
    "colour": {word for colour in COLOURS for word in COLOUR_WORDS.get(colour, (colour,))},
    "size": {word for words in SIZE_WORDS.values() for word in words},
}


@pytest.fixture(scope="module")
def found():
    return scene_subjects(32)


@pytest.fixture(scope="module")
def training():
    """Training scenes, and every way that this seed words them."""
    source = SceneSource(32, 4_000, 0, 0, 7)
    scenes = [source.scene("train", i) for i in range(4_000)]
    return scenes, [text for i, scene in enumerate(scenes) for text in captions(scene, 3, i)]


def touching(image):
    """Pixels two apart (of an image [S,S,3]) in different colours of the palette, as a share of S."""
    pixels = image.astype(np.float32)
    square = (pixels**2).sum(-1)[..., None] - 2 * pixels @ PALETTE.T + (PALETTE**2).sum(-1)
    nearest = np.where(square.min(axis=-1) < 36**2, square.argmin(axis=-1), -1)
    count = 0
    for one, other in ((nearest[:, :-2], nearest[:, 2:]), (nearest[:-2], nearest[2:])):
        count += ((one != other) & (one >= 0) & (other >= 0)).sum()
    return count / len(image)


# ---------------------------------------------------------------- images


def test_five_views_of_at_least_four_subjects(found):
    assert len(found) >= 4 and len({subject.name for subject in found}) == len(found)
    for subject in found:
        assert subject.images.shape == (5, 32, 32, 3) and subject.images.dtype == np.uint8
        assert subject.class_name in SHAPES and not subject.live
        for one, other in itertools.combinations(subject.images.astype(np.float32), 2):
            assert np.abs(one - other).mean() > 8
    assert len(set(VIEW_BACKGROUNDS)) == len(set(VIEW_RADII)) == 5
    for one, other in itertools.combinations(found, 2):
        assert (np.abs(one.images.astype(np.float32) - other.images).max(axis=-1) > 60).mean() > 0.03


def test_names_choose_subjects(found):
    chosen = scene_subjects(32, ["heart_star", "hat_circle"])
    assert [subject.name for subject in chosen] == ["heart_star", "hat_circle"]
    assert np.array_equal(chosen[1].images, found[0].images)
    with pytest.raises(UserError, match="no scene subject 'dog6'; there are hat_circle, "):
        scene_subjects(32, ["dog6"])


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_a_subject_stays_inside_and_shows_its_three_colours(design):
    named = (design.body.colour, design.second_colour, design.accessory.colour)
    assert len(set(named)) == 3 and design.body.texture != "plain"
    assert design.body.texture == "halved" or design.body.texture in TEXTURES_OF[design.body.shape]
    assert np.hypot(*design.offset) + 1.1 * design.scale <= REACH
    for view in range(5):
        for size in (32, 64):
            image = draw_view(design, view, size).astype(np.float32)
            # Only a soft shadow may reach the border: no pixel there has a colour of the subject's.
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            own = [RGB[colour] for colour in named]
            assert np.linalg.norm(border[:, None] - np.array(own, np.float32), axis=-1).min() > 36
            for colour in named:
                # At 32 pixels thin stripes blend with what lies beside them, but a few pixels of each are left.
                near = np.linalg.norm(image - np.array(RGB[colour], np.float32), axis=-1) < (50 if size == 64 else 80)
                assert near.sum() >= 0.002 * size**2, (view, size, colour)


@pytest.mark.parametrize("name", ["bead_diamond", "badge_square"])
def test_the_accessory_turns_with_the_body(name):
    design = next(design for design in DESIGNS if design.name == name)
    for view in range(5):
        x, y, radius, angle, _ = pose(design, view)
        image = draw_view(design, view, 128).astype(np.float32)
        near = np.linalg.norm(image - np.array(RGB[design.accessory.colour], np.float32), axis=-1) < 30
        rows, columns = np.nonzero(near)
        offset = radius * complex(*design.offset) * np.exp(1j * angle)
        assert abs(complex((columns.mean() + 0.5) / 128 - x, (rows.mean() + 0.5) / 128 - y) - offset) < 1.5 / 128


def test_no_scene_has_two_colours_of_the_palette_side_by_side(training):
    """Each thing of a scene has one ink and a rim; a subject's texture has two inks that touch. So no scene, wherever
    its things lie, equals a view."""
    scenes, _ = training
    # A rim is 3 pixels wide at this size.
    chosen = scenes[:40] + [scene for scene in scenes if scene.relation == "inside"][:50]
    of_scenes = [touching(render(scene, 192)) for scene in chosen]
    of_views = [touching(draw_view(design, view, 192)) for design in DESIGNS for view in (0, 1)]
    assert max(of_scenes) == 0 and min(of_views) > 0.3, (max(of_scenes), min(of_views))


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_no_thing_of_the_grammar_in_the_same_place_looks_like_a_subject(design):
    """Every shape, colour and texture of the grammar, painted where the view has its subject."""
    size, view = 32, 0
    target = draw_view(design, view, size).astype(np.float32)
    x, y, radius, angle, variant = pose(design, view)
    empty = background(VIEW_BACKGROUNDS[view], variant, size)
    covered = np.abs(target - empty).max(axis=-1) > 40
    closest = np.inf
    for shape, colour in itertools.product(SHAPES, COLOURS):
        for texture in TEXTURES_OF[shape]:
            image = empty.copy()
            paint(image, Thing(shape, colour, texture), x, y, radius, angle, False)
            closest = min(closest, np.abs(image - target)[covered].mean())
    assert closest > 25  # of 255, over all pixels of the subject
    # And with the subject's own design the distance is none but the rounding, save for the accessory.
    image = empty.copy()
    paint(image, design.body, x, y, radius, angle, False, design.second_colour)
    assert np.median(np.abs(image - target)[covered]) <= 0.5


def test_a_thing_without_a_second_colour_is_painted_as_in_scenes():
    image, scene = background("white", 0, 48).copy(), Scene((Thing("circle", "red", "striped"),), "white")
    paint(image, scene.things[0], 0.5, 0.5, 0.34, 0.0, False)
    assert np.array_equal((image + np.float32(0.5)).astype(np.uint8), render(scene, 48))


# ---------------------------------------------------------------- words


def count(kind, text):
    return len(re.findall(rf"\b({'|'.join(sorted(WORDS[kind]))})\b", text))


def test_prompts_are_in_the_words_of_the_captions_and_are_none_of_them(found, training):
    _, texts = training
    known = {word for text in texts for word in re.findall(r"\w+", text)}
    assert IDENTIFIER not in known
    for text in texts[::7]:
        # Every caption gives each thing a size, a colour and a shape.
        assert count("size", text) == count("colour", text) == count("shape", text) in (1, 2), text
    for subject in found:
        plain = [*prompts(subject, None), name_prompt(subject, None)]
        assert len(set(plain)) == 26
        for text in plain:
            assert set(re.findall(r"\w+", text)) <= known, text
            assert count("colour", text) < count("shape", text) or count("size", text) < count("shape", text), text
            assert text == text.lower() == " ".join(text.split()) and "a orange" not in text
        for text in prompts(subject):
            assert text.count(f"{IDENTIFIER} {subject.class_name}") == 1
        assert not set(plain) & set(texts)


def test_prompts_place_the_subject_in_new_scenes(found):
    assert set(NEW_BACKGROUNDS) | set(VIEW_BACKGROUNDS) == set(BACKGROUNDS)
    assert not set(NEW_BACKGROUNDS) & set(VIEW_BACKGROUNDS)
    design_of = {design.name: design for design in DESIGNS}
    for subject in found:
        texts, design = prompts(subject), design_of[subject.name]
        assert len(texts) == 25
        own = {design.body.colour, design.second_colour, design.accessory.colour}
        pairs = texts[10:20]
        for words in ("to the left of", "to the right of", "above", "below", "inside"):
            assert sum(f" {words} a large " in text for text in pairs) == 10 / len(RELATIONS)
        for text in pairs:
            _, colour, shape = re.search(r"a (large) (\w+) (\w+)", text).groups()
            assert colour not in own and shape in set(SHAPES) - {design.body.shape, design.accessory.shape}
        assert not any(colour in text for colour in own for text in texts[20:])
        assert SIZES[0] in texts[20]


def test_the_identifier_is_encoded_without_unknowns_and_without_being_cut(found, training, tmp_path):
    _, texts = training
    tokenizer = train_tokenizer(texts[:3_000], 480, tmp_path / "tokenizer.json")  # the embedded study's
    every = [text for subject in found for text in (*prompts(subject), name_prompt(subject))]
    ids = tokenizer.encode(every, 32)
    for text, row in zip(every, ids, strict=True):
        tokens = row[1 : row.argmax()]
        assert tokenizer.pad_id not in tokens and row[31] in (tokenizer.pad_id, tokenizer.end_id)
        # To the last letter: nothing is lost or replaced.
        symbols = "".join(tokenizer.backend.id_to_token(int(token)) for token in tokens).replace("\u0120", " ")
        assert symbols.strip() == text
