"""TensorRT on an NVIDIA GPU: `tensorrt` (data centre, workstation) and `tensorrt_rtx` (GeForce RTX), one code path.

    find_target -> Target        which package, for which GPU; says what is missing (GPU, driver, package)
    Graphs      -> an ONNX file as TensorRT takes it: strongly typed FP16, see `engines.half`
    plan_for    -> bytes         a compiled network ("plan") for one set of input shapes, from the cache or made now
    TensorRTRunner               runs plans (`engines.plan`) on page-locked buffers and a stream of its own

Compiling needs no GPU with `tensorrt_rtx`; running does, and TensorRT crashes the process where there is no driver:
so the driver is asked first (`engines.cuda.probe`), never TensorRT. Memory bound: per set of input shapes in use one
plan with its activations, inputs and outputs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from engines import half, int8
from engines.cuda import Device, Gpu, NoGpu, probe
from engines.errors import EngineError, import_error, short_reason
from engines.plan import Plan
from engines.plan_cache import PlanCache, PlanKey, user_cache
from engines.spec import Array, ModelSpec

logger = logging.getLogger("engines")

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# The GPUs that TensorRT-RTX serves, and the pip command of each flavour.
RTX_SMS = (75, 80, 86, 89, 120, 121)
PIP = {"tensorrt_rtx": "pip install 'rtbg[rtx]'", "tensorrt": "pip install 'rtbg[tensorrt]'"}
TITLES = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
PRECISIONS = ("auto", "f16", "f32", "int8")
WORKSPACE = 1 << 30
NO_GPU = Gpu("none", (0, 0), "none")


@dataclass(frozen=True)
class Target:
    """What plans are made with and for."""

    trt: Any
    flavour: str
    gpu: Gpu

    @property
    def version(self) -> str:
        """The package's."""
        return str(self.trt.__version__)


def find_target(*, strict: bool = False) -> Target:
    """The package and the GPU that it will run on. Raises EngineError that says which of GPU, driver and package is
    missing, with the pip command. Touches TensorRT only after the driver has shown a GPU.

    strict: only a package that is made for this GPU, for `engine="auto"`."""
    missing: list[str] = []
    gpu: Gpu | None = None
    try:
        gpu = probe()
    except NoGpu as exc:
        missing.append(str(exc))
    flavours = _flavours(gpu)
    installed = [f for f in flavours if importlib.util.find_spec(f)]
    if not installed:
        best, other = flavours[0], flavours[1]
        missing.append(f"{TITLES[best]} is not installed: {PIP[best]}" + ("" if gpu else f" or {PIP[other]}"))
    if gpu is None or not installed:
        raise EngineError(f"TensorRT cannot run: {'; '.join(missing)}; until then use the engine auto")
    flavour = installed[0]
    if flavour == "tensorrt_rtx" and gpu.sm not in RTX_SMS:
        told = f"TensorRT-RTX does not serve the {gpu.name} (sm_{gpu.sm}): {PIP['tensorrt']}"
        if strict:
            raise EngineError(told)
        logger.warning("%s; trying all the same", told)
    return Target(import_flavour(flavour), flavour, gpu)


def _flavours(gpu: Gpu | None) -> tuple[str, str]:
    """Both, the better one for that GPU first."""
    rtx = gpu is None or gpu.sm in RTX_SMS
    return ("tensorrt_rtx", "tensorrt") if rtx else ("tensorrt", "tensorrt_rtx")


def import_flavour(flavour: str) -> Any:
    """The module. Raises EngineError with the pip command."""
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as exc:
        raise import_error(TITLES[flavour], flavour, PIP[flavour], exc) from exc


