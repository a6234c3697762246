"""Decoded FFmpeg pictures as planes of YUV. Used by `VideoSource`.

Memory: nothing of its own for the native formats, whose planes are views of the decoder's picture and keep it
alive; one picture a frame for formats that are converted; one pair of constant chroma planes for grey.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from rtbg.color import tagged
from rtbg.frame import FULL, LIMITED, RANGE_UNSPECIFIED, UNSPECIFIED, Array, Color

_CHROMA = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1)}
# FFmpeg's names of the formats whose first three planes are taken as they are, and what each is to rtbg.
NATIVE: dict[str, str] = {
    **{name: name for name in _CHROMA},
    **{name.replace("yuv", "yuvj"): name for name in _CHROMA},
    **{name.replace("yuv", "yuva"): name for name in _CHROMA},
    **{name + "10le": name + "10le" for name in _CHROMA},
    **{name.replace("yuv", "yuva") + "10le": name + "10le" for name in _CHROMA},
}
_GREY = {"gray": "yuv420p", "gray10le": "yuv420p10le"}
_ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND


class PlaneReader:
    """Gives every picture of a stream the size, format and colour of the stream's first one.

    bits, chroma, color: of the planes, as `Frame` and `StreamInfo` have them. `stream_color` fills tags that
    the first picture lacks. What is not native (see `NATIVE`, nv12 and grey, which cost no conversion) goes to
    the nearest native format: over 8 bits to 10; RGB and palettes to 4:4:4, limited range, BT.709 from 720
    lines up and BT.601 below; 4:1:1 and 4:1:0 to 4:2:0, 4:4:0 to 4:4:4. Transparency is dropped."""

    def __init__(self, first: av.VideoFrame, stream_color: Color) -> None:
        self._name, self._size = first.format.name, (first.width, first.height)
        self._target = native_of(first.format)
        self._reformatter = VideoReformatter()
        self._grey_chroma: tuple[Array, Array] | None = None
        self.bits = 10 if self._target.endswith("10le") else 8
        self.chroma = _CHROMA[self._target.removesuffix("10le")]
        self.color = _color(first, stream_color)

    def fits(self, frame: av.VideoFrame) -> bool:
        """Whether the picture has the stored size and format of the first one."""
        return frame.format.name == self._name and (frame.width, frame.height) == self._size

    def planes(self, frame: av.VideoFrame) -> tuple[Array, ...]:
        """Y, U, V, read-only: the decoder may still predict from them. A picture that does not fit is scaled."""
        name = frame.format.name
        if self.fits(frame):
            if name in NATIVE:
                return self._views(frame)
            if name == "nv12":
                return self._split(frame)
            if name in _GREY:
                return (self._view(frame, 0, self._size), *self._grey())
        if _is_grey(frame.format) and self._target in _GREY.values():
            grey = "gray10le" if self.bits == 10 else "gray"
            done = self._reformat(frame, grey)
            return (self._view(done, 0, self._size), *self._grey())
        return self._views(self._reformat(frame, self._target))

    def _reformat(self, frame: av.VideoFrame, name: str) -> av.VideoFrame:
        width, height = self._size
        rgb = is_rgb(frame.format)
        full = rgb or _is_grey(frame.format) or frame.format.name.startswith("yuvj")
        return self._reformatter.reformat(
            frame,
            width,
            height,
            name,
            dst_colorspace=self._sws_matrix() if rgb else None,
            src_color_range=frame.color_range or (FULL if full else self.color.range) or None,
            dst_color_range=self.color.range or (LIMITED if full else None),
            interpolation=_ACCURATE,
            threads=1,
        )

    def _sws_matrix(self) -> int:
        """The matrix by swscale's number, which is H.273's but for BT.601."""
        matrix = tagged(self.color, self._size[1]).matrix
        return matrix if matrix in (1, 4, 7, 9) else 5

    def _views(self, frame: av.VideoFrame) -> tuple[Array, ...]:
        width, height = self._size
        sx, sy = self.chroma
        small = (-(-width // sx), -(-height // sy))
        planes = frame.planes
        return tuple(_view(planes[k], small if k else self._size, self.bits) for k in range(3))

    def _view(self, frame: av.VideoFrame, index: int, size: tuple[int, int]) -> Array:
        return _view(frame.planes[index], size, self.bits)

    def _split(self, frame: av.VideoFrame) -> tuple[Array, ...]:
        width, height = self._size
        small = (-(-width // 2), -(-height // 2))
        y, uv = frame.planes
        u, v = cv2.split(_view(uv, (2 * small[0], small[1]), 8).reshape(small[1], small[0], 2))
        return _view(y, self._size, 8), np.asarray(u), np.asarray(v)

    def _grey(self) -> tuple[Array, Array]:
        if self._grey_chroma is None:
            width, height = self._size
            middle = 128 if self.bits == 8 else 512
            plane = np.full((-(-height // 2), -(-width // 2)), middle, np.uint8 if self.bits == 8 else np.uint16)
            plane.flags.writeable = False
            self._grey_chroma = (plane, plane)
        return self._grey_chroma


def native_of(fmt: av.VideoFormat) -> str:
    """The native format nearest to one of FFmpeg's: a key of `_CHROMA`, with "10le" where it has over 8 bits."""
    if fmt.name in NATIVE:
        return NATIVE[fmt.name]
    deep = "10le" if max(c.bits for c in fmt.components) > 8 else ""
    if is_rgb(fmt):
        return "yuv444p" + deep
    if _is_grey(fmt):
        return "yuv420p" + deep
    sx, sy = 64 // fmt.chroma_width(64), 64 // fmt.chroma_height(64)
    kind = {(1, 1): "yuv444p", (1, 2): "yuv444p", (2, 1): "yuv422p"}.get((sx, sy), "yuv420p")
    return kind + deep


