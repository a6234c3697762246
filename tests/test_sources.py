"""Sources on real media made on the fly: what they give is compared with what was written."""

from __future__ import annotations

import gc
import logging
import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import Interpolation
from media import make_video, picture

from rtbg.color import planes_to_rgb
from rtbg.errors import InputError, MissingDependency
from rtbg.frame import BT709, FULL, LIMITED, Color, Frame
from rtbg.protocols import Source
from rtbg.sources import open_source
from rtbg.sources.demo import DemoSource
from rtbg.sources.planes import NATIVE, PlaneReader, native_of
from rtbg.sources.still import StillSource
from rtbg.sources.timing import Clock
from rtbg.sources.video import VideoSource

SIZE = (160, 96)


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """FFmpeg and OpenCV print nothing, whatever they are fed."""
    yield
    assert capfd.readouterr().err == ""


def drain(source: Source) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def frames_of(path: Path, **part: float) -> list[Frame]:
    source = open_source(path, **part)
    try:
        return drain(source)
    finally:
        source.close()


def by_ffmpeg(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def write_picture(path: Path, rgb: np.ndarray, **exif: int) -> Path:
    """A still by OpenCV; `exif=6` writes that orientation."""
    bgr = rgb[:, :, ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb
    best = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 100], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}.get(path.suffix, [])
    if exif:
        block = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, exif["exif"], 0, 0)
        data = [np.frombuffer(block, np.uint8)]
        _, coded = cv2.imencodeWithMetadata(path.suffix, bgr, [cv2.IMAGE_METADATA_EXIF], data, best)
    else:
        _, coded = cv2.imencode(path.suffix, bgr, best)
    path.write_bytes(coded.tobytes())
    return path


def noisy(path: Path, every: int = 97) -> Path:
    """Spoils bytes of an MP4's pictures, but for the first."""
    data = bytearray(path.read_bytes())
    values = np.random.default_rng(1).integers(0, 256, len(data))
    begin = data.find(b"mdat") + 1500
    for k in range(begin, data.find(b"moov", begin) if data.find(b"moov") > begin else len(data), every):
        data[k] = values[k]
    path.write_bytes(data)
    return path


# -- one contract for all --

