"""Depthwise convolution between two ReLU6, made for training on CPUs.

Two thirds of a training step on a CPU went into the encoder's depthwise filters and what is around them, one pass over
memory each: norm, ReLU6, padding, the slopes of all these. Where the norms are held still (`TrainConfig.hold_norms`)
they fold into the filters, and what is left is one pass forward and one back (`depthwise.cpp`), compiled here with the
system's C++ compiler: `balanced` at full size learnt from 10 pictures a second before and from 25 after, on one core.
Used wherever the network runs in bfloat16 on a CPU with its norms held: teachers and the network's own pasts, too.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
LANES = 16  # channels at a time
COMPILE = ("g++", "-O3", "-march=native", "-fno-trapping-math", "-std=c++17", "-Wno-psabi")
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions; None, and a line on stderr, where there is no compiler for them."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps what is loaded
        built = Path(folder) / "depthwise.so"
        try:
            command = [*COMPILE, *WIDE, "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as exc:
            said = (getattr(exc, "stderr", "") or str(exc)).strip().splitlines()[-1]
            print(f"depthwise filters stay slow, {COMPILE[0]} does not make them fast: {said}", file=sys.stderr)
            return None


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "depthwise")


def _in_parts(pictures: int, work: Callable[[int, int], None]) -> None:
    """work(begin, end) for parts of a batch, on as many threads as torch uses."""
    count = min(pictures, torch.get_num_threads())
    ends = [pictures * k // count for k in range(count + 1)]
    if count == 1:
        work(0, pictures)
    else:
        list(_threads(count).map(work, ends, ends[1:]))


def usable(x: Tensor, channels: int, kernel: int, stride: int) -> bool:
    """Whether `FilteredBetween` can be used for this map, and gives what `Same` does."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or channels % LANES or kernel not in (3, 5):
        return False
    return not (x.shape[2] % stride or x.shape[3] % stride) and library() is not None


class FilteredBetween(torch.autograd.Function):
    """relu6(filter(relu6(z)) + bias), a filter per channel; padded so that the odd pixel goes right and below."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        """bfloat16 (N, C, ceil(H / stride), ceil(W / stride)). `z` (N, C, H, W); `weight` (C, 1, K, K), K 3 or 5;
        `bias` (C,)."""
        done = library()
        assert done is not None
        n, c, h, w = z.shape
        k = weight.shape[-1]
        z = z.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        ho, wo = -(-h // stride), -(-w // stride)
        shape = (h, w, c, k, stride, (k - stride) // 2, ho, wo)
        taps = weight.detach().float().reshape(c, k * k).t().contiguous()
        start = bias.detach().float().contiguous()
        y = torch.empty((n, c, ho, wo), dtype=torch.bfloat16, memory_format=torch.channels_last)

        def work(begin: int, end: int) -> None:
            some = (ctypes.c_int * 9)(end - begin, *shape)
            done.depthwise_forward(some, _at(z, begin), _at(taps), _at(start), _at(y, begin))

        _in_parts(n, work)
        ctx.save_for_backward(z, y, taps)
        ctx.shape = shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of the map, the filters and the biases."""
        done = library()
        assert done is not None
        z, y, taps = ctx.saved_tensors
        c, k = ctx.shape[2:4]
        dy = grads[0].to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        dz, dtaps, dbias = torch.empty_like(z), torch.zeros_like(taps), taps.new_zeros(c)

        def work(begin: int, end: int) -> None:
            some = (ctypes.c_int * 9)(end - begin, *ctx.shape)
            mine = torch.empty_like(taps), torch.empty_like(dbias)
            given = (_at(z, begin), _at(y, begin), _at(dy, begin), _at(taps))
            done.depthwise_backward(some, *given, _at(dz, begin), *map(_at, mine))
            parts.append(mine)

        parts: list[tuple[Tensor, Tensor]] = []
        _in_parts(len(z), work)
        for more_taps, more_bias in parts:
            dtaps += more_taps
            dbias += more_bias
        return dz, dtaps.t().reshape(-1, 1, k, k), dbias, None


def _at(tensor: Tensor, row: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())
