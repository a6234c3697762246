"""Keys of the terminal: in real terminals (ptys), with sessions and process groups of their own."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rtbg.control import Control
from rtbg.keys import Typed, terminal_keys

if sys.platform == "win32":
    pytest.skip("ptys are Unix's", allow_module_level=True)

import pty
import termios

# What a child does: keys until q, each told on standard output.
CHILD = """
import os, signal, sys, time
from rtbg.control import Control
from rtbg.keys import terminal_keys

class Told(Control):
    def press(self, key):
        print("<" + key + ">" if super().press(key) else "no" + repr(key), flush=True)

done = []
with terminal_keys(Told(quit=lambda: done.append(1))) as taken:
    print("taken", taken, flush=True)
    end = time.monotonic() + 20
    while not done and time.monotonic() < end:
        time.sleep(0.02)
        if "raise" in sys.argv:
            raise SystemExit(3)
print("left", bool(done), flush=True)
"""


class Terminal:
    """A child on a pty of its own, which is its controlling terminal."""

    def __init__(self, *argv: str, before: Callable[[], None] | None = None) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            if before is not None:
                before()
            os.chdir(Path(__file__).parents[1])  # where rtbg is imported from
            os.execv(sys.executable, [sys.executable, *argv])
        self.said = ""

    def wait_for(self, text: str, seconds: float = 15) -> str:
        end = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < end, f"no {text!r} in {self.said!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.fd, 4096).decode()
                except OSError:
                    break
        assert text in self.said, self.said
        return self.said

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    @property
    def line_mode(self) -> bool:
        flags = termios.tcgetattr(self.fd)[3]
        return bool(flags & termios.ICANON) and bool(flags & termios.ECHO)

    def end(self) -> int:
        """The child's exit code, once it ended."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.01)[0]:  # a child that ends waits until its output is read
                with suppress(OSError):
                    self.said += os.read(self.fd, 4096).decode()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"the child did not end: {self.said!r}")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        with suppress(OSError):
            os.close(self.fd)


@pytest.fixture
def started() -> Iterator[Callable[..., Terminal]]:
    open_: list[Terminal] = []

    def start(*argv: str, before: Callable[[], None] | None = None) -> Terminal:
        open_.append(Terminal(*argv, before=before))
        return open_[-1]

    yield start
    for terminal in open_:
        terminal.close()


def eventually(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_keys_reach_the_control_and_the_terminal_is_put_back(started: Callable[..., Terminal]) -> None:
    child = started("-c", CHILD)
    child.wait_for("taken True")
    assert not child.line_mode
    child.type("bM \x1b[Bz")  # down arrow ends in B: not the key b
    said = child.wait_for("no'z'")
    assert said.count("<b>") == 1 and "<M>" in said and "< >" in said
    child.type("\x1b")
    time.sleep(0.3)  # an Escape alone does not swallow what is typed later
    child.type("q")
    child.wait_for("left True")
    assert child.end() == 0
    assert child.line_mode


def test_put_back_after_an_exception(started: Callable[..., Terminal]) -> None:
    child = started("-c", CHILD, "raise")
    assert child.end() == 3
    assert "taken True" in child.said
    assert child.line_mode


def test_interrupt_still_interrupts(started: Callable[..., Terminal]) -> None:
    child = started("-c", CHILD)
    child.wait_for("taken True")
    child.type("\x03")
    assert child.end() in (1, -signal.SIGINT, 130)
    assert "KeyboardInterrupt" in child.said
    assert child.line_mode


# A shell with job control, as small as it gets: starts the child in a group of its own, in front.
SHELL = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], process_group=0)
def front(group): os.tcsetpgrp(0, group)
if sys.argv[2] == "front":
    front(child.pid)
for line in sys.argv[3:]:
    if line == "stopped":
        os.waitid(os.P_PID, child.pid, os.WSTOPPED); front(os.getpgrp()); print("STOPPED", flush=True)
    elif line == "running":
        print("RUNNING", os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG), flush=True)
    elif line == "bg":
        os.kill(child.pid, signal.SIGCONT); print("BG", flush=True)
    elif line == "fg":
        front(child.pid); os.kill(child.pid, signal.SIGCONT); print("FG", flush=True)
    elif line == "front":  # as bash's `fg` does where the job runs already
        front(child.pid); print("FRONT", flush=True)
    elif line == "line":
        print("LINE", sys.stdin.readline().strip(), flush=True)
    elif line == "term":
        time.sleep(0.5); child.kill()
