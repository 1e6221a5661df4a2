"""Drawn cats and dogs with their trimaps: the pictures of the embedded data set.

Legs, tails, ears, whiskers and fringes are one to a few pixels wide. `similarity` makes the coat look like the scene:
then only fine detail shows where the animal ends, and long skips carry fine detail. All shapes are tubes: Bezier curves
of control points (x, y, radius). An animal's coordinates are in units of about its body length, y down, the ground at
y = 0. H = W = size; colours are RGB in 0..255.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

Tube = np.ndarray | Sequence[tuple[float, float, float]]  # Nx3 control points

PET, BACKGROUND, BOUNDARY = 1, 2, 3
SUPERSAMPLING = 3
COVERED = 0.35  # a pixel of at least this coverage is the animal's: low enough to keep a slanting whisker whole
THINNEST = 1.3  # pixels; no tube is drawn thinner
OCTAVES = (0.012, 0.04, 0.12, 0.35)  # texture periods, as shares of the picture's size


class Breed(NamedTuple):
    """The common traits of a group of animals."""

    species: int  # 1 cat, 2 dog, as in the official lists
    pattern: str  # "" for none
    coats: tuple  # possible colours
    marking: tuple  # colour of the pattern
    hair: float  # length of the fringe, in animal units


class Surface(NamedTuple):
    """The texture of a floor or a wall."""

    contrast: float
    weights: tuple[float, float, float, float]  # of the OCTAVES
    stretch: float
    angle: float  # of the stretch, in degrees
    colours: tuple


# fmt: off
BREEDS = {
    "striped": Breed(1, "stripes", ((204, 138, 78), (150, 142, 132), (168, 132, 96)), (70, 46, 34), 0.02),
    "spotted": Breed(1, "spots", ((212, 172, 116), (190, 180, 166)), (66, 44, 34), 0.015),
    "plain": Breed(1, "", ((58, 58, 66), (236, 232, 224), (118, 126, 140), (192, 118, 62)), (40,) * 3, 0.01),
    "pointed": Breed(1, "points", ((230, 216, 194), (222, 214, 206)), (66, 52, 48), 0.02),
    "patched": Breed(2, "patches", ((238, 234, 226), (226, 214, 196)), (118, 72, 42), 0.015),
    "shaggy": Breed(2, "", ((168, 126, 82), (206, 186, 152), (86, 80, 78)), (60, 50, 44), 0.075),
}
FLOORS = (
    Surface(24, (1, 0.8, 0.3, 0.4), 4, 90, ((104, 134, 72), (128, 144, 82), (84, 112, 68))),  # grass
    Surface(15, (1, 0.5, 0.2, 0.2), 1, 0, ((146, 80, 74), (82, 96, 124), (142, 136, 126))),  # carpet
    Surface(16, (0.4, 0.8, 0.6, 0.3), 12, 0, ((164, 118, 78), (124, 90, 62), (192, 156, 114))),  # wood
    Surface(14, (1, 0.3, 0.3, 0.4), 1.5, 0, ((204, 184, 146), (178, 168, 152))),  # sand
)
WALLS = (
    Surface(9, (0.3, 0.3, 0.4, 0.8), 1, 0, ((204, 196, 178), (154, 170, 174), (184, 154, 140))),  # plaster
    Surface(18, (0.2, 0.3, 1, 0.5), 9, 90, ((140, 76, 78), (80, 100, 112), (174, 160, 134))),  # curtain
    Surface(24, (0.7, 1, 0.8, 0.5), 1.3, 60, ((72, 96, 62), (94, 112, 76))),  # hedge
    Surface(8, (0.1, 0.2, 0.5, 1), 3, 0, ((148, 178, 204), (186, 200, 208))),  # sky
)
# From back to front: a layer's brightness, and the strength of the marking on it in a coat with points.
LAYERS = {"far": (0.7, 0.8), "tail": (0.9, 0.9), "body": (1, 0.1), "near": (1.02, 0.7), "ears": (0.95, 1),
          "head": (1.08, 0.15), "muzzle": (1.12, 0.6), "whiskers": (1.2, 0)}
FEATURES = {"inner ears": (206, 150, 140), "eyes": (150, 142, 74), "dark": (26, 22, 22), "glint": (255,) * 3}


def pose(rng: Generator, cat: bool) -> tuple[dict[str, list[Tube]], dict[str, list[Tube]]]:
    """Return one cat or dog that faces right: the tubes of its LAYERS and of its FEATURES."""
    stance = rng.choice(["standing", "sitting", "lying"], p=[0.5, 0.35, 0.15])
    standing, lying, sides = stance == "standing", stance == "lying", (-1, 1)
    leg, plump = rng.uniform(0.36, 0.56), rng.uniform(0.85, 1.15)
    hip_x, hip_y = (-0.42, -leg - 0.12) if standing else (-0.42, -0.2) if lying else (-0.22, -0.24)
    chest_x, chest_y = (0.34, -leg - 0.14) if standing else (0.3, -0.22) if lying else (0.12, -leg - 0.2)
    head_x, head_y = chest_x + rng.uniform(0.08, 0.24), chest_y - rng.uniform(0.28, 0.4)
    radius, lean, turn = rng.uniform(0.2, 0.25), rng.normal(0, 0.16), rng.uniform(-0.1, 0.28)
    steps, flap = rng.uniform(-0.14, 0.14, size=4), rng.uniform(-0.1, 0.25)

    def front_leg(x: float, step: float) -> Tube:
        if lying:
            return [(x, chest_y + 0.05, 0.12), (x + 0.1, -0.05, 0.05), (x + 0.32 + step, -0.04, 0.042)]
        paw = x + step * (1 if standing else 0.3)
        return [(x, chest_y + 0.05, 0.09), (x, chest_y / 2, 0.01),
                (paw, -0.12, 0.02), (paw + 0.03, -0.035, 0.044)]

    def hind_leg(x: float, step: float) -> Tube:
        if not standing:
            return [(x, hip_y + 0.02, 0.19), (x + 0.1, -0.1, 0.14), (x + 0.3 + step / 2, -0.045, 0.045)]
        paw = x + step
        return [(x, hip_y + 0.02, 0.15), (x + 0.1, hip_y / 2, 0.02), (paw - 0.12, hip_y / 3, 0),
                (paw, -0.1, 0.02), (paw + 0.03, -0.035, 0.044)]

    def on_head(*points: tuple[float, float, float], follow: float = 0) -> Tube:
        """Map points in head units to control points; `follow` is how far they move sideways as the head turns."""
        x, y, r = np.array(points, float).T
        x += follow * turn
        cos, sin = radius * np.cos(lean), radius * np.sin(lean)
        return np.stack([head_x + cos * x - sin * y, head_y + sin * x + cos * y, radius * r], axis=1)

    if cat:
        ears = [on_head((s * 0.5, -0.45, 0.4), (s * (0.82 + flap), -1.45, 0.03)) for s in sides]
        inner_ears = [on_head((s * 0.56, -0.6, 0.2), (s * (0.78 + flap), -1.25, 0.02)) for s in sides]
        muzzle = [on_head((s * 0.2, 0.42, 0.26), follow=1) for s in sides]
        pupil, tail = rng.uniform(0.05, 0.12), 0.033
    else:
        ears = [on_head((s * 0.7, -0.6, 0.2), (s * (1.3 + flap), -0.7, 0.3), (s * (1.1 + flap), 0.5, 0.2))
                for s in sides]
        inner_ears, muzzle = [], [on_head((0, 0.1, 0.2), (0, 0.55, 0.42), follow=1.4)]
        pupil, tail = 0.13, 0.045
    tail_x, tail_y = hip_x - 0.14, hip_y + (-0.06 if standing else 0.1)
    bend_x, bend_y, tip_x, tip_y = rng.uniform((-0.5, -0.35, -0.55, -0.85), (-0.2, 0.15, -0.1, -0.1))
    waist = ((hip_x + chest_x) / 2, (hip_y + chest_y) / 2 - 0.02, 0.16 * plump)
    layers: dict[str, list[Tube]] = {
        "far": [front_leg(chest_x + 0.16, steps[0]), hind_leg(hip_x + 0.18, steps[1])],
        "tail": [[(tail_x, tail_y, tail), (tail_x + bend_x, min(tail_y + bend_y, -0.05), tail),
                  (tail_x + tip_x, min(tail_y + tip_y, -0.05), 0.02)]],
        "body": [[(hip_x, hip_y, 0.2 * plump), waist, (chest_x, chest_y, 0.19)],
                 [(chest_x, chest_y, 0.17), (head_x - 0.02, head_y, 0.14)]],
        "near": [front_leg(chest_x, steps[2]), hind_leg(hip_x, steps[3])],
        "ears": ears,
        "head": [on_head((-0.22, 0.1, 0.8), (0.22, 0.1, 0.8)), on_head((0, -0.15, 0.82))],
        "muzzle": muzzle,
        "whiskers": [on_head((s * 0.3, 0.42 + v / 4, 0), (s * 0.9, 0.3 + v, 0), (s * 1.65, 0.4 + 2.4 * v, 0),
                             follow=0.6) for s in sides for v in rng.normal((-0.22, 0.04, 0.26), 0.04)],
    }
    features: dict[str, list[Tube]] = {
        "inner ears": inner_ears,
        "eyes": [on_head((s * 0.42, -0.08, 0.2), follow=1) for s in sides],
        "dark": [on_head((s * 0.42, pupil - 0.28, pupil), (s * 0.42, 0.12 - pupil, pupil), follow=1.15)
                 for s in sides]
                + [on_head((0, 0.3, 0.03), (0, 0.75, 0.03), (s * 0.25, 0.5, 0.03), follow=1.3) for s in sides]
                + [on_head((-0.07, 0.26, 0.09), (0.07, 0.26, 0.09), (0, 0.4, 0.05), follow=1.4)],
        "glint": [on_head((s * 0.42 + 0.07, -0.16, 0.06), follow=1) for s in sides],
    }
    return layers, features
# fmt: on


def place(rng: Generator, layers: dict[str, list[Tube]], size: int) -> np.ndarray:
    """Return a random place for the animal, the 2x3 matrix from animal units to pixels. It may cut off whiskers."""
    points = np.concatenate([tube for name, tubes in layers.items() if name != "whiskers" for tube in tubes])
    low, high = (points[:, :2] - points[:, 2:]).min(axis=0), (points[:, :2] + points[:, 2:]).max(axis=0)
    unit = size * rng.uniform(0.66, 0.95) / (high - low).max()
    centre = size / 2 + (size - unit * (high - low)) * rng.uniform((-0.4, -0.1), (0.4, 0.4))
    tilt, mirror = rng.normal(0, 0.06), rng.choice([-1, 1])
    turn = unit * np.array([[mirror * np.cos(tilt), -np.sin(tilt)], [mirror * np.sin(tilt), np.cos(tilt)]])
    return np.column_stack([turn, centre - turn @ (low + high) / 2])


@lru_cache
def bernstein(points: int) -> np.ndarray:
    """Return the matrix, 16 x points, that maps a tube's control points to 16 points along its Bezier curve."""
    t = np.linspace(0, 1, 16)
    return np.stack([comb(points - 1, k) * t**k * (1 - t) ** (points - 1 - k) for k in range(points)], axis=1)


