"""Any picture as what the live mode works on: I420 of one size, BT.601, limited range. Used by the live sources.

Measured at 1280x720 on one core, a JPEG of 92 KB as webcams send it (full range 4:2:2): decoding 2.2 ms with one
thread; to the working format 0.23 ms here (OpenCV: one pass a plane, scale and row average in one), 0.38 ms by a
table for luma, 0.57 ms (fast bilinear, off by up to 3) to 1.7 ms (accurate) by FFmpeg's scaler; decoded to BGR by
OpenCV and back to I420 costs about the same and averages chroma twice. YUYV: 0.15 ms by FFmpeg's scaler,
which has code of its own for it, 0.23 ms by OpenCV. NV12: 0.05 ms either way.
Memory: one picture.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from rtbg.color import is_full, rgb_to_yuv_matrix, subsample, tagged, weights, yuv_to_rgb_matrix
from rtbg.frame import LIMITED, SMPTE170M, UNSPECIFIED, Array, Color
from rtbg.sources.planes import PlaneReader

WORKING = Color(SMPTE170M, LIMITED)
_PACKED = ("yuyv422", "uyvy422", "yvyu422")
_SMALL = 2e-3  # of a coefficient: changes no code


class I420:
    """Turns pictures into fresh planes of `size` (width, height; both even): scaled to cover it, the middle kept,
    where they have another. mirror: left and right change places."""

    def __init__(self, size: tuple[int, int], *, mirror: bool = False) -> None:
        if size[0] % 2 or size[1] % 2 or min(size) < 2:
            raise ValueError(f"a picture of 4:2:0 has an even size, not {size[0]}x{size[1]}")
        self._size, self._mirror = size, mirror
        self._reader: PlaneReader | None = None
        self._reformatter = VideoReformatter()

    def decoded(self, frame: av.VideoFrame, assumed: Color) -> tuple[Array, ...]:
        """Planes of a picture of FFmpeg, which may be let go afterwards. assumed: for what it is not tagged with.
        Raises ValueError or av.FFmpegError where the format is not understood."""
        tags = Color(int(frame.colorspace), int(frame.color_range))
        if frame.format.name in _PACKED:
            frame = self._reformatter.reformat(frame, format="yuv420p", threads=1)
        if self._reader is None or not self._reader.fits(frame):
            self._reader = PlaneReader(frame, Color())
        color = filled(filled(self._reader.color, tags), assumed)
        return self.planes(self._reader.planes(frame), color)

    def planes(self, planes: tuple[Array, ...], color: Color) -> tuple[Array, ...]:
        """Planes of any size, subsampling and depth, in the colour that they are in; they are left as they are."""
        height, bits = planes[0].shape[0], 8 if planes[0].dtype == np.uint8 else 10
        weigh = _weights(tagged(color, height), bits)
        y, u, v = self._cropped(planes[:3])
        chroma = (self._size[1] // 2, self._size[0] // 2)
        if (y.shape[1], y.shape[0]) != self._size:
            y = _fitted(y, self._size)
        if abs(weigh[0, 1:3]).max() < _SMALL and abs(weigh[1, 2]) + abs(weigh[2, 1]) < _SMALL:
            y = _scaled(y, weigh[0, 0], weigh[0, 3])
            u = _scaled_chroma(u, chroma, weigh[1, 1], weigh[1, 3])
            v = _scaled_chroma(v, chroma, weigh[2, 2], weigh[2, 3])
        else:
            y, u, v = _turned(y, _halved(u, chroma), _halved(v, chroma), weigh)
        if self._mirror:
            y, u, v = (np.asarray(cv2.flip(plane, 1)) for plane in (y, u, v))
        elif np.may_share_memory(y, planes[0]) or np.may_share_memory(u, planes[1]):
            # A raw picture of a camera lies in the driver's own memory, which goes when the camera is closed.
            y, u, v = y.copy(), u.copy(), v.copy()
        return y, u, v

    def _cropped(self, planes: tuple[Array, ...]) -> tuple[Array, ...]:
        """The middle part of the planes with the shape (width over height) of the target."""
        height, width = planes[0].shape
        w, h = self._size
        if (width, height) == (w, h):
            return planes
        scale = max(w / width, h / height)
        cw, ch = min(width, round(w / scale)), min(height, round(h / scale))
        x, y = (width - cw) // 4 * 2, (height - ch) // 4 * 2
        parts = []
        for plane in planes:
            sx, sy = (2 if plane.shape[1] != width else 1), (2 if plane.shape[0] != height else 1)
            parts.append(plane[y // sy : (y + ch + sy - 1) // sy, x // sx : (x + cw + sx - 1) // sx])
        return tuple(parts)


def even(size: tuple[int, int]) -> tuple[int, int]:
    """The nearest size below that 4:2:0 has whole samples for."""
    return max(2, size[0] - size[0] % 2), max(2, size[1] - size[1] % 2)


def filled(color: Color, base: Color) -> Color:
    """The colour with the gaps in its matrix and range filled from another."""
    matrix = base.matrix if color.matrix in (0, 3, UNSPECIFIED) else color.matrix
    return replace(color, matrix=matrix, range=color.range or base.range)


@lru_cache(maxsize=16)
def _weights(color: Color, bits: int) -> Array:
    """float64 (3, 4): working Y, U, V (8 bits) from codes of Y, U, V in another colour and depth, and 1."""
    back = yuv_to_rgb_matrix(*weights(color, 0), is_full(color), bits)
    forth = rgb_to_yuv_matrix(*weights(WORKING, 0), False)
    return np.column_stack((forth[:, :3] @ back[:, :3], forth[:, :3] @ back[:, 3] + forth[:, 3]))


def _scaled(plane: Array, alpha: float, beta: float) -> Array:
    """uint8: alpha times the plane plus beta; the plane itself where that changes nothing."""
    if plane.dtype == np.uint8 and abs(alpha - 1) < _SMALL and abs(beta) < 0.5:
        return plane
    return np.asarray(cv2.convertScaleAbs(plane, alpha=alpha, beta=beta))


def _scaled_chroma(plane: Array, shape: tuple[int, int], alpha: float, beta: float) -> Array:
    height, width = shape
    if plane.shape == (2 * height, width):  # 4:2:2: the mean of two rows and the scale in one pass
        half = alpha / 2
        return np.asarray(cv2.addWeighted(plane[0::2], half, plane[1::2], half, beta, dtype=cv2.CV_8U))
    return _scaled(_halved(plane, shape), alpha, beta)


def _halved(plane: Array, shape: tuple[int, int]) -> Array:
    """A chroma plane, of whatever subsampling and size, at `shape`."""
    height, width = shape
    if plane.shape == shape:
        return plane
    if plane.shape == (2 * height, width):
        return np.asarray(cv2.addWeighted(plane[0::2], 0.5, plane[1::2], 0.5, 0))
    if plane.shape == (2 * height, 2 * width):
        return subsample(plane, (2, 2))
    return _fitted(plane, (width, height))


def _fitted(plane: Array, size: tuple[int, int]) -> Array:
    """A plane at another (width, height). Halved by area, the rest linearly: 1080p to 720p by area takes 3.4 ms."""
    while (h := plane.shape[0]) >= 2 * size[1] and (w := plane.shape[1]) >= 2 * size[0]:
        plane = cv2.resize(plane, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR))


def _turned(y: Array, u: Array, v: Array, weigh: Array) -> tuple[Array, ...]:
    """Planes in another matrix. What chroma adds to luma is small and smooth: made at half size, then enlarged."""
    a, b = weigh[0, 1], weigh[0, 2]
    added = cv2.addWeighted(u, a, v, b, weigh[0, 3], dtype=cv2.CV_16S)
    added = cv2.resize(added, (y.shape[1], y.shape[0]), interpolation=cv2.INTER_LINEAR)
    return (
        np.asarray(cv2.addWeighted(y, weigh[0, 0], added, 1, 0, dtype=cv2.CV_8U)),
        np.asarray(cv2.addWeighted(u, weigh[1, 1], v, weigh[1, 2], weigh[1, 3], dtype=cv2.CV_8U)),
        np.asarray(cv2.addWeighted(u, weigh[2, 1], v, weigh[2, 2], weigh[2, 3], dtype=cv2.CV_8U)),
    )
