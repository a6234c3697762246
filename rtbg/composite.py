"""Puts the person over the background: the last step before a frame leaves.

Used by `rtbg.pipeline`. Everything is a few passes of OpenCV's integer SIMD per plane, with the weights `a` and
`255 - a`, so that the offsets of limited range survive; where nobody is, rows are only copied.
Memory bound: two scratch planes of the frame's size, and the planes given out.
"""

from __future__ import annotations

import cv2
import numpy as np

from rtbg.color import is_full, subsample_sums, top_code
from rtbg.errors import UsageError
from rtbg.foreground import Foreground, Own
from rtbg.frame import Array, Frame
from rtbg.options import SHOWS


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
        made = self._around(frame, alpha, background, own) if own else self._over(frame, alpha, background)
        return frame.with_planes(made)

    def _over(self, frame: Frame, alpha: Array, background: tuple[Array, ...]) -> tuple[Array, ...]:
        x0, y0, x1, y1 = _box(alpha)
        if x0 == x1:
            return tuple(b.copy() for b in background[:3])
        part = alpha[y0:y1, x0:x1]
        weights = self._weights(part, part, frame)
        done = []
        for plane, behind, (part, total), (kx, ky) in zip(
            frame.planes, background, weights, ((1, 1), frame.chroma, frame.chroma), strict=False
        ):
            top, bottom, left, right = y0 // ky, -(-y1 // ky), x0 // kx, -(-x1 // kx)
            out = np.empty(plane.shape, plane.dtype)
            out[:top], out[bottom:] = behind[:top], behind[bottom:]
            out[top:bottom, :left], out[top:bottom, right:] = behind[top:bottom, :left], behind[top:bottom, right:]
            inside = np.s_[top:bottom, left:right]
            self._blend(plane[inside], behind[inside], part, total, out[inside])
            done.append(out)
        return tuple(done)

    def _around(self, frame: Frame, alpha: Array, background: tuple[Array, ...], own: Own) -> tuple[Array, ...]:
        """`_over` with the person's own colours: copies of either side where the matte has no edge, then the blocks
        that hold its edge."""
        done = tuple(b.copy() for b in background[:3])
        steps = (1, 1), frame.chroma, frame.chroma
        box, blocks = own.box, own.blocks
        mask = alpha[box]
        for k, (plane, out, (kx, ky)) in enumerate(zip(frame.planes, done, steps, strict=False)):
            if k == 1 and kx * ky > 1:
                mask = np.ascontiguousarray(mask[::ky, ::kx])
            top, left = box[0].start // ky, box[1].start // kx
            inside = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
            cv2.copyTo(plane[inside], mask, out[inside])
        sides = [(blocks.view(b, *step), out, step) for b, out, step in zip(background, done, steps, strict=False)]
        alphas = blocks.view(alpha, around=2)
        for chunk in blocks.chunks:
            around = chunk.taken(alphas)
            share = _inner(around, len(chunk.ys), 2, 2)
            weights = self._weights(share, around, frame, len(chunk.ys))
            for front, (behind, out, step), (part, total) in zip(own.parts(chunk, share), sides, weights, strict=True):
                made = self._like("made", front)
                self._blend(front, chunk.taken(behind), part, total, made)
                blocks.put(chunk, made, out, *step)
        return done

    def _weights(self, share: Array, around: Array, frame: Frame, blocks: int = 0) -> tuple[tuple[Array, int], ...]:
        """(weights, the weight that means 1) for each plane. share: the matte's; around: the same, or where it is of
        so many blocks side by side, with 2 pixels more on every side of each."""
        luma = share
        if frame.bits == 10:
            luma = self._like("wide", share, np.uint16)
            np.copyto(luma, share)
        if frame.chroma == (1, 1):
            return ((luma, 255),) * 3
        kx, ky = frame.chroma
        sums, total = subsample_sums(around, frame.chroma)
        if blocks:
            sums = _inner(sums, blocks, 2 // kx, 2 // ky)
        if frame.bits == 10:
            return (luma, 255), (sums, 255 * total), (sums, 255 * total)
        chroma = np.asarray(cv2.convertScaleAbs(sums, alpha=1 / total))
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


def _inner(parts: Array, blocks: int, x: int, y: int) -> Array:
    """Parts side by side, without x columns on both sides of each and y rows above and below."""
    inner = parts.reshape(len(parts), blocks, -1)[y : len(parts) - y, :, x:-x]
    return np.ascontiguousarray(inner).reshape(len(inner), -1)


def _box(alpha: Array) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around all alpha > 0 (all 0 where there is none), on whole chroma samples, with a column of
    zeros on each side wherever the picture goes on there: the neighbours that chroma's [1 2 1] looks at."""
    x, y, w, h = cv2.boundingRect(alpha)
    if w == 0:
        return 0, 0, 0, 0
    height, width = alpha.shape
    x0, x1 = max(0, (x - 1) // 2 * 2), min(width, (x + w + 2) // 2 * 2)
    return x0, y // 2 * 2, x1, min(height, (y + h + 1) // 2 * 2)
