"""The pixels of the `shapes` world: a coloured, textured shape before a textured background."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

SAMPLES = 4  # a side of the square of samples that a pixel of the object averages
RADII = 0.20, 0.33  # of the circle around an object, in sides of the image
TURN = np.pi / 6  # by how much an object is turned at most

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "crescent", "heart")
TEXTURES = ("plain", "striped", "dotted", "checked")
COLORS = {
    "red": (0.90, 0.10, 0.12),
    "yellow": (0.98, 0.88, 0.10),
    "green": (0.08, 0.72, 0.20),
    "cyan": (0.05, 0.88, 0.88),
    "blue": (0.12, 0.20, 0.92),
    "purple": (0.62, 0.12, 0.80),
    "white": (1.00, 1.00, 1.00),
    "black": (0.04, 0.04, 0.04),
}
# The colours between which a background varies: duller than those of objects.
BACKGROUNDS = {
    "grass": ((0.22, 0.36, 0.14), (0.50, 0.62, 0.30)),
    "sand": ((0.68, 0.56, 0.36), (0.90, 0.80, 0.60)),
    "water": ((0.12, 0.32, 0.46), (0.40, 0.60, 0.70)),
    "brick": ((0.74, 0.70, 0.64), (0.52, 0.25, 0.18)),
    "wood": ((0.30, 0.19, 0.10), (0.60, 0.42, 0.26)),
    "snow": ((0.62, 0.70, 0.82), (0.90, 0.94, 1.00)),
    "sky": ((0.40, 0.60, 0.88), (0.88, 0.93, 0.98)),
    "stone": ((0.28, 0.28, 0.29), (0.66, 0.65, 0.63)),
}


class Scene(NamedTuple):
    """What an image shows, in units that do not depend on its size.

    Attributes:
      color, texture, shape, background: positions in `COLORS`, `TEXTURES`, `SHAPES` and `BACKGROUNDS`.
      center: x and y of the object, in sides of the image.
      radius: of the circle around the object, in sides of the image.
      angle: by which the object is turned clockwise, in radians.
      texture_angle: by which the texture is turned, in radians.
      texture_phase: float64[2] in [0, 1): by which part of its period the texture is shifted.
      light: brightness of the object, of the background.
      tint: float64[3], added to the object's colour.
      phase: float64[2] in [0, 1): by which part of its period the background is shifted.
      coarse: float64[6, 6] in [0, 1), large blotches of the background.
      fine: float64[32, 32] in [0, 1), its grain.
    """

    color: int
    texture: int
    shape: int
    background: int
    center: tuple[float, float]
    radius: float
    angle: float
    texture_angle: float
    texture_phase: np.ndarray
    light: tuple[float, float]
    tint: np.ndarray
    phase: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray


def drawn(rng: np.random.RandomState, color: int, texture: int, shape: int, background: int) -> Scene:
    """Return a scene with these attributes: all else is drawn, the same whatever they are.

    The object lies within the image, its radius uniform in `RADII`, its angle in +-`TURN`.
    """
    u = rng.random_sample(14)
    radius = RADII[0] + (RADII[1] - RADII[0]) * u[0]
    x, y = (float(radius + (1 - 2 * radius) * v) for v in u[1:3])
    angle, texture_angle = float(TURN * (2 * u[3] - 1)), float(np.pi * u[4])
    light = float(0.85 + 0.15 * u[5]), float(0.85 + 0.2 * u[6])
    tint = 0.12 * u[7:10] - 0.06
    coarse, fine = rng.random_sample((6, 6)), rng.random_sample((32, 32))
    return Scene(
        *(color, texture, shape, background, (x, y), float(radius), angle, texture_angle),
        *(u[10:12], light, tint, u[12:14], coarse, fine),
    )


def render(scene: Scene, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image uint8[side, side, 3], the object's mask uint8[side, side] and its box float32[4].

    A pixel of the object's edge is the mean of object and background by the part of its `SAMPLES`**2 samples that lie
    in the object. The mask is 1 where that part is at least a half. The box (x0, y0, x1, y1) bounds the mask tightly:
    x1 and y1 are the edges behind its last pixels.
    """
    pixels = _background(scene, side)
    center, reach = np.array(scene.center), scene.radius
    low = np.clip(np.floor((center - reach) * side), 0, side).astype(int)
    high = np.clip(np.ceil((center + reach) * side), 0, side).astype(int)
    (x0, y0), (x1, y1) = low, high
    x = ((x0 + (np.arange((x1 - x0) * SAMPLES) + 0.5) / SAMPLES) / side - center[0]) / reach
    y = ((y0 + (np.arange((y1 - y0) * SAMPLES) + 0.5) / SAMPLES) / side - center[1]) / reach
    x, y = np.broadcast_arrays(x.astype(np.float32), y.astype(np.float32)[:, None])
    inside = _inside(scene.shape, *_turned(x, y, scene.angle))
    covered = _averaged(inside)[..., None]
    bright, shade = _tones(scene)
    pattern = _pattern(scene, x, y)
    shaded = _averaged(inside & pattern)[..., None] if pattern is not None else 0 * covered
    region = pixels[y0:y1, x0:x1]
    region[:] = region * (1 - covered) + (covered - shaded) * bright + shaded * shade
    mask = np.zeros((side, side), np.uint8)
    mask[y0:y1, x0:x1] = covered[..., 0] >= 0.5
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8), mask, bounds(mask)


