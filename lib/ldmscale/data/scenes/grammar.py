"""What a scene is, which scenes belong to which split, and the English that describes them.

A scene's meaning is its canonical text: objects, relation and background without wording or placement. Two captions
say the same if and only if their scenes share that text, and a hash of it alone decides the split; so no tuning or
held-out scene is ever a training scene, in whatever words and for whatever seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black", "pastel", "meadow", "night", "checkerboard", "sunset", "beach", "snow")
RELATIONS = ("left of", "right of", "above", "below", "inside")
HOLDERS = ("circle", "square", "diamond", "heart", "ring")  # shapes with room for another one inside
# Textures that can be told apart on a shape 14 pixels across; narrow shapes show too little of a pattern.
TEXTURES_OF = {
    "circle": TEXTURES,
    "square": TEXTURES,
    "heart": TEXTURES,
    "triangle": ("plain", "striped", "checkered"),
    "diamond": ("plain", "striped", "checkered"),
    "cross": ("plain", "striped", "dotted"),
    "star": ("plain", "striped"),
    "ring": ("plain",),
}

# Eighths of all canonical scenes that a split owns.
SPLIT_BUCKETS = {"heldout": (0,), "tuning": (1,), "train": (2, 3, 4, 5, 6, 7)}

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
}
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
COLOUR_WORDS = {"purple": ("purple", "purple", "violet"), "turquoise": ("turquoise", "turquoise", "teal")}
TEXTURE_BEFORE = {
    "plain": ("", "", "", "plain"),
    "striped": ("striped",),
    "dotted": ("dotted", "polka dot"),
    "checkered": ("checkered",),
}
TEXTURE_AFTER = {
    "striped": "with stripes",
    "dotted": "with dots",
    "checkered": "with checks",
}
# Beyond the plain ones, without the names of colours and shapes, which belong to the objects.
BACKGROUND_WORDS = {
    "white": ("on a white background", "against plain white"),
    "grey": ("on a grey background", "against plain grey"),
    "black": ("on a black background", "against plain black"),
    "pastel": ("on a pastel gradient", "on a soft pastel background"),
    "meadow": ("in a grassy meadow under the sky", "on a sunny meadow"),
    "night": ("at night under the moon", "in front of a dark night sky"),
    "checkerboard": ("on a grey checkerboard", "on a checkerboard background"),
    "sunset": ("at sunset", "in front of a sunset sky"),
    "beach": ("on a sandy beach by the sea", "at the beach"),
    "snow": ("in the snow", "on a snowy hill"),
}
# For "A relation B": ways to say it, and ways to say it from B's side.
RELATION_WORDS = {
    "left of": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over"), ("below", "beneath")),
    "inside": (("inside", "within"), ("containing", "surrounding")),
}
MIRRORED = {"right of": "left of", "below": "above"}
SINGLE_TEMPLATES = ("{thing} {place}", "{place}, {thing}", "there is {thing} {place}", "a picture of {thing} {place}")
PAIR_TEMPLATES = (
    "{a} {relation} {b} {place}",
    "{place}, {a} {relation} {b}",
    "there is {a} {relation} {b} {place}",
    "a picture of {a} {relation} {b} {place}",
)


@dataclass(frozen=True)
class Thing:
    """One object: names of its shape, colour, texture and size."""

    shape: str
    colour: str
    texture: str = "plain"
    size: str = "large"


@dataclass(frozen=True)
class Scene:
    """One object, or two in the relation "first RELATION second", before a background.

    jitter: placement, six numbers in [-1,1] (x, y and angle of each object; 0 is the neutral pose); variant: which
    drawing of the background. Neither changes what the scene means.
    """

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None
    jitter: tuple[float, ...] = (0.0,) * 6
    variant: int = 0

    def __post_init__(self) -> None:
        if len(self.things) != (1 if self.relation is None else 2):
            raise ValueError("a scene is one object without a relation, or two objects with one")


def canonical(scene: Scene) -> str:
    """The scene's meaning as text: equal exactly for scenes that the same sentence describes."""
    things = [f"{thing.size} {thing.texture} {thing.colour} {thing.shape}" for thing in scene.things]
    relation = scene.relation
    if relation in MIRRORED:
        relation, things = MIRRORED[relation], things[::-1]
    return f" {relation} ".join(things) + " | " + scene.background


def split_of(scene: Scene) -> str:
    """The one split that the scene may appear in; independent of any seed."""
    bucket = hashlib.blake2b(canonical(scene).encode(), digest_size=1).digest()[0] % 8
    return next(split for split, buckets in SPLIT_BUCKETS.items() if bucket in buckets)