VIDEO_KINDS: dict[str, dict[str, object]] = {
    "h264.mp4": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.ts": {},
    "raw.h264": {},
    "bframes.avi": {"options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "odd.mkv": {"codec": "ffv1", "size": (161, 97)},
    "odd444.mp4": {"pix_fmt": "yuv444p", "size": (161, 97)},
    "deep.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "422.mkv": {"codec": "ffv1", "pix_fmt": "yuv422p"},
    "nv12.nut": {"codec": "rawvideo", "pix_fmt": "nv12", "size": (161, 97)},
    "rgb.nut": {"codec": "rawvideo", "pix_fmt": "bgr24"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "anim.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "anim.png": {"codec": "apng", "pix_fmt": "rgb24"},
    "vfr.mkv": {"frames": 5, "pts": [0, 40, 100, 110, 300], "time_base": Fraction(1, 1000)},
}
STILL_KINDS = ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.avif", "a.ppm", "a.jp2")


def make_any(folder: Path, kind: str) -> Source:
    if kind == "demo":
        return DemoSource(size=(320, 180), seconds=0.5, rate=20)
    if kind in STILL_KINDS:
        return open_source(write_picture(folder / kind, picture(*SIZE, 0)))
    path = folder / kind
    if kind == "anim.png":  # FFmpeg writes it under its own name only
        make_video(folder / "anim.apng", **VIDEO_KINDS[kind]).rename(path)  # type: ignore[arg-type]
    else:
        make_video(path, **VIDEO_KINDS[kind])  # type: ignore[arg-type]
    return open_source(path)


@pytest.mark.parametrize("kind", [*VIDEO_KINDS, *STILL_KINDS, "demo"])
def test_contract(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    source = make_any(tmp_path, kind)
    assert isinstance(source, Source) and not source.live
    assert isinstance(source, StillSource) == source.info.still == (kind in STILL_KINDS)
    frames = drain(source)
    assert source.read() is None
    info = source.info
    if kind in ("raw.h264", "anim.png"):  # which tell no length
        assert info.frames is info.duration is None
    elif info.frames != len(frames):  # a guess from the length, of files that do not count
        assert kind in ("mpeg2.mpg", "nv12.nut", "rgb.nut", "vfr.mkv")
        assert info.frames == round(info.duration * info.rate) == pytest.approx(len(frames), rel=0.7)
    assert info.path == (None if kind == "demo" else tmp_path / kind)
    times = [f.pts for f in frames]
    assert times == sorted(set(times))
    for frame in frames:
        assert (frame.width, frame.height) == (info.width, info.height)
        assert (frame.bits, frame.chroma) == (info.bits, info.chroma)
        assert frame.time_base == info.time_base
        assert frame.color == info.color
        w, h = -(-frame.width // info.chroma[0]), -(-frame.height // info.chroma[1])
        assert [p.shape for p in frame.planes] == [(info.height, info.width), (h, w), (h, w)]
    source.close()
    source.close()
    assert source.read() is None
    assert not caplog.records


@pytest.mark.parametrize("kind", ["h264.mp4", "a.png", "demo"])
def test_close_before_the_end(tmp_path: Path, kind: str) -> None:
    source = make_any(tmp_path, kind)
    source.close()
    assert source.read() is None


# -- pixels --


@pytest.mark.parametrize("codec, pix_fmt", [("ffv1", n) for n in NATIVE if "yuvj" not in n and n != "yuva422p10le"])
def test_native_formats_are_exact_views(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    path = make_video(tmp_path / "a.mkv", codec=codec, pix_fmt=pix_fmt, size=(161, 97), frames=2)
    source = VideoSource(path)
    for frame, truth in zip(drain(source), by_ffmpeg(path), strict=True):
        assert truth.format.name == pix_fmt
        assert frame.bits == (10 if pix_fmt.endswith("10le") else 8)
        for plane, raw in zip(frame.planes, truth.planes, strict=False):
            want = np.frombuffer(raw, plane.dtype).reshape(raw.height, -1)[:, : raw.width]
            assert np.array_equal(plane, want)
            assert not plane.flags.writeable and not plane.flags.owndata


def test_planes_outlive_source_and_decoder(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=30)
    source = VideoSource(path)
    first = source.read()
    assert first is not None
    copies = [p.copy() for p in first.planes]
    rest = drain(source)
    source.close()
    del source
    gc.collect()
    frames_of(path)  # takes the memory that would have been freed
    assert len(rest) == 29
    assert all(np.array_equal(a, b) for a, b in zip(copies, first.planes, strict=True))


@pytest.mark.parametrize("suffix", ["mkv", "nut"])
def test_yuvj_is_full_range(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"a.{suffix}", codec="mjpeg", pix_fmt="yuvj422p", frames=2, options={"qscale": "2"})
    source = VideoSource(path)
    assert source.info.color.range == FULL and source.info.chroma == (2, 1)
    frame = source.read()
    assert frame is not None
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - picture(*SIZE, 0)).mean() < 4


@pytest.mark.parametrize(
    "codec, pix_fmt, chroma, bits",
    [
        ("bottom-up", "bgr24", (1, 1), 8),
        ("rawvideo", "nv12", (2, 2), 8),
        ("rawvideo", "nv21", (2, 2), 8),
        ("rawvideo", "yuyv422", (2, 1), 8),
        ("rawvideo", "yuv411p", (2, 2), 8),
        ("rawvideo", "yuv410p", (2, 2), 8),
        ("rawvideo", "yuv440p", (1, 1), 8),
        ("rawvideo", "yuv420p12le", (2, 2), 10),
        ("rawvideo", "bgr24", (1, 1), 8),
        ("ffv1", "bgra", (1, 1), 8),
        ("ffv1", "gbrp10le", (1, 1), 10),
        ("ffv1", "rgb48le", (1, 1), 10),
        ("rawvideo", "gray", (2, 2), 8),
        ("ffv1", "gray10le", (2, 2), 10),
        ("ffv1", "gray16le", (2, 2), 10),
        ("rawvideo", "ya8", (2, 2), 8),
        ("gif", "rgb8", (1, 1), 8),
    ],
)
def test_other_formats(tmp_path: Path, codec: str, pix_fmt: str, chroma: tuple[int, int], bits: int) -> None:
    name = {"gif": "a.gif", "bottom-up": "a.avi"}.get(codec, "a.nut")
    codec = codec.replace("bottom-up", "rawvideo")
    path = make_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, frames=2)
    source = VideoSource(path)
    frame = source.read()
    assert frame is not None
    best = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    truth = by_ffmpeg(path)[0].reformat(format="rgb24", interpolation=best).to_ndarray().astype(int)
    assert (source.info.bits, source.info.chroma) == (bits, chroma) == (frame.bits, frame.chroma)
    got = planes_to_rgb(frame.planes, frame.color).astype(int)
    inner = (slice(2, -2), slice(2, -2))  # resampled chroma differs at edges
    assert np.abs(got - truth)[inner].mean() < (6 if pix_fmt.startswith("yuv41") else 2)
    assert np.abs(got.mean((0, 1)) - truth.mean((0, 1))).max() < 1.5
    source.close()


def test_nv12_is_exact(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.nut", codec="rawvideo", pix_fmt="nv12", size=(161, 97), frames=1)
    (frame,), (truth,) = frames_of(path), by_ffmpeg(path)
    uv = np.frombuffer(truth.planes[1], np.uint8).reshape(49, 162)
    assert np.array_equal(frame.planes[0], np.frombuffer(truth.planes[0], np.uint8).reshape(97, 161))
    assert np.array_equal(frame.planes[1], uv[:, 0::2])
    assert np.array_equal(frame.planes[2], uv[:, 1::2])


def test_p010_goes_to_ten_bits() -> None:
    base = av.VideoFrame.from_ndarray(picture(*SIZE, 0), format="rgb24").reformat(format="yuv420p10le")
    reader = PlaneReader(base.reformat(format="p010le"), Color())
    assert (reader.bits, reader.chroma) == (10, (2, 2))
    planes = reader.planes(base.reformat(format="p010le"))
    for plane, raw in zip(planes, base.planes, strict=True):
        assert np.array_equal(plane, np.frombuffer(raw, np.uint16).reshape(raw.height, -1)[:, : raw.width])


@pytest.mark.parametrize(
    "name", ["p016le", "yuv422p16be", "yuv444p9be", "gbrpf32le", "bayer_rggb8", "monow", "uyyvyy411"]
)
def test_rare_formats_have_a_native_one(name: str) -> None:
    target = native_of(av.VideoFormat(name, 64, 64))
    assert target in NATIVE.values()
    assert target.endswith("10le") == (name not in ("bayer_rggb8", "monow", "uyyvyy411"))


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gbrp", "bgra", "gbrp10le"])
@pytest.mark.parametrize("size, matrix", [((64, 48), 5), ((96, 720), BT709)])
def test_red_comes_through(tmp_path: Path, pix_fmt: str, size: tuple[int, int], matrix: int) -> None:
    codec, name = {"rgb24": ("rawvideo", "a.nut"), "gbrp": ("utvideo", "a.avi")}.get(pix_fmt, ("ffv1", "a.mkv"))
    path = tmp_path / name
    rgb = np.full((size[1], size[0], 3), (250, 10, 30), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pix_fmt)))
        out.mux(stream.encode(None))
    (frame,) = frames_of(path)
    assert (frame.color.matrix, frame.color.range) == (matrix, LIMITED)
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - rgb).max() <= 3


def test_pictures_that_change_on_the_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mjpeg"
    sizes = [SIZE, SIZE, (80, 48)]
    pieces = [write_picture(tmp_path / f"{k}.jpg", picture(*s, 0)).read_bytes() for k, s in enumerate(sizes)]
    pieces.append(write_picture(tmp_path / "grey.jpg", picture(*SIZE, 0)[:, :, 0]).read_bytes())
    path.write_bytes(b"".join(pieces) + pieces[0])
    frames = frames_of(path)
    assert len(frames) == 5
    assert {f.planes[0].shape for f in frames} == {(96, 160)}
    assert len({(f.bits, f.chroma, f.color) for f in frames}) == 1
    want = planes_to_rgb(frames[0].planes, frames[0].color).astype(int)
    scaled = planes_to_rgb(frames[2].planes, frames[2].color).astype(int)
    assert np.abs(want - scaled).mean() < 5
    grey = planes_to_rgb(frames[3].planes, frames[3].color).astype(int)
    assert np.abs(grey - picture(*SIZE, 0)[:, :, :1]).mean() < 3
    assert [r.getMessage() for r in caplog.records] == [
        f"{path} changes to 80x48 yuvj420p pictures on the way: they are converted to match"
    ]


# -- what info tells --


def test_colour_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "hell\u00f6"
        stream = out.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        c = stream.codec_context
        c.colorspace, c.color_range, c.color_primaries, c.color_trc = 9, 1, 9, 14
        c.sample_aspect_ratio = Fraction(4, 3)
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(picture(*SIZE, k), format="rgb24").reformat(format="yuv420p")
            frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, 14
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    source = VideoSource(path)
    assert source.info.color == Color(9, 1, 9, 14)
    assert source.info.sample_aspect == Fraction(4, 3)
    assert source.info.shown_size == (213, 96)
    assert source.info.rate == Fraction(30000, 1001)
    assert source.info.metadata["title"] == "hell\u00f6"
    assert all(f.color == source.info.color for f in drain(source))
    source.close()


def test_untagged_stays_untagged(tmp_path: Path) -> None:
    info = open_source(make_video(tmp_path / "a.mp4", frames=2)).info
    assert info.color == Color() and info.sample_aspect == 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("turn, want", [(0, 0), (90, 90), (-90, 270), (180, 180)])
def test_rotation(tmp_path: Path, suffix: str, turn: int, want: int) -> None:
    info = open_source(make_video(tmp_path / f"a.{suffix}", frames=2, rotation=turn)).info
    assert info.rotation == want
    assert info.shown_size == ((96, 160) if want in (90, 270) else SIZE)


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    def with_cover(path: Path, film: bool) -> Path:
        with av.open(str(path), "w") as out:
            cover = out.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = Disposition.attached_pic
            video = out.add_stream("libx264", rate=25) if film else None
            sound = out.add_stream("aac", rate=48000, layout="mono")
            if video:
                video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
            rgb = picture(64, 64, 0)
            out.mux(cover.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuvj420p")))
            for k in range(3 if video else 0):
                frame = av.VideoFrame.from_ndarray(picture(*SIZE, k), format="rgb24")
                out.mux(video.encode(frame))
            part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            part.sample_rate = 48000
            out.mux(sound.encode(part))
            for stream in out.streams:
                out.mux(stream.encode(None))
        return path

    source = open_source(with_cover(tmp_path / "film.mp4", True))
    assert (source.info.width, source.info.height) == SIZE
    assert len(drain(source)) == 3
    source.close()
    with pytest.raises(InputError, match=r"song\.mp4 holds sound but no video"):
        open_source(with_cover(tmp_path / "song.mp4", False))


def test_sound_beside_the_video(tmp_path: Path) -> None:
    assert len(frames_of(make_video(tmp_path / "a.mp4", audio="aac"))) == 12


# -- time --


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_vfr_times_are_exact(tmp_path: Path, suffix: str) -> None:
    pts = [0, 17, 18, 400, 401, 1000]
    path = make_video(tmp_path / f"a.{suffix}", frames=6, pts=pts, time_base=Fraction(1, 1000))
    assert [f.pts * f.time_base for f in frames_of(path)] == [Fraction(p, 1000) for p in pts]


def test_files_without_times(tmp_path: Path) -> None:
    raw = frames_of(make_video(tmp_path / "a.h264", options={"bf": "2"}))
    assert [f.pts * f.time_base for f in raw] == [Fraction(k, 25) for k in range(12)]
    avi = frames_of(make_video(tmp_path / "a.avi", options={"bf": "2"}))
    assert [f.pts * f.time_base for f in avi] == [Fraction(k, 25) for k in range(12)]


def test_glued_streams_go_on_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = make_video(tmp_path / "one.ts", frames=30, rate=10).read_bytes()
    path = tmp_path / "two.ts"
    path.write_bytes(one + one)
    frames = frames_of(path)
    steps = np.diff([f.seconds for f in frames])
    assert len(frames) >= 59
    assert steps.min() > 0.09 and steps.max() < 0.31
    assert [r.getMessage() for r in caplog.records] == [
        f"{path} has pictures out of order in time: their times were corrected"
    ]


def test_clock() -> None:
    def stamps(*pts: int | None, order: bool = False, dts: tuple[int | None, ...] = ()) -> list[int]:
        clock = Clock(10, Fraction(1, 1000), decode_order=order)
        return [clock.stamp(p, d) for p, d in zip(pts, dts or (None,) * len(pts), strict=True)]

    assert stamps(5, 15, 40) == [5, 15, 40]
    assert stamps(5, 15, 15, 14, 30) == [5, 15, 16, 17, 30]
    assert stamps(5, None, None, 40) == [5, 15, 25, 40]
    assert stamps(None, None) == [0, 10]
    assert stamps(None, None, None, dts=(20, 30, None)) == [0, 10, 20]
    assert stamps(9, 7, 8, order=True, dts=(0, 10, 20)) == [0, 10, 20]
    assert stamps(5000, 5010, 0, 10, 20) == [5000, 5010, 5020, 5030, 5040]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mpg", "h264", "flv"])
def test_start_and_duration(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg2video" if suffix == "mpg" else "libx264"
    path = make_video(tmp_path / f"a.{suffix}", codec=codec, frames=100, options={"g": "12", "bf": "2"})
    whole = frames_of(path)
    assert len(whole) == 100
    for start, duration, first, count in ((0, 0.4, 0, 10), (2, None, 50, 50), (1.4, 0.6, 35, 15), (3.96, None, 99, 1)):
        source = VideoSource(path, start=start, duration=duration)
        part = drain(source)
        source.close()
        assert [f.pts for f in part] == [f.pts for f in whole[first : first + count]]
        assert all(np.array_equal(a.planes[0], b.planes[0]) for a, b in zip(part, whole[first:], strict=False))
        assert (source.info.start, source.info.limit) == (start, duration)
        if source.info.frames is not None and suffix != "mpg":  # whose declared length is a guess
            assert abs(source.info.frames - count) <= 2
    with pytest.raises(InputError, match=r"a\.\w+: --start 99 is beyond the end \(\d\.\d s\)"):
        open_source(path, start=99)
    with pytest.raises(InputError, match=r"--start 4 is beyond the end \(4\.0 s\)"):
        open_source(path, start=4)


def test_start_counts_from_the_first_picture(tmp_path: Path) -> None:
    pts = [5000 + 100 * k for k in range(20)]
    path = make_video(tmp_path / "late.mkv", frames=20, pts=pts, time_base=Fraction(1, 1000), options={"g": "5"})
    assert [f.pts for f in frames_of(path, start=0.7, duration=0.3)] == [5700, 5800, 5900]


def test_part_without_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", frames=3, pts=[0, 1000, 2000], time_base=Fraction(1, 1000))
    with pytest.raises(InputError, match=r"no picture in the 0\.1 s from --start 1\.5"):
        open_source(path, start=1.5, duration=0.1)


# -- what cannot be read, or not to the end --


def test_one_line_errors(tmp_path: Path) -> None:
    def made(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    rng = np.random.default_rng(0)
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        part.sample_rate = 48000
        out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    cases = {
        tmp_path / "none.mp4": "no such file",
        tmp_path / "whole.mp4" / "in.mp4": "no such file",
        tmp_path: "is a folder",
        Path("/dev/null"): "is a device",
        made("empty.mp4", b""): "is empty",
        made("noise.mp4", rng.integers(0, 256, 30000, dtype=np.uint8).tobytes()): "is not a video or a picture",
        made("words.txt", b"hello\nworld\n" * 50): "is not a video or a picture",
        made("words.mp4", b"hello\nworld\n" * 50): "is not a video or a picture",
        made("cut.mp4", whole[: len(whole) // 2]): "has no index: it was cut off",
        made("phone.heic", b"\0\0\0\x18ftypheic" + bytes(200)): "is a HEIC picture",
        made("noise.png", b"\x89PNG\r\n\x1a\n" + bytes(100)): "is damaged, or not a picture",
        made("noise.jpg", b"\xff\xd8\xff\xe0" + bytes(100)): "is damaged, or not a picture",
        sound: "holds sound but no video",
    }
    for path, text in cases.items():
        with pytest.raises(InputError) as caught:
            open_source(path)
        message = str(caught.value)
        assert str(path) in message and text in message
        assert "\n" not in message and "Errno" not in message and "avcodec" not in message


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_no_permission(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=2)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"a\.mp4 may not be read: check its permissions"):
            open_source(path)
    finally:
        if root:
            os.seteuid(0)


def test_pictures_that_cannot_be_decoded_at_all(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    begin, end = data.find(b"mdat") + 4, data.find(b"moov") - 4
    data[begin:end] = b"\x01" * (end - begin)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"holds no picture that can be decoded"):
        open_source(path)


def test_cut_off_matroska(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "a.mkv", frames=200, options={"g": "10", "crf": "10"})
    whole = frames_of(path)
    assert not caplog.records
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    frames = frames_of(path)
    assert 80 < len(frames) < 160
    assert np.array_equal(frames[50].planes[0], whole[50].planes[0])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "rtbg"
    assert record.getMessage().startswith(f"{path} is damaged after ")
    assert float(record.getMessage().split()[4]) == pytest.approx(len(frames) / 25, abs=0.3)


def test_cut_off_mp4(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for k in range(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(*SIZE, k), format="rgb24")))
        out.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert 15 < len(frames_of(path)) < 35
    (record,) = caplog.records
    assert "is damaged after" in record.getMessage()


def test_damage_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = noisy(make_video(tmp_path / "a.mp4", frames=60, options={"g": "10"}))
    frames = frames_of(path)
    assert len(frames) > 20
    assert frames[-1].seconds > 2
    assert [r.getMessage().split(" after ")[0] for r in caplog.records] == [f"{path} is damaged"]


@pytest.mark.parametrize("name", ["a:b.mp4", "a%03d.gif", "naïve 日本.mkv", "concat:x.mp4", "-i.mp4"])
def test_names(tmp_path: Path, name: str) -> None:
    codec = {"codec": "gif", "pix_fmt": "rgb8"} if name.endswith("gif") else {}
    plain = make_video(tmp_path / f"plain{Path(name).suffix}", frames=3, **codec)  # type: ignore[arg-type]
    path = plain.rename(tmp_path / name)
    assert len(frames_of(path)) == 3
    assert open_source(str(path)).info.path == path


# -- stills --


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tiff", "a.ppm"])
def test_still_comes_back(tmp_path: Path, name: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (97, 161, 3), dtype=np.uint8)
    source = StillSource(write_picture(tmp_path / name, rgb))
    assert (source.info.width, source.info.height, source.info.still) == (161, 97, True)
    (frame,) = drain(source)
    assert frame.color == Color(BT709, FULL) and frame.chroma == (1, 1)
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - rgb).max() <= 2


def test_tall_still_has_no_seams(tmp_path: Path) -> None:
    rgb = np.ascontiguousarray(picture(40, 700, 0))
    (frame,) = frames_of(write_picture(tmp_path / "a.png", rgb))
    assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation(tmp_path: Path, name: str, orientation: int, corner: tuple[int, int]) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:16, :16] = (255, 0, 0)  # the stored top left corner, by orientation shown at `corner`
    (frame,) = frames_of(write_picture(tmp_path / name, rgb, exif=orientation))
    assert (frame.width, frame.height) == ((48, 64) if orientation > 4 else (64, 48))
    shown = planes_to_rgb(frame.planes, frame.color)
    assert shown[corner][0] > 240
    assert sum(int(shown[c][0]) > 240 for c in ((0, 0), (0, -1), (-1, 0), (-1, -1))) == 1


def test_tiff_orientation(tmp_path: Path) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:16, :16] = (255, 0, 0)
    path = write_picture(tmp_path / "a.tiff", rgb)
    data = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    entries = [bytes(data[at + 2 + 12 * k : at + 14 + 12 * k]) for k in range(count)]
    entries = sorted([*entries, struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)], key=lambda e: e[:2][::-1])
    struct.pack_into("<I", data, 4, len(data))
    path.write_bytes(bytes(data) + struct.pack("<H", count + 1) + b"".join(entries) + bytes(4))
    (frame,) = frames_of(path)
    assert planes_to_rgb(frame.planes, frame.color)[0, -1, 0] > 240


