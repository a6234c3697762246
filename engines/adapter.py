"""From a runner to an `engines.Engine`: the base of the adapters, and the one for rtbg's own networks.

Memory bound: nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from engines.errors import EngineError
from engines.runner import Runner
from engines.spec import Array, ModelSpec, check_frame


class Adapter:
    """Implements `engines.Engine` but for the network's own way, which `_answer` is. Owns the runner."""

    def __init__(self, spec: ModelSpec, runner: Runner) -> None:
        self.spec = spec
        self._runner = runner

    @property
    def name(self) -> str:
        """See `engines.Engine.name`."""
        return self._runner.name

    @property
    def device(self) -> str:
        """See `engines.Engine.device`."""
        return self._runner.device

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `engines.Engine.infer`. The first call with a size compiles the network for it."""
        return {self.spec.outputs[0]: self._answer(check_frame(self.spec, inputs))}

    def close(self) -> None:
        """See `engines.Engine.close`."""
        self._runner.close()

    def _answer(self, frame: Array) -> Array:
        """float32 (1, 1, H, W) for a frame (1, 4, H, W) of the right kind."""
        raise NotImplementedError

    def _check_alpha(self, alpha: Array, frame: Array) -> Array:
        """The alpha of a network that answers at its input's size. Raises EngineError for another."""
        if alpha.shape != (1, 1, *frame.shape[2:]):
            raise EngineError(f"{self.spec.path} gives {alpha.shape} for {frame.shape}: it must give (1, 1, H, W)")
        return alpha


class Own(Adapter):
    """A network of rtbg's own signature: passes through."""

    def __init__(self, spec: ModelSpec, runner: Runner) -> None:
        super().__init__(spec, runner)
        self._in, self._out = runner.inputs[0].name, [runner.outputs[0].name]

    def _answer(self, frame: Array) -> Array:
        (alpha,) = self._runner.run({self._in: frame}, self._out)
        return self._check_alpha(alpha, frame)
