"""From a runner to an `engines.Engine`: the base of the adapters, and the one for rtbg's own networks.

Memory bound: nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.errors import EngineError, ModelError
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

    def try_out(self, runner: Runner) -> None:
        """Runs the network once at its first size, by this runner: for files that nobody vouches for. Raises
        EngineError where that fails, ModelError where the answer is no matte."""
        width, height = self.spec.sizes[0]
        own, self._runner = self._runner, runner
        try:
            self._answer(np.zeros((1, 4, height, width), np.float32))
        except ModelError:
            raise
        except EngineError as exc:
            card = self.spec.path.with_suffix(".json").name
            raise EngineError(
                f"{self.spec.path} was tried at {width}x{height}: {exc}, or name sizes that it takes in {card}"
            ) from exc
        finally:
            self._runner = own

    def _answer(self, frame: Array) -> Array:
        """float32 (1, 1, H, W) for a frame (1, 4, H, W) of the right kind."""
        raise NotImplementedError

    def _check_alpha(self, alpha: Array, frame: Array) -> Array:
        """The alpha of a network that answers at its input's size. Raises ModelError for another."""
        if alpha.shape != (1, 1, *frame.shape[2:]):
            raise ModelError(f"{self.spec.path} gives {alpha.shape} for {frame.shape}: it must give (1, 1, H, W)")
        return alpha


class Own(Adapter):
    """A network of rtbg's own signature: passes through."""

    def __init__(self, spec: ModelSpec, runner: Runner) -> None:
        super().__init__(spec, runner)
        self._in, self._out = runner.inputs[0].name, [runner.outputs[0].name]

    def _answer(self, frame: Array) -> Array:
        (alpha,) = self._runner.run({self._in: frame}, self._out)
        return self._check_alpha(alpha, frame)
