"""A window that shows what the virtual camera sends, with the keys of `rtbg.control.KEYS`.

Used by `rtbg.live` as one more sink. SDL wants its window made, drawn and asked for events on one thread, macOS on the
process's main thread at that. So the sink's thread only leaves the newest picture here, and the thread that made the
Preview calls `pump` again and again: the one that waits for the run to end.

    sink's thread:  write ──newest picture──▶ ┐
    own thread:     pump: waits for it ──────▶ ┘ reduce, convert, show; keys ─▶ Control.press

Memory bound: the newest picture, and one picture at the window's size.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rtbg.control import Control
from rtbg.errors import MissingDependency, OutputError
from rtbg.frame import Array, Frame

WIDEST, TALLEST = 960, 720  # pixels of a new window; the user may resize it
SLICE = 0.03  # seconds between two looks at keys while no picture comes
BACK = (16, 16, 16)  # beside a picture that has not the window's shape
_CALLBACKS: list[object] = []  # that Xlib was given, and may call as long as the process lives


class Preview:
    """A `Sink` with a window. `pump` and `shut` are for the thread that made it, all else for any."""

    def __init__(self, size: tuple[int, int], control: Control, title: str = "rtbg") -> None:
        """Opens the window, at most WIDEST by TALLEST, for pictures of `size` (width, height): 8-bit 4:2:0, BT.601,
        limited. control: is pressed; closing the window is a `q`.
        Raises MissingDependency without pygame, and OutputError where no window can be: no display, or on macOS off
        the main thread."""
        check_display()
        self._pygame: Any = _import_pygame()
        self._owner = threading.get_ident()
        self._control, self._title = control, title
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._waiting = False  # the newest picture was not yet taken by `pump`
        self._shown: tuple[object, object] | None = None  # the planes on display, and the window's size
        self._told = title
        self._scratch: Array = np.empty(0, np.uint8)
        self._finished = False  # the run has no more pictures
        self._failed = ""  # why the window is gone before that
        self._open = False
        self._cut_off = False  # the X server is gone: whatever asks it again may hang or end the process
        scale = min(1.0, WIDEST / size[0], TALLEST / size[1])
        try:
            self._pygame.display.init()
            self._open = True
            self._check_driver()
            self._pygame.display.set_allow_screensaver(True)
            self._pygame.display.set_caption(title)
            window = [max(2, round(side * scale) // 2 * 2) for side in size]  # even, as its pictures are
            self._pygame.display.set_mode(window, self._pygame.RESIZABLE)
            self._outlive_server()
            self._pygame.display.flip()  # Wayland shows nothing before the first picture
            self._pygame.event.pump()
        except self._pygame.error as exc:
            self.shut()
            raise OutputError(f"no preview window can be opened ({exc}): leave out --preview") from exc
        except BaseException:
            self.shut()
            raise

    def write(self, frame: Frame) -> None:
        """Makes it the picture to show. At once: what it costs, `pump` pays. Raises OutputError once that failed."""
        with self._changed:
            if self._failed:
                raise OutputError(self._failed)
            if self._finished or (self._newest is not None and self._newest.planes is frame.planes):
                return  # the picture before, sent again
            self._newest, self._waiting = frame, True
            self._changed.notify_all()

    def close(self, *, interrupted: bool = False) -> Path | None:
        """No more pictures will come. The window goes at the next `pump`, or with `shut`."""
        self._finish()
        return None

    def cancel(self) -> None:
        """As `close`. Never raises."""
        self._finish()

    def abort(self) -> None:
        """As `close`; on the window's own thread the window goes at once."""
        self._finish()
        if threading.get_ident() == self._owner:
            self.shut()

    def pump(self, timeout: float = 0.1) -> None:
        """Shows pictures and takes keys for `timeout` seconds, less once the run has ended. Instead of sleeping: it
        waits also where the window fails, which closes it, and is the sink's to raise."""
        if threading.get_ident() != self._owner:
            raise RuntimeError("pump belongs to the thread that made the Preview")
        end = time.monotonic() + timeout
        try:
            while self._open and not self._round(min(SLICE, timeout)) and time.monotonic() < end:
                pass
        except Exception as exc:  # of SDL, OpenCV or the display: whatever it is, it is not to end the call
            with self._changed:
                self._failed = f"the preview window failed ({exc}): leave out --preview"
            with contextlib.suppress(self._pygame.error):
                self.shut()
        if not self._open:
            with self._changed:  # the run is about to end, or the window never was
                self._changed.wait(max(0.0, min(SLICE, end - time.monotonic())))

    def _round(self, seconds: float) -> bool:
        """Waits that long for a picture, shows it, takes keys. Whether the run has ended; then the window is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._waiting, seconds)
            frame, self._waiting = self._newest, False
            finished = self._finished
        if finished:
            self.shut()
            return True
        self._take_events()
        if frame is not None and not self._cut_off and self._pygame.display.get_active():
            self._show(frame)
        if self._cut_off:
            raise ConnectionError("its display is gone")
        return False

    def shut(self) -> None:
        """Closes the window. May be called twice."""
        if self._open:
            self._open = False
            self._pygame.event.pump()  # notices a server that is gone
            if self._cut_off:
                atexit.unregister(self._pygame.quit)  # closes the window too
            else:
                self._pygame.display.quit()

    def _finish(self) -> None:
        with self._changed:
            self._finished, self._newest = True, None
            self._changed.notify_all()

    def _check_driver(self) -> None:
        """Raises OutputError where SDL took to a display on which no window shows, since the one named is not there."""
        driver = self._pygame.display.get_driver()
        if _needs_server() and not os.environ.get("SDL_VIDEODRIVER") and driver not in ("x11", "wayland"):
            raise OutputError(f"the display does not answer (SDL chose {driver!r}): leave out --preview")
        if driver == "x11":  # shared memory: 0.2 ms a picture; by way of OpenGL 2.6 ms where that is software
            os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")

    def _outlive_server(self) -> None:
        """Has `_cut_off` set when the X server dies. By itself Xlib would end the process. Needs libX11 1.7 (2020)."""
        if self._pygame.display.get_driver() != "x11":
            return
        try:
            xlib = ctypes.CDLL("libX11.so.6")  # the one that SDL has loaded
        except OSError:
            return
        if not hasattr(xlib, "XSetIOErrorExitHandler"):
            return
        error_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        exit_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)

        def cut_off(_display: int | None, _data: int | None) -> None:
            self._cut_off = True

        # Xlib calls both, one after the other; the first one, if not replaced, may not return.
        on_error, on_exit = error_type(lambda _display: 0), exit_type(cut_off)
        _CALLBACKS.extend((on_error, on_exit))
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        display = pointer(self._pygame.display.get_wm_info()["display"], b"display")
        xlib.XSetIOErrorHandler.restype = ctypes.c_void_p
        xlib.XSetIOErrorHandler(on_error)
        xlib.XSetIOErrorExitHandler.restype = None
        xlib.XSetIOErrorExitHandler(ctypes.c_void_p(display), on_exit, None)

    def _take_events(self) -> None:
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self._control.press("q")
            elif event.type == pygame.KEYDOWN and not event.mod & (
                pygame.KMOD_CTRL | pygame.KMOD_ALT | pygame.KMOD_META
            ):
                self._control.press(pygame.key.name(event.key))
        told = self._title + " (frozen)" * self._control.frozen
        if told != self._told:
            pygame.display.set_caption(told)
            self._told = told

    def _show(self, frame: Frame) -> None:
        """Draws a picture, in its own shape, once for each size of the window."""
        surface = self._pygame.display.get_surface()
        window = surface.get_size()
        if self._shown is not None and self._shown[0] is frame.planes and self._shown[1] == window:
            return
        scale = min(window[0] / frame.width, window[1] / frame.height)
        # Whole chroma samples, for OpenCV's I420. One pixel of a window that is 1 wide would be none.
        w, h = max(2, round(frame.width * scale) // 2 * 2), max(2, round(frame.height * scale) // 2 * 2)
        picture = self._pygame.image.frombuffer(self._rgb(frame, w, h), (w, h), "BGRA")
        surface.fill(BACK)
        surface.blit(picture, ((window[0] - w) // 2, (window[1] - h) // 2))
        self._pygame.display.flip()
        self._shown = frame.planes, window

    def _rgb(self, frame: Frame, w: int, h: int) -> Array:
        """uint8 (h, w, 4) BGRA, the display's own order. The planes are brought to the size first: at 720p that and
        one conversion take 0.5 ms, a third of what converting first would take."""
        luma, chroma = w * h, w * h // 4
        if self._scratch.size != luma + 2 * chroma:
            self._scratch = np.empty(luma + 2 * chroma, np.uint8)
        parts = (
            self._scratch[:luma].reshape(h, w),
            self._scratch[luma : luma + chroma].reshape(h // 2, w // 2),
            self._scratch[luma + chroma :].reshape(h // 2, w // 2),
        )
        for plane, part in zip(frame.planes[:3], parts, strict=True):
            cv2.resize(plane, part.shape[::-1], part, interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.cvtColor(self._scratch.reshape(h * 3 // 2, w), cv2.COLOR_YUV2BGRA_I420))


def check_display() -> None:
    """Raises OutputError where no window can be opened: before anything else is."""
    if _needs_server() and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))):
        raise OutputError("--preview needs a display, and DISPLAY and WAYLAND_DISPLAY are not set: leave it out")
    if sys.platform == "darwin" and threading.current_thread() is not threading.main_thread():
        raise OutputError("on macOS a preview window can only be opened on the main thread")


def _needs_server() -> bool:
    """Whether windows are shown by a server that the environment names."""
    return sys.platform not in ("win32", "darwin", "cygwin")


def _import_pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # SIGINT and SIGTERM are the command line's
    try:
        import pygame
    except ImportError as exc:
        raise MissingDependency("--preview needs pygame-ce: pip install 'rtbg[preview]'") from exc
    return pygame
