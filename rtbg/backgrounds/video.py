"""A looped video or animated GIF behind the person, in time with the frames.

Memory bound: two decoded pictures, what the decoder's `THREADS` hold, and one set of planes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter

from rtbg.backgrounds.fit import Layout, placed_size, resized, turn
from rtbg.backgrounds.image import over_black
from rtbg.color import is_full, solid, subsample, weights
from rtbg.errors import BackgroundError
from rtbg.frame import BT709, BT2020_NCL, FULL, LIMITED, Array, Color, Frame, StreamInfo
from rtbg.sources.planes import display_of
from rtbg.sources.probe import demuxer, head

log = logging.getLogger(__name__)

THREADS = 2  # of the decoder: a background needs no more, and each holds a picture
# FFmpeg opens any text as pictures of an old terminal.
_TEXT = {"tty", "bin", "xbin", "adf", "idf"}
_FAULTS = (av.FFmpegError, IndexError, OSError, ValueError)  # IndexError: a stream that the head did not tell of
_NOT_VIDEO = "is neither a picture nor a video that can be read: use PNG, JPEG, WebP, GIF, MP4, MOV, MKV or WebM"
_FORMATS = {(2, 2): "yuv420p", (2, 1): "yuv422p", (1, 1): "yuv444p", (1, 2): "yuv440p"}
# swscale's numbers of the matrices (Kr, Kb) of `color.weights`.
_MATRICES = {(0.2126, 0.0722): BT709, (0.30, 0.11): 4, (0.212, 0.087): 7, (0.2627, 0.0593): BT2020_NCL}


class VideoBackground:
    """Shows, at time t after the first frame it was asked for, the video's picture at t modulo its length."""

    def __init__(self, path: Path, info: StreamInfo, fit: str) -> None:
        """Raises BackgroundError when the file holds no picture."""
        self._loop = Loop(path)
        self._info, self._fit = info, fit
        self._reformatter = VideoReformatter()
        self._began: Fraction | None = None
        self._made: tuple[av.VideoFrame, Layout] | None = None
        self._planes: tuple[Array, ...] = ()

    def at(self, frame: Frame, alpha: Array) -> tuple[Array, ...]:
        """See `protocols.Background`."""
        now = frame.pts * frame.time_base
        if self._began is None:
            self._began = now
        picture, layout = self._loop.at(now - self._began), Layout.of(frame)
        if self._made is None or self._made[0] is not picture or self._made[1] != layout:
            self._planes = self._convert(picture, layout)
            self._made = picture, layout
        return self._planes

    def close(self) -> None:
        """Closes the file."""
        self._loop.close()

    def _convert(self, picture: av.VideoFrame, layout: Layout) -> tuple[Array, ...]:
        """Planes of `layout` from a decoded picture: one pass of swscale, and a turn and copy where needed."""
        info = resized(self._info, layout)
        turned, mirrored = display_of(picture)
        w, h = picture.width * self._loop.aspect, Fraction(picture.height)
        shown = (float(h), float(w)) if turned in (90, 270) else (float(w), float(h))
        size = placed_size(shown, info, self._fit)
        back = (turned - info.rotation) % 360
        # 4:2:0 turned is 4:2:0 again, its chroma half a pixel off, which a background bears; 4:2:2 would not be.
        chroma = (1, 1) if back and layout.chroma[0] != layout.chroma[1] else layout.chroma
        lying = size[::-1] if back in (90, 270) else size
        scaled = self._scale(picture, lying, chroma, layout)
        planes = [turn(np.asarray(cv2.flip(p, 1)) if mirrored else p, back) for p in scaled]
        if chroma != layout.chroma:
            planes[1:] = [subsample(p, layout.chroma) for p in planes[1:]]
        if size == (layout.width, layout.height):
            return tuple(planes)
        black = solid((0, 0, 0), layout.color, height=layout.height, bits=layout.bits)
        return tuple(_centred(p, size, layout, k, black[k]) for k, p in enumerate(planes))

    def _scale(
        self, picture: av.VideoFrame, size: tuple[int, int], chroma: tuple[int, int], layout: Layout
    ) -> list[Array]:
        """Y, U, V of a size (width, height), in the matrix, range and bits of `layout`. Views of the new picture."""
        source = Color(picture.colorspace, picture.color_range)
        height = picture.height
        if picture.format.name.startswith("yuvj"):
            source = Color(source.matrix, FULL)
        if any(c.is_alpha for c in picture.format.components):
            rgba = self._reformatter.reformat(
                picture, format="rgba", src_colorspace=_matrix(source, height), threads=1
            ).to_ndarray()
            picture, source = av.VideoFrame.from_ndarray(over_black(rgba), format="rgb24"), Color(range=FULL)
        elif picture.format.is_rgb:
            source = Color(range=FULL)
        smaller = size[0] * size[1] < picture.width * picture.height
        scaled = self._reformatter.reformat(
            picture,
            width=size[0],
            height=size[1],
            format=_FORMATS[chroma] + ("" if layout.bits == 8 else "10le"),
            src_colorspace=_matrix(source, height),
            dst_colorspace=_matrix(layout.color, layout.height),
            src_color_range=FULL if is_full(source) else LIMITED,
            dst_color_range=FULL if is_full(layout.color) else LIMITED,
            interpolation=(Interpolation.AREA if smaller else Interpolation.BICUBIC) | Interpolation.ACCURATE_RND,
            threads=1,
        )
        dtype = np.dtype(np.uint8 if layout.bits == 8 else np.uint16)
        return [
            np.frombuffer(memoryview(p), dtype).reshape(p.height, p.line_size // dtype.itemsize)[:, : p.width]
            for p in scaled.planes[:3]
        ]


class Loop:
    """The pictures of a file by time, over and over. Decodes in order and holds the one shown and the next."""

    def __init__(self, path: Path) -> None:
        """Raises BackgroundError when the file holds no picture."""
        self._path = path
        self._container: InputContainer | None = None
        self._pictures: Iterator[av.VideoFrame]
        self._shown: av.VideoFrame
        self._next: av.VideoFrame | None
        self._start = self._next_start = self._end = Fraction(0)  # seconds from the first picture
        self._turns = 0  # how often the end was passed
        self._length: Fraction | None = None  # of one turn, once it was read to its end
        self._warned = False
        try:
            self._rewind()
        except BackgroundError:
            self.close()
            raise
        except _FAULTS as exc:
            self.close()
            what = _NOT_VIDEO if isinstance(exc, av.InvalidDataError) else f"cannot be played ({_reason(exc)})"
            raise BackgroundError(f"the background {path} {what}") from exc

    def at(self, seconds: Fraction) -> av.VideoFrame:
        """The picture shown that long after the loop began; most cheaply in order of time."""
        while True:
            turns, local = divmod(seconds, self._length) if self._length else (0, max(seconds, Fraction(0)))
            if turns != self._turns or local < self._start:
                self._turns = turns
                if self._count > 1 and not self._again():
                    return self._shown
            while self._next is not None and self._next_start <= local:
                self._advance()
            if self._next is None and self._length is None:
                self._length = max(self._end, Fraction(1, 1000))
                continue
            return self._shown

    def close(self) -> None:
        """Closes the file. May be called twice."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _again(self) -> bool:
        """Begins anew; False when the file has gone meanwhile, and what is shown stays."""
        try:
            self._rewind()
        except (BackgroundError, *_FAULTS) as exc:
            self._warn(f"the background {self._path} can no longer be read ({_reason(exc)}): its last picture stays")
            self._next, self._count = None, 1
            return False
        return True

    def _rewind(self) -> None:
        self.close()
        self._container = container = av.open(f"file:{self._path}", format=demuxer(self._path, head(self._path)))
        if container.format.name in _TEXT or not container.streams.video:
            raise BackgroundError(f"the background {self._path} {_NOT_VIDEO}")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # nothing decodes it, or its head was cut off
            raise BackgroundError(f"the background {self._path} {_NOT_VIDEO}")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        self.aspect = Fraction(stream.sample_aspect_ratio or 1)
        rate = stream.average_rate or stream.guessed_rate
        self._usual = 1 / Fraction(rate) if rate else Fraction(1, 25)
        pictures = container.decode(stream)
        first = next(pictures, None)
        if first is None:
            raise BackgroundError(f"the background {self._path} holds no picture that can be read")
        self._pictures = chain((first,), pictures)
        self._origin = _time(first)
        self._next_start = self._end = Fraction(0)
        self._count = 0
        self._read()
        self._advance()

    def _advance(self) -> None:
        """Makes the next picture the one shown, and reads the one after."""
        assert self._next is not None
        self._shown, self._start = self._next, self._next_start
        self._count += 1
        self._read()

    def _read(self) -> None:
        """Reads `_next`, None at the end or where the file is damaged; keeps `_end`, where that picture ends."""
        try:
            picture = next(self._pictures, None)
        except (av.FFmpegError, IndexError) as exc:
            where = f"{self._path} is damaged after {float(self._end):.1f} s ({_reason(exc)})"
            self._warn(f"the background {where}: what comes before is looped")
            picture = None
        self._next = picture
        if picture is None:
            return
        time = _time(picture)
        start = self._end if time is None or self._origin is None else time - self._origin
        self._next_start = max(start, self._next_start)
        own = picture.duration * picture.time_base if picture.duration and picture.time_base else self._usual
        self._end = self._next_start + own

    def _warn(self, message: str) -> None:
        if not self._warned:
            log.warning(message)
        self._warned = True


def _time(picture: av.VideoFrame) -> Fraction | None:
    if picture.pts is None or picture.time_base is None:
        return None
    return picture.pts * picture.time_base


def _matrix(color: Color, height: int) -> int:
    return _MATRICES.get(weights(color, height), 5)


def _reason(exc: BaseException) -> str:
    return str(getattr(exc, "strerror", None) or exc)


def _centred(plane: Array, size: tuple[int, int], layout: Layout, k: int, code: int) -> Array:
    """Plane k of a picture of `size` (width, height) in the middle of the layout's: cut off, and framed with `code`.
    Offsets are whole chroma samples, so that the planes stay together."""
    subsampling = layout.chroma if k else (1, 1)
    shape, skipped, at = [], [], []
    for have, want, group, step in zip(size, (layout.width, layout.height), layout.chroma, subsampling, strict=True):
        offset = abs(have - want) // 2 // group * group // step
        shape.append(-(-want // step))
        skipped.append(offset if have > want else 0)
        at.append(offset if have < want else 0)
    w, h = shape
    part = plane[skipped[1] : skipped[1] + h, skipped[0] : skipped[0] + w]
    if part.shape == (h, w):
        return part
    out = np.full((h, w), code, plane.dtype)
    out[at[1] : at[1] + part.shape[0], at[0] : at[0] + part.shape[1]] = part
    return out
