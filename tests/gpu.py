"""Which tests need a GPU or TensorRT. They skip without, and fail instead of skipping with RTBG_REQUIRE_GPU=1.
docs/gpu-checks.md has the commands for a machine with one.

And how far the GPU's pictures may be from the CPU's."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engines.cuda import NoGpu, probe

REQUIRED = os.environ.get("RTBG_REQUIRE_GPU") == "1"


MEAN, FAR_OFF = 1.0, 0.01  # levels on average; the share of pixels that may be more than 8 levels off


def torch_or_skip() -> Any:
    """torch; a module without it skips as a whole, but not where that would skip tests that a GPU is required for."""
    return importlib.import_module("torch") if REQUIRED else pytest.importorskip("torch")


def assert_alike(wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> None:
    """Planes of the CPU path and of the GPU path."""
    for one, other in zip(wanted, got, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        apart = np.abs(one.astype(int) - other)
        assert apart.mean() <= MEAN
        assert (apart > 8).mean() <= FAR_OFF


def _cuda() -> str:
    """Why there is no CUDA GPU here; empty: there is one."""
    try:
        probe()
    except NoGpu as exc:
        return str(exc)
    return ""


def _missing(*packages: str) -> str:
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _torch_cuda() -> str:
    if reason := _cuda() or _missing("torch"):
        return reason
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} has no CUDA"


def _tensorrt() -> str:
    reason = _missing("tensorrt") and _missing("tensorrt_rtx")
    return _cuda() or reason or _missing("cuda", "onnx")


# Kept by tests/conftest.py; pytest -m "torch_cuda and not tensorrt" chooses by them.
MARKS = ("torch_cuda", "tensorrt")
needs_torch_cuda = pytest.mark.torch_cuda(missing=_torch_cuda())
needs_tensorrt = pytest.mark.tensorrt(missing=_tensorrt())
# Compiling only, which needs no GPU.
needs_rtx = pytest.mark.skipif(bool(_missing("tensorrt_rtx")), reason=_missing("tensorrt_rtx") or "installed")
without_gpu = pytest.mark.skipif(not _cuda(), reason="what is said where there is no GPU")
