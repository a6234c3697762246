"""What a network costs, counted in its ONNX graph. Used by `benchmarks.quality`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Cost:
    """parameters: of the file's constants, all of floats or of 8 bits. macs: multiply-adds of its convolutions
    (transposed ones too) and matrix products for one picture; everything else is left out, as is usual."""

    parameters: int
    macs: int


def count(path: Path, size: tuple[int, int]) -> Cost:
    """The cost of a network at (width, height): runs it once, unoptimised, to see the shapes of its tensors.

    Its first input of four dimensions is the picture; what else is free in its inputs is 1."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto as T

    model = onnx.load(str(path))
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    kinds = (T.FLOAT, T.FLOAT16, T.BFLOAT16, T.DOUBLE, T.INT8, T.UINT8)
    parameters = sum(math.prod(t.dims) for t in constants.values() if t.data_type in kinds)
    nodes = [n for n in model.graph.node if n.op_type in COUNTED]
    inputs = [i for i in model.graph.input if i.name not in constants]
    watched = {n for node in nodes for n in (*node.input[:2], *node.output)} - {i.name for i in inputs}
    watched -= {t.name for t in model.graph.initializer}
    kept = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(watched - kept))
    feeds = {i.name: np.ones([d.dim_value or 1 for d in i.type.tensor_type.shape.dim], np.float32) for i in inputs}
    picture = next(i for i in inputs if len(i.type.tensor_type.shape.dim) == 4)
    feeds[picture.name] = np.ones(shape_at(picture.type.tensor_type.shape.dim, size), np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    shapes = {n: list(t.dims) for n, t in constants.items()} | {n: list(a.shape) for n, a in feeds.items()}
    shapes |= {n: list(np.shape(a)) for n, a in zip(names, session.run(names, feeds), strict=True)}
    return Cost(parameters, sum(node_macs(node, shapes) for node in nodes))


def shape_at(sides: Any, size: tuple[int, int]) -> list[int]:
    """The shape of a picture at (width, height); `sides` as the file declares them, NCHW or NHWC."""
    last = sides[3].dim_value in (3, 4) and sides[1].dim_value not in (3, 4)
    channels = (sides[3] if last else sides[1]).dim_value or 3
    return [1, size[1], size[0], channels] if last else [1, channels, size[1], size[0]]


def node_macs(node: Any, shapes: dict[str, list[int]]) -> int:
    """Multiply-adds of one node of a kind in `COUNTED`."""
    out, first, second = shapes[node.output[0]], shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type in ("MatMul", "Gemm"):
        return math.prod(out) * first[-1]
    # Weights are (out, in / groups, kernel), transposed (in, out / groups, kernel): each is used once a grid point.
    grid = first if node.op_type == "ConvTranspose" else out
    return math.prod(second) * math.prod(grid[2:])
