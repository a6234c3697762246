"""Runs a compiled network on this machine; knows nothing of video.

    engine = engines.load("balanced")                      # a shipped model, the first engine that works here
    alpha = engine.infer({"frame": frame})["alpha"]        # float32 (1, 4, H, W) to (1, 1, H, W), both 0..1

    load -> runner (a library opens the file) -> adapter (what its tensors mean, by signature) = Engine
              └ with an NVIDIA GPU: the next best runner at once, TensorRT when it has compiled (`engines.swap`)

Importing this loads no engine's library; `load` does. Used by `rtbg` and `benchmarks`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from engines import int8
from engines.errors import EngineError, ModelError
from engines.machine import default_threads
from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.runner import Runner
from engines.signature import adapt
from engines.spec import Array, ModelSpec, available_models, find_model, nearest_size
from engines.swap import build_all, with_tensorrt
from engines.tensorrt_engine import TensorRTRunner
from engines.torch_engine import TorchRunner, worth_asking

__all__ = [
    "Engine",
    "EngineError",
    "ModelSpec",
    "StatefulEngine",
    "available_models",
    "build_all",
    "load",
    "nearest_size",
]

logger = logging.getLogger("engines")


@runtime_checkable
class Engine(Protocol):
    """A network, ready to run. One thread at a time, any thread. Whoever loads it closes it."""

    spec: ModelSpec

    @property
    def name(self) -> str:
        """As `load` takes it: "openvino"."""

    @property
    def device(self) -> str:
        """What really computes, for people: "OpenVINO CPU bf16"."""

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`{"frame": float32 (1, 4, H, W)}` to `{"alpha": float32 (1, 1, H, W)}`, see `ModelSpec`.

        The input is read before this returns and never kept. The output may be a buffer that the next `infer`
        overwrites: copy what is to outlive it. Values are not checked, neither way: that is the caller's to do (NaN
        in need not show as NaN out: OpenVINO makes 0 of it on the way). The first call with a size compiles.
        Raises EngineError for a wrong name, shape or dtype, when the network fails, and after `close`."""

    def close(self) -> None:
        """Frees what is held; outputs given out stay readable. May be called twice."""


@runtime_checkable
class StatefulEngine(Engine, Protocol):
    """An engine whose network remembers pictures by itself (a recurrent mattor): one stream at a time."""

    def reset(self) -> None:
        """Forgets the pictures seen: to be called wherever the fourth channel is cleared, so before another
        stream's first picture and at a cut. May be called at any time, also after `close`."""


_ENGINES: dict[str, Callable[..., Runner]] = {
    "tensorrt": TensorRTRunner,
    "openvino": OpenVINORunner,
    "onnxruntime": OnnxRuntimeRunner,
    "torch": TorchRunner,
}
# In the order in which "auto" tries them on the CPU: OpenVINO is the faster there.
_ON_CPU = ("openvino", "onnxruntime", "torch")


def load(
    model: str | Path,
    *,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
) -> Engine:
    """Opens a shipped model (see `available_models`) or an ONNX file: one of the shipped models' signature (see
    `ModelSpec`), a segmenter, or a recurrent mattor (then a `StatefulEngine`); see `engines.signature`. What is
    guessed about a file is logged as information on the logger "engines"; of a segmenter without a card in short as a
    warning too.

    engine: "auto", "tensorrt", "openvino", "onnxruntime" or "torch". "auto" takes the first that works here: torch on
    a GPU, OpenVINO, ONNX Runtime, torch on the CPU; why one on the CPU was skipped is logged as a warning on the logger
    "engines". With an NVIDIA GPU and TensorRT it is followed by TensorRT once that has compiled, between two pictures
    and after a check (`engines.swap`). `Engine.name` and `Engine.device` say what ran last.
    device: "auto", "cpu", "cuda" (torch also "cuda:1") or "mps"; with the engine onnxruntime also what its package has
    (`engines.onnxruntime_engine`). One that was asked for is used or refused.
    threads: of the inference on the CPU; None: the cores of this process, 4 at most.
    precision: "auto" (f16 on CUDA; on a CPU int8 where the model has such a graph and the CPU computes it exactly, see
    `engines.int8`, else bf16 or f32), "f32", "bf16", "f16", "int8". TensorRT takes the 8-bit graph where "int8" is
    asked for, not by itself (`engines.tensorrt_engine.Graphs` says why); "auto" has OpenVINO bridge the wait for it, as
    torch has no int8.
    Raises EngineError: no such model, a broken file, another signature, a missing package (the message holds
    the pip command), an engine, device or precision that is not to be had here."""
    if engine != "auto" and engine not in _ENGINES:
        raise EngineError(f"unknown engine {engine!r}: use auto, {', '.join(_ENGINES)}")
    device = device.lower()
    if engine != "onnxruntime" and device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise EngineError(f"the device {device!r} is not known: use auto or cpu, cuda, mps")
    if precision not in ("auto", "f32", "bf16", "f16", "int8"):
        raise EngineError(f"unknown precision {precision!r}: use auto, f32, bf16, f16 or int8")
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}: give 1 or more, or None for a number that suits this machine")
    spec = find_model(model)
    options = {"threads": default_threads() if threads is None else threads, "precision": precision}
    if engine == "auto":
        return _first_that_works(spec, device, options)
    if engine in ("torch", "onnxruntime"):
        return _open(_ENGINES[engine], spec, options | {"device": device})
    if device not in ("auto", "cuda" if engine == "tensorrt" else "cpu"):
        raise EngineError(f"the engine {engine} does not run on the device {device!r}: use the device auto")
    return _open(_ENGINES[engine], spec, options)


