"""What the tests of sinks share: pictures to write, and what was written, read back with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from media import picture

from rtbg.color import rgb_to_planes
from rtbg.frame import Color, Frame, StreamInfo
from rtbg.protocols import Sink
from rtbg.sinks import open_sink

BT709 = Color(1, 1, 1, 1)


def make_info(**changes: Any) -> StreamInfo:
    base: dict[str, Any] = {
        "width": 64,
        "height": 48,
        "time_base": Fraction(1, 25),
        "rate": Fraction(25),
        "color": BT709,
    }
    return StreamInfo(**(base | changes))


def make_frames(info: StreamInfo, pts: Sequence[int] = range(8), alpha: bool = False) -> list[Frame]:
    """Frames of `picture`, in the info's format; alpha: the left half transparent, the right half opaque."""
    made = []
    for k, t in enumerate(pts):
        rgb = picture(info.width, info.height, k)
        planes = rgb_to_planes(rgb, info.color, height=info.height, bits=info.bits, chroma=info.chroma)
        if alpha:
            plane = np.zeros((info.height, info.width), planes[0].dtype)
            plane[:, info.width // 2 :] = 255 if info.bits == 8 else 1023
            planes = (*planes, plane)
        made.append(Frame(planes, t, info.time_base, info.color))
    return made


def write(path: Path, info: StreamInfo, frames: Sequence[Frame], **options: Any) -> Sink:
    sink = open_sink(path, info, **options)
    for frame in frames:
        sink.write(frame)
    sink.close()
    return sink


def decode(path: Path, decoder: str | None = None) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        if decoder is None:
            return list(container.decode(video=0))
        context = av.CodecContext.create(decoder, "r")
        return [f for p in container.demux(video=0) for f in context.decode(p if p.size else None)]


def times(path: Path) -> list[Fraction]:
    return [f.pts * f.time_base for f in decode(path)]


def plane(frame: av.VideoFrame, k: int) -> np.ndarray:
    p = frame.planes[k]
    dtype = np.uint16 if any(b in frame.format.name for b in ("10le", "12le")) else np.uint8
    return np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "rtbg-" in p.name or "partial" in p.name)
