"""The matte's edge at full size, see `edge.c`. Used by `rtbg.upsampling`, `rtbg.foreground` and `rtbg.composite`.

A grid's cells are squares of an even number of pixels, or of any for unreduced chroma (`rtbg.grid`); cells that are not
needed are not looked at. Memory bound: 128 kB for each thread that calls.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import Structure, byref, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from rtbg.frame import Array
from rtbg.native import address, function, line, matches, writable

if TYPE_CHECKING:
    from rtbg.grid import Grid

LONGEST_SIDE = 2048  # of a cell, in pixels
ROOM = 1 << 17  # bytes, more than a `Room` of edge.c has

_THREAD = threading.local()
_FOUND = (np.uint8, np.uint8, np.float32)  # of `follow`


class Plane(Structure):
    """`Plane` of edge.c."""

    _fields_ = (("at", c_void_p), ("line", c_int64), ("width", c_int64), ("height", c_int64))


class Follow(Structure):
    """`Follow` of edge.c."""

    _fields_ = (
        ("room", c_void_p),
        *((name, c_int64) for name in ("side", "columns", "rows")),
        ("needed", c_void_p),
        *((name, Plane) for name in ("luma", "alpha", "before")),
        *((name, c_void_p) for name in ("rise", "base")),
        ("least", c_int64),
        *((name, c_void_p) for name in ("lowest", "highest", "share")),
    )


class Paint(Structure):
    """`Paint` of edge.c."""

    _fields_ = (
        ("room", c_void_p),
        *((name, c_int64) for name in ("side", "columns", "rows")),
        ("needed", c_void_p),
        ("alpha", Plane),
        *((name, Plane * 3) for name in ("picture", "behind", "out")),
        *((name, c_void_p * 3) for name in ("person", "apart")),
        *((name, c_int64) for name in ("across", "down", "top")),
    )


class Copy(Structure):
    """`Copy` of edge.c."""

    _fields_ = (
        *((name, c_int64) for name in ("side", "columns", "rows")),
        ("full", c_void_p),
        *((name, Plane * 3) for name in ("picture", "behind", "out")),
        *((name, c_int64) for name in ("across", "down")),
    )


def follow(
    grid: Grid,
    needed: Array,
    luma: Array,
    alpha: Array,
    before: Array | None,
    values: tuple[Array, Array],
    least: int,
    found: tuple[Array, Array, Array],
) -> None:
    """In place, alpha + rise * luma + base in the cells that are needed, in whole codes from 0 to 255; rise and base
    are brought from the cells to the pixels bilinearly, and the luma is calmed by a 5x5 Gaussian: a sensor's noise,
    times the slope, would make the edge flicker, and so would rounding.

    needed: uint8 (rows, columns), not 0 where it is. luma: uint8, or uint16; alpha, and `before`, the matte before,
    of which a soft pixel that has changed by `least` codes at most keeps what it had: uint8 (H, W). values: rise, for
    codes of luma, and base, float32 (rows, columns). found: of those cells the least and the greatest values (uint8)
    and the mean in 0..1 (float32) are written there. Raises ValueError for other arrays, MattingError without native
    code."""
    rows, columns = _checked(grid, needed)
    shape = grid.height, grid.width
    _codes(luma)
    matches(luma, shape, luma.dtype)
    for matte in (alpha,) if before is None else (alpha, before):
        matches(matte, shape, np.uint8)
    for cells, dtype in ((values[0], np.float32), (values[1], np.float32), *zip(found, _FOUND, strict=True)):
        matches(cells, (rows, columns), dtype, whole=True)
    for result in (alpha, *found):
        writable(result)
    given = Follow(
        _room(), grid.scale, columns, rows, address(needed), _plane(luma), _plane(alpha), _plane(before),
        *map(address, values), least, *map(address, found),
    )  # fmt: skip
    _call("follow", luma.dtype, given)


def paint(
    grid: Grid,
    needed: Array,
    alpha: Array,
    picture: Sequence[Array],
    out: Sequence[Array],
    *,
    chroma: tuple[int, int],
    own: tuple[Sequence[Array], Sequence[Array]] | None = None,
    behind: Sequence[Array] | None = None,
) -> None:
    """Writes the cells that are needed of Y, U and V into `out`: the picture in the person's own colours, or blended by
    alpha over what is `behind`, or both.

    needed: as for `follow`. alpha: uint8 (H, W). picture, out, behind: planes of one dtype, uint8 or uint16; the
    latter hold codes up to 1023. chroma: as `Frame.chroma`. own: of each plane the mean colours of the person, and
    these less the background's, float32 (rows, columns). Chroma is blended with alpha as `color.subsample` brings it
    there, but not rounded to codes. With the means f of the person and b of the background Forte's estimate of the
    person's own colour is F = f + a (I - a f - (1 - a) b), which is I + (1 - a) (f - I) + a (1 - a) (f - b); not
    where nothing of the person is seen. Raises ValueError for other arrays, MattingError without native code."""
    rows, columns = _checked(grid, needed)
    matches(alpha, (grid.height, grid.width), np.uint8)
    if own is None and behind is None:
        raise ValueError("there is nothing to paint: neither own colours nor anything behind")
    _check_planes(grid, chroma, picture, out, behind)
    colours = [(c_void_p * 3)()] * 2
    if own is not None:
        for values in (v for of in own for v in _three(of)):
            matches(values, (rows, columns), np.float32, whole=True)
        colours = [(c_void_p * 3)(*map(address, of)) for of in own]
    given = Paint(
        _room(), grid.scale, columns, rows, address(needed), _plane(alpha),
        _planes(picture), _planes(behind), _planes(out), *colours, *chroma,
        255 if picture[0].dtype == np.uint8 else 1023,
    )  # fmt: skip
    _call("paint", picture[0].dtype, given)


def copy(
    grid: Grid,
    full: Array,
    picture: Sequence[Array],
    behind: Sequence[Array],
    out: Sequence[Array],
    chroma: tuple[int, int],
) -> None:
    """Copies Y, U and V of what is `behind` into `out`, but of the picture in the cells that are `full`.

    full: uint8 (rows, columns), not 0 where they are. picture, behind, out: planes of one dtype, uint8 or uint16.
    chroma: as `Frame.chroma`. Raises ValueError for other arrays, MattingError without native code."""
    rows, columns = _checked(grid, full)
    _check_planes(grid, chroma, picture, out, behind)
    given = Copy(grid.scale, columns, rows, address(full), _planes(picture), _planes(behind), _planes(out), *chroma)
    _call("copy", picture[0].dtype, given)


def _checked(grid: Grid, cells: Array) -> tuple[int, int]:
    if not 0 < grid.scale <= LONGEST_SIDE:
        raise ValueError(f"a cell has 1 to {LONGEST_SIDE} pixels on a side, not {grid.scale}")
    matches(cells, grid.shape, np.uint8, whole=True)
    return grid.shape


def _codes(plane: Array) -> None:
    if plane.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"planes are uint8 or uint16, not {plane.dtype}")


def _three(arrays: Sequence[Array]) -> Sequence[Array]:
    if len(arrays) < 3:
        raise ValueError(f"there are to be three, Y, U and V, not {len(arrays)}")
    return arrays[:3]


def _check_planes(
    grid: Grid, chroma: tuple[int, int], picture: Sequence[Array], out: Sequence[Array], behind: Sequence[Array] | None
) -> None:
    _codes(picture[0])
    across, down = chroma
    if not {across, down} <= {1, 2} or grid.scale % across or grid.scale % down:
        raise ValueError(f"cells of {grid.scale} pixels have no whole samples of chroma reduced by {chroma}")
    small = -(-grid.height // down), -(-grid.width // across)
    for planes in (picture, out) if behind is None else (picture, out, behind):
        for plane, shape in zip(_three(planes), ((grid.height, grid.width), small, small), strict=True):
            matches(plane, shape, picture[0].dtype)
    for plane in out[:3]:
        writable(plane)


def _plane(array: Array | None) -> Plane:
    if array is None:
        return Plane()
    height, width = array.shape
    return Plane(address(array), line(array), width, height)


def _planes(planes: Sequence[Array] | None) -> Any:
    return (Plane * 3)(*map(_plane, planes[:3])) if planes is not None else (Plane * 3)()


def _room() -> int:
    """Memory for one call, each thread's own."""
    room: Array | None = getattr(_THREAD, "room", None)
    if room is None:
        room = _THREAD.room = np.empty(ROOM, np.uint8)
    return address(room)


def _call(name: str, dtype: Any, given: Structure) -> None:
    function(f"{name}_{8 if dtype == np.uint8 else 16}")(byref(given))
