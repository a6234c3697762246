"""Keys typed in the terminal during a live run, without Enter: b, m, space, q (`rtbg.control.KEYS`).

Used by the command line. The terminal leaves line mode while `terminal_keys` is open and is put back at the end, on an
exception, while the process is stopped (Ctrl-Z), and by `rtbg.signals` before a signal kills it. Ctrl-C and Ctrl-Z mean
what they always do. A process in the background never touches the terminal: its shell, and what runs in front, own it.
Imports nothing heavy. Memory bound: none to speak of.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rtbg.control import Control
from rtbg.signals import LAST_RESORT

if TYPE_CHECKING:
    from types import FrameType

LOOK = 0.25  # seconds between two looks at whether we are in the foreground
ALONE = 0.05  # seconds after which an Escape was the key itself, not the head of an arrow key's sequence


@contextmanager
def terminal_keys(control: Control) -> Iterator[bool]:
    """Presses the keys typed on standard input on `control`, from a thread of its own ("rtbg-keys"), until it is left.

    Gives whether keys are taken: not where standard input is no terminal, or the process is in the background.
    A terminal that is closed while it is ours is a `q`. Ctrl-Z is handled where this is entered on the main thread,
    which alone may handle signals."""
    if not _on_terminal():
        yield False
    elif sys.platform == "win32":
        with _windows_keys(control):
            yield True
    else:
        keys = _PosixKeys(sys.stdin.fileno(), control)
        if keys.in_front():
            with keys.open():
                yield True
        else:
            yield False


def _on_terminal() -> bool:
    """Whether standard input is an open terminal."""
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    except ValueError:  # closed
        return False


class Typed:
    """Tells keys from the sequences that arrow and function keys send, which hold letters too."""

    def __init__(self) -> None:
        self._state = "plain"

    def feed(self, data: bytes) -> list[str]:
        """The characters typed in `data`; sequences, also ones cut in two, and all beyond ASCII are left out."""
        typed = []
        for byte in data:
            if self._state == "escape":  # ESC [ and ESC O begin sequences, ESC x is Alt-x
                self._state = {0x5B: "control", 0x4F: "single", 0x1B: "escape"}.get(byte, "plain")
            elif self._state == "control":  # parameters, then one byte from @ to ~
                self._state = "plain" if 0x40 <= byte <= 0x7E else "control"
            elif self._state == "single":
                self._state = "plain"
            elif byte == 0x1B:
                self._state = "escape"
            elif 0x20 <= byte <= 0x7E:
                typed.append(chr(byte))
        return typed

    @property
    def waiting(self) -> bool:
        """In the middle of a sequence."""
        return self._state != "plain"

    def reset(self) -> None:
        """Nothing more came: what began was no sequence."""
        self._state = "plain"


if sys.platform == "win32":
    import msvcrt

    @contextmanager
    def _windows_keys(control: Control) -> Iterator[None]:
        closing = threading.Event()

        def read() -> None:
            while not closing.wait(ALONE):
                while msvcrt.kbhit():
                    char = msvcrt.getwch()
                    if char in "\0\xe0":  # an arrow or function key, whose code is there already, or an à was typed
                        with suppress(OSError):  # there is one; else this is taken in its place, not waited for
                            msvcrt.ungetwch("\0")
                        msvcrt.getwch()
                    else:
                        control.press(char)

        thread = threading.Thread(target=read, name="rtbg-keys")
        thread.start()
        try:
            yield
        finally:
            closing.set()
            thread.join()

else:
    import select
    import signal
    import termios
    import tty

    class _PosixKeys:
        """The terminal of a Unix process: its mode, its signals and the thread that reads it."""

        def __init__(self, fd: int, control: Control) -> None:
            self._fd, self._control = fd, control
            self._kept: list[Any] | None = None  # the terminal's mode while ours is set
            self._changing = threading.RLock()  # a signal may come on the very thread that changes the mode
            self._asleep, self._wake = -1, -1  # the pipe that ends the thread's waiting

        def in_front(self) -> bool:
            """Whether the terminal is ours right now; a closed one, and another session's, is not."""
            try:
                return os.tcgetpgrp(self._fd) == os.getpgrp()
            except OSError:
                return False

        @contextmanager
        def open(self) -> Iterator[None]:
            """Takes keys while it is open."""
            self._asleep, self._wake = os.pipe()
            thread = threading.Thread(target=self._read, name="rtbg-keys")
            with ExitStack() as stack:
                stack.callback(os.close, self._asleep)
                stack.callback(os.close, self._wake)
                if threading.current_thread() is threading.main_thread():
                    for number, handler in ((signal.SIGTSTP, self._stopped), (signal.SIGCONT, self._continued)):
                        stack.callback(signal.signal, number, signal.signal(number, handler))
                stack.callback(self._leave)
                LAST_RESORT.add(self._leave_for_good)
                stack.callback(LAST_RESORT.discard, self._leave_for_good)
                self._enter()
                thread.start()
                stack.callback(thread.join)
                stack.callback(os.write, self._wake, b"q")
                yield

        def _enter(self) -> None:
            """Out of line mode and echo, where the terminal is ours. Once more does no harm."""
            try:
                if self.in_front():
                    if self._kept is None:
                        self._kept = termios.tcgetattr(self._fd)
                    tty.setcbreak(self._fd, termios.TCSANOW)
            except termios.error:
                return  # closed meanwhile: the reading thread sees it too

        def _leave(self) -> None:
            """Puts the mode back; in the background it is no longer ours to set, and would stop us."""
            kept, self._kept = self._kept, None
            try:
                if kept is not None and self.in_front():
                    termios.tcsetattr(self._fd, termios.TCSANOW, kept)
            except termios.error:
                return  # closed: there is no mode any more

        def _leave_for_good(self) -> None:
            """The process is about to be killed: the reading thread is not to set our mode again."""
            self._changing.acquire(timeout=1)
            self._leave()

        def _stopped(self, _number: int, _frame: FrameType | None) -> None:
            """Ctrl-Z: stops as if nobody had handled it, with the terminal as it was found."""
            with self._changing:
                self._leave()
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTSTP)  # returns when we are continued
                signal.signal(signal.SIGTSTP, self._stopped)
                self._enter()

        def _continued(self, _number: int, _frame: FrameType | None) -> None:
            """`fg` or `bg`, or SIGCONT after SIGSTOP, after which a shell may have set its own mode."""
            self._enter()

        def _read(self) -> None:
            # Blocked here, a read that comes just as we go to the background fails instead of stopping the process.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN, signal.SIGTTOU})
            typed, ours = Typed(), True
            while True:
                before, ours = ours, self.in_front()
                with self._changing:
                    if ours and self._kept is None:
                        self._enter()  # a shell whose `fg` finds us running already sends no SIGCONT
                if self._closed():
                    if before:
                        self._control.press("q")  # nobody is left to see or stop the run
                    return
                watched = [self._asleep, self._fd] if ours else [self._asleep]
                ready = select.select(watched, [], [], ALONE if typed.waiting else LOOK)[0]
                if self._asleep in ready:
                    return
                if self._fd not in ready:
                    typed.reset()
                    continue
                try:
                    data = os.read(self._fd, 256) if self.in_front() else b""
                except OSError:  # closed, or no longer ours
                    data = b""
                for char in typed.feed(data):
                    self._control.press(char)
                if not data and select.select([self._asleep], [], [], ALONE)[0]:
                    return

        def _closed(self) -> bool:
            """Whether the terminal is gone. Asking for its mode is allowed in the background too."""
            try:
                termios.tcgetattr(self._fd)
            except termios.error:
                return True
            return False
