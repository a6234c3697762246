"""The preview window, on SDL's own dummy display: what is drawn is read back from its surface."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtbg.color import rgb_to_planes
from rtbg.control import Control
from rtbg.errors import MissingDependency, OutputError
from rtbg.frame import LIMITED, SMPTE170M, Color, Frame
from rtbg.live import Output
from rtbg.preview import TALLEST, WIDEST, Preview, check_display
from rtbg.protocols import Sink
from tests.live_parts import H, Recording, Setup, W, after

pygame: Any = pytest.importorskip("pygame", reason="needs pygame-ce: pip install 'rtbg[preview]'")

COLOR = Color(SMPTE170M, LIMITED)
RED, GREEN, BLUE, WHITE = (220, 30, 30), (20, 180, 60), (40, 50, 210), (235, 235, 235)


def frame_of(width: int, height: int, *quarters: tuple[int, int, int], pts: int = 0) -> Frame:
    """Four colours: top left, top right, below left, below right; or one."""
    a, b, c, d = quarters * 4 if len(quarters) == 1 else quarters
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2], rgb[: height // 2, width // 2 :] = a, b
    rgb[height // 2 :, : width // 2], rgb[height // 2 :, width // 2 :] = c, d
    return Frame(rgb_to_planes(rgb, COLOR, height=height, bits=8, chroma=(2, 2)), pts, Fraction(1, 1_000_000), COLOR)


@pytest.fixture(autouse=True)
def dummy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    pygame.display.quit()


class Pressed(Control):
    def __init__(self) -> None:
        self.keys: list[str] = []
        super().__init__(quit=lambda: self.keys.append("quit"))

    def press(self, key: str) -> bool:
        known = super().press(key)
        if known:
            self.keys.append(key)
        return known


def seen() -> np.ndarray:
    """int (h, w, 3) RGB of the window."""
    surface = pygame.display.get_surface()
    data = np.frombuffer(pygame.image.tobytes(surface, "RGB"), np.uint8)
    return data.reshape(*surface.get_size()[::-1], 3).astype(int)


def shows(where: tuple[float, float], rgb: tuple[int, int, int]) -> bool:
    picture = seen()
    h, w = picture.shape[:2]
    return bool(np.abs(picture[int(where[1] * h), int(where[0] * w)] - rgb).max() <= 4)


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (640, 480), (320, 240), (720, 1280)], ids=str)
def test_draws_the_picture(size: tuple[int, int]) -> None:
    preview = Preview(size, Pressed(), "rtbg")
    assert isinstance(preview, Sink)
    w, h = pygame.display.get_window_size()
    assert w <= WIDEST and h <= TALLEST and abs(w / h - size[0] / size[1]) < 0.01
    assert (w, h) == size or w == WIDEST or h == TALLEST
    preview.write(frame_of(*size, RED, GREEN, BLUE, WHITE))
    preview.pump(0)
    for x, y, rgb in ((0.2, 0.2, RED), (0.8, 0.2, GREEN), (0.2, 0.8, BLUE), (0.8, 0.8, WHITE)):
        assert shows((x, y), rgb)
    assert shows((0.002, 0.002), RED) and shows((0.998, 0.998), WHITE)
    preview.abort()
    assert not pygame.display.get_init()


@pytest.mark.parametrize("window", [(300, 300), (801, 203), (97, 61), (1, 1)], ids=str)
def test_a_resized_window_keeps_the_shape(window: tuple[int, int]) -> None:
    preview = Preview((320, 240), Pressed())
    preview.write(frame_of(320, 240, GREEN))
    preview.pump(0)
    pygame.display.set_mode(window, pygame.RESIZABLE)
    preview.pump(0)  # the same picture, drawn anew
    if window != (1, 1):
        assert shows((0.5, 0.5), GREEN)
        assert shows((0.5, 0.0) if window[0] * 3 < window[1] * 4 else (0.0, 0.5), (16, 16, 16))
    preview.abort()


def test_newest_only_and_each_once() -> None:
    """Pictures come from another thread faster than they are shown; what is shown last is the last."""
    preview = Preview((320, 240), Pressed())
    drawn: list[object] = []
    draw = preview._rgb
    preview._rgb = lambda frame, w, h: (drawn.append(frame), draw(frame, w, h))[1]  # type: ignore[method-assign]
    frames = [frame_of(320, 240, c, pts=k) for k, c in enumerate([RED, BLUE] * 50 + [GREEN])]

    def feed() -> None:
        for frame in frames:
            preview.write(frame)
            preview.write(Frame(frame.planes, frame.pts + 1, frame.time_base, frame.color))  # sent again
            time.sleep(0.002)

    thread = threading.Thread(target=feed, name="rtbg-feed")
    thread.start()
    while thread.is_alive():
        preview.pump(0.02)
    preview.pump(0.05)
    assert shows((0.5, 0.5), GREEN)
    assert 0 < len(drawn) <= len(frames) and len({id(f.planes) for f in drawn}) == len(drawn)  # type: ignore[attr-defined]
    preview.abort()


def test_keys_and_closing() -> None:
    control = Pressed()
    preview = Preview((320, 240), control, "rtbg")

    def key(code: int, mod: int = 0) -> None:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=code, mod=mod, unicode="", scancode=0))

    for code in (pygame.K_b, pygame.K_m, pygame.K_SPACE, pygame.K_x, pygame.K_LSHIFT):
        key(code)
    key(pygame.K_q, pygame.KMOD_LCTRL)  # not ours
    preview.pump(0)
    assert control.keys == ["b", "m", "space"]
    assert control.matte and control.frozen and control.steps == 1
    assert pygame.display.get_caption()[0] == "rtbg (frozen)"
    key(pygame.K_SPACE)
    preview.pump(0)
    assert pygame.display.get_caption()[0] == "rtbg"
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    preview.pump(0)
    assert control.keys[-2:] == ["quit", "q"]
    assert pygame.display.get_init()  # until the run has ended
    preview.abort()


def test_closed_by_the_sinks_thread() -> None:
    """The window goes on its own thread, at the next pump; both may come again."""
    preview = Preview((320, 240), Pressed())
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(preview.close()), name="rtbg-sink")
    thread.start()
    thread.join()
    assert result == [None] and pygame.display.get_init()
    preview.pump(5)
    assert not pygame.display.get_init()
    preview.write(frame_of(320, 240, RED))
    preview.pump(0)
    preview.close()
    preview.cancel()
    preview.abort()
    preview.shut()


def test_a_window_that_fails_is_the_sinks_to_tell() -> None:
    """The thread that waits for the run goes on waiting."""
    preview = Preview((320, 240), Pressed())

    def fail(frame: Frame) -> None:
        raise pygame.error("the display is lost")

    preview._show = fail  # type: ignore[method-assign]
    preview.write(frame_of(320, 240, RED))
    preview.pump(0)
    assert not pygame.display.get_init()
    with pytest.raises(OutputError, match="the display is lost"):
        preview.write(frame_of(320, 240, GREEN))
    began = time.monotonic()
    for _ in range(3):
        preview.pump(0.1)
    assert time.monotonic() - began > 0.05, "it does not spin"
    preview.abort()


def test_pump_waits_as_long_as_asked() -> None:
    """It takes the place of a sleep: without pictures it neither returns at once nor spins."""
    preview = Preview((320, 240), Pressed())
    preview.write(frame_of(320, 240, RED))
    preview.pump(0)
    pygame.display.iconify()
    preview.write(frame_of(320, 240, GREEN))
    began, work = time.monotonic(), time.thread_time()
    preview.pump(0.3)
    assert time.monotonic() - began > 0.25
    assert time.thread_time() - work < 0.03
    preview.cancel()  # now it comes back soon, to see that the run has ended, but still does not spin
    began = time.monotonic()
    for _ in range(3):
        preview.pump(0.3)
    assert time.monotonic() - began > 0.03


def test_the_window_closes_while_a_recording_is_completed() -> None:
    """At the end of a call, however long the recorder then takes."""
    setup = Setup(rate=50)
    may, in_time = threading.Event(), []

    class Recorder(Recording):
        def close(self, *, interrupted: bool = False) -> Path | None:
            in_time.append(may.wait(10))
            return super().close(interrupted=interrupted)

    preview = Preview((W, H), setup.control)
    setup.run(
        (after(5), lambda: pygame.event.post(pygame.event.Event(pygame.QUIT))),
        (lambda _: not pygame.display.get_init(), may.set),
        outputs=[Output(preview, required=False), Output(Recorder(), clocked=False)],
        wait=preview.pump,
    )
    assert in_time == [True]


def test_pump_on_another_thread_is_a_fault() -> None:
    preview = Preview((320, 240), Pressed())
    errors: list[BaseException] = []

    def pump() -> None:
        try:
            preview.pump(0)
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=pump)
    thread.start()
    thread.join()
    assert errors
    preview.abort()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="windows need no server there")
def test_no_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for attempt in (check_display, lambda: Preview((320, 240), Pressed())):
        with pytest.raises(OutputError, match="leave it out") as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert not pygame.display.get_init()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="windows need no server there")
def test_a_display_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    """In a process of its own: SDL remembers what it tried."""
    code = (
        "from rtbg.preview import Preview; from rtbg.control import Control; from rtbg.errors import OutputError\n"
        "try: Preview((320, 240), Control(quit=print))\n"
        "except OutputError as exc: print('refused:', exc)"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("SDL_VIDEODRIVER", "WAYLAND_DISPLAY")}
    env |= {"DISPLAY": ":9731", "XDG_RUNTIME_DIR": str(tmp_path)}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # One line, and nothing of pygame's greeting.
    assert done.stdout.startswith("refused: ") and done.stdout.count("\n") == 1


def test_without_pygame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rtbg\[preview\]'"):
        Preview((320, 240), Pressed())
