"""The virtual camera as far as it goes without a device: packing, sizes, refusals. Devices are tested in the virtual
machine of tests/camera_vm."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from rtbg import loopback, v4l2
from rtbg.errors import MissingDependency, OutputError, UsageError
from rtbg.frame import LIMITED, SMPTE170M, Color, Frame
from rtbg.sinks.virtual_camera import Packed, VirtualCamera

linux = pytest.mark.skipif(sys.platform != "linux", reason="v4l2loopback is Linux's")
bare = pytest.mark.skipif(bool(loopback.loopbacks()), reason="there is a virtual camera here")


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    return tuple(rng.integers(0, 256, s, np.uint8) for s in shapes)


def strided(planes, by=32):
    """The same planes as views into wider rows, as decoders give them."""
    wide = []
    for plane in planes:
        rows = np.zeros((plane.shape[0], plane.shape[1] + by), np.uint8)
        rows[:, : plane.shape[1]] = plane
        wide.append(rows[:, : plane.shape[1]])
    return tuple(wide)


@pytest.mark.parametrize("size", [(1280, 720), (640, 360), (322, 182), (2, 2)])
@pytest.mark.parametrize("how", [tuple, strided, lambda p: tuple(x[::-1][::-1] for x in p)])
def test_packing_puts_the_planes_in_a_row(size, how):
    planes = picture(*size)
    data = Packed(*size).fill(how(planes))
    assert data.dtype == np.uint8 and data.flags.c_contiguous and data.shape == (size[0] * size[1] * 3 // 2,)
    assert data.tobytes() == b"".join(p.tobytes() for p in planes)


def test_packed_is_what_ffmpeg_calls_yuv420p():
    """So it is what every reader takes for V4L2's YU12."""
    planes = picture(64, 48)
    frame = av.VideoFrame.from_ndarray(Packed(64, 48).fill(planes).reshape(72, 64), format="yuv420p")
    for ours, theirs in zip(planes, frame.planes, strict=True):
        rows = np.frombuffer(theirs, np.uint8).reshape(theirs.height, theirs.line_size)[:, : theirs.width]
        assert np.array_equal(ours, rows)


def test_packing_reuses_its_memory_and_keeps_nothing():
    packed, one, two = Packed(64, 48), picture(64, 48, 1), picture(64, 48, 2)
    kept = [p.copy() for p in one]
    first = packed.fill(one)
    second = packed.fill(two)
    assert first is second is packed.data
    assert all(np.array_equal(a, b) for a, b in zip(one, kept, strict=True))
    assert second.tobytes() == b"".join(p.tobytes() for p in two)


def test_packing_refuses_another_size_rather_than_stretching_it():
    with pytest.raises(ValueError):
        Packed(64, 48).fill(picture(32, 48))
    with pytest.raises(ValueError):
        Packed(64, 48).fill(picture(64, 48)[:2])


def test_pyvirtualcam_takes_the_packed_picture():
    """Its I420 has the size of ours, so that it is passed on as it is."""
    pyvirtualcam = pytest.importorskip("pyvirtualcam")
    from pyvirtualcam.camera import FrameShapes

    for width, height in ((1280, 720), (322, 182)):
        assert FrameShapes[pyvirtualcam.PixelFormat.I420](width, height) == Packed(width, height).data.size


@pytest.mark.parametrize("size", [(321, 240), (320, 241), (0, 0), (-2, 2)])
def test_sizes_that_cannot_be(size):
    with pytest.raises(UsageError, match="even"):
        VirtualCamera(size, 30)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_rates_that_cannot_be(rate):
    with pytest.raises(UsageError, match="rate"):
        VirtualCamera((320, 240), rate)


@linux
@bare
@pytest.mark.parametrize("device", [None, "rtbg", "/dev/video77", "77"])
def test_without_a_device_the_message_is_one_line_of_commands(device):
    pytest.importorskip("pyvirtualcam")
    with pytest.raises(OutputError) as caught:
        VirtualCamera((320, 240), 30, device=device)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("modprobe v4l2loopback exclusive_caps=1", "/etc/modules-load.d/", "/etc/modprobe.d/"):
        assert part in text, text