def coverage(
    tubes: list[Tube], frame: np.ndarray, size: int, hair: float = 0, rng: Generator | None = None
) -> np.ndarray:
    """Return the share of each pixel that the tubes cover: HxW float32 in 0..1. `hair` adds a fringe, from `rng`."""
    canvas = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)
    frame = frame * SUPERSAMPLING
    unit = np.hypot(*frame[:, 0])
    for tube in tubes:
        curve = bernstein(len(tube)) @ tube
        centres, radii = curve[:, :2] @ frame[:, :2].T + frame[:, 2], unit * curve[:, 2:]
        widths = np.maximum(2 * radii[:, 0], THINNEST * SUPERSAMPLING).round().astype(int).tolist()
        fixed = (16 * centres).round().astype(int).tolist()  # shift=4: cv2 takes 4 fractional bits
        for start, end, width in zip(fixed, fixed[1:], widths, strict=False):
            cv2.line(canvas, start, end, 255, width, shift=4)
        if hair and rng is not None:
            roots, angles = rng.integers(len(curve), size=70), rng.uniform(0, 2 * np.pi, size=70)
            reach = radii[roots] + unit * hair * rng.uniform(0.3, 1, size=(70, 1))
            reach = reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            hang = (0, 0.6 * hair * unit)
            strands = np.stack([centres[roots] + reach / 2, centres[roots] + reach + hang], axis=1)
            cv2.polylines(canvas, list((16 * strands).round().astype(np.int32)), False, 255, 2, shift=4)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def noise(rng: Generator, size: int, weights: tuple, stretch: float = 1, angle: float = 0) -> np.ndarray:
    """Return a texture of these weights of the OCTAVES and this orientation: HxW float32, mean 0, deviation 1."""
    side = int(1.45 * size)  # the square that still covers the picture when turned
    total: np.ndarray = np.zeros((side, side), np.float32)
    for octave, weight in zip(OCTAVES, weights, strict=True):
        cells = side / max(octave * size, 1.2)
        grid = rng.standard_normal((int(cells) + 3, int(cells / stretch) + 3), np.float32)
        layer = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        total += weight / layer.std() * layer
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1)
    turn[:, 2] -= (side - size) // 2
    total = cv2.warpAffine(total, turn, (size, size))
    return (total - total.mean()) / total.std()