class Graphs:
    """An ONNX file as TensorRT takes it, made once for all input sizes.

    precision: "f16", "f32" (TF32 where the GPU has it), "int8" (the model's graph with Q/DQ nodes: the one that its
    card names, or FILE.int8.onnx beside a file without a card), or "auto": f16 for rtbg's own networks, f32 for other
    people's, whose values may be beyond FP16. Not int8: those graphs were made for, and measured on, CPUs; TensorRT is
    given them with signed activations, on half the steps, and networks this small wait for memory rather than for
    products. A file with Q/DQ nodes is taken as it is whatever is asked. Raises EngineError."""

    def __init__(self, spec: ModelSpec, precision: str = "auto") -> None:
        if precision not in PRECISIONS:
            raise EngineError(f"TensorRT does not compute in {precision}: use precision {', '.join(PRECISIONS)}")
        onnx = half.import_onnx()
        path = _eight_bits(spec) if precision == "int8" else spec.path
        try:
            data = path.read_bytes()
            model = onnx.load_from_string(data)
        except Exception as exc:
            raise EngineError(
                f"onnx cannot read {path} ({short_reason(exc)}): check that it is a whole ONNX file"
            ) from exc
        if not model.graph.node:
            raise EngineError(f"onnx finds no graph in {path}: check that it is a whole ONNX file")
        constants = {t.name for t in model.graph.initializer}
        self.inputs = tuple(half.port_of(onnx, i) for i in model.graph.input if i.name not in constants)
        self.outputs = tuple(half.port_of(onnx, o) for o in model.graph.output)
        self.path = path
        self.digest = hashlib.sha256(data).hexdigest()
        if half.is_quantised(model):
            self.precision = "int8"
        elif precision == "auto":
            from engines.signature import recognise

            self.precision = "f16" if recognise(spec, self.inputs, self.outputs).kind == "rtbg" else "f32"
        else:
            self.precision = precision
        changed = half.folded(model)
        if self.precision == "int8":
            half.symmetric(model)
        if changed or self.precision == "int8":
            data = model.SerializeToString()
        self._model: Any = model
        self._made: bytes | None = None if self.precision == "f16" else data

    def made(self) -> bytes:
        """The ONNX file for TensorRT's parser. Raises EngineError."""
        if self._made is None:
            self._made = half.to_half(self._model).SerializeToString()
        return self._made

    def key(self, target: Target, shapes: Shapes) -> PlanKey:
        """Under which its plan is kept."""
        shown = " ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
        sm = f"{target.gpu.capability[0]}.{target.gpu.capability[1]}"
        network = f"{self.digest}/{half.VERSION}"
        return PlanKey(
            target.flavour, target.version, target.gpu.name, sm, target.gpu.driver, network, shown, self.precision
        )


def _eight_bits(spec: ModelSpec) -> Path:
    """The model's graph with Q/DQ nodes. Raises EngineError where it has none."""
    if spec.card:
        found = int8.eight_bits(spec)
        path = None if found is None else found.path
    else:
        path = spec.path.with_suffix(".int8.onnx")
    if path is None or not path.is_file():
        told = "" if path is None else f" ({path.name})"
        raise EngineError(f"{spec.name} has no INT8 graph{told}: use precision auto or f16")
    return path


def plan_for(
    graphs: Graphs,
    target: Target,
    shapes: Shapes,
    cache: PlanCache | None,
    *,
    cancelled: Callable[[], bool] | None = None,
) -> bytes:
    """The plan for these input shapes, from the cache or made now (seconds to minutes). Raises EngineError."""
    key = graphs.key(target, shapes)

    def build() -> bytes:
        timings = cache.load_note(key.machine) if cache else b""
        plan, timings = compile_plan(graphs, target, shapes, timings)
        if cache and timings:
            cache.save_note(key.machine, timings)
        return plan

    return build() if cache is None else cache.get(key, build, cancelled=cancelled)


def compile_plan(graphs: Graphs, target: Target, shapes: Shapes, timings: bytes = b"") -> tuple[bytes, bytes]:
    """(plan, timings for the next compilation: empty with TensorRT-RTX, which has none). Raises EngineError."""
    trt, what = target.trt, f"{graphs.path} at {' '.join('x'.join(map(str, s)) for s in shapes.values())}"
    log = _logger(trt)
    try:
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(graphs.made()):
            said = "; ".join(parser.get_error(k).desc() for k in range(parser.num_errors))
            raise RuntimeError(said or "the parser refuses it")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
        kept = None
        if target.flavour == "tensorrt":
            kept = config.create_timing_cache(timings)
            if kept is None:  # of another version
                kept = config.create_timing_cache(b"")
            config.set_timing_cache(kept, False)
        elif target.gpu.sm in RTX_SMS:
            # For this GPU alone; left to itself it compiles for all from Ampere on, so not for Turing.
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.gpu.sm}"), 0)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError(log.reason)
        return bytes(plan), bytes(config.get_timing_cache().serialize()) if kept is not None else b""
    except EngineError:
        raise
    except Exception as exc:
        raise EngineError(
            f"{TITLES[target.flavour]} cannot compile {what} ({short_reason(exc)}): use the engine auto"
        ) from exc


