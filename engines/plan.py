"""A network that TensorRT has compiled, ready to run: its context, its memory and the CUDA graph that is replayed.

Used by `engines.tensorrt_engine`. Memory bound: one plan with its activations, inputs and outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from engines.cuda import Device
from engines.errors import EngineError, short_reason
from engines.plan_cache import PlanCache
from engines.spec import Array

logger = logging.getLogger("engines")


class Plan:
    """A network for one set of shapes, with its memory; `feeds` and `results` are page-locked."""

    def __init__(
        self,
        trt: Any,
        engine: Any,
        device: Device,
        shapes: Mapping[str, tuple[int, ...]],
        notes: PlanCache | None,
        note: str,
    ) -> None:
        self._engine, self._device = engine, device
        self._context = _context(engine, notes, note)
        if self._context is None:
            raise EngineError("TensorRT has not the memory to run this network: try the engine openvino")
        self.feeds: dict[str, Array] = {}
        self.results: dict[str, Array] = {}
        self._copies: list[tuple[Array, int, bool]] = []
        self._addresses: dict[str, int] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if given:
                self._context.set_input_shape(name, shapes[name])
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = tuple(self._context.get_tensor_shape(name))
            if -1 in shape:
                raise EngineError(f"the size of {name} is known only after a run: TensorRT is not used for that here")
            array = device.pinned(shape, trt.nptype(engine.get_tensor_dtype(name)))
            address = device.allocate(array.nbytes)
            self._context.set_tensor_address(name, address)
            self._addresses[name] = address
            (self.feeds if given else self.results)[name] = array
            self._copies.append((array, address, given))
        self._graph: Any = None
        self.run()  # what is set up or compiled at the first run cannot be captured
        try:
            self._graph = device.capture(self._queue)
        except EngineError as exc:
            logger.info("no CUDA graph (%s): running without", exc)
        if notes is not None:
            _keep_kernels(self._context, notes, note)

    def run(self) -> None:
        """From `feeds` to `results`. Raises EngineError."""
        if self._graph is None:
            self._queue()
        else:
            self._device.launch(self._graph)
        self._device.wait()

    def queue_at(self, addresses: Mapping[str, int], stream: int) -> None:
        """Queues the network on another's stream, on another's device memory. Raises EngineError."""
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        done = self._context.execute_async_v3(stream)
        for name in addresses:
            self._context.set_tensor_address(name, self._addresses[name])
        if not done:
            raise EngineError("TensorRT did not run the network: try the engine openvino")

    def close(self) -> None:
        """Frees the network; buffers are the device's."""
        self._context = self._engine = self._graph = None

    def _queue(self) -> None:
        for array, address, given in self._copies:
            if given:
                self._device.upload(address, array)
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise EngineError("TensorRT did not run the network: try the engine openvino")
        for array, address, given in self._copies:
            if not given:
                self._device.download(array, address)


def _context(engine: Any, notes: PlanCache | None, note: str) -> Any:
    """An execution context. TensorRT-RTX compiles its kernels at the first run: those of the last time are given to it
    (`notes`), which it ignores where they do not fit."""
    if notes is None:
        return engine.create_execution_context()
    try:
        config = engine.create_runtime_config()
        kernels = config.create_runtime_cache()
        kept = notes.load_note(note)
        if kept:
            kernels.deserialize(kept)
        config.set_runtime_cache(kernels)
        context = engine.create_execution_context(config)
    except Exception as exc:
        logger.info("TensorRT-RTX takes no kernel cache (%s)", short_reason(exc))
        context = None
    return context or engine.create_execution_context()


def _keep_kernels(context: Any, notes: PlanCache, note: str) -> None:
    try:
        kept = context.get_runtime_config().get_runtime_cache().serialize()
    except Exception as exc:
        logger.info("TensorRT-RTX gives no kernel cache (%s)", short_reason(exc))
        return
    data = bytes(kept) if kept is not None else b""
    if data and data != notes.load_note(note):
        notes.save_note(note, data)
