"""benchmarks.effects by its command line, on a network that answers the red channel: people are light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_benchmark_quality import ROOT, red_network
from training_parts import make_data

pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")

from benchmarks.effects import EFFECTS
from training.split import held_out


def run(data: Path, *more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.effects", "--data", data, *more]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=110)


def test_every_effect_is_counted_and_the_same_each_time(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    name = next(f"room{k}" for k in range(100) if held_out(f"room{k}"))
    (data / "backgrounds" / "room0.webp").rename(data / "backgrounds" / f"{name}.webp")
    model = red_network(data / "truth.onnx", (1.2, 0, 0, 0))
    first, again = (run(data, "--model", model, "--pictures", 6) for _ in range(2))
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout.splitlines()[-1])["models"]["truth"]
    assert found == json.loads(again.stdout.splitlines()[-1])["models"]["truth"]
    assert found.keys() == EFFECTS.keys()
    assert found["plain"]["iou"] > 0.5, "people are what is light"
    assert found["dusk"]["iou"] < found["plain"]["iou"], "and not in the dark"


def test_nothing_to_be_found_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode and "no validation pictures" in done.stderr and "Traceback" not in done.stderr
