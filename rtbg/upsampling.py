"""From the small matte to a matte at full size that follows the picture's edges.

A guided filter (He, Sun and Tang 2010) in its fast form (He and Sun 2015, "Fast Guided Filter"): the matte is written
as a linear function of the picture's Y, U and V, fitted in a window around each cell of a coarse grid; the function is
then applied to the full-resolution luma (U and V come in at the grid's resolution). Only inside a band around the
small matte's edge; outside it the bilinear small matte rules exactly, so that nothing of the background's texture is
ever copied into the matte. Used by `rtbg.matting`.

Memory bound: about thirty float32 arrays of the grid's size (14,000 cells), the matte given out and the one before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from rtbg.frame import Array
from rtbg.grid import CELLS, EDGES, MEANS, Edges, Grid, Means, Scratch, edge_of, ramp
from rtbg.native.edge import follow
from rtbg.native.grid import fit

# Half the window of the fit, as a fraction of the longer side. (He, Sun and Tang 2010, equations 19 to 21, guided by Y,
# U and V; what U and V say is in the offset, at the grid's resolution.)
RADIUS = 1 / 50
# The variances (of luma and chroma in 0..1) at which a window's contrast counts half: noise and texture below them are
# not followed.
EPSILON, EPSILON_CHROMA = 1.2e-3, 0.7e-4
# Where the matte's local range (max - min over the window) begins to make the band, and where the fit rules in full.
BAND = (0.03, 0.2)
# How much steeper the fit is made around half-way: it averages, and leaves a haze on both sides of a clear edge.
CONTRAST = 1.5
# The grid's picture is averaged over this many seconds where it is still, not at all where Y, U or V has changed by
# more than the second of these (0..1), and less in between; and never across a gap.
STILL = 0.5
MOVED = (1 / 255, 3 / 255)
GAP = 0.5
# Luma, 0..1, by which a pixel may lie off what its cell and those around it say, by noise.
NOISE = 4 / 255
# A soft pixel of the band that has changed by at most so many codes of 255 keeps what it had: invisible where the matte
# moves, and where it does not, most of what noise still makes of the edge.
LEAST = 1
# The deviation of a feather, as a share of its width: nearly all of the step lies within that width.
FEATHER = 0.25


_THREE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Edge:
    """What is done to the matte's edge at full size; the defaults leave it alone. In this order, and combined:

    shift: by how much the person grows (shrinks where negative), -20 to 20.
    feather: over how much the edge is softened, 0 to 60; half-way stays in place, so no shoulder is eaten away.
    hardness: 0 to 1; how much steeper the edge becomes around half-way, 1: a cut.

    shift and feather are in pixels of a picture whose shorter side is 1080, and scale with it. Raises ValueError.
    """

    shift: float = 0.0
    feather: float = 0.0
    hardness: float = 0.0

    def __post_init__(self) -> None:
        if not (-20 <= self.shift <= 20 and 0 <= self.feather <= 60 and 0 <= self.hardness <= 1):
            raise ValueError(f"an edge has a shift of -20 to 20, a feather of 0 to 60, a hardness of 0 to 1: {self}")

    @property
    def plain(self) -> bool:
        """Whether it leaves the matte alone."""
        return self == Edge()


class Upsampler:
    """Brings small mattes to the size of their frames. Remembers the grid's Y, U and V, so that noise does not make
    the fit flicker where nothing moves, as long as it is told the times. One thread at a time."""

    def __init__(self, *, edge: Edge | None = None, guided: bool = True) -> None:
        """edge: see `Edge`. guided: False leaves the bilinear matte as it is, but for `edge`."""
        self._edge = edge or Edge()
        self._guided = guided
        self._seen: list[Array] = []
        self._given: Array | None = None  # the matte before, without `edge`; None: no past
        self._time: float | None = None
        self._scratch = Scratch()

    def reset(self) -> None:
        """Forgets the past: to be called at a scene cut."""
        self._time = None

    def __call__(self, matte: Array, planes: tuple[Array, ...], seconds: float | None = None) -> Array:
        """uint8 (H, W), a new array that is only to be read: the matte at the size of the luma plane, 0 background to
        255 person.

        matte: float32 (h, w) in 0..1, covering the frame. planes: the frame's; luma uint8, or uint16 of 10 bits.
        seconds: presentation time, which runs on from call to call (else the past is forgotten); None: a picture of
        its own. Raises ValueError for another matte."""
        if matte.ndim != 2 or matte.dtype != np.float32:
            raise ValueError(f"a small matte is float32 (h, w), not {matte.dtype} {matte.shape}")
        luma = planes[0]
        height, width = luma.shape
        small = cv2.convertScaleAbs(matte, alpha=255)
        alpha = _enlarged(small, width, height)
        if self._guided and min(width, height) >= 16:
            self._follow(matte, small, planes, alpha, self._since(seconds, alpha.shape))
            self._given = alpha
        return alpha if self._edge.plain else shaped(alpha, self._edge)

    def _since(self, seconds: float | None, shape: tuple[int, ...]) -> float | None:
        """Seconds since the picture before; None, and the past forgotten, where there is no such."""
        elapsed = None if seconds is None or self._time is None else seconds - self._time
        self._time = seconds
        if self._given is None or self._given.shape != shape or elapsed is None or not 0 <= elapsed <= GAP:
            self._given, self._seen = None, []
            return None
        return elapsed

    def _follow(
        self, matte: Array, small: Array, planes: tuple[Array, ...], alpha: Array, elapsed: float | None
    ) -> None:
        """Adds to `alpha`, in the band, what the fit says more than the bilinear matte; and tells of its cells. small:
        the matte in codes of 255."""
        luma = planes[0]
        grid = Grid.over(luma.shape[1], luma.shape[0], CELLS, even=True)
        top = 255 if luma.dtype == np.uint8 else 1023
        radius = max(1, round(max(grid.shape) * RADIUS))
        p = grid.sampled(matte)
        window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
        spread = cv2.subtract(cv2.dilate(p, window), cv2.erode(p, window))
        band = cv2.threshold(spread, BAND[0], 1, cv2.THRESH_BINARY)[1].astype(np.uint8)
        x, y, w, h = cv2.boundingRect(band)
        cells = self._calmed(_cells(grid, planes, top), elapsed)  # also of a picture without an edge: it is the past
        ends = _Ends(*_reached(small, grid), p.copy())
        if not w:
            EDGES.tell(alpha, Edges(grid, *edge_of(ends.most, ends.least), ends.share))
            return
        # The fit looks two windows far, from the cells of the band; the rest of the grid is left out.
        reach = 2 * radius + 1
        box = np.s_[max(0, y - reach) : y + h + reach, max(0, x - reach) : x + w + reach]
        guides = [c[box] for c in cells]
        share, inside = ramp(spread[box], *BAND), p[box]
        slope, offset = fit(guides, inside, radius, (EPSILON, EPSILON_CHROMA), self._scratch)
        # alpha + share * (CONTRAST * (slope * luma + offset - 0.5) + 0.5 - p): both terms are 0 outside the band,
        # and so is what is added there.
        rise, base = np.zeros_like(p), np.zeros_like(p)
        cv2.multiply(slope, share, rise[box], CONTRAST * 255 / top)
        offset = cv2.addWeighted(offset, CONTRAST, inside, -1.0, 0.5 - CONTRAST / 2)
        cv2.multiply(offset, share, base[box], 255.0)
        sure = _sure(guides[0], rise[box], base[box], _Ends(*(e[box] for e in ends)), top)
        band[box][sure] = 0
        follow(grid, cv2.dilate(band, _THREE), luma, alpha, self._given, (rise, base), LEAST, ends)
        EDGES.tell(alpha, Edges(grid, *edge_of(ends.most, ends.least), ends.share))

    def _calmed(self, cells: list[Array], elapsed: float | None) -> list[Array]:
        """Y, U and V of the grid's cells, averaged over the time in which they have not changed."""
        if elapsed is None or not self._seen:
            self._seen = cells
            return cells
        y, u, v = (cv2.absdiff(c, s) for c, s in zip(cells, self._seen, strict=True))
        change = cv2.blur(cv2.max(y, cv2.max(u, v)), (5, 5))
        weight = np.maximum(ramp(change, *MOVED), np.float32(1 - math.exp(-elapsed / STILL)))
        self._seen = [s + weight * (c - s) for c, s in zip(cells, self._seen, strict=True)]
        return self._seen


