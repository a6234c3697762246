"""The webcam source on real streams that FFmpeg opens in a camera's place: generated pictures in real time (lavfi),
JPEG files, and pipes that fall silent."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import InputContainer

from rtbg.cameras import Camera, Mode
from rtbg.color import rgb_to_planes
from rtbg.errors import NoPicture
from rtbg.frame import BT709, FULL, LIMITED, SMPTE170M, Color, Frame
from rtbg.sources import webcam
from rtbg.sources.i420 import I420, WORKING
from rtbg.sources.webcam import WebcamSource
from rtbg.v4l2 import Format, FrameSize

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipes and /proc")
RED = (200, 60, 40)


def camera(path: str = "nowhere", *, size: tuple[int, int] = (320, 240), rate: int = 30, error: int = 0) -> Camera:
    form = Format("YUYV", "", False, (FrameSize(size, size, rates=(Fraction(rate),)),))
    return Camera("Test Cam", path, 0, "v4l2", "uvcvideo", "usb-1", (form,), error)


def lavfi(graph: str) -> Callable[[Camera, Mode], InputContainer]:
    return lambda camera, mode: av.open(graph, format="lavfi")


def source(
    opener: Callable[[Camera, Mode], InputContainer], *, of: Camera | None = None, mirror: bool = False
) -> WebcamSource:
    return WebcamSource(
        of or camera(), size=(320, 240), rate=30, mirror=mirror, opener=opener, finder=lambda known: known
    )


@contextmanager
def closing(made: WebcamSource) -> Iterator[WebcamSource]:
    try:
        yield made
    finally:
        made.close()


def picture(made: WebcamSource, seconds: float = 20) -> Frame:
    """The next picture, whatever goes wrong before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            frame = made.read()
        except NoPicture:
            continue
        assert frame is not None
        return frame
    raise AssertionError("no picture came")


def trouble(made: WebcamSource, match: str, seconds: float = 20) -> str:
    """The first message that matches."""
    until = time.monotonic() + seconds
    seen = set()
    while time.monotonic() < until:
        try:
            made.read()
        except NoPicture as exc:
            assert "\n" not in str(exc)
            seen.add(str(exc))
            if match in str(exc):
                return str(exc)
    raise AssertionError(f"{match!r} was never said: {seen}")


