"""The process that compiles: what it says, how it ends, and that it never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apart import JOB, PYTHON, gone, until
from gpu import needs_rtx
from networks import make_network, one_line

from engines import EngineError
from engines.compile_job import COMMAND, compile_apart, make_job
from engines.spec import find_model
from engines.tensorrt_engine import NO_GPU, Graphs, Target, import_flavour

ROOT = Path(__file__).parent.parent
SHAPES = {"frame": (1, 4, 48, 64)}


@pytest.fixture
def spec(network):
    return find_model(network)


@needs_rtx
def test_compiles_in_a_process_of_its_own(spec, cache):
    graphs, target = Graphs(spec), Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", NO_GPU)
    compile_apart(make_job(graphs, target, SHAPES, cache))
    assert cache.load(graphs.key(target, SHAPES))


@needs_rtx
def test_what_it_cannot_compile_it_says(tmp_path, cache):
    graphs = Graphs(find_model(make_network(tmp_path / "net.onnx", last="Sigmund")))
    target = Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", NO_GPU)
    with pytest.raises(EngineError, match=r"TensorRT-RTX cannot compile .*net\.onnx") as info:
        compile_apart(make_job(graphs, target, SHAPES, cache))
    one_line(info)


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param(
            (*PYTHON, KILLED), "SIGKILL: out of memory", marks=pytest.mark.skipif(os.name != "posix", reason="signals")
        ),
        ((*PYTHON, "import os; os._exit(7)"), "ended with code 7"),
        ((*PYTHON, "import sys; sys.exit('Segmentation fault')"), "Segmentation fault"),
        ((*PYTHON, "print('[1, 2'); raise SystemExit(1)"), "code 1"),
        ((*PYTHON, 'print(\'{"error": "out of memory"}\'); raise SystemExit(1)'), "out of memory"),
        ((*PYTHON, "print('x' * 10**6); raise MemoryError"), "MemoryError"),
        (("/nowhere/python",), "cannot be started"),
    ],
)
def test_a_crash_there_is_an_error_here(command, says):
    with pytest.raises(EngineError, match=says) as info:
        compile_apart(JOB, command=command)
    one_line(info)


def test_a_slow_one_can_be_cancelled():
    began = time.monotonic()
    with pytest.raises(EngineError, match="cancelled"):
        compile_apart(
            JOB, cancelled=lambda: time.monotonic() > began + 0.3, command=(*PYTHON, "import time; time.sleep(600)")
        )
    assert time.monotonic() - began < 20


def children(pid: int) -> list[int]:
    return [int(c) for t in Path(f"/proc/{pid}/task").glob("*/children") for c in t.read_text().split()]


@needs_rtx
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_it_ends_with_its_parent_and_is_polite(spec, cache):
    """The parent is killed outright; the compiler, which waits on a lock for ever, must not live on."""
    graphs, target = Graphs(spec), Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", NO_GPU)
    job = make_job(graphs, target, SHAPES, cache)
    code = f"from engines.compile_job import compile_apart; compile_apart({job!r})"
    with (
        cache.locked(graphs.key(target, SHAPES)),
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent,
    ):
        until(lambda: children(parent.pid))
        (child,) = children(parent.pid)
        until(lambda: os.getpriority(os.PRIO_PROCESS, child) >= 10)
        until(lambda: Path(f"/proc/{child}/oom_score_adj").read_text() == "1000\n")
        assert os.getpgid(child) != os.getpgid(parent.pid)  # where Ctrl-C at the terminal goes
        until(lambda: "tensorrt_rtx" in Path(f"/proc/{child}/maps").read_text())
        assert not gone(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait(20)
        until(lambda: gone(child), 20)


def test_the_command_is_isolated():
    """Nothing in the working directory or the environment changes what is imported there."""
    assert COMMAND[:2] == (sys.executable, "-I")