def _cells(grid: Grid, planes: tuple[Array, ...], top: int) -> list[Array]:
    """Y, U and V, a mean for each cell, float32 in 0..1 of the top code."""
    luma, u, v = planes[:3]
    kx, ky = 1 if u.shape[1] == luma.shape[1] else 2, 1 if u.shape[0] == luma.shape[0] else 2
    cells = grid.means(luma), grid.chroma_means(u, kx, ky), grid.chroma_means(v, kx, ky)
    MEANS.tell(luma, Means(grid, cells))
    return [np.multiply(c, np.float32(1 / top), dtype=np.float32) for c in cells]


class _Ends(NamedTuple):
    """Of a matte, in each cell of the grid: the least value and the greatest (uint8), and the mean (float32, 0..1)."""

    least: Array
    most: Array
    share: Array


def _sure(luma: Array, rise: Array, base: Array, ends: _Ends, top: int) -> Array:
    """bool, like luma: the cells full of 0 or of 255 that stay so, a third of the band. luma: 0..1. Pixels are taken to
    lie off their cell's mean luma by half the range of the means around it, and by noise; what is further off there,
    finer than a cell and where the small matte knows of no edge, is taken for texture and not followed."""
    change = cv2.add(cv2.multiply(rise, luma, scale=top), base)
    spread = cv2.subtract(cv2.dilate(luma, _THREE), cv2.erode(luma, _THREE))
    steep = np.abs(rise)
    slack = cv2.scaleAdd(steep, NOISE * top, cv2.multiply(steep, spread, scale=top / 2))
    return np.asarray(((ends.most == 0) & (change < -slack)) | ((ends.least == 255) & (change > slack)))