class TensorRTRunner:
    """Implements `engines.runner.Runner`. One thread at a time.

    precision: see `Graphs`. threads is not used. The first run with a set of shapes compiles, unless the cache holds
    the plan. target: None: `find_target()`. Raises EngineError: GPU, driver or package missing, a file that cannot be
    used."""

    name = "tensorrt"

    def __init__(
        self, spec: ModelSpec, *, threads: int = 1, precision: str = "auto", target: Target | None = None
    ) -> None:
        self._target = target or find_target()
        if self._target.gpu == NO_GPU:
            raise EngineError("TensorRT compiles without a GPU but does not run without one: use the engine auto")
        self.graphs = Graphs(spec, precision)
        self.inputs, self.outputs = self.graphs.inputs, self.graphs.outputs
        title = f"{TITLES[self._target.flavour]} {self._target.version}"
        self.device = f"{title} {self._target.gpu.name} {self.graphs.precision}"
        self._cache = user_cache()
        self._log = _logger(self._target.trt)
        self._device: Device | None = Device()
        self._runtime: Any = self._target.trt.Runtime(self._log)
        self._plans: dict[tuple[tuple[int, ...], ...], Plan] = {}

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """See `engines.runner.Runner.run`."""
        if self._device is None:
            raise EngineError("this engine is closed: load the model again")
        plan = self._plan(tuple(tuple(feeds[port.name].shape) for port in self.inputs))
        for name, buffer in plan.feeds.items():
            np.copyto(buffer, feeds[name], casting="same_kind")
        plan.run()
        return [plan.results[name] for name in wanted]

    def tensors(self, frame: Any) -> Any:
        """A float32 torch tensor on the GPU to one, for a network of one input and output: queued on torch's current
        stream, without a wait and without a copy."""
        if self._device is None:
            raise EngineError("this engine is closed: load the model again")
        import torch

        plan = self._plan((tuple(frame.shape),))
        frame = frame.contiguous()
        out = torch.empty(plan.results[self.outputs[0].name].shape, dtype=torch.float32, device=frame.device)
        where = {self.inputs[0].name: frame.data_ptr(), self.outputs[0].name: out.data_ptr()}
        plan.queue_at(where, int(torch.cuda.current_stream(frame.device).cuda_stream))
        return out

    def close(self) -> None:
        """See `engines.runner.Runner.close`."""
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        if self._device is not None:
            self._device.close()
        self._device = self._runtime = None

    def _plan(self, shapes: tuple[tuple[int, ...], ...]) -> Plan:
        plan = self._plans.get(shapes)
        if plan is None:
            plan = self._plans[shapes] = self._open({p.name: s for p, s in zip(self.inputs, shapes, strict=True)})
        return plan

    def _open(self, shapes: Shapes) -> Plan:
        """A plan, loaded and warm. One from the cache that does not load is deleted and made anew, once."""
        for attempt in (1, 2):
            data = plan_for(self.graphs, self._target, shapes, self._cache)
            engine = self._runtime.deserialize_cuda_engine(data)
            if engine is not None:
                assert self._device is not None
                notes = self._cache if self._target.flavour == "tensorrt_rtx" else None
                note = f"jit-{self.graphs.key(self._target, shapes).stem}"
                return Plan(self._target.trt, engine, self._device, shapes, notes, note)
            if self._cache is not None:
                self._cache.discard(self.graphs.key(self._target, shapes))
            logger.info("a compiled network does not load (%s), try %d", self._log.reason, attempt)
        raise EngineError(f"{self.device} does not load what it compiled ({self._log.reason}): use the engine auto")


def _logger(trt: Any) -> Any:
    """A logger for TensorRT that keeps its last complaint and sends the rest to ours, where it is debugging talk."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.reason = "it gives no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.reason = short_reason(RuntimeError(message))
            logger.debug("TensorRT: %s", message)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Log()
