"""OpenVINO on the CPU: the default engine, the fastest measured there.

Memory bound: per set of input shapes in use, one compiled network with its activations, inputs and outputs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.errors import EngineError, import_error, short_reason
from engines.machine import cache_dir
from engines.spec import Array, ModelSpec, Port

logger = logging.getLogger("engines")

# What OpenVINO calls each in its list of capabilities; the names are also those of its element types.
_PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


@dataclass(frozen=True)
class _Compiled:
    """The network for one set of shapes; `feeds` and `results` are the memory that `request` reads and writes.

    A result is None where its shape is known only after a run."""

    request: Any
    feeds: dict[str, Array]
    results: dict[str, Array | None]


def import_openvino() -> Any:
    """The library, without its telemetry: importing it would otherwise report each start to a server. OpenVINO
    replaces a telemetry package that is missing by a stub of its own. Raises EngineError with the pip command."""
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino as ov
        import openvino.frontend
    except (ImportError, OSError) as exc:
        raise import_error("OpenVINO", "openvino", "pip install openvino", exc) from exc
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
    return ov


class OpenVINORunner:
    """Implements `engines.runner.Runner`. One thread at a time.

    threads: of the inference, at least 1. precision: "f32", "bf16", "f16", or "auto": bf16 where the CPU
    computes in it natively, else f32. (Left alone OpenVINO chooses by itself and says nothing.)
    Raises EngineError where OpenVINO is missing, the file cannot be read, or the CPU lacks the precision."""

    name = "openvino"

    def __init__(self, spec: ModelSpec, *, threads: int, precision: str = "f32") -> None:
        self._ov = ov = import_openvino()
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
            frontend = ov.frontend.FrontEndManager().load_by_framework("onnx")
            self._model: Any = frontend.convert(frontend.load(str(spec.path)))
        except Exception as exc:
            raise EngineError(
                f"OpenVINO cannot read {spec.path} ({short_reason(exc)}): check that it is a whole ONNX file"
            ) from exc
        self._path = spec.path
        self.inputs, self.outputs = _ports(self._model.inputs), _ports(self._model.outputs)
        self._compiled: dict[tuple[tuple[int, ...], ...], _Compiled] = {}

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """See `engines.runner.Runner.run`."""
        if self._model is None:
            raise EngineError("this engine is closed: load the model again")
        shapes = tuple(feeds[port.name].shape for port in self.inputs)
        compiled = self._compiled.get(shapes)
        if compiled is None:
            compiled = self._compiled[shapes] = self._compile(shapes)
        # Into the network's own memory: a copy of 0.2 MB, and the caller's array is never held.
        for name, buffer in compiled.feeds.items():
            np.copyto(buffer, feeds[name])
        try:
            compiled.request.infer(share_outputs=True)
            return [self._result(compiled, name) for name in wanted]
        except Exception as exc:
            raise EngineError(f"{self.device} failed ({short_reason(exc)}): try the engine onnxruntime") from exc

    def _result(self, compiled: _Compiled, name: str) -> Array:
        result = compiled.results[name]
        if result is None:
            index = list(compiled.results).index(name)
            result = np.array(compiled.request.get_output_tensor(index).data)
        return result

    def close(self) -> None:
        """See `engines.runner.Runner.close`."""
        self._compiled.clear()
        self._model = self._core = None

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> _Compiled:
        ov, what = self._ov, f"{self._path} at {' '.join('x'.join(map(str, s)) for s in shapes)}"
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
            model.reshape({k: list(shape) for k, shape in enumerate(shapes)})
            network = self._compile_cached(model, config)
            got = network.get_property("INFERENCE_PRECISION_HINT")
            request = network.create_infer_request()
            feeds: dict[str, Array] = {}
            results: dict[str, Array | None] = {}
            for k, (port, shape) in enumerate(zip(self.inputs, shapes, strict=True)):
                feeds[port.name] = np.zeros(shape, port.dtype)
                request.set_input_tensor(k, ov.Tensor(feeds[port.name], shared_memory=True))
            for k, (port, output) in enumerate(zip(self.outputs, network.outputs, strict=True)):
                results[port.name] = None
                if output.partial_shape.is_static and 0 not in output.shape:
                    buffer: Array = np.zeros(tuple(output.shape), output.element_type.to_dtype())
                    request.set_output_tensor(k, ov.Tensor(buffer, shared_memory=True))
                    results[port.name] = buffer
        except Exception as exc:
            raise EngineError(
                f"OpenVINO cannot compile {what} ({short_reason(exc)}): try the engine onnxruntime"
            ) from exc
        if got != wanted:
            self.device = f"OpenVINO CPU {got.get_type_name()}"
            logger.warning("OpenVINO computes in %s where %s was asked for", got.get_type_name(), self._precision)
        return _Compiled(request, feeds, results)

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


def _ports(ports: Any) -> tuple[Port, ...]:
    names = {"f32": "float32", "f16": "float16", "f64": "float64"}
    found = []
    for port in ports:
        dtype = port.element_type.get_type_name()
        shape = port.partial_shape
        sides = () if shape.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in shape)
        # A tensor may have several names; that of the file's own list is the one its node is called after.
        called = port.node.get_friendly_name().removesuffix("/sink_port_0")
        name = called if called in port.names else min(port.names, default="unnamed")
        found.append(Port(name, names.get(dtype, dtype), sides))
    return tuple(found)
