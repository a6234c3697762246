"""V4L2: layouts and numbers of linux/videodev2.h by hand, and what devices that are none answer."""

from __future__ import annotations

import errno
import struct
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from rtbg import v4l2

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="V4L2 is Linux")
MJPG, YUYV = 0x47504A4D, 0x56595559


def capability(caps: int, own: int) -> bytes:
    data = (
        b"uvcvideo".ljust(16, b"\0") + b"HD Pro Webcam C920".ljust(32, b"\0") + b"usb-0000:00:14.0-1".ljust(32, b"\0")
    )
    return data + struct.pack("<III", 0x060100, caps, own) + bytes(12)


def frame_size(index: int, kind: int, *numbers: int) -> bytes:
    return (struct.pack("<III", index, MJPG, kind) + struct.pack(f"<{len(numbers)}I", *numbers)).ljust(44, b"\0")


def frame_interval(kind: int, *numbers: int) -> bytes:
    head = struct.pack("<IIIII", 0, MJPG, 1280, 720, kind)
    return (head + struct.pack(f"<{len(numbers)}I", *numbers)).ljust(52, b"\0")


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="the numbers of 64-bit systems")
def test_ioctl_numbers_are_the_kernels() -> None:
    assert v4l2.QUERYCAP == 0x80685600
    assert v4l2.ENUM_FMT == 0xC0405602
    assert v4l2.ENUM_FRAMESIZES == 0xC02C564A
    assert v4l2.ENUM_FRAMEINTERVALS == 0xC034564B
    assert v4l2.S_PARM == 0xC0CC5616
    assert v4l2.G_FMT == 0xC0D05604
    assert (v4l2.STREAMON, v4l2.STREAMOFF) == (0x40045612, 0x40045613)


def test_capability_prefers_what_the_node_itself_can() -> None:
    # A webcam's second node gives metadata only; the device as a whole can capture.
    found = v4l2.parse_capability(capability(0x84A00001, 0x04A00000))
    assert (found.driver, found.card, found.bus) == ("uvcvideo", "HD Pro Webcam C920", "usb-0000:00:14.0-1")
    assert found.version == 0x060100 and found.capabilities & v4l2.CAP_CAPTURE
    assert not found.caps & v4l2.CAP_CAPTURE
    assert v4l2.parse_capability(capability(0x00000003, 0)).caps == 3


def test_format_description() -> None:
    data = struct.pack("<III", 1, 1, 1) + b"Motion-JPEG".ljust(32, b"\0") + struct.pack("<I", MJPG) + bytes(16)
    assert len(data) == 64
    assert v4l2.parse_format_description(data) == (MJPG, "Motion-JPEG", True)
    assert v4l2.fourcc(MJPG) == "MJPG" and v4l2.fourcc(YUYV) == "YUYV"
    assert v4l2.fourcc(int.from_bytes(b"Y16 ", "little")) == "Y16"
    assert v4l2.fourcc(int.from_bytes(b"Y16 ", "little") | 1 << 31) == "Y16-BE"


def test_frame_sizes() -> None:
    assert v4l2.parse_frame_size(frame_size(0, 1, 1280, 720)) == v4l2.FrameSize((1280, 720), (1280, 720))
    steps = v4l2.parse_frame_size(frame_size(0, 3, 160, 1920, 16, 120, 1080, 8))
    assert steps == v4l2.FrameSize((160, 120), (1920, 1080), (16, 8)) and steps.is_range
    assert steps.nearest((1280, 720)) == (1280, 720)
    assert steps.nearest((1270, 725)) == (1264, 728)
    assert steps.nearest((9999, 1)) == (1920, 120)
    # v4l2loopback: continuous, steps of 1
    free = v4l2.parse_frame_size(frame_size(0, 2, 2, 8192, 1, 1, 8192, 1))
    assert free.nearest((641, 479)) == (641, 479)
    assert v4l2.parse_frame_size(frame_size(0, 3, 2, 64, 0, 2, 64, 0)).nearest((33, 70)) == (33, 64)


