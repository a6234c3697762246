"""What a network costs, counted in its ONNX graph. Used by `benchmarks.quality`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
UNCOUNTED = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "FusedConv", "Einsum", "If", "Loop")


@dataclass(frozen=True)
class Cost:
    """parameters: numbers in the file's constants, however they are stored (floats of any width, integers behind a
    DequantizeLinear); single numbers, such as the bounds of a Clip, and the scales and zero points of a quantised file
    are none, so a network has as many in fp32, fp16 and int8. macs: multiply-adds of its convolutions (transposed ones
    too) and matrix products for one picture; everything else is left out, as is usual."""

    parameters: int
    macs: int


def count(path: Path, size: tuple[int, int]) -> Cost:
    """The cost of a network at (width, height): runs it once, unoptimised, to see the shapes of its tensors.

    Its first input of four dimensions is the picture; what else is free in its inputs is 1. Raises ValueError for a
    graph with operators whose multiply-adds are not counted here."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(path))
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    unknown = sorted({n.op_type for n in model.graph.node} & set(UNCOUNTED))
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} cannot be counted: give the graph before it was fused")
    parameters = sum(math.prod(constants[n].dims) for n in weights(model.graph, constants))
    nodes = [n for n in model.graph.node if n.op_type in COUNTED]
    inputs = [i for i in model.graph.input if i.name not in constants]
    watched = {n for node in nodes for n in (*node.input[:2], *node.output)} - {i.name for i in inputs}
    watched -= {t.name for t in model.graph.initializer}
    kept = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(watched - kept))
    picture = next(i for i in inputs if len(i.type.tensor_type.shape.dim) == 4)
    feeds = {}
    for i in inputs:
        kind = i.type.tensor_type
        shape = shape_at(kind.shape.dim, size) if i is picture else [d.dim_value or 1 for d in kind.shape.dim]
        feeds[i.name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    shapes = {n: list(t.dims) for n, t in constants.items()} | {n: list(a.shape) for n, a in feeds.items()}
    shapes |= {n: list(np.shape(a)) for n, a in zip(names, session.run(names, feeds), strict=True)}
    return Cost(parameters, sum(node_macs(node, shapes) for node in nodes))


def weights(graph: Any, constants: dict[str, Any]) -> set[str]:
    """Names of the constants that are the network's parameters."""
    from onnx import TensorProto as T

    floats = (T.FLOAT, T.FLOAT16, T.BFLOAT16, T.DOUBLE)
    found = {n for n, t in constants.items() if t.data_type in floats}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found.difference_update(node.input[1:])
    found |= {n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    return {n for n in found if len(constants[n].dims) > 0}


def shape_at(sides: Any, size: tuple[int, int]) -> list[int]:
    """The shape of a picture at (width, height); `sides` as the file declares them, NCHW or NHWC."""
    last = sides[3].dim_value in (3, 4) and sides[1].dim_value not in (3, 4)
    channels = (sides[3] if last else sides[1]).dim_value or 3
    return [1, size[1], size[0], channels] if last else [1, channels, size[1], size[0]]


def node_macs(node: Any, shapes: dict[str, list[int]]) -> int:
    """Multiply-adds of one node of a kind in `COUNTED`."""
    out, first, second = shapes[node.output[0]], shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type in ("MatMul", "Gemm"):
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * first[0 if turned else -1]
    # Weights are (out, in / groups, kernel), transposed (in, out / groups, kernel): each is used once a grid point.
    grid = first if node.op_type == "ConvTranspose" else out
    return math.prod(second) * math.prod(grid[2:])
