"""What machine a benchmark ran on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from engines.machine import cores


def describe() -> dict[str, str]:
    """Processor, cores, Python and the libraries that set the speed."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    packages = ("numpy", "opencv-python-headless", "av", "openvino")
    return {"cpu": cpu, "cores": str(cores()), "python": platform.python_version(), **{p: version(p) for p in packages}}
