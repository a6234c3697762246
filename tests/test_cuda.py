"""The NVIDIA GPU, its driver and the TensorRT package that fits it: what is here, and what is said to be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from networks import make_network, one_line

import engines.tensorrt_engine as trt
from engines import EngineError, cuda
from engines.cuda import Gpu, NoGpu
from engines.tensorrt_engine import find_target, import_flavour

ROOT = Path(__file__).parent.parent
ADA, HOPPER = Gpu("NVIDIA GeForce RTX 4090", (8, 9), "13.0"), Gpu("NVIDIA H200", (9, 0), "13.0")


class Driver:
    """A driver library that answers as told: code of cuInit, number of GPUs, of a failing description."""

    def __init__(self, init: int = 0, count: int = 1, described: int = 0) -> None:
        self.init, self.count, self.described = init, count, described

    def cuInit(self, _flags):
        return self.init

    def cuDeviceGetCount(self, out):
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out, _index):
        out._obj.value = 0
        return self.described

    def cuDeviceGetName(self, text, _size, _device):
        text.value = b"NVIDIA H200"
        return 0

    def cuDeviceGetAttribute(self, out, which, _device):
        out._obj.value = {75: 9, 76: 0}[which]
        return 0

    def cuDriverGetVersion(self, out):
        out._obj.value = 13010
        return 0


def test_the_driver_describes_its_gpu():
    gpu = cuda.ask_driver(Driver())
    assert (gpu.name, gpu.capability, gpu.sm) == ("NVIDIA H200", (9, 0), 90)
    assert gpu.driver.startswith("13.1")


@pytest.mark.parametrize(
    ("driver", "missing", "says"),
    [
        (Driver(init=100), False, "shows no GPU"),
        (Driver(count=0), False, "CUDA_VISIBLE_DEVICES"),
        (Driver(init=35), True, "cuInit: 35"),
        (Driver(described=999), True, "error 999"),
    ],
)
def test_a_driver_without_a_gpu(driver, missing, says):
    with pytest.raises(NoGpu) as info:
        cuda.ask_driver(driver)
    assert says in one_line(info)
    assert info.value.driver is missing


def test_a_card_without_its_driver(tmp_path):
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "c").mkdir()
    assert not cuda._has_nvidia_card(tmp_path)
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert cuda._has_nvidia_card(tmp_path)


def here(monkeypatch, gpu: Gpu | NoGpu, *installed: str) -> None:
    def probe() -> Gpu:
        if isinstance(gpu, NoGpu):
            raise gpu
        return gpu

    monkeypatch.setattr(trt, "probe", probe)
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: name in installed or None)


@pytest.mark.parametrize(
    ("gpu", "installed", "says", "silent"),
    [
        (NoGpu("no GPU here", driver=False), (), ["no GPU here", "rtbg[rtx]", "rtbg[tensorrt]"], []),
        (NoGpu("no GPU here", driver=False), ("tensorrt_rtx",), ["no GPU here"], ["pip install"]),
        (NoGpu("its driver is missing", driver=True), ("tensorrt",), ["driver is missing"], ["pip install"]),
        (ADA, (), ["TensorRT-RTX is not installed: pip install 'rtbg[rtx]'"], ["GPU", "rtbg[tensorrt]"]),
        (HOPPER, (), ["TensorRT is not installed: pip install 'rtbg[tensorrt]'"], ["rtbg[rtx]"]),
    ],
)
def test_which_of_the_three_is_missing(gpu, installed, says, silent, monkeypatch):
    here(monkeypatch, gpu, *installed)
    with pytest.raises(EngineError) as info:
        find_target()
    text = one_line(info)
    assert all(s in text for s in says)
    assert not any(s in text for s in silent)


def test_the_package_that_fits_the_gpu(monkeypatch, caplog):
    monkeypatch.setattr(trt, "import_flavour", lambda name: name)
    for gpu, installed, flavour in (
        (ADA, ("tensorrt", "tensorrt_rtx"), "tensorrt_rtx"),
        (ADA, ("tensorrt",), "tensorrt"),
        (HOPPER, ("tensorrt", "tensorrt_rtx"), "tensorrt"),
    ):
        here(monkeypatch, gpu, *installed)
        assert find_target(strict=True).flavour == flavour
    assert not caplog.records
    here(monkeypatch, HOPPER, "tensorrt_rtx")
    with pytest.raises(EngineError, match=r"does not serve the NVIDIA H200 \(sm_90\).*rtbg\[tensorrt\]"):
        find_target(strict=True)
    assert find_target().flavour == "tensorrt_rtx"
    assert "trying all the same" in caplog.text


def test_a_broken_package(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"libnvinfer.*--force-reinstall tensorrt"):
        import_flavour("tensorrt")


def test_without_a_gpu_tensorrt_is_never_touched(tmp_path):
    """It would crash the process: so this runs in one of its own. Where a GPU is, it is hidden."""
    code = (
        "import sys, engines; from engines import EngineError, load\n"
        "try: load(sys.argv[1], engine='tensorrt')\n"
        "except EngineError as exc: print(exc)\n"
        "e = load(sys.argv[1]); print(e.device)\n"
        "print([m for m in ('tensorrt', 'tensorrt_rtx', 'torch', 'onnx') if m in sys.modules])"
    )
    path = make_network(tmp_path / "net.onnx")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "RTBG_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    refused, device, loaded = done.stdout.splitlines()
    assert refused.startswith("TensorRT cannot run: ")
    assert "GPU" in refused
    assert device.startswith("OpenVINO CPU ")
    assert loaded == "[]"
    assert done.stderr == ""


def test_cuda_errors_are_ours():
    pytest.importorskip("cuda.bindings")
    from cuda.bindings import runtime

    with pytest.raises(EngineError, match="no CUDA-capable device") as info:
        cuda.result(runtime, "cudaMalloc", (runtime.cudaError_t.cudaErrorNoDevice, None))
    one_line(info)
    assert cuda.result(runtime, "cudaMalloc", (runtime.cudaError_t.cudaSuccess, 7)) == 7


def test_cuda_bindings_missing(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        cuda.import_runtime()
