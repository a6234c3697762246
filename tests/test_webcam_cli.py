"""`rtbg --webcam` as a user runs it: a process of its own, with a clip that stands in for the camera."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from engines import EngineError
from engines.openvino_engine import OpenVINORunner
from rtbg.errors import MattingError, UsageError
from rtbg.frame import Frame
from rtbg.options import Options, size_of
from rtbg.webcam import matting_factory
from tests.live_parts import COLOR, H, W, flat, info_at, ones
from tests.live_parts import Engine as Plain
from tests.media import make_video, read_video

RTBG = [sys.executable, "-m", "rtbg"]
BARE = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")}
BEHIND = (0x20, 0x60, 0xC0)


def rtbg(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RTBG, *map(str, args)], capture_output=True, text=True, timeout=100, env=BARE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", size=(320, 192), frames=25)


def start(*args: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A live rtbg whose pictures flow: it has said what the camera is."""
    process = subprocess.Popen([*RTBG, *map(str, args)], stderr=subprocess.PIPE, text=True, env=env or BARE)
    assert process.stderr is not None
    for line in process.stderr:
        if "a file" in line:
            return process
    raise AssertionError(f"it ended with {process.wait()}")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_ends_with_a_signal(clip: Path, tmp_path: Path, number: int) -> None:
    process = start("--webcam", clip, "--vcam", "none", "-o", tmp_path / "rec.mkv", "--bg", "#2060c0")
    time.sleep(2)
    process.send_signal(signal.SIGHUP)  # reads the background again; ends nothing
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert re.search(r"\d+\.\d fps, latency p50 \d", said) and "CPU" in said, said
    pictures, times = read_video(tmp_path / "rec.mkv")
    assert len(pictures) > 5 and times[-1] - times[0] > 1 and all(b > a for a, b in itertools.pairwise(times))
    shares = [np.mean(np.abs(p.astype(int) - BEHIND).max(axis=2) <= 6) for p in pictures]
    assert min(shares) > 0.9, "nobody is in this clip: all of it is background, from the first picture on"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_recording_that_ends_before_its_first_picture_is_told(clip: Path, tmp_path: Path) -> None:
    """The signal comes while the network is being loaded."""
    args = ("--webcam", clip, "--vcam", "none", "-o", tmp_path / "rec.mp4")
    process = subprocess.Popen([*RTBG, *map(str, args)], stderr=subprocess.PIPE, text=True, env=BARE)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert "sound is not recorded" in said
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=30)[1]
    assert process.returncode == 0, said
    assert "rtbg: nothing was recorded: no picture was finished before the end" in said, said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_closed_terminal_ends_the_run(clip: Path, tmp_path: Path) -> None:
    """SIGHUP, twice, from the system and the shell: the recording is completed."""
    import pty

    ours, theirs = pty.openpty()
    command = [*RTBG, "--webcam", str(clip), "--vcam", "none", "-o", str(tmp_path / "rec.mkv")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=theirs, env=BARE | {"TERM": "xterm"})
    os.close(theirs)
    said = b""
    while b"latency" not in said:
        said += os.read(ours, 4096)
    time.sleep(0.5)
    os.close(ours)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    process.wait(30)
    assert len(read_video(tmp_path / "rec.mkv")[0]) > 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_recording_that_is_given_up(clip: Path, tmp_path: Path) -> None:
    """The second Ctrl-C, while it is completed; before that, it was said that it is."""
    args = ("--webcam", clip, "--size", "1280x720", "--fps", "30", "--vcam", "none", "-o", tmp_path / "rec.mkv")
    process = start(*args, "--codec", "vp9", "--bg", "dusk")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "completing" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, said
    assert said.count("rec.mkv; again to give it up") == 1
    if "rec.mkv is whole" in said:  # the second one came too late
        assert read_video(tmp_path / "rec.mkv")[0]
    else:
        assert "rtbg: nothing was recorded" in said and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_recording_with_sound(clip: Path, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "mic.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(16000 * 30) / 16000)
        file.writeframes(tone.astype("<i2").tobytes())
    process = start("--webcam", clip, "--vcam", "none", "-o", tmp_path / "rec.mp4", "--mic", tmp_path / "mic.wav")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    with av.open(str(tmp_path / "rec.mp4")) as made:
        lengths = [float(s.duration * s.time_base) for s in (made.streams.video[0], made.streams.audio[0])]
    assert min(lengths) > 1 and abs(lengths[0] - lengths[1]) < 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_recording_with_all_standard_files_closed(clip: Path, tmp_path: Path) -> None:
    """What libpng says of a background that is cut short does not get into it."""
    background = tmp_path / "wall.png"
    cv2.imwrite(str(background), np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    whole = background.read_bytes()
    command = [*RTBG, "--webcam", clip, "--vcam", "none", "--bg", background, "-o", tmp_path / "rec.mp4"]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *map(str, command)], env=BARE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 4096 for p in tmp_path.glob(".rec*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    standard = [str(Path(f"/proc/{process.pid}/fd/{n}").readlink()) for n in range(3)]
    for part in (0.5, 0.3):
        (tmp_path / "next.png").write_bytes(whole[: round(part * len(whole))])
        (tmp_path / "next.png").replace(background)
        process.send_signal(signal.SIGHUP)
        time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert b"libpng" not in (tmp_path / "rec.mp4").read_bytes()
    assert len(read_video(tmp_path / "rec.mp4")[0]) > 5
    assert standard == [os.devnull] * 3


@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="needs Xvfb")
def test_an_x_server_that_dies_takes_the_preview_only(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="pygame-ce is not installed: pip install 'rtbg[preview]'")
    ours, theirs = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "640x480x24", "-nolisten", "tcp"],
        pass_fds=[theirs],
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    try:
        with os.fdopen(ours) as told:
            env = BARE | {"DISPLAY": f":{told.readline().strip()}"}
        process = start("--webcam", clip, "--vcam", "none", "--preview", "-o", tmp_path / "rec.mkv", env=env)
        time.sleep(1.5)
        assert process.poll() is None
    finally:
        server.kill()
        server.wait()
    time.sleep(3)
    assert process.poll() is None, "the call goes on"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and said.count("its display is gone") == 1, said  # an output was lost
    assert "XIO" not in said
    times = read_video(tmp_path / "rec.mkv")[1]
    assert times[-1] - times[0] > 3.5


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_preview_without_a_virtual_camera(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="pygame-ce is not installed: pip install 'rtbg[preview]'")
    env = BARE | {"SDL_VIDEODRIVER": "dummy"}
    process = start("--webcam", clip, "--vcam", "none", "--preview", "--size", "160x96", "--mirror", env=env)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and "fps" in said, said


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["--webcam", "CLIP", "--vcam", "none"], 2, "nothing would be shown"),
        (["--webcam", "CLIP", "--vcam", "none", "-o", "rec.png"], 2, "picture"),
        (["--webcam", "CLIP", "--bg", "transparent"], 2, "green"),
        (["--webcam", "CLIP", "--bg", "nowhere.jpg"], 1, "nowhere.jpg"),
        (["--webcam", "CLIP", "--size", "12"], 2, "WIDTHxHEIGHT"),
        (["--webcam", "CLIP", "--size", "321x181"], 2, "even"),
        (["--webcam", "CLIP", "--fps", "0"], 2, "--fps"),
        (["--webcam", "CLIP", "CLIP"], 2, "--webcam FILE"),
        (["--webcam", "CLIP", "--start", "3"], 2, "--start"),
        (["--webcam", "CLIP", "--mic", "x"], 2, "-o"),
        (["CLIP", "--mic", "x"], 2, "--mic is for --webcam"),
        (["--webcam", "CLIP", "--vcam", "none", "-o", "rec.mp4", "--mic", "no such input"], 1, "no such input"),
        (["--webcam", "CLIP", "--vcam", "none", "-o", "rec.mp4", "--mic", ""], 1, "the microphone is empty"),
        (["--webcam", "no such camera anywhere"], 1, "camera"),
        (["--webcam", "mistyped.mp4"], 1, "mistyped.mp4: no such file"),
        (["--webcam", "folder/mistyped"], 1, "folder/mistyped: no such file"),
        (["--webcam", "CLIP", "-o", "CLIP", "-y"], 2, "is a file that is read"),
        (["--webcam", "no such camera anywhere", "--model", "nope"], 1, "nope"),
        (["--webcam", "no such camera anywhere", "--device", "gpux"], 1, "gpux"),
        (["--webcam", "no such camera anywhere", "--engine", "openvino", "--device", "cuda"], 1, "does not run"),
        (["CLIP", "--bg", "red", "--bg", "blue"], 2, "several backgrounds"),
        (["CLIP", "--mirror"], 2, "--mirror is for --webcam"),
        (["--webcam", "CLIP", "--vcam", "none", "--preview"], 1, "--preview"),
    ],
)
def test_what_cannot_be_is_one_line(clip: Path, tmp_path: Path, args: list[str], code: int, words: str) -> None:
    done = rtbg(*(clip if a == "CLIP" else tmp_path / a if a.startswith("rec.") else a for a in args))
    lines = [line for line in done.stderr.splitlines() if line.strip() and "sound is not" not in line]
    assert done.returncode == code and len(lines) == 1 and words in lines[0], done.stderr
    assert not list(tmp_path.iterdir())


