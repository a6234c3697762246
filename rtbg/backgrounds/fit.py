"""Where a background picture lands on a frame, and in which format its planes are wanted. Used by every background.

A frame is stored as the camera saw it; a player turns it (`StreamInfo.rotation`) and stretches its pixels
(`sample_aspect`). A background is fitted into what the viewer sees and brought back into the stored grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from rtbg.frame import Array, Color, Frame, StreamInfo

_TURN = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class Layout(NamedTuple):
    """What decides the planes of a still background: equal layouts share planes."""

    width: int
    height: int
    bits: int
    chroma: tuple[int, int]
    color: Color

    @classmethod
    def of(cls, frame: Frame | StreamInfo) -> Layout:
        """The layout of a frame, or of the frames that a stream promises."""
        return cls(frame.width, frame.height, frame.bits, frame.chroma, frame.color)


def turn(picture: Array, degrees: int) -> Array:
    """The picture (2 or 3 dimensions) turned counter-clockwise by 0, 90, 180 or 270 degrees."""
    return np.asarray(cv2.rotate(picture, _TURN[degrees])) if degrees else picture


def placed_size(shown: tuple[float, float], info: StreamInfo, fit: str) -> tuple[int, int]:
    """(width, height), in the stored grid of `info`, that a picture of size `shown` takes as a whole once fitted:
    "cover" reaches beyond the frame, "contain" stays inside it, "stretch" is the frame's size. It is centred."""
    if fit == "stretch":
        return info.width, info.height
    frame_w, frame_h = info.shown_size
    scales = frame_w / shown[0], frame_h / shown[1]
    scale = max(scales) if fit == "cover" else min(scales)
    w, h = scale * shown[0] / frame_w, scale * shown[1] / frame_h  # in units of the shown frame
    if info.rotation in (90, 270):
        w, h = h, w
    return max(1, round(w * info.width)), max(1, round(h * info.height))


def place(picture: Array, info: StreamInfo, fit: str) -> Array:
    """The picture, (h, w, 3) as a viewer sees it, fitted into the stored grid of `info`: (info.height, info.width, 3),
    black where it does not reach. Enlarged with cubics, reduced by area."""
    tw, th = placed_size((picture.shape[1], picture.shape[0]), info, fit)
    turned = turn(picture, -info.rotation % 360)
    w, h = min(tw, info.width), min(th, info.height)
    part = _centre(turned, tw, th, w, h)
    if (w, h) == (info.width, info.height):
        return part
    out = np.zeros((info.height, info.width, 3), picture.dtype)
    x, y = (info.width - w) // 2, (info.height - h) // 2
    out[y : y + h, x : x + w] = part
    return out


def _centre(picture: Array, tw: int, th: int, w: int, h: int) -> Array:
    """The middle (h, w) of the picture brought to (th, tw)."""
    ph, pw = picture.shape[:2]
    if tw >= pw and th >= ph:
        # One affine map, so that the middle is exact to a fraction of the picture's coarse pixels.
        sx, sy = pw / tw, ph / th
        m = np.array([[sx, 0, (pw - w * sx + sx - 1) / 2], [0, sy, (ph - h * sy + sy - 1) / 2]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(picture, m, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE))
    cw, ch = max(1, round(pw * w / tw)), max(1, round(ph * h / th))
    x, y = (pw - cw) // 2, (ph - ch) // 2
    part = np.ascontiguousarray(picture[y : y + ch, x : x + cw])
    # One direction at a time where one shrinks and the other grows: each wants its own filter.
    part = cv2.resize(part, (min(w, cw), min(h, ch)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(part, (w, h), interpolation=cv2.INTER_CUBIC))


def resized(info: StreamInfo, frame: Frame | Layout) -> StreamInfo:
    """`info` with the size of a frame: they differ where a camera changed its mode."""
    if (info.width, info.height) == (frame.width, frame.height):
        return info
    return replace(info, width=frame.width, height=frame.height)
