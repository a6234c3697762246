"""How the machine's cores are shared: nothing that rtbg starts puts itself before everything else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rtbg.frame import Frame, StreamInfo
from rtbg.sinks import open_sink
from rtbg.threads import ordinary_priority

INFO = StreamInfo(320, 180, Fraction(1, 25), Fraction(25))

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux's scheduler")


def policies() -> list[int]:
    return [os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()]


def urgent() -> None:
    """What SVT-AV1 does to the thread that opens it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("real-time scheduling is for root")


def test_it_is_taken_back():
    """From the calling thread and from those started in the body; one from before is left alone."""
    done, found = threading.Event(), []

    def wait() -> None:
        done.wait(20)

    def busy() -> None:
        urgent_before = threading.Thread(target=wait, name="before")
        urgent()
        urgent_before.start()
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with ordinary_priority():
            urgent()
            inside = threading.Thread(target=wait)
            inside.start()
            assert os.sched_getscheduler(inside.native_id) == os.SCHED_FIFO
        found.extend(os.sched_getscheduler(t) for t in (0, inside.native_id, urgent_before.native_id))
        done.set()
        inside.join()
        urgent_before.join()

    threads = [threading.Thread(target=busy)]
    policy = os.sched_getscheduler(0)
    try:
        urgent()  # skips here, where it is not allowed
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    for thread in threads:
        thread.start()
        thread.join()
    assert found == [os.SCHED_OTHER, os.SCHED_OTHER, os.SCHED_FIFO]


@pytest.mark.parametrize("name", ["x.mkv", "x.mp4"])
def test_an_av1_encoder_is_like_any_other(name, tmp_path):
    """As root it would run before everything else on the machine, with each thread and program started afterwards."""
    before = set(policies())
    sink = open_sink(tmp_path / name, INFO, codec="av1")
    planes = tuple(np.full(s, 100, np.uint8) for s in ((180, 320), (90, 160), (90, 160)))
    for k in range(8):
        sink.write(Frame(planes, k, INFO.time_base))
        assert set(policies()) == before
    sink.close()
    assert set(policies()) == before


def test_the_doctor_does_not_make_it_so():
    code = "import os; from rtbg.doctor import codecs; print(codecs()[0].text, os.sched_getscheduler(0))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "av1" in done.stdout and done.stdout.split()[-1] == str(os.sched_getscheduler(0))