def jpeg(size: tuple[int, int], rgb: tuple[int, int, int]) -> bytes:
    """One full-range 4:2:2 JPEG of one colour, as webcams send it."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuvj422p", Fraction(1, 30)
    planes = rgb_to_planes(
        np.full((size[1], size[0], 3), rgb, np.uint8), Color(5, FULL), height=0, bits=8, chroma=(2, 1)
    )
    frame = av.VideoFrame(*size, "yuvj422p")
    for plane, data in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        rows[: data.shape[0], : data.shape[1]] = data
    frame.pts, frame.time_base = 0, Fraction(1, 30)
    return b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])


def expected(rgb: tuple[int, int, int]) -> list[int]:
    planes = rgb_to_planes(np.full((2, 2, 3), rgb, np.uint8), WORKING, height=0, bits=8, chroma=(1, 1))
    return [int(p[0, 0]) for p in planes]


def assert_colour(frame: Frame, rgb: tuple[int, int, int], within: int = 3) -> None:
    for plane, code in zip(frame.planes, expected(rgb), strict=True):
        assert abs(plane.astype(int) - code).max() <= within, (plane.min(), plane.max(), code)


# -- the working format --


@pytest.mark.parametrize("name", ["yuv420p", "nv12", "yuyv422", "uyvy422", "yuv422p", "yuvj422p", "yuvj420p", "rgb24"])
def test_every_format_of_cameras_becomes_the_working_format(name: str) -> None:
    graph = f"color=c=0x{bytes(RED).hex()}:size=320x240:rate=30,format=rgb24,"
    graph += f"scale=out_color_matrix=bt601,format={name},realtime"
    with closing(source(lavfi(graph))) as made:
        info = made.info
        frame = picture(made)
        assert (info.width, info.height, info.rate, info.time_base) == (320, 240, 30, Fraction(1, 1_000_000))
        assert [p.shape for p in frame.planes] == [(240, 320), (120, 160), (120, 160)]
        assert frame.color == info.color == Color(SMPTE170M, LIMITED)
        assert_colour(frame, RED)
        assert all(p.flags.owndata or p.base.flags.owndata for p in frame.planes)  # nothing of the driver's memory
        assert made.obtained.startswith("Test Cam: 320x240 at 30, ")


def noise(chroma: tuple[int, int], bits: int = 8, size: tuple[int, int] = (64, 48)) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    w, h = size
    small = (h // chroma[1], w // chroma[0])
    low, high = 16 << bits - 8, 235 << bits - 8
    dtype = np.uint8 if bits == 8 else np.uint16
    return tuple(rng.integers(low, high, shape).astype(dtype) for shape in ((h, w), small, small))


def test_full_range_jpeg_is_converted_exactly() -> None:
    y, u, v = noise((2, 1))
    got = I420((64, 48)).planes((y, u, v), Color(5, FULL))
    assert abs(got[0] - (y * (219 / 255) + 16)).max() <= 0.5001
    for new, old in ((got[1], u), (got[2], v)):
        mean = (old[0::2].astype(float) + old[1::2]) / 2
        assert abs(new - ((mean - 128) * (224 / 255) + 128)).max() <= 0.5001


@pytest.mark.parametrize("matrix", [BT709, 9])
@pytest.mark.parametrize("given", [LIMITED, FULL])
@pytest.mark.parametrize("bits", [8, 10])
def test_another_matrix_is_converted(matrix: int, given: int, bits: int) -> None:
    for rgb in [(255, 255, 255), (0, 0, 0), (128, 128, 128), RED, (20, 220, 90), (10, 30, 250)]:
        color = Color(matrix, given)
        planes = rgb_to_planes(np.full((48, 64, 3), rgb, np.uint8), color, height=0, bits=bits, chroma=(2, 2))
        got = I420((64, 48)).planes(planes, color)
        assert_colour(Frame(got, 0, Fraction(1), WORKING), rgb, within=2)


def test_what_is_right_already_is_copied_and_nothing_is_written_to() -> None:
    planes = noise((2, 2))
    before = [p.copy() for p in planes]
    got = I420((64, 48)).planes(planes, WORKING)
    for new, old, kept in zip(got, planes, before, strict=True):
        assert (new == kept).all() and (old == kept).all() and not np.shares_memory(new, old)


def test_mirror_and_another_size() -> None:
    planes = noise((2, 2))
    got = I420((64, 48), mirror=True).planes(planes, WORKING)
    assert all((new == old[:, ::-1]).all() for new, old in zip(got, planes, strict=True))
    # 4:3 into 16:9: the middle is kept, nothing is stretched. Three bands, of which the outer two go.
    y = np.repeat(np.repeat(np.array([[50], [120], [200]], np.uint8), 80, axis=0), 320, axis=1)
    chroma = np.full((120, 160), 128, np.uint8)
    got = I420((640, 160)).planes((y, chroma, chroma), WORKING)
    assert [p.shape for p in got] == [(160, 640), (80, 320), (80, 320)]
    assert (got[0][4:-4] == 120).all()
    tall = I420((64, 128)).planes((y, chroma, chroma), WORKING)
    assert abs(tall[0][:38].astype(int) - 50).max() <= 1 and abs(tall[0][-38:].astype(int) - 200).max() <= 1
    with pytest.raises(ValueError, match="even size"):
        I420((63, 48))


# -- taking pictures --


@pytest.mark.parametrize(("wanted", "told"), [(20, 20), (15, 15), (60, 60), (59.94, 60)])
def test_a_camera_that_gives_more_is_thinned_out(wanted: float, told: int) -> None:
    made = WebcamSource(
        camera(rate=60),
        size=(320, 240),
        rate=wanted,
        opener=lavfi("color=c=red:size=320x240:rate=60,format=yuyv422,realtime"),
        finder=lambda known: known,
    )
    with closing(made):
        assert made.info.rate == told
        kept = []
        for k in range(60):
            if made._due(1000 + k / 60):
                kept.append(k)
                made._give(noise((2, 2)), 1000 + k / 60)
        assert len(kept) == told and {b - a for a, b in itertools.pairwise(kept)} == {60 // told}


def test_a_thinned_out_camera_gives_its_pictures_evenly() -> None:
    made = WebcamSource(
        camera(rate=60),
        size=(320, 240),
        rate=20,
        opener=lavfi("testsrc=size=320x240:rate=60,format=yuyv422,realtime"),
        finder=lambda known: known,
    )
    with closing(made):
        frames = [picture(made) for _ in range(10)]
        assert frames[-1].captured - frames[0].captured > 9 * 0.05 - 0.04
        assert "at 60, YUYV, thinned out to 20" in made.obtained


def test_pictures_are_live_and_only_the_newest_is_given() -> None:
    with closing(source(lavfi("testsrc=size=320x240:rate=30,format=yuyv422,realtime"))) as made:
        assert made.live
        frames = []
        for _ in range(5):
            frames.append(picture(made))
            assert abs(time.monotonic() - frames[-1].captured) < 2
            time.sleep(0.25)
        pts = [f.pts for f in frames]
        assert pts == sorted(set(pts))
        assert frames[-1].seconds - frames[0].seconds >= 0.9  # of a queue, five pictures are a sixth of a second
        assert made.dropped >= 10
        assert not np.array_equal(frames[0].planes[0], frames[-1].planes[0])
        assert made.obtained == "Test Cam: 320x240 at 30, YUYV"
    assert made.read() is None
    made.close()


def test_mirror_turns_the_picture() -> None:
    graph = "color=red:size=160x240:rate=30[a];color=blue:size=160x240:rate=30[b];[a][b]hstack,format=yuv420p,realtime"
    with closing(source(lavfi(graph))) as plain, closing(source(lavfi(graph), mirror=True)) as turned:
        v, mirrored = picture(plain).planes[2], picture(turned).planes[2]
        assert v[:, :70].min() > 200 > 150 > v[:, 90:].max()
        assert mirrored[:, 90:].min() > 200 > 150 > mirrored[:, :70].max()


def test_jpegs_of_another_size_are_scaled_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "cam.mjpeg"
    file.write_bytes(jpeg((320, 240), RED) * 40 + jpeg((640, 480), (30, 90, 200)) * 40)
    with (
        caplog.at_level(logging.WARNING, "rtbg"),
        closing(source(lambda c, m: av.open(str(file), format="mjpeg"))) as made,
    ):
        seen = set()
        until = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < until:
            frame = picture(made)
            assert [p.shape for p in frame.planes] == [(240, 320), (120, 160), (120, 160)]
            blue = frame.planes[1].mean() > 128
            seen.add(blue)
            assert_colour(frame, (30, 90, 200) if blue else RED, within=4)
        assert seen == {True, False} or "640x480" in made.obtained
        assert "MJPEG" in made.obtained
    assert any("sends 640x480: its pictures are scaled to 320x240" in r.getMessage() for r in caplog.records)


def test_damaged_jpegs_are_left_out(tmp_path: Path) -> None:
    good = jpeg((320, 240), RED)
    cut = good[:200] + b"\xff\xd9"
    file = tmp_path / "cam.mjpeg"
    file.write_bytes((good + cut) * 20)
    with closing(source(lambda c, m: av.open(str(file), format="mjpeg"))) as made:
        for _ in range(2):
            assert_colour(picture(made), RED, within=4)


def test_raw_packets_are_the_same_pictures_as_from_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    raw = rng.integers(16, 235, (240, 320, 2)).astype(np.uint8)
    file = tmp_path / "cam.yuyv"
    file.write_bytes(raw.tobytes() * 30)
    options = {"video_size": "320x240", "pixel_format": "yuyv422", "framerate": "30"}
    with closing(source(lambda c, m: av.open(str(file), format="rawvideo", options=options))) as made:
        y, u, v = picture(made).planes
        assert (y == raw[..., 0]).all()
        for plane, of in ((u, raw[:, 0::2, 1]), (v, raw[:, 1::2, 1])):
            assert abs(plane - (of[0::2].astype(float) + of[1::2]) / 2).max() <= 0.5


# -- trouble --


@linux
def test_a_device_that_is_not_there_or_no_camera_is_told_for_real() -> None:
    for path, what in [
        ("/dev/video4711", "Test Cam (/dev/video4711) is gone: plug it in again; rtbg keeps trying"),
        ("/dev/null", "Test Cam (/dev/null) does not work (Inappropriate ioctl for device): plug it out"),
    ]:
        with closing(source(webcam.open_camera, of=camera(path))) as made:
            began = time.monotonic()
            trouble(made, what)
            trouble(made, what)  # and again: not final
            assert time.monotonic() - began < 10


def test_the_wait_of_one_read_is_bounded() -> None:
    stop = threading.Event()

    def opener(camera: Camera, mode: Mode) -> InputContainer:
        stop.wait(30)
        raise OSError(errno.EIO, "given up")

    made = source(opener)
    began = time.monotonic()
    with pytest.raises(NoPicture, match=r"has not sent a picture yet|sends no picture"):
        made.read()
    assert time.monotonic() - began < 5
    trouble(made, "sends no picture")
    began = time.monotonic()
    made.close()  # though the driver does not answer
    assert time.monotonic() - began < 8
    assert made.read() is None
    stop.set()


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.EBUSY, "in use by another program"),
        (errno.EACCES, "may not be opened"),
        (errno.ENODEV, "is gone: plug it in again"),
        (errno.EIO, "does not work"),
    ],
)
def test_an_error_of_the_driver_is_told_and_passes(number: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webcam, "_PATIENCE", 0.2)
    attempts = []

    def opener(camera: Camera, mode: Mode) -> InputContainer:
        attempts.append(mode)
        if len(attempts) < 4:
            raise av.error.err_check(-number) or AssertionError  # FFmpeg's own exception of that errno
        return av.open("testsrc=size=320x240:rate=30,format=yuyv422,realtime", format="lavfi")

    with closing(source(opener)) as made:
        trouble(made, what)
        picture(made)
        assert len(attempts) == 4
        assert attempts[0] == Mode((320, 240), Fraction(30), "yuyv422")


def test_a_camera_is_looked_for_again_under_its_new_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webcam, "_PATIENCE", 0.2)
    looks: list[Camera | None] = [camera("/dev/video0"), None, None, camera("/dev/video3")]
    opened = []

    def finder(known: Camera) -> Camera | None:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    def opener(camera: Camera, mode: Mode) -> InputContainer:
        opened.append(camera.path)
        short = ",trim=end_frame=3" if len(opened) == 1 else ""
        return av.open(f"testsrc=size=320x240:rate=30,format=yuyv422,realtime{short}", format="lavfi")

    with closing(WebcamSource(camera(), size=(320, 240), opener=opener, finder=finder)) as made:
        first = picture(made)
        trouble(made, "is gone")
        second = picture(made)
        assert opened[:2] == ["/dev/video0", "/dev/video3"]
        assert second.pts > first.pts and second.captured > first.captured


@linux
def test_reopening_leaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webcam, "_PATIENCE", 0.01)
    file = tmp_path / "cam.mjpeg"
    file.write_bytes(jpeg((320, 240), RED) * 3)
    opened = []

    def opener(camera: Camera, mode: Mode) -> InputContainer:
        opened.append(len(list(Path("/proc/self/fd").iterdir())))
        return av.open(str(file), format="mjpeg")

    with closing(source(opener)) as made:
        until = time.monotonic() + 30
        while len(opened) < 20 and time.monotonic() < until:
            picture(made)
    assert len(opened) >= 20 and max(opened[1:]) <= opened[1] + 1


class Feeder:
    """Writes raw YUYV pictures into a pipe, as a driver would: what nobody takes is lost."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self.luma = path, 0  # 0: silent
        self.out = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.ended.wait(0.03):
            with contextlib.suppress(BlockingIOError):
                if luma := self.luma:
                    os.write(self.out, np.full((24, 32, 2), (luma, 128), np.uint8).tobytes())  # 1536 bytes: whole

    def close(self) -> None:
        self.ended.set()
        self.thread.join()
        os.close(self.out)

    def opener(self, camera: Camera, mode: Mode) -> InputContainer:
        options = {"video_size": "32x24", "pixel_format": "yuyv422", "framerate": "30", "probesize": "32"}
        return av.open(str(self.path), format="rawvideo", options=options, buffer_size=1536)