def test_grey_deep_and_transparent_stills(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    cases: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "grey.png": (ramp, ramp),
        "deep.png": (ramp.astype(np.uint16) * 257, ramp),
        "deep3.png": (np.dstack([ramp.astype(np.uint16) * 257] * 3), ramp),
        "deep3.tiff": (np.dstack([ramp.astype(np.uint16) * 257] * 3), ramp),
        "clear.png": (np.dstack([ramp] * 3 + [np.full_like(ramp, 60)]), ramp),
    }
    for name, (stored, want) in cases.items():
        path = tmp_path / name
        path.write_bytes(cv2.imencode(path.suffix, stored)[1].tobytes())
        (frame,) = frames_of(path)
        assert frame.bits == 8
        assert np.abs(planes_to_rgb(frame.planes, frame.color).astype(int) - want[:, :, None]).max() <= 2


def test_animated_webp_gives_its_first_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "a.webp", codec="libwebp_anim", frames=3)
    assert len(frames_of(path)) == 1
    assert [r.getMessage() for r in caplog.records] == [f"{path} is an animated WebP: only its first picture is used"]


def test_what_a_file_is_goes_by_its_content(tmp_path: Path) -> None:
    film = make_video(tmp_path / "a.mp4", frames=2).rename(tmp_path / "film.png")
    assert not open_source(film).info.still
    still = write_picture(tmp_path / "a.png", picture(*SIZE, 0)).rename(tmp_path / "still.mp4")
    assert open_source(still, start=5, duration=1).info.still