def bounds(mask: np.ndarray) -> np.ndarray:
    """Return the box float32[4] (x0, y0, x1, y1) around the pixels of a mask that are not 0; zeros if there are none.

    >>> bounds(np.array([[0, 0, 0], [0, 1, 1]])).tolist()
    [1.0, 1.0, 3.0, 2.0]
    """
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _averaged(samples: np.ndarray) -> np.ndarray:
    height, width = (n // SAMPLES for n in samples.shape)
    counts = samples.reshape(height, SAMPLES, width, SAMPLES).sum((1, 3), dtype=np.int32)
    return counts / SAMPLES**2


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of points in a frame that is turned clockwise (y points down)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _inside(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points lie in a shape, upright about the origin within a radius of 1; y points down."""
    match SHAPES[shape]:
        case "circle":
            return x * x + y * y <= 0.85**2
        case "square":
            return np.maximum(abs(x), abs(y)) <= 0.7
        case "triangle":
            return (y <= 0.5) & (np.sqrt(np.float32(3)) * abs(x) <= y + 1)
        case "star":
            return _in_star(x, y)
        case "ring":
            squared = x * x + y * y
            return (squared <= 0.9**2) & (squared >= 0.5**2)
        case "cross":
            x, y = abs(x), abs(y)
            return (np.minimum(x, y) <= 0.28) & (np.maximum(x, y) <= 0.95)
        case "crescent":
            return (x * x + y * y <= 0.9**2) & ((x - 0.45) ** 2 + y * y > 0.7**2)
        case "heart":
            x, y = 1.35 * x, 0.15 - 1.35 * y
            squared = x * x
            return (squared + y * y - 1) ** 3 <= squared * y**3
    raise AssertionError(shape)


def _in_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points lie in a star of five points with radii 1 and 0.45, one of them up."""
    tenth = np.pi / 5
    angle = np.arctan2(x, -y)
    angle = abs(angle - 2 * tenth * np.rint(angle / (2 * tenth)))  # from the nearest point of the star, up to a tenth
    tip, dent = np.array([1.0, 0.0]), 0.45 * np.array([np.cos(tenth), np.sin(tenth)])
    normal = np.array([dent[1] - tip[1], tip[0] - dent[0]])
    along, across = (normal @ tip).astype(np.float32), np.sqrt(x * x + y * y)
    return across * (np.float32(normal[0]) * np.cos(angle) + np.float32(normal[1]) * np.sin(angle)) <= along


def _tones(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the colour of an object and the one of its texture: a darker one, of black a lighter one."""
    bright = np.array(list(COLORS.values())[scene.color]) * scene.light[0] + scene.tint
    return bright, bright * 0.4 if bright.max() > 0.3 else bright + 0.45


def _pattern(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """Return which points of an object have the second colour; None if no point has."""
    name = TEXTURES[scene.texture]
    if name == "plain":
        return None
    period = {"striped": 0.7, "dotted": 0.7, "checked": 1.0}[name]
    x, y = (np.float32(2 * np.pi / period) * v for v in _turned(x, y, scene.texture_angle))
    x, y = x + np.float32(2 * np.pi * scene.texture_phase[0]), y + np.float32(2 * np.pi * scene.texture_phase[1])
    if name == "striped":
        return np.sin(x) > 0
    if name == "dotted":
        return np.cos(x) + np.cos(y) > 0.7
    return np.sin(x) * np.sin(y) > 0


def _background(scene: Scene, side: int) -> np.ndarray:
    """Return the background float64[side, side, 3] without the object."""
    at = (np.arange(side) + 0.5) / side
    x, y = at, at[:, None]
    coarse, fine = _enlarged(scene.coarse, side), scene.fine
    match list(BACKGROUNDS)[scene.background]:
        case "grass":
            level = 0.75 * _enlarged(fine[:9], side) + 0.25 * coarse
        case "sand":
            level = 0.8 * _enlarged(fine, side) + 0.2 * coarse
        case "water":
            waves = np.sin(2 * np.pi * (5 * y + 1.2 * coarse + scene.phase[0]))
            level = 0.5 + 0.35 * waves + 0.3 * (_enlarged(fine[:, :9], side) - 0.5)
        case "brick":
            level = _bricks(x, y, scene.phase) * (0.65 + 0.35 * _enlarged(fine, side))
        case "wood":
            level = 0.7 * _enlarged(fine[:, :4], side) + 0.3 * coarse
        case "snow":
            level = 0.35 + 0.5 * coarse + 0.15 * _enlarged(fine, side)
        case "sky":
            level = np.clip(0.6 * y - 0.3 + 1.6 * (coarse - 0.3), 0, 1)
        case "stone":
            level = 0.55 * coarse + 0.25 * _enlarged(fine[:16, :16], side) + 0.2 * _enlarged(fine, side)
        case other:
            raise AssertionError(other)
    dark, light = np.array(list(BACKGROUNDS.values())[scene.background]) * scene.light[1]
    return dark + level[..., None] * (light - dark)


def _bricks(x: np.ndarray, y: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return 1 on bricks and 0 on the mortar between them, with soft edges: float64[side, side]."""
    row = 6 * y + phase[0]
    across = 3 * x + phase[1] + 0.5 * (np.floor(row) % 2)
    from_edges = np.minimum((0.5 - abs(row % 1 - 0.5)) / 6, (0.5 - abs(across % 1 - 0.5)) / 3)
    return np.clip(60 * (from_edges - 0.01), 0, 1)


def _enlarged(grid: np.ndarray, side: int) -> np.ndarray:
    """Return a grid of values, corner on corner, as float64[side, side]: bilinear."""
    return _weights(grid.shape[0], side) @ grid @ _weights(grid.shape[1], side).T


@functools.cache
def _weights(count: int, side: int) -> np.ndarray:
    at = (np.arange(side)[:, None] + 0.5) / side * (count - 1)
    return np.maximum(0, 1 - abs(at - np.arange(count)))
