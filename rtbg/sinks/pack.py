"""A frame's planes into a picture of FFmpeg's, for the encoder. Used by `VideoSink`.

Each plane is copied once; where the encoder takes another depth or chroma, FFmpeg's scaler converts that copy.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from rtbg.frame import FULL, LIMITED, Array, Color, Frame
from rtbg.sinks.codecs import name_of, parts


def pack(frame: Frame, pix_fmt: str, width: int, height: int, color: Color) -> av.VideoFrame:
    """A picture of width x height, the frame's size or a column or row more (the last one is repeated).

    color: the tags to set; where it says limited and the frame is full range, the values are converted. A format
    with alpha takes the frame's fourth plane, or is opaque where it has none; pts is left to the caller."""
    own = name_of(frame.bits, frame.chroma)
    bits, chroma, transparent = parts(pix_fmt)
    target = name_of(bits, chroma)
    squeeze = frame.color.range == FULL and color.range == LIMITED
    planes = frame.planes[:3]
    if own != target or squeeze:
        other = _picture(planes, own, width, height, frame.bits)
        ranges = {"src_color_range": FULL, "dst_color_range": LIMITED} if squeeze else {}
        # One thread: the default of PyAV spends up to twice the processor time.
        other = other.reformat(format=target, threads=1, **ranges)
        if not transparent:
            return _tag(other, color)
        planes = tuple(_view(plane, bits) for plane in other.planes)
    if transparent:
        planes = (*planes, _alpha(frame, bits))
    return _tag(_picture(planes, pix_fmt, width, height, bits), color)


def _picture(planes: tuple[Array, ...], pix_fmt: str, width: int, height: int, bits: int) -> av.VideoFrame:
    picture = av.VideoFrame(width, height, pix_fmt)
    for target, plane in zip(picture.planes, planes, strict=True):
        view = _view(target, bits)
        h, w = plane.shape
        view[:h, :w] = plane
        view[:h, w:] = view[:h, w - 1 : w]
        view[h:] = view[h - 1]
    return picture


def _view(plane: Any, bits: int) -> Array:
    """The plane's own memory as (height, width), without the padding at the end of its rows."""
    rows: Array = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
    stride = plane.line_size // rows.itemsize
    return rows[: stride * plane.height].reshape(plane.height, stride)[:, : plane.width]


def _alpha(frame: Frame, bits: int) -> Array:
    dtype = np.uint8 if bits == 8 else np.uint16
    if len(frame.planes) < 4:
        return np.full((frame.height, frame.width), 255 if bits == 8 else 1023, dtype)
    alpha = frame.planes[3]
    if (alpha.dtype == np.uint8) == (bits == 8):
        return alpha
    # Full range: 255 and 1023 are both opaque.
    return (alpha.astype(np.uint16) * 257 >> 6) if bits == 10 else (alpha >> 2).astype(np.uint8)


def _tag(picture: av.VideoFrame, color: Color) -> av.VideoFrame:
    picture.colorspace, picture.color_range = color.matrix, color.range
    picture.color_primaries, picture.color_trc = color.primaries, color.transfer
    return picture
