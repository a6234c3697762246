"""What signals do to a run, and what must not outlive a process that one of them kills.

Used by the command line (`signals`), and by whatever would leave something behind (`LAST_RESORT`). Python runs its
handlers on the main thread, which may hang in a driver or a display; so signals are taken by a thread of their own
("rtbg-signals"). Imports nothing heavy. Memory bound: none to speak of.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rtbg.progress import say
from rtbg.stats import Stop

LAST_RESORT: set[Callable[[], None]] = set()  # called, on any thread, before a signal kills us; they may not raise

_HUP = getattr(signal, "SIGHUP", 0)  # 0: Windows has none
_QUIT = getattr(signal, "SIGQUIT", 0) or getattr(signal, "SIGBREAK", 0)  # Ctrl-Break there, and a console that is closed


@contextmanager
def signals(stop: Stop, *, quiet: bool, reload: Callable[[], None] | None = None) -> Iterator[None]:
    """First Ctrl-C, SIGTERM or SIGHUP: end of stream. Second: abort. Third, for a stage that hangs, and SIGQUIT at
    once: LAST_RESORT, and death by that signal. reload: what SIGHUP is for instead, but where it comes of our terminal
    being closed: that is an end. Neither SIGHUP nor SIGQUIT ends a run that was started with it ignored (nohup). For
    the main thread."""
    ignored = {n for n in (_HUP, _QUIT) if n and signal.getsignal(n) is signal.SIG_IGN}
    terminals = _terminals()

    def take(number: int) -> None:
        if number == _HUP and reload is not None:
            # It may come twice when a terminal is closed, from the system and from the shell, which is not to abort.
            if number in ignored or _terminals() == terminals:
                reload()
            else:
                stop.end()
        elif number == _QUIT or stop.aborted:
            _die(number)
        elif stop.ended:
            stop.abort()
        else:
            stop.end()
            if not quiet:
                say("rtbg: finishing what has been read; again to give up")

    taken = {signal.SIGINT, signal.SIGTERM, *({_HUP, _QUIT} - ignored)}
    if reload is not None:
        taken.add(_HUP)
    taken.discard(0)

    def read() -> None:
        while data := ours.recv(64):
            for number in data:  # of every signal that Python handles, the keys' and others' too
                if number in taken:
                    take(number)

    ours, pythons = socket.socketpair()
    thread = threading.Thread(target=read, name="rtbg-signals")
    with ExitStack() as stack:
        stack.callback(ours.close)
        thread.start()
        stack.callback(thread.join)
        stack.callback(pythons.close)
        pythons.setblocking(False)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False))
        for number in taken:  # so that Python handles it, which writes its number to the socket
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        yield


def _die(number: int) -> None:
    """Ends the process as the signal would by itself."""
    for undo in list(LAST_RESORT):
        undo()
    if sys.platform == "win32":
        os._exit(130)
    ctypes.CDLL(None).signal(number, None)  # the default; Python's own way is open to the main thread only
    os.kill(os.getpid(), number)


def _terminals() -> list[bool]:
    """Whether we have a controlling terminal, and standard input and standard error are terminals. One that was closed
    is none any more."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        controlling = False
    else:
        controlling = True
    return [controlling, os.isatty(0), os.isatty(2)]
