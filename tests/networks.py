"""Small networks of every signature that `engines` knows, made on the fly with ONNX, for the tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

from engines import EngineError

ENGINES = ["openvino", "onnxruntime"]
# What GPU tests compare with: machines that are lent for a while may be without OpenVINO.
REFERENCE = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
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


def make_segmenter(
    path: Path,
    *,
    layout: str = "nchw",
    out: int = 1,
    side: tuple[str | int, str | int] = ("H", "W"),
    batch: str | int = 1,
    last: str | None = "Sigmoid",
    **more,
) -> Path:
    """A segmenter, `image` to `score`: `segmenter_logits` of the picture, then `last` ("Sigmoid", "Softmax" or None).

    more: half (the answer at half size), channels (of the input), squeeze (no channel axis), extra (a second output),
    nan (answers NaN)."""
    nodes, values = [], {"w": SEGMENTER_WEIGHTS[:out].reshape(out, 3, 1, 1), "b": SEGMENTER_BIAS[:out]}
    name = "image"
    if layout == "nhwc":
        nodes.append(oh.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]))
        name = "t"
    if more.get("half"):
        nodes.append(oh.make_node("AveragePool", [name], ["p"], kernel_shape=[2, 2], strides=[2, 2]))
        name = "p"
    nodes.append(oh.make_node("Conv", [name, "w", "b"], ["logits"]))
    name = "logits"
    if last:
        nodes.append(oh.make_node(last, [name], ["act"], **({"axis": 1} if last == "Softmax" else {})))
        name = "act"
    if more.get("nan"):
        nodes += [oh.make_node("Sub", [name, name], ["zero"]), oh.make_node("Div", ["zero", "zero"], ["none"])]
        name = "none"
    if layout == "nhwc":
        nodes.append(oh.make_node("Transpose", [name], ["back"], perm=[0, 2, 3, 1]))
        name = "back"
    if more.get("squeeze"):
        values["one"] = np.array([1])
        nodes.append(oh.make_node("Squeeze", [name, "one"], ["flat"]))
        name = "flat"
    nodes.append(oh.make_node("Identity", [name], ["score"]))
    results = [oh.make_tensor_value_info("score", TensorProto.FLOAT, None)]
    if more.get("extra"):
        nodes.append(oh.make_node("Neg", [name], ["rest"]))
        results.append(oh.make_tensor_value_info("rest", TensorProto.FLOAT, None))
    channels = more.get("channels", 3)
    shape = [batch, *side, channels] if layout == "nhwc" else [batch, channels, *side]
    image = oh.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    return save(path, nodes, [image], results, values)


SEGMENTER_WEIGHTS = np.array([[3, -4, -1], [8, -10, -2]], np.float32)
SEGMENTER_BIAS = np.array([0.5, 0], np.float32)


def segmenter_logits(picture: np.ndarray, out: int = 1) -> np.ndarray:
    """(out, H, W): what `make_segmenter` computes before its activation, of a (3, H, W) picture as it is fed."""
    return np.einsum("chw,oc->ohw", picture, SEGMENTER_WEIGHTS[:out]) + SEGMENTER_BIAS[:out, None, None]


def make_mattor(path: Path, *, ratio: bool = True, drop: str = "", channels: int = 3) -> Path:
    """A recurrent mattor with Robust Video Matting's interface, whose states matter.

    Each state is stretched from what comes in (so 1x1x1x1 zeros will do), at half, a quarter ... of the size after
    `downsample_ratio`: r' = 0.5 r + 0.5 red. pha = r1' enlarged again; so it nears the red channel picture by picture.
    drop: an output to leave out. ratio: False for one without `downsample_ratio`."""
    f = TensorProto.FLOAT
    values = {"half": np.array(0.5, np.float32), "two": np.ones(2, np.float32)}
    values |= {"starts": np.array([0]), "ends": np.array([1]), "axes": np.array([1])}
    nodes = [oh.make_node("Slice", ["src", "starts", "ends", "axes"], ["red"])]
    name = "red"
    if ratio:
        nodes.append(oh.make_node("Concat", ["two", "downsample_ratio", "downsample_ratio"], ["scales"], axis=0))
        nodes.append(oh.make_node("Resize", ["red", "", "scales"], ["small"], mode="linear"))
        name = "small"
    for k in range(1, 5):
        nodes += [
            oh.make_node("AveragePool", [name], [f"x{k}"], kernel_shape=[2, 2], strides=[2, 2]),
            oh.make_node("Shape", [f"x{k}"], [f"s{k}"]),
            oh.make_node("Expand", [f"r{k}i", f"s{k}"], [f"e{k}"]),
            oh.make_node("Add", [f"x{k}", f"e{k}"], [f"a{k}"]),
            oh.make_node("Mul", [f"a{k}", "half"], [f"r{k}o"]),
        ]
        name = f"x{k}"
    nodes += [
        oh.make_node("Shape", ["red"], ["whole"]),
        oh.make_node("Resize", ["r1o", "", "", "whole"], ["pha"], mode="nearest"),
        oh.make_node("Identity", ["src"], ["fgr"]),
    ]
    inputs = [oh.make_tensor_value_info("src", f, ["N", channels, "H", "W"])]
    inputs += [oh.make_tensor_value_info(f"r{k}i", f, [f"{a}{k}" for a in "nchw"]) for k in range(1, 5)]
    if ratio:
        inputs.append(oh.make_tensor_value_info("downsample_ratio", f, [1]))
    names = [n for n in ("fgr", "pha", "r1o", "r2o", "r3o", "r4o") if n != drop]
    return save(path, nodes, inputs, [oh.make_tensor_value_info(n, f, list("abcd")) for n in names], values)


def save(path: Path, nodes: list, inputs: list, outputs: list, values: dict[str, np.ndarray]) -> Path:
    """Writes a graph; `values` are its constants."""
    constants = [numpy_helper.from_array(v, n) for n, v in values.items()]
    graph = oh.make_graph(nodes, "net", inputs, outputs, constants)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def run_onnx(model: onnx.ModelProto | bytes, frame: np.ndarray) -> np.ndarray:
    """The first output of a graph of one input, by ONNX Runtime."""
    import onnxruntime

    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: frame})[0]


def quantised(path: Path) -> Path:
    """`make_network` with INT8 weights and inputs of its convolutions, in Q/DQ nodes."""
    f = TensorProto.FLOAT
    rng = np.random.default_rng(0)
    values = {"zero": np.int8(0), "scale": np.float32(1 / 127), "wide": np.float32(0.1), "one": np.float32(0.01)}
    values |= {n: rng.integers(-60, 60, s).astype(np.int8) for n, s in (("w1", (8, 4, 3, 3)), ("w2", (1, 8, 3, 3)))}
    nodes = []
    for x, scale, weight, y in (("frame", "scale", "w1", "a"), ("b", "wide", "w2", "c")):
        nodes += [
            oh.make_node("QuantizeLinear", [x, scale, "zero"], [f"{x}q"]),
            oh.make_node("DequantizeLinear", [f"{x}q", scale, "zero"], [f"{x}d"]),
            oh.make_node("DequantizeLinear", [weight, "one", "zero"], [f"{weight}d"]),
            oh.make_node("Conv", [f"{x}d", f"{weight}d"], [y], pads=[1] * 4),
        ]
        if y == "a":
            nodes.append(oh.make_node("Relu", ["a"], ["b"]))
    nodes.append(oh.make_node("Sigmoid", ["c"], ["alpha"]))
    return save(
        path,
        nodes,
        [oh.make_tensor_value_info("frame", f, [1, 4, "H", "W"])],
        [oh.make_tensor_value_info("alpha", f, [1, 1, "H", "W"])],
        values,
    )


def unsigned(tmp_path: Path) -> tuple[Path, Path]:
    """(`make_network` as ONNX Runtime quantises it: unsigned activations, biases of 32 bits; the same in float)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        rest = iter([{"frame": noise(SIZES[0], seed)} for seed in range(4)])

        def get_next(self):
            return next(self.rest, None)

    f, rng = TensorProto.FLOAT, np.random.default_rng(5)
    values = {"w1": rng.normal(size=(8, 4, 3, 3)) * 0.3, "b1": rng.normal(size=8)}
    values |= {"w2": rng.normal(size=(1, 8, 3, 3)) * 0.1, "b2": rng.normal(size=1)}
    nodes = [
        oh.make_node("Conv", ["frame", "w1", "b1"], ["a"], pads=[1] * 4),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Conv", ["b", "w2", "b2"], ["c"], pads=[1] * 4),
        oh.make_node("Sigmoid", ["c"], ["alpha"]),
    ]
    ends = [oh.make_tensor_value_info(n, f, [1, c, "H", "W"]) for n, c in (("frame", 4), ("alpha", 1))]
    plain = save(
        tmp_path / "plain.onnx", nodes, ends[:1], ends[1:], {n: v.astype(np.float32) for n, v in values.items()}
    )
    options = {"quant_format": QuantFormat.QDQ, "per_channel": True}
    options |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(plain), str(tmp_path / "u.onnx"), Pictures(), op_types_to_quantize=["Conv"], **options)
    return tmp_path / "u.onnx", plain


def capabilities() -> list[str]:
    """What OpenVINO computes in on this CPU."""
    openvino = pytest.importorskip("openvino")
    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
