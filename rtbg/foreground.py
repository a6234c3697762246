"""The person's own colours at soft edges, where the camera has mixed them with those of the old background.

A fast estimate in the manner of Forte 2021 ("Approximate Fast Foreground Colour Estimation", blur fusion): colours of
person and background are means around each cell of a coarse grid, weighted by how surely it is the one or the other;
at full size the person's colour is that mean, corrected by what the picture says more than the two means explain.
All on planes of YUV, only where 0 < alpha < 255. Used by `rtbg.composite`, and by `rtbg.matting` where an edge is given
another shape.

Memory bound: about forty float32 arrays of the grid's size (about 14,000 cells), the planes given out.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from rtbg.frame import Array
from rtbg.grid import CELLS, EDGES, MEANS, Grid, Patch, Scratch
from rtbg.native.edge import paint
from rtbg.native.grid import colours

# Around each cell means are taken with the weights NEAR (across and down), and in windows of FAR cells. The latter
# count as FAINT, so what is near rules where it says anything at all; where neither does, the mean of all the cells
# looked at is taken.
NEAR = (0.15, 0.7, 0.15)
FAR = 13
REACH = FAR // 2 + 1
FAINT = 0.1
# Mean alpha from which a cell counts as surely the person's, and below which not at all; the background's likewise.
UNSURE, SURE = 0.8, 1.0
# How much a cell counts by its mean alpha alone.
HARDLY = 1e-6
# Half-width of the light wrap's reach, as a fraction of the longer side.
WRAP = 1 / 64

_SHARE = np.linspace(0, 1, 256, dtype=np.float32)


class Foreground:
    """Estimates the person's colours. Keeps nothing of one picture for the next. One thread at a time."""

    def __init__(self, *, wrap: float = 0.0) -> None:
        """wrap: 0 to 1, how much of the new background's light spills onto the person's edge. Raises ValueError."""
        if not 0 <= wrap <= 1:
            raise ValueError(f"light wrap is from 0 to 1, not {wrap}")
        self.wrap = wrap
        self._scratch = Scratch()

    def __call__(
        self, planes: tuple[Array, ...], alpha: Array, background: tuple[Array, ...] | None = None
    ) -> tuple[Array, ...]:
        """Y, U, V with the person's own colours where 0 < alpha < 255 and the given ones elsewhere, bit for bit
        (but for the light wrap, which also reaches into the person, and needs `background`, planes of the same
        shapes). The given planes are only read, and are given back themselves where there is nothing to do.

        planes: uint8, or uint16 of 10 bits; any chroma format. alpha: uint8 (H, W). A fourth plane is left out.
        Where alpha is 0 the old room stays in the planes. Raises ValueError for another matte.
        """
        own = self.estimate(planes, alpha)
        if own is None:
            return planes[:3]
        done = tuple(p.copy() for p in planes[:3])
        grid, chroma = own.cells.grid, own.cells.steps[1]
        paint(grid, own.edge, alpha, planes, done, chroma=chroma, own=(own.person, own.apart))
        if self.wrap and background is not None:
            self._spill(own.cells, [(p, b) for p, b in zip(done, background, strict=False)], own.person)
        return done

    def estimate(self, planes: tuple[Array, ...], alpha: Array) -> Own | None:
        """The same for those who need only the edge, valid until the next call; None where the matte has no edge."""
        cells = _Cells(planes, alpha)
        known = EDGES.of(alpha)
        edge = known.edge if known and known.grid == cells.grid else cells.grid.edge(alpha)[0]
        return Own(cells, edge, self._scratch) if cv2.countNonZero(edge) else None

    def _spill(self, cells: _Cells, pairs: list[tuple[Array, Array]], person: list[Array]) -> None:
        """Light wrap, in place: the background's light, blurred, in place of the person's colour near the edge."""
        grid = cells.grid
        side = 2 * max(1, round(max(grid.shape) * WRAP)) + 1
        inside = np.multiply(grid.means(cells.alpha), np.float32(1 / 255), dtype=np.float32)
        rim = cv2.multiply(cv2.blur(1 - inside, (side, side)), inside, scale=self.wrap)
        needed = (rim > np.float32(0.004)).view(np.uint8)
        for (plane, given), own, (kx, ky) in zip(pairs, person, cells.steps, strict=True):
            behind = given[:]  # a background may write the next picture into the same array: nothing is known of it
            light = grid.means(behind) if kx * ky == 1 else grid.chroma_means(behind, kx, ky)
            blurred = cv2.blur(np.asarray(light, np.float32), (side, side))
            gain = cv2.multiply(cv2.subtract(blurred, own), rim)
            for tile in grid.tiles(needed):
                patch = tile.patch(kx, ky)
                _add(plane[patch.pixels], patch.enlarged(gain))


class Own:
    """The person's own colours in the cells that hold the matte's edge."""

    def __init__(self, cells: _Cells, edge: Array, scratch: Scratch) -> None:
        """edge: what `Grid.edge` says first."""
        self.cells = cells
        self.edge = edge
        self.person, self.apart = cells.colours(edge, scratch)


