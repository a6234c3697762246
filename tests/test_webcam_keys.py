"""What a user changes while the real program runs, by keys and by files, as its recording shows it. On a real terminal
(a pty), with a clip of somebody that stands in for the camera."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rtbg.sources.demo import DemoSource
from tests.media import read_video

if sys.platform == "win32":
    pytest.skip("ptys and SIGHUP are Unix's", allow_module_level=True)

import resource

from tests.test_keys import Terminal

SIZE = 320, 240
BLUE, ORANGE = (0x20, 0x60, 0xC0), (0xC0, 0x60, 0x20)
HOLD = 2.5  # seconds, more than two of the windows over which the status line counts pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage", reason="the demo is scikit-image's portrait: pip install scikit-image")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for k, frame in enumerate(iter(DemoSource(size=SIZE, seconds=4, rate=25).read, None)):
            rows = np.concatenate([p.ravel() for p in frame.planes]).reshape(-1, SIZE[0])
            picture = av.VideoFrame.from_ndarray(rows, format="yuv420p")
            picture.pts, picture.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


class Program(Terminal):
    """rtbg on a terminal of its own, wide enough for the whole status line."""

    def __init__(self, *args: object) -> None:
        def before() -> None:
            for name in ("DISPLAY", "WAYLAND_DISPLAY", "NO_COLOR"):
                os.environ.pop(name, None)
            os.environ.update(TERM="xterm", COLUMNS="160")
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        super().__init__("-m", "rtbg", *map(str, args), before=before)

    def press(self, key: str, until: str) -> None:
        """Types a key and waits for what the status line says then."""
        self.said = ""
        self.type(key)
        self.wait_for(until)

    def hold(self, moving: bool = True) -> str:
        """Goes on for HOLD seconds, and until pictures have left (not: have not) for a whole window; what was said."""
        end, rate, heard = time.monotonic() + HOLD, "", ""
        while time.monotonic() < end or not rate or (rate != "0.0") != moving:
            assert time.monotonic() < end + 60, f"{rate} fps"
            self.said = ""
            self.wait_for(" fps", 60)
            rate = (re.findall(r"(\d+\.\d) fps", self.said) or [rate])[-1]
            heard += self.said
        return heard


@pytest.fixture
def begin(clip: Path, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts it with these arguments, recording to rec.mkv in `tmp_path`; until its pictures flow."""
    programs: list[Program] = []

    def start(*args: object) -> Program:
        fixed = ("--webcam", clip, "--vcam", "none", "-o", tmp_path / "rec.mkv", "--model", "fast")
        programs.append(Program(*fixed, *args))
        programs[-1].wait_for("latency", 60)  # of a picture that was recorded
        return programs[-1]

    yield start
    for program in programs:
        program.close()


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Whether the corner above her left shoulder, where nobody is, has this colour."""
    corner = picture[: SIZE[1] // 6, -SIZE[0] // 8 :].reshape(-1, 3)
    return bool(np.abs(np.median(corner, axis=0) - colour).max() <= 6)


def somebody(picture: np.ndarray) -> bool:
    """Whether it is not a card, which is of one colour."""
    return bool(picture.std(axis=(0, 1)).max() > 8)


def matte(picture: np.ndarray) -> bool:
    """Whether it is grey, and black and white in good part."""
    grey = np.ptp(picture.astype(int), axis=2).max() <= 8
    return bool(grey and (picture < 30).mean() > 0.2 and (picture > 220).mean() > 0.05)


def kind(picture: np.ndarray) -> str:
    """What the program showed."""
    found = ["matte"] * matte(picture)
    found += [name for name, colour in (("blue", BLUE), ("orange", ORANGE)) if near(picture, colour)]
    assert len(found) == 1, found
    return found[0]


def test_each_key_does_what_it_says(begin: Callable[..., Program], tmp_path: Path) -> None:
    program = begin("--bg", "#2060c0", "--bg", "#c06020")
    program.press("b", "#c06020")
    program.hold()
    program.press("m", "MATTE")
    program.hold()
    program.press("m", " fps")
    program.hold()
    program.press(" ", "FROZEN")
    program.hold(moving=False)
    program.press(" ", " fps")
    program.hold()
    program.type("q")
    assert program.end() == 0, program.said
    assert "latency p50" in program.said and program.line_mode
    pictures, times = read_video(tmp_path / "rec.mkv")
    assert all(b > a for a, b in itertools.pairwise(times))
    shown = [(picture, at) for picture, at in zip(pictures, times, strict=True) if somebody(picture)]
    kinds = [kind(picture) for picture, _ in shown]
    assert [name for name, _ in itertools.groupby(kinds)] == ["blue", "orange", "matte", "orange"]
    # While it was frozen one picture, hers, stood for as long: none came after it. All else of her moves.
    gap, last = max((b - a, k) for k, (a, b) in enumerate(itertools.pairwise(times)))
    assert gap > HOLD - 1
    assert somebody(pictures[last]) and kind(pictures[last]) == kind(pictures[last + 1]) == "orange"
    assert "matte" in kinds[: [at for _, at in shown].index(times[last])], "after the matte"
    assert np.abs(pictures[last].astype(int) - pictures[last + 1]).max() > 20


def test_a_quit_from_the_terminal_leaves_what_was_recorded(begin: Callable[..., Program], tmp_path: Path) -> None:
    """No terminal without echo, the hidden file as after any kill, and it is a death by SIGQUIT."""
    program = begin("--bg", "#2060c0")
    assert not program.line_mode and [p.name for p in tmp_path.iterdir() if p.name.startswith(".rec.")]
    program.type("\x1c")
    assert program.end() == -signal.SIGQUIT, program.said
    assert program.line_mode
    assert [p.name.startswith(".rec.") for p in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("asked", [True, False], ids=["SIGHUP", "by itself"])
def test_a_background_that_is_written_anew(begin: Callable[..., Program], tmp_path: Path, asked: bool) -> None:
    """With SIGHUP also where nothing about the file tells that it was."""
    path = tmp_path / "wall.bmp"
    cv2.imwrite(str(path), np.full((60, 80, 3), BLUE[::-1], np.uint8))
    program = begin("--bg", path, "-v")
    if asked:
        stat = path.stat()
        cv2.imwrite(str(path), np.full((60, 80, 3), ORANGE[::-1], np.uint8))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (stat.st_mtime_ns, stat.st_size)
        assert "read again" not in program.hold()
        program.said = ""
        os.kill(program.pid, signal.SIGHUP)
    else:
        cv2.imwrite(str(tmp_path / "next.bmp"), np.full((60, 80, 3), ORANGE[::-1], np.uint8))
        program.said = ""
        (tmp_path / "next.bmp").replace(path)
    program.wait_for("was read again")
    program.hold()
    os.kill(program.pid, signal.SIGTERM)
    assert program.end() == 0, program.said
    kinds = [kind(picture) for picture in read_video(tmp_path / "rec.mkv")[0]]
    assert [name for name, _ in itertools.groupby(kinds)] == ["blue", "orange"]