def _reached(small: Array, grid: Grid) -> tuple[Array, Array]:
    """(the least, the greatest) values of a small picture (uint8) that its enlargement can have in each cell."""
    (ys, high), (xs, wide) = reach(small.shape, grid)
    window = np.ones((high, wide), np.uint8)
    least, most = (np.ascontiguousarray(step(small, window)[ys][:, xs]) for step in (cv2.erode, cv2.dilate))
    return least, most


def reach(shape: tuple[int, ...], grid: Grid) -> list[tuple[Array, int]]:
    """For rows and columns of a small picture: (the samples in the middles of the grid's cells, how many samples around
    those the enlargement of a cell may see)."""
    found = []
    for samples, count, size in zip(shape, grid.shape, (grid.height, grid.width), strict=True):
        half = grid.scale / 2 * samples / size
        middle = (2 * np.arange(count) + 1) * half - 0.5
        at = np.clip(np.rint(middle), 0, samples - 1).astype(np.intp)
        found.append((at, 2 * math.ceil(half + 1) + 1))
    return found


def _enlarged(small: Array, width: int, height: int) -> Array:
    """A new uint8 (height, width): a small matte enlarged bilinearly; only where it is not 0."""
    h, w = small.shape
    left, top, wide, high = cv2.boundingRect(small)
    if not wide:
        return np.zeros((height, width), np.uint8)
    # One sample more on every side, and as far as samples and pixels begin together again.
    (y0, y1, sy0, sy1), (x0, x1, sx0, sx1) = (
        (max(0, a - 1) // n * n, min(-(-(a + size + 1) // n) * n, total), m, n)
        for a, size, total, n, m in (
            (top, high, h, h // math.gcd(h, height), height // math.gcd(h, height)),
            (left, wide, w, w // math.gcd(w, width), width // math.gcd(w, width)),
        )
    )
    ys, xs = slice(y0 // sy1 * sy0, y1 // sy1 * sy0), slice(x0 // sx1 * sx0, x1 // sx1 * sx0)
    out = np.zeros((height, width), np.uint8)
    size = xs.stop - xs.start, ys.stop - ys.start
    cv2.resize(small[y0:y1, x0:x1], size, out[ys, xs], interpolation=cv2.INTER_LINEAR)
    return out


def shaped(alpha: Array, edge: Edge) -> Array:
    """uint8 (H, W), a new array: the matte with another edge, see `Edge`. Worked on in tiles around the edge."""
    height, width = alpha.shape
    unit = min(height, width) / 1080
    shift, sigma = edge.shift * unit, edge.feather * unit * FEATHER
    reach = math.ceil(abs(shift)) + math.ceil(3 * sigma) + 1
    table = np.clip((np.arange(256) - 127.5) / max(1 - edge.hardness, 1e-3) + 127.5, 0, 255)
    grid = Grid.over(width, height, CELLS)
    share = grid.means(cv2.inRange(alpha, 1, 255))
    full = grid.means(cv2.inRange(alpha, 0, 254))
    cells = 2 * -(-reach // grid.scale) + 1
    window = np.ones((cells, cells), np.uint8)
    needed = cv2.min(cv2.dilate(share, window), cv2.dilate(full, window))
    out = alpha.copy()
    for tile in grid.tiles(needed):
        ys, xs = tile.pixels()
        top, left = max(0, ys.start - reach), max(0, xs.start - reach)
        part = alpha[top : ys.stop + reach, left : xs.stop + reach]
        part = _shifted(part, shift)
        if edge.feather:
            part = _feathered(part, sigma)
        if edge.hardness:
            part = cv2.LUT(part, np.rint(table).astype(np.uint8))
        out[ys, xs] = part[ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
    return out


def _feathered(part: Array, sigma: float) -> Array:
    """Blurred with that deviation: a Gaussian, or two boxes of odd widths, which are quick however wide they are."""
    if sigma < 3:
        side = 2 * math.ceil(3 * sigma) + 1
        return np.asarray(cv2.GaussianBlur(part, (side, side), sigma))
    first = math.floor((math.sqrt(6 * sigma**2 + 1) - 1) / 2) * 2 + 1  # a box of width w has (w^2 - 1) / 12
    second = round((math.sqrt(12 * sigma**2 + 2 - first**2) - 1) / 2) * 2 + 1
    return np.asarray(cv2.blur(cv2.blur(part, (first, first)), (second, second)))


def _shifted(part: Array, pixels: float) -> Array:
    """Grown by that many pixels in every direction, or shrunk; fractions are mixed from the two whole numbers."""
    whole = math.floor(abs(pixels))
    rest = abs(pixels) - whole
    step = cv2.dilate if pixels > 0 else cv2.erode
    while whole > 0:  # a large disc is made of small ones
        r = min(whole, 5)
        part = step(part, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)))
        whole -= r
    if rest > 0.01:
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        part = cv2.addWeighted(step(part, cross), rest, part, 1 - rest, 0)
    return np.asarray(part)
