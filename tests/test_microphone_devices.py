"""Microphones of each system: their names, what cannot be opened, and real devices of ALSA made of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from rtbg.errors import InputError
from rtbg.sinks.microphone import Microphone, find_microphone
from tests.media import beeps


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("none")
    with av.open(str(tmp_path / "silent.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        out.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        out.mux(stream.encode(None))
    for name, said in (
        (str(tmp_path / "text.wav"), "text.wav"),
        (str(tmp_path / "silent.mp4"), "no sound"),
        ("dshow:none" if sys.platform != "win32" else "alsa:none", "no "),
        ("no such microphone", "no such microphone"),
        ("", "name of the microphone is empty"),
        (" ", "name of the microphone is empty"),
    ):
        with pytest.raises(InputError) as info:
            Microphone(name)
        text = str(info.value)
        assert "\n" not in text
        assert said in text


ALSA = """
import sys, threading, time
import numpy as np
from rtbg.sinks.microphone import Microphone

name, stall = sys.argv[1], sys.argv[2] == "stall"
microphone = Microphone(name)
print(microphone.description, flush=True)
got = []

def feed(frame):
    got.append(frame.to_ndarray().ravel())
    if not stall:
        time.sleep(0.001)  # the device does not keep time

microphone.record(feed)
deadline = time.monotonic() + 10
while not stall and sum(map(len, got)) < 400 and time.monotonic() < deadline:
    time.sleep(0.05)
time.sleep(1)
began = time.monotonic()
microphone.close()
print(round(time.monotonic() - began, 2), float(np.abs(np.concatenate([[0], *got])).max()))
"""


@pytest.fixture
def alsa(tmp_path: Path) -> Path:
    """A folder with a configuration of ALSA's in which `tone` is a device that gives a file's samples, and `pipe` one
    that is stuck when a pipe gives no more."""
    try:
        av.ContainerFormat("alsa", "r")
    except ValueError:
        pytest.skip("this build of FFmpeg has no ALSA")
    beeps(48000, every=0.1).repeat(2).tofile(tmp_path / "tone.raw")
    os.mkfifo(tmp_path / "pipe.raw")
    lines = [
        f'pcm.{name} {{ type file slave.pcm "null" file "/dev/null" infile "{tmp_path / name}.raw" format "raw" }}'
        for name in ("tone", "pipe")
    ]
    (tmp_path / "alsa.conf").write_text("\n".join(["pcm.null { type null }", *lines]) + "\n")
    return tmp_path


def run_alsa(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code and what was said; a child that hangs is killed (subprocess.run does) and the test fails."""
    child = subprocess.run(
        [sys.executable, "-c", ALSA, *arguments],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"ALSA_CONFIG_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return child.returncode, child.stdout, child.stderr


def test_an_alsa_device(alsa: Path) -> None:
    _, out, error = run_alsa(alsa, "alsa:tone", "")
    assert error == ""
    description, figures = out.splitlines()
    assert description == "alsa:tone: 48000 Hz, stereo"
    seconds, loudest = map(float, figures.split())
    assert seconds < 1
    assert 10000 < loudest <= 12000


def test_a_driver_that_does_not_answer(alsa: Path) -> None:
    """It gives 200 samples and is stuck: the microphone is left within two seconds, and the program ends."""
    pipe = os.open(alsa / "pipe.raw", os.O_RDWR)  # for reading too: this does not wait for the other end
    try:
        os.write(pipe, beeps(4800, every=0.1)[:400].tobytes())
        code, out, error = run_alsa(alsa, "alsa:pipe", "stall")
    finally:
        os.close(pipe)
    assert code == 0
    assert error.strip() == "the driver of the microphone alsa:pipe does not answer: it is left to itself"
    assert 1.5 < float(out.splitlines()[1].split()[0]) < 4


@pytest.mark.skipif(sys.platform != "linux", reason="ALSA")
def test_alsa_errors_are_one_line(alsa: Path) -> None:
    _, out, error = run_alsa(alsa, "alsa:none", "")
    assert out == ""
    lines = error.splitlines()
    assert lines[-1].startswith("rtbg.errors.InputError: the microphone 'alsa:none' cannot be opened (")
    assert not [line for line in lines if line.startswith("ALSA lib")]


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each system's input opens; the lists of devices are made up, there is no Windows here."""
    lists = {
        "dshow": [("@cm\\mic", "Microphone (Blue)"), ("@cm\\line", "Line in (Board)")],
        "avfoundation": [("0", "MacBook Microphone"), ("1", "Blue Yeti")],
        "alsa": [("hw:CARD=Y,DEV=0", "Yeti, USB"), ("plughw:CARD=Y,DEV=0", "Yeti, USB"), ("plughw:CARD=P", "PCH")],
    }
    monkeypatch.setattr("rtbg.sinks.microphone._devices", lists.__getitem__)
    monkeypatch.setattr("rtbg.sinks.microphone._has", lists.__contains__)
    monkeypatch.setenv("ALSA_CONFIG_DIR", "any")
    for system, name, opens in (
        ("win32", "blue", ("dshow", "audio=@cm\\mic")),
        ("win32", "default", ("dshow", "audio=@cm\\mic")),
        ("darwin", "yeti", ("avfoundation", ":1")),
        ("darwin", "default", ("avfoundation", ":default")),
        ("linux", "yeti", ("alsa", "plughw:CARD=Y,DEV=0")),
        ("linux", "hw:1", ("alsa", "hw:1")),
        ("linux", "default", ("alsa", "default")),
        ("linux", "dshow:line", ("dshow", "audio=@cm\\line")),
    ):
        monkeypatch.setattr(sys, "platform", system)
        assert find_microphone(name) == opens
    with pytest.raises(InputError, match="may mean several"):
        find_microphone("dshow:(b")
