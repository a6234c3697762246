"""What goes with the pictures into a video: sound, subtitles, chapters, in sync with them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import make_video
from sink_parts import make_frames, make_info, times, write

from rtbg.frame import Frame, StreamInfo
from rtbg.protocols import Sink
from rtbg.sinks import VideoSink, open_sink
from rtbg.sinks.codecs import CONTAINERS
from rtbg.sources import open_source


def packets(path: Path, kind: str, index: int = 0) -> list[tuple[Fraction, Fraction, bytes]]:
    """(time, length, bytes) of every packet of a track."""
    with av.open(str(path)) as container:
        stream = [s for s in container.streams if s.type == kind][index]
        base = stream.time_base
        return [(p.pts * base, (p.duration or 0) * base, bytes(p)) for p in container.demux(stream) if p.size]


def sound(path: Path, index: int = 0) -> tuple[float, np.ndarray, int]:
    """(start in seconds, float32 samples of the first channel, rate)."""
    with av.open(str(path)) as container:
        got = list(container.decode(container.streams.audio[index]))
    flat = av.AudioResampler("fltp", "mono", got[0].sample_rate)
    parts = [p.to_ndarray()[0] for f in [*got, None] for p in flat.resample(f)]
    return float(got[0].pts * got[0].time_base), np.concatenate(parts), got[0].sample_rate


def carry(source: Path, target: Path, **options: Any) -> Sink:
    """Sends the pictures of a file through a sink, as the pipeline does."""
    start, limit = options.pop("start", 0.0), options.pop("limit", None)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        origin = (stream.start_time or 0) * base + Fraction(start)
        info = make_info(width=stream.width, height=stream.height, time_base=base, path=source, start=start)
        info = StreamInfo(**{f: getattr(info, f) for f in info.__dataclass_fields__} | {"limit": limit})
        sink = open_sink(target, info, **options)
        for k, f in enumerate(container.decode(stream)):
            if f.pts * base >= origin and (limit is None or f.pts * base < origin + Fraction(limit)):
                sink.write(Frame(make_frames(info, [f.pts])[0].planes, f.pts, base, info.color))
            assert k < 1000
        sink.close()
    return sink


def mux(target: Path, *sources: Path, format: str | None = None, codecs: Sequence[str] = ()) -> Path:
    """All tracks of several files in one, subtitles as they are."""
    inputs = [av.open(str(s)) for s in sources]
    with av.open(str(target), "w", format=format) as out:
        streams = {(k, s.index): out.add_stream_from_template(s) for k, i in enumerate(inputs) for s in i.streams}
        for n, stream in enumerate(out.streams):
            if stream.type != "video":
                stream.metadata.update({"language": ("fra", "deu", "eng")[n % 3], "title": f"Track {n}"})
                stream.disposition = 64 if stream.type == "subtitle" else int(n == 2)
        for k, source in enumerate(inputs):
            for packet in source.demux():
                if packet.dts is not None and packet.size:
                    packet.stream = streams[k, packet.stream.index]
                    out.mux(packet)
            source.close()
    return target


def srt(path: Path) -> Path:
    text = "1\n00:00:00,100 --> 00:00:00,300\nHello <i>you</i>\n\n2\n00:00:00,600 --> 00:00:00,900\nGrüße\n"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("made", "encoder", "target", "codec", "copied"),
    [
        (".mp4", "aac", ".mp4", "aac", True),
        (".mp4", "aac", ".mov", "aac", True),
        (".mp4", "aac", ".mkv", "aac", True),
        (".mp4", "aac", ".webm", "opus", False),
        (".mkv", "pcm_s16le", ".mp4", "aac", False),
        (".mkv", "pcm_s16le", ".mov", "pcm_s16le", True),
        (".mkv", "flac", ".mov", "aac", False),
        (".mkv", "mp2", ".mp4", "aac", False),
        (".mkv", "libopus", ".webm", "opus", True),
        (".mkv", "libopus", ".mp4", "opus", True),
        (".mkv", "aac", ".mkv", "aac", True),
        (".mp4", "libopus", ".mkv", "opus", True),
        (".mp4", "libmp3lame", ".mkv", "mp3", False),
        (".ts", "aac", ".mp4", "aac", True),
        (".avi", "libmp3lame", ".mkv", "mp3", True),
    ],
)
def test_sound(
    tmp_path: Path,
    made: str,
    encoder: str,
    target: str,
    codec: str,
    copied: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pictures = "mpeg4" if made == ".avi" else "libx264"
    source = make_video(tmp_path / f"in{made}", frames=25, audio=encoder, size=(64, 48), codec=pictures)
    path = tmp_path / f"out{target}"
    carry(source, path)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        assert container.streams.audio[0].codec_context.codec.canonical_name == codec
    tick = Fraction(0) if target in (".mp4", ".mov") else Fraction(1, 1000)
    assert max(abs(a - b) for a, b in zip(times(source), times(path), strict=True)) <= tick
    before, after = packets(source, "audio"), packets(path, "audio")
    if copied and encoder != "aac":  # an ADTS header or an AAC packet that primes the decoder may go
        assert [p[2] for p in before] == [p[2] for p in after]
    (start_a, wave_a, rate_a), (start_b, wave_b, rate_b) = sound(source), sound(path)
    assert abs(len(wave_a) / rate_a - len(wave_b) / rate_b) < 0.05
    # The tone of the source is 440 Hz: its phase tells the offset of the sound within 1.1 ms, the start the rest.
    assert abs(start_a - start_b) < 0.03
    shift = phase(start_b, wave_b, rate_b) - phase(start_a, wave_a, rate_a)
    assert abs((shift + np.pi) % (2 * np.pi) - np.pi) < 2 * np.pi * 440 * 0.0012, "A/V sync is off"


def phase(start: float, wave: np.ndarray, rate: int) -> float:
    """Phase of a 440 Hz tone at time 0 of the file, from its middle."""
    n = np.arange(len(wave) // 4, len(wave) * 3 // 4)
    return float(np.angle(np.sum(wave[n] * np.exp(-2j * np.pi * 440 * (start + n / rate)))))


def test_tracks_keep_language_title_and_default(tmp_path: Path) -> None:
    a = make_video(tmp_path / "a.mp4", frames=25, audio="aac", size=(64, 48))
    b = make_video(tmp_path / "b.mkv", frames=25, audio="libopus", size=(64, 48))
    with av.open(str(tmp_path / "b2.mka"), "w", format="matroska") as out, av.open(str(b)) as source:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    source = mux(tmp_path / "in.mkv", a, tmp_path / "b2.mka", srt(tmp_path / "s.srt"))
    for suffix in CONTAINERS:
        path = tmp_path / f"out{suffix}"
        carry(source, path)
        with av.open(str(path)) as container:
            got = container.streams
            assert [s.type for s in got] == ["video", "audio", "audio", "subtitle"]
            assert [s.language for s in got][1:] == ["deu", "eng", "fra"] or suffix == ".mov"
            titles = [s.metadata.get("title") or s.metadata.get("name") for s in got][1:]
            assert titles == ["Track 1", "Track 2", "Track 3"]
            if suffix != ".mov":  # which knows of no forced tracks
                # An .mp4 switches the first track of each kind on.
                assert [int(s.disposition) & 65 for s in got][1:] == [0, 1, 65 if suffix == ".mp4" else 64]
            text = got[3]
            words = [
                (p.pts * text.time_base, p.duration * text.time_base, [r.dialogue.decode() for r in subtitles])
                for p in container.demux(text)
                if p.size and (subtitles := text.codec_context.decode2(p)) and len(subtitles)
            ]
        assert [w[0] for w in words] == pytest.approx([0.121, 0.621], abs=0.03), suffix
        assert [w[1] for w in words] == pytest.approx([0.2, 0.3], abs=0.002)
        assert "Hello" in words[0][2][0] and words[1][2] == ["Grüße"]


@pytest.mark.parametrize(
    ("made", "suffix", "audio"),
    [(made, suffix, "aac") for made in (".mkv", ".mp4", ".ts") for suffix in (".mp4", ".webm")]
    + [(made, suffix, "flac") for made in (".mkv", ".mp4") for suffix in (".mkv", ".mp4", ".webm")],
)
def test_trimmed_in_sync(tmp_path: Path, made: str, suffix: str, audio: str) -> None:
    a = make_video(tmp_path / "a.mp4", frames=75, audio=audio, size=(64, 48), options={"g": "10"})
    source = mux(tmp_path / f"in{made}", a, *([srt(tmp_path / "s.srt")] if made == ".mkv" else []))
    path = tmp_path / f"out{suffix}"
    carry(source, path, start=1.0, limit=1.2)
    got = times(path)
    assert got[0] == 0 and len(got) == 30
    start, wave, rate = sound(path)
    packet = 0.1 if audio == "flac" and suffix != ".webm" else 0.03  # seconds in one that is copied
    assert 0 <= start < packet
    assert start + len(wave) / rate == pytest.approx(1.2, abs=packet)
    begin, whole, rate_a = sound(source)
    with av.open(str(source)) as container:
        origin = float(container.streams.video[0].start_time * container.streams.video[0].time_base) + 1.0
    shift = phase(start + origin, wave, rate) - phase(begin, whole, rate_a)
    assert abs((shift + np.pi) % (2 * np.pi) - np.pi) < 2 * np.pi * 440 * 0.0012, "A/V sync is off"
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(1.2e6, abs=packet * 1e6)
        if made == ".mkv":
            assert len(container.streams.subtitles) == 1  # though nothing of it is left


def test_subtitle_across_the_start_is_cut(tmp_path: Path) -> None:
    source = mux(tmp_path / "in.mkv", make_video(tmp_path / "a.mp4", frames=25), srt(tmp_path / "s.srt"))
    carry(source, tmp_path / "out.mkv", start=0.72, limit=0.12)
    (got,) = packets(tmp_path / "out.mkv", "subtitle")
    assert (got[0], got[1], got[2].decode()) == (0, Fraction(120, 1000), "Grüße")


def test_no_audio_and_missing_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = mux(
        tmp_path / "in.mkv",
        make_video(tmp_path / "a.mp4", frames=12, audio="aac"),
        srt(tmp_path / "s.srt"),
    )
    carry(source, tmp_path / "quiet.mp4", audio=False)
    with av.open(str(tmp_path / "quiet.mp4")) as container:
        assert [s.type for s in container.streams] == ["video", "subtitle"]
    info = make_info(path=tmp_path / "gone.mp4")
    write(tmp_path / "b.mp4", info, make_frames(info))
    assert len([r for r in caplog.records if "sound cannot be read" in r.message]) == 1
    assert len(times(tmp_path / "b.mp4")) == 8


def test_gap_in_sound_stays_in_sync(tmp_path: Path) -> None:
    """Half a second of sound is missing in the middle: what follows still comes at its time."""
    whole = make_video(tmp_path / "a.mkv", frames=50, audio="flac", size=(64, 48))
    with av.open(str(whole)) as source, av.open(str(tmp_path / "gap.mkv"), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None or (packet.stream.type == "audio" and 0.7 < packet.pts * packet.time_base < 1.2):
                continue
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    carry(tmp_path / "gap.mkv", tmp_path / "out.mov")  # no FLAC there: encoded again
    _, wave, rate = sound(tmp_path / "out.mov")
    assert len(wave) / rate == pytest.approx(2.0, abs=0.05)
    assert np.abs(wave[int(0.9 * rate) : int(1.1 * rate)]).max() < 0.01
    assert np.abs(wave[int(1.5 * rate) : int(1.9 * rate)]).max() > 0.1


@pytest.mark.parametrize("audio", ["aac", "ac3"])
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])  # copied and encoded again
@pytest.mark.parametrize(("frames", "copies"), [(75, 2), (23, 3)])
def test_glued_files_stay_in_sync(
    tmp_path: Path, audio: str, suffix: str, frames: int, copies: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Every copy's tone begins with its own pictures: half a second of silence and then the tone, in each."""
    plain = {"bf": "0"}  # no time below 0, which would wrap around
    one = make_video(tmp_path / "a.mkv", frames=frames, audio="pcm_s16le", size=(64, 48), options=plain)
    with av.open(str(one)) as source, av.open(str(tmp_path / "one.ts"), "w") as out:
        pictures, track = out.add_stream_from_template(source.streams.video[0]), out.add_stream(audio, rate=48000)
        track.layout = "mono"
        resampler = av.AudioResampler("fltp", "mono", 48000, frame_size=1536 if audio == "ac3" else 1024)
        for packet in source.demux():
            if packet.stream.type == "video" and packet.dts is not None:
                packet.stream = pictures
                out.mux(packet)
            for frame in packet.decode() if packet.stream.type == "audio" else []:
                for part in resampler.resample(frame):
                    wave = part.to_ndarray()
                    wave[:, : max(0, 24000 - part.pts)] = 0
                    quiet = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                    quiet.sample_rate, quiet.pts, quiet.time_base = 48000, part.pts, Fraction(1, 48000)
                    out.mux(track.encode(quiet))
        out.mux(track.encode(None))
    (tmp_path / "in.ts").write_bytes((tmp_path / "one.ts").read_bytes() * copies)
    source, target = open_source(tmp_path / "in.ts"), tmp_path / f"out{suffix}"
    sink = open_sink(target, source.info)
    while (picture := source.read()) is not None:
        sink.write(picture)
    sink.close()
    source.close()
    assert [r.message for r in caplog.records if "starts again" in r.message] == []
    shown = [float(t) for t in times(target)]
    assert len(shown) == frames * copies
    with av.open(str(target)) as container:
        heard = [(f.time, f.to_ndarray().reshape(-1)) for f in container.decode(audio=0)]
    loud = [t + k / 48000 for t, wave in heard for k in np.flatnonzero(np.abs(wave) > 0.1)]
    begins = [loud[0]] + [b for a, b in pairwise(loud) if b - a > 0.3]
    assert begins == pytest.approx([shown[k * frames] + 0.5 for k in range(copies)], abs=0.02)