def test_an_existing_recording_is_kept(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "rec.mp4").write_bytes(b"older")
    done = rtbg("--webcam", clip, "--vcam", "none", "-o", tmp_path / "rec.mp4")
    assert done.returncode == 1 and "-y" in done.stderr
    assert (tmp_path / "rec.mp4").read_bytes() == b"older"


@pytest.mark.skipif(bool(list(Path("/dev").glob("video*"))), reason="this machine has a video device")
def test_without_any_device(clip: Path) -> None:
    shown = rtbg("--list-cameras")
    assert shown.returncode == 0 and "no camera" in shown.stdout
    assert "no camera" in rtbg("--webcam").stderr
    if sys.platform == "linux":
        done = rtbg("--webcam", clip)
        assert done.returncode == 1 and "modprobe" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    examined = rtbg("--doctor")
    assert examined.returncode == 1 and "OpenVINO" in examined.stdout


@pytest.mark.parametrize("size", [(640, 360), (360, 640)])
def test_the_network_is_compiled_before_the_first_picture(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes seconds: not in the call. At another size too."""
    compiled = []
    inner = OpenVINORunner._compile

    def compile_(self: OpenVINORunner, shapes: tuple[tuple[int, ...], ...]) -> object:
        compiled.append(shapes)
        return inner(self, shapes)

    monkeypatch.setattr(OpenVINORunner, "_compile", compile_)
    info = info_at(30, size)
    matting = matting_factory(Options(engine="openvino", model="fast", threads=1), info)()
    try:
        before = list(compiled)
        assert any(shapes[0][:2] == (1, 4) for shapes in before)
        w, h = size
        planes = tuple(np.full(s, 128, np.uint8) for s in ((h, w), (h // 2, w // 2), (h // 2, w // 2)))
        assert matting.push(Frame(planes, 0, info.time_base, COLOR))
        assert compiled == before
    finally:
        matting.engine.close()


class Stateful(Plain):
    """An engine with a past."""

    def reset(self) -> None:
        self.calls = 0


def test_running_the_network_once_leaves_no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it matter what it answers to a black picture, but failing does, and closes it."""
    info = info_at(30)
    opened: list[Stateful] = []
    asked: list[np.ndarray] = []

    def answer(frame: np.ndarray, n: int) -> object:
        asked.append(frame.copy())
        return ones() * np.nan if len(asked) == 1 else ones()

    def load(*_: object, **__: object) -> Stateful:
        opened.append(Stateful(answer))
        return opened[-1]

    monkeypatch.setattr("rtbg.webcam.load", load)
    matting = matting_factory(Options(), info)()
    assert len(asked) == 1 and opened[0].calls == 0
    assert asked[0].shape == (1, 4, H, W) and not asked[0].any()
    ((_, alpha),) = matting.push(Frame(flat(120), 0, info.time_base, COLOR))
    assert alpha.min() == 255 and not asked[1][0, 3].any()

    def lost(frame: np.ndarray, n: int) -> object:
        raise EngineError("the device is lost")

    monkeypatch.setattr("rtbg.webcam.load", lambda *_, **__: opened.append(Stateful(lost)) or opened[-1])
    with pytest.raises(MattingError, match="the device is lost"):
        matting_factory(Options(), info)()
    assert [engine.closed for engine in opened] == [0, 1]


def test_options_of_live_mode() -> None:
    assert size_of("1280x720") == (1280, 720) == size_of("1280X720")
    for wrong in ("", "720p", "1280x", "0x0", "1281x720", "-2x4", "99999x2"):
        with pytest.raises(UsageError):
            size_of(wrong)
    with pytest.raises(UsageError):
        Options(on_failure="show")