def display_of(frame: av.VideoFrame) -> tuple[int, bool]:
    """What a player does with a picture, by its display matrix: degrees by which it is turned counter-clockwise (0, 90,
    180, 270), and whether left and right are swapped before that, as selfie cameras have it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    mirrored = False
    if matrix is not None:
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])  # type: ignore[call-overload]
        mirrored = a * d < b * c
    # FFmpeg tells the angle by the first row, which mirroring has the other sign of.
    return (round(frame.rotation / 90) * 90 + 180 * mirrored) % 360, mirrored


def is_rgb(fmt: av.VideoFormat) -> bool:
    """Whether pictures of that format have to be converted from RGB."""
    return fmt.is_rgb or fmt.has_palette or fmt.is_bayer or fmt.name.startswith("xyz")


def _is_grey(fmt: av.VideoFormat) -> bool:
    return not is_rgb(fmt) and sum(not c.is_alpha for c in fmt.components) == 1


def _color(first: av.VideoFrame, stream: Color) -> Color:
    """Tags of the planes made from the first picture. RGB: what it is converted to. yuvj and untagged grey:
    full range, as FFmpeg's own scaler has it."""
    own = Color(
        int(first.colorspace) if first.colorspace not in (0, 3, UNSPECIFIED) else stream.matrix,
        int(first.color_range) or stream.range,
        int(first.color_primaries) if first.color_primaries not in (0, 3, UNSPECIFIED) else stream.primaries,
        int(first.color_trc) if first.color_trc not in (0, 3, UNSPECIFIED) else stream.transfer,
    )
    own = replace(own, matrix=UNSPECIFIED if own.matrix in (0, 3) else own.matrix)
    if is_rgb(first.format):
        return tagged(Color(primaries=own.primaries, transfer=own.transfer), first.height)
    if first.format.name.startswith("yuvj") or (_is_grey(first.format) and own.range == RANGE_UNSPECIFIED):
        return replace(own, range=FULL)
    return own


def _view(plane: Any, size: tuple[int, int], bits: int) -> Array:
    """A read-only (H, W) view of a plane of FFmpeg, which it keeps alive."""
    width, height = size
    flat = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
    rows = flat.reshape(-1, abs(plane.line_size) // flat.itemsize)[:height, :width]
    if plane.line_size < 0:  # stored upside down; OpenCV takes no negative strides
        rows = np.ascontiguousarray(rows[::-1])
    rows.flags.writeable = False
    return rows
