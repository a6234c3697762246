"""Depthwise convolution between two ReLU6, made for training on CPUs.

Two thirds of a training step on a CPU went into the encoder's depthwise filters and what is around them, one pass over
memory each: norm, ReLU6, padding, the slopes of all these. Where the norms are held still (`TrainConfig.hold_norms`)
they fold into the filters, and what is left is one pass forward and one back (`depthwise.cpp`), compiled here with the
system's C++ compiler: `balanced` at full size learnt from 10 pictures a second before and from 25 after.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
LANES = 16  # channels at a time
COMPILE = ("g++", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-trapping-math", "-std=c++17", "-Wno-psabi")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions; None, and a line on stderr, where there is no compiler for them."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "depthwise.so"
        try:
            subprocess.run([*COMPILE, "-shared", "-fPIC", SOURCE, "-o", built], check=True, capture_output=True)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as exc:
            print(f"depthwise filters stay slow, no compiler made them fast: {exc}", file=sys.stderr, flush=True)
            return None


def usable(x: Tensor, channels: int, kernel: int) -> bool:
    """Whether `FilteredBetween` can be used for this map."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or channels % LANES or kernel not in (3, 5):
        return False
    return library() is not None


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
        shape = (ctypes.c_int * 9)(n, h, w, c, k, stride, (k - stride) // 2, ho, wo)
        taps = weight.detach().float().reshape(c, k * k).t().contiguous()
        start = bias.detach().float().contiguous()
        y = torch.empty((n, c, ho, wo), dtype=torch.bfloat16, memory_format=torch.channels_last)
        done.depthwise_forward(shape, *map(_at, (z, taps, start, y)))
        ctx.save_for_backward(z, y, taps)
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of the map, the filters and the biases."""
        done = library()
        assert done is not None
        z, y, taps = ctx.saved_tensors
        k = ctx.shape[4]
        dy = grads[0].to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        dz, dtaps, dbias = torch.empty_like(z), torch.empty_like(taps), taps.new_empty(taps.shape[1])
        done.depthwise_backward(ctx.shape, *map(_at, (z, y, dy, taps, dz, dtaps, dbias)))
        return dz, dtaps.t().reshape(-1, 1, k, k), dbias, None


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
