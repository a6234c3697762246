"""Live recordings that fail or are killed: what was recorded until then can be played. The others are as ever."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rtbg.frame import LIMITED, SMPTE170M, Color, Frame, StreamInfo
from rtbg.sinks import VideoSink
from rtbg.sinks.microphone import Microphone
from tests.media import beeps, make_video
from tests.test_microphone import wav

RTBG = [sys.executable, "-m", "rtbg"]
INFO = StreamInfo(128, 96, Fraction(1, 1_000_000), Fraction(30), Color(SMPTE170M, LIMITED), rotation=90)
CHUNK = 960
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")


def picture(at: float, k: int) -> Frame:
    y = np.random.default_rng(k).integers(16, 235, (INFO.height, INFO.width), np.uint8)
    c = np.full((INFO.height // 2, INFO.width // 2), 128, np.uint8)
    return Frame((y, c, c), round(at * 1e6), INFO.time_base, INFO.color, 1000 + at)


def uneven(seconds: float, freeze: tuple[float, float]) -> Iterator[float]:
    """Times of pictures; at freeze[0] none comes for freeze[1] seconds."""
    steps, at = np.random.default_rng(0), 0.0
    while at < seconds:
        yield at
        step = float(steps.uniform(0.02, 0.06))
        at += step + (freeze[1] if at < freeze[0] <= at + step else 0)


def record(path: Path, *, live: bool, gap: float, freeze: tuple[float, float]) -> Path:
    """Six seconds, with sound that lacks what is between 2.3 and 2.3 + gap."""
    microphone = Microphone(str(wav(path.with_name("any.wav"), 0, 1, rate=48000)))
    sink = VideoSink(path, INFO, sound=microphone, live=live)
    microphone.close()
    track, sound, fed = sink._track, beeps(round((6 + gap) * 48000)), 0
    assert track is not None
    for k, at in enumerate(uneven(6 + gap, freeze)):
        sink.write(picture(at, k))
        while fed / 48000 < at and fed < len(sound):
            if not 2.3 <= fed / 48000 < 2.3 + gap:
                frame = av.AudioFrame.from_ndarray(sound[None, fed : fed + CHUNK], format="s16", layout="mono")
                frame.sample_rate, frame.pts = 48000, round((1000 + fed / 48000) * 1e6)
                frame.time_base = Fraction(1, 1_000_000)
                track.feed(frame)
            fed += CHUNK
    sink.close()
    return path


def contents(path: Path) -> list[Any]:
    """All that a player is told."""
    with av.open(str(path)) as made:
        found: list[Any] = [made.duration, made.start_time]
        for s in made.streams:
            found.append((s.type, s.duration, s.start_time, s.frames, s.time_base, s.codec_context.extradata))
        context = made.streams.video[0].codec_context
        found.append((context.colorspace, context.color_range, context.color_primaries, context.color_trc))
        packets = [(p.stream_index, p.pts, p.dts, p.duration, p.size, p.is_keyframe) for p in made.demux() if p.size]
        found.append(sorted(packets))
    with av.open(str(path)) as made:
        found.append([f.rotation for f in made.decode(video=0)])
    return found


def boxes(path: Path) -> list[bytes]:
    """The kinds of an .mp4's outermost parts."""
    data, at, kinds = path.read_bytes(), 0, []
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4])
    return kinds


def pictures(path: Path) -> int:
    """How many can be decoded, all without an error."""
    with av.open(str(path)) as made:
        return sum(1 for _ in made.decode(video=0))


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(("gap", "freeze"), [(0, (0, 0)), (5, (0, 0)), (30, (0, 0)), (0, (3, 15)), (0, (5.2, 1.5))])
def test_a_whole_recording_is_an_ordinary_file(
    tmp_path: Path, suffix: str, gap: float, freeze: tuple[float, float]
) -> None:
    """Packet by packet what a file's run writes, also where sound or pictures do not come for a while."""
    made = [record(tmp_path / f"{live}{suffix}", live=live, gap=gap, freeze=freeze) for live in (False, True)]
    assert contents(made[0]) == contents(made[1])
    assert boxes(made[1])[2:] == [b"mdat", b"moov"]
    found = []
    for path in made:
        with av.open(str(path)) as file:
            file.seek(4_000_000, any_frame=True)
            packet = next(file.demux(video=0))
            found.append(float(packet.pts * packet.time_base))
    assert found[0] == found[1] > 2, "one can seek in it, as in the other"


_LIMITED = """
import resource, signal, sys
from pathlib import Path
from rtbg.errors import OutputError
from rtbg.sinks import open_sink
from tests.test_salvage import INFO, picture
path, limit = Path(sys.argv[1]), int(sys.argv[2])
sink = open_sink(path, INFO, overwrite=True, live=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for k in range(200):
        sink.write(picture(k / 30, k))
    sink.close()
except OutputError as exc:
    sink.abort()
    print(exc)
"""


def limited(path: Path, limit: int) -> str:
    """What is said when the file may not grow beyond `limit`, as on a full disk."""
    command = [sys.executable, "-c", _LIMITED, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


@posix
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_full_disk_keeps_what_was_recorded(tmp_path: Path, suffix: str) -> None:
    """Wherever it comes: within a fragment, while the last one is written, and within the index at the end, when the
    fragments have been hidden already."""
    path, part = tmp_path / f"rec{suffix}", tmp_path / f"rec.partial{suffix}"
    assert limited(path, 0) == ""
    size, kept = path.stat().st_size, path.read_bytes()
    before = 0
    for limit in (size // 2, size * 3 // 4, size - 3000, size - 1500, size - 200, size - 1):
        said = limited(path, limit)
        assert said.startswith("no space left for") and len(said.splitlines()) == 1, said
        assert said.strip().endswith(f"what was recorded until then is in {part}")
        assert path.read_bytes() == kept
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, part.name])
        count = pictures(part)
        assert before <= count <= 200 and count >= 60, limit
        before = count
        part.unlink()
    assert before > 190 or suffix in (".mkv", ".webm")


@posix
def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path: Path) -> None:
    said = limited(tmp_path / "rec.mp4", 2000)
    assert said.startswith("no space left for") and "until then" not in said
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_killed_recording_can_be_played(tmp_path: Path, suffix: str) -> None:
    clip = make_video(tmp_path / "clip.mp4", size=(320, 192), frames=25)
    folder = tmp_path / "made"
    folder.mkdir()
    args = ("--webcam", clip, "--vcam", "none", "-o", folder / f"rec{suffix}", "--bg", "blur")
    process = subprocess.Popen([*RTBG, *map(str, args)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(p.stat().st_size for p in folder.iterdir()) < 6000:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = folder.iterdir()
    assert re.fullmatch(rf"\.rec\.rtbg-\d+\.tmp\{suffix}", left.name)
    assert pictures(left) >= 15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    disk = tmp_path / "small"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_call_on_a_really_full_disk(tmp_path: Path, small_disk: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", size=(320, 192), frames=50)
    part = small_disk / "rec.partial.mp4"
    args = ("--webcam", clip, "--vcam", "none", "-o", small_disk / "rec.mp4", "--bg", "blur", "--crf", "0")
    done = subprocess.run([*RTBG, *map(str, args)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"no space left for {small_disk / 'rec.mp4'}" in done.stderr, done.stderr
    assert f"what was recorded until then is in {part}" in done.stderr
    assert list(small_disk.iterdir()) == [part]
    assert pictures(part) > 5
