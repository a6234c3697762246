"""The status line, on a real pty, and the closing lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rtbg import status
from rtbg.control import Control
from rtbg.stats import Latency, Stats
from rtbg.status import live_status, status_line, summary

# A run of three seconds, ten times as fast: trouble in the middle, a line from elsewhere, a changed background.
CHILD = """
import sys, time
from rtbg.control import Control
from rtbg.progress import say
from rtbg.stats import Latency, Stats
from rtbg import status
status.REFRESH = 0.0
status.CALM = 0.0
control = Control(quit=lambda: None)
stats = Stats(engine="OpenVINO CPU f16", latency=Latency())
names = ["beach.jpg", "a-very-long-name-of-a-background-picture-that-does-not-fit-into-the-line-at-all.jpeg"]
with status.live_status(control, lambda: names[control.steps % 2], verbose="-v" in sys.argv,
                        show="-q" not in sys.argv, keys=True) as progress:
    for tenth in range(31):
        stats.seconds = tenth / 10
        stats.frames_in += 3
        stats.frames_out += 3
        stats.latency.add(0.021)
        stats.stages = {"read": stats.seconds / 10, "matting": stats.seconds / 5}
        stats.trouble = "the camera does not answer: plug it in again" if 10 <= tenth < 20 else ""
        stats.dropped = tenth // 10
        if tenth == 15:
            control.press("b"); control.press("m")
            say("rtbg: warning: from elsewhere")
        progress(stats)
        time.sleep(0.01)
print("done", file=sys.stderr)
"""
ROOT = Path(__file__).parents[1]


def on_terminal(*argv: str, columns: int = 80, term: str = "xterm") -> str:
    """All that the child sends to a terminal that is its stderr."""
    if sys.platform == "win32":
        pytest.skip("ptys are Unix's")
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unset = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    env = {k: v for k, v in os.environ.items() if k not in unset} | {"TERM": term}
    child = subprocess.Popen([sys.executable, "-c", CHILD, *argv], stderr=theirs, env=env, cwd=ROOT)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert child.wait() == 0
    return said.decode()


def plain(said: str) -> list[str]:
    """The lines without their colours and cursor movements."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)) if line]


@pytest.mark.parametrize("columns", [80, 120, 50])
def test_on_a_terminal(columns: int) -> None:
    lines = plain(on_terminal(columns=columns))
    assert lines[0] == "keys: b next background, m matte view, space freeze, q quit"
    assert sum("keys:" in line for line in lines) == 1
    assert lines[-1] == "done"
    assert all(len(line) <= columns for line in lines[1:])
    states = [line for line in lines if "fps" in line]
    assert len(states) >= 25 and any(
        line.startswith("MATTE  30.0 fps  latency 21/21 ms  dropped 2 (") for line in states
    )
    if columns >= 80:
        assert any(line.endswith("  beach.jpg  OpenVINO CPU f16") for line in states)
        assert any(line.startswith("MATTE") and "a-ver" in line and "jpeg" in line and "…" in line for line in states)
        assert 5 <= lines.count("the camera does not answer: plug it in again") <= 12
    assert lines.count("rtbg: warning: from elsewhere") == 1
    assert not any("ms a frame" in line for line in lines)


def test_verbose_adds_stage_times() -> None:
    lines = plain(on_terminal("-v"))
    assert any(line == "ms a frame: read 3.3, matting 6.7" for line in lines)


@pytest.mark.parametrize("how", [("-q", "xterm"), ("", "dumb")])
def test_only_trouble_where_no_line_can_be(how: tuple[str, str]) -> None:
    said = on_terminal(how[0], term=how[1]).replace("\r\n", "\n")
    assert said == (
        "rtbg: the camera does not answer: plug it in again\n"
        "rtbg: warning: from elsewhere\nrtbg: all is well again\ndone\n"
    )


