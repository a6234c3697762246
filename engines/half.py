"""An fp32 ONNX graph as a strongly typed FP16 one, for TensorRT: precision there is what the graph says.

Made when a plan is compiled, from the one file that is shipped, so nothing travels twice and users' own models are
served too. Inputs and outputs stay float32: a Cast stands at each. Needs the `onnx` package, imported on use. Used by
`engines.tensorrt_engine`; `engines.torch_engine` reads files by it. Memory bound: the file, twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.errors import EngineError, ModelError, import_error
from engines.spec import Port

# Part of a plan's key: to be raised with every change here that changes graphs.
VERSION = 1
# Inputs that the operator's definition wants in float32 whatever the picture is in: Resize's regions and scales.
_STAYS = {"Resize": (1, 2), "Upsample": (1,)}
_QUANTISED = {"QuantizeLinear", "DequantizeLinear"}


def import_onnx() -> Any:
    """The `onnx` package. Raises EngineError with the pip command."""
    try:
        import onnx
        import onnx.numpy_helper
    except (ImportError, OSError) as exc:
        raise import_error("the package onnx", "onnx", "pip install onnx", exc) from exc
    return onnx


def port_of(onnx: Any, value: Any) -> Port:
    """An input or output of an ONNX graph as `engines.spec` describes it."""
    kind = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "undefined"
    sides = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Port(value.name, dtype, sides)


def folded(model: Any) -> bool:
    """Carries out the Casts of constants in an onnx.ModelProto, in place: `training.export` stores filters at half
    their size so. Whether there were any."""
    onnx = import_onnx()
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in constants]
    for node in casts:
        (to,) = (a.i for a in node.attribute if a.name == "to")
        values = onnx.numpy_helper.to_array(constants[node.input[0]])
        graph.initializer.append(
            onnx.numpy_helper.from_array(values.astype(onnx.helper.tensor_dtype_to_np_dtype(to)), node.output[0])
        )
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for name in {node.input[0] for node in casts} - read:
        graph.initializer.remove(constants[name])
    return bool(casts)


def is_quantised(model: Any) -> bool:
    """Whether a graph holds Q/DQ nodes: it then says its precisions itself."""
    return any(node.op_type in _QUANTISED for node in model.graph.node)


def symmetric(model: Any) -> None:
    """Makes the Q/DQ nodes of an onnx.ModelProto ones that TensorRT takes, in place: signed 8 bits around zero for
    activations (the range stays, on half the steps where that was one-sided), biases in float32 again."""
    onnx = import_onnx()
    graph, to_array = model.graph, onnx.numpy_helper.to_array
    values = {t.name: t for t in graph.initializer}
    for node in [n for n in graph.node if n.op_type in _QUANTISED]:
        scale = to_array(values[node.input[1]])
        zero = to_array(values[node.input[2]]) if len(node.input) > 2 else np.zeros((), np.int8)
        fixed = values.get(node.input[0])
        if fixed is not None and fixed.data_type == onnx.TensorProto.INT32:
            graph.initializer.append(
                onnx.numpy_helper.from_array((to_array(fixed) * scale).astype(np.float32), node.output[0])
            )
            graph.node.remove(node)
        elif zero.dtype == np.uint8:
            if fixed is not None:
                raise _cannot("unsigned 8-bit filters", "INT8 for TensorRT")
            reach = np.maximum(zero, 255 - zero).astype(np.float32)
            name = f"{node.input[1]}__{node.input[2]}__signed"
            if name not in values:
                made = onnx.numpy_helper.from_array((scale * reach / 127).astype(np.float32), name)
                none = onnx.numpy_helper.from_array(np.zeros(zero.shape, np.int8), f"{name}__zero")
                graph.initializer.extend([made, none])
                values |= {name: made, none.name: none}
            if (
                node.op_type == "QuantizeLinear"
            ):  # what its range cut off, a ReLU or ReLU6, the wider one would let pass
                ends = [float(((end - zero) * scale).item()) for end in (np.float32(0), np.float32(255))]
                for end, value in zip(("low", "high"), ends, strict=True):
                    if f"{name}__{end}" not in values:
                        values[f"{name}__{end}"] = onnx.numpy_helper.from_array(np.float32(value), f"{name}__{end}")
                        graph.initializer.append(values[f"{name}__{end}"])
                inputs = [node.input[0], f"{name}__low", f"{name}__high"]
                node.input[0] = f"{node.output[0]}__kept"
                index = list(graph.node).index(node)
                graph.node.insert(index, onnx.helper.make_node("Clip", inputs, [node.input[0]]))
            node.input[1], node.input[2] = name, f"{name}__zero"


def to_half(model: Any) -> Any:
    """A copy of an onnx.ModelProto, computed in FP16 from its inputs to its outputs, both of which stay float32.

    Raises ModelError for a graph that cannot be: with weights beyond FP16, branches, or computed Resize scales."""
    onnx = import_onnx()
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    inputs = {i.name for i in graph.input if i.type.tensor_type.elem_type == float32}
    outputs = {o.name for o in graph.output if o.type.tensor_type.elem_type == float32}
    constants = {t.name for t in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    inputs -= constants
    stays: set[str] = set()  # constants that some operator wants in float32
    changes: set[str] = set()  # those that the others read
    for node in graph.node:
        for index, name in enumerate(node.input):
            fixed = bool(name) and index in _STAYS.get(node.op_type, ())
            if fixed and name not in constants:
                raise _cannot(f"{node.op_type} with scales that are computed")
            (stays if fixed else changes).add(name)
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise _cannot(f"{node.op_type} with a graph inside")
    made = []
    for tensor in list(graph.initializer):
        if tensor.data_type == float32 and tensor.name in changes:
            copy = _halved(onnx, tensor)
            if tensor.name in stays:
                copy.name += "__half"
                made.append(copy)
            else:
                tensor.CopyFrom(copy)
    graph.initializer.extend(made)
    both = {t.name.removesuffix("__half") for t in made}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if index in _STAYS.get(node.op_type, ()):
                continue
            if name in inputs or name in both:
                node.input[index] = f"{name}__half"
        for index, name in enumerate(node.output):
            if name in outputs:
                node.output[index] = f"{name}__half"
        if node.op_type == "Constant" and node.output[0] in stays:
            if node.output[0] in changes:
                raise _cannot("a constant of two uses")
            continue
        for attribute in node.attribute:
            _retype(onnx, node, attribute)
    # A result that another node reads was renamed where it is made: rename it there too.
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in outputs and index not in _STAYS.get(node.op_type, ()):
                node.input[index] = f"{name}__half"
    casts_in = [onnx.helper.make_node("Cast", [n], [f"{n}__half"], to=float16) for n in sorted(inputs)]
    casts_out = [onnx.helper.make_node("Cast", [f"{n}__half"], [n], to=float32) for n in sorted(outputs - inputs)]
    nodes = [*casts_in, *graph.node, *casts_out]
    del graph.node[:], graph.value_info[:]  # the types noted between are no longer true
    graph.node.extend(nodes)
    return half


def _halved(onnx: Any, tensor: Any) -> Any:
    values = onnx.numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise _cannot(f"the constant {tensor.name} is beyond FP16's range")
    return onnx.numpy_helper.from_array(halves, tensor.name)


def _retype(onnx: Any, node: Any, attribute: Any) -> None:
    """float32 in an attribute that sets the type of a result becomes float16."""
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    if node.op_type == "Cast" and attribute.name == "to" and attribute.i == float32:
        attribute.i = float16
    elif attribute.HasField("t") and attribute.t.data_type == float32:
        attribute.t.CopyFrom(_halved(onnx, attribute.t))
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        tensor = onnx.numpy_helper.from_array(np.array(values, np.float32), node.output[0])
        attribute.CopyFrom(onnx.helper.make_attribute("value", _halved(onnx, tensor)))


def _cannot(why: str, what: str = "FP16") -> EngineError:
    return ModelError(f"the graph cannot be made {what} ({why}): use precision f32")
