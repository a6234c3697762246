"""Videos from files, decoded by FFmpeg through PyAV. Used by `open_source`.

Memory: what the decoder holds (its reference pictures and one a thread) and the frames that are not yet let go;
a frame's planes are views of the decoder's own picture wherever the format allows (`planes.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, dropwhile
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rtbg.errors import InputError
from rtbg.frame import Array, Color, Frame, StreamInfo
from rtbg.sources.planes import PlaneReader, display_of, is_rgb
from rtbg.sources.probe import demuxer, head
from rtbg.sources.timing import Clock, declared_end, fraction, rate_of, stream_seconds

_log = logging.getLogger("rtbg")
_MAX_FAILURES = 100  # packets in a row that cannot be decoded before the rest is given up
_NOT_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
_TEXT_ART = {"tty", "bin", "xbin", "adf", "idf"}  # FFmpeg "plays" text files: never what was meant
_Picture = tuple[VideoFrame, int]  # and its time in ticks of the stream


class VideoSource:
    """The first real video stream (no cover art) of a file, oldest picture first.

    start, duration: the part to read, in seconds from the start of the stream; pictures shown before `start`,
    or at or after `start + duration`, are not given. Pictures keep the file's own pts (VFR untouched), strictly
    increasing: missing and non-increasing ones are made up, with one warning for the latter.
    Every frame has the size, format and colour tags of the first one, which `info` tells; when the stream
    changes on the way, later ones are scaled, with one warning. Planes are read-only and stay valid after `close`.
    threads: of the decoder.
    Raises InputError when nothing can be read: missing, no video, damaged from the start, `start` beyond the
    end. Damage further on is skipped where possible and warned of once."""

    live = False

    def __init__(
        self, path: str | Path, *, start: float = 0.0, duration: float | None = None, threads: int = 2
    ) -> None:
        self._path, self._threads = Path(path), threads
        self._duration = None if duration is None or math.isinf(duration) else duration
        self._start = max(0.0, start)
        self._demuxer = demuxer(self._path, head(self._path))
        self._bytes = self._path.stat().st_size
        self.share = 0.0  # of the file's bytes that have been read: how far, where its length is not known
        self._container: InputContainer | None = None
        self._pictures: Iterator[_Picture] = iter(())
        self._damage: float | None = None  # seconds from the start of the stream; the next read warns of it
        self._end: int | None = None  # the time, in ticks, at which nothing more is given
        self._ended = False
        self._warned: set[str] = set()
        try:
            self._open()
            self._begin()
        except BaseException:
            self.close()
            raise

    def read(self) -> Frame | None:
        """The next picture, None at the end and after `close`."""
        if self._ended:
            return None
        picture = next(self._pictures, None)
        if picture is None and self._end is None:
            self._check_whole()
        if self._damage is not None:
            self._warn("damage", f"is damaged after {self._damage:.1f} s: what could be read was kept")
        if self._interlaced:
            self._warn("fields", "is interlaced, which is lost: deinterlace it first, e.g. ffmpeg -i IN -vf bwdif OUT")
        if self._clock.disorder:
            self._warn("disorder", "has pictures out of order in time: their times were corrected")
        if picture is None or (self._end is not None and picture[1] >= self._end):
            self._ended = True
            return None
        frame, pts = picture
        if not self._reader.fits(frame):
            size = f"{frame.width}x{frame.height} {frame.format.name}"
            self._warn("change", f"changes to {size} pictures on the way: they are converted to match")
        moves = self._clock.moves
        return Frame(self._planes(frame), pts, self.info.time_base, self._reader.color, moves=moves)

    def close(self) -> None:
        """Frees the file and the decoder."""
        self._ended = True
        self._pictures = iter(())
        container, self._container = self._container, None
        if container is not None:
            container.close()

    # -- opening --

    def _open(self) -> None:
        """Opens the file at its beginning, or opens it again."""
        if self._container is not None:
            self._pictures = iter(())
            self._container.close()
        try:  # "file:" keeps FFmpeg from taking a colon in the name for a protocol
            container = av.open(f"file:{self._path}", format=self._demuxer, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as exc:
            raise InputError(f"{self._path} {self._unreadable()}") from exc
        self._container = container
        if container.format.name in _TEXT_ART:
            raise InputError(f"{self._path} is not a video or a picture")
        streams = [s for s in container.streams.video if not s.disposition & _NOT_PICTURES]
        if not streams:
            what = "sound but no video" if container.streams.audio else "no video"
            raise InputError(f"{self._path} holds {what}")
        stream = streams[0]
        if stream.codec_context is None:
            raise InputError(f"{self._path} is coded in a way that FFmpeg does not decode: convert it to H.264 first")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = self._threads
        self._stream: VideoStream = stream
        self._origin = stream.start_time
        self._time_base = stream.time_base or Fraction(1, 90000)
        step = max(1, round(1 / (rate_of(stream) * self._time_base)))
        self._clock = Clock(step, self._time_base, begin=self._origin or 0, decode_order=container.format.name == "avi")

    def _unreadable(self) -> str:
        if head(self._path)[4:8] == b"ftyp":
            return "has no index: it was cut off, or its recording never finished, and nothing in it can be read"
        return "is not a video or a picture that can be read"

    def _begin(self) -> None:
        """Goes to the first picture to give, and tells from it what `info` says."""
        pictures = self._from_start()
        first = next(pictures, None)
        if first is None:
            raise InputError(self._nothing())
        if self._duration is not None:
            self._end = (self._origin or 0) + self._ticks(self._start + self._duration)
            if first[1] >= self._end:
                raise InputError(f"{self._path}: no picture in the {self._duration:g} s from --start {self._start:g}")
        if self._start > 0:
            self._damage = None  # what is damaged is not among what is read
        self._reader = PlaneReader(first[0], _stream_color(self._stream))
        self._mirrored = display_of(first[0])[1]
        self._interlaced = first[0].interlaced_frame
        self.info = self._describe(first[0])
        self._pictures = chain([first], pictures)

    def _from_start(self) -> Iterator[_Picture]:
        """The pictures from `start` on."""
        pictures = None
        if self._start > 0 and self._origin is not None:
            pictures = self._seek(self._origin)
            if pictures is None:  # no index, no times, or it lands too late: decode from the beginning
                self._open()
        if pictures is None:
            pictures = self._decode()
        first = next(pictures, None)
        if first is None:
            return iter(())
        if self._origin is None:
            self._origin = first[1]
        wanted = self._origin + self._ticks(self._start) if self._start > 0 else first[1]
        return dropwhile(lambda picture: picture[1] < wanted, chain([first], pictures))

    def _seek(self, origin: int) -> Iterator[_Picture] | None:
        """Pictures from a key picture at or before `start`, None where no seek finds one."""
        assert self._container is not None
        total = stream_seconds(self._container, self._stream)
        if total is not None and self._start > total + 5:  # what files declare is rarely exact
            raise InputError(self._beyond(float(total)))
        if self._clock.decode_order:
            next(self._decode(), None)  # the first picture shows how far these times are off
        wanted = origin + self._ticks(self._start)
        for early in (0, 10):
            target = wanted - self._ticks(early)
            if target <= origin:
                break
            try:
                self._container.seek(target, stream=self._stream)
            except av.FFmpegError:
                break
            self._clock.restart()
            pictures = self._decode()
            first = next(pictures, None)
            if first is not None and self._clock.exact and first[1] <= wanted:
                return chain([first], pictures)
        return None

    def _describe(self, first: VideoFrame) -> StreamInfo:
        stream, container = self._stream, self._container
        assert container is not None
        rate, seconds, frames = rate_of(stream), stream_seconds(container, stream), stream.frames or None
        if self._start > 0 or self._duration is not None:
            frames = None
            if seconds is not None:
                seconds = max(seconds - fraction(self._start), 1 / rate)
                seconds = seconds if self._duration is None else min(seconds, fraction(self._duration))
        if frames is None and seconds is not None:
            frames = max(1, round(seconds * rate))
        aspect = stream.sample_aspect_ratio
        return StreamInfo(
            first.width,
            first.height,
            self._time_base,
            rate,
            color=self._reader.color,
            bits=self._reader.bits,
            chroma=self._reader.chroma,
            frames=frames,
            duration=None if seconds is None else float(seconds),
            rotation=display_of(first)[0],
            sample_aspect=Fraction(aspect) if aspect and aspect > 0 else Fraction(1),
            rgb=is_rgb(first.format),
            path=self._path,
            start=self._start,
            limit=self._duration,
            metadata=dict(container.metadata),
        )

    # -- reading --

    def _decode(self) -> Iterator[_Picture]:
        """Pictures and their times from where the file stands. Packets that cannot be decoded are skipped."""
        container, stream, clock = self._container, self._stream, self._clock
        assert container is not None
        failures = 0
        while failures <= _MAX_FAILURES:
            try:
                for packet in container.demux(stream):
                    if packet.pos is not None and packet.pos > 0 and self._bytes:
                        self.share = min(1.0, packet.pos / self._bytes)
                    try:
                        frames = packet.decode()
                    except av.EOFError:  # all has been taken out of the decoder already
                        return
                    except av.FFmpegError:
                        failures += 1
                        self._note_damage()
                        if failures > _MAX_FAILURES:
                            return
                        continue
                    for frame in frames:
                        failures = 0
                        assert isinstance(frame, VideoFrame)
                        yield frame, clock.stamp(frame.pts, frame.dts)
                        if frame.is_corrupt:
                            self._note_damage()
                return
            except av.FFmpegError:  # of the container: reading on may find the next whole piece
                failures += 1
                self._note_damage()
            except IndexError:  # PyAV's, for a packet of a stream that the head of the file did not tell of
                failures += 1

    def _planes(self, frame: VideoFrame) -> tuple[Array, ...]:
        try:
            planes = self._reader.planes(frame)
        except (av.FFmpegError, ValueError) as exc:
            raise InputError(f"{self._path}: pictures of the format {frame.format.name} are not understood") from exc
        return tuple(np.asarray(cv2.flip(p, 1)) for p in planes) if self._mirrored else planes

    def _note_damage(self) -> None:
        if self._damage is None:
            last = self._clock.last
            self._damage = 0.0 if last is None else self._seconds(last)

    def _check_whole(self) -> None:
        """A Matroska file that was cut off just ends: only its own length tells."""
        assert self._container is not None
        declared, last = declared_end(self._container, self._stream), self._clock.last
        if declared is None or last is None:
            return
        end = (last + self._clock.step) * self._time_base
        if declared - end > max(Fraction(1), declared / 50) and self._damage is None:
            self._damage = self._seconds(last + self._clock.step)

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("%s %s", self._path, text)

    def _nothing(self) -> str:
        last = self._clock.last
        if last is None:
            return f"{self._path} holds no picture that can be decoded: it is damaged"
        return self._beyond(self._seconds(last + self._clock.step))

    def _beyond(self, end: float) -> str:
        return f"{self._path}: --start {self._start:g} is beyond the end ({end:.1f} s)"

    def _seconds(self, ticks: int) -> float:
        return float((ticks - (self._origin or 0)) * self._time_base)

    def _ticks(self, seconds: float) -> int:
        return round(fraction(seconds) / self._time_base)


def _stream_color(stream: VideoStream) -> Color:
    c = stream.codec_context
    return Color(int(c.colorspace), int(c.color_range), int(c.color_primaries), int(c.color_trc))
