"""An ONNX graph as plain torch operations: what `training.export` emits, and what little else comes at no cost.

Nothing is guessed: an operator, or a use of one, that is not handled here is refused by its name. The graph is read
once; what depends on constants only (paddings, slices, factors) is settled then. torch and onnx are imported on use.
Used by `engines.torch_engine`. Memory bound: the weights; while running, the tensors still needed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.errors import EngineError
from engines.spec import Array

Step = Callable[..., Any]


@dataclass(frozen=True)
class _Node:
    """A node while it is translated. constants: by position, of those inputs whose values are known; has: whether an
    input at a position is given at all."""

    kind: str
    name: str
    attributes: Mapping[str, Any]
    inputs: Sequence[str]
    constants: Mapping[int, Array]

    def refuse(self, why: str = "") -> EngineError:
        return EngineError(
            f"the torch engine does not know {self.kind}{f' {why}' if why else ''} (node {self.name or '?'}): "
            "use the engine openvino or onnxruntime"
        )

    def numbers(self, index: int, attribute: str, default: Any = None) -> Any:
        """A list of plain numbers, or one, from a constant input or, in older files, an attribute."""
        if index < len(self.inputs) and self.inputs[index]:
            if index not in self.constants:
                raise self.refuse(f"whose input {index} is computed")
            return self.constants[index].tolist()
        return self.attributes.get(attribute, default)


class Network:
    """A graph on one device in one precision. Called with tensors on that device; one thread at a time."""

    def __init__(self, model: Any, *, device: Any, dtype: Any) -> None:
        """model: an onnx.ModelProto. Floating point constants become `dtype` on `device`, inputs are expected so.
        Raises EngineError that names the operator where one is not known."""
        import onnx
        import torch

        graph = model.graph
        values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                values[node.output[0]] = _constant(onnx, node)
        self.inputs = [i.name for i in graph.input if i.name not in values]
        self.outputs = [o.name for o in graph.output]
        self._constants: dict[str, Any] = {}
        self._steps: list[tuple[Step, list[str], str, list[str]]] = []
        last: dict[str, int] = {}
        nodes = [n for n in graph.node if n.op_type != "Constant"]
        makers = {n.output[0]: n.op_type for n in nodes}
        for index, node in enumerate(nodes):
            last |= dict.fromkeys(node.input, index)
        for index, node in enumerate(nodes):
            known = {k: values[n] for k, n in enumerate(node.input) if n in values}
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            described = _Node(node.op_type, node.name, attributes, list(node.input), known)
            make = _MAKERS.get(node.op_type)
            if make is None or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
                raise described.refuse()
            taken = [n for k, n in enumerate(node.input) if n and k not in _SETTLED.get(node.op_type, ())]
            step = make(torch, described)
            for name in taken:
                if name in values and name not in self._constants:
                    self._constants[name] = _tensor(torch, values[name], device, dtype)
            alive = {"", *values, *self.outputs}
            dead = [n for n in set(node.input) if last[n] == index and n not in alive]
            if node.op_type == "Relu" and node.input[0] in dead and makers.get(node.input[0]) in ("Conv", "Add"):
                step = torch.relu_  # a tensor of its own, that nobody else reads
            self._steps.append((step, taken, node.output[0], dead))

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The graph's outputs by name."""
        values = {**self._constants, **feeds}
        for step, taken, made, dead in self._steps:
            values[made] = step(*[values[n] for n in taken])
            for name in dead:
                del values[name]
        return {name: values[name] for name in self.outputs}


def _constant(onnx: Any, node: Any) -> Array:
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    return np.asarray(onnx.numpy_helper.to_array(value) if attribute.HasField("t") else value)


def _tensor(torch: Any, value: Array, device: Any, dtype: Any) -> Any:
    tensor = torch.from_numpy(np.array(value))
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    tensor = tensor.to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _paddings(node: _Node) -> tuple[list[int], list[int]]:
    """(what both sides of each axis share, what F.pad is to add before that: empty where there is nothing)."""
    if node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise node.refuse("with auto_pad")
    pads = list(node.attributes.get("pads", [0, 0, 0, 0]))
    if len(pads) != 4:
        raise node.refuse("in other than two dimensions")
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return [top, left], []
    return [0, 0], [left, right, top, bottom]


def _conv(torch: Any, node: _Node) -> Step:
    functional = torch.nn.functional
    padding, before = _paddings(node)
    options = {
        "stride": list(node.attributes.get("strides", [1, 1])),
        "dilation": list(node.attributes.get("dilations", [1, 1])),
        "groups": int(node.attributes.get("group", 1)),
        "padding": padding,
    }
    if before:
        return lambda x, w, b=None: functional.conv2d(functional.pad(x, before), w, b, **options)
    return lambda x, w, b=None: functional.conv2d(x, w, b, **options)


