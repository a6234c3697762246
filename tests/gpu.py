"""Which tests need a GPU or TensorRT. They skip without, and fail instead of skipping with RTBG_REQUIRE_GPU=1."""

from __future__ import annotations

import importlib.util
import os

import pytest

from engines.cuda import NoGpu, probe

REQUIRED = os.environ.get("RTBG_REQUIRE_GPU") == "1"


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
    return _cuda() or reason or _missing("cuda")


needs_rtx = pytest.mark.skipif(bool(_missing("tensorrt_rtx")), reason=_missing("tensorrt_rtx") or "installed")
needs_torch_cuda = pytest.mark.skipif(bool(_torch_cuda()) and not REQUIRED, reason=_torch_cuda() or "here")
needs_tensorrt = pytest.mark.skipif(bool(_tensorrt()) and not REQUIRED, reason=_tensorrt() or "here")
