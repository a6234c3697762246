"""A coarse grid of whole cells laid over a frame, and the tiles of it that a step has to work on.

What `rtbg.upsampling` and `rtbg.foreground` share: estimates are made once per cell, a square of `scale` pixels, and
brought to full size only in those cells (`rtbg.native`), or tiles of them, where something is to be done.
Memory bound: nothing kept but what a `Scratch` is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from rtbg.frame import Array
from rtbg.known import Known, halved

# Cells on the longer side. More follow finer hair (240: Grad lower by 4 %), at twice the cost.
CELLS = 160
TILE = 12  # cells on a side


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells of `scale` by `scale` pixels over a picture of `width` by `height`; the last ones may hang over."""

    width: int
    height: int
    scale: int

    @classmethod
    def over(cls, width: int, height: int, cells: int, *, even: bool = False) -> Grid:
        """The grid of about that many cells on the longer side; even: whole samples of subsampled chroma too."""
        step = 2 if even else 1
        return cls(width, height, max(step, step * round(max(width, height) / cells / step)))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return -(-self.height // self.scale), -(-self.width // self.scale)

    def means(self, plane: Array) -> Array:
        """The mean of each cell of a plane (H, W), rounded or float32; cells that hang over: of what they hold."""
        s = self.scale
        if s == 1:
            return plane
        h, w = self.height // s * s, self.width // s * s
        if (h, w) == plane.shape:
            return _whole(plane, s)
        out = np.empty(self.shape, np.float32)
        if h and w:
            out[: h // s, : w // s] = _whole(plane[:h, :w], s)
        area = cv2.INTER_AREA
        if h < self.height and w:
            out[-1:, : w // s] = cv2.resize(plane[h:, :w], (w // s, 1), interpolation=area)
        if w < self.width and h:
            out[: h // s, -1:] = cv2.resize(plane[:h, w:], (1, h // s), interpolation=area)
        if h < self.height and w < self.width:
            out[-1, -1] = plane[h:, w:].mean()
        return out

    def chroma_means(self, plane: Array, kx: int, ky: int) -> Array:
        """As `means`, of a chroma plane subsampled by kx and ky (1 or 2), for an even scale where one is 2."""
        s, (rows, columns) = self.scale, self.shape
        if kx == ky:
            return Grid(plane.shape[1], plane.shape[0], s // kx).means(plane)
        return np.asarray(cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA))

    def sampled(self, small: Array) -> Array:
        """float32: a small picture that covers the frame, seen at the middles of the cells (bilinear)."""
        rows, columns = self.shape
        h, w = small.shape
        if self.height % self.scale == 0 and self.width % self.scale == 0:
            return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR))
        fx, fy = w * self.scale / self.width, h * self.scale / self.height
        m = np.array([[fx, 0, 0.5 * fx - 0.5], [0, fy, 0.5 * fy - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(small, m, (columns, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def edge(self, alpha: Array) -> tuple[Array, Array]:
        """(nonzero in the cells in which a matte (uint8 (H, W)) is neither 0 everywhere nor 255 everywhere, counting
        the column on their left, which chroma looks at; nonzero in the other cells in which it is 255), uint8 (rows,
        columns)."""
        s, (rows, columns) = self.scale, self.shape
        edge, full = np.zeros((rows, columns), np.uint8), np.zeros((rows, columns), np.uint8)
        x, y, w, h = cv2.boundingRect(alpha)
        if not w:
            return edge, full
        # Whole cells around all that is not 0, and one more on both sides: neighbours across their border.
        top, left = y // s, max(0, x // s - 1)
        bottom, right = -(-(y + h) // s), min(columns, -(-(x + w) // s) + 1)
        alpha = alpha[top * s : bottom * s, left * s : right * s]
        high, wide = bottom - top, right - left
        below, beside = high * s - alpha.shape[0], wide * s - alpha.shape[1]
        if below or beside:
            alpha = cv2.copyMakeBorder(alpha, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        ends = []
        for end in (np.maximum, np.minimum):
            lines = end.reduce(alpha.reshape(high, s, wide * s), axis=1)
            ends.append(cv2.transpose(end.reduce(cv2.transpose(lines).reshape(wide, s, high), axis=1)))
        box = np.s_[top:bottom, left:right]
        edge[box], full[box] = edge_of(*ends)
        return edge, full

    def means_in(self, box: tuple[slice, slice], plane: Array, kx: int = 1, ky: int = 1) -> Array:
        """`means` or `chroma_means` of the cells in a box of them alone."""
        s, (rows, columns) = self.scale, box
        height, width = min(rows.stop * s, self.height), min(columns.stop * s, self.width)
        part = Grid(width - columns.start * s, height - rows.start * s, s)
        plane = plane[rows.start * s // ky : -(-height // ky), columns.start * s // kx : -(-width // kx)]
        return part.means(plane) if kx * ky == 1 else part.chroma_means(plane, kx, ky)

    def tiles(self, needed: Array) -> Iterator[Tile]:
        """Runs of tiles that hold a cell that is `needed` (uint8 (rows, columns), nonzero), one at a time from the
        top left; each pixel in one of them at most."""
        rows, columns = self.shape
        high, wide = -(-rows // TILE), -(-columns // TILE)
        marked = np.zeros((high * TILE, wide * TILE), bool)
        marked[:rows, :columns] = needed
        # One column of False on each side, so that every run has a beginning and an end.
        active = np.zeros((high, wide + 2), np.int8)
        active[:, 1:-1] = np.any(marked.reshape(high, TILE, wide, TILE), axis=(1, 3))
        for y in range(high):
            edges = np.flatnonzero(np.diff(active[y]))
            for x0, x1 in zip(edges[::2], edges[1::2], strict=True):
                yield Tile(self, y * TILE, min(rows, (y + 1) * TILE), int(x0) * TILE, min(columns, int(x1) * TILE))


@dataclass(frozen=True, slots=True)
class Tile:
    """Cells [top, bottom) x [left, right) of a grid."""

    grid: Grid
    top: int
    bottom: int
    left: int
    right: int

    def patch(self, kx: int = 1, ky: int = 1) -> Patch:
        """Its part of a plane, of chroma subsampled by kx and ky where given (scale a multiple)."""
        g = self.grid
        rows, columns = g.shape
        sy, sx = g.scale // ky, g.scale // kx
        h, w = -(-g.height // ky), -(-g.width // kx)
        # One cell more on each side, for the interpolation; at the frame's border OpenCV repeats the last one.
        t, b = max(0, self.top - 1), min(rows, self.bottom + 1)
        le, r = max(0, self.left - 1), min(columns, self.right + 1)
        y0, y1, x0, x1 = self.top * sy, min(h, self.bottom * sy), self.left * sx, min(w, self.right * sx)
        inner = slice(y0 - t * sy, y1 - t * sy), slice(x0 - le * sx, x1 - le * sx)
        size = ((r - le) * sx, (b - t) * sy)
        return Patch((slice(y0, y1), slice(x0, x1)), (slice(t, b), slice(le, r)), size, inner)

    def pixels(self) -> tuple[slice, slice]:
        """Its part of a full-size plane (rows, columns)."""
        return self.patch().pixels


class Patch(NamedTuple):
    """A tile's part of a plane: worked out once for all that is done there."""

    pixels: tuple[slice, slice]
    cells: tuple[slice, slice]  # those of the tile, and one more on each side
    size: tuple[int, int]  # of these in pixels (width, height)
    inner: tuple[slice, slice]  # the tile in them

    def enlarged(self, cells: Array) -> Array:
        """Values of all cells (rows, columns), brought to the pixels of this patch bilinearly: as the enlargement of
        the whole would be, there. A view of a new array, in the dtype of `cells`."""
        return np.asarray(cv2.resize(cells[self.cells], self.size, interpolation=cv2.INTER_LINEAR)[self.inner])


class Scratch:
    """Arrays kept from call to call. To allocate and free half a megabyte for each step of a computation can cost
    more than the step: where the allocator gives the memory back, the system clears every page again."""

    def __init__(self) -> None:
        self._kept: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> Array:
        """Contiguous, with whatever is in it: the memory kept under that name, which stands for one dtype."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size or kept.dtype != dtype:
            kept = self._kept[name] = np.empty(size, dtype)
        return kept[:size].reshape(shape)


class Edges(NamedTuple):
    """What a matte is like in the cells of a grid, each (rows, columns). edge and full: as `Grid.edge` gives them, but
    for soft cells too many; share: float32, its mean in 0..1."""

    grid: Grid
    edge: Array
    full: Array
    share: Array


class Means(NamedTuple):
    """The means of Y, U and V in the cells of a grid, as `Grid.means` gives them."""

    grid: Grid
    means: tuple[Array, ...]


EDGES: Known[Edges] = Known()  # by matte
MEANS: Known[Means] = Known()  # by luma plane


def edge_of(most: Array, least: Array) -> tuple[Array, Array]:
    """What `Grid.edge` gives, of the greatest and the least values of a matte in each cell."""
    two = np.ones((1, 2), np.uint8)
    edge = cv2.min(cv2.dilate(most, two, anchor=(1, 0)), cv2.bitwise_not(cv2.erode(least, two, anchor=(1, 0))))
    return np.asarray(edge), np.where(edge == 0, most, np.uint8(0))


def _whole(plane: Array, s: int) -> Array:
    """Means of s by s pixels of a plane that holds whole ones. OpenCV's INTER_AREA has SIMD for a factor of 2 only:
    the box filter does better for 3."""
    while s % 2 == 0:
        if s == 2:  # OpenCV rounds halves up, each time
            plane = plane.astype(np.float32, copy=False)
        plane = halved(plane)
        s //= 2
    if s == 1:
        return plane
    if s == 3:
        return np.ascontiguousarray(cv2.blur(plane, (3, 3))[1::3, 1::3])
    return np.asarray(cv2.resize(plane, (plane.shape[1] // s, plane.shape[0] // s), interpolation=cv2.INTER_AREA))


def ramp(values: Array, low: float, high: float, out: Array | None = None) -> Array:
    """float32, in `out` where given: 0 up to low, 1 from high on, straight in between; low may be the greater."""
    way = np.multiply(values, np.float32(1 / (high - low)), out=out)
    way -= np.float32(low / (high - low))
    return np.asarray(np.clip(way, 0, 1, out=way))
