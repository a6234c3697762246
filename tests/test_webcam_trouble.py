"""Webcams that are not there, in use, plugged out, or fall silent: what is said, and that their pictures come back."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import InputContainer

from rtbg.cameras import Camera, Mode
from rtbg.errors import NoPicture
from rtbg.sources import webcam
from rtbg.sources.webcam import WebcamSource
from tests.webcam_parts import RED, camera, closing, jpeg, picture, source, trouble

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipes and /proc")


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
