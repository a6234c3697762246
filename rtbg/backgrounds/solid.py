"""One colour behind the person, or nothing at all."""

from __future__ import annotations

import numpy as np

from rtbg.backgrounds.fit import Layout
from rtbg.color import solid
from rtbg.frame import Array, Frame


class SolidBackground:
    """Constant planes. Memory bound: one set of planes."""

    def __init__(self, rgb: tuple[int, int, int]) -> None:
        """rgb: 0..255."""
        self._rgb = rgb
        self._layout: Layout | None = None
        self._planes: tuple[Array, ...] = ()

    def at(self, frame: Frame, alpha: Array) -> tuple[Array, ...]:
        """See `protocols.Background`."""
        layout = Layout.of(frame)
        if layout != self._layout:
            codes = solid(self._rgb, frame.color, height=frame.height, bits=frame.bits)
            self._planes = tuple(np.full(p.shape, c, p.dtype) for p, c in zip(frame.planes, codes, strict=False))
            self._layout = layout
        return self._planes

    def close(self) -> None:
        """Nothing to free."""


class TransparentBackground:
    """No background: the matte goes out with the picture."""

    def at(self, frame: Frame, alpha: Array) -> None:
        """Always None."""
        return

    def close(self) -> None:
        """Nothing to free."""
