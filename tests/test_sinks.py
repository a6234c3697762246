"""Sinks: real encodes, read back with PyAV."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from media import make_video, picture, read_video

from rtbg.color import rgb_to_planes
from rtbg.errors import OutputError, UsageError
from rtbg.frame import Color, Frame, StreamInfo
from rtbg.protocols import Sink
from rtbg.sinks import StillSink, VideoSink, open_sink
from rtbg.sinks.codecs import CODECS, CONTAINERS

VALID = [(codec, suffix) for codec, c in CODECS.items() for suffix in c.suffixes]
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


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "rtbg-" in p.name or "partial" in p.name)


# ---------------------------------------------------------------- every codec in every container


@pytest.mark.parametrize(("codec", "suffix"), VALID)
def test_contract(
    tmp_path: Path,
    codec: str,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    info = make_info(metadata={"title": "A title", "comment": "c", "encoder": "other", "major_brand": "isom"})
    info = StreamInfo(**{f: getattr(info, f) for f in info.__dataclass_fields__} | {"rotation": 90})
    path = tmp_path / f"größe 1{suffix}"
    sink = open_sink(path, info, codec=codec)
    assert isinstance(sink, Sink)
    assert isinstance(sink, VideoSink) and sink.description.startswith(codec)
    frames = make_frames(info)
    for frame in frames:
        sink.write(frame)
    assert not path.exists()
    sink.close()
    sink.close()
    sink.abort()  # does nothing any more
    assert path.exists() and leftovers(tmp_path) == []
    got = decode(path)
    assert [f.pts * f.time_base for f in got] == [f.pts * f.time_base for f in frames]
    for frame, back in zip(frames, got, strict=True):
        scale = back.format.components[0].bits / 8
        luma = plane(back, 0) / 2 ** (8 * (scale - 1))
        assert np.abs(luma - frame.planes[0]).mean() < 3
        assert back.rotation == 90
        assert (back.colorspace, back.color_range, back.color_primaries, back.color_trc) == (1, 1, 1, 1)
    with av.open(str(path)) as container:
        assert container.duration == 320_000
        notes = {k.lower(): v for k, v in container.metadata.items()}
        assert notes["title"] == "A title" and notes["comment"] == "c" and notes["encoder"] != "other"
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        if codec == "hevc" and suffix != ".mkv":
            assert stream.codec_context.codec_tag == "hvc1"
        if suffix in (".mp4", ".mov"):
            data = path.read_bytes()
            assert data.index(b"moov") < data.index(b"mdat")
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")  # some encoders would print


@pytest.mark.parametrize(("codec", "suffix"), VALID)
def test_uneven_times_are_exact(tmp_path: Path, codec: str, suffix: str) -> None:
    pts = [3003, 6006, 9000, 18000, 18090, 45000, 45900, 90000, 93000, 94500]
    info = make_info(time_base=Fraction(1, 90000))
    path = tmp_path / f"a{suffix}"
    write(path, info, make_frames(info, pts), codec=codec)
    want = [Fraction(p, 90000) for p in pts]
    exact = suffix in (".mp4", ".mov")  # Matroska counts in milliseconds
    assert max(abs(a - b) for a, b in zip(times(path), want, strict=True)) <= (0 if exact else Fraction(1, 2000))
    with av.open(str(path)) as container:
        length = (pts[-1] + 1500 - (pts[0] if exact else 0)) / 90000
        assert container.duration == pytest.approx(length * 1e6, abs=12 if exact else 1000)


@pytest.mark.parametrize("base", [Fraction(1), Fraction(1001, 30000), Fraction(1, 1_000_000), Fraction(1, 1000)])
def test_time_bases(tmp_path: Path, base: Fraction) -> None:
    pts = [7, 8, 11, 12, 13, 27] if base > Fraction(1, 1000) else [7, 40001, 80000, 80003, 160000, 200001]
    info = make_info(time_base=base, rate=min(1 / base, Fraction(30)))
    write(tmp_path / "a.mp4", info, make_frames(info, pts))
    assert times(tmp_path / "a.mp4") == [p * base for p in pts]


def test_one_frame_and_late_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = make_info(still=True, frames=1, time_base=Fraction(1), rate=Fraction(1), chroma=(1, 1), color=Color(1, 2))
    write(tmp_path / "still.mp4", info, make_frames(info, [0]))
    with av.open(str(tmp_path / "still.mp4")) as container:
        assert container.duration == 1_000_000
    info = make_info()
    write(tmp_path / "a.mp4", info, make_frames(info, [0, 1, 1, 0, 2]))
    assert times(tmp_path / "a.mp4") == [Fraction(k, 25) for k in range(3)]
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "a.mp4: a picture at 0.040 s came out of order: left out"
    ]


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("chroma", [(2, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("codec", list(CODECS))
def test_depth_and_chroma(
    tmp_path: Path, codec: str, bits: int, chroma: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    info = make_info(bits=bits, chroma=chroma)
    digits = {(2, 2): "420", (2, 1): "422", (1, 1): "444"}[chroma]
    want = f"yuv{digits}p" + ("10le" if bits == 10 else "")
    expected = {
        "av1": f"yuv420p{'10le' if bits == 10 else ''}",
        "vp9": f"yuv{digits}p",
        "prores": "yuv444p12le" if digits == "444" else "yuv422p10le",  # FFmpeg reads all 4444 as 12 bits
    }.get(codec, want)
    frame = make_frames(info, [0])[0]
    path = tmp_path / "a.mkv"
    write(path, info, [frame], codec=codec)
    back = decode(path)[0]
    assert back.format.name == expected
    got = back.format.components[0].bits
    for k in range(3):
        a, b = frame.planes[k] / 2.0 ** (bits - 8), plane(back, k) / 2.0 ** (got - 8)
        if a.shape != b.shape:
            a = cv2.resize(a, b.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(a - b).mean() < 4
    loses = (codec == "av1" and digits != "420") or (codec == "vp9" and bits == 10)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING and "reduced" in r.message]) == loses


def test_prores_full_range_becomes_limited(tmp_path: Path) -> None:
    info = make_info(color=Color(1, 2, 1, 1))
    planes = tuple(np.full(s, v, np.uint8) for s, v in (((48, 64), 255), ((24, 32), 128), ((24, 32), 128)))
    write(tmp_path / "a.mov", info, [Frame(planes, 0, info.time_base, info.color)], codec="prores")
    assert plane(decode(tmp_path / "a.mov")[0], 0).mean() == pytest.approx(940, abs=5)


@pytest.mark.parametrize("color", [Color(), Color(5, 1, 5, 6), Color(1, 2, 1, 13), Color(9, 1, 9, 16)])
def test_color_tags(tmp_path: Path, color: Color) -> None:
    info = make_info(color=color)
    for suffix in (".mp4", ".mov", ".mkv"):
        path = tmp_path / f"a{suffix}"
        write(path, info, make_frames(info, range(2)))
        f = decode(path)[0]
        assert Color(f.colorspace, f.color_range, f.color_primaries, f.color_trc) == color


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", list(CONTAINERS))
def test_rotation(tmp_path: Path, suffix: str, rotation: int) -> None:
    info = make_info(rotation=rotation)
    write(tmp_path / f"a{suffix}", info, make_frames(info, range(2)))
    assert decode(tmp_path / f"a{suffix}")[0].rotation % 360 == rotation


def test_pixel_shape(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = make_info(sample_aspect=Fraction(4, 3))
    for codec, suffix in VALID:
        path = tmp_path / f"{codec}{suffix}"
        caplog.clear()
        write(path, info, make_frames(info, range(2)), codec=codec)
        with av.open(str(path)) as container:
            kept = container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert kept == (not any("pixel shape" in r.message for r in caplog.records)), (codec, suffix)
        assert kept or suffix in (".mkv", ".webm")


@pytest.mark.parametrize("size", [(65, 49), (64, 49), (65, 48)])
@pytest.mark.parametrize(
    ("codec", "chroma"),
    [("h264", (2, 1)), ("h264", (1, 1)), *((c, (2, 2)) for c in CODECS)],
)
def test_odd_sizes(
    tmp_path: Path,
    codec: str,
    chroma: tuple[int, int],
    size: tuple[int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    info = make_info(width=size[0], height=size[1], chroma=chroma)
    path = tmp_path / "a.mkv"
    frames = make_frames(info, range(2))
    write(path, info, frames, codec=codec)
    back = decode(path)[0]
    even = chroma if codec in ("h264", "hevc") else (1, 1)
    want = (-(-size[0] // even[0]) * even[0], -(-size[1] // even[1]) * even[1])
    assert (back.width, back.height) == want
    assert len([r for r in caplog.records if "even" in r.message]) == (want != size)
    if codec != "prores":  # 10 bits
        luma = plane(back, 0).astype(int)
        assert np.abs(luma[: size[1], : size[0]] - frames[0].planes[0]).mean() < 3
        assert np.abs(luma[-1] - luma[size[1] - 1]).max() < 12 and np.abs(luma[:, -1] - luma[:, size[0] - 1]).max() < 12


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("chroma", [(2, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize(("suffix", "codec"), [(".mov", None), (".mkv", None), (".webm", None), (".mkv", "prores")])
def test_alpha(tmp_path: Path, suffix: str, codec: str | None, chroma: tuple[int, int], bits: int) -> None:
    info = make_info(width=65, bits=bits, chroma=chroma)
    frames = make_frames(info, range(3), alpha=True)
    frames.append(make_frames(info, [3])[0])  # three planes: opaque
    path = tmp_path / f"a{suffix}"
    write(path, info, frames, alpha=True, codec=codec)
    got = decode(path, "libvpx-vp9" if suffix == ".webm" else None)
    assert len(got) == 4 and all(f.format.name.startswith("yuva") for f in got)
    top = 2 ** got[0].format.components[0].bits - 1
    for f in got[:3]:
        alpha = plane(f, 3) / top
        assert alpha[:, :30].max() < 0.02 and alpha[:, 34:].min() > 0.98
    assert (plane(got[3], 3) / top).min() > 0.98
    luma = plane(got[0], 0) / 2.0 ** (got[0].format.components[0].bits - 8)
    assert np.abs(luma - frames[0].planes[0] / 2.0 ** (bits - 8)).mean() < 3  # under the transparent half, too


# ---------------------------------------------------------------- sound and subtitles


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
        assert waiting is None or waiting.pts * waiting.time_base < k / 25 + 1.0
    sink.close()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.gif", {}, r"a\.gif.*\.mp4 .*\.png"),
        ("a", {}, r"must end in one of"),
        ("a.mp4", {"codec": "divx"}, "unknown codec 'divx'.*h264, hevc, av1, vp9, prores, ffv1"),
        ("a.mov", {"codec": "vp9"}, r"vp9 does not go into \.mov: use \.mp4 or \.mkv or \.webm"),
        ("a.mp4", {"codec": "prores"}, r"use \.mov or \.mkv"),
        ("a.webm", {"codec": "h264"}, r"use \.mp4 or \.mov or \.mkv"),
        ("a.mp4", {"alpha": True}, r"use \.mov \(ProRes 4444\) or \.webm \(VP9\)"),
        ("a.mov", {"alpha": True, "codec": "h264"}, r"h264 holds no transparency"),
        ("a.jpg", {"alpha": True, "still": True}, r"use \.png or \.webp"),
        ("a.png", {}, r"name an \.mp4"),
        ("a.png", {"still": True, "codec": "h264"}, "--codec is for videos"),
        ("a.mp4", {"crf": 77}, r"--crf of h264 is 0 \(best\) to 51, not 77"),
        ("a.mov", {"crf": 7, "codec": "prores"}, "prores has no --crf"),
        ("a.mp4", {"preset": "bogus"}, "--preset of h264 is one of ultrafast"),
        ("a.mkv", {"preset": "9", "codec": "ffv1"}, "ffv1 has no --preset"),
    ],
)
def test_usage_errors(tmp_path: Path, name: str, options: dict[str, Any], says: str) -> None:
    info = make_info(still=options.pop("still", False))
    with pytest.raises(UsageError, match=says) as caught:
        open_sink(tmp_path / name, info, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_targets_that_are_refused(tmp_path: Path, name: str) -> None:
    info = make_info(still=True)
    path = tmp_path / name
    with pytest.raises(OutputError, match="no such folder"):
        open_sink(tmp_path / "no" / name, info)
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists: add -y to overwrite"):
        open_sink(path, info)
    (tmp_path / f"link{path.suffix}").symlink_to(path)
    for same in (path, tmp_path / "." / name, tmp_path / f"link{path.suffix}"):
        with pytest.raises(UsageError, match="is the input itself"):
            open_sink(same, make_info(still=True, path=path), overwrite=True)
    (tmp_path / f"d{path.suffix}").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        open_sink(tmp_path / f"d{path.suffix}", info, overwrite=True)
    assert path.read_bytes() == b"old" and leftovers(tmp_path) == []


@pytest.mark.parametrize(("codec", "preset"), [("h264", "ultrafast"), ("hevc", "fast"), ("av1", "12"), ("vp9", "8")])
def test_settings(tmp_path: Path, codec: str, preset: str) -> None:
    info = make_info(width=160, height=96)
    sizes = []
    for crf in (10, 50):
        path = tmp_path / f"{crf}.mkv"
        sink = write(path, info, make_frames(info), codec=codec, preset=preset, crf=crf, threads=1)
        assert isinstance(sink, VideoSink) and sink.description == f"{codec} yuv420p crf {crf}"
        sizes.append(path.stat().st_size)
    assert sizes[0] > sizes[1]


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("codec", list(CODECS))
def test_abort_keeps_the_old_output(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(b"old")
    for n in (0, 5):
        info = make_info()
        sink = open_sink(path, info, codec=codec, overwrite=True)
        for frame in make_frames(info, range(n)):
            sink.write(frame)
        sink.abort()
        sink.abort()
        sink.close()
        assert path.read_bytes() == b"old" and leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_interrupted(tmp_path: Path, name: str) -> None:
    source = make_video(tmp_path / "in.mkv", frames=50, audio="flac", size=(64, 48))
    info = make_info(path=source)
    path = tmp_path / name
    for old in (False, True):
        if old:
            path.write_bytes(b"old")
        sink = open_sink(path, info, overwrite=old)
        for frame in make_frames(info, range(10)):
            sink.write(frame)
        sink.close(interrupted=True)
        target = path.with_name(f"a.partial{path.suffix}") if old else path
        assert len(times(target)) == 10
        with av.open(str(target)) as container:
            assert container.duration == pytest.approx(400_000, abs=100_000)  # the sound ends with the pictures
        if old:
            assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_without_pictures(tmp_path: Path, name: str) -> None:
    sink = open_sink(tmp_path / name, make_info(still=True))
    with pytest.raises(OutputError, match="no picture came"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_target_that_appears_meanwhile_is_not_destroyed(tmp_path: Path) -> None:
    info, path = make_info(), tmp_path / "a.mp4"
    for n in range(2):
        path.unlink(missing_ok=True)
        sink = open_sink(path, info)
        for frame in make_frames(info):
            sink.write(frame)
        path.write_bytes(b"someone else's")
        with pytest.raises(OutputError, match=r"has appeared meanwhile: the result is in .*a\.partial"):
            sink.close()
        assert path.read_bytes() == b"someone else's"
        assert len(list(tmp_path.glob("a.partial*.mp4"))) == n + 1
    assert len(times(tmp_path / "a.partial-2.mp4")) == 8


def test_symbolic_link_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.mp4", tmp_path / "link.mp4"
    real.write_bytes(b"old")
    link.symlink_to(real)
    info = make_info()
    write(link, info, make_frames(info), overwrite=True)
    assert link.is_symlink() and len(times(real)) == 8
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert real.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("codec", list(CODECS))
def test_tiny(tmp_path: Path, codec: str) -> None:
    least = {"hevc": 32, "av1": 4}.get(codec, 1)
    if least > 1:
        with pytest.raises(UsageError, match=f"{codec} needs {least}x{least} at least"):
            open_sink(tmp_path / "a.mkv", make_info(width=64, height=least - 1), codec=codec)
    info = make_info(width=least, height=least, chroma=(1, 1))
    write(tmp_path / "a.mkv", info, make_frames(info, range(3)), codec=codec)
    assert len(decode(tmp_path / "a.mkv")) == 3


def test_wrong_size(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "a.mp4", make_info())
    with pytest.raises(OutputError, match="80x48 came into 64x48"):
        sink.write(make_frames(make_info(width=80))[0])
    sink.abort()


_FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import numpy as np
from test_sinks import make_info, make_frames
from rtbg.errors import OutputError
from rtbg.sinks import open_sink
path, frames = Path(sys.argv[1]), int(sys.argv[2])
info = make_info(width=320, height=240, still=path.suffix == ".png")
made = make_frames(info, range(frames))
rng = np.random.default_rng(0)
for f in made:
    f.planes[0][:] = rng.integers(16, 235, f.planes[0].shape, np.uint8)
sink = open_sink(path, info, overwrite=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    for f in made:
        sink.write(f)
    sink.close()
except OutputError as exc:
    sink.abort()
    print(exc)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize(("name", "frames"), [("a.mp4", 60), ("a.mp4", 2), ("a.mkv", 2), ("a.png", 1)])
def test_no_space_left(tmp_path: Path, name: str, frames: int) -> None:
    """A file that may not grow ends as a full disk does: while writing (60 frames) or only at the end (2)."""
    path = tmp_path / name
    path.write_bytes(b"old")
    command = [sys.executable, "-c", _FULL, str(path), str(frames), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("no space left for") and len(done.stdout.splitlines()) == 1, done.stderr
    assert done.stderr == ""
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- stills


@pytest.mark.parametrize("name", ["a.png", "größe.webp", "a.jpg", "a.JPEG"])
@pytest.mark.parametrize("bits", [8, 10])
def test_still(tmp_path: Path, name: str, bits: int) -> None:
    info = make_info(width=65, height=49, still=True, bits=bits, chroma=(1, 1))
    path = tmp_path / name
    sink = write(path, info, make_frames(info, [0]))
    assert isinstance(sink, StillSink) and isinstance(sink, Sink)
    back = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    assert back.shape == (49, 65, 3)
    assert np.abs(back[:, :, ::-1].astype(int) - picture(65, 49, 0)).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_still_alpha_keeps_hidden_colours(tmp_path: Path, name: str) -> None:
    info = make_info(still=True, chroma=(1, 1))
    (frame,) = make_frames(info, [0], alpha=True)
    write(tmp_path / name, info, [frame], alpha=True)
    back = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(back[:, :, 3], frame.planes[3])
    assert np.abs(back[:, :, 2::-1].astype(int) - picture(64, 48, 0)).max() <= 3


def test_still_is_upright_and_single(tmp_path: Path) -> None:
    info = make_info(frames=1, rotation=90, sample_aspect=Fraction(2))
    (frame,) = make_frames(info, [0])
    sink = open_sink(tmp_path / "a.png", info)
    sink.write(frame)
    with pytest.raises(OutputError, match="a second one came"):
        sink.write(frame)
    sink.close()
    back = cv2.imread(str(tmp_path / "a.png"))
    assert (back.shape[1], back.shape[0]) == info.shown_size == (48, 128)
    turned = np.rot90(cv2.resize(picture(64, 48, 0), (128, 48)))
    assert np.abs(back[:, :, ::-1].astype(int) - turned).mean() < 5


def test_read_video_helper_agrees(tmp_path: Path) -> None:
    info = make_info()
    write(tmp_path / "a.mp4", info, make_frames(info))
    pictures, _ = read_video(tmp_path / "a.mp4")
    assert np.abs(pictures[3].astype(int) - picture(64, 48, 3)).mean() < 6
