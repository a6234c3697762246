"""OpenVINO on the CPU: the default engine, the fastest measured there.

Memory bound: per size in use, one compiled network with its activations, one input and one output.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.errors import EngineError, import_error, short_reason
from engines.machine import cache_dir
from engines.spec import Array, ModelSpec, Port, check_frame, fit_signature

logger = logging.getLogger("engines")

# What OpenVINO calls each in its list of capabilities; the names are also those of its element types.
_PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


@dataclass(frozen=True)
class _Compiled:
    """The network for one size; `frame` and `alpha` are the memory that `request` reads and writes."""

    request: Any
    frame: Array
    alpha: Array


class OpenVINOEngine:
    """Implements `engines.Engine`. One thread at a time.

    threads: of the inference, at least 1. precision: "f32", "bf16", "f16", or "auto": bf16 where the CPU
    computes in it natively, else f32. (Left alone OpenVINO chooses by itself and says nothing.)
    Raises EngineError where OpenVINO is missing, the file cannot be read, or the CPU lacks the precision."""

    name = "openvino"

    def __init__(self, spec: ModelSpec, *, threads: int, precision: str = "f32") -> None:
        try:
            import openvino as ov
            from openvino.frontend import FrontEndManager
        except (ImportError, OSError) as exc:
            raise import_error("OpenVINO", "openvino", "pip install openvino", exc) from exc
        self._ov: Any = ov
        self._threads = threads
        try:
            self._core: Any = ov.Core()
            able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except Exception as exc:
            raise EngineError(
                f"OpenVINO does not run on this CPU ({short_reason(exc)}): use the engine onnxruntime"
            ) from exc
        self._precision = _choose(precision, able)
        self.device = f"OpenVINO CPU {self._precision}"
        try:
            # Not Core.read_model: that offers a broken file to every other frontend, which complain on stderr.
            frontend = FrontEndManager().load_by_framework("onnx")
            self._model: Any = frontend.convert(frontend.load(str(spec.path)))
        except Exception as exc:
            raise EngineError(
                f"OpenVINO cannot read {spec.path} ({short_reason(exc)}): check that it is a whole ONNX file"
            ) from exc
        self.spec = fit_signature(spec, _ports(self._model.inputs), _ports(self._model.outputs))
        self._compiled: dict[tuple[int, int], _Compiled] = {}

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `engines.Engine.infer`. The first call with a size compiles the network for it."""
        if self._model is None:
            raise EngineError("this engine is closed: load the model again")
        frame = check_frame(self.spec, inputs)
        height, width = frame.shape[2:]
        compiled = self._compiled.get((height, width))
        if compiled is None:
            compiled = self._compiled[height, width] = self._compile(height, width)
        # Into the network's own memory: a copy of 0.2 MB, and the caller's array is never held.
        np.copyto(compiled.frame, frame)
        try:
            compiled.request.infer(share_outputs=True)
        except Exception as exc:
            raise EngineError(f"{self.device} failed ({short_reason(exc)}): try the engine onnxruntime") from exc
        return {self.spec.outputs[0]: compiled.alpha}

    def close(self) -> None:
        """Frees the networks. May be called twice."""
        self._compiled.clear()
        self._model = self._core = None

    def _compile(self, height: int, width: int) -> _Compiled:
        ov, what = self._ov, f"{self.spec.path} at {width}x{height}"
        wanted = getattr(ov.Type, self._precision)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": wanted,
            # The machine also holds a video call, decodes and encodes: threads nailed to cores, or cores kept
            # for us, would wait for those and make them wait.
            "ENABLE_CPU_PINNING": False,
            "ENABLE_CPU_RESERVATION": False,
        }
        try:
            model = self._model.clone()
            model.reshape([1, 4, height, width])
            network = self._compile_cached(model, config)
            if tuple(network.output(0).shape) != (1, 1, height, width):
                raise EngineError(f"{what} gives {tuple(network.output(0).shape)}: it must give (1, 1, H, W)")
            got = network.get_property("INFERENCE_PRECISION_HINT")
            request = network.create_infer_request()
            frame = np.zeros((1, 4, height, width), np.float32)
            alpha = np.zeros((1, 1, height, width), np.float32)
            request.set_input_tensor(ov.Tensor(frame, shared_memory=True))
            request.set_output_tensor(ov.Tensor(alpha, shared_memory=True))
        except EngineError:
            raise
        except Exception as exc:
            raise EngineError(
                f"OpenVINO cannot compile {what} ({short_reason(exc)}): try the engine onnxruntime"
            ) from exc
        if got != wanted:
            self.device = f"OpenVINO CPU {got.get_type_name()}"
            logger.warning("OpenVINO computes in %s where %s was asked for", got.get_type_name(), self._precision)
        return _Compiled(request, frame, alpha)

    def _compile_cached(self, model: Any, config: dict[str, Any]) -> Any:
        """Compiles by way of the cache folder; a folder that fails (full, vanished) costs time and nothing else."""
        folder = cache_dir("openvino")
        if folder is not None:
            try:
                return self._core.compile_model(model, "CPU", config | {"CACHE_DIR": str(folder)})
            except Exception as exc:
                logger.info("OpenVINO's cache in %s failed (%s): compiling without it", folder, short_reason(exc))
        return self._core.compile_model(model, "CPU", config)


def _choose(precision: str, able: Sequence[str]) -> str:
    """The precision to compute in, one of `_PRECISIONS`; `able` are OpenVINO's names for what the CPU can do."""
    if precision == "auto":
        return "bf16" if "BF16" in able else "f32"
    if precision not in _PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}: OpenVINO takes auto, {', '.join(_PRECISIONS)}")
    if _PRECISIONS[precision] not in able:
        raise EngineError(f"this CPU does not compute in {precision}: use precision auto or f32")
    return precision


def _ports(ports: Any) -> list[Port]:
    names = {"f32": "float32", "f16": "float16", "f64": "float64"}
    found = []
    for port in ports:
        dtype = port.element_type.get_type_name()
        shape = port.partial_shape
        sides = () if shape.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in shape)
        name = min(port.names, default="unnamed")
        found.append(Port(name, names.get(dtype, dtype), sides))
    return found
