"""The sound and subtitles of the input file, carried over beside the new pictures. Used by `VideoSink`.

The file is read a second time, only its sound and subtitle packets (and its pictures', where times may start again
on the way, see `joints`) and never further than the pictures have come. Memory: one packet, and what FFmpeg holds to
interleave the tracks.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Discard, Disposition

from rtbg.frame import StreamInfo
from rtbg.sinks.joints import BACK, in_parts, restarts
from rtbg.sinks.tracks import Track, muxes, open_track, seconds

_log = logging.getLogger("rtbg")
_EVER = Fraction(10**12)
_SLACK = 2  # seconds by which tracks may be out of step in a file


class Passthrough:
    """Carries every sound and subtitle track of `path` to `out`, whose header is not written yet, and the chapters.

    Adds the streams at once; what cannot go is named in one warning. info: tells the part of the file that is
    used. audio: False leaves the sound out. A file or track that cannot be read is warned of and left out from
    there: the pictures go on. Only what cannot be written raises (OSError).
    begin: seconds at which the input's pictures start, None where not known.
    """

    def __init__(self, path: Path, info: StreamInfo, out: Any, suffix: str, *, audio: bool = True) -> None:
        self._out, self._path = out, path
        self._tracks: dict[int, Track] = {}
        self._templates: list[Any] = []
        self._pictures: Any = None  # their stream, where times may start again on the way
        self._packets: Iterator[tuple[Any, int]] = iter(())
        self._next: tuple[Any, int] | None = None  # and the number of joints before it
        self._moves: Sequence[Fraction] = ()
        self._parts: dict[int, int] = {}
        self._last: dict[int, Fraction] = {}  # decoding times, of each track
        self._origin = Fraction(0)
        self._end: Fraction | None = None
        self._warned: set[int] = set()
        self.begin: Fraction | None = None
        self._source: Any = None
        try:
            self._source = av.open(str(path.absolute()), metadata_errors="replace")
            self._add(info, suffix, audio)
        except (av.FFmpegError, OSError, ValueError) as exc:
            _log.warning("%s: its sound cannot be read and is left out (%s)", path.name, _why(exc))
            self._tracks.clear()

    def _add(self, info: StreamInfo, suffix: str, audio: bool) -> None:
        pictures = [s for s in self._source.streams.video if not s.disposition & Disposition.attached_pic]
        if pictures and pictures[0].start_time is not None:
            self.begin = pictures[0].start_time * pictures[0].time_base
        self._pictures = pictures[0] if pictures and restarts(self._source) else None
        left: Counter[str] = Counter()
        chapters = self._source.chapters()
        if chapters:
            self._out.set_chapters(list(_cut_chapters(chapters, info, self.begin or Fraction(0))))
        for stream in self._source.streams:
            if stream.type == "audio" and not audio:
                continue
            track = open_track(self._out, stream, suffix) if stream.type in ("audio", "subtitle") else None
            if track is not None:
                self._tracks[stream.index] = track
                self._templates.append(stream)
            elif stream.type == "attachment" and suffix == ".mkv" and muxes(self._out.format.name, stream):
                self._out.add_stream_from_template(stream)
            elif stream in pictures[:1] or (stream.type == "data" and chapters and _is_chapters(stream)):
                continue
            else:
                left[_name(stream)] += 1
        if left:
            names = ", ".join(f"{n} x {name}" if n > 1 else name for name, n in left.items())
            _log.warning("%s: not carried over into %s: %s", self._path.name, suffix, names)

    def start(self, origin: Fraction, end: Fraction | None = None) -> None:
        """origin: seconds of the input that become 0 in the output; 0 keeps all times. end: where the part that
        is kept ends, in seconds of the input, where known."""
        self._origin, self._end = origin, end
        if not self._tracks:
            return
        try:
            if origin and self._pictures is None:  # the same time may come twice: then from the beginning on
                # A second earlier: subtitles that are still on screen, and codecs that need a run-up. A file in
                # which one cannot seek is read from its start: what comes before `origin` is left out anyway.
                with contextlib.suppress(av.FFmpegError):
                    self._source.seek(max(0, int((origin - 1) * av.time_base)))
            for stream in self._source.streams:  # after seeking, which goes by the pictures
                if stream.index not in self._tracks and stream is not self._pictures:
                    stream.discard = Discard.all
            if self._pictures is None:
                self._packets = ((packet, 0) for packet in self._source.demux(*self._templates))
            else:
                self._packets = in_parts(self._source.demux(*self._templates, self._pictures), self._pictures)
            self._next = next(self._packets, None)
        except (av.FFmpegError, ValueError) as exc:
            self._stop(exc)

    def advance(self, until: Fraction, moves: Sequence[Fraction] = ()) -> None:
        """Writes what comes before `until`, in seconds of the input. moves: as `Frame.moves`, in seconds."""
        self._moves = moves or self._moves
        while self._next is not None:
            packet, part = self._next
            if packet.dts is not None:
                if part > len(self._moves) and until < _EVER:
                    return  # the pictures have not come there yet
                when = seconds(packet) + self._moved(part)
                if when > until:
                    return
                if self._end is not None and when > self._end + _SLACK:
                    self._next = None
                    return
                if self._move(packet, part):
                    self._write(packet.stream.index, packet)
            try:
                self._next = next(self._packets, None)
            except (av.FFmpegError, ValueError) as exc:
                self._stop(exc)

    def _moved(self, part: int) -> Fraction:
        return self._moves[part - 1] if 0 < part <= len(self._moves) else Fraction(0)

    def _move(self, packet: Any, part: int) -> bool:
        """Moves a packet as the pictures beside it were; False, with one warning, where it cannot go on from there."""
        index = packet.stream.index
        moved = round(self._moved(part) / packet.time_base)
        packet.dts += moved
        packet.pts = packet.pts + moved if packet.pts is not None else None
        when, last = packet.dts * packet.time_base, self._last.get(index)
        fits = last is None or last - when <= BACK or packet.stream.type != "audio"
        if part > len(self._moves) or not fits:
            if index not in self._warned and (self._end is None or when < self._end):
                self._warned.add(index)
                at, name = float(when), _name(packet.stream)
                _log.warning("%s: %s starts again at %.1f s, its pictures do not: left out", self._path.name, name, at)
            return False
        if part > self._parts.get(index, 0) and (track := self._tracks.get(index)) is not None:
            self._parts[index] = part
            track.join()
        self._last[index] = when if last is None else max(when, last)
        return True

    def finish(self, end: Fraction | None) -> None:
        """Writes the rest, up to `end` in seconds of the input (None: all of it)."""
        self._end = end
        self.advance(_EVER)
        for index in list(self._tracks):
            self._write(index, None)
        self.close()

    def close(self) -> None:
        """Lets go of the input. May be called twice."""
        self._next, self._packets = None, iter(())
        self._tracks.clear()
        if self._source is not None:
            self._source.close()

    def _write(self, index: int, packet: Any) -> None:
        track = self._tracks.get(index)
        if track is None:
            return
        try:
            made: Iterable[Any] = (
                track.end(self._origin, self._end) if packet is None else track.put(packet, self._origin, self._end)
            )
            for ready in made:
                self._out.mux(ready)
        except (av.FFmpegError, ValueError) as exc:
            if isinstance(exc, OSError) and not isinstance(exc, EOFError):
                raise  # the output's disk, not the track
            if packet is None or index in self._warned:
                return
            self._warned.add(index)
            at, kind = float(seconds(packet)), self._source.streams[index].type
            _log.warning("%s: %s track %d is damaged at %.1f s (%s)", self._path.name, kind, index, at, _why(exc))

    def _stop(self, exc: Exception) -> None:
        _log.warning("%s: its sound cannot be read on and ends here (%s)", self._path.name, _why(exc))
        self._next, self._packets = None, iter(())


def _cut_chapters(chapters: Iterable[Any], info: StreamInfo, begin: Fraction) -> Iterator[Any]:
    """The chapters of the part that is used, in its time."""
    origin = begin + Fraction(info.start) if info.start else Fraction(0)
    end = None if info.limit is None else (origin or begin) + Fraction(info.limit)
    for chapter in chapters:
        base = chapter["time_base"]
        first = max(chapter["start"] * base, origin)
        last = chapter["end"] * base if end is None else min(chapter["end"] * base, end)
        if first < last:
            times = {"start": round((first - origin) / base), "end": round((last - origin) / base)}
            yield {**chapter, **times}


def _is_chapters(stream: Any) -> bool:
    return bool(stream.name == "bin_data")


def _name(stream: Any) -> str:
    if stream.type in ("data", "attachment", "unknown"):
        return f"{stream.type} track"
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown codec"
    kind = "cover picture" if stream.disposition & Disposition.attached_pic else f"{stream.type} track"
    return f"{kind} {stream.index} ({codec})"


def _why(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)
