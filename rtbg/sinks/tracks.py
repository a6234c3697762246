"""One sound or subtitle track on its way from the input file to the output. Used by `passthrough`; and the sound of a
microphone, by `VideoSink`.

A track takes the input's packets and gives the output's: copied where the container holds the codec, converted
where it does not. All times are moved by the same `origin`. Memory: what a codec holds, a second at most; a
`LiveTrack` also keeps ten minutes of encoded sound (15 MB) while no picture comes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np

from rtbg.sinks.joints import seam
from rtbg.sinks.microphone import Microphone

_log = logging.getLogger("rtbg")
_PCM = ("s16le", "s24le", "s32le", "f32le", "u8", "s16be", "s24be", "s32be")
# What each container takes as it is. Narrower than what FFmpeg would write: PCM or Vorbis in an .mp4 is silent
# in most players.
_COPIED = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus", "mov_text"},
    ".mov": {"aac", "mp3", "ac3", "eac3", "alac", "mov_text", *(f"pcm_{p}" for p in _PCM)},
    ".mkv": {
        *("aac", "mp3", "mp2", "ac3", "eac3", "dts", "truehd", "alac", "flac", "opus", "vorbis"),
        *(f"pcm_{p}" for p in _PCM),
        *("subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle"),
    },
    ".webm": {"opus", "vorbis", "webvtt"},
}
_SOUND = {".mp4": "aac", ".mov": "aac", ".mkv": "aac", ".webm": "libopus"}
_TEXT = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}
_TEXT_CODECS = {"subrip", "ass", "ssa", "webvtt", "mov_text", "text"}
_LIVE_RATE = 48000
_CATCH_UP = 0.5  # seconds that a microphone has to deliver the end of a recording
_BEFORE = 5  # seconds of sound that wait for the first picture
_LONGEST_GAP = 2  # seconds of silence that are made at once
_BIT_RATE = {"aac": 96_000, "libopus": 64_000}  # a channel


class Track(Protocol):
    """One track. `put` and `end` give packets ready for the output; both raise av.FFmpegError or ValueError where
    the track is damaged."""

    def put(self, packet: Any, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """Takes a packet of the input. origin: seconds of the input that become 0. end: of the part that is
        kept, None where not known."""

    def join(self) -> None:
        """What is put from here on comes of another recording: it may overlap what came before, or leave a gap."""

    def end(self, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """Gives what is still held."""


def open_track(out: Any, template: Any, suffix: str) -> Track | None:
    """Adds `template`, a stream of the input, to the output container; None where it cannot go there."""
    if template.codec_context is None:
        return None
    name = template.codec_context.codec.canonical_name
    if name in _COPIED[suffix] and muxes(out.format.name, template):
        return Copy(out, template)
    if template.type == "audio":
        return _try_sound(out, template, _SOUND[suffix])
    if name in _TEXT_CODECS:
        return TextTrack(out, template, _TEXT[suffix])
    return None


def seconds(packet: Any) -> Fraction:
    """Presentation time of a packet in the input."""
    return Fraction(packet.pts if packet.pts is not None else packet.dts) * Fraction(packet.time_base)


# ISO 639-2: the terminological codes of which FFmpeg's QuickTime table has only the bibliographic ones.
_QUICKTIME = {"deu": "ger", "fra": "fre", "nld": "dut", "ell": "gre", "isl": "ice", "ces": "cze", "slk": "slo"}


def describe(template: Any, stream: Any, container: str) -> None:
    """Language, title and dispositions from a stream of the input to one of the output."""
    kept = ("language", "title", "handler_name", "name")
    notes = {k.lower(): v for k, v in template.metadata.items() if k.lower() in kept}
    # FFmpeg reads the title of an .mp4's track as "name", and writes it from "title".
    if name := notes.pop("name", None):
        notes.setdefault("title", name)
    if container == "mov" and "language" in notes:  # QuickTime's own table knows these by their other code
        notes["language"] = _QUICKTIME.get(notes["language"], notes["language"])
    stream.metadata.update(notes)
    stream.disposition = template.disposition


def muxes(container: str, template: Any) -> bool:
    """Whether a header with this very stream can be written: found out before it could spoil the video's."""
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(template)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


