"""What an engine's library must be able to do: run any ONNX graph by the names of its tensors.

One file per library implements `Runner` (`openvino_engine`, `onnxruntime_engine`, `torch_engine`, `tensorrt_engine`);
what a graph's tensors mean is the adapters' business (`engines.signature` chooses one), once for all libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engines.spec import Array, Port


class Runner(Protocol):
    """A graph, opened by one library. One thread at a time, any thread. Whoever opens it closes it."""

    name: str  # as `engines.load` takes it: "openvino"
    device: str  # what really computes, for people; a compilation may correct it
    inputs: tuple[Port, ...]  # as the file declares them, in its order
    outputs: tuple[Port, ...]

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """The outputs named in `wanted`, for an array for each of `inputs`, of the declared dtype, of any strides.

        The arrays are read before this returns and never kept. An output may be a buffer that the next `run` with
        the same shapes overwrites, after it has read its feeds: outputs may be fed back as they are. The first run
        with a set of shapes compiles. Raises EngineError when the network fails, and after `close`."""

    def close(self) -> None:
        """Frees the network; outputs given out stay readable. May be called twice."""
