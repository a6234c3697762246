"""8-bit graphs: the probe tells CPUs apart, and what is loaded is what was asked for or what is best here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import engines
from engines import int8
from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.spec import MODELS

X86 = platform.machine().lower() in ("x86_64", "amd64")
HAVE = [n for n in engines.available_models() if "int8" in json.loads((MODELS / f"{n}.json").read_text())]


needs_one = pytest.mark.skipif(not HAVE, reason="no shipped model has an 8-bit graph (training.quantise)")


def test_the_shipped_models_together_are_small() -> None:
    assert sum(p.stat().st_size for p in MODELS.glob("*.onnx")) < 15e6


def exact_on(isa: str, runner: str) -> str:
    """What a process says whose oneDNN is told to use no more than `isa`."""
    code = f"""
from engines import int8
from engines.{runner}_engine import *
print(int8.is_exact({"OpenVINORunner" if runner == "openvino" else "OnnxRuntimeRunner"}))
import engines
print(engines.load("{HAVE[0]}", engine="{runner}").device)
"""
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_one
@pytest.mark.skipif(not X86, reason="x86-64 only")
def test_an_older_cpu_is_found_out() -> None:
    """oneDNN without AVX-512 and VNNI is what runs on a CPU of 2018: there the products overflow."""
    exact, device = exact_on("AVX2", "openvino").splitlines()
    assert exact == "False" and "int8" not in device, "the full-precision graph takes over"


@needs_one
@pytest.mark.skipif(not X86, reason="x86-64 only")
@pytest.mark.parametrize("runner", [OpenVINORunner, OnnxRuntimeRunner])
def test_it_runs_where_it_is_exact(runner: type) -> None:
    if not int8.is_exact(runner):
        pytest.skip("this CPU adds 8-bit products inexactly")
    engine = engines.load(HAVE[0], engine=runner.name)
    plain = engines.load(HAVE[0], engine=runner.name, precision="f32")
    assert engine.device.endswith("int8") and plain.device.endswith("f32")
    from skimage import data  # the demo's portrait

    width, height = engine.spec.sizes[2]
    small = cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)
    x = np.zeros((1, 4, height, width), np.float32)
    x[0, :3] = small.transpose(2, 0, 1) / np.float32(255)
    a, b = (e.infer({"frame": x})["alpha"].copy() for e in (engine, plain))
    assert 0.1 < b.mean() < 0.9 and np.abs(a - b).mean() < 0.02
    engine.close()
    plain.close()


@pytest.mark.skipif(not X86, reason="x86-64 only")
def test_the_probe_tells_cpus_apart() -> None:
    """oneDNN without AVX-512 and VNNI is what runs on a CPU of 2018: there the products overflow."""
    code = "from engines import int8, openvino_engine as o; print(int8.is_exact(o.OpenVINORunner))"
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "False", done.stderr
    assert int8.is_exact(OnnxRuntimeRunner), "ONNX Runtime adds in 32 bits everywhere"


def copied(tmp_path: Path) -> Path:
    for path in MODELS.glob(f"{HAVE[0]}.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / f"{HAVE[0]}.onnx"


@needs_one
def test_a_foreign_graph_is_refused(tmp_path: Path) -> None:
    model = copied(tmp_path)
    graph = tmp_path / f"{HAVE[0]}.int8.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(engines.EngineError, match="not the file that its card describes"):
        engines.load(model)
    graph.unlink()
    with pytest.raises(engines.EngineError, match="cannot be read"):
        engines.load(model)


@needs_one
def test_no_int8_where_there_is_none(tmp_path: Path) -> None:
    model = copied(tmp_path)
    card = json.loads(model.with_suffix(".json").read_text())
    del card["int8"]
    model.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(engines.EngineError, match="no 8-bit graph"):
        engines.load(model, engine="openvino", precision="int8")
    engine = engines.load(model, engine="openvino")
    assert "int8" not in engine.device
    engine.close()
