"""A coarse grid of whole cells laid over a frame, and the tiles of it that a step has to work on.

What `rtbg.upsampling` and `rtbg.foreground` share: estimates are made once per cell, a square of `scale` pixels, and
brought to full size only in those tiles where something is to be done.
Memory bound: nothing kept but what a `Scratch` is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.lib.stride_tricks import as_strided

from rtbg.frame import Array

# Cells on the longer side. More follow finer hair (240: Grad lower by 4 %), at twice the cost.
CELLS = 160
TILE = 12  # cells on a side
BLOCK = 5  # cells on a side: with 160 of them, 16:9 pictures are whole blocks
CHUNK = 1 << 16  # pixels


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

    def edge(self, alpha: Array) -> tuple[Array, tuple[slice, slice]]:
        """(uint8 (rows, columns), nonzero in the cells in which a matte (uint8 (H, W)) is neither 0 everywhere nor 255
        everywhere, counting what lies on their left, which chroma looks at; the pixels of whole cells outside which it
        is 0)."""
        s, (rows, columns) = self.scale, self.shape
        below, right = rows * s - self.height, columns * s - self.width
        if below or right:
            alpha = cv2.copyMakeBorder(alpha, 0, below, 0, right, cv2.BORDER_REPLICATE)
        ends = []
        for end in (np.maximum, np.minimum):
            high = end.reduce(alpha.reshape(rows, s, columns * s), axis=1)
            ends.append(cv2.transpose(end.reduce(cv2.transpose(high).reshape(columns, s, rows), axis=1)))
        most, least = ends
        x, y, w, h = cv2.boundingRect(most)
        left = np.ones((1, 2), np.uint8)
        edge = cv2.min(cv2.dilate(most, left, anchor=(1, 0)), cv2.bitwise_not(cv2.erode(least, left, anchor=(1, 0))))
        return edge, (slice(y * s, min((y + h) * s, self.height)), slice(x * s, min((x + w) * s, self.width)))

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

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        """float32, contiguous, with whatever is in it: the memory kept under that name."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, np.float32)
        return kept[:size].reshape(shape)


