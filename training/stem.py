"""The stem of an exported graph as one convolution of all four channels, as 8-bit integers can carry it out.

Used by `training.quantise`. The network filters the picture and the past apart and adds the two; here one filter of
4 x 4 does both (the picture's padding lies right and below, the past's all round). What is quantised is then the frame
itself, and of a picture whose codes are 0 to 255 nothing is lost: a step is one code, and zero, with which the
convolution pads, is the grey of code 128 for the picture and nobody for the past. The past has 128 values. (What
TensorRT gets has signed codes and 254 steps, see `engines.half`.)
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

SEEN = "seen"  # the frame, scaled: what is quantised
SCALE, ZERO = np.array(2 / 255, np.float32), np.array(128, np.uint8)
_PAST = 127 * 2 / 255  # what the past is scaled by: its 1 is the highest code
_PICTURE_FILTER, _PAST_FILTER = "encoder._conv_stem.weight", "past.weight"


def has_stem(model: onnx.ModelProto) -> bool:
    """Whether it is a graph of `training.lite.LiteUNet`, as exported."""
    return {_PICTURE_FILTER, _PAST_FILTER} <= {w.name for w in model.graph.initializer}


def merge_stem(model: onnx.ModelProto) -> None:
    """Puts it into the graph, whose filters are in fp32: the same function of the same frame, but for rounding and, by
    0.004 of the grey that pads it, the picture's last row and column."""
    graph = model.graph
    weights = {w.name: w for w in graph.initializer}
    convolution = {n.input[1]: n for n in graph.node if n.op_type == "Conv"}
    picture, past = convolution[_PICTURE_FILTER], convolution[_PAST_FILTER]
    (total,) = [n for n in graph.node if set(n.input) == {picture.output[0], past.output[0]}]
    of_picture = numpy_helper.to_array(weights[_PICTURE_FILTER]).astype(np.float64)
    bias = np.zeros(len(of_picture))  # the exporter leaves one of zeros out
    if len(picture.input) > 2:
        bias += numpy_helper.to_array(weights[picture.input[2]])
    of_past = numpy_helper.to_array(weights[_PAST_FILTER]).astype(np.float64)
    filters = np.zeros((len(bias), 4, 4, 4))
    filters[:, :3, 1:, 1:] = of_picture
    filters[:, 3:, :3, :3] = of_past / _PAST
    bias += of_picture.sum((1, 2, 3)) / 255  # grey is 128/255, where the network's is 127.5/255
    values = {
        "seen.scale": np.reshape([2, 2, 2, _PAST], (1, 4, 1, 1)),
        "seen.offset": np.reshape([-256 / 255] * 3 + [0], (1, 4, 1, 1)),
        "stem.weight": filters,
        "stem.bias": bias,
    }
    nodes = [
        helper.make_node("Mul", ["frame", "seen.scale"], ["scaled"], "node_scaled"),
        helper.make_node("Add", ["scaled", "seen.offset"], [SEEN], "node_seen"),
        helper.make_node(
            "Conv",
            [SEEN, "stem.weight", "stem.bias"],
            list(total.output),
            "node_stem",
            kernel_shape=[4, 4],
            strides=[2, 2],
            pads=[1, 1, 2, 2],
        ),
    ]
    gone = [picture, past, total, *_from_frame(graph, picture.input[0]), *_from_frame(graph, past.input[0])]
    for node in gone:
        graph.node.remove(node)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    used = {name for node in graph.node for name in node.input}
    for weight in [w for w in graph.initializer if w.name not in used]:
        graph.initializer.remove(weight)
    graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items())


def _from_frame(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """The nodes between the frame and a tensor, each with one input that is no constant."""
    makers = {n.output[0]: n for n in graph.node}
    found = []
    while name != "frame":
        found.append(makers[name])
        name = found[-1].input[0]
    return found
