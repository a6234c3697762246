"""The backgrounds of a live run: stepping, cards, files that change, all with real files and threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from rtbg.backdrop import Backdrop, refuse_transparent
from rtbg.backgrounds import BackgroundSpec, parse_background
from rtbg.color import planes_to_rgb
from rtbg.control import Control
from rtbg.errors import BackgroundError, UsageError
from rtbg.frame import LIMITED, SMPTE170M, Array, Color, Frame, StreamInfo
from rtbg.protocols import Background

W, H = 64, 48
INFO = StreamInfo(W, H, Fraction(1, 1_000_000), Fraction(30), color=Color(SMPTE170M, LIMITED))
RED, GREEN, BLUE = (220, 30, 30), (20, 180, 60), (40, 50, 210)
NOBODY = np.zeros((H, W), np.uint8)

Open = Callable[..., Backdrop]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr("rtbg.backdrop.LOOK", 0.25)
    with ExitStack() as stack:

        def make(*specs: object, **more: object) -> Backdrop:
            backdrop = Backdrop(specs, INFO, **more)  # type: ignore[arg-type]
            stack.callback(backdrop.close)
            return backdrop

        yield make


def picture(path: Path, rgb: tuple[int, int, int]) -> Path:
    """Written beside and moved, as an editor does."""
    ok, data = cv2.imencode(".png", np.full((H, W, 3), rgb[::-1], np.uint8))
    assert ok
    part = path.with_suffix(".part")
    part.write_bytes(data.tobytes())
    part.replace(path)
    return path


def video(path: Path, colors: list[tuple[int, int, int]], each: int = 100) -> Path:
    """One picture of each colour, `each` milliseconds long."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=Fraction(1000, each))
        stream.width, stream.height, stream.pix_fmt = W, H, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, rgb in enumerate(colors):
            frame = av.VideoFrame.from_ndarray(np.full((H, W, 3), rgb, np.uint8), format="rgb24").reformat(
                format="bgr0"
            )
            frame.pts, frame.time_base = k * each, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def camera(ms: int, rgb: tuple[int, int, int] = (90, 90, 90)) -> Frame:
    """A camera's picture, an hour after the machine's clock began."""
    y, u, v = (np.full(s, c, np.uint8) for s, c in zip(((H, W), (H // 2, W // 2), (H // 2, W // 2)), rgb, strict=True))
    return Frame((y, u, v), 3_600_000_000 + 1000 * ms, INFO.time_base, INFO.color)


def colour(planes: tuple[Array, ...] | None) -> tuple[int, int, int]:
    """The one colour of planes."""
    assert planes is not None
    rgb = planes_to_rgb(planes, INFO.color)
    assert int(np.ptp(rgb.reshape(-1, 3).astype(int), axis=0).max()) <= 2
    return tuple(int(c) for c in rgb[H // 2, W // 2])  # type: ignore[return-value]


def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 3


def eventually(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_steps_through_all_and_around(tmp_path: Path, opened: Open) -> None:
    control = Control(quit=lambda: None)
    backdrop = opened(str(picture(tmp_path / "a.png", RED)), "#14b43c", parse_background("blur"), control=control)
    assert isinstance(backdrop, Background) and backdrop.count == 3
    names, versions, seen = [], [], []
    for _ in range(4):
        names.append(backdrop.name)
        versions.append(backdrop.version)
        seen.append(colour(backdrop.at(camera(0), NOBODY)))
        assert backdrop.steady
        control.press("b")
    assert names == ["a.png", "#14b43c", "blur", "a.png"]
    assert near(seen[0], RED) and near(seen[1], GREEN) and seen[3] == seen[0]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("spec", ["a.png", "a.mkv", "#14b43c", "blur", "transparent", "studio"])
def test_card(tmp_path: Path, opened: Open, spec: str) -> None:
    """It shows the background at time 0, before and whatever the camera shows; grey where that would be the room."""
    picture(tmp_path / "a.png", RED)
    video(tmp_path / "a.mkv", [RED, BLUE])
    known = tmp_path / spec
    backdrop = opened(str(known) if known.exists() else spec)
    before = [p.copy() for p in backdrop.card()]
    assert [(p.shape, p.dtype) for p in before] == [((H, W), np.uint8), *[((H // 2, W // 2), np.uint8)] * 2]
    assert before[0].min() >= 16 and before[0].max() <= 235
    for k in range(4):
        backdrop.at(camera(80 * k, (235, 20, 240)), np.full((H, W), 60 * k, np.uint8))
    for a, b in zip(before, backdrop.card(), strict=True):
        np.testing.assert_array_equal(a, b)
    if spec in ("blur", "transparent"):
        assert [int(p[0, 0]) for p in before] == [126, 128, 128] and all(np.ptp(p) == 0 for p in before)
    elif spec == "studio":
        assert np.ptp(before[0]) > 20
    else:
        assert near(colour(tuple(before)), GREEN if spec[0] == "#" else RED)


def test_steady(tmp_path: Path, opened: Open) -> None:
    one, two = video(tmp_path / "one.mkv", [RED]), video(tmp_path / "two.mkv", [RED, BLUE])
    gif = tmp_path / "one.gif"
    with av.open(str(gif), "w") as out:
        stream = out.add_stream("gif", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "rgb8"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((H, W, 3), np.uint8)).reformat(format="rgb8")))
        out.mux(stream.encode(None))
    control = Control(quit=lambda: None)
    backdrop = opened(*map(str, (one, two, gif)), "blur", "studio", "red", control=control)
    found = []
    for _ in range(6):
        found.append(backdrop.steady)
        control.press("b")
    assert found == [True, False, True, True, True, True]


def test_a_video_waits_while_another_is_shown(tmp_path: Path, opened: Open) -> None:
    control = Control(quit=lambda: None)
    clip = video(tmp_path / "a.mkv", [RED, GREEN, BLUE])
    other = video(tmp_path / "b.mkv", [BLUE, RED], each=200)
    backdrop = opened(str(clip), "white", str(other), control=control)
    assert near(colour(backdrop.at(camera(0), NOBODY)), RED)
    assert near(colour(backdrop.at(camera(110), NOBODY)), GREEN)
    control.press("b")
    assert near(colour(backdrop.at(camera(140), NOBODY)), (255, 255, 255))
    control.press("b")
    assert near(colour(backdrop.at(camera(30_000), NOBODY)), BLUE)
    assert near(colour(backdrop.at(camera(30_040), NOBODY)), BLUE)
    control.press("b")  # from one video at once to another
    assert near(colour(backdrop.at(camera(60_000), NOBODY)), GREEN)
    assert near(colour(backdrop.at(camera(60_100), NOBODY)), BLUE)
    assert near(colour(backdrop.at(camera(60_200), NOBODY)), RED)  # around
    # A camera that was away for an hour: the video leaps by a quarter of a second, from 10 to 260 of 300 ms.
    assert near(colour(backdrop.at(camera(3_660_200), NOBODY)), BLUE)


def test_a_changed_file_is_read_again(tmp_path: Path, opened: Open) -> None:
    said: list[str] = []
    path = picture(tmp_path / "a.png", RED)
    backdrop = opened(str(path), say=said.append)
    held = backdrop.at(camera(0), NOBODY)
    version = backdrop.version
    picture(path, GREEN)
    eventually(lambda: backdrop.version > version)
    assert near(colour(held), RED)  # what was given out stays whole
    assert near(colour(backdrop.at(camera(40), NOBODY)), GREEN)
    assert near(colour(backdrop.card()), GREEN)
    # Another kind under the same name.
    version = backdrop.version
    video(tmp_path / "clip.mkv", [BLUE, RED]).replace(path)
    eventually(lambda: backdrop.version > version)
    assert near(colour(backdrop.at(camera(80), NOBODY)), BLUE) and not backdrop.steady
    version = backdrop.version
    picture(path, RED)  # while the video plays
    eventually(lambda: backdrop.version > version)
    assert near(colour(backdrop.at(camera(120), NOBODY)), RED) and backdrop.steady
    assert not said


def test_a_failed_reload_keeps_the_old_and_says_one_line(tmp_path: Path, opened: Open) -> None:
    said: list[str] = []
    control = Control(quit=lambda: None)
    path = picture(tmp_path / "a.png", RED)
    backdrop = opened(str(path), control=control, say=said.append)
    path.write_bytes(b"\x89PNG, but no more")
    eventually(lambda: bool(said))
    time.sleep(0.8)  # it is not read again, nor spoken of, while it stays as it is
    assert len(said) == 1 and "a.png" in said[0] and "\n" not in said[0]
    path.unlink()
    time.sleep(0.8)  # gone: an editor may be at work
    assert len(said) == 1
    control.reload()
    eventually(lambda: len(said) == 2)
    assert "no such background file" in said[1]
    assert backdrop.version == 0 and near(colour(backdrop.at(camera(0), NOBODY)), RED)
    picture(path, GREEN)
    eventually(lambda: backdrop.version == 1)
    assert near(colour(backdrop.at(camera(0), NOBODY)), GREEN) and len(said) == 2


def test_whatever_a_library_raises_files_are_read_again(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    path = picture(tmp_path / "a.png", RED)
    backdrop = opened(str(path), say=said.append)
    parse, faults = parse_background, [cv2.error("damaged"), av.error.InvalidDataError(1, "damaged"), ValueError("odd")]

    def parse_once(spec: str) -> BackgroundSpec:
        if faults:
            raise faults.pop()
        return parse(spec)

    monkeypatch.setattr("rtbg.backdrop.parse_background", parse_once)
    for k in range(3):
        picture(path, (0, 0, 10 * k))
        eventually(lambda k=k: len(said) == k + 1)  # type: ignore[misc]
    picture(path, GREEN)
    eventually(lambda: backdrop.version == 1)
    assert near(colour(backdrop.at(camera(0), NOBODY)), GREEN)


def test_a_file_is_not_read_while_it_is_written(tmp_path: Path, opened: Open) -> None:
    said: list[str] = []
    path = picture(tmp_path / "a.png", RED)
    data = picture(tmp_path / "b.png", GREEN).read_bytes()
    backdrop = opened(str(path), say=said.append)
    with path.open("wb") as file:
        for byte in range(0, len(data), max(1, len(data) // 20)):
            file.write(data[byte : byte + max(1, len(data) // 20)])
            file.flush()
            time.sleep(0.08)
    eventually(lambda: backdrop.version == 1)
    assert near(colour(backdrop.at(camera(0), NOBODY)), GREEN) and not said


def test_reload_by_wish(tmp_path: Path, opened: Open) -> None:
    """SIGHUP reads the current file again, although nothing about it tells that it changed."""
    control = Control(quit=lambda: None)
    path, other = picture(tmp_path / "a.png", RED), picture(tmp_path / "b.png", BLUE)
    stat = path.stat()
    backdrop = opened("white", str(path), str(other), control=control)
    data = cv2.imencode(".png", np.full((H, W, 3), GREEN[::-1], np.uint8))[1].tobytes()
    if len(data) < stat.st_size:
        data += bytes(stat.st_size - len(data))
    with path.open("r+b") as file:
        file.write(data)
        file.truncate(stat.st_size) if len(data) == stat.st_size else None
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    control.press("b")
    version = backdrop.version
    control.reload()
    eventually(lambda: backdrop.version > version)
    assert near(colour(backdrop.at(camera(0), NOBODY)), GREEN)


def test_the_frame_thread_never_waits_long(tmp_path: Path, opened: Open) -> None:
    """Pictures asked for while large files are read again and again all come whole, of one colour or the other."""
    control = Control(quit=lambda: None)
    path = tmp_path / "big.png"

    def write(rgb: tuple[int, int, int]) -> None:
        part = tmp_path / "part"
        part.write_bytes(cv2.imencode(".png", np.full((1000, 1500, 3), rgb[::-1], np.uint8))[1].tobytes())
        part.replace(path)

    write(RED)
    before = time.thread_time()
    backdrop = opened(str(path), control=control)
    reading = time.thread_time() - before
    worst, k, colors = 0.0, 0, [RED]
    write(GREEN)
    while backdrop.version < 2:
        k += 1
        before = time.thread_time()
        planes = backdrop.at(camera(33 * k), NOBODY)
        worst = max(worst, time.thread_time() - before)
        assert any(near(colour(planes), c) for c in (RED, GREEN))
        if backdrop.version == 1 and colors:
            write(colors.pop())
        time.sleep(0.005)
        assert k < 4000
    assert worst < reading / 2  # of this thread's own work


def test_refused(tmp_path: Path) -> None:
    before = threading.active_count()
    good = str(picture(tmp_path / "a.png", RED))
    with pytest.raises(BackgroundError, match="no such background"):
        Backdrop([good, str(tmp_path / "none.png")], INFO)
    with pytest.raises(UsageError, match="fit"):
        Backdrop([good], INFO, fit="tight")
    with pytest.raises(UsageError, match="at least one"):
        Backdrop([], INFO)
    with pytest.raises(ValueError, match="4:2:0"):
        Backdrop([good], StreamInfo(W, H, Fraction(1, 30), Fraction(30), bits=10))
    assert threading.active_count() == before


def test_a_virtual_camera_is_never_transparent() -> None:
    refuse_transparent(["blur", "green", parse_background("studio")])
    for spec in ("Transparent", parse_background("transparent")):
        with pytest.raises(UsageError, match="--bg green"):
            refuse_transparent(["blur", spec])
    with pytest.raises(BackgroundError):
        refuse_transparent(["nosuchname"])


def test_close_joins_and_may_come_twice(tmp_path: Path) -> None:
    backdrop = Backdrop([str(picture(tmp_path / "a.png", RED))], INFO)
    assert any(t.name == "rtbg-backdrop" for t in threading.enumerate())
    backdrop.close()
    backdrop.close()
    assert not any(t.name == "rtbg-backdrop" for t in threading.enumerate())


def test_a_file_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read again from a drive that has gone away. Should it come back, it is closed."""
    control = Control(quit=lambda: None)
    backdrop = opened(str(picture(tmp_path / "a.png", RED)), control=control)
    release, reading = threading.Event(), threading.Event()
    read = backdrop._open

    def hang(spec: BackgroundSpec) -> object:
        reading.set()
        release.wait(20)
        return read(spec)

    monkeypatch.setattr(backdrop, "_open", hang)
    try:
        control.reload()
        assert reading.wait(10)
        began = time.monotonic()
        backdrop.close()
        backdrop.close()
        assert time.monotonic() - began < 5
        assert "is left to itself" in caplog.text
        assert backdrop.version == 0
    finally:
        release.set()
