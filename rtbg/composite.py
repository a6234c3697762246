"""Puts the person over the background: the last step before a frame leaves.

Used by `rtbg.pipeline`. Everything is a few passes of OpenCV's integer SIMD per plane, with the weights `a` and
`255 - a`, so that the offsets of limited range survive; where nobody is, rows are only copied.
Memory bound: a chunk of cells (`rtbg.grid`), and the planes given out.
"""

from __future__ import annotations

import cv2
import numpy as np

from rtbg.color import is_full, subsample_sums, top_code
from rtbg.errors import UsageError
from rtbg.foreground import Foreground, Own
from rtbg.frame import Array, Frame
from rtbg.grid import CELLS, EDGES, Grid, Picked
from rtbg.options import SHOWS

STRIP = 8  # rows of cells


class Compositor:
    """`composite` with scratch buffers kept from frame to frame. For one thread at a time."""

    def __init__(self, *, show: str = "composite", foreground: Foreground | None = None) -> None:
        """show: one of `options.SHOWS`. foreground: estimates the person's own colours at the edge first; None: the
        camera's are taken. Raises UsageError."""
        if show not in SHOWS:
            raise UsageError(f"show is {', '.join(SHOWS[:-1])} or {SHOWS[-1]}, not {show!r}")
        self._show = show
        self._foreground = foreground
        self._scratch: dict[tuple[str, type], Array] = {}

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
        if any(b.shape != p.shape or b.dtype != p.dtype for p, b in zip(frame.planes, background, strict=False)):
            raise ValueError(f"the background {[b.shape for b in background]} does not have the planes of {frame!r}")
        return frame.with_planes(self._over(frame, alpha, background, own))

    def _over(self, frame: Frame, alpha: Array, background: tuple[Array, ...], own: Own | None) -> tuple[Array, ...]:
        """Copies of either side where the matte has no edge, then the cells that hold its edge."""
        grid = own.cells.grid if own else Grid.over(frame.width, frame.height, CELLS, even=True)
        known = EDGES.of(alpha)
        edge, full = (known.edge, known.full) if known and known.grid == grid else grid.edge(alpha)
        steps = (1, 1), frame.chroma, frame.chroma
        done = _copied(frame.planes[:3], background[:3], full, grid, steps)
        for chunk in Picked.where(grid, edge).chunks():
            around = chunk.parts(alpha, around=1)
            share = np.ascontiguousarray(around[1:-1, 1:-1])
            fronts = own.parts(chunk, share) if own else None
            weights = self._weights(share, around, frame)
            for k, ((part, total), step) in enumerate(zip(weights, steps, strict=True)):
                front = chunk.parts(frame.planes[k], *step) if fronts is None else fronts[k]
                made = self._like("made", front)
                shape = -1, len(chunk)
                behind = chunk.parts(background[k], *step)
                self._blend(
                    front.reshape(shape), behind.reshape(shape), part.reshape(shape), total, made.reshape(shape)
                )
                chunk.put(made, done[k], *step)
        return done

    def _weights(self, share: Array, around: Array, frame: Frame) -> tuple[tuple[Array, int], ...]:
        """(weights, the weight that means 1) for each plane, as (height, width, cells). share: the matte's; around:
        the same with a pixel more on every side."""
        luma = share
        if frame.bits == 10:
            luma = self._like("wide", share, np.uint16)
            np.copyto(luma, share)
        kx, ky = frame.chroma
        if (kx, ky) == (1, 1):
            return ((luma, 255),) * 3
        # As `color.subsample_sums`, which needs neighbours side by side in memory; here the cells are.
        sums = around[1:-1].astype(np.uint16)
        if ky == 2:
            sums = sums[0::2] + sums[1::2]
        if kx == 2:
            sides = sums[:, 0:-2:2] + sums[:, 2::2]
            sums = sides + sums[:, 1:-1:2] * np.uint16(2)
        else:
            sums = np.ascontiguousarray(sums[:, 1:-1])
        total = ky * (4 if kx == 2 else 1)
        if frame.bits == 10:
            return (luma, 255), (sums, 255 * total), (sums, 255 * total)
        chroma = cv2.convertScaleAbs(sums.reshape(-1, sums.shape[-1]), alpha=1 / total).reshape(sums.shape)
        return (luma, 255), (chroma, 255), (chroma, 255)

    def _blend(self, front: Array, behind: Array, weights: Array, total: int, out: Array) -> None:
        """out = (front * weights + behind * (total - weights)) / total, to nearest; with 8 bits each product is."""
        if front.dtype == np.uint16:  # of 10 bits: the difference fits 16, and one product does for two
            way = self._like("part", front, np.int16)
            back, made = behind.view(np.int16), out.view(np.int16)
            cv2.subtract(front.view(np.int16), back, way)
            cv2.multiply(way, weights.view(np.int16), way, 1 / total)
            np.add(back, way, out=made)
            return
        rest = self._like("rest", weights)
        np.subtract(weights.dtype.type(total), weights, out=rest)
        part = self._like("part", front)
        cv2.multiply(front, weights, part, 1 / total)
        cv2.multiply(behind, rest, out, 1 / total)
        cv2.add(part, out, out)

    def _like(self, name: str, array: Array, dtype: type | None = None) -> Array:
        """A scratch array of the shape of `array`, kept under a name."""
        kind = dtype or array.dtype.type
        kept = self._scratch.get((name, kind))
        if kept is None or kept.size < array.size:
            kept = self._scratch[name, kind] = np.empty(array.size, kind)
        return kept[: array.size].reshape(array.shape)


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


def _copied(
    planes: tuple[Array, ...],
    background: tuple[Array, ...],
    full: Array,
    grid: Grid,
    steps: tuple[tuple[int, int], ...],
) -> tuple[Array, ...]:
    """Copies of the background's planes, but of the frame's in the cells that are `full`. Some rows of cells at a time,
    so that what is written twice is still in the processor's cache."""
    done = tuple(np.empty(b.shape, b.dtype) for b in background)
    rows, columns = full.shape
    edges = np.zeros((rows, columns + 2), np.int8)
    edges[:, 1:-1] = full > 0
    ys, xs = np.nonzero(np.diff(edges, axis=1))
    runs = list(zip(ys[::2].tolist(), xs[::2].tolist(), xs[1::2].tolist(), strict=True))
    for plane, behind, out, (kx, ky) in zip(planes, background, done, steps, strict=True):
        h, w = grid.scale // ky, grid.scale // kx
        k = 0
        for top in range(0, rows, STRIP):
            np.copyto(out[top * h : (top + STRIP) * h], behind[top * h : (top + STRIP) * h])
            while k < len(runs) and runs[k][0] < top + STRIP:
                y, left, right = runs[k]
                here = np.s_[y * h : (y + 1) * h, left * w : right * w]
                out[here] = plane[here]
                k += 1
    return done
