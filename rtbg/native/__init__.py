"""Loops over samples in machine code: what would be many calls of NumPy and OpenCV, each with its pass over memory, is
one.

`edge.c` and `grid.c` are built ahead for every system (`python -m rtbg.native.build`, which needs a package but no
compiler of the system's) and called by way of ctypes, without the GIL: `rtbg.native.edge`, `rtbg.native.grid`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rtbg.errors import MattingError
from rtbg.frame import Array

FOLDER = Path(__file__).parent
TARGETS = (
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("macos", "x86_64"),
    ("macos", "aarch64"),
    ("windows", "x86_64"),
    ("windows", "aarch64"),
)
ISAS = ("plain", "v3")  # sets of instructions, by the number that `rtbg_isa` answers
C_FILES = ("edge.c", "grid.c", "cpu.c")
SOURCES = (*C_FILES, "build.py")

_SUFFIX = {"linux": "so", "macos": "dylib", "windows": "dll"}


def matches(array: Array, shape: tuple[int, ...], dtype: Any, *, whole: bool = False) -> None:
    """Raises ValueError unless it is such an array, not empty, whose lines lie in memory sample by sample (whole: also
    line after line)."""
    fits = array.shape == shape and array.dtype == dtype and 0 not in shape
    if fits and not array.flags.c_contiguous:
        fits = not whole and array.strides[0] % array.itemsize == 0
        fits = fits and (array.shape[1] == 1 or array.strides[1] == array.itemsize)
    if not fits:
        raise ValueError(f"{np.dtype(dtype)} {shape} is needed, not {array.dtype} {array.shape} {array.strides}")


def writable(array: Array) -> None:
    """Raises ValueError for what is only to be read."""
    if not array.flags.writeable:
        raise ValueError("a result is to be written into an array that is only to be read")


def line(array: Array) -> int:
    """Elements from one line of an array (lines, samples) to the next; of a single line it does not matter."""
    return array.shape[1] if array.flags.c_contiguous else array.strides[0] // array.itemsize


def address(array: Array) -> int:
    """Where its first element lies."""
    return int(array.__array_interface__["data"][0])


@cache
def function(name: str) -> Any:
    """A function of the library by its name in the source, that for this processor; it takes a pointer to a structure.
    Raises MattingError as `load`."""
    found = getattr(load(), f"{name}_{isa()}")
    found.argtypes, found.restype = (ctypes.c_void_p,), None
    return found


def isa() -> str:
    """Which of `ISAS` is used: the best that this processor has. RTBG_ISA names a lesser one, for tests. Raises
    MattingError as `load`."""
    best = ISAS[load().rtbg_isa()]
    asked = os.environ.get("RTBG_ISA", best)
    return min(best, asked, key=ISAS.index) if asked in ISAS else best


def describe() -> str:
    """For people: what it was built for. Raises MattingError as `load`."""
    return f"{'-'.join(this_target())}{' with AVX2' if isa() == 'v3' else ''}"


@cache
def load() -> ctypes.CDLL:
    """The library for this system. Raises MattingError where there is none, or it does not load."""
    target = this_target()
    path = FOLDER / library_name(target)
    if target not in TARGETS:
        built = ", ".join("-".join(t) for t in TARGETS)
        raise MattingError(f"rtbg has no native code for {'-'.join(target)}: it runs on {built}")
    try:
        return ctypes.CDLL(str(path))
    except OSError as exc:
        raise MattingError(
            f"rtbg's native code for {'-'.join(target)} cannot be loaded ({' '.join(str(exc).split())}): in a clone, "
            f"pip install ziglang && python -m rtbg.native.build --only {'-'.join(target)}"
        ) from exc


def source_hash() -> str:
    """Of all that the libraries are made of: hexadecimal SHA-256."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def this_target() -> tuple[str, str]:
    """(system, processor) as in `TARGETS`."""
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    # On Windows that of Python itself, which may be emulated on another.
    cpu = sysconfig.get_platform().rpartition("-")[2] if system == "windows" else platform.machine().lower()
    return system, {"amd64": "x86_64", "arm64": "aarch64"}.get(cpu, cpu)


def library_name(target: tuple[str, str]) -> str:
    """File name of the library for a (system, processor)."""
    system, cpu = target
    return f"rtbg-{system}-{cpu}.{_SUFFIX.get(system, 'so')}"