def random_colour(rng: Generator, colours: tuple) -> np.ndarray:
    """Return one of the colours, a little lighter or darker: 3 float32."""
    colour = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.1)
    return (colour + rng.normal(0, 4, size=3)).astype(np.float32)


def draw_scene_twice(rng: Generator, size: int, coat: np.ndarray, marking: np.ndarray, feet: float) -> tuple:
    """Return two draws of one random scene: the mean colour of both and the texture of each, all HxWx3 float32.

    Its colours differ from the coat's (3 float32). `feet`, 0..1, is how far down the animal stands.
    """
    floor, wall = FLOORS[rng.integers(len(FLOORS))], WALLS[rng.integers(len(WALLS))]
    choices = [(random_colour(rng, floor.colours), random_colour(rng, wall.colours)) for _ in range(4)]
    ground, back = max(choices, key=lambda colours: min(np.abs(colour - coat).sum() for colour in colours))
    horizon = max(feet - rng.uniform(0.12, 0.5), 0) if rng.random() < 0.8 else 0
    below = np.clip(np.arange(1, size + 1) - horizon * size, 0, 1).astype(np.float32)[:, None, None]
    mean = below * ground + (1 - below) * back
    textures = []
    for _ in range(2):
        low, high = (s.contrast * noise(rng, size, s.weights, s.stretch, s.angle) for s in (floor, wall))
        texture = (below * low[..., None] + (1 - below) * high[..., None]) * (0.6 + mean / 320)
        # Blades as thin as legs, half of them in the coat's colour: colour alone must not reveal the mask.
        for colour in (0.85 * coat, (marking + ground) / 2):
            x, y, rise = rng.uniform((-0.05, horizon, 0.1), (1.05, 1.1, 0.4), size=(6, 3)).T
            lean, width = rng.normal(0, 0.08, size=6), rng.uniform(0.003, 0.013, size=6)
            bends = ((x, y, width), (x + lean, y - 0.6 * rise, width / 2), (x + 2.5 * lean, y - rise, 0 * width))
            cover = coverage(list(np.transpose(bends, (2, 0, 1))), size * np.eye(2, 3), size)[..., None]
            texture += cover * (colour - mean - texture)
        textures.append(texture)
    return mean, *textures


