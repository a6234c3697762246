"""Compiling ahead: `rtbg --build-engines` and `engines.build_all`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from apart import pretend
from gpu import needs_rtx, without_gpu
from networks import make_network

import engines.tensorrt_engine as trt
from engines import EngineError, available_models, build_all
from engines.int8 import eight_bits
from engines.spec import find_model
from engines.tensorrt_engine import NO_GPU, Target, import_flavour
from rtbg import cli


@without_gpu
def test_build_engines_says_what_is_missing(capfd):
    assert cli.main(["--build-engines"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rtbg: error: TensorRT cannot run: ") and "NVIDIA" in line


@needs_rtx
def test_build_engines_shows_its_progress(tmp_path, monkeypatch, capfd):
    """With everything real but the GPU; of a small network in place of the shipped ones."""
    path = make_network(tmp_path / "net.onnx")
    path.with_suffix(".json").write_text('{"sizes": [[64, 48], [48, 64]]}')
    monkeypatch.setenv("RTBG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("engines.swap.available_models", lambda: [str(path)])
    target = Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", NO_GPU)
    monkeypatch.setattr("engines.tensorrt_engine.find_target", lambda **_: target)
    assert cli.main(["--build-engines"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "rtbg: 0 of 2 compiled, now net 64x48 f16",
        "rtbg: 1 of 2 compiled, now net 48x64 f16",
        "rtbg: 2 of 2 compiled",
    ]
    assert len(list((tmp_path / "cache").rglob("*.plan"))) == 2
    assert cli.main(["--build-engines", "-q"]) == 0
    assert capfd.readouterr().err == ""


@needs_rtx
def test_build_engines_takes_a_file_and_a_precision(network, cache, monkeypatch, capfd):
    pretend(monkeypatch, NO_GPU)
    assert cli.main(["--build-engines", "--model", str(network), "--precision", "f32"]) == 0
    assert capfd.readouterr().err.splitlines()[0] == "rtbg: 0 of 3 compiled, now net 64x48 f32"
    assert len(list(cache.folder.glob("*.plan"))) == 3
    assert cli.main(["--build-engines", "--model", str(network), "--precision", "int8"]) == 1
    assert capfd.readouterr().err == "rtbg: error: net has no INT8 graph: use precision auto or f16\n"


def test_of_the_shipped_models_those_with_an_int8_graph(cache, monkeypatch):
    """Asked up to the first compilation, which is not begun."""

    class Enough(Exception):
        pass

    def stop(done, total, label):
        told.append((total, label))
        raise Enough

    target = Target(SimpleNamespace(__version__="1"), "tensorrt_rtx", NO_GPU)
    monkeypatch.setattr(trt, "find_target", lambda **_: target)
    told: list[tuple[int, str]] = []
    for precision in ("auto", "int8"):
        with pytest.raises(Enough):
            build_all(precision=precision, progress=stop)
    specs = [find_model(model) for model in available_models()]
    quantised = [spec for spec in specs if eight_bits(spec)]
    assert quantised
    assert [total for total, _ in told] == [sum(len(s.sizes) for s in some) for some in (specs, quantised)]
    assert [label.rpartition(" ")[2] for _, label in told] == ["f16", "int8"]


@needs_rtx
def test_build_all(cache, monkeypatch):
    pretend(monkeypatch, NO_GPU)
    model = available_models()[0]
    spec = find_model(model)
    for _ in range(2):
        told: list[tuple[int, int, str]] = []
        count = build_all([model], progress=lambda *p, t=told: t.append(p))
        assert count == len(spec.sizes) == len(list(cache.folder.glob("*.plan")))
        assert [(done, whole) for done, whole, _ in told] == [(k, count) for k in range(count + 1)]
        assert told[0][2] == "{} {}x{} f16".format(model, *spec.sizes[0])
        assert told[-1][2] == ""
    cancelled = {"calls": 0}
    for plan in cache.folder.glob("*.plan"):
        plan.unlink()
    with pytest.raises(EngineError, match="cancelled"):
        build_all([model], cancelled=lambda: cancelled.update(calls=1) or True)


def test_build_all_says_what_is_missing(monkeypatch):
    def missing(**_):
        raise EngineError("TensorRT cannot run: this machine has no NVIDIA GPU")

    monkeypatch.setattr(trt, "find_target", missing)
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        build_all()