def reshaped(planes: tuple[Array, ...], before: Array, after: Array) -> tuple[Array, ...]:
    """Y, U, V as the camera would see a person who fills the matte `after` and not `before`: wherever that is more,
    the person's colours are carried on outwards in place of the room's; wherever it is less, the
    room's inwards, for `Foreground` to find there what the matte says. Elsewhere the given ones, bit for bit.

    planes: as for `Foreground`, only read; given back themselves where nothing has changed. before, after: uint8
    (H, W). Raises ValueError for other mattes."""
    cells = _Cells(planes, before)
    if after.shape != before.shape or after.dtype != np.uint8:
        raise ValueError(f"the matte is uint8 {before.shape}, not {after.dtype} {after.shape}")
    more, less = cv2.subtract(after, before), cv2.subtract(before, after)
    needed = cv2.max(*cells.grid.edge(cv2.max(more, less)))  # no means, which a single pixel does not lift off 0
    if not cv2.countNonZero(needed):
        return planes[:3]
    person, apart = cells.colours(needed, Scratch())
    done = tuple(p.copy() for p in cells.planes)
    # A picture I of colours F and B mixed by a, I = a F + (1 - a) B, becomes one mixed by a' when (a' - a) (F - B) is
    # added. With Forte's estimate of F (see above) that is (a' - a) (f + a (f - b) - I).
    for those, patch, (up, down, own) in cells.patches(needed, more, less, before):
        way = cv2.subtract(cv2.LUT(up, _SHARE), cv2.LUT(down, _SHARE))
        both = cv2.multiply(way, cv2.LUT(own, _SHARE))
        for k in those:
            _move(patch, way, done[k], person[k])
            _add(done[k][patch.pixels], cv2.multiply(patch.enlarged(apart[k]), both))
    return done


class _Cells:
    """A picture and its matte on the coarse grid."""

    def __init__(self, planes: tuple[Array, ...], alpha: Array) -> None:
        luma, *chroma = planes[:3]
        height, width = luma.shape
        if alpha.shape != luma.shape or alpha.dtype != np.uint8:
            raise ValueError(f"the matte is uint8 {luma.shape}, not {alpha.dtype} {alpha.shape}")
        step = 1 if chroma[0].shape[1] == width else 2, 1 if chroma[0].shape[0] == height else 2
        self.planes, self.alpha = planes[:3], alpha
        self.steps = (1, 1), step, step
        self.grid = Grid.over(width, height, CELLS, even=True)

    def colours(self, needed: Array, scratch: Scratch) -> tuple[list[Array], list[Array]]:
        """(the person's mean colours, those less the background's), float32 Y, U and V of each cell; zeros far from
        the cells that are needed."""
        x, y, w, h = cv2.boundingRect(needed)
        rows, columns = self.grid.shape
        box = slice(max(0, y - REACH), min(rows, y + h + REACH)), slice(max(0, x - REACH), min(columns, x + w + REACH))
        known, matte = MEANS.of(self.planes[0]), EDGES.of(self.alpha)
        if known and known.grid == self.grid:
            means = [m[box] for m in known.means]
        else:
            means = [self.grid.means_in(box, p, *step) for p, step in zip(self.planes, self.steps, strict=True)]
        if matte and matte.grid == self.grid:
            share = matte.share[box]
        else:
            share = np.multiply(self.grid.means_in(box, self.alpha), np.float32(1 / 255), dtype=np.float32)
        found = np.zeros((2, 3, rows, columns), np.float32)
        person, apart = (list(f[:, box[0], box[1]]) for f in found)
        means = [np.asarray(m, np.float32) for m in means]
        # First from the cells that are surely the one or the other; then every cell's own colour is corrected by that,
        # and averaged with its neighbours'.
        colours(
            means, share, person, apart,
            near=NEAR[1::-1], far=FAR, weights=(FAINT, HARDLY), sure=(UNSURE, SURE), scratch=scratch,
        )  # fmt: skip
        return list(found[0]), list(found[1])

    def patches(self, needed: Array, *mattes: Array) -> Iterator[tuple[tuple[int, ...], Patch, list[Array]]]:
        """For the tiles with a cell that is needed: (planes, their patch, the mattes there at the size of these
        planes), first of Y, then of U and V."""
        kx, ky = self.steps[1]
        for tile in self.grid.tiles(needed):
            luma = tile.patch()
            parts = [m[luma.pixels] for m in mattes]
            yield (0,), luma, parts
            if kx * ky == 1:
                yield (1, 2), luma, parts
                continue
            h, w = (-(-n // k) for n, k in zip(parts[0].shape, (ky, kx), strict=True))
            parts = [np.asarray(cv2.resize(m, (w, h), interpolation=cv2.INTER_AREA)) for m in parts]
            yield (1, 2), tile.patch(kx, ky), parts


def _move(patch: Patch, way: Array, plane: Array, towards: Array) -> None:
    """In one patch of a plane, in place: that share of the way to the cells' colour, enlarged, or away from it."""
    part = plane[patch.pixels]
    step = cv2.subtract(patch.enlarged(towards), part, dtype=cv2.CV_32F)
    _add(part, cv2.multiply(step, way, step))


def _add(part: Array, more: Array) -> None:
    """Adds float32 values to samples in place, rounded, within their codes."""
    if part.dtype == np.uint8:
        cv2.add(part, more, part, dtype=cv2.CV_8U)
    else:
        cv2.add(part, more, part, dtype=cv2.CV_16U)
        np.minimum(part, 1023, out=part)
