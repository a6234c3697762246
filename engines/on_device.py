"""An engine's network for frames that lie on its GPU already, as torch tensors: no copy to the host and back.

Used by `rtbg.gpu_frames`. Memory bound: nothing of its own.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from engines.adapter import Own
from engines.errors import EngineError
from engines.swap import Swapping
from engines.tensorrt_engine import TensorRTRunner
from engines.torch_engine import TorchRunner, import_torch

if TYPE_CHECKING:
    from engines import Engine

# The kinds of torch.device that whole frames are taken to. Tests add "cpu", to do there what is done on a GPU.
KINDS = {"cuda"}


class Lent:
    """The network of an engine that is rtbg's own and runs on a GPU. It stays the engine's, which must not be closed
    meanwhile. One thread at a time, the one that uses the engine.

    size: (width, height) of the frames. Raises EngineError for any other engine, with the reason. torch is imported
    only when it is used, so that whoever asks and then does without need not wait for it."""

    def __init__(self, engine: Engine, size: tuple[int, int]) -> None:
        self._engine = engine
        self._shape = (1, 4, size[1], size[0])
        self._runner = self._find()
        if not _lends(self._runner):
            raise EngineError(f"{engine.device} runs the network")

    @cached_property
    def device(self) -> Any:
        """The torch.device of the frames. Raises EngineError where torch or its CUDA is missing."""
        if isinstance(self._runner, TorchRunner):
            return self._runner.where
        torch = import_torch()
        if not torch.cuda.is_available():
            raise EngineError(f"torch {torch.__version__} has no CUDA")
        return torch.device("cuda", 0)

    def __call__(self, frame: Any) -> Any:
        """float32 (1, 4, H, W) on `device` to float32 (1, 1, H, W) there, queued on the current stream without a wait.
        It may be captured in a CUDA graph once it has run; an error meanwhile is only raised. Else, where the one that
        took over (`engines.swap`) fails, the one before does it, from then on, and a warning says so. Raises
        EngineError where there is no other."""
        try:
            return self._runner.tensors(frame)
        except Exception as exc:  # torch's own errors too, such as of memory
            if self._capturing():  # it may only be that it cannot be captured: without a graph it goes on
                raise
            swapping = self._swapping
            if swapping is None or not _lends(swapping.first) or not swapping.leave((self._shape,), exc):
                raise
            self._runner = self._find()
            return self._runner.tensors(frame)

    def renewed(self, frame: Any) -> bool:
        """To be asked between two pictures, with what the network was last given: whether it is another one now, so
        that a captured graph is to be captured anew. Where TensorRT is to follow (`engines.swap`) this begins that,
        and has the two compared when it is ready, which waits for the GPU those two times."""
        swapping = self._swapping
        if swapping is None or not swapping.due(self._shape):
            return False
        feeds = {self._engine.spec.inputs[0]: frame.cpu().numpy()}
        self._engine.infer(feeds)
        if self._find() is self._runner:
            return False
        self._engine.infer(feeds)  # by the new one, so that the engine's name and device are its
        self._runner = self._find()
        return True

    def _capturing(self) -> bool:
        """Whether a CUDA graph is being made on the current stream."""
        return self.device.type == "cuda" and bool(import_torch().cuda.is_current_stream_capturing())

    @property
    def _swapping(self) -> Swapping | None:
        runner = self._engine._runner if isinstance(self._engine, Own) else None
        return runner if isinstance(runner, Swapping) else None

    def _find(self) -> Any:
        """The runner of the engine's next picture. Raises EngineError for a network that is not rtbg's own."""
        if not isinstance(self._engine, Own):
            raise EngineError(f"{self._engine.spec.name} is not a network of rtbg's own kind")
        runner = self._engine._runner
        return runner.current(self._shape) if isinstance(runner, Swapping) else runner


def _lends(runner: Any) -> bool:
    """Whether it takes tensors that lie on the GPU."""
    return isinstance(runner, TensorRTRunner) or (isinstance(runner, TorchRunner) and runner.where.type in KINDS)
