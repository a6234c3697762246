"""The webcam source on real streams that FFmpeg opens in a camera's place: generated pictures in real time (lavfi)
and JPEG files."""

from __future__ import annotations

import itertools
import logging
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rtbg.cameras import Camera, Mode
from rtbg.frame import LIMITED, SMPTE170M, Color
from rtbg.sources import webcam
from rtbg.sources.webcam import WebcamSource
from rtbg.v4l2 import Format, FrameSize
from tests.webcam_parts import RED, assert_colour, camera, closing, jpeg, lavfi, noise, picture, source


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


def thinned(pictures: str, rate: int, wanted: int) -> WebcamSource:
    """A camera that says it has `rate` pictures a second, of which `wanted` are kept."""
    known, opener = camera(rate=rate), lavfi(pictures)
    return WebcamSource(known, size=(320, 240), rate=wanted, opener=opener, finder=lambda known: known)


def test_a_thinned_out_camera_gives_its_pictures_evenly() -> None:
    with closing(thinned("testsrc=size=320x240:rate=60,format=yuyv422,realtime", 60, 20)) as made:
        frames = [picture(made) for _ in range(10)]
        assert frames[-1].captured - frames[0].captured > 9 * 0.05 - 0.04
        assert "at 60, YUYV, thinned out to 20" in made.obtained


def test_times_are_exact_where_the_monotonic_clock_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows before Python 3.13 it goes in steps of 1/64 s: recordings would judder."""
    exact = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: exact() * 64 // 1 / 64)
    with closing(source(lavfi("testsrc=size=320x240:rate=30,format=yuyv422,realtime"))) as made:
        assert any(picture(made).captured * 64 % 1 for _ in range(8))


def test_a_picture_a_second_is_no_silence() -> None:
    """The camera's own pace does not divide a second: some of those that are kept come a little later than that."""
    with closing(thinned("color=c=red:size=320x240:rate=273/10,format=yuyv422,realtime", 30, 1)) as made:
        frames = [picture(made)] + [made.read() for _ in range(4)]
        assert all(frames)
        assert frames[-1].captured - frames[0].captured > 3.9


def test_pictures_are_live_and_only_the_newest_is_given() -> None:
    with closing(source(lavfi("testsrc=size=320x240:rate=30,format=yuyv422,realtime"))) as made:
        assert made.live
        frames = []
        for _ in range(5):
            frames.append(picture(made))
            assert abs(time.perf_counter() - frames[-1].captured) < 2
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
        until = time.perf_counter() + 20
        while len(seen) < 2 and time.perf_counter() < until:
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


def test_a_picture_from_before_a_stop_is_as_old_as_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z: the driver's buffers still hold those of a minute ago. A time of another clock is none."""
    now = time.perf_counter()
    with lavfi("color=size=320x240:rate=30")(camera(), Mode((320, 240), Fraction(30))) as container:
        session = webcam._Session(container, camera())
        base = session.stream.time_base
        assert base is not None
        for passed, age, counted in (
            (0.03, 0.02, 0.02),
            (0.03, 40, 0),
            (60, 59.9, 59.9),
            (0.03, 0.02, 0.02),
            (2, 40, 0),
        ):
            now += passed
            monkeypatch.setattr(webcam.time, "perf_counter", lambda now=now: now)
            assert abs(now - session.time_of(round((now - age) / base)) - counted) < 0.02


def test_the_size_told_is_the_drivers_and_even() -> None:
    sizes = Format("MJPG", "", True, tuple(FrameSize(s, s, rates=(Fraction(30),)) for s in ((641, 479), (1920, 1080))))
    odd = Camera("Odd", "x", 0, "v4l2", formats=(sizes,))
    made = WebcamSource(odd, size=(640, 480), rate=29.97)
    assert (made.info.width, made.info.height, made.info.rate) == (640, 478, 30)
    unknown = WebcamSource(Camera("New", "x", 0, "dshow"), size=(1001, 700), rate=25)
    assert (unknown.info.width, unknown.info.height, unknown.info.rate) == (1000, 700, 25)
    made.close()
    unknown.close()