class Dice:
    """Choices from a Philox counter: word ``i`` of stream (seed, *place) depends on these numbers alone.

    Raw 64-bit words, not ``Generator`` methods: NumPy promises the former never to change between releases.
    """

    def __init__(self, seed: int, place: tuple[int, int] = (0, 0)):
        self._bits = np.random.Philox(key=seed, counter=[0, 0, place[0], place[1]])
        self._words: Iterator[int] = iter(())

    def word(self) -> int:
        """The next 64 bits."""
        for word in self._words:
            return word
        self._words = iter(self._bits.random_raw(32).tolist())
        return next(self._words)

    def pick(self, options):
        """One element, all equally likely (to 2**-58)."""
        return options[self.word() % len(options)]

    def symmetric(self) -> float:
        """Uniform in [-1, 1)."""
        return self.word() / 2**63 - 1.0


def draw_scene(dice: Dice) -> Scene:
    """A scene of the training distribution: a third of them singles; a pair's colours or shapes differ."""
    background = dice.pick(BACKGROUNDS)
    relation = None if dice.word() % 16 < 5 else dice.pick(RELATIONS)
    if relation is None:
        things = (_draw_thing(dice, SHAPES, SIZES, COLOURS),)
    elif relation == "inside":
        # Plain outside, so that the small object stays easy to see.
        holder = Thing(dice.pick(HOLDERS), dice.pick(COLOURS), "plain", "large")
        others = [colour for colour in COLOURS if colour != holder.colour]
        fitting = [shape for shape in SHAPES if (shape, holder.shape) != ("ring", "ring")]
        things = (_draw_thing(dice, fitting, ("small",), others), holder)
    else:
        first = _draw_thing(dice, SHAPES, SIZES, COLOURS)
        second = _draw_thing(dice, SHAPES, SIZES, COLOURS)
        while (second.shape, second.colour) == (first.shape, first.colour):
            second = _draw_thing(dice, SHAPES, SIZES, COLOURS)
        things = (first, second)
    return Scene(things, background, relation, tuple(dice.symmetric() for _ in range(6)), dice.word() % 8)


def _draw_thing(dice: Dice, shapes, sizes, colours) -> Thing:
    shape, colour, size = dice.pick(shapes), dice.pick(colours), dice.pick(sizes)
    # A texture on a small object is a few pixels that nobody can name at 32x32; those stay plain.
    return Thing(shape, colour, dice.pick(TEXTURES_OF[shape]) if size == "large" else "plain", size)


def captions(scene: Scene, count: int = 2, seed: int = 0) -> tuple[str, ...]:
    """``count`` different sentences for the scene, lower case, chosen by ``seed``.

    Subjects beyond this module's vocabulary keep their own words: an unknown name is used as it stands.
    """
    dice = Dice(seed)
    found: list[str] = []
    while len(found) < count:
        text = _sentence(scene, dice)
        if text not in found:
            found.append(text)
    return tuple(found)


def _sentence(scene: Scene, dice: Dice) -> str:
    place = dice.pick(BACKGROUND_WORDS[scene.background])
    phrases = [_phrase(thing, dice) for thing in scene.things]
    if scene.relation is None:
        return dice.pick(SINGLE_TEMPLATES).format(thing=phrases[0], place=place)
    relation = scene.relation
    if relation in MIRRORED:
        relation, phrases = MIRRORED[relation], phrases[::-1]
    forward, backward = RELATION_WORDS[relation]
    if dice.word() % 2:
        words = dice.pick(forward)
    else:
        words, phrases = dice.pick(backward), phrases[::-1]
    return dice.pick(PAIR_TEMPLATES).format(a=phrases[0], b=phrases[1], relation=words, place=place)


def _phrase(thing: Thing, dice: Dice) -> str:
    size = dice.pick(SIZE_WORDS[thing.size])
    colour = dice.pick(COLOUR_WORDS.get(thing.colour, (thing.colour,)))
    shape = dice.pick(SHAPE_WORDS.get(thing.shape, (thing.shape,)))
    before = dice.pick(TEXTURE_BEFORE[thing.texture])
    order = dice.word() % 3
    if order == 0 and thing.texture in TEXTURE_AFTER:
        return f"a {size} {colour} {shape} {TEXTURE_AFTER[thing.texture]}"
    words = (size, before, colour, shape) if order == 1 else (size, colour, before, shape)
    return "a " + " ".join(word for word in words if word)
