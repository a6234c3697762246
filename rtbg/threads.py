"""How the machine's cores are shared: OpenCV, the engine, the decoder and the encoder work at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.machine import cores


def engine_threads() -> int:
    """Threads for the network: half the cores, since decoding and encoding want the others; 4 at most, more
    only costs a small network time."""
    return max(1, min(4, cores() // 2))


def codec_threads() -> int:
    """Threads for the encoder; the operating system shares the cores between it and the rest."""
    return max(1, min(16, cores()))


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Takes back the real-time scheduling that a library gives, in the body, to threads that it starts and to the
    calling one. SVT-AV1 does that where it may (root, so every container): FIFO 99, before everything else on the
    machine, and inherited by every thread and program started after it. Linux only; elsewhere nothing is done."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)  # 0: the calling thread
    own, before = str(threading.get_native_id()), set(_tasks())
    try:
        yield
    finally:
        for task in _tasks():
            with suppress(OSError):  # one that has just ended
                found = os.sched_getscheduler(int(task)), os.sched_getparam(int(task)).sched_priority
                if (task == own or task not in before) and found != (policy, param.sched_priority):
                    os.sched_setscheduler(int(task), policy, param)


def _tasks() -> list[str]:
    """The numbers of this process's threads, the libraries' too."""
    try:
        return [task.name for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return []
