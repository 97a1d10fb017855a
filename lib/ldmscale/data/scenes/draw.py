"""Draws scenes: signed distances to each outline, shaded, supersampled, laid over a ready-made background.

Lengths are fractions of the image's side, so a scene looks the same at any size. Distances are in units of the
object's radius, y points down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ldmscale.data.scenes.grammar import MIRRORED, Dice, Scene, Thing

SUPERSAMPLE = 2  # on top of analytic coverage of each subpixel, which is as smooth as 4x or more with hard edges
RADIUS = {"alone": {"large": 0.34, "small": 0.165}, "pair": {"large": 0.22, "small": 0.135}}
HOLDER_RADIUS, HELD_RADIUS = 0.40, 0.15
MARGIN = 0.035  # kept free along the border
DARK_BACKGROUNDS = ("black", "night")
RGB = {
    "red": (222, 40, 42),
    "orange": (250, 132, 22),
    "yellow": (252, 212, 38),
    "green": (38, 158, 62),
    "turquoise": (32, 190, 190),
    "blue": (38, 84, 222),
    "purple": (142, 56, 200),
    "pink": (250, 128, 186),
}


def _circle(x, y):
    return np.hypot(x, y) - np.float32(0.97)


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def _square(x, y):
    return _box(x, y, 0.84, 0.84)


def _triangle(x, y):
    y, inner = y - np.float32(0.26), np.float32(0.535)
    return np.maximum(y, np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * y) - inner


def _star(x, y):
    # Inigo Quilez's five-pointed star (MIT): fold into one tenth of the plane, then the distance to one edge.
    c, s = np.float32(0.809017), np.float32(0.587785)
    x, y = np.abs(x), -y + np.float32(0.05)
    fold = 2 * np.maximum(c * x - s * y, 0)
    x, y = x - fold * c, y + fold * s
    fold = 2 * np.maximum(-c * x - s * y, 0)
    x, y = np.abs(x + fold * c), y + fold * s
    y = y - np.float32(1.07)
    edge_x, edge_y = np.float32(0.5 * 0.587785), np.float32(0.5 * 0.809017 - 1)
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0, 1.07)
    return np.hypot(x - edge_x * along, y - edge_y * along) * np.sign(y * edge_x - x * edge_y)


def _ring(x, y):
    return np.abs(np.hypot(x, y) - np.float32(0.74)) - np.float32(0.26)


def _cross(x, y):
    return np.minimum(_box(x, y, 0.98, 0.36), _box(x, y, 0.36, 0.98))


def _heart(x, y):
    # Inigo Quilez's heart (MIT), tip at the origin, scaled to the unit circle.
    scale = np.float32(1.62)
    x, y = np.abs(x) / scale, (np.float32(0.9) - y) / scale
    lobe = np.hypot(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(0.35355339)
    reach = np.float32(0.5) * np.maximum(x + y, 0)
    flank = np.minimum(np.hypot(x, y - 1), np.hypot(x - reach, y - reach)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, flank) * scale


def _diamond(x, y):
    return (np.abs(x) * np.float32(1 / 0.74) + np.abs(y) * np.float32(1 / 1.02) - 1) * np.float32(0.6)


# Shape name -> signed distance [h,w] of (x, y) [h,w], negative inside, all within |x|, |y| <= 1.1.
SHAPE_DISTANCES: dict[str, Callable] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "diamond": _diamond,
}
EXTENT = 1.1
# Where, in radii below its centre, a holder has most room.
ROOM_OFFSET = {"heart": -0.16}


def render(scene: Scene, size: int) -> np.ndarray:
    """The scene as uint8 [size,size,3]; depends on nothing but its arguments."""
    image = background(scene.background, scene.variant, size).copy()
    dark = scene.background in DARK_BACKGROUNDS
    for thing, (x, y, radius, angle) in zip(*_placed(scene), strict=True):
        paint(image, thing, x, y, radius, angle, dark)
    return (image + np.float32(0.5)).astype(np.uint8)


def _placed(scene: Scene) -> tuple[tuple[Thing, ...], list[tuple[float, float, float, float]]]:
    """Objects in the order to paint them, and each one's centre, radius and angle (radians)."""
    j = scene.jitter
    turn = 0.14
    if scene.relation is None:
        radius = RADIUS["alone"][scene.things[0].size]
        room = min(0.5 - MARGIN - radius, 0.2)
        return scene.things, [(0.5 + room * j[0], 0.5 + room * j[1], radius, turn * j[2])]
    if scene.relation == "inside":
        held, holder = scene.things
        x, y = 0.5 + 0.05 * j[3], 0.5 + 0.05 * j[4]
        within = (x + 0.02 * j[0], y + ROOM_OFFSET.get(holder.shape, 0.0) * HOLDER_RADIUS + 0.02 * j[1])
        return (holder, held), [(x, y, HOLDER_RADIUS, 0.5 * turn * j[5]), (*within, HELD_RADIUS, turn * j[2])]
    things = scene.things[::-1] if scene.relation in MIRRORED else scene.things
    poses = []
    for side, thing in enumerate(things):
        radius = RADIUS["pair"][thing.size]
        low, high = MARGIN + radius, 0.5 - 0.02 - radius
        along = (low + high) / 2 + max(high - low, 0.0) / 2 * j[3 * side]
        across = 0.5 + 0.13 * j[1] + 0.04 * j[4] * (1 if side else -1)
        along = along + 0.5 if side else along
        x, y = (along, across) if scene.relation in ("left of", "right of") else (across, along)
        poses.append((x, y, radius, turn * j[3 * side + 2]))
    return things, poses


