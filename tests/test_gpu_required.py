"""Tests that need a GPU: skipped without one, but not where RTBG_REQUIRE_GPU=1 promises one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import without_gpu

ROOT = Path(__file__).parent.parent
TEST = "tests/test_tensorrt.py::test_the_graph_is_captured"


@without_gpu
@pytest.mark.parametrize(("required", "code"), [("1", 1), ("", 0)])
def test_a_gpu_that_is_required_and_missing_is_a_failure(required, code):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rsf", TEST],
        cwd=ROOT,
        env=os.environ | {"RTBG_REQUIRE_GPU": required, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code, done.stdout
    assert ("1 error" if required else "1 skipped") in done.stdout
    assert ("RTBG_REQUIRE_GPU=1, but: this machine has no NVIDIA GPU" in done.stdout) == bool(required)
    assert "NVIDIA" in done.stdout  # the reason, either way
    assert "Traceback" not in done.stdout