def _pool(torch: Any, node: _Node) -> Step:
    functional = torch.nn.functional
    padding, before = _paddings(node)
    size, stride = list(node.attributes["kernel_shape"]), list(node.attributes.get("strides", [1, 1]))
    if before or any(d != 1 for d in node.attributes.get("dilations", [1, 1])):
        raise node.refuse("with such paddings or dilations")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if node.kind == "MaxPool":
        return lambda x: functional.max_pool2d(x, size, stride, padding, ceil_mode=ceil)
    counted = bool(node.attributes.get("count_include_pad", 0))
    return lambda x: functional.avg_pool2d(x, size, stride, padding, ceil_mode=ceil, count_include_pad=counted)


def _resize(torch: Any, node: _Node) -> Step:
    functional = torch.nn.functional
    way = node.attributes.get("mode", b"nearest"), node.attributes.get("coordinate_transformation_mode", b"half_pixel")
    options: dict[str, Any]
    if way[0] == b"linear" and way[1] in (b"half_pixel", b"pytorch_half_pixel"):
        options = {"mode": "bilinear", "align_corners": False}
    elif way[0] == b"linear" and way[1] == b"align_corners":
        options = {"mode": "bilinear", "align_corners": True}
    elif way == (b"nearest", b"asymmetric") and node.attributes.get("nearest_mode") == b"floor":
        options = {"mode": "nearest"}
    else:
        raise node.refuse(f"with {way[0].decode()} and {way[1].decode()}")
    if node.attributes.get("antialias", 0) or node.attributes.get("axes"):
        raise node.refuse("with antialias or axes")
    if len(node.inputs) > 3 and node.inputs[3]:
        size = [int(n) for n in node.numbers(3, "sizes")][2:]
        return lambda x: functional.interpolate(x, size=size, **options)
    scales = node.numbers(2, "scales")
    if not scales or len(scales) != 4 or scales[:2] != [1, 1]:
        raise node.refuse("of other than height and width")
    factor = (float(scales[2]), float(scales[3]))
    return lambda x: functional.interpolate(x, scale_factor=factor, **options)


def _slice(torch: Any, node: _Node) -> Step:
    starts, ends = node.numbers(1, "starts"), node.numbers(2, "ends")
    axes = node.numbers(3, "axes", list(range(len(starts))))
    steps = node.numbers(4, "steps", [1] * len(starts))
    if any(s < 1 for s in steps):
        raise node.refuse("backwards")

    def cut(x: Any) -> Any:
        index = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index[axis] = slice(start, end, step)
        return x[tuple(index)]

    return cut


def _mean(torch: Any, node: _Node) -> Step:
    axes = node.numbers(1, "axes")
    if not axes:
        raise node.refuse("over all axes")
    keep = bool(node.attributes.get("keepdims", 1))
    return lambda x: x.mean(dim=axes, keepdim=keep)


def _depth_to_space(torch: Any, node: _Node) -> Step:
    size = int(node.attributes["blocksize"])
    if node.attributes.get("mode", b"DCR") != b"CRD":
        raise node.refuse("in the order DCR")
    return lambda x: torch.nn.functional.pixel_shuffle(x, size)


def _concat(torch: Any, node: _Node) -> Step:
    axis = int(node.attributes["axis"])
    return lambda *parts: torch.cat(parts, dim=axis)


def _clip(torch: Any, node: _Node) -> Step:
    low, high = node.numbers(1, "min"), node.numbers(2, "max")
    return lambda x: torch.clamp(x, low, high)


def _plain(pick: Callable[[Any], Step]) -> Callable[[Any, _Node], Step]:
    return lambda torch, _node: pick(torch)


_MAKERS: dict[str, Callable[[Any, _Node], Step]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _plain(lambda torch: lambda x: x.mean(dim=(2, 3), keepdim=True)),
    "ReduceMean": _mean,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "Slice": _slice,
    "Concat": _concat,
    "Clip": _clip,
    "Relu": _plain(lambda torch: torch.relu),
    "Sigmoid": _plain(lambda torch: torch.sigmoid),
    "HardSwish": _plain(lambda torch: torch.nn.functional.hardswish),
    "Add": _plain(lambda torch: operator.add),
    "Sub": _plain(lambda torch: operator.sub),
    "Mul": _plain(lambda torch: operator.mul),
    "Div": _plain(lambda torch: operator.truediv),
    "Identity": _plain(lambda torch: lambda x: x),
}
# Inputs that a maker has already read.
_SETTLED: dict[str, tuple[int, ...]] = {
    "Slice": (1, 2, 3, 4),
    "Resize": (1, 2, 3),
    "ReduceMean": (1,),
    "Clip": (1, 2),
}
