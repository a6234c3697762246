"""What the tests of backgrounds share: frames, pictures and videos to lie behind them, and what is then shown."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from rtbg.backgrounds.fit import turn
from rtbg.color import planes_to_rgb, rgb_to_planes
from rtbg.frame import FULL, LIMITED, Color, Frame, StreamInfo
from rtbg.protocols import Background

TAGS = [Color(), Color(1, LIMITED), Color(6, FULL), Color(9, LIMITED)]
TEAL = (30, 140, 120)


def info_of(
    w: int, h: int, bits: int = 8, chroma: tuple[int, int] = (2, 2), color: Color = TAGS[1], **more: object
) -> StreamInfo:
    base = StreamInfo(w, h, Fraction(1, 30), Fraction(30), color=color, bits=bits, chroma=chroma)
    return replace(base, **more)  # type: ignore[arg-type]


def frame_of(info: StreamInfo, pts: int = 0, rgb: np.ndarray | tuple[int, int, int] = (90, 90, 90)) -> Frame:
    picture = np.broadcast_to(np.asarray(rgb, np.uint8), (info.height, info.width, 3))
    planes = rgb_to_planes(picture, info.color, height=info.height, bits=info.bits, chroma=info.chroma)
    return Frame(planes, pts, info.time_base, info.color)


def empty(info: StreamInfo) -> np.ndarray:
    return np.zeros((info.height, info.width), np.uint8)


def shown_rgb(background: Background, info: StreamInfo, pts: int = 0) -> np.ndarray:
    """(h, w, 3) int of what a player shows of the background: upright, the pixels as stored."""
    planes = background.at(frame_of(info, pts), empty(info))
    assert planes is not None
    return turn(planes_to_rgb(planes, info.color), info.rotation).astype(int)


def write_png(path: Path, rgb: np.ndarray) -> Path:
    ok, data = cv2.imencode(path.suffix, rgb[:, :, [2, 1, 0, *range(3, rgb.shape[2])]])
    assert ok
    path.write_bytes(data.tobytes())
    return path


def write_video(path: Path, pictures: list[np.ndarray], pts: list[int], base: Fraction, *, codec: str = "ffv1",
                pix_fmt: str = "bgr0", rotation: int = 0, aspect: Fraction | None = None) -> Path:  # fmt: skip
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for k, rgb in enumerate(pictures):
            kind = "rgba" if rgb.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(rgb, format=kind).reformat(format=pix_fmt)
            frame.pts, frame.time_base = pts[k], base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def flat(rgb: tuple[int, ...], w: int = 64, h: int = 36) -> np.ndarray:
    return np.full((h, w, len(rgb)), rgb, np.uint8)


def quarters(w: int, h: int) -> np.ndarray:
    """Red, green above blue, yellow."""
    out = np.zeros((h, w, 3), np.uint8)
    out[: h // 2, : w // 2], out[: h // 2, w // 2 :] = (220, 30, 30), (30, 200, 30)
    out[h // 2 :, : w // 2], out[h // 2 :, w // 2 :] = (30, 30, 220), (220, 220, 30)
    return out


def corners(rgb: np.ndarray) -> np.ndarray:
    """The middles of the four quarters."""
    h, w = rgb.shape[:2]
    return np.array([rgb[y, x] for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)], int)


def greys(count: int) -> list[np.ndarray]:
    return [flat((10 * (k + 1),) * 3) for k in range(count)]
