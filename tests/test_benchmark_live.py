"""The live benchmark: short runs give all its fields, and its numbers agree with one another."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks import live, live_run, mediapipe_solution
from rtbg.frame import Frame
from rtbg.options import Options
from rtbg.sources.i420 import WORKING
from rtbg.stats import Latency
from tests.media import make_video

SOLUTION = Path(mediapipe_solution.__file__)


def test_a_short_run_gives_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_video(tmp_path / "clip.mp4", size=(320, 180), frames=20, rate=30)
    began = time.monotonic()
    live.main(["--seconds", "2", "--warm-up", "0.5", "--sizes", "320x180", "--threads", "1", "--clip", str(clip)])
    lasted = time.monotonic() - began
    lines = capsys.readouterr().out.splitlines()
    done = json.loads(lines[-1])
    assert done["benchmark"] == "live" and done["machine"]["cores"]
    (row,) = done["results"]
    assert row["name"] == f"rtbg, {Options().model}" and row["size"] == "320x180"
    assert lines[-2] == live.line(row)
    assert 2 <= row["seconds"] < lasted
    assert 0 < row["frames"] <= 30 * (row["seconds"] + 1)
    assert row["fps"] == pytest.approx(row["frames"] / row["seconds"], abs=0.01)
    assert row["cpu_percent"] > row["camera_cpu_percent"] > 0
    assert row["rest_cpu_percent"] == pytest.approx(row["cpu_percent"] - row["camera_cpu_percent"], abs=0.01)
    assert row["cpu_ms"] == pytest.approx(10 * row["cpu_percent"] / row["fps"], rel=0.01)
    late = row["latency_ms"]
    assert 0 < late["p50"] <= late["p95"] <= late["p99"]
    assert row["dropped_percent"] == pytest.approx(100 * row["dropped"] / (row["frames"] + row["dropped"]), abs=0.01)
    assert 0 <= row["reused"] <= row["frames"] and 0 <= row["covered"] <= row["filled"]
    assert {"gate", "matting", "background", "composite", "NullCamera"} <= set(row["stage_ms"])
    assert all(t >= 0 for t in row["stage_ms"].values()) and row["stage_ms"]["matting"] > 0
    assert len(row["memory_mb"]) >= 2
    if sys.platform == "linux":
        assert all(20 < m < 4000 for m in row["memory_mb"])
        assert {"rtbg-paced", "rtbg-matting", "rtbg-sink-0", "other"} <= set(row["thread_cpu_percent"])


def test_the_clip_is_what_a_webcam_sends(tmp_path: Path) -> None:
    source, clip = make_video(tmp_path / "in.mp4", size=(160, 96), frames=7), tmp_path / "clip.mkv"
    kilobytes = live.make_clip(clip, (128, 96), source)
    planes = list(live.pictures(source, (128, 96)))
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    assert [f.format.name for f in frames] == ["yuvj422p"] * 7 and len(planes) == 7
    assert 0 < kilobytes < 128 * 96 * 2 / 1000
    for frame, (y, u, _) in zip(frames, planes, strict=True):
        assert (frame.width, frame.height) == (128, 96) and y.shape == (96, 128) and u.shape == (48, 64)
        luma = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)[:96, :128]
        full = (y.astype(float) - 16) * 255 / 219
        assert np.abs(np.clip(full, 0, 255) - luma).mean() < 4


def test_the_demo_has_noise_and_moves() -> None:
    shown = live.pictures(None, (64, 48))
    first, second = next(shown)[0], next(shown)[0]
    shown.close()
    assert 0.5 < np.abs(first.astype(int) - second).mean() < 20


def test_the_null_camera_packs_as_the_real_one() -> None:
    sink = live_run.NullCamera(8, 4)
    planes = tuple(np.full(shape, code, np.uint8)[:, ::-1] for shape, code in (((4, 8), 1), ((2, 4), 2), ((2, 4), 3)))
    sink.write(Frame(planes, 0, Fraction(1, 30), WORKING))
    assert sink._packed.data.tolist() == [1] * 32 + [2] * 8 + [3] * 8
    assert sink.close() is None


def test_latency_between_two_moments() -> None:
    latency = Latency()
    latency.add(0.5)
    before = copy.deepcopy(latency)
    for k in range(100):
        latency.add(k / 1000)
    times = live_run.between(before, latency)
    assert len(times) == 100 and times == pytest.approx([k / 1000 for k in range(100)])
    fresh = Latency()
    for t in times:
        fresh.add(t)
    for share in (0.5, 0.95, 0.99):
        assert mediapipe_solution.quantile(times, share) == pytest.approx(fresh.quantile(share))
    assert mediapipe_solution.quantile([], 0.5) == 0


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match="ended with 3: no such thing"):
        live.call([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])

    with pytest.raises(SystemExit, match="nowhere/python cannot be run: No such file"):
        live.call(["nowhere/python"])
    with pytest.raises(SystemExit, match="KeyError: 'model'"):
        live.rtbg_run("live", {"clip": "none.mkv"})
    with pytest.raises(SystemExit, match=r"no clip: .*none\.mkv"):
        live.main(["--clip", "none.mkv"])


def test_the_solution_knows_nothing_of_rtbg() -> None:
    names = set()
    for node in ast.walk(ast.parse(SOLUTION.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert not names & {"rtbg", "engines", "benchmarks", "training"} and "mediapipe" in names


def test_the_solutions_camera_by_itself(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=10, rate=30)  # a third of a second: it starts again
    command = [SOLUTION, clip, "--background", "none", "--seconds", "1.5", "--warm-up", "0.2", "--alone"]
    done = live.call([sys.executable, *command])
    assert 0 < done["frames"] <= 30 * (done["seconds"] + 1) and done["seconds"] >= 1.5
    assert done["cpu_percent"] > 0 and len(done["memory_mb"]) >= 2
    assert 0 <= done["latency_ms"]["p50"] <= done["latency_ms"]["p99"]


def test_a_slow_reader_gets_the_newest_picture(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=30, rate=30)
    camera = mediapipe_solution.Camera(str(clip))
    try:
        _, first = camera.read()
        time.sleep(0.5)
        picture, second = camera.read()
        assert picture.shape == (96, 160, 3)
        assert second - first > 0.3 and camera.dropped > 3
    finally:
        camera.close()


def test_a_clip_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        mediapipe_solution.Camera(str(tmp_path / "none.mp4"))
    script = [sys.executable, str(SOLUTION), str(tmp_path / "none.mp4"), "--background", "none", "--alone"]
    assert subprocess.run(script, capture_output=True).returncode != 0
