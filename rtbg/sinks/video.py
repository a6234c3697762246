"""Pictures into a video file, with the sound and subtitles of the input beside them. Used by `open_sink`.

Memory: what the encoder holds (its look-ahead: some 60 small pictures at most) and a few encoded packets.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from rtbg.errors import Aborted, OutputError, UsageError
from rtbg.frame import FULL, LIMITED, UNSPECIFIED, Color, Frame, StreamInfo
from rtbg.sinks import salvage
from rtbg.sinks.codecs import CONTAINERS, Plan, name_of, plan
from rtbg.sinks.microphone import Microphone
from rtbg.sinks.pack import pack
from rtbg.sinks.passthrough import Passthrough
from rtbg.sinks.replace import Replacement, writing
from rtbg.sinks.tracks import LiveTrack
from rtbg.threads import codec_threads, ordinary_priority

_log = logging.getLogger("rtbg")
SUFFIXES = tuple(CONTAINERS)
BELIEVED = 1  # seconds for which a last picture may be shown on the word of the input's declared length
# Said of the input's container or written anew by the output's.
_NOT_COPIED = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}
_SILENT = {".gif", ".png", ".apng"}  # animated pictures; FFmpeg takes such names as `a%d.png` for a series of files
_FINEST = 10**9  # ticks a second that every encoder takes


class VideoSink:
    """Encodes frames, in order, into a video file that replaces `path` when it is whole.

    alpha: frames carry a fourth plane. audio: False leaves the sound of info.path out; its subtitles go over.
    description: the codec and its settings, such as "h264 yuv420p crf 20".
    Times: a frame is written at its own pts; where info.start is not 0 the part that is read begins at 0. Sound
    is moved by the same amount. A frame that is not later than the one before it is left out, with one warning.
    Live frames, those with `captured`, are written at the time when they were captured, the first at 0.
    sound: recorded beside live frames, from the first one on to the last one's end; closed with the sink. Where it
    fails, the pictures go on.
    live: a recording of what does not come again. Where `write` or `close` fails, what is on the disk is kept, and
    can be played, as NAME.partial.EXT, which the error says; so can the hidden file of a process that was killed.
    Colour tags, rotation, pixel shape and metadata come from `info`; depth and chroma are kept where the codec
    has them. What is changed is logged, a line each.
    Raises UsageError for settings that do not fit and OutputError for a target that cannot be written.
    """

    def __init__(
        self,
        path: Path,
        info: StreamInfo,
        *,
        alpha: bool = False,
        codec: str | None = None,
        crf: int | None = None,
        preset: str | None = None,
        audio: bool = True,
        overwrite: bool = False,
        threads: int | None = None,
        sound: Microphone | None = None,
        live: bool = False,
    ) -> None:
        self._info, self._suffix, self._live = info, path.suffix.lower(), live
        self._threads = threads or codec_threads()
        # Many players show H.264 as 4:2:0 only; where nobody asked for more than RGB came in, it is made that.
        plain = info.rgb and codec is None and not alpha and self._suffix in (".mp4", ".mov")
        self._plan = plan(
            self._suffix,
            codec=codec,
            alpha=alpha,
            crf=crf,
            preset=preset,
            bits=info.bits,
            chroma=(2, 2) if plain else info.chroma,
            threads=self._threads,
        )
        self.description = self._plan.description
        least = self._plan.codec.smallest
        if min(info.width, info.height) < least:
            size = f"{info.width}x{info.height}"
            raise UsageError(f"{self._plan.name} needs {least}x{least} at least, not {size}: use another --codec")
        self._color = _color(info.color, self._plan)
        columns, rows = self._plan.even
        self._width, self._height = -(-info.width // columns) * columns, -(-info.height // rows) * rows
        self._time_base = info.time_base if info.time_base.denominator <= _FINEST else Fraction(1, 1_000_000)
        self._first: int | None = None
        self._last = self._gap = self._origin = 0
        self._lengths: dict[int, int] = {}  # of the frames whose successor is known, by pts
        self._held: deque[Any] = deque()  # packets of the frames whose length is not known yet
        self._first_dts: int | None = None
        self._last_dts = 0
        self._warned = self._closed = self._cancelled = False
        self._passthrough: Passthrough | None = None
        self._sound = sound
        self._track: LiveTrack | None = None
        self._container: Any = None
        self._replacement = Replacement(path, overwrite=overwrite, source=info.path)
        if live:
            self._replacement.outlast()
        self._path = self._replacement.path
        try:
            with writing(self._path):
                self._open(audio)
        except BaseException:
            self.abort()
            raise

    def _open(self, audio: bool) -> None:
        if self._plan.container in ("mp4", "mov"):
            # Times of the first frame and of edits are counted in the movie's ticks: as fine as the track's, and
            # fine enough for the sound's.
            scale = self._time_base.denominator
            options = {"movflags": "+faststart", "movie_timescale": str(scale * -(-10_000 // scale))}
            options |= salvage.FRAGMENTS if self._live else {}
        else:
            options = {"default_mode": "passthrough"}  # else the first subtitles are shown without being asked for
            options |= salvage.MATROSKA if self._live else {}
        self._container = av.open(
            str(self._replacement.temp), "w", format=self._plan.container, container_options=options
        )
        notes = self._info.metadata
        self._container.metadata.update({k: v for k, v in notes.items() if k.lower() not in _NOT_COPIED})
        # libx265 and SVT-AV1 write to stderr by themselves; this is the latter's only switch (1: errors).
        os.environ.setdefault("SVT_LOG", "1")
        rate = self._info.rate if self._info.rate > 0 else Fraction(25)
        if self._plan.name == "av1":
            rate = max(Fraction(1), min(rate, Fraction(240)))  # what SVT-AV1 takes; the times are what counts
        self._stream = self._container.add_stream(
            self._plan.codec.encoder, rate=rate.limit_denominator(100_000), options=self._plan.options
        )
        self._stream.disposition = Disposition.default
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = self._width, self._height, self._plan.pix_fmt
        context.time_base = self._stream.time_base = self._time_base
        context.thread_type, context.thread_count = "AUTO", self._threads
        context.colorspace, context.color_range = self._color.matrix, self._color.range
        context.color_primaries, context.color_trc = self._color.primaries, self._color.transfer
        if self._info.sample_aspect > 0:
            context.sample_aspect_ratio = self._info.sample_aspect
        if self._info.rotation:
            self._stream.set_display_rotation(self._info.rotation)
        if self._plan.name == "hevc" and self._plan.container != "matroska":
            context.codec_tag = "hvc1"  # what Apple's players insist on
        try:
            with ordinary_priority():
                context.open()
        except (av.FFmpegError, ValueError) as exc:
            size = f"{self._width}x{self._height}"
            raise OutputError(f"{self.description} cannot be encoded at {size}: try another --codec") from exc
        self._tell()
        if self._sound is not None:
            self._track = LiveTrack(self._container, self._sound, self._suffix)
        if self._info.path is not None and not self._info.still and self._info.path.suffix.lower() not in _SILENT:
            self._passthrough = Passthrough(self._info.path, self._info, self._container, self._suffix, audio=audio)

    def _tell(self) -> None:
        """Logs what of the input does not go over as it is."""
        info, name, target = self._info, self._path.name, self._plan.name
        own = name_of(info.bits, info.chroma).removesuffix("le")
        held = self._plan.pix_fmt.removesuffix("le").replace("yuva", "yuv")
        if self._plan.lossy:
            _log.warning("%s: %s holds %s at most, the input is %s: reduced", name, target, held, own)
        elif own != held:
            _log.info("%s: %s has no %s: written as %s", name, target, own, held)
        if info.color.range == FULL and self._color.range == LIMITED:
            _log.info("%s: %s holds limited range only: converted", name, target)
        if (self._width, self._height) != (info.width, info.height):
            was, now = f"{info.width}x{info.height}", f"{self._width}x{self._height}"
            _log.warning("%s: %s needs even sizes: the edge is repeated, %s becomes %s", name, target, was, now)
        if info.sample_aspect != 1 and not self._plan.codec.shape and self._suffix in (".mkv", ".webm"):
            shape = f"{info.sample_aspect.numerator}:{info.sample_aspect.denominator}"
            _log.warning("%s: %s in %s cannot hold the pixel shape %s: .mp4 can", name, target, self._suffix, shape)

    def write(self, frame: Frame) -> None:
        """Encodes one frame, of the size that `info` tells. Raises OutputError."""
        if self._closed:
            raise OutputError(f"{self._path.name} is closed")
        try:
            self._write(frame)
        except Exception as exc:
            self._keep(exc)
            raise

    def _write(self, frame: Frame) -> None:
        if (frame.width, frame.height) != (self._info.width, self._info.height):
            told = f"{self._info.width}x{self._info.height}"
            raise OutputError(f"{self._path.name}: a picture of {frame.width}x{frame.height} came into {told}")
        if frame.captured:
            pts = round(Fraction(frame.captured) / self._time_base)
        elif frame.time_base == self._time_base:
            pts = frame.pts
        else:
            pts = round(frame.pts * frame.time_base / self._time_base)
        if self._first is None:
            self._begin(pts, live=bool(frame.captured))
        elif pts <= self._last:
            if not self._warned:
                _log.warning("%s: a picture at %.3f s came out of order: left out", self._path.name, frame.seconds)
            self._warned = True
            return
        else:
            self._gap = pts - self._last
            self._lengths[self._last - self._origin] = self._gap
        self._last = pts
        picture = pack(frame, self._plan.pix_fmt, self._width, self._height, self._color)
        picture.pts, picture.time_base = pts - self._origin, self._time_base
        with writing(self._path):
            self._held.extend(self._stream.encode(picture))
            self._mux()
            if self._passthrough is not None:
                self._passthrough.advance(pts * self._time_base, [m * frame.time_base for m in frame.moves])
            if self._track is not None:
                # No further than the pictures that are written: by the next one FFmpeg knows how long the last picture
                # of a fragment is that ends with the sound.
                for packet in self._track.advance((self._origin + self._last_dts) * self._time_base):
                    self._container.mux(packet)

    def _begin(self, pts: int, live: bool) -> None:
        self._first, start = pts, Fraction(self._info.start)
        if live:
            self._origin = pts
            if self._track is not None:
                self._track.start(pts * self._time_base)
            return
        begin = self._passthrough.begin if self._passthrough is not None else None
        if start:
            wanted = None if begin is None else round((begin + start) / self._time_base)
            # The first picture is 0; but where nothing new is shown for long after `start`, `start` is, since
            # sound is heard from there.
            near = wanted is None or pts - wanted <= 2 * self._usual_gap()
            self._origin = pts if near or wanted is None else wanted
        if self._passthrough is not None:
            limit = self._info.limit
            end = None if limit is None else self._base() + Fraction(limit)
            self._passthrough.start(self._origin * self._time_base, end)

    def _base(self) -> Fraction:
        """Where the part that is read begins, in seconds of the input."""
        return (self._origin if self._info.start else self._first or 0) * self._time_base

    def _usual_gap(self) -> int:
        return max(1, round(1 / (self._info.rate or 25) / self._time_base))

    def _mux(self, *, rest: bool = False) -> None:
        """Writes the packets whose length is known: all but the last frame's, and those behind it; or the rest."""
        while self._held and (rest or self._held[0].pts in self._lengths):
            packet = self._held.popleft()
            packet.duration = self._lengths.pop(packet.pts, self._gap)
            if self._first_dts is None:
                self._first_dts = packet.dts
            self._last_dts = packet.dts
            self._container.mux(packet)

    def close(self, *, interrupted: bool = False) -> Path | None:
        """Writes what is held and the rest of the sound, and gives the file its name: the target's, or
        NAME.partial.EXT where it was `interrupted` and an older output stays. Returns which. Raises OutputError,
        and Aborted after `cancel`; an older output is then as it was."""
        if self._closed:
            return None
        try:
            if self._first is None:
                raise OutputError(f"{self._path.name} was not written: no picture came")
            with writing(self._path):
                self._end(interrupted)
                self._complete()
            self._go_on()
        except BaseException as exc:
            try:
                self._keep(exc)
            finally:
                self.abort()
            raise
        self._closed = True
        return self._replacement.commit(interrupted=interrupted)

    def _complete(self) -> None:
        """Writes the trailer, if that was not tried before."""
        in_fragments = self._live and self._plan.container in ("mp4", "mov")
        with salvage.shown_again(self._replacement.temp) if in_fragments else contextlib.nullcontext():
            self._container.close()

    def _keep(self, exc: BaseException) -> None:
        """Of a live recording that failed: leaves what can be played of it and raises OutputError that says where.
        Returns where there is nothing, or nothing to be kept."""
        if not self._live or self._cancelled or self._closed or not isinstance(exc, Exception):
            return
        self._closed = True
        self._held.clear()
        if self._sound is not None:
            self._sound.close()
        with contextlib.suppress(Exception):
            self._complete()
        if salvage.plays(self._replacement.temp):
            part = self._replacement.keep()
            why = " ".join(str(exc).split()) or type(exc).__name__
            raise OutputError(f"{why}; what was recorded until then is in {part}") from exc

    def cancel(self) -> None:
        """A `close` gives up between two packets and raises Aborted. From any thread."""
        self._cancelled = True
        self._replacement.outlast(False)

    def _go_on(self) -> None:
        if self._cancelled:
            raise Aborted(f"{self._path.name} was given up")

    def _end(self, interrupted: bool) -> None:
        # The last picture is shown to the declared end of the input; where that is not known, or too far off to be
        # believed (a truncated file), as long as the one before it, but not beyond the limit.
        length = self._gap or self._usual_gap()
        limit, base = self._info.limit, self._base()
        if self._info.duration and not (interrupted or limit is not None or self._info.start):
            rest = round((base + Fraction(self._info.duration)) / self._time_base) - self._last
            length = rest if 0 < rest * self._time_base <= BELIEVED else length
        if limit is not None:
            rest = round((base + Fraction(limit)) / self._time_base) - self._last
            length = min(length, rest) if rest > 0 else length
        self._lengths[self._last - self._origin] = length
        for packet in self._stream.codec_context.encode_lazy(None):
            packet.stream = self._stream
            self._held.append(packet)
            self._go_on()
        if self._held:
            final = self._held.pop()
            self._mux(rest=True)
            self._stretch(final, self._last + length)
            self._container.mux(final)
        if self._passthrough is not None:
            end = (self._last + length) * self._time_base
            whole = limit is None and not interrupted
            self._passthrough.finish(None if whole else end if interrupted else max(end, base + Fraction(limit or 0)))
        if self._track is not None:
            for packet in self._track.finish((self._last + length) * self._time_base):
                self._container.mux(packet)

    def _stretch(self, final: Any, end: int) -> None:
        """Sets the last packet's length, and in an .mp4 its decoding time.

        There, readers take the sum of the gaps between decoding times for the length of the video, which with
        B-frames and uneven gaps is not the length of what is shown, unless the last gap makes up for it."""
        shown_end = end - self._origin
        final.duration = self._lengths.pop(final.pts, 1)
        if self._plan.container not in ("mp4", "mov") or self._first_dts is None or final.dts is None:
            return
        assert self._first is not None
        target = self._first_dts + shown_end - (self._first - self._origin)
        room = target - self._last_dts - 1
        if room > 0:
            final.duration = min(shown_end - final.pts, room)
            final.dts = target - final.duration

    def abort(self) -> None:
        """Frees everything and deletes what was written; an older output stays. Never raises."""
        self._closed = True
        self._held.clear()
        if self._sound is not None:
            self._sound.close()
        self._replacement.discard()  # first, where the system allows it: the trailer then costs nothing
        with contextlib.suppress(Exception):
            if self._passthrough is not None:
                self._passthrough.close()
        with contextlib.suppress(Exception):
            if self._container is not None:
                self._container.close()
        self._replacement.discard()


def _color(color: Color, plan: Plan) -> Color:
    """The tags to write: 0 is RGB or reserved except for the range, and ProRes holds limited range only."""
    spelt = [UNSPECIFIED if n == 0 else n for n in (color.matrix, color.primaries, color.transfer)]
    color = Color(spelt[0], color.range, spelt[1], spelt[2])
    return replace(color, range=LIMITED) if plan.name == "prores" and color.range == FULL else color