def test_frame_intervals() -> None:
    assert v4l2.parse_frame_interval(frame_interval(1, 1001, 30000)) == ((Fraction(30000, 1001),), False)
    assert v4l2.parse_frame_interval(frame_interval(3, 1, 60, 1, 5, 1, 60)) == ((Fraction(60), Fraction(5)), True)
    # v4l2loopback's slowest interval is for ever: taken for a second
    assert v4l2.parse_frame_interval(frame_interval(2, 1, 1000, 1, 0, 1, 1)) == ((Fraction(1000), Fraction(1)), True)
    assert v4l2.parse_frame_interval(frame_interval(1, 0, 0)) == ((), False)


def test_rates_of_a_size() -> None:
    listed = v4l2.FrameSize((1, 1), (1, 1), rates=(Fraction(60), Fraction(30), Fraction(15)))
    assert [listed.rate(Fraction(r)) for r in (100, 31, 22, 1)] == [60, 30, 15, 15]
    between = v4l2.FrameSize((1, 1), (1, 1), rates=(Fraction(60), Fraction(5)), between=True)
    assert [between.rate(Fraction(r)) for r in (100, 31, 1)] == [60, 31, 5]
    assert v4l2.FrameSize((1, 1), (1, 1)).rate(Fraction(30)) is None


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="the layout of 64-bit systems")
def test_pixel_format() -> None:
    pix = struct.pack("<12I", 1280, 720, YUYV, 1, 2560, 1843200, 8, 0xFEEDCAFE, 0, 1, 2, 0)
    data = (struct.pack("<II", 1, 0) + pix).ljust(208, b"\0")
    found = v4l2.parse_pixel_format(data)
    assert found == v4l2.PixelFormat(1280, 720, "YUYV", 8, 2560, 1843200, 1, 2)


def test_the_rate_of_an_output_is_told_and_what_became_of_it_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, bytes]] = []

    def device(fd: int, request: int, data: bytes) -> bytes:  # that gives 25 whatever it is told
        asked.append((fd, request, data))
        return struct.pack("<5I", 2, 0, 0, 1, 25).ljust(204, b"\0")

    monkeypatch.setattr(v4l2, "_ask", device)
    assert v4l2.set_rate(7, Fraction(30000, 1001)) == 25
    assert asked == [(7, v4l2.S_PARM, struct.pack("<5I", v4l2.BUF_OUTPUT, 0, 0, 1001, 30000).ljust(204, b"\0"))]
    monkeypatch.setattr(v4l2, "_ask", lambda *_: bytes(204))
    assert v4l2.set_rate(7, Fraction(30)) is None


@linux
def test_what_is_no_camera_says_so() -> None:
    for call in (v4l2.capability, lambda path: v4l2.get_format(path, output=False)):
        with pytest.raises(OSError) as caught:
            call("/dev/null")
        assert caught.value.errno == errno.ENOTTY and caught.value.filename == "/dev/null"
        with pytest.raises(FileNotFoundError):
            call("/dev/video4711")
    assert v4l2.device("/dev/null").error == errno.ENOTTY
    gone = v4l2.device("/dev/video4711", 4711)
    assert (gone.name, gone.error, gone.index, gone.can_capture) == ("video4711", errno.ENOENT, 4711, False)
    with pytest.raises(OSError), v4l2.opened("/dev/null") as fd:
        v4l2.streamon(fd, output=True)
    assert v4l2.open_descriptors("/dev/video4711") == []


@linux
def test_devices_are_in_order_and_leave_nothing_open() -> None:
    before = sorted(p.name for p in Path("/proc/self/fd").iterdir())
    found = v4l2.devices()
    assert [d.index for d in found] == sorted(d.index for d in found)
    assert sorted(p.name for p in Path("/proc/self/fd").iterdir()) == before


@linux
def test_descriptors_of_a_file_are_found() -> None:
    with v4l2.opened("/dev/null") as fd:
        assert fd in v4l2.open_descriptors("/dev/null")
    assert fd not in v4l2.open_descriptors("/dev/null")