# -- the demo --


def test_demo_moves_gently_and_loops() -> None:
    frames = drain(DemoSource(size=(640, 360), seconds=2, rate=30, period=2))
    assert len(frames) == 60
    assert frames[0].color == Color(BT709, LIMITED, 1, 1)
    lumas = [f.planes[0].astype(int) for f in frames]
    steps = [np.abs(a - b).mean() for a, b in zip(lumas, [*lumas[1:], lumas[0]], strict=True)]
    assert min(steps) > 0 and max(steps) < 15
    assert steps[-1] < 1.5 * max(steps[:-1])
    again = drain(DemoSource(size=(640, 360), seconds=2, rate=30, period=2))
    assert np.array_equal(again[37].planes[1], frames[37].planes[1])
    skin = planes_to_rgb(frames[0].planes, frames[0].color)[140:170, 250:280].mean((0, 1))
    assert skin[0] > 180 and skin[0] > skin[1] + 20 > skin[2]


@pytest.mark.parametrize("size", [(1280, 720), (640, 480), (320, 320), (360, 640), (161, 97), (900, 100)])
def test_demo_stays_within_the_portrait(size: tuple[int, int]) -> None:
    source = DemoSource(size=size, seconds=3, rate=10, period=3)
    width, height = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    for k in range(30):
        inside = source._view(k) @ corners
        assert inside.min() >= 0 and inside.max() <= 1
    frame = source.read()
    assert frame is not None
    assert [p.shape for p in frame.planes] == [(height, width), *[(-(-height // 2), -(-width // 2))] * 2]


def test_demo_without_its_portrait(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], object] = lambda name: None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(MissingDependency, match=r"pip install 'rtbg\[demo\]'"):
        DemoSource()