def draw_pattern(rng: Generator, name: str, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the strength of the marking, HxW in 0..1; `points`, HxW, is its strength by LAYERS."""
    size = len(points)
    blotches = noise(rng, size, (0, 0, 1, 0.6))
    if name == "stripes":
        steps = np.arange(size, dtype=np.float32)
        along = np.add.outer(steps * frame[1, 0], steps * frame[0, 0]) / np.square(frame[:, 0]).sum()
        waves = np.sin(along * rng.uniform(30, 42) + 1.4 * blotches).astype(np.float32)
        return 1 / (1 + np.exp(1 - 4 * waves))
    if name == "spots":
        return np.clip(4 * noise(rng, size, (0, 1, 0.25, 0)) - 2.5, 0, 1)
    if name == "patches":
        return np.clip(5 * blotches - 1, 0, 1)
    return cv2.GaussianBlur(points, (0, 0), 0.012 * size) if name == "points" else np.zeros_like(points)


def trimap_from_mask(mask: np.ndarray) -> np.ndarray:
    """Map a mask, HxW bool, to HxW uint8 of PET, BACKGROUND, and BOUNDARY, one pixel on each side of the edge."""
    filled, square = mask.astype(np.uint8), np.ones((3, 3), np.uint8)
    outside = np.where(cv2.dilate(filled, square), BOUNDARY, BACKGROUND)
    return np.where(cv2.erode(filled, square), PET, outside).astype(np.uint8)


def draw_animal(rng: Generator, *, size: int, breed: str, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture of the breed, HxWx3 uint8 RGB, and its trimap, HxW uint8 of PET, BACKGROUND and BOUNDARY.

    `similarity` 0: the coat has a texture of its own; 1: the coat is a second draw of the scene behind it, and only a
    faint shading and face remain. In between, mean colour and power spectrum change linearly.
    """
    kind = BREEDS[breed]
    geometry, texture = rng.spawn(2)  # two generators, so that no change of a texture can change a shape
    layers, features = pose(geometry, cat=kind.species == 1)
    frame = place(geometry, layers, size)
    hair = {name: 0 if name == "whiskers" else kind.hair for name in LAYERS}
    covers = {name: coverage(layers[name], frame, size, hair[name], geometry) for name in LAYERS}
    alpha = 1 - np.prod([1 - cover for cover in covers.values()], axis=0)

    # Light from above: a layer is brighter where its soft cover grows downwards, and shades what lies behind.
    light, points = np.ones((2, size, size), np.float32)
    for name, (brightness, pointed) in LAYERS.items():
        soft = cv2.GaussianBlur(covers[name], (0, 0), 0.035 * size)
        light *= 1 - 0.3 * soft
        light += covers[name] * (brightness + 0.035 * size * np.gradient(soft, axis=0) - light)
        points += covers[name] * (pointed - points)

    coat, marking = random_colour(texture, kind.coats), np.array(kind.marking, np.float32)
    mean, grain, twin_grain = draw_scene_twice(texture, size, coat, marking, feet=frame[1, 2] / size)
    pattern = draw_pattern(texture, kind.pattern, frame, points)[..., None]
    fur = noise(texture, size, (1, 0.5, 0.2, 0.1), stretch=3, angle=texture.uniform(20, 160))[..., None]
    coat_grain = 0.9 * pattern * (marking - coat) + 0.1 * fur * (coat + 40)
    offset = (alpha[..., None] * coat_grain).sum(axis=(0, 1)) / alpha.sum()

    own, shared = 1 - similarity, similarity
    animal = own**0.5 * (coat_grain - offset) + shared**0.5 * twin_grain  # by roots the power changes linearly
    animal += own * (coat + offset) + shared * mean
    faint = 1 - 0.75 * similarity
    feet = np.concatenate([*layers["far"], *layers["near"]])[:, 0]
    shadow = coverage([[(feet.min(), 0, 0.08), (feet.max(), 0, 0.08)]], frame, size)
    shadow = cv2.GaussianBlur(shadow, (0, 0), size / 32) + 0.3 * cv2.GaussianBlur(alpha, (0, 0), size / 25)
    picture = (mean + grain) * (1 - 0.45 * faint * shadow)[..., None]
    picture += alpha[..., None] * (animal * (1 + faint * (light - 1))[..., None] - picture)
    picture += 0.55 * own * covers["whiskers"][..., None] * (245 - picture)
    for name, colour in FEATURES.items():
        cover = faint * coverage(features[name], frame, size)[..., None]
        picture += cover * (np.array(colour, np.float32) - picture)
    picture *= np.linspace(1.1, 0.92, size, dtype=np.float32)[:, None, None]
    return np.clip(picture, 0, 255).round().astype(np.uint8), trimap_from_mask(alpha > COVERED)
