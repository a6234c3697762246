"""The person's own colours at soft edges, where the camera has mixed them with those of the old background.

A fast estimate in the manner of Forte 2021 ("Approximate Fast Foreground Colour Estimation", blur fusion): colours of
person and background are means around each cell of a coarse grid, weighted by how surely it is the one or the other;
at full size the person's colour is that mean, corrected by what the picture says more than the two means explain.
All on planes of YUV, only where 0 < alpha < 255. Used by `rtbg.composite`.

Memory bound: about twenty float32 arrays of the grid's size (about 60,000 cells), one tile, the planes given out.
"""

from __future__ import annotations

import cv2
import numpy as np

from rtbg.frame import Array
from rtbg.grid import Grid, Tile, ramp

# Cells on the longer side of the grid.
CELLS = 240
# Half-widths of the windows of the first and the second pass, as fractions of the longer side.
FAR, NEAR = 1 / 30, 1 / 160
# Mean alpha from which a cell counts as surely the person's, and below which not at all; the background's likewise.
UNSURE, SURE = 0.8, 1.0
# Half-width of the light wrap's reach, as a fraction of the longer side.
WRAP = 1 / 64

# By alpha a: how much of the way from the picture to the person's mean is gone, and how much of the distance between
# the two means is added; see `_correct`. 0 at both ends.
_A = np.arange(256, dtype=np.float32) / np.float32(255)
_TO_MEAN = np.where(_A > 0, 1 - _A, 0).astype(np.float32)
_APART = (_A * (1 - _A)).astype(np.float32)


