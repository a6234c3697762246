"""Processes and waiting, for the tests of what is compiled apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import engines.swap
import engines.tensorrt_engine as trt
from engines.cuda import Gpu
from engines.tensorrt_engine import NO_GPU, Target, import_flavour

PYTHON = (sys.executable, "-c")
JOB = {"path": [], "flavour": "tensorrt_rtx"}  # for a command that does not read it


def until(done: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pretend(monkeypatch, gpu: Gpu) -> None:
    """As if a GPU were here that torch knows nothing of, up to where it would have to run."""
    monkeypatch.setattr("engines.worth_asking", lambda: False)
    target = Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", NO_GPU)
    monkeypatch.setattr(engines.swap, "probe", lambda: gpu)
    monkeypatch.setattr(trt, "find_target", lambda **_: target)
