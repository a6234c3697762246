"""What signals do to a run: real ones, on real terminals (ptys), also while the main thread hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("ptys and SIGHUP are Unix's", allow_module_level=True)

import resource

from tests.test_keys import Terminal, eventually, started

__all__ = ["started"]

# A run that takes keys, writes a file, and whose main thread does not come back. argv: the file, "reload" or "".
HANGS = """
import sys, threading, time
from pathlib import Path
from rtbg.control import Control
from rtbg.keys import terminal_keys
from rtbg.signals import signals
from rtbg.sinks.replace import Replacement
from rtbg.stats import Stop

stop, control = Stop(), Control(quit=lambda: None)

def tell():
    told = None
    while True:
        now = f"ended {stop.ended} aborted {stop.aborted} reloads {control.reloads}"
        if now != told:
            print(now, flush=True)
        told = now
        time.sleep(0.01)

place = Replacement(Path(sys.argv[1]), overwrite=False)
with signals(stop, quiet=True, reload=control.reload if sys.argv[2] else None), terminal_keys(control):
    threading.Thread(target=tell, daemon=True).start()
    hung = threading.Lock()
    hung.acquire()
    hung.acquire(timeout=60)
"""


def no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.mark.parametrize("key, number", [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)], ids=["^C", "^\\"])
def test_what_kills_puts_the_terminal_back(
    started: Callable[..., Terminal], tmp_path: Path, key: str, number: int
) -> None:
    """The third Ctrl-C, or SIGQUIT: also where the main thread hangs. No hidden file is left."""
    child = started("-c", HANGS, str(tmp_path / "out.mp4"), "", before=no_core)
    child.wait_for("ended False")
    eventually(lambda: not child.line_mode)
    assert len(list(tmp_path.iterdir())) == 1
    if number == signal.SIGINT:
        child.type(key)
        child.wait_for("ended True aborted False")
        child.type(key)
        child.wait_for("aborted True")
        assert not child.line_mode
    child.type(key)
    assert child.end() == -number
    assert child.line_mode
    assert not list(tmp_path.iterdir())


@pytest.fixture
def detached(started: Callable[..., Terminal], tmp_path: Path) -> Callable[..., tuple[Terminal, Path]]:
    """Starts HANGS with a controlling terminal that is none of its standard files; gives it, and what it says."""
    log = tmp_path / "log"

    def start(mode: str, before: Callable[[], object] = lambda: None) -> tuple[Terminal, Path]:
        def redirect() -> None:
            for number, path, how in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY), (2, log, os.O_WRONLY)):
                fd = os.open(path, how | os.O_CREAT | os.O_APPEND)
                os.dup2(fd, number)
                os.close(fd)
            before()

        child = started("-c", HANGS, str(tmp_path / "out.mp4"), mode, before=redirect)
        eventually(lambda: log.exists() and "ended" in log.read_text())
        return child, log

    return start


def test_sighup_is_an_end_where_the_terminal_is_gone(detached: Callable[..., tuple[Terminal, Path]]) -> None:
    """And a reload before that, though neither input nor output tells of the terminal."""
    child, log = detached("reload")
    os.kill(child.pid, signal.SIGHUP)
    eventually(lambda: "reloads 1" in log.read_text())
    os.close(child.fd)
    eventually(lambda: "ended True aborted False reloads 1" in log.read_text())


def deaf() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize("mode, reloads", [("reload", 1), ("", 0)], ids=["live", "file"])
def test_a_run_under_nohup_goes_on(detached: Callable[..., tuple[Terminal, Path]], mode: str, reloads: int) -> None:
    child, log = detached(mode, deaf)
    os.close(child.fd)
    if reloads:
        eventually(lambda: "reloads 1" in log.read_text())
    time.sleep(0.3)
    assert f"reloads {reloads}" in log.read_text() and "ended True" not in log.read_text()


def test_sighup_reloads_where_there_never_was_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path / "out.mp4"), "reload"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ended False aborted False reloads 0\n"
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "ended False aborted False reloads 1\n"
        finally:
            process.kill()
