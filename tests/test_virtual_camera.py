"""The virtual camera as far as it goes without a device: packing, sizes, refusals. Devices are tested in the virtual
machine of tests/camera_vm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from rtbg import loopback
from rtbg.errors import MissingDependency, OutputError, UsageError
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
