"""How the machine's cores are shared: OpenCV, the engine, the decoder and the encoder work at the same time."""

from __future__ import annotations

import os


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def engine_threads() -> int:
    """Threads for the network: half the cores, since decoding and encoding want the others; 4 at most, more
    only costs a small network time."""
    return max(1, min(4, cores() // 2))


def codec_threads() -> int:
    """Threads for the encoder; the operating system shares the cores between it and the rest."""
    return max(1, min(16, cores()))