class Foreground:
    """Estimates the person's colours. Keeps nothing from one picture to the next. One thread at a time."""

    def __init__(self, *, wrap: float = 0.0) -> None:
        """wrap: 0 to 1, how much of the new background's light spills onto the person's edge. Raises ValueError."""
        if not 0 <= wrap <= 1:
            raise ValueError(f"light wrap is from 0 to 1, not {wrap}")
        self.wrap = wrap

    def __call__(
        self, planes: tuple[Array, ...], alpha: Array, background: tuple[Array, ...] | None = None
    ) -> tuple[Array, ...]:
        """Y, U, V with the person's own colours where 0 < alpha < 255 and the given ones elsewhere, bit for bit
        (but for the light wrap, which also reaches into the person, and needs `background`, planes of the same
        shapes). The given planes are only read, and are given back themselves where there is nothing to do.

        planes: uint8, or uint16 of 10 bits; any chroma format. alpha: uint8 (H, W). A fourth plane is left out.
        Where alpha is 0 the old room stays in the planes. Raises ValueError for another matte.
        """
        luma, *chroma = planes[:3]
        height, width = luma.shape
        if alpha.shape != luma.shape or alpha.dtype != np.uint8:
            raise ValueError(f"the matte is uint8 {luma.shape}, not {alpha.dtype} {alpha.shape}")
        kx = 1 if chroma[0].shape[1] == width else 2
        ky = 1 if chroma[0].shape[0] == height else 2
        grid = Grid.over(width, height, CELLS, even=kx * ky > 1)
        share = grid.means(alpha)
        soft = cv2.inRange(share, 1, 254)  # a cell with less than half a code of softness is let go
        if not cv2.countNonZero(soft):
            return planes[:3]
        cells = [np.asarray(m, np.float32) for m in (grid.means(luma), *(grid.chroma_means(p, kx, ky) for p in chroma))]
        person, apart = colours(cells, np.multiply(share, np.float32(1 / 255), dtype=np.float32))
        done = [p.copy() for p in planes[:3]]
        for tile in grid.tiles(soft):
            part = alpha[tile.pixels()]
            ways = cv2.LUT(part, _TO_MEAN), cv2.LUT(part, _APART)
            _correct(tile, 1, 1, ways, done[0], person[0], apart[0])
            if kx * ky > 1:
                h, w = (-(-n // k) for n, k in zip(part.shape, (ky, kx), strict=True))
                part = cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA)
                ways = cv2.LUT(part, _TO_MEAN), cv2.LUT(part, _APART)
            for k in (1, 2):
                _correct(tile, kx, ky, ways, done[k], person[k], apart[k])
        if self.wrap and background is not None:
            steps = (1, 1), (kx, ky), (kx, ky)
            pairs = [(p, b, *k) for p, b, k in zip(done, background, steps, strict=False)]
            self._spill(grid, share, pairs, person)
        return tuple(done)

    def _spill(self, grid: Grid, share: Array, pairs: list[tuple[Array, Array, int, int]], person: list[Array]) -> None:
        """Light wrap, in place: the background's light, blurred, in place of the person's colour near the edge."""
        side = 2 * max(1, round(max(grid.shape) * WRAP)) + 1
        inside = np.multiply(share, np.float32(1 / 255), dtype=np.float32)
        rim = cv2.multiply(cv2.blur(1 - inside, (side, side)), inside, scale=self.wrap)
        needed = (rim > np.float32(0.004)).view(np.uint8)
        for (plane, behind, kx, ky), own in zip(pairs, person, strict=True):
            light = grid.means(behind) if kx * ky == 1 else grid.chroma_means(behind, kx, ky)
            blurred = cv2.blur(np.asarray(light, np.float32), (side, side))
            gain = cv2.multiply(cv2.subtract(blurred, own), rim)
            for tile in grid.tiles(needed):
                _add(plane[tile.pixels(kx, ky)], tile.enlarged(gain, kx, ky))


def colours(cells: list[Array], share: Array) -> tuple[list[Array], list[Array]]:
    """(the person's mean colours, those less the background's), each a list of float32 like `cells`.

    cells: float32 means of Y, U and V; share: float32 mean alpha, 0..1."""
    near, far = (2 * max(1, round(max(share.shape) * r)) + 1 for r in (NEAR, FAR))
    shares = share, 1 - share
    # First from the cells that are surely the one or the other, over the far window...
    first = [_mean(cells, ramp(s, UNSURE, SURE) + np.float32(1e-4) * s, far) for s in shares]
    # ... then every cell's own colour is corrected by that, and the near window averages what came out.
    means = []
    for weight, mine, other in zip(shares, first, first[::-1], strict=True):
        own = []
        for cell, m, o in zip(cells, mine, other, strict=True):
            rest = cell - o - weight * (m - o)
            rest *= weight
            own.append(cv2.add(m, rest))
        means.append(_mean(own, weight + np.float32(1e-4), near))
    return means[0], [cv2.subtract(f, b) for f, b in zip(*means, strict=True)]


def _mean(cells: list[Array], weight: Array, side: int) -> list[Array]:
    """Weighted means of each channel in a window of that side; where no weight is, plain zero."""
    stack = cv2.merge([*(cv2.multiply(c, weight) for c in cells), weight])
    *tops, below = cv2.split(cv2.blur(stack, (side, side)))
    below = np.maximum(below, np.float32(1e-9))
    return [cv2.divide(t, below) for t in tops]


def _correct(
    tile: Tile, kx: int, ky: int, ways: tuple[Array, Array], plane: Array, person: Array, apart: Array
) -> None:
    """In one tile of a plane, in place: F = f + a (I - a f - (1 - a) b), with the picture I and the means f of the
    person and b of the background (Forte 2021); written so that nothing happens where a is 1, as
    F = I + (1 - a) (f - I) + a (1 - a) (f - b). ways: those two factors, float32, of the tile's pixels."""
    where = tile.pixels(kx, ky)
    part = plane[where]
    way = cv2.subtract(tile.enlarged(person, kx, ky), part, dtype=cv2.CV_32F)
    way = cv2.multiply(way, ways[0])
    way = cv2.add(way, cv2.multiply(tile.enlarged(apart, kx, ky), ways[1]))
    _add(part, way)


def _add(part: Array, more: Array) -> None:
    """Adds float32 values to samples in place, rounded, within their codes."""
    if part.dtype == np.uint8:
        cv2.add(part, more, part, dtype=cv2.CV_8U)
    else:
        cv2.add(part, more, part, dtype=cv2.CV_16U)
        np.minimum(part, 1023, out=part)