@linux
def test_a_silent_driver_is_told_opened_anew_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webcam, "_STALLED", 3.0)
    feeder = Feeder(tmp_path / "pipe")
    opened = []

    def opener(camera: Camera, mode: Mode) -> InputContainer:
        opened.append(time.monotonic())
        return feeder.opener(camera, mode)

    def until_luma(luma: int) -> None:
        until = time.monotonic() + 30
        while picture(made).planes[0][0, 0] != luma:
            assert time.monotonic() < until

    of = camera(str(feeder.path), size=(32, 24))
    made = WebcamSource(of, size=(32, 24), opener=opener, finder=lambda known: known)
    try:
        for luma in (60, 180):
            feeder.luma = luma
            until_luma(luma)
            feeder.luma = 0
            trouble(made, "sends no picture")
        known, until = len(opened), time.monotonic() + 30
        while len(opened) == known and time.monotonic() < until:
            trouble(made, "sends no picture")
        assert len(opened) == known + 1  # anew, since it stayed silent
        feeder.luma = 90
        until_luma(90)
        feeder.luma = 0
        trouble(made, "sends no picture")
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 6
        assert made.read() is None
    finally:
        feeder.luma = 90  # lets go who waits in `open`
        made.close()
        feeder.close()


def test_the_size_told_is_the_drivers_and_even() -> None:
    sizes = Format("MJPG", "", True, tuple(FrameSize(s, s, rates=(Fraction(30),)) for s in ((641, 479), (1920, 1080))))
    odd = Camera("Odd", "x", 0, "v4l2", formats=(sizes,))
    made = WebcamSource(odd, size=(640, 480), rate=29.97)
    assert (made.info.width, made.info.height, made.info.rate) == (640, 478, 30)
    unknown = WebcamSource(Camera("New", "x", 0, "dshow"), size=(1001, 700), rate=25)
    assert (unknown.info.width, unknown.info.height, unknown.info.rate) == (1000, 700, 25)
    made.close()
    unknown.close()