def _first_that_works(spec: ModelSpec, device: str, options: Mapping[str, Any]) -> Engine:
    """For engine="auto"."""
    on_gpu = device not in ("auto", "cpu")
    follow = device in ("auto", "cuda")  # by TensorRT, which has no other devices
    tries: list[tuple[str, dict[str, Any]]] = []
    if on_gpu or (device == "auto" and worth_asking()):
        tries.append(("torch", {"device": device if on_gpu else "gpu"}))
    if device == "cuda":
        tries.append(("tensorrt", {}))  # at once, with a wait, where there is no torch to bridge it
    if not on_gpu:
        tries += [(name, {"device": "cpu"} if name == "torch" else {}) for name in _ON_CPU]
    reasons: list[str] = []
    for name, where in tries:
        try:
            opened = _open(_ENGINES[name], spec, {**options, **where}, follow=follow and name != "tensorrt")
        except ModelError:
            raise
        except EngineError as exc:
            if where.get("device") == "gpu":  # a torch without CUDA is no fault
                logger.info("torch does not use the GPU: %s", exc)
            else:
                reasons.append(str(exc))
            continue
        for reason in reasons:
            logger.warning("%s runs the network, because: %s", opened.device, reason)
        return opened
    raise EngineError(f"no engine can run {spec.path}: {'; '.join(reasons)}")


def _open(make: Callable[..., Runner], spec: ModelSpec, options: Mapping[str, Any], *, follow: bool = False) -> Engine:
    """follow: by TensorRT, where that is to be had. A file whose card holds no checksum is run once, but not by
    TensorRT, which would compile for minutes, perhaps for a size that nobody wants."""
    runner = plain = _run_eight_bits(make, spec, options) or make(spec, **options)
    try:
        if follow:
            runner = with_tensorrt(plain, spec, options["precision"])
        engine = adapt(spec, runner)
        if "sha256" not in spec.card and engine.spec.kind != "segmenter" and plain.name != "tensorrt":
            engine.try_out(plain)
        return engine
    except BaseException:
        runner.close()
        raise


def _run_eight_bits(make: Callable[..., Runner], spec: ModelSpec, options: Mapping[str, Any]) -> Runner | None:
    """A runner of the model's 8-bit graph on the CPU, where it has one that this machine computes exactly: the fastest
    there, at next to no loss (its card says how little). None: another precision was asked for, or none is to be had.
    Raises EngineError for precision "int8" where it cannot be."""
    name, wanted = getattr(make, "name", ""), options["precision"]
    if (
        name not in int8.ENGINES
        or wanted not in ("auto", "int8")
        or options.get("device", "cpu") not in ("auto", "cpu")
    ):
        return None
    graph = int8.eight_bits(spec)
    if graph is not None and int8.is_exact(make):
        runner = make(graph, **{**options, "precision": "auto"})  # of what is not in 8 bits
        runner.device = f"{runner.device.rpartition(' ')[0]} int8"
        return runner
    if wanted == "int8":
        why = "this CPU adds 8-bit products inexactly" if graph else f"{spec.name} has no 8-bit graph"
        raise EngineError(f"no int8 with the engine {name}: {why}: use precision auto")
    return None
