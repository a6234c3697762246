"""PyTorch on an NVIDIA GPU (CUDA), on a Mac's (MPS) or on the CPU: the way to take on a GPU without TensorRT.

Runs the same ONNX file as the other engines, translated by `engines.torch_graph`; no training code is needed. On CUDA
in FP16, with page-locked memory, a stream of its own and a captured graph per set of input shapes.
Memory bound: the weights, and per set of input shapes in use its inputs, outputs and, on CUDA, activations.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.cuda import NoGpu, probe
from engines.errors import EngineError, import_error, short_reason
from engines.half import folded, import_onnx, port_of
from engines.machine import calm_openmp
from engines.spec import Array, ModelSpec
from engines.torch_graph import Network

logger = logging.getLogger("engines")

# For each kind of device what it computes in, the best first.
PRECISIONS = {"cuda": ("f16", "f32", "bf16"), "mps": ("f32", "f16"), "cpu": ("f32", "bf16")}
_DTYPES = {"f16": "float16", "f32": "float32", "bf16": "bfloat16"}
TITLES = {"cuda": "CUDA", "mps": "MPS", "cpu": "CPU"}


def import_torch() -> Any:
    """The `torch` package. Raises EngineError with the pip command."""
    if "torch" not in sys.modules:
        calm_openmp()
    try:
        import torch
    except (ImportError, OSError) as exc:
        raise import_error("PyTorch", "torch", "pip install 'rtbg[torch]'", exc) from exc
    return torch


def worth_asking() -> bool:
    """Whether torch is installed and may have a GPU here; without importing it, which takes seconds."""
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        probe()
    except NoGpu:
        return False
    return True


def find_device(torch: Any, device: str = "auto") -> Any:
    """The torch.device for "auto" (CUDA, MPS, then CPU), "gpu" (CUDA or MPS), "cpu", "mps", "cuda" or "cuda:1".
    Raises EngineError for one that is not here."""
    wanted, _, index = device.partition(":")
    if wanted not in ("auto", "gpu", *PRECISIONS) or (index and not (wanted == "cuda" and index.isdigit())):
        raise EngineError(f"torch has no device {device!r}: use auto, cuda, cuda:1, mps or cpu")
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count():
        return torch.device("cuda", int(index or 0))
    if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if wanted in ("auto", "cpu"):
        return torch.device("cpu")
    raise EngineError(
        f"torch {torch.__version__} shows no {device} here: use the device cpu, or install a build of torch with it"
    )


class TorchRunner:
    """Implements `engines.runner.Runner`. One thread at a time.

    threads: on the CPU. precision: "auto": f16 on CUDA, else f32. device: see `find_device`.
    Raises EngineError: torch, onnx or the device missing, a file that cannot be read, an operator that is not known."""

    name = "torch"

    def __init__(self, spec: ModelSpec, *, threads: int, precision: str = "auto", device: str = "auto") -> None:
        self._torch = torch = import_torch()
        onnx = import_onnx()
        self.where = find_device(torch, device)  # the torch.device of the network
        kind = self.where.type
        self.precision = PRECISIONS[kind][0] if precision == "auto" else precision
        if self.precision not in PRECISIONS[kind]:
            known = ", ".join(PRECISIONS[kind])
            raise EngineError(f"torch does not compute in {precision} on {TITLES[kind]} here: use precision {known}")
        try:
            model = onnx.load(str(spec.path))
            folded(model)
            constants = {t.name for t in model.graph.initializer}
            self.inputs = tuple(port_of(onnx, i) for i in model.graph.input if i.name not in constants)
            self.outputs = tuple(port_of(onnx, o) for o in model.graph.output)
            if not model.graph.node:
                raise ValueError("it holds no graph")
        except Exception as exc:
            raise EngineError(
                f"onnx cannot read {spec.path} ({short_reason(exc)}): check that it is a whole ONNX file"
            ) from exc
        self._threads = threads
        self._dtype = getattr(torch, _DTYPES[self.precision])
        name = torch.cuda.get_device_name(self.where) if kind == "cuda" else ""
        self.device = " ".join(filter(None, ("torch", TITLES[kind], name, self.precision)))
        try:
            self.network: Any = Network(model, device=self.where, dtype=self._dtype)
            self._stream: Any = torch.cuda.Stream(self.where) if kind == "cuda" else None
        except EngineError:
            raise
        except Exception as exc:
            raise EngineError(
                f"torch cannot take {spec.path} ({short_reason(exc)}): use the engine openvino or onnxruntime"
            ) from exc
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}

    def tensors(self, frame: Any) -> Any:
        """float32 (1, 4, H, W) on `where` to float32 (1, 1, H, W), for a network of one input and output."""
        out = self.network({self.inputs[0].name: self._put(frame)})
        return out[self.outputs[0].name].float()

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """See `engines.runner.Runner.run`."""
        if self.network is None:
            raise EngineError("this engine is closed: load the model again")
        given = {p.name: np.ascontiguousarray(feeds[p.name]) for p in self.inputs}
        try:
            with self._torch.inference_mode():
                if self._stream is not None:
                    return self._run_cuda(given, wanted)
                return self._run(given, wanted)
        except Exception as exc:
            raise EngineError(f"{self.device} failed ({short_reason(exc)}): try the engine openvino") from exc

    def close(self) -> None:
        """See `engines.runner.Runner.close`."""
        self._captured.clear()
        self.network = None

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        torch = self._torch
        before = torch.get_num_threads()
        if self.where.type == "cpu" and before != self._threads:
            torch.set_num_threads(self._threads)  # of the whole process: given back below
        try:
            out = self.network({n: self._put(torch.from_numpy(v)) for n, v in feeds.items()})
            # A copy where torch would share: an output may be an input handed through.
            return [out[n].float().cpu().contiguous().numpy().copy() for n in wanted]
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    def _put(self, tensor: Any) -> Any:
        memory = {"memory_format": self._torch.channels_last} if tensor.ndim == 4 else {}
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.where, dtype, **memory)

    def _run_cuda(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        shapes = tuple(v.shape for v in feeds.values())
        with self._torch.cuda.stream(self._stream):
            captured = self._captured.get(shapes)
            if captured is None:
                captured = self._captured[shapes] = _Captured(self._torch, self.network, self._put, feeds)
            results = captured.run(feeds)
            self._stream.synchronize()
        return [results[n].numpy() for n in wanted]


class _Captured:
    """The network at one set of shapes on the current stream, replayed as a CUDA graph where that can be captured."""

    def __init__(self, torch: Any, network: Network, put: Any, feeds: Mapping[str, Array]) -> None:
        self._network = network
        self._pinned = {n: torch.from_numpy(v.copy()).pin_memory() for n, v in feeds.items()}
        self._inputs = {n: put(t) for n, t in self._pinned.items()}
        for _ in range(3):  # cuDNN chooses its kernels, which a capture must not see
            outputs = network(self._inputs)
        torch.cuda.current_stream().synchronize()
        self._graph: Any = None
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                outputs = network(self._inputs)
            self._graph = graph
        except RuntimeError as exc:
            logger.info("no CUDA graph (%s): running without", short_reason(exc))
        self._outputs = outputs
        self._results = {n: torch.empty(t.shape, dtype=torch.float32, pin_memory=True) for n, t in outputs.items()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Queues everything; the results are whole when the stream has been waited for."""
        for name, value in feeds.items():
            np.copyto(self._pinned[name].numpy(), value)
            self._inputs[name].copy_(self._pinned[name], non_blocking=True)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._outputs = self._network(self._inputs)
        for name, tensor in self._outputs.items():
            self._results[name].copy_(tensor, non_blocking=True)
        return self._results
