"""Sinks: real encodes, read back with PyAV: every codec in every container, transparency, stills."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from media import picture, read_video
from sink_parts import decode, leftovers, make_frames, make_info, plane, times, write

from rtbg.errors import OutputError
from rtbg.frame import Color, Frame, StreamInfo
from rtbg.protocols import Sink
from rtbg.sinks import StillSink, VideoSink, open_sink
from rtbg.sinks.codecs import CODECS, CONTAINERS

VALID = [(codec, suffix) for codec, c in CODECS.items() for suffix in c.suffixes]

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