@linux
def test_what_is_no_virtual_camera_is_refused_and_let_go(tmp_path):
    pytest.importorskip("pyvirtualcam")
    file = tmp_path / "video"
    file.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(OutputError, match="no video device"):
            VirtualCamera((320, 240), 30, device=str(file))
    assert loopback.holders(str(file), own=True) == []


@linux
def test_the_webcam_itself_is_never_written(tmp_path):
    pytest.importorskip("pyvirtualcam")
    file, link = tmp_path / "video", tmp_path / "by-id"
    file.write_bytes(b"")
    link.symlink_to(file)
    with pytest.raises(UsageError, match="the webcam itself"):
        VirtualCamera((320, 240), 30, device=str(link), avoid=str(file))


def test_without_pyvirtualcam_the_message_holds_the_command(tmp_path):
    """In a process of its own, whose path shows a pyvirtualcam that cannot be imported before the real one."""
    (tmp_path / "pyvirtualcam.py").write_text("raise ImportError('not here')\n")
    code = (
        "from rtbg.sinks.virtual_camera import VirtualCamera\n"
        "try:\n    VirtualCamera((320, 240), 30)\n"
        "except Exception as exc:\n    print(type(exc).__name__, exc)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(MissingDependency.__name__) and "pip install pyvirtualcam" in done.stdout
    assert done.stderr == ""


class Kernel:
    """A file that answers as a device of v4l2loopback does, since none is to be had here, and a pyvirtualcam that
    opens it. All else is real: the lock on the file, who holds it, the bytes of the answers. `format` is what the
    device gives (None: it does not say), `refuses` what pyvirtualcam says instead of opening it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.format: tuple[int, int, bytes] | None = (320, 240, b"YU12")
        self.refuses: Exception | None = None
        self.opened = self.closed = self.sent = 0
        path.write_bytes(b"")

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        assert os.path.samestat(os.fstat(fd), self.path.stat())
        if request == v4l2.QUERYCAP:
            names = (b"v4l2 loopback".ljust(16, b"\0"), b"rtbg".ljust(32, b"\0"), b"platform:v4l2loopback-000")
            return struct.pack("<16s32s32sIII12x", *names, 0x060100, v4l2.CAP_OUTPUT, 0)
        if request == v4l2.G_FMT and self.format is not None:
            width, height, code = self.format
            pixels = struct.pack("<3I", width, height, int.from_bytes(code, "little"))
            return data[:8] + pixels + data[8 + len(pixels) :]
        raise OSError(errno.EINVAL, "Invalid argument")

    def camera(self, width: int, height: int, rate: float, **more: object) -> SimpleNamespace:
        """`pyvirtualcam.Camera`."""
        assert (width, height, rate) == (320, 240, 30) and more["device"] == str(self.path), more
        if self.refuses is not None:
            raise self.refuses
        self.opened += 1
        return SimpleNamespace(send=self.send, close=self.close)

    def send(self, _picture: np.ndarray) -> None:
        self.sent += 1

    def close(self) -> None:
        self.closed += 1

    def open(self) -> VirtualCamera:
        return VirtualCamera((320, 240), 30, device=str(self.path))


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    made = Kernel(tmp_path / "video")
    module = SimpleNamespace(Camera=made.camera, PixelFormat=SimpleNamespace(I420="I420"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    monkeypatch.setattr(v4l2, "_ask", made.ioctl)
    yield made
    assert loopback.holders(str(made.path), own=True) == [], "let go"
    assert made.opened == made.closed


def refused(open_: Callable[[], object]) -> str:
    with pytest.raises(OutputError) as caught:
        open_()
    text = str(caught.value)
    assert "\n" not in text
    return text


READER = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); print('up', flush=True); sys.stdin.read()"


@linux
@pytest.mark.parametrize(
    ("pinned", "advice"),
    [
        ((640, 480, b"YU12"), "end that program, or use --size 640x480"),
        ((320, 240, b"YUYV"), "end that program"),
        ((640, 480, b"YUYV"), "end that program"),
    ],
)
def test_a_reader_that_pins_another_format_is_named(kernel, pinned, advice):
    """At the start and, within a second, later; the size helps only where the pixels are ours."""
    width, height, code = pinned
    kernel.format = pinned
    command = [sys.executable, "-c", READER, str(kernel.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline().strip() == "up"
        who = f"a program that reads it ({loopback.holders(str(kernel.path))[0]})"
        assert f"pid {reader.pid}" in who
        held = f"{kernel.path} is held at {width}x{height} {code.decode()} by {who}, not 320x240: {advice}"
        assert refused(kernel.open) == held
        kernel.format = (320, 240, b"YU12")
        camera = kernel.open()
        show(camera)
        kernel.format = pinned
        assert refused(lambda: later(camera)) == held
        camera.abort()
        reader.stdin.close()
    assert kernel.sent == 1, "nothing in a format that is not the device's"


def show(camera: VirtualCamera) -> None:
    camera.write(Frame(picture(320, 240), 0, Fraction(1, 30), Color(SMPTE170M, LIMITED)))


def later(camera: VirtualCamera) -> None:
    """Shows a picture a second after the last look at the device."""
    camera._looked -= 2
    show(camera)


@linux
def test_a_reader_that_is_not_seen_is_told_all_the_same(kernel):
    """Another user's, whose processes we may not look into."""
    kernel.format = (640, 480, b"YU12")
    assert "is held at 640x480 YU12 by a program that reads it, not 320x240: end" in refused(kernel.open)


@linux
@pytest.mark.parametrize("answers", [(320, 240, b"YU12"), None])
def test_our_own_format_and_none_are_well(kernel, answers):
    """None: versions of the module that do not say."""
    kernel.format = answers
    camera = kernel.open()
    show(camera)
    later(camera)
    assert kernel.sent == 2
    camera.close()
    camera.close()


@linux
def test_a_device_that_goes_is_told(kernel):
    camera = kernel.open()
    kernel.path.unlink()
    assert "is gone: sudo modprobe v4l2loopback" in refused(lambda: later(camera))
    camera.abort()
    kernel.path.write_bytes(b"")


@linux
@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("Device /dev/video9 is already in use.", "another program writes to {}: end it, or name another with --vcam"),
        (
            "Virtual camera device /dev/video9 is not a video output device.",
            "another program writes to {}: end it, or name another with --vcam",
        ),
        ("Device or resource busy", "another program writes to {}: end it, or name another with --vcam"),
        ("not opened due to missing permissions. Did you", "no permission for {}: sudo usermod -aG video $USER"),
        ("no memory\nfor buffers", "{} cannot be opened as a virtual camera: no memory for buffers"),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_what_pyvirtualcam_says_is_told_in_rtbgs_words(kernel, says, told, error):
    kernel.refuses = error(says)
    assert refused(kernel.open).startswith(told.format(kernel.path))


@pytest.mark.parametrize("system", ["win32", "darwin"])
@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("'obs' backend: OBS Virtual Camera device not found! Did you install OBS?", "no virtual camera: install OBS"),
        (
            "'obs' backend: This backend supports only the 'OBS Virtual Camera' device.",
            "there is no virtual camera 'x'",
        ),
        ("'obs' backend: virtual camera output could not be started", "another program writes to OBS Virtual Camera"),
    ],
)
def test_what_is_told_where_obs_has_the_virtual_camera(monkeypatch, system, says, told):
    """To install OBS is no advice where it is there. The words are those of pyvirtualcam 0.15's libraries."""

    def camera(*_args: object, **_more: object) -> None:
        raise RuntimeError(says)

    module = SimpleNamespace(Camera=camera, PixelFormat=SimpleNamespace(I420="I420"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    monkeypatch.setattr(sys, "platform", system)
    said = refused(lambda: VirtualCamera((320, 240), 30, device="x"))
    assert said.startswith(told) and ": " in said and ("install" in said) == ("not found" in says)


@linux
def test_pyvirtualcam_still_says_what_is_looked_for():
    """Else its errors would reach the user as they are: the words are in its library."""
    pyvirtualcam = pytest.importorskip("pyvirtualcam")
    (library,) = Path(pyvirtualcam.__file__).parent.glob("_native_linux_v4l2loopback*.so")
    data = library.read_bytes()
    assert all(words in data for words in (b"in use", b"is not a video output device", b"permission"))
