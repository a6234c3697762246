"""Runs a compiled network on this machine; knows nothing of video.

    engine = engines.load("balanced")                      # a shipped model, the first engine that works here
    alpha = engine.infer({"frame": frame})["alpha"]        # float32 (1, 4, H, W) to (1, 1, H, W), both 0..1

    load -> runner (a library opens the file) -> adapter (what its tensors mean, by signature) = Engine

Importing this loads no engine's library; `load` does. Used by `rtbg` and by `training.export`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from engines.errors import EngineError, ModelError
from engines.machine import default_threads
from engines.onnxruntime_engine import OnnxRuntimeRunner
from engines.openvino_engine import OpenVINORunner
from engines.runner import Runner
from engines.signature import adapt
from engines.spec import Array, ModelSpec, available_models, find_model, nearest_size

__all__ = ["Engine", "EngineError", "ModelSpec", "StatefulEngine", "available_models", "load", "nearest_size"]

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


# In the order in which "auto" tries them: OpenVINO is the faster on a CPU.
_ENGINES: dict[str, Callable[..., Runner]] = {"openvino": OpenVINORunner, "onnxruntime": OnnxRuntimeRunner}
_LATER = ("tensorrt", "torch")


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
    guessed about a file is logged as information on the logger "engines".

    engine: "auto", "openvino" or "onnxruntime". "auto" takes the first that works here; why an earlier one
    was skipped is logged as a warning on the logger "engines", and `Engine.device` says what runs.
    device: "auto" or "cpu". threads: of the inference; None: the cores of this process, 4 at most.
    precision: "auto" (what the CPU is fastest in: bf16 where native, else f32), "f32", "bf16", "f16".
    Raises EngineError: no such model, a broken file, another signature, a missing package (the message holds
    the pip command), an engine, device or precision that is not to be had here."""
    if engine in _LATER:
        raise EngineError(f"the engine {engine} is not available in this version: use auto, {', '.join(_ENGINES)}")
    if engine != "auto" and engine not in _ENGINES:
        raise EngineError(f"unknown engine {engine!r}: use auto, {', '.join(_ENGINES)}")
    if device.lower() not in ("auto", "cpu"):
        raise EngineError(f"the device {device!r} is not available in this version: use auto or cpu")
    if precision not in ("auto", "f32", "bf16", "f16"):
        raise EngineError(f"unknown precision {precision!r}: use auto, f32, bf16 or f16")
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}: give 1 or more, or None for a number that suits this machine")
    count = default_threads() if threads is None else threads
    spec = find_model(model)
    if engine != "auto":
        return _open(_ENGINES[engine], spec, count, precision)
    reasons: list[str] = []
    for make in _ENGINES.values():
        try:
            opened = _open(make, spec, count, precision)
        except ModelError:
            raise
        except EngineError as exc:
            reasons.append(str(exc))
            continue
        for reason in reasons:
            logger.warning("%s runs the network, because: %s", opened.device, reason)
        return opened
    raise EngineError(f"no engine can run {spec.path}: {'; '.join(reasons)}")


def _open(make: Callable[..., Runner], spec: ModelSpec, threads: int, precision: str) -> Engine:
    runner = make(spec, threads=threads, precision=precision)
    try:
        return adapt(spec, runner)
    except BaseException:
        runner.close()
        raise