def paint(
    image: np.ndarray,
    thing: Thing,
    x: float,
    y: float,
    radius: float,
    angle: float,
    dark: bool,
    second_colour: str | None = None,
) -> None:
    """Lays one object over ``image``, float32 [S,S,3] in 0..255, in place; a rim sets it off, paler on the dark.

    second_colour: the ink of the texture, which is the object's own colour made pale in every scene.
    """
    size = image.shape[0]
    reach = radius * EXTENT + 0.05
    left, top = max(int((x - reach) * size), 0), max(int((y - reach) * size), 0)
    right, bottom = min(int((x + reach) * size) + 1, size), min(int((y + reach) * size) + 1, size)
    fine = size * SUPERSAMPLE
    across = (np.arange(left * SUPERSAMPLE, right * SUPERSAMPLE, dtype=np.float32) + 0.5) / fine - x
    down = (np.arange(top * SUPERSAMPLE, bottom * SUPERSAMPLE, dtype=np.float32) + 0.5) / fine - y
    across, down = np.float32(across / radius)[None, :], np.float32(down / radius)[:, None]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * across + s * down, c * down - s * across
    distance = SHAPE_DISTANCES[thing.shape](u, v)

    half = np.float32(0.5)
    pixels = np.float32(radius * fine)  # fine pixels per radius
    cover = np.clip(half - distance * pixels, 0, 1)
    # What the rim leaves; it is thin on small objects, whose colour it would drown.
    body = np.clip(half - (distance + np.float32(min(0.026 / radius, 0.1))) * pixels, 0, 1)
    shadow = np.clip(1 - distance * np.float32(radius / 0.045), 0, 1)
    shadow = np.float32(0.3) * shadow * shadow

    base = np.array(RGB[thing.colour], np.float32)
    light = 1 - np.float32(0.10) * v  # lit from above
    second = np.float32(255) - (255 - base) * np.float32(0.14)
    if second_colour is not None:
        second = np.array(RGB[second_colour], np.float32)
    edge = base + (255 - base) * np.float32(0.3) if dark else base * np.float32(0.62)
    pattern = _pattern(thing.texture, u, v, radius, pixels)
    # Colour is a mix of three inks: rim, base and the texture's pale one; mixing weights, not pixels, keeps it quick.
    rim = cover - body
    pale = body * pattern if pattern is not None else None
    full = body * light
    alpha = cover + shadow * (1 - cover)
    if pale is None:
        weights = np.stack([alpha, full, rim])
        inks = np.stack([base, edge])
    else:
        weights = np.stack([alpha, full - pale * light, rim, pale])
        inks = np.stack([base, edge, second])
    n, h, w = weights.shape
    k = SUPERSAMPLE
    weights = weights.reshape(n, h // k, k, w // k, k).mean(axis=(2, 4))
    patch = image[top:bottom, left:right]
    patch *= 1 - weights[0][..., None]
    patch += np.minimum(np.tensordot(weights[1:], inks, axes=(0, 0)), 255)


def _pattern(texture: str, u: np.ndarray, v: np.ndarray, radius: float, pixels: float) -> np.ndarray | None:
    """Share of the pale ink [h,w] in 0..1, or None where there is no texture. Periods stay visible on small objects."""
    if texture == "plain":
        return None
    soft = np.float32(pixels)
    if texture == "halved":  # of no scene; see :mod:`ldmscale.data.scenes.subjects`
        return np.clip(np.float32(0.5) - u * soft, 0, 1)
    if texture == "striped":
        period = np.float32(max(0.56, 0.10 / radius))
        phase = (u + v) * np.float32(0.70710678) / period
        edge = np.abs(phase - np.floor(phase) - np.float32(0.5)) - np.float32(0.25)
        return np.clip(np.float32(0.5) - edge * period * soft, 0, 1)
    if texture == "dotted":
        period = np.float32(max(0.62, 0.15 / radius))
        a, b = u / period + np.float32(0.5), v / period + np.float32(0.5)
        a, b = a - np.floor(a) - np.float32(0.5), b - np.floor(b) - np.float32(0.5)
        edge = np.hypot(a, b) - np.float32(0.29)
        return np.clip(np.float32(0.5) - edge * period * soft, 0, 1)
    period = np.float32(max(0.84, 0.16 / radius))
    return np.clip(
        np.float32(0.5)
        + np.sin(u * (2 * np.pi / period)) * np.sin(v * (2 * np.pi / period)) * (period * soft / np.float32(2 * np.pi)),
        0,
        1,
    )


@lru_cache(maxsize=512)
def background(name: str, variant: int, size: int) -> np.ndarray:
    """The empty background, float32 [size,size,3] in 0..255 (shared: do not write to it). variant: 0..7."""
    k = 4
    grid = (np.arange(size * k, dtype=np.float32) + 0.5) / (size * k)
    x, y = grid[None, :], grid[:, None]
    fine = np.broadcast_to(_BACKGROUND_PAINTERS[name](x, y, Dice(variant)), (size * k, size * k, 3))
    image = np.clip(fine.reshape(size, k, size, k, 3).mean(axis=(1, 3)), 0, 255).astype(np.float32)
    image.setflags(write=False)
    return image


def _flat(*rgb):
    return lambda x, y, dice: np.array(rgb, np.float32) + np.zeros((y.shape[0], 1, 1), np.float32)


def _blend(low, high, share):
    """Colours [..,3] from ``low`` (share 0) to ``high`` (share 1)."""
    low, high = np.array(low, np.float32), np.array(high, np.float32)
    return low + (high - low) * np.clip(share, 0, 1)[..., None]


def _over(image, mask, ink):
    return image + (np.array(ink, np.float32) - image) * np.asarray(mask, np.float32)[..., None]


def _pastel(x, y, dice):
    tilt = 0.3 * dice.symmetric()
    return _blend((206, 240, 226), (226, 208, 246), y + tilt * (x - 0.5))


def _meadow(x, y, dice):
    horizon = 0.62 + 0.05 * dice.symmetric() + 0.04 * np.sin(6.28 * (x + dice.symmetric()))
    image = _blend((140, 205, 252), (214, 240, 255), y / 0.62 + 0 * x)
    cx, cy = 0.5 + 0.4 * dice.symmetric(), 0.16 + 0.05 * dice.symmetric()
    for dx, r in ((-0.1, 0.05), (0.0, 0.075), (0.1, 0.05)):
        image = _over(image, np.hypot(x - cx - dx, (y - cy) * 1.3) < r, (250, 253, 255))
    grass = _blend((172, 222, 122), (122, 188, 84), (y - 0.6) / 0.4 + 0 * x)
    return np.where((y > horizon)[..., None], grass, image)


def _night(x, y, dice):
    image = _blend((12, 14, 40), (34, 38, 88), y + 0 * x)
    mx, my = 0.5 + 0.36 * dice.symmetric(), 0.13
    moon = (np.hypot(x - mx, y - my) < 0.07) & (np.hypot(x - mx - 0.035, y - my + 0.015) > 0.06)
    image = _over(image, moon, (250, 240, 200))
    for _ in range(22):
        sx, sy = 0.5 + 0.5 * dice.symmetric(), 0.5 + 0.5 * dice.symmetric()
        image = _over(image, np.hypot(x - sx, y - sy) < 0.011, (255, 250, 225))
    return image


def _checkerboard(x, y, dice):
    cells = np.floor(x * 8 + dice.word() % 2) + np.floor(y * 8)
    return _over(np.full((y.shape[0], x.shape[1], 3), 242, np.float32), cells % 2 > 0, (205, 208, 214))


def _sunset(x, y, dice):
    upper = _blend((92, 66, 132), (238, 128, 116), y / 0.45 + 0 * x)
    image = np.where(y[..., None] < 0.45, upper, _blend((238, 128, 116), (255, 214, 140), (y - 0.45) / 0.37 + 0 * x))
    sun = np.hypot(x - 0.5 - 0.25 * dice.symmetric(), y - 0.82) < 0.13
    image = _over(image, sun, (255, 240, 190))
    return np.where((y > 0.82)[..., None], _blend((104, 62, 92), (62, 40, 76), (y - 0.82) / 0.18 + 0 * x), image)


def _beach(x, y, dice):
    image = _blend((164, 220, 250), (226, 244, 252), y / 0.4 + 0 * x)
    sea = _blend((44, 132, 190), (96, 190, 214), (y - 0.4) / 0.25 + 0 * x)
    image = np.where((y > 0.4 + 0.02 * dice.symmetric())[..., None], sea, image)
    shore = 0.68 + 0.025 * np.sin(9 * (x + dice.symmetric()))
    image = _over(image, y > shore - 0.025, (244, 250, 250))
    return np.where((y > shore)[..., None], _blend((246, 222, 168), (226, 192, 130), (y - 0.68) / 0.32 + 0 * x), image)


def _snow(x, y, dice):
    image = _blend((148, 174, 206), (208, 222, 236), y / 0.7 + 0 * x)
    far = 0.62 + 0.05 * np.sin(5 * (x + dice.symmetric()))
    image = np.where((y > far)[..., None], np.array((222, 232, 243), np.float32), image)
    near = 0.74 + 0.05 * np.sin(4 * (x + dice.symmetric()) + 2)
    image = np.where((y > near)[..., None], np.array((246, 249, 253), np.float32), image)
    for _ in range(18):
        sx, sy = 0.5 + 0.5 * dice.symmetric(), 0.35 + 0.35 * dice.symmetric()
        image = _over(image, np.hypot(x - sx, y - sy) < 0.014, (255, 255, 255))
    return image


_BACKGROUND_PAINTERS = {
    "white": _flat(255, 255, 255),
    "grey": _flat(186, 190, 196),
    "black": _flat(16, 16, 20),
    "pastel": _pastel,
    "meadow": _meadow,
    "night": _night,
    "checkerboard": _checkerboard,
    "sunset": _sunset,
    "beach": _beach,
    "snow": _snow,
}
