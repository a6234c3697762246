"""The GPU benchmark on the CPU: that it runs, and what it sets itself beside."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from benchmarks import gpu  # noqa: E402
from benchmarks.rvm_shape import RvmShape  # noqa: E402


def test_runs_anywhere(capsys):
    gpu.main(["--sizes", "320x180", "--frames", "1", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert told["benchmark"] == "gpu"
    assert told["machine"]["device"] == "torch CPU f32"
    (result,) = told["results"]
    assert result["size"] == "320x180"
    parts = ("network", "tensors_only", "frame_on_device", "rvm_shape")
    for key in (*parts, *(f"{part}_eager" for part in parts), "end_to_end"):
        assert result[f"{key}_ms"] > 0
        assert result[f"{key}_fps"] == pytest.approx(1000 / result[f"{key}_ms"], rel=0.01, abs=0.1)
        assert any(key in line for line in lines[:-1])
    assert set(result["stages_ms"]) == set(result["stages_fps"]) == set(gpu.STAGES.values())
    for key, value in result["stages_ms"].items():
        assert result["stages_fps"][key] == pytest.approx(1000 / value, rel=0.01)
        assert any(key in line and line.endswith(" fps") for line in lines[:-1])
    assert "missing" in told["tensorrt"] or told["tensorrt"]["ms"] > 0


def test_the_other_network_has_the_published_shape():
    """3.75 M parameters, a matte of the picture's size, states at 1/2 to 1/16 that matter."""
    torch.manual_seed(0)
    model = RvmShape().eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.75e6, rel=0.03)
    with torch.inference_mode():
        picture = torch.rand(1, 3, 144, 256)
        states = model.states(72, 128)
        assert [tuple(s.shape[1:]) for s in states] == [(16, 36, 64), (20, 18, 32), (40, 9, 16), (64, 5, 8)]
        first, states = model(picture, states, 0.5)
        assert first.shape == (1, 1, 144, 256)
        again, _ = model(picture, states, 0.5)
        assert not torch.equal(first, again)
        whole, _ = model(picture, model.states(144, 256), 1)
        assert whole.shape == first.shape