code = child.wait()
front(os.getpgrp())
print("CODE", code, flush=True)
"""


def test_stopped_and_continued(started: Callable[..., Terminal]) -> None:
    """Ctrl-Z gives the terminal back, `bg` leaves it to the shell, `fg` takes it again."""
    shell = started("-c", SHELL, CHILD, "front", "stopped", "line", "bg", "line", "running", "fg")
    shell.wait_for("taken True")
    eventually(lambda: not shell.line_mode)
    shell.type("b")
    shell.wait_for("<b>")
    shell.type("\x1a")
    shell.wait_for("STOPPED")
    assert shell.line_mode
    shell.type("one\n")
    shell.wait_for("LINE one")
    shell.wait_for("BG")
    time.sleep(0.4)
    assert shell.line_mode
    shell.type("mmm\n")  # for the shell, not for the keys
    shell.wait_for("LINE mmm")
    shell.wait_for("RUNNING None")
    assert "<m>" not in shell.said
    shell.wait_for("FG")
    eventually(lambda: not shell.line_mode)
    shell.type("mq")
    shell.wait_for("CODE 0")
    assert "<m>" in shell.said
    assert shell.line_mode
    assert shell.end() == 0


def test_brought_to_the_front_while_it_runs(started: Callable[..., Terminal]) -> None:
    """Ctrl-Z, `bg`, `fg`: bash continues only what is stopped. The keys work again, and not before."""
    shell = started("-c", SHELL, CHILD, "front", "stopped", "bg", "line", "front")
    shell.wait_for("taken True")
    eventually(lambda: not shell.line_mode)
    shell.type("\x1a")
    shell.wait_for("BG")
    assert shell.line_mode
    shell.type("one\n")
    shell.wait_for("LINE one")
    eventually(lambda: not shell.line_mode)
    shell.type("bq")
    shell.wait_for("CODE 0")
    assert "<b>" in shell.said
    assert shell.line_mode
    assert shell.end() == 0


def test_nothing_in_the_background(started: Callable[..., Terminal]) -> None:
    shell = started("-c", SHELL, CHILD, "back", "line", "running", "term")
    shell.wait_for("taken False")
    assert shell.line_mode
    shell.type("q\n")
    shell.wait_for("LINE q")
    shell.wait_for("RUNNING None")
    shell.wait_for("CODE -9")


def test_a_closed_terminal_is_a_quit(started: Callable[..., Terminal], tmp_path: Path) -> None:
    """The run ends, instead of going on with nobody to stop it. SIGHUP does not end it: a live run reloads then."""

    def deaf() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    log = tmp_path / "log"
    log.touch()
    child = started("-c", f"import sys; sys.stdout = open({str(log)!r}, 'w')\n" + CHILD, before=deaf)
    eventually(lambda: "taken True" in log.read_text())
    os.close(child.fd)
    pid, child.pid = child.pid, 0
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "left True" in log.read_text()


def test_nothing_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(quit=lambda: None)
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, "w") as typist:
        monkeypatch.setattr(sys, "stdin", stdin)
        typist.write("b")
        typist.flush()
        with terminal_keys(control) as taken:
            time.sleep(0.1)
    assert not taken and control.steps == 0
    for gone in (None, stdin):  # absent, closed
        monkeypatch.setattr(sys, "stdin", gone)
        with terminal_keys(control) as taken:
            assert not taken


def test_a_terminal_of_another_session_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(stdin.fileno())
        with terminal_keys(Control(quit=lambda: None)) as taken:
            assert not taken and termios.tcgetattr(stdin.fileno()) == before
    os.close(ours)


@pytest.mark.parametrize("cut", range(1, 12))
def test_sequences_are_no_keys(cut: int) -> None:
    """Wherever a read cuts them in two."""
    data = b"b\x1b[1;5Bm\x1bOBq\x1bb\xc3\xa9\x1b[Z"
    typed = Typed()
    assert typed.feed(data[:cut]) + typed.feed(data[cut:]) == ["b", "m", "q"]
    assert not typed.waiting