def test_sound_that_starts_again_alone_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = make_video(tmp_path / "one.ts", frames=50, audio="aac", size=(64, 48)).read_bytes()
    pieces = [one[k : k + 188] for k in range(0, len(one), 188)]
    quiet = [p for p in pieces if int.from_bytes(p[1:3]) & 0x1FFF != 0x100]  # without the pictures
    (tmp_path / "in.ts").write_bytes(one + b"".join(quiet))
    carry(tmp_path / "in.ts", tmp_path / "out.mkv")
    (told,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert re.fullmatch(r"in\.ts: audio track 1 \(aac\) starts again at \d\.\d s, its pictures do not: left out", told)
    _, wave, rate = sound(tmp_path / "out.mkv")
    assert len(wave) / rate == pytest.approx(2.0, abs=0.06)


def test_damaged_sound_does_not_stop_the_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make_video(tmp_path / "a.mp4", frames=50, audio="aac", size=(64, 48))
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        spots = [(p.pos, p.size) for p in container.demux(audio=0) if p.size][20:60]
    for at, size in spots:
        data[at : at + size] = b"\xff\x3c" * (size // 2) + b"\xff" * (size % 2)
    (tmp_path / "bad.mp4").write_bytes(bytes(data))
    carry(tmp_path / "bad.mp4", tmp_path / "out.webm")
    assert len(times(tmp_path / "out.webm")) == 50
    assert len([r for r in caplog.records if "damaged" in r.message]) == 1
    _, wave, rate = sound(tmp_path / "out.webm")
    assert len(wave) / rate == pytest.approx(2.0, abs=0.06)


def test_what_cannot_go_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = make_video(tmp_path / "a.mp4", frames=12, audio="aac")
    with av.open(str(tmp_path / "in.mkv"), "w") as out, av.open(str(video)) as source:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        out.add_attachment("font.ttf", "font/ttf", b"\0" * 100)
        out.add_attachment("font2.ttf", "font/ttf", b"\0" * 100)
        out.set_chapters(
            [{"id": 1, "start": 0, "end": 480, "time_base": Fraction(1, 1000), "metadata": {"title": "C"}}]
        )
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    carry(tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert caplog.records == []
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [s.type for s in container.streams].count("attachment") == 2
        assert container.chapters()[0]["metadata"]["title"] == "C"
    carry(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert [r.message for r in caplog.records] == ["in.mkv: not carried over into .mp4: 2 x attachment track"]
    caplog.clear()
    carry(tmp_path / "out.mp4", tmp_path / "again.mp4")  # the chapters of an .mp4 are also a data track
    assert caplog.records == []
    with av.open(str(tmp_path / "again.mp4")) as container:
        assert container.chapters()[0]["metadata"]["title"] == "C"


def test_pictures_are_never_behind_the_sound(tmp_path: Path) -> None:
    """The input is read only as far as the pictures have come."""
    source = make_video(tmp_path / "a.mkv", frames=100, audio="pcm_s16le", size=(64, 48))
    info = make_info(path=source)
    sink = open_sink(tmp_path / "out.mkv", info)
    assert isinstance(sink, VideoSink) and sink._passthrough is not None
    for k, frame in enumerate(make_frames(info, range(100))):
        sink.write(frame)
        waiting = sink._passthrough._next
        assert waiting is None or waiting[0].pts * waiting[0].time_base < k / 25 + 1.0
    sink.close()
