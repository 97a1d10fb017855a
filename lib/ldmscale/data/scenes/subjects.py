"""DreamBooth subjects of the scenes' world: things that the generator can draw and never drew in training.

A thing of the grammar has one colour, with a texture in the same colour made pale, and a rim of its own. A subject has
a texture in a second colour of the palette, and a small object of a third on its edge or, where the grammar puts
nothing, in its middle. Its class is a shape of the grammar, so the words around it are known and the thing is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldmscale.data.dreambooth import Subject
from ldmscale.data.scenes.draw import DARK_BACKGROUNDS, MARGIN, background, paint
from ldmscale.data.scenes.grammar import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    COLOURS,
    HOLDERS,
    RELATION_WORDS,
    RELATIONS,
    SHAPES,
    Dice,
    Thing,
)
from ldmscale.errors import UserError

VIEW_BACKGROUNDS = ("white", "grey", "pastel", "checkerboard", "meadow")
VIEW_RADII = (0.27, 0.20, 0.24, 0.22, 0.26)
NEW_BACKGROUNDS = tuple(name for name in BACKGROUNDS if name not in VIEW_BACKGROUNDS)
REACH = 1.44  # from the body's centre to the accessory's far edge, in the body's radii, at most
TURN = 0.14  # radians


@dataclass(frozen=True)
class Design:
    """What a subject looks like. offset, scale: the accessory's centre and size in the body's radii, y down."""

    name: str
    body: Thing
    second_colour: str
    accessory: Thing
    offset: tuple[float, float]
    scale: float


DESIGNS = (
    Design("hat_circle", Thing("circle", "red", "halved"), "blue", Thing("triangle", "yellow"), (0.0, -0.92), 0.46),
    Design("star_heart", Thing("heart", "yellow", "dotted"), "purple", Thing("star", "turquoise"), (0.62, -0.52), 0.50),
    Design(
        "badge_square", Thing("square", "green", "checkered"), "pink", Thing("circle", "orange"), (-0.7, -0.7), 0.40
    ),
    Design("heart_star", Thing("star", "orange", "striped"), "blue", Thing("heart", "red"), (0.0, 0.04), 0.36),
    Design(
        "bead_diamond", Thing("diamond", "purple", "halved"), "turquoise", Thing("circle", "red"), (0.0, 0.92), 0.40
    ),
    Design("kite_triangle", Thing("triangle", "pink", "striped"), "green", Thing("cross", "blue"), (0.0, -0.80), 0.42),
)


def scene_subjects(size: int, names: Sequence[str] | None = None) -> list[Subject]:
    """The subjects, as :func:`ldmscale.data.dreambooth.subjects` gives them: five views and 25 prompts each.

    Raises UserError for a name that is none of theirs.
    """
    designs = {design.name: design for design in DESIGNS}
    for name in names or ():
        if name not in designs:
            raise UserError(f"there is no scene subject {name!r}; there are {', '.join(designs)}")
    return [
        Subject(
            name,
            designs[name].body.shape,
            False,
            np.stack([draw_view(designs[name], view, size) for view in range(len(VIEW_BACKGROUNDS))]),
            _templates(designs[name]),
        )
        for name in (designs if names is None else names)
    ]


def draw_view(design: Design, view: int, size: int) -> np.ndarray:
    """View 0 to 4 of a subject, uint8 [size,size,3]; they differ in place, size, angle and background."""
    place, (x, y, radius, angle, variant) = VIEW_BACKGROUNDS[view], pose(design, view)
    image = background(place, variant, size).copy()
    dark = place in DARK_BACKGROUNDS
    paint(image, design.body, x, y, radius, angle, dark, design.second_colour)
    dx, dy = design.offset
    turned = (np.cos(angle) * dx - np.sin(angle) * dy, np.sin(angle) * dx + np.cos(angle) * dy)
    x, y = x + radius * turned[0], y + radius * turned[1]
    paint(image, design.accessory, x, y, radius * design.scale, angle, dark)
    return (image + np.float32(0.5)).astype(np.uint8)


def pose(design: Design, view: int) -> tuple[float, float, float, float, int]:
    """Centre x, y and radius of the body (shares of the side), angle (radians) and drawing of the background."""
    dice = Dice(DESIGNS.index(design), (view, 0))
    radius = VIEW_RADII[view]
    room = 0.5 - MARGIN - REACH * radius
    x, y, angle = 0.5 + room * dice.symmetric(), 0.5 + room * dice.symmetric(), TURN * dice.symmetric()
    return x, y, radius, angle, dice.word() % 8


def _templates(design: Design) -> tuple[str, ...]:
    """On backgrounds that no view has (10), beside or inside another object (10), with changed properties (5)."""
    own = (design.body.shape, design.accessory.shape)
    colours = [c for c in COLOURS if c not in (design.body.colour, design.second_colour, design.accessory.colour)]
    places = [words for name in NEW_BACKGROUNDS for words in BACKGROUND_WORDS[name]]
    found = [f"a {{0}} {{1}} {place}" for place in places]
    for number, place in enumerate(places):
        relation = RELATIONS[number % len(RELATIONS)]
        shapes = [shape for shape in (HOLDERS if relation == "inside" else SHAPES) if shape not in own]
        other = f"a large {colours[number % len(colours)]} {shapes[number % len(shapes)]}"
        found.append(f"a {{0}} {{1}} {_RELATION_WORDS[relation]} {other} {place}")
    changed = [colour for colour in colours if colour != "orange"][:3]  # not "a orange"
    return (*found, *(f"a {word} {{0}} {{1}}" for word in ("small", "plain", *changed)))


_RELATION_WORDS = {
    "left of": RELATION_WORDS["left of"][0][0],
    "right of": RELATION_WORDS["left of"][1][0],
    "above": RELATION_WORDS["above"][0][0],
    "below": RELATION_WORDS["above"][1][0],
    "inside": RELATION_WORDS["inside"][0][0],
}
