"""The NVIDIA GPU of this machine: what it is, found without any CUDA library, and buffers and a stream on it.

`probe` asks the driver's own library and nothing else: TensorRT crashes the process where there is no driver, so it
is only touched after this has found one. The rest uses cuda-bindings (`pip install cuda-bindings`), imported on use.
Used by `engines.tensorrt_engine`, `engines.torch_engine` and `engines.load`.
Memory bound: what the buffers asked for hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError, import_error
from engines.spec import Array

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """A GPU and its driver. capability: (9, 0) for sm_90. driver: CUDA version and, where known, the driver's own."""

    name: str
    capability: tuple[int, int]
    driver: str

    @property
    def sm(self) -> int:
        """The capability as one number: 90."""
        return 10 * self.capability[0] + self.capability[1]


class NoGpu(EngineError):
    """There is no GPU to use; `driver` tells whether it is the driver that is missing."""

    def __init__(self, message: str, *, driver: bool) -> None:
        super().__init__(message)
        self.driver = driver


@lru_cache(maxsize=1)
def probe() -> Gpu:
    """The first GPU that the driver shows to this process. Raises NoGpu: no GPU, no driver, or one that fails.

    Asked once per process (a failure is asked again): initialising the driver takes a tenth of a second."""
    names = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
    for name in names:
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        if _has_nvidia_card():
            raise NoGpu(
                "this machine has an NVIDIA GPU without its driver: install it (nvidia.com/drivers)", driver=True
            )
        raise NoGpu("this machine has no NVIDIA GPU, or its driver is missing", driver=False)
    return ask_driver(library)


def ask_driver(library: Any) -> Gpu:
    """The first GPU of a loaded driver library (libcuda). Raises NoGpu."""
    code = int(library.cuInit(0))
    if code == _NO_DEVICE:
        raise NoGpu("the NVIDIA driver shows no GPU to this process: see CUDA_VISIBLE_DEVICES", driver=False)
    if code:
        raise NoGpu(f"the NVIDIA driver does not start (cuInit: {code}): install it anew", driver=True)
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise NoGpu("the NVIDIA driver shows no GPU to this process: see CUDA_VISIBLE_DEVICES", driver=False)
    failed = (
        library.cuDeviceGet(ctypes.byref(device), 0)
        or library.cuDeviceGetName(name, len(name), device)
        or library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or library.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        raise NoGpu(f"the NVIDIA driver does not describe its GPU (error {failed}): install it anew", driver=True)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    own = _driver_version()
    driver = f"{cuda} ({own})" if own else cuda
    return Gpu(name.value.decode("utf-8", "replace"), (major.value, minor.value), driver)


def _driver_version() -> str:
    """`580.95.05`; empty where the driver's management library does not say."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if library.nvmlInit_v2():
            return ""
        known = library.nvmlSystemGetDriverVersion(text, len(text)) == 0
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return ""
    return text.value.decode("ascii", "replace") if known else ""


def _has_nvidia_card(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the PCI bus shows a display or 3D controller of NVIDIA's; Linux only, False elsewhere."""
    for device in devices.glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
            if vendor == "0x10de" and kind.startswith("0x03"):
                return True
    return False


def import_runtime() -> Any:
    """`cuda.bindings.runtime`. Raises EngineError with the pip command."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as exc:
        missing = isinstance(exc, ModuleNotFoundError) and (exc.name or "").partition(".")[0] == "cuda"
        if missing:
            raise EngineError("cuda-bindings is not installed: pip install cuda-bindings") from exc
        raise import_error("cuda-bindings", "cuda-bindings", "pip install cuda-bindings", exc) from exc


class Device:
    """A stream of its own on the GPU, the buffers made on it and the graphs captured from it. One thread at a time.

    Everything is freed by `close`; page-locked arrays given out stay readable, as ordinary memory.
    Raises EngineError for every CUDA call that fails."""

    def __init__(self) -> None:
        self._cuda: Any = import_runtime()
        self._device: list[Any] = []
        self._pinned: list[Array] = []
        self._graphs: list[Any] = []
        # Non-blocking: does not wait for, nor hold up, what others do on the default stream.
        self.stream: Any = self._do("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    def allocate(self, size: int) -> int:
        """Device memory of that many bytes; its address."""
        address = self._do("cudaMalloc", max(1, size))
        self._device.append(address)
        return int(address)

    def pinned(self, shape: Sequence[int], dtype: Any) -> Array:
        """A page-locked array of zeros, copied from and to without waiting."""
        array: Array = np.zeros(tuple(shape), dtype)
        self._do("cudaHostRegister", array.ctypes.data, max(1, array.nbytes), 0)
        self._pinned.append(array)
        return array

    def upload(self, target: int, array: Array) -> None:
        """Queues a copy to device memory; the array is read later."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", target, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: Array, source: int) -> None:
        """Queues a copy from device memory; the array is filled by the next `wait`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", array.ctypes.data, source, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Until everything queued is done."""
        self._do("cudaStreamSynchronize", self.stream)

    def capture(self, queue: Callable[[], None]) -> Any:
        """What `queue` puts on the stream, as a graph for `launch`. Raises EngineError where it cannot be captured;
        the stream is then as usable as before."""
        # Of this thread only: another thread's allocations must not break the capture.
        self._do(
            "cudaStreamBeginCapture", self.stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            queue()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self.stream)
            self._cuda.cudaGetLastError()  # a capture that failed leaves its error behind
            raise
        graph = self._do("cudaStreamEndCapture", self.stream)
        try:
            ready = self._do("cudaGraphInstantiate", graph, 0)
        finally:
            self._cuda.cudaGraphDestroy(graph)
        self._graphs.append(ready)
        return ready

    def launch(self, graph: Any) -> None:
        """Queues a captured graph."""
        self._do("cudaGraphLaunch", graph, self.stream)

    def close(self) -> None:
        """Frees everything. May be called twice."""
        if self.stream is None:
            return
        self._cuda.cudaStreamSynchronize(self.stream)
        for graph in self._graphs:
            self._cuda.cudaGraphExecDestroy(graph)
        for array in self._pinned:
            self._cuda.cudaHostUnregister(array.ctypes.data)
        for address in self._device:
            self._cuda.cudaFree(address)
        self._cuda.cudaStreamDestroy(self.stream)
        self._graphs, self._pinned, self._device, self.stream = [], [], [], None

    def _do(self, name: str, *args: Any) -> Any:
        return result(self._cuda, name, getattr(self._cuda, name)(*args))


def result(cuda: Any, name: str, answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings gave beside its error code. Raises EngineError for an error."""
    error, *rest = answer
    if int(error) != 0:
        _, text = cuda.cudaGetErrorString(error)
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        raise EngineError(f"{name} failed on the GPU ({said}): try the engine openvino")
    return rest[0] if rest else None