class Copy:
    """A track whose packets go over as they are."""

    def __init__(self, out: Any, template: Any) -> None:
        self._stream = out.add_stream_from_template(template)
        self._subtitle = template.type == "subtitle"
        # Matroska's writer moves *all* tracks so that none starts below 0, and the first packet of an AAC track in
        # an .mp4 does (it only primes the decoder): the pictures would no longer be where they were. Where the
        # length of the run-up is known (Opus, and what comes from Matroska), it is written down instead.
        matroska = "matroska" in template.container.format.name
        known = matroska or template.codec_context.codec.canonical_name == "opus"
        self._never_negative = out.format.name in ("matroska", "webm") and not known and not self._subtitle
        self._last: int | None = None
        describe(template, self._stream, out.format.name)

    def put(self, packet: Any, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """The packet, moved; nothing where it lies outside the part that is kept."""
        if packet.dts is None or not packet.size:
            return
        if self._subtitle:
            if not clip(packet, origin, end):
                return
        elif (origin and seconds(packet) < origin) or (end is not None and seconds(packet) >= end):
            return
        base = packet.time_base
        shift = round(origin / base)
        pts, dts = (packet.pts if packet.pts is not None else packet.dts) - shift, packet.dts - shift
        if self._never_negative and pts < 0:
            if 2 * pts + (packet.duration or 0) <= 0:  # most of it lies before the start
                return
            pts = dts = 0
        if self._last is not None and dts <= self._last and not self._subtitle:
            return  # the same moment twice: muxers refuse it
        self._last = dts
        packet.pts, packet.dts, packet.stream = pts, dts, self._stream
        yield packet

    def join(self) -> None:
        """Packets are whole: one that begins before the last one has is left out."""

    def end(self, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """Nothing is held."""
        return iter(())


def clip(packet: Any, origin: Fraction, end: Fraction | None) -> bool:
    """Shortens a subtitle to the part that is kept; False where nothing of it is left."""
    begins, length = seconds(packet), (packet.duration or 0) * packet.time_base
    if end is not None and begins >= end:
        return False
    if origin and begins < origin:
        if begins + length <= origin:
            return False
        packet.duration = round((begins + length - origin) / packet.time_base)
        packet.pts = packet.dts = round(origin / packet.time_base)
    if end is not None and length and seconds(packet) + packet.duration * packet.time_base > end:
        packet.duration = max(1, round((end - seconds(packet)) / packet.time_base))
    return True


def _try_sound(out: Any, template: Any, encoder: str) -> SoundTrack | None:
    source = template.codec_context
    if not source.sample_rate or not source.channels:
        return None
    rate = 48000 if encoder == "libopus" or source.sample_rate > 96000 else source.sample_rate
    simple = "mono" if source.channels == 1 else "stereo"
    # The encoder for AAC takes 5.1 but not 5.1(side), which is how AC-3 and DTS have it; WAV names no layout at all.
    usual = {5: "5.0", 6: "5.1", 8: "7.1"}.get(source.channels, simple)
    for r, layout in ((rate, source.layout.name), (rate, usual), (rate, simple), (48000, simple)):
        trial: Any = av.CodecContext.create(encoder, "w")
        with contextlib.suppress(ValueError, av.FFmpegError):
            trial.sample_rate, trial.layout = r, layout
            trial.format = trial.codec.audio_formats[0]
            trial.open()
            return SoundTrack(out, template, encoder, r, layout)
    return None


def _add_sound(out: Any, encoder: str, rate: int, layout: str) -> Any:
    """A stream of the output whose encoder is open."""
    stream = out.add_stream(encoder, rate=rate, layout=layout)
    context = stream.codec_context
    context.bit_rate = _BIT_RATE[encoder] * context.layout.nb_channels
    context.time_base = Fraction(1, rate)
    context.open()
    return stream


class SoundTrack:
    """A sound track that is decoded and encoded again. Gaps in it are filled with silence, so it stays in sync."""

    def __init__(self, out: Any, template: Any, encoder: str, rate: int, layout: str) -> None:
        self._template = template
        self._stream = _add_sound(out, encoder, rate, layout)
        self._context = self._stream.codec_context
        self._resampler: Any = None
        self._form: tuple[str, str, int] | None = None
        self._until: Fraction | None = None  # where what was put ends, in seconds of the input
        self._joined = False
        describe(template, self._stream, out.format.name)

    def put(self, packet: Any, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """Packets of the sound that the packet completes."""
        if packet.size:
            for frame in self._template.codec_context.decode(packet):
                yield from self._encode(frame, origin, end)

    def join(self) -> None:
        """What follows comes at its time to the sample: the resampler sees to gaps and overlaps from 100 ms on only."""
        self._joined = True

    def end(self, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """The tail of the decoder, the resampler and the encoder."""
        with contextlib.suppress(av.FFmpegError):
            for frame in self._template.codec_context.decode(None):
                if frame.time_base is not None:
                    yield from self._encode(frame, origin, end)
        if self._resampler is not None:
            for frame in self._resampler.resample(None):
                yield from self._stream.encode(frame)
            yield from self._stream.encode(None)

    def _encode(self, frame: Any, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        if frame.pts is None:
            return
        if self._joined and self._until is not None:
            for piece in seam(frame, self._until):
                self._joined = False
                yield from self._encode(piece, origin, end)
            return
        self._until = frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        cut = _cut(frame, origin, end)
        if cut is None:
            return
        if form != self._form:
            if self._resampler is not None:
                for rest in self._resampler.resample(None):
                    yield from self._stream.encode(rest)
            self._form = form
            self._resampler = av.AudioResampler(
                self._context.format.name,
                self._context.layout.name,
                self._context.sample_rate,
                frame_size=self._context.frame_size,
                options={"async": "1"},
            )
        for ready in self._resampler.resample(cut):
            yield from self._stream.encode(ready)


def _cut(frame: Any, origin: Fraction, end: Fraction | None) -> Any:
    """The samples of a frame between origin and end, their time moved by origin; None where there are none."""
    rate, begins = frame.sample_rate, frame.pts * frame.time_base
    first = max(0, -int((begins - origin) * rate // 1)) if origin else 0
    last = frame.samples if end is None else min(frame.samples, round((end - begins) * rate))
    if first >= last:
        return None
    if first > 0 or last < frame.samples:
        samples = frame.to_ndarray()
        step = 1 if frame.format.is_planar else frame.layout.nb_channels
        part = np.ascontiguousarray(samples[:, first * step : last * step])
        cut = av.AudioFrame.from_ndarray(part, format=frame.format.name, layout=frame.layout.name)
        cut.sample_rate = rate
    else:
        cut = frame
    cut.pts, cut.time_base = round((begins - origin) * rate) + first, Fraction(1, rate)
    return cut


class LiveTrack:
    """The sound of a microphone beside live pictures. `feed` is the capture thread's, the rest the sink's.

    Encoded as it comes, also while no picture does. The clocks of sound card and pictures are kept together by
    stretching; gaps of up to two seconds are filled with silence, longer ones are left empty.
    """

    def __init__(self, out: Any, microphone: Microphone, suffix: str) -> None:
        layout = "mono" if microphone.channels == 1 else "stereo"
        self._stream = _add_sound(out, _SOUND[suffix], _LIVE_RATE, layout)
        self._changed = threading.Condition()
        self._raw: deque[Any] = deque()  # frames that came before `start`
        self._ready: deque[Any] = deque(maxlen=600 * _LIVE_RATE // 960)
        self._origin: Fraction | None = None
        self._until = Fraction(0)  # what has come
        self._end: Fraction | None = None
        self._resampler: Any = None
        self._over = False
        self._microphone = microphone
        microphone.record(self.feed)

    def feed(self, frame: Any) -> None:
        """Takes an av.AudioFrame; its pts and time_base say when. Raises av.FFmpegError or ValueError where it cannot
        be encoded; then nothing more is taken."""
        with self._changed:
            if self._over:
                return
            self._over = True  # until this has gone well
            self._raw.append(frame)
            first = self._raw[0]
            if self._origin is None and (frame.pts - first.pts) * frame.time_base > _BEFORE:
                self._raw.popleft()
            while self._raw and self._origin is not None:
                self._encode(self._raw.popleft(), self._origin)
            self._over = False
            self._changed.notify_all()

    def start(self, origin: Fraction) -> None:
        """The time that becomes 0 in the output; what came before is cut."""
        with self._changed:
            self._origin = origin

    def advance(self, until: Fraction) -> Iterator[Any]:
        """What lies before `until`: never more than there are pictures for."""
        self._microphone.watch()
        with self._changed:
            ready = list(self._take(until))
        yield from ready

    def finish(self, end: Fraction) -> Iterator[Any]:
        """The rest, up to `end`, which may take half a second to come. Then the microphone is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._until >= end, _CATCH_UP if self._microphone.alive else 0)
            failed, self._over, self._end = self._over, True, end
            try:
                while self._raw and self._origin is not None and not failed:
                    self._encode(self._raw.popleft(), self._origin)
                self._flush()
                self._ready.extend(self._stream.encode(None))
            except (av.FFmpegError, ValueError) as exc:
                if not failed:
                    _log.warning("the end of the sound cannot be encoded and is left out (%s)", exc)
        self._microphone.close()
        yield from self._take(end, last=True)

    def _take(self, until: Fraction, *, last: bool = False) -> Iterator[Any]:
        """A packet goes when the next one is there, and lasts until that: where a fragment of an .mp4 ends in a gap, it
        would else be lost, and what follows come early."""
        while len(self._ready) > (not last) and self._origin is not None:
            packet = self._ready[0]
            if packet.pts * packet.time_base >= until - self._origin:
                return
            self._ready.popleft()
            if self._ready:
                packet.duration = self._ready[0].pts - packet.pts
            yield packet

    def _encode(self, frame: Any, origin: Fraction) -> None:
        begins = frame.pts * frame.time_base
        gap = begins - self._until
        self._until = begins + Fraction(frame.samples, frame.sample_rate)
        cut = _cut(frame, origin, self._end)
        if cut is None:
            return
        if self._resampler is None or gap > _LONGEST_GAP:
            self._flush()
            context = self._stream.codec_context
            self._resampler = av.AudioResampler(
                context.format.name,
                context.layout.name,
                context.sample_rate,
                frame_size=context.frame_size,
                options={"async": "1000"},
            )
        for ready in self._resampler.resample(cut):
            self._ready.extend(self._stream.encode(ready))

    def _flush(self) -> None:
        if self._resampler is not None:
            for rest in self._resampler.resample(None):
                self._ready.extend(self._stream.encode(rest))


class TextTrack:
    """A subtitle track of text, written in the container's own kind."""

    def __init__(self, out: Any, template: Any, encoder: str) -> None:
        self._source = template.codec_context
        self._source.open(strict=False)
        self._stream = out.add_stream(encoder)
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = Fraction(1, 1000)
        context.subtitle_header = self._source.subtitle_header
        describe(template, self._stream, out.format.name)

    def put(self, packet: Any, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """The same words at the same time; nothing where there are none (an .mp4 fills gaps with such packets)."""
        if packet.dts is None or not packet.size or not clip(packet, origin, end):
            return
        words = self._source.decode2(packet)
        if words is None or not len(words):
            return
        text = self._stream.codec_context.encode_subtitle(words)
        text.time_base = Fraction(1, 1000)
        text.pts = text.dts = round((seconds(packet) - origin) * 1000)
        text.duration = round((packet.duration or 0) * packet.time_base * 1000)
        text.stream = self._stream
        yield text

    def join(self) -> None:
        """Nothing to do."""

    def end(self, origin: Fraction, end: Fraction | None) -> Iterator[Any]:
        """Nothing is held."""
        return iter(())
