"""How a training run takes signals: it ends as if it had been told to by itself, and nothing disturbs its saving."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def end(number: int, _frame: FrameType | None) -> None:
    """A signal's handler: ends the program as if it had been told to by itself, so that the run is saved."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Meanwhile a signal to the whole process group cuts nothing short: neither SIGTERM itself, nor another Ctrl-C, nor
    the end of the loader's workers, which torch answers with an error wherever the program is."""
    numbers = {
        signal.SIGTERM: signal.SIG_IGN,
        signal.SIGINT: signal.SIG_IGN,
        getattr(signal, "SIGCHLD", None): signal.SIG_DFL,
    }
    here = threading.current_thread() is threading.main_thread()
    kept = {n: signal.signal(n, how) for n, how in numbers.items() if here and n is not None}
    try:
        yield
    finally:
        for number, how in kept.items():
            signal.signal(number, how)
