"""ONNX Runtime on the CPU: the portable second engine, and the reference that others are compared with.

Memory bound: one network with its activations, and the outputs of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.errors import EngineError, import_error, short_reason
from engines.spec import Array, ModelSpec, Port


class OnnxRuntimeRunner:
    """Implements `engines.runner.Runner`. One thread at a time.

    threads: of the inference, at least 1. precision: "f32", or "auto" which is f32: the CPU provider has no
    other that gains. Raises EngineError where ONNX Runtime is missing or refuses the file."""

    name = "onnxruntime"

    def __init__(self, spec: ModelSpec, *, threads: int, precision: str = "f32") -> None:
        if precision not in ("auto", "f32"):
            raise EngineError(f"ONNX Runtime computes in f32 only, not {precision}: use precision auto or f32")
        try:
            import onnxruntime as ort
        except (ImportError, OSError) as exc:
            raise import_error("ONNX Runtime", "onnxruntime", "pip install 'rtbg[onnxruntime]'", exc) from exc
        ort.disable_telemetry_events()  # the Windows build reports its use unless told not to
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what matters comes as an exception; stderr belongs to the application
        # Given a number, ONNX Runtime leaves its threads unpinned.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between two frames would eat the cores that the video call needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session: Any = ort.InferenceSession(str(spec.path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise EngineError(
                f"ONNX Runtime cannot read {spec.path} ({short_reason(exc)}): check that it is a whole ONNX file"
            ) from exc
        self.device = "ONNX Runtime CPU f32"
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """See `engines.runner.Runner.run`."""
        if self._session is None:
            raise EngineError("this engine is closed: load the model again")
        try:
            return list(self._session.run(list(wanted), {k: np.ascontiguousarray(v) for k, v in feeds.items()}))
        except Exception as exc:
            raise EngineError(f"{self.device} failed ({short_reason(exc)}): try the engine openvino") from exc

    def close(self) -> None:
        """See `engines.runner.Runner.close`."""
        self._session = None


def _ports(ports: Any) -> tuple[Port, ...]:
    names = {"float": "float32", "double": "float64"}
    found = []
    for port in ports:
        dtype = port.type.removeprefix("tensor(").removesuffix(")")
        sides = tuple(side if isinstance(side, int) else None for side in port.shape or ())
        found.append(Port(port.name, names.get(dtype, dtype), sides))
    return tuple(found)
