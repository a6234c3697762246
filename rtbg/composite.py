"""Puts the person over the background: the last step before a frame leaves.

Used by `rtbg.pipeline`. Rows of both sides are copied; the cells that hold the matte's edge are then blended in one
pass (`rtbg.native`), with weights that add up to 1, so that the offsets of limited range survive.
Memory bound: the planes given out.
"""

from __future__ import annotations

import cv2
import numpy as np

from rtbg.color import is_full, subsample_sums, top_code
from rtbg.errors import UsageError
from rtbg.foreground import Foreground, Own
from rtbg.frame import Array, Frame
from rtbg.grid import CELLS, EDGES, Grid
from rtbg.native import load
from rtbg.native.edge import copy, paint
from rtbg.options import SHOWS


class Compositor:
    """`composite` with what its `Foreground` keeps from frame to frame. For one thread at a time."""

    def __init__(self, *, show: str = "composite", foreground: Foreground | None = None) -> None:
        """show: one of `options.SHOWS`. foreground: estimates the person's own colours at the edge first; None: the
        camera's are taken. Raises UsageError, and MattingError without native code."""
        if show not in SHOWS:
            raise UsageError(f"show is {', '.join(SHOWS[:-1])} or {SHOWS[-1]}, not {show!r}")
        load()  # what cannot run is to be told now, not picture by picture
        self._show = show
        self._foreground = foreground

    def __call__(self, frame: Frame, alpha: Array, background: tuple[Array, ...] | None) -> Frame:
        """See `composite`."""
        shape = frame.planes[0].shape
        if alpha.shape != shape or alpha.dtype != np.uint8:
            raise ValueError(f"the matte of {frame!r} is uint8 {shape}, not {alpha.dtype} {alpha.shape}")
        if self._show == "matte":
            return frame.with_planes(matte_planes(frame, alpha))
        own = None
        if self._foreground is not None:
            if background is None or self._foreground.wrap:
                behind = background if self._show == "composite" else None
                frame = frame.with_planes(self._foreground(frame.planes, alpha, behind))
            else:
                own = self._foreground.estimate(frame.planes, alpha)
        if background is None:
            return frame.with_planes((*shown_planes(frame, alpha), _at_depth(alpha, frame.bits)))
        if self._show == "foreground":
            background = black_planes(frame)
        if len(background) < 3 or any(
            b.shape != p.shape or b.dtype != p.dtype for p, b in zip(frame.planes, background, strict=False)
        ):
            raise ValueError(f"the background {[b.shape for b in background]} does not have the planes of {frame!r}")
        return frame.with_planes(self._over(frame, alpha, background, own))

    def _over(self, frame: Frame, alpha: Array, background: tuple[Array, ...], own: Own | None) -> tuple[Array, ...]:
        """Copies of either side where the matte has no edge, then the cells that hold its edge."""
        grid = own.cells.grid if own else Grid.over(frame.width, frame.height, CELLS, even=True)
        known = EDGES.of(alpha)
        edge, full = (known.edge, known.full) if known and known.grid == grid else grid.edge(alpha)
        done = tuple(np.empty(p.shape, p.dtype) for p in frame.planes[:3])
        copy(grid, full, frame.planes, background, done, frame.chroma)
        colours = (own.person, own.apart) if own else None
        paint(grid, edge, alpha, frame.planes, done, chroma=frame.chroma, own=colours, behind=background)
        return done


def composite(frame: Frame, alpha: Array, background: tuple[Array, ...] | None, *, show: str = "composite") -> Frame:
    """The frame with another background; new planes, in the frame's own format and with its time and tags.

    alpha: uint8 (H, W), 0 background to 255 person. Where it is 255 the frame comes out exactly, where it is 0
        the background; in between within one code of the exact blend. Chroma's alpha is `color.subsample`d.
    background: planes shaped as the frame's. None, for composite and foreground: transparent, the frame's own
        planes (black where alpha is 0: a player that ignores alpha must not show the room) and alpha (full range,
        at the frame's depth) as the fourth.
    show: "composite"; "foreground", the person over black; "matte", the alpha as a grey picture in the frame's
        range. A fourth plane of the frame itself is ignored. Raises UsageError for another `show`, ValueError
        for planes that do not fit together.
    """
    return Compositor(show=show)(frame, alpha, background)


def matte_planes(frame: Frame, alpha: Array) -> tuple[Array, ...]:
    """Planes of `frame`'s format that show alpha as grey: 0..255 becomes black..white of the frame's range."""
    low, high = (0, top_code(frame.bits)) if is_full(frame.color) else (16 << frame.bits - 8, 235 << frame.bits - 8)
    if frame.bits == 8:
        luma = np.asarray(cv2.convertScaleAbs(alpha, alpha=(high - low) / 255, beta=low))
    else:
        luma = _ramp(alpha, low, high)
    neutral = 128 << frame.bits - 8
    return luma, *(np.full(p.shape, neutral, p.dtype) for p in frame.planes[1:3])


def shown_planes(frame: Frame, alpha: Array) -> tuple[Array, ...]:
    """Copies of the frame's planes, black where alpha is 0; a chroma sample where it is 0 all around."""
    sums = alpha if frame.chroma == (1, 1) else subsample_sums(alpha, frame.chroma)[0]
    reached = (sums > 0).view(np.uint8)
    black = black_planes(frame)
    for plane, out, mask in zip(frame.planes, black, (alpha, reached, reached), strict=False):
        cv2.copyTo(plane, mask, out)
    return black


def black_planes(frame: Frame) -> tuple[Array, ...]:
    """Planes of `frame`'s format and range that show black."""
    step = 1 << frame.bits - 8
    codes = (0 if is_full(frame.color) else 16 * step, 128 * step, 128 * step)
    return tuple(np.full(p.shape, code, p.dtype) for p, code in zip(frame.planes, codes, strict=False))


def _at_depth(alpha: Array, bits: int) -> Array:
    """A copy of alpha as a full-range plane of that many bits."""
    return alpha.copy() if bits == 8 else _ramp(alpha, 0, top_code(bits))


def _ramp(alpha: Array, low: int, high: int) -> Array:
    """uint16: 0..255 mapped to low..high."""
    return np.asarray(cv2.LUT(alpha, np.rint(np.linspace(low, high, 256)).astype(np.uint16)))
