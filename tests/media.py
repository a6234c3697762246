"""Media made on the fly with PyAV, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(width: int, height: int, k: int) -> np.ndarray:
    """uint8 (H, W, 3) RGB: a gradient with a square that moves with k."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.dstack((x * 255 // width, y * 255 // height, np.full_like(x, 96))).astype(np.uint8)
    side = max(4, min(width, height) // 5)
    left = (7 * k) % max(1, width - side)
    rgb[height // 3 : height // 3 + side, left : left + side] = (230, 40, 30)
    return rgb


def make_video(
    path: Path,
    *,
    size: tuple[int, int] = (160, 96),
    frames: int = 12,
    rate: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    audio: str | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a small real video. `pts` (in `time_base`) makes it VFR; `audio` names an audio encoder (a 440 Hz
    tone as long as the video at `rate`); `rotation` is a display rotation in degrees counter-clockwise."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pix_fmt
        base = time_base or Fraction(1, rate)
        stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        sound = out.add_stream(audio, rate=48000, layout="mono") if audio else None
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(*size, k), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (pts[k] if pts is not None else k), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            n = int(48000 * frames / rate)
            wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(n) / 48000)).astype(np.float32)
            step = sound.codec_context.frame_size or 1024
            for i in range(0, n, step):
                part = av.AudioFrame.from_ndarray(wave[None, i : i + step], format="fltp", layout="mono")
                part.sample_rate, part.pts, part.time_base = 48000, i, Fraction(1, 48000)
                out.mux(sound.encode(part))
            out.mux(sound.encode(None))
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """(RGB pictures, presentation times in seconds) of a video."""
    pictures, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pictures.append(frame.to_ndarray(format="rgb24"))
            assert frame.pts is not None and frame.time_base is not None
            times.append(frame.pts * frame.time_base)
    return pictures, times


def beeps(count: int, every: float = 1.0) -> np.ndarray:
    """int16: silence and, at each full `every` seconds, 100 ms of 1 kHz; `count` samples of 48000 a second."""
    t = np.arange(count) / 48000
    return np.where(t % every < 0.1, 12000 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.int16)
