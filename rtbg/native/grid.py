"""Estimates in the cells of the coarse grid and in small mattes, see `grid.c`. Used by `rtbg.upsampling`,
`rtbg.foreground`, `rtbg.smoothing` and `rtbg.stillness`.

Arrays are float32 unless it says otherwise, and not empty. Memory bound: what the caller's `Scratch` keeps: four arrays
of the grid's size and a hundred rows for the fit, ten arrays for the colours, one and a sixteenth for smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from rtbg.frame import Array
from rtbg.native import address, function, line, matches, writable

if TYPE_CHECKING:
    from rtbg.grid import Scratch


class Fit(Structure):
    """`Fit` of grid.c."""

    _fields_ = (
        ("room", c_void_p),
        *((name, c_int64) for name in ("rows", "columns", "radius")),
        *(("guide", c_void_p * 3), ("p", c_void_p), ("guide_line", c_int64 * 3), ("p_line", c_int64)),
        *((name, c_float) for name in ("luma_noise", "chroma_noise")),
        *((name, c_void_p) for name in ("slope", "offset")),
    )


class Colours(Structure):
    """`Colours` of grid.c."""

    _fields_ = (
        ("room", c_void_p),
        *((name, c_int64) for name in ("rows", "columns")),
        *(("picture", c_void_p * 3), ("share", c_void_p), ("picture_line", c_int64 * 3), ("share_line", c_int64)),
        *((name, c_float) for name in ("near", "beside")),
        ("far", c_int64),
        *((name, c_float) for name in ("faint", "hardly", "unsure", "sure")),
        *((name, c_void_p * 3) for name in ("person", "apart")),
        ("line", c_int64),
    )


class Smooth(Structure):
    """`Smooth` of grid.c."""

    _fields_ = (
        ("room", c_void_p),
        *((name, c_int64) for name in ("rows", "columns")),
        *((name, c_void_p) for name in ("grey", "matte", "mean", "reference", "picture", "weight")),
        *(("still", c_float), ("astray", c_float), ("disagree", c_float * 2), ("moved", c_float * 2)),
        *((name, c_float) for name in ("times", "noise", "share")),
    )


class Blocks(Structure):
    """`Blocks` of grid.c."""

    _fields_ = (
        *(("room", c_void_p), ("plane", c_void_p)),
        *((name, c_int64) for name in ("line", "width", "height", "side")),
        *(("half", c_void_p), ("means", c_void_p)),
    )


def blocks(plane: Array, side: int, half: Array | None, scratch: Scratch) -> Array:
    """The means of a plane's blocks of side by side samples, new, float32; the last ones those of what is there.

    plane: uint8 (H, W). side: even, up to 256. half: uint8 (H / 2, W / 2), where H and W are even: the plane by area is
    written there. Raises ValueError for other arrays, MattingError without native code."""
    height, width = plane.shape
    matches(plane, (height, width), np.uint8)
    if side % 2 or not 0 < side <= 256:
        raise ValueError(f"blocks have an even side of up to 256, not {side}")
    if half is not None:
        if height % 2 or width % 2:
            raise ValueError(f"{width}x{height} has no half")
        matches(half, (height // 2, width // 2), np.uint8, whole=True)
        writable(half)
    means = np.empty((-(-height // side), -(-width // side)), np.float32)
    room = scratch.array("blocks", (2 * width + 2,), np.uint16)
    given = Blocks(
        address(room), address(plane), line(plane), width, height, side,
        None if half is None else address(half), address(means),
    )  # fmt: skip
    function("blocks")(byref(given))
    return means


def fit(
    guides: Sequence[Array], p: Array, radius: int, noise: tuple[float, float], scratch: Scratch
) -> tuple[Array, Array]:
    """(slope, offset) of the guided filter, new arrays: p as slope * luma + offset, see `rtbg.upsampling`.

    guides: Y, U and V, like p. radius: half-width of the window, at least 1. noise: added to the variances of luma and
    of chroma. Raises ValueError for other arrays, MattingError without native code."""
    shape = rows, columns = p.shape
    for array in (*guides, p):
        matches(array, shape, np.float32)
    side = 2 * radius + 1
    room = scratch.array("fit", (side * 13 * columns + 4 * rows * columns + 15 * columns + side,))
    slope, offset = np.empty(shape, np.float32), np.empty(shape, np.float32)
    given = Fit(
        address(room), rows, columns, radius, _three(guides), address(p), _lines(guides), line(p), *noise,
        address(slope), address(offset),
    )  # fmt: skip
    function("fit")(byref(given))
    return slope, offset


def colours(
    picture: Sequence[Array],
    share: Array,
    person: Sequence[Array],
    apart: Sequence[Array],
    *,
    near: tuple[float, float],
    far: int,
    weights: tuple[float, float],
    sure: tuple[float, float],
    scratch: Scratch,
) -> None:
    """Writes the person's mean colours around each cell, and these less the background's, see `rtbg.foreground`.

    picture: Y, U and V of the cells; share: their mean alpha, 0..1; person, apart: three arrays each of their shape,
    all six with lines that lie as far apart. near: weights of a cell and of each of its neighbours, across and down;
    far: width of the window whose cells count as the first of the `weights`; the second is what a cell counts by
    alpha alone. sure: alphas up to which a cell is surely not the person's, and from which it surely is. Raises
    ValueError for other arrays, MattingError without native code."""
    shape = rows, columns = share.shape
    for array in (*picture, share, *person, *apart):
        matches(array, shape, np.float32)
    for array in (*person, *apart):
        writable(array)
    if len({line(a) for a in (*person, *apart)}) > 1:
        raise ValueError("the results' lines lie as far apart in all of them")
    room = scratch.array("colours", (10 * rows * columns + 2 * columns + far,))
    given = Colours(
        address(room), rows, columns, _three(picture), address(share), _lines(picture), line(share), *near,
        far // 2, *weights, *sure, _three(person), _three(apart), line(person[0]),
    )  # fmt: skip
    function("colours")(byref(given))


def smooth(
    matte: Array,
    grey: Array,
    mean: Array,
    reference: Array,
    *,
    still: float,
    astray: float,
    disagree: tuple[float, float],
    moved: tuple[float, float],
    noise: tuple[float, float],
    share: float,
    scratch: Scratch,
) -> tuple[Array, Array]:
    """One step of `rtbg.smoothing.Smoother`: changes the mean of the mattes and that of the pictures (`reference`) in
    place; returns (the picture without its finest grain, the matte's weight), new arrays.

    grey: uint8, of matte's shape as all. still, astray: weights of the new matte where nothing moves, and where the
    mattes disagree by as much as `disagree` says. moved: codes by which the pictures differ where the new matte
    begins to gain, and where it rules; so many times the noise is taken off, but of at most so much of it (`noise`:
    times, most). share: of the new picture in their mean. Raises ValueError for other arrays, MattingError without
    native code."""
    shape = rows, columns = matte.shape
    for array, dtype in ((matte, np.float32), (grey, np.uint8), (mean, np.float32), (reference, np.float32)):
        matches(array, shape, dtype, whole=True)
    writable(mean)
    writable(reference)
    room = scratch.array("smooth", (rows * columns + 2 * columns + 4 + -(-rows // 4) * -(-columns // 4),))
    picture, weight = np.empty(shape, np.float32), np.empty(shape, np.float32)
    given = Smooth(
        address(room), rows, columns, *map(address, (grey, matte, mean, reference, picture, weight)), still, astray,
        (c_float * 2)(*disagree), (c_float * 2)(*moved), noise[0], noise[1], share,
    )  # fmt: skip
    function("smooth")(byref(given))
    return picture, weight


def _three(arrays: Sequence[Array]) -> Any:
    first, second, third = arrays  # ValueError for fewer or more
    return (c_void_p * 3)(address(first), address(second), address(third))


def _lines(arrays: Sequence[Array]) -> Any:
    return (c_int64 * 3)(*map(line, arrays))