class Blocks:
    """The squares of `BLOCK` by `BLOCK` cells that hold a cell that is needed. Their parts of a plane lie side by side
    in one array, (height, blocks * width), so that one call of OpenCV works on many: what a pixel costs is little, a
    call is not. They come in `chunks` that stay in the processor's cache."""

    def __init__(self, grid: Grid, needed: Array) -> None:
        """needed: uint8 (rows, columns)."""
        rows, columns = grid.shape
        self.grid = grid
        high, wide = -(-rows // BLOCK), -(-columns // BLOCK)
        if (high * BLOCK, wide * BLOCK) != needed.shape:
            more = high * BLOCK - rows, wide * BLOCK - columns
            needed = cv2.copyMakeBorder(needed, 0, more[0], 0, more[1], cv2.BORDER_CONSTANT, value=0)
        marked = np.maximum.reduce(needed.reshape(high, BLOCK, wide * BLOCK), axis=1)
        marked = np.maximum.reduce(marked.reshape(high, wide, BLOCK), axis=2)
        x, y, w, h = cv2.boundingRect(marked)
        self._left, self._top, self._shape = x, y, (h, w)
        ys, xs = np.nonzero(marked[y : y + h, x : x + w])
        step = max(1, CHUNK // (BLOCK * grid.scale) ** 2)
        self.chunks = [Chunk(ys[k : k + step], xs[k : k + step]) for k in range(0, len(ys), step)]

    def view(self, plane: Array, kx: int = 1, ky: int = 1, *, around: int = 0) -> Array:
        """Of a plane subsampled by kx and ky, for `taken`: (height, rows, columns, width) of blocks, with `around`
        samples of what is beside them on every side; beyond the frame's borders its last ones. The plane's own
        memory, except where something is beyond."""
        h, w = self._side(kx, ky)
        rows, columns = self._shape
        top, left = self._top * h - around, self._left * w - around
        bottom, right = top + rows * h + 2 * around, left + columns * w + 2 * around
        height, width = plane.shape
        part = plane[max(0, top) : bottom, max(0, left) : right]
        beyond = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
        if any(beyond):
            part = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        down, on = part.strides
        return as_strided(part, (h + 2 * around, rows, columns, w + 2 * around), (down, h * down, w * on, on))

    def cells(self, values: Array) -> Array:
        """The same of values of all cells, (rows, columns), with a cell more on each side: for `enlarged`."""
        rows, columns = self._shape
        high, wide = rows * BLOCK, columns * BLOCK
        top, left = self._top * BLOCK, self._left * BLOCK
        inner = values[max(0, top - 1) : top + high + 1, max(0, left - 1) : left + wide + 1]
        before = int(top == 0), int(left == 0)
        after = (high + 2 - before[0] - inner.shape[0], wide + 2 - before[1] - inner.shape[1])
        if any(before) or any(after):
            inner = cv2.copyMakeBorder(inner, before[0], after[0], before[1], after[1], cv2.BORDER_REPLICATE)
        down, on = inner.strides
        return as_strided(inner, (BLOCK + 2, rows, columns, BLOCK + 2), (down, BLOCK * down, BLOCK * on, on))

    def put(self, chunk: Chunk, parts: Array, plane: Array, kx: int = 1, ky: int = 1) -> None:
        """Writes (height, blocks * width) into a plane."""
        h, w = self._side(kx, ky)
        parts = parts.reshape(h, -1, w)
        rows, columns = self._shape
        top, left = self._top * h, self._left * w
        if top + rows * h <= plane.shape[0] and left + columns * w <= plane.shape[1]:
            part = plane[top:, left:]
            down, on = part.strides
            whole = as_strided(part, (h, rows, columns, w), (down, h * down, w * on, on))
            whole[:, chunk.ys, chunk.xs] = parts
            return
        for k, (y, x) in enumerate(zip(chunk.ys, chunk.xs, strict=True)):
            place = plane[top + y * h : top + (y + 1) * h, left + x * w : left + (x + 1) * w]
            place[...] = parts[: place.shape[0], k, : place.shape[1]]

    def enlarged(self, chunk: Chunk, cells: Array, out: tuple[Scratch, str], kx: int = 1, ky: int = 1) -> Array:
        """(height, blocks * width), float32, in memory kept under a name: what `cells` gave, brought to the pixels of
        the blocks bilinearly, as the enlargement of the whole would be there."""
        n, count = BLOCK + 2, len(chunk.ys)
        sy, sx = self.grid.scale // ky, self.grid.scale // kx
        across = cells[:, chunk.ys, chunk.xs].reshape(n * count, n)
        across = cv2.resize(across, (n * sx, n * count), interpolation=cv2.INTER_LINEAR)[:, sx:-sx]
        across = np.ascontiguousarray(across).reshape(n, -1)
        scratch, name = out
        big = scratch.array(name, (n * sy, across.shape[1]))
        return np.asarray(cv2.resize(across, big.shape[::-1], big, interpolation=cv2.INTER_LINEAR))[sy:-sy]

    def _side(self, kx: int, ky: int) -> tuple[int, int]:
        return BLOCK * self.grid.scale // ky, BLOCK * self.grid.scale // kx


class Chunk(NamedTuple):
    """Some blocks: their rows and columns."""

    ys: Array
    xs: Array

    def taken(self, view: Array) -> Array:
        """(height, blocks * width): a new array of their parts of what `Blocks.view` gave."""
        part = view[:, self.ys, self.xs]
        return part.reshape(len(part), -1)


def _whole(plane: Array, s: int) -> Array:
    """Means of s by s pixels of a plane that holds whole ones. OpenCV's INTER_AREA has SIMD for a factor of 2 only:
    the box filter does better for 3."""
    while s % 2 == 0:
        if s == 2:  # OpenCV rounds halves up, each time
            plane = plane.astype(np.float32, copy=False)
        plane = cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)
        s //= 2
    if s == 1:
        return plane
    if s == 3:
        return np.ascontiguousarray(cv2.blur(plane, (3, 3))[1::3, 1::3])
    return np.asarray(cv2.resize(plane, (plane.shape[1] // s, plane.shape[0] // s), interpolation=cv2.INTER_AREA))


def ramp(values: Array, low: float, high: float) -> Array:
    """float32: 0 up to low, 1 from high on, straight in between."""
    way = np.multiply(values, np.float32(1 / (high - low)))
    way -= np.float32(low / (high - low))
    return np.asarray(np.clip(way, 0, 1, out=way))
