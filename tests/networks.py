"""Small networks of the shipped models' signature, made on the fly with ONNX, for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

from engines import EngineError

ENGINES = ["openvino", "onnxruntime"]
SIZES = [(64, 48), (48, 64), (32, 32)]


def make_network(
    path: Path,
    *,
    seed: int = 0,
    channels: int = 4,
    out: int = 1,
    side: tuple[str | int, str | int] = ("H", "W"),
    **more,
) -> Path:
    """Convolution, ReLU, convolution, sigmoid: `frame` (1, channels, H, W) to `alpha` (1, out, H, W)."""
    kind, stride, last = more.get("kind", TensorProto.FLOAT), more.get("stride", 1), more.get("last", "Sigmoid")
    dtype = oh.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(seed)
    weights = {"w1": (8, channels, 3, 3), "w2": (out, 8, 3, 3)}
    nodes = [
        oh.make_node("Conv", ["frame", "w1"], ["a"], pads=[1] * 4, strides=[stride] * 2),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        oh.make_node(last, ["c"], ["alpha"]),
    ]
    ends: list[str | int] = list(side) if stride == 1 else ["h", "w"]
    graph = oh.make_graph(
        nodes,
        "net",
        [oh.make_tensor_value_info("frame", kind, [1, channels, *side])],
        [oh.make_tensor_value_info("alpha", kind, [1, out, *ends])],
        [numpy_helper.from_array((rng.normal(size=s) * 0.3).astype(dtype), n) for n, s in weights.items()],
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def expected(frame: np.ndarray, seed: int = 0) -> np.ndarray:
    """What `make_network` computes, in plain numpy."""
    rng = np.random.default_rng(seed)
    w1, w2 = ((rng.normal(size=s) * 0.3).astype(np.float32) for s in ((8, 4, 3, 3), (1, 8, 3, 3)))

    def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        return np.einsum("chwij,ocij->ohw", windows, w)

    return 1 / (1 + np.exp(-conv(np.maximum(conv(frame[0], w1), 0), w2)))[None]


def noise(size: tuple[int, int], seed: int = 1) -> np.ndarray:
    """float32 (1, 4, H, W) in 0..1."""
    return np.random.default_rng(seed).random((1, 4, size[1], size[0]), np.float32)


def one_line(info: pytest.ExceptionInfo[EngineError]) -> str:
    text = str(info.value)
    assert "\n" not in text
    assert 20 < len(text) < 700
    return text
