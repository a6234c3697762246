"""Backgrounds drawn by code, at the size and shape of the stream: nothing to fetch, nothing to license.

They are out of focus, as behind a person in a good portrait, and carry half a code of noise, without which soft
gradients show bands in 8 bits. The same name and size give the same picture, always.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from rtbg.backgrounds.fit import place
from rtbg.backgrounds.image import PictureBackground
from rtbg.backgrounds.names import GENERATED
from rtbg.frame import Array, StreamInfo

Color = tuple[int, int, int]


class Canvas(NamedTuple):
    """Where a painter stands: pixel (x, y) in units of the shorter side from the middle of the top edge, for
    distances and sizes, and y again as v, 0 at the top to 1 at the bottom."""

    x: Array
    y: Array
    v: Array
    rng: np.random.Generator

    @property
    def unit(self) -> int:
        """Pixels of the shorter side."""
        return int(min(self.v.shape))


def open_generated(name: str, info: StreamInfo) -> PictureBackground:
    """The background of that name, a key of `GENERATED`."""
    return PictureBackground(lambda stream: place(draw(name, *stream.shown_size), stream, "stretch"), info)


def draw(name: str, width: int, height: int) -> Array:
    """uint8 (height, width, 3) RGB."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    # Painted at 640 pixels at most, since nothing in it is sharp; grain is added at full size.
    factor = min(1.0, 640 / max(width, height))
    w, h = max(2, round(width * factor)), max(2, round(height * factor))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    side = np.float32(min(w, h))
    canvas = Canvas((x - (w - 1) / 2) / side, y / side, y / np.float32(max(1, h - 1)), rng)
    picture: Array = cv2.resize(_PAINTERS[name](canvas), (width, height), interpolation=cv2.INTER_CUBIC)
    coarse, fine = _GRAIN.get(name, (0.0, 0.7))
    noise = rng.standard_normal((height, width), dtype=np.float32)
    if coarse:
        fibre = cv2.GaussianBlur(noise, (0, 0), max(0.6, min(width, height) / 700))
        picture += (fibre * (coarse / max(0.1, float(fibre.std()))))[:, :, None]
    picture += (noise * fine)[:, :, None]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _ramp(t: Array, *stops: tuple[float, Color]) -> Array:
    """float32 (h, w, 3): colours along t between (position, RGB) stops, in linear light, so that the middle of two
    saturated colours does not turn muddy, and rounded at the stops, where the eye sees a bend as a line."""
    at = [s[0] for s in stops]
    fine = np.linspace(at[0], at[-1], 512)
    linear = np.array([[(c / 255) ** 2.2 for c in s[1]] for s in stops])
    table = np.stack([np.interp(fine, at, linear[:, c]) for c in range(3)]).astype(np.float32)
    table = cv2.GaussianBlur(table, (0, 0), 18, sigmaY=1e-6, borderType=cv2.BORDER_REPLICATE) ** (1 / 2.2) * 255
    return np.dstack([np.interp(t, fine, row) for row in table]).astype(np.float32)


def _mix(below: Array, above: Array, weight: Array) -> Array:
    w = np.clip(weight, 0, 1)[:, :, None]
    return np.asarray(below * (1 - w) + above * w, np.float32)


def _glow(canvas: Canvas, x: float, v: float, radius: float) -> Array:
    """(h, w) 0..1: a soft light of that radius (in shorter sides) at x from the middle and v of the height."""
    aspect = canvas.v.shape[0] / canvas.unit
    squared = (canvas.x - x) ** 2 + (canvas.y - v * aspect) ** 2
    return np.asarray(np.exp(-squared / (2 * radius**2)))


def _clouds(canvas: Canvas, cell: float, *, stretch: float = 1.0) -> Array:
    """(h, w) noise about -1..1 whose blobs are `cell` shorter sides high and `stretch` times as wide."""
    h, w = canvas.v.shape
    size = max(2, round(w / (canvas.unit * cell * stretch)) + 2), max(2, round(h / (canvas.unit * cell)) + 2)
    grid = canvas.rng.standard_normal((size[1], size[0])).astype(np.float32)
    smooth = cv2.GaussianBlur(cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC), (0, 0), canvas.unit * cell / 4)
    spread = float(smooth.std())
    return np.asarray(smooth / (2 * spread) if spread > 0.01 else np.zeros_like(smooth))