def test_a_log_is_not_filled(capsys: pytest.CaptureFixture[str]) -> None:
    """Trouble that comes and goes is told of once a second at most; its end is not lost."""
    with live_status(Control(quit=lambda: None), lambda: "blur", keys=True) as progress:
        for k in range(1000):
            progress(Stats(trouble="no light" if k % 2 == 0 else ""))
    assert capsys.readouterr().err == "rtbg: no light\n"


def test_trouble_is_told_once_however_long_it_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "CALM", 0.0)
    late = "pictures are finished {} s late, too old to be shown"
    told = [
        *(f"the matting has not answered for {k} s" for k in range(1, 20)),
        *(late.format(k / 10) for k in range(6, 15)),
        "",
        "/dev/video0 is gone",
        "/dev/video2 is gone",
    ]
    with live_status(Control(quit=lambda: None), lambda: "blur") as progress:
        for trouble in told:
            progress(Stats(trouble=trouble))
    assert capsys.readouterr().err.splitlines() == [
        "rtbg: the matting has not answered for 1 s",
        f"rtbg: {late.format(0.6)}",
        "rtbg: all is well again",
        "rtbg: /dev/video0 is gone",
        "rtbg: /dev/video2 is gone",
    ]


def test_a_verbose_log_tells_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """Every ten seconds of the run, with the rate since the line before; not where nothing is to be said."""
    for show in (True, False):
        with live_status(Control(quit=lambda: None), lambda: "blur", show=show, verbose=True) as progress:
            for second in range(25):
                progress(Stats(engine="CPU", seconds=second, frames_in=30 * second, frames_out=30 * second, dropped=3))
    assert capsys.readouterr().err == (
        "rtbg: 30.0 fps, dropped 3 (1 %), CPU\nrtbg: 30.0 fps, dropped 3 (0.50 %), CPU\n"
    )


def test_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with live_status(Control(quit=lambda: None), lambda: "blur") as progress:
        progress(Stats(trouble="no light"))


@pytest.mark.parametrize("width", range(20, 130, 7))
def test_the_line_fits(width: int) -> None:
    control = Control(quit=lambda: None)
    control.press("m")
    control.press(" ")
    stats = Stats(engine="TensorRT-RTX 1.7 NVIDIA GeForce RTX 4090 Laptop GPU", frames_in=99999, frames_out=99000,
                  dropped=12345, latency=Latency())  # fmt: skip
    assert stats.latency is not None
    stats.latency.add(12.0)
    line = status_line(stats, 123.4, control, "x" * 60 + ".png", width)
    assert len(line) <= width
    if width >= 80:
        assert "FROZEN  MATTE  123.4 fps  latency 10000/10000 ms  dropped 12345 (12 %)" in line


def test_starting_is_told() -> None:
    assert status_line(Stats(), 0.0, Control(quit=lambda: None), "blur", 80) == "starting  blur"


def test_summary() -> None:
    stats = Stats(engine="OpenVINO CPU f16", frames_in=3600, frames_out=3594, dropped=6, seconds=120.2, reused=1797,
                  filled=20, covered=15, cpu_seconds=54.09, stages={"matting": 35.94}, latency=Latency())  # fmt: skip
    assert stats.latency is not None
    for k in range(1, 101):
        stats.latency.add(k / 1000)
    assert summary(stats) == (
        "2:00, 29.9 fps, latency p50 50.0 p95 95.0 p99 99.0 ms, CPU 45 % of one core\n"
        "dropped 6 of 3600 (0.17 %), reused 1797 (50 %), filled 20, covered 15, OpenVINO CPU f16"
    )
    assert summary(stats, verbose=True).splitlines()[2:] == ["ms a frame: matting 10.0"]
    assert summary(Stats(latency=Latency(), cpu_seconds=0.1), verbose=True) == (
        "0:00, 0.0 fps\ndropped 0 of 0 (0 %), reused 0 (0 %), filled 0, covered 0, no engine ran"
    )
