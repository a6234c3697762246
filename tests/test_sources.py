"""Sources on real media made on the fly: one contract for all, what they tell, their times; the demo."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from media import make_video, picture
from source_parts import SIZE, drain, frames_of, write_picture

from rtbg.backgrounds import open_background
from rtbg.color import planes_to_rgb
from rtbg.errors import InputError, MissingDependency
from rtbg.frame import BT709, LIMITED, Color
from rtbg.protocols import Source
from rtbg.sources import open_source
from rtbg.sources.demo import DemoSource
from rtbg.sources.still import StillSource
from rtbg.sources.timing import Clock
from rtbg.sources.video import VideoSource

pytestmark = pytest.mark.usefixtures("silent")

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


QUARTERS = np.array([[(200, 40, 40), (40, 200, 40)], [(40, 40, 200), (200, 200, 40)]], np.uint8)


@pytest.mark.parametrize("flip", ["", "hflip", "vflip"])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_display_matrix_is_followed_mirrored_too(tmp_path: Path, turn: int, flip: str) -> None:
    """As the frames are turned by `rotation` they look as in a player: turned, then flipped. Backgrounds too."""
    path = tmp_path / "a.mp4"
    stored = np.repeat(np.repeat(QUARTERS, 48, 0), 80, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.set_display_rotation(turn, hflip=flip == "hflip", vflip=flip == "vflip")
        out.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        out.mux(stream.encode(None))
    want = {"": lambda q: q, "hflip": np.fliplr, "vflip": np.flipud}[flip](np.rot90(QUARTERS, turn // 90))

    def quarters(rgb: np.ndarray, rotation: int) -> np.ndarray:
        shown = np.rot90(rgb, rotation // 90)
        h, w = shown.shape[:2]
        return shown[h // 4 :: h // 2, w // 4 :: w // 2].astype(int)

    source = open_source(path)
    frame = source.read()
    assert frame is not None
    assert np.abs(quarters(planes_to_rgb(frame.planes, frame.color), source.info.rotation) - want).max() < 12
    upright = make_video(tmp_path / "frames.mp4", size=(160, 96) if turn in (0, 180) else (96, 160), frames=1)
    plain = open_source(upright)
    behind = open_background(str(path), plain.info)
    under = plain.read()
    assert under is not None
    planes = behind.at(under, np.zeros(under.planes[0].shape, np.uint8))
    assert np.abs(quarters(planes_to_rgb(planes, plain.info.color), 0) - want).max() < 12
    for thing in (source, plain, behind):
        thing.close()


@pytest.mark.parametrize("codec, suffix", [("libx264", "mp4"), ("mpeg2video", "mkv")])
def test_interlaced_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, suffix: str) -> None:
    for name, options in (("fields", {"flags": "+ildct+ilme", "x264-params": "interlaced=1"}), ("whole", {})):
        path = make_video(tmp_path / f"{name}.{suffix}", codec=codec, options=options, size=(160, 128))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rtbg"):
            frames_of(path)
        said = [r.getMessage() for r in caplog.records if "is interlaced" in r.getMessage()]
        assert len(said) == (name == "fields")


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


def test_short_glued_streams_go_on_in_time(tmp_path: Path) -> None:
    one = make_video(tmp_path / "one.ts", frames=27, rate=30, options={"bf": "2"}).read_bytes()
    path = tmp_path / "three.ts"
    path.write_bytes(3 * one)
    frames = frames_of(path)
    assert len(frames) == 81
    assert set(np.diff([f.pts for f in frames])) == {3000}
    assert [len(f.moves) for f in frames] == [0] * 27 + [1] * 27 + [2] * 27


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
    assert stamps(500, 510, 0, 10, 20, 0, 10) == [500, 510, 520, 530, 540, 541, 542]  # two places: disorder
    assert stamps(100, 190, 0, 90, 180, 0) == [100, 190, 200, 290, 380, 390]


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