def _lights(
    canvas: Canvas,
    count: int,
    v: tuple[float, float],
    radius: tuple[float, float],
    colors: list[Color],
    strength: tuple[float, float],
) -> Array:
    """(h, w, 3) light to add: discs of out-of-focus lamps, at heights v, brighter at the rim as lenses make them."""
    h, w = canvas.v.shape
    total = np.zeros((h, w, 3), np.float32)
    rng = canvas.rng
    wide = w / canvas.unit
    for _ in range(round(count * max(1.0, wide * 0.75))):
        r = rng.uniform(*radius) * canvas.unit
        center = np.array([rng.uniform(0, w), rng.uniform(*v) * h])
        color = np.array(colors[rng.integers(len(colors))], np.float32) * np.float32(rng.uniform(*strength))
        x0, y0 = np.floor(center - r - 2).astype(int).clip(0)
        x1, y1 = np.minimum(np.ceil(center + r + 2).astype(int), (w, h))
        if x1 <= x0 or y1 <= y0:
            continue
        yy, xx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        d = np.hypot(xx - center[0], yy - center[1])
        soft = max(1.0, 0.06 * r)
        disc = np.clip((r - d) / soft + 0.5, 0, 1) * (0.62 + 0.38 * np.clip(d / r, 0, 1) ** 4)
        total[y0:y1, x0:x1] += disc[:, :, None] * color
    return total


def _screen(picture: Array, light: Array) -> Array:
    """Light added without burning out: 1 - (1 - a)(1 - b)."""
    return np.asarray(255 - (255 - picture) * (255 - np.clip(light, 0, 255)) / 255, np.float32)


def _studio(c: Canvas) -> Array:
    wall = _ramp(_glow(c, 0.0, 0.40, 0.52), (0, (58, 61, 67)), (0.5, (112, 116, 122)), (1, (186, 188, 190)))
    wall *= (1 + 0.035 * _clouds(c, 0.35) + 0.02 * _clouds(c, 0.12))[:, :, None]
    return _mix(wall, wall * 0.72, (c.v - 0.80) / 0.35)


def _dusk(c: Canvas) -> Array:
    sky = _ramp(
        c.v,
        (0, (27, 32, 72)),
        (0.35, (84, 62, 120)),
        (0.58, (196, 104, 122)),
        (0.72, (252, 176, 110)),
        (0.80, (150, 92, 98)),
        (1, (34, 28, 46)),
    )
    sky = _mix(sky, sky * 1.10 + 8, 0.5 * _clouds(c, 0.10, stretch=5) * np.exp(-(((c.v - 0.5) / 0.22) ** 2)))
    hills = 0.775 + 0.030 * _clouds(c, 0.30)[:1] + 0.012 * _clouds(c, 0.10)[:1]
    ground = _ramp(c.v, (0.70, (92, 62, 88)), (1, (22, 20, 38)))
    sky = _mix(sky, ground, (c.v - hills) / 0.02 + 0.5)
    lamps: list[Color] = [(255, 190, 110), (255, 214, 150), (255, 150, 96), (150, 190, 255), (255, 236, 205)]
    far = _lights(c, 34, (0.76, 0.86), (0.008, 0.020), lamps, (0.20, 0.50))
    near = _lights(c, 20, (0.80, 1.02), (0.030, 0.075), lamps, (0.10, 0.34))
    return _screen(sky, far + near)


