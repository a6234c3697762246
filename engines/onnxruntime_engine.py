"""ONNX Runtime: on the CPU the portable second engine, and the reference that others are compared with; on other
devices what the installed package of it can do, where that is asked for.

Memory bound: one network with its activations, and the outputs of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.errors import EngineError, import_error, short_reason
from engines.spec import Array, ModelSpec, Port

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
# The packages to install in place of `onnxruntime` for a device; they exclude one another.
PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "dml": "onnxruntime-directml",
    "openvino": "onnxruntime-openvino",
    "migraphx": "onnxruntime-migraphx",
    "webgpu": "onnxruntime-webgpu",
}


class OnnxRuntimeRunner:
    """Implements `engines.runner.Runner`. One thread at a time.

    threads: of the inference on the CPU, at least 1. precision: "f32", which "auto" is too: the graph's own.
    device: "auto", which is the CPU, or one of the package's execution providers: "cpu", "cuda", "dml", "coreml",
    "openvino" and so on; which of several after a colon: "cuda:1", "openvino:gpu". It computes what it can, ONNX
    Runtime's CPU the rest, and `device` says how much that is, or that this version does not tell.
    Raises EngineError where ONNX Runtime is missing or refuses the file, and for a device that it does not have, that
    does not start or that is known to leave the whole network to the CPU."""

    name = "onnxruntime"

    def __init__(self, spec: ModelSpec, *, threads: int, precision: str = "f32", device: str = "auto") -> None:
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
        provider, settings = _find_provider(ort, device)
        if provider != CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            # Its own fallback would go over to the CPU without a word, here or in the middle of a stream.
            self._session: Any = ort.InferenceSession(
                str(spec.path), options, providers=[(provider, settings)], enable_fallback=0
            )
        except Exception as exc:
            hint = "check that it is a whole ONNX file" if provider == CPU else "use the device cpu"
            raise EngineError(f"ONNX Runtime cannot read {spec.path} ({short_reason(exc)}): {hint}") from exc
        self.device = "ONNX Runtime CPU f32" if provider == CPU else _describe(self._session, provider)
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


def _find_provider(ort: Any, device: str) -> tuple[str, dict[str, str]]:
    """(the execution provider for a device, its options). Raises EngineError for one that is not here."""
    wanted, colon, which = ("cpu" if device == "auto" else device).partition(":")
    here = {name.removesuffix(_SUFFIX).lower(): name for name in ort.get_available_providers()}
    if wanted not in here:
        package = PACKAGES.get(wanted)
        get = f"pip install {package} in place of onnxruntime" if package else "use one of these"
        raise EngineError(f"ONNX Runtime has no device {wanted!r} in this package, only {', '.join(here)}: {get}")
    if colon and (wanted == "cpu" or not which.isalnum()):
        raise EngineError(f"ONNX Runtime has no device {device!r}: use {wanted}")
    if not colon:
        return here[wanted], {}
    return here[wanted], {"device_type": which.upper()} if wanted == "openvino" else {"device_id": which}


def _describe(session: Any, provider: str) -> str:
    """What computes a network that was opened for a provider other than the CPU. Raises EngineError where that is the
    CPU alone."""
    title = provider.removesuffix(_SUFFIX)
    if provider not in session.get_providers():
        raise EngineError(f"ONNX Runtime's {title} does not start here: check its driver and libraries")
    if not hasattr(session, "get_provider_graph_assignment_info"):  # some packages are of older versions
        return f"ONNX Runtime {title}, how much of it on the CPU is not told"
    counts = {CPU: 0, provider: 0}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    whole, left = sum(counts.values()), counts[CPU]
    if left == whole:
        raise EngineError(f"ONNX Runtime's {title} leaves this whole network to the CPU: use the device cpu")
    return f"ONNX Runtime {title}" + (f", {left} of {whole} operators on the CPU" if left else "")


def _ports(ports: Any) -> tuple[Port, ...]:
    names = {"float": "float32", "double": "float64"}
    found = []
    for port in ports:
        dtype = port.type.removeprefix("tensor(").removesuffix(")")
        sides = tuple(side if isinstance(side, int) else None for side in port.shape or ())
        found.append(Port(port.name, names.get(dtype, dtype), sides))
    return tuple(found)
