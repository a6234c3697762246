"""Which engine, device and precision `engines.load` takes, and what it says where that is not to be had."""

from __future__ import annotations

import logging
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from networks import ENGINES, SIZES, capabilities, expected, make_network, noise, one_line

import engines
import engines.onnxruntime_engine
from engines import EngineError, available_models, load
from engines.machine import default_threads

pytestmark = pytest.mark.usefixtures("cache_folder_of_its_own", "no_gpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "openvin"}, "tensorrt, openvino, onnxruntime, torch"),
        ({"device": "npu"}, "auto or cpu"),
        ({"engine": "onnxruntime", "device": "mps"}, "only azure, cpu: use one of these"),
        ({"engine": "onnxruntime", "device": "cpu:1"}, "use cpu"),
        ({"engine": "onnxruntime", "device": "azure:"}, "use azure"),
        ({"engine": "onnxruntime", "device": "azure", "precision": "int8"}, "f32"),
        ({"engine": "openvino", "device": "cuda"}, "does not run on the device 'cuda'"),
        ({"threads": 0}, "1 or more"),
        ({"precision": "f8"}, "bf16"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "f32"),
    ],
)
def test_wrong_options(options, says, network):
    with pytest.raises(EngineError) as info:
        load(network, **options)
    assert says in one_line(info)


@pytest.mark.parametrize(
    "device", ["cuda", "CUDA:1", "tensorrt", "dml", "openvino:gpu", "coreml", "migraphx", "webgpu"]
)
def test_devices_that_onnx_runtime_does_not_have(device, network, capfd, recwarn):
    """It says what this package has and which one to install, and never takes the CPU instead."""
    import onnxruntime

    name = device.lower().partition(":")[0]
    here = [p.removesuffix("ExecutionProvider").lower() for p in onnxruntime.get_available_providers()]
    if name in here:
        pytest.skip(f"this package has {name}")
    with pytest.raises(EngineError) as info:
        load(network, engine="onnxruntime", device=device)
    text = one_line(info)
    assert f"no device {name!r} in this package, only {', '.join(here)}: " in text
    package = engines.onnxruntime_engine.PACKAGES.get(name)
    assert text.endswith(f"pip install {package} in place of onnxruntime" if package else "use one of these")
    assert (package is None) == (name == "coreml")  # Apple's is in the plain package for macOS
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


@pytest.mark.parametrize("precision", ["auto", "f32"])
def test_a_device_that_leaves_it_all_to_the_cpu(precision, capfd, recwarn):
    """Azure's runs what is called far away, so nothing of ours; ONNX Runtime goes over to the CPU and says nothing."""
    with pytest.raises(EngineError, match=r"Azure leaves this whole network to the CPU: use the device cpu") as info:
        load(available_models()[0], engine="onnxruntime", device="azure", precision=precision)
    one_line(info)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ({"CUDA": 40}, "ONNX Runtime CUDA"),
        ({"CUDA": 37, "CPU": 3}, "ONNX Runtime CUDA, 3 of 40 operators on the CPU"),
        (None, "ONNX Runtime CUDA, how much of it on the CPU is not told"),
    ],
)
def test_how_much_another_device_takes(taken, says):
    """As packages for such devices would tell it; none of them is here."""

    def part(name, count):
        return SimpleNamespace(ep_name=f"{name}ExecutionProvider", get_nodes=lambda: [None] * count)

    session = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    if taken is not None:
        session.get_provider_graph_assignment_info = lambda: [part(*item) for item in taken.items()]
    describe = engines.onnxruntime_engine._describe
    assert describe(session, "CUDAExecutionProvider") == says
    with pytest.raises(EngineError, match="Dml does not start here"):
        describe(session, "DmlExecutionProvider")


def test_onnx_runtimes_own_names_of_devices(network):
    for device in ("auto", "cpu", "CPU"):
        loaded = load(network, engine="onnxruntime", device=device)
        assert loaded.device == "ONNX Runtime CPU f32"
        assert loaded._runner._session.get_providers() == ["CPUExecutionProvider"]


def test_auto_takes_openvino(network, caplog):
    assert load(network).name == "openvino"
    assert load(network, device="CPU").device.startswith("OpenVINO CPU ")
    assert not caplog.records


def test_auto_says_why_it_skipped(network, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING, "engines"):
        loaded = load(network)
    assert loaded.device == "ONNX Runtime CPU f32"
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("engines", logging.WARNING)
    assert record.getMessage() == (
        "ONNX Runtime CPU f32 runs the network, because: OpenVINO is not installed: pip install openvino"
    )


def test_auto_takes_the_next_for_an_operator_the_first_lacks(network, monkeypatch, caplog):
    def refuse(*_args, **_options):
        raise EngineError("OpenVINO cannot read it (no rule for Foo)")

    monkeypatch.setitem(engines._ENGINES, "openvino", refuse)
    assert load(network).name == "onnxruntime"
    assert "no rule for Foo" in caplog.text


def test_a_file_at_fault_is_not_offered_twice(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(engines._ENGINES, "onnxruntime", None)  # calling it would be a TypeError
    with pytest.raises(EngineError, match="another kind"):
        load(make_network(tmp_path / "other.onnx", channels=5))
    assert not caplog.records


@pytest.mark.parametrize(
    ("engine", "command"), [("openvino", "pip install openvino"), ("onnxruntime", "pip install 'rtbg[onnxruntime]'")]
)
def test_missing_package(engine, command, network, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(EngineError) as info:
        load(network, engine=engine)
    assert one_line(info).endswith(f"is not installed: {command}")


def test_no_engine_at_all(network, monkeypatch):
    for engine in [*ENGINES, "torch"]:
        monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(EngineError) as info:
        load(network)
    text = one_line(info)
    assert "pip install openvino" in text
    assert "pip install 'rtbg[onnxruntime]'" in text
    assert "pip install 'rtbg[torch]'" in text


def test_broken_package(network, monkeypatch, tmp_path):
    """Installed, but its library does not load: another message than for a missing one."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(EngineError, match=r"libfoo.*--force-reinstall onnxruntime") as info:
        load(network, engine="onnxruntime")
    one_line(info)


@pytest.mark.parametrize(("precision", "capability"), [("bf16", "BF16"), ("f16", "FP16")])
def test_low_precision(precision, capability, network, caplog):
    if capability not in capabilities():
        with pytest.raises(EngineError, match="precision auto or f32"):
            load(network, engine="openvino", precision=precision)
        return
    frame = noise(SIZES[0])
    loaded = load(network, engine="openvino", precision=precision)
    alpha = loaded.infer({"frame": frame})["alpha"]
    assert loaded.device == f"OpenVINO CPU {precision}"
    assert alpha.dtype == np.float32
    np.testing.assert_allclose(alpha, expected(frame), atol=2e-2)
    assert np.abs(alpha - expected(frame)).max() > 1e-5  # it really is another precision
    assert not caplog.records


def test_auto_precision_is_what_the_cpu_has(network):
    assert load(network).device == f"OpenVINO CPU {'bf16' if 'BF16' in capabilities() else 'f32'}"


def test_default_threads(monkeypatch):
    for cores, threads in ((1, 1), (3, 3), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, n=cores: set(range(n)), raising=False)
        assert default_threads() == threads
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1