def _ocean(c: Canvas) -> Array:
    horizon = 0.52
    sky = _ramp(c.v / horizon, (0, (92, 158, 208)), (0.6, (166, 208, 230)), (1, (228, 236, 234)))
    clouds = _clouds(c, 0.16, stretch=3) + 0.5 * _clouds(c, 0.07, stretch=3)
    sky = _mix(sky, np.full_like(sky, 250), 0.42 * clouds * np.clip(c.v / 0.25, 0, 1))
    depth = np.clip((c.v - horizon) / (0.86 - horizon), 0, 1)
    sea = _ramp(depth, (0, (70, 142, 172)), (0.35, (40, 134, 158)), (0.8, (92, 188, 190)), (1, (168, 218, 206)))
    waves = _clouds(c, 0.016, stretch=9) * (1 - depth) + _clouds(c, 0.045, stretch=6) * depth
    sea += (waves * (4 + 10 * depth))[:, :, None]
    shore = 0.86 + 0.018 * _clouds(c, 0.5)[:1]
    sand = _ramp(c.v, (0.84, (196, 176, 140)), (1, (226, 206, 170)))
    sea = _mix(sea, sand, (c.v - shore) / 0.05 + 0.5)
    foam = np.exp(-(((c.v - shore + 0.012) / 0.012) ** 2)) * (0.65 + 0.35 * _clouds(c, 0.08, stretch=3))
    sea = _mix(sea, np.full_like(sea, 246), 0.75 * foam)
    return _screen(_mix(sky, sea, (c.v - horizon) / 0.012 + 0.5), 46 * _glow(c, 0.35, 0.22, 0.5)[:, :, None])


def _forest(c: Canvas) -> Array:
    leaves = _ramp(c.v, (0, (150, 178, 96)), (0.35, (92, 136, 66)), (0.75, (44, 84, 46)), (1, (26, 52, 34)))
    shade = 0.5 * _clouds(c, 0.22) + 0.35 * _clouds(c, 0.10) + 0.2 * _clouds(c, 0.05)
    leaves *= (1 + 0.32 * shade)[:, :, None]
    h, w = c.v.shape
    trunks: Array = np.zeros((h, w), np.float32)
    for _ in range(max(3, round(4 * w / c.unit))):
        x, wide, lean = c.rng.uniform(0, w), c.rng.uniform(0.012, 0.035) * c.unit, c.rng.uniform(-0.05, 0.05) * h
        line = np.array([[x, 0], [x + lean, h], [x + lean + wide, h], [x + 0.8 * wide, 0]], np.float32)
        cv2.fillPoly(trunks, [np.rint(line * 16).astype(np.int32)], c.rng.uniform(0.35, 0.7), cv2.LINE_AA, 4)
    trunks = cv2.GaussianBlur(trunks, (0, 0), 0.012 * c.unit)
    leaves = _mix(leaves, leaves * 0.25 + np.array([20, 16, 10], np.float32), trunks)
    sun = _glow(c, 0.28, 0.12, 0.42)
    leaves = _screen(leaves, sun[:, :, None] * np.array([130, 120, 62], np.float32))
    colors: list[Color] = [(214, 232, 130), (186, 220, 110), (240, 240, 180), (150, 200, 96)]
    small = _lights(c, 90, (-0.02, 0.62), (0.010, 0.026), colors, (0.06, 0.26))
    large = _lights(c, 26, (-0.02, 0.70), (0.035, 0.075), colors, (0.04, 0.15))
    return _screen(leaves, small + large)


def _paper(c: Canvas) -> Array:
    sheet = _ramp(_glow(c, -0.25, 0.25, 0.9), (0, (214, 207, 195)), (1, (246, 242, 234)))
    return np.asarray(sheet + (1.6 * _clouds(c, 0.25) + 1.2 * _clouds(c, 0.05))[:, :, None], np.float32)


_PAINTERS: dict[str, Callable[[Canvas], Array]] = {
    "studio": _studio,
    "dusk": _dusk,
    "ocean": _ocean,
    "forest": _forest,
    "paper": _paper,
}
assert set(_PAINTERS) == set(GENERATED)
# Standard deviation of the texture that is seen as such, and of the noise against bands, in codes.
_GRAIN = {"paper": (1.8, 0.7), "studio": (0.7, 0.7)}
