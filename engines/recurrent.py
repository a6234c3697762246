"""Recurrent mattors with the interface of Robust Video Matting (Lin et al. 2021), its published ONNX files among them.

They take `src`, float32 (1, 3, H, W), RGB in 0..1, the four states `r1i` to `r4i` that they gave as `r1o` to `r4o` for
the picture before, and (most of them) `downsample_ratio`, float32 (1); they give the matte as `pha`. Before the first
picture a state is all zero, 1 along every side that the file leaves free: the networks stretch it.

Keys of the card (FILE.json beside FILE.onnx), all optional: `sizes`, a list of [width, height]; `downsample_ratio`,
over 0 and at most 1: the share of those sizes at which the network looks first (1, as the sizes are small already).
Memory bound: two sets of states.
"""

from __future__ import annotations

import logging

import numpy as np

from engines.adapter import Adapter
from engines.errors import ModelError
from engines.runner import Runner
from engines.spec import Array, ModelSpec

logger = logging.getLogger("engines")

SOURCE, RATIO, MATTE = "src", "downsample_ratio", "pha"
STATES_IN, STATES_OUT = ("r1i", "r2i", "r3i", "r4i"), ["r1o", "r2o", "r3o", "r4o"]
NEEDED_IN, NEEDED_OUT = (SOURCE, *STATES_IN), (MATTE, *STATES_OUT)


class Recurrent(Adapter):
    """Implements `engines.StatefulEngine`; the fourth channel of the frame is not looked at.

    A picture of another size than the one before starts anew too."""

    def __init__(self, spec: ModelSpec, runner: Runner) -> None:
        super().__init__(spec, runner)
        ports = {p.name: p for p in runner.inputs}
        self._empty = {
            n: np.zeros([1 if s is None else s for s in ports[n].shape or (1, 1, 1, 1)], np.float32) for n in STATES_IN
        }
        self._fixed: dict[str, Array] = {}
        if RATIO in ports:
            ratio = spec.card.get(RATIO, 1)
            if type(ratio) not in (int, float) or not 0 < ratio <= 1:
                raise ModelError(f'{spec.path}: its card says "{RATIO}": {ratio!r}, which must be over 0 and at most 1')
            self._fixed[RATIO] = np.full([1] * len(ports[RATIO].shape), ratio, np.float32)
            logger.info("%s: a recurrent mattor, %s %g, sizes %s", spec.path, RATIO, ratio, spec.shown_sizes)
        self._states: dict[str, Array] | None = None
        self._size: tuple[int, ...] = ()

    def reset(self) -> None:
        """See `engines.StatefulEngine.reset`."""
        self._states = None

    def try_out(self, runner: Runner) -> None:
        """See `engines.adapter.Adapter.try_out`. Leaves no past."""
        super().try_out(runner)
        self.reset()

    def _answer(self, frame: Array) -> Array:
        if self._states is None or frame.shape != self._size:
            self._states, self._size = self._empty, frame.shape
        feeds = {SOURCE: frame[:, :3], **self._states, **self._fixed}
        self._states = None  # a failure leaves no half-told past
        alpha, *states = self._runner.run(feeds, [MATTE, *STATES_OUT])
        self._check_alpha(alpha, frame)
        self._states = dict(zip(STATES_IN, states, strict=True))
        return alpha
