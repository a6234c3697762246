"""What the tests of the native code share."""

from __future__ import annotations

import numpy as np
import pytest

from rtbg import native


@pytest.fixture(params=native.ISAS, autouse=True)
def isa(request, monkeypatch):
    """Every test with every set of instructions that this processor has."""
    monkeypatch.setenv("RTBG_ISA", request.param)
    native.function.cache_clear()
    if native.isa() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.function.cache_clear()
    native.load.cache_clear()


FENCE = 0xA5


def padded(plane: np.ndarray) -> np.ndarray:
    """The same values in memory whose lines do not follow one another, with a fence around all of it."""
    height, width = plane.shape
    wide = np.full((height + 2, width + 7), FENCE, plane.dtype)
    inside = wide[1:-1, 3:-4]
    inside[:] = plane
    return inside


def fenced(plane: np.ndarray) -> bool:
    """Whether what `padded` put around a plane is as it was."""
    wide = plane.base.copy()
    wide[1:-1, 3:-4] = FENCE
    return bool((wide == FENCE).all())
