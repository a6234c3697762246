"""The graphs that TensorRT is given: strongly typed FP16, and INT8 with Q/DQ nodes."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import SIZES, make_network, make_segmenter, noise, one_line, quantised, run_onnx, save, unsigned
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

from engines import EngineError, available_models
from engines.half import to_half
from engines.int8 import eight_bits
from engines.segmenter import probe_picture
from engines.spec import find_model
from engines.swap import TOLERANCE
from engines.tensorrt_engine import Graphs


@pytest.mark.parametrize("model", available_models())
def test_half_of_the_shipped_models(model):
    spec = find_model(model)
    whole = onnx.load(str(spec.path))
    half = to_half(whole)
    onnx.checker.check_model(half, full_check=True)
    weights = {t.data_type for t in half.graph.initializer if len(t.dims) == 4}
    assert weights == {TensorProto.FLOAT16}
    assert [i.type.tensor_type.elem_type for i in (*half.graph.input, *half.graph.output)] == [TensorProto.FLOAT] * 2
    for size in spec.sizes[:2]:
        frame = probe_picture(*size)
        for _ in range(2):
            alpha = run_onnx(whole, frame)
            assert 0.1 < alpha.mean() < 0.9
            difference = np.abs(run_onnx(half, frame) - alpha)
            assert 0 < difference.max() < 0.1  # it really is another precision
            assert difference.mean() < 2e-3
            frame[0, 3] = alpha[0, 0]


def test_half_of_a_graph_that_reads_its_own_output():
    """And of constants with two uses, old-fashioned constants, casts."""
    f = TensorProto.FLOAT
    nodes = [
        oh.make_node("Constant", [], ["k"], value_float=0.5),
        oh.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([0.25]))),
        oh.make_node("Mul", ["x", "k"], ["y"]),
        oh.make_node("Resize", ["y", "", "s"], ["big"], mode="nearest"),
        oh.make_node("Mul", ["big", "s4"], ["z0"]),
        oh.make_node("Add", ["z0", "c"], ["z1"]),
        oh.make_node("Cast", ["z1"], ["z"], to=f),
        oh.make_node("Identity", ["s4s"], ["unused"]),
    ]
    values = {
        "s": np.float32([1, 1, 2, 2]),
        "s4": np.float32(2).reshape(1, 1, 1, 1),
        "s4s": np.zeros((1, 1, 1, 1), np.float32),
    }
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", f, [1, 1, "H", "W"])],
        [oh.make_tensor_value_info("y", f, None), oh.make_tensor_value_info("z", f, None)],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    half = to_half(model)
    x = np.float32([[[[1, 2], [3, 4]]]])
    for data in (model, half):
        y, z = onnxruntime.InferenceSession(data.SerializeToString()).run(["y", "z"], {"x": x})
        np.testing.assert_allclose(y, x / 2)
        np.testing.assert_allclose(z, np.kron(x, np.ones((2, 2))) + 0.25)


@pytest.mark.parametrize(("case", "says"), [("weights", "beyond FP16"), ("scales", "computed"), ("branch", "inside")])
def test_graphs_that_cannot_be_half(case, says, tmp_path):
    f = TensorProto.FLOAT
    values = {"w": np.float32([1e6 if case == "weights" else 1]), "two": np.float32([1, 1, 2, 2])}
    nodes = [oh.make_node("Mul", ["x", "w"], ["a"])]
    if case == "scales":
        nodes += [oh.make_node("Abs", ["two"], ["s"]), oh.make_node("Resize", ["a", "", "s"], ["y"])]
    elif case == "branch":
        branch = oh.make_graph(
            [oh.make_node("Identity", ["a"], ["b"])], "b", [], [oh.make_empty_tensor_value_info("b")]
        )
        values["yes"] = np.array(True)
        nodes.append(oh.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch))
    else:
        nodes.append(oh.make_node("Relu", ["a"], ["y"]))
    path = save(
        tmp_path / "net.onnx",
        nodes,
        [oh.make_tensor_value_info("x", f, [1, 4, "H", "W"])],
        [oh.make_tensor_value_info("y", f, [1, 1, "H", "W"])],
        values,
    )
    graphs = Graphs(find_model(path))
    with pytest.raises(EngineError, match=says) as info:
        graphs.made()
    one_line(info)


def test_precisions(tmp_path):
    spec = find_model(make_network(tmp_path / "net.onnx"))
    assert Graphs(spec).precision == "f16"
    assert Graphs(spec, "f32").precision == "f32"
    assert Graphs(spec, "f32").made() == spec.path.read_bytes()
    with pytest.raises(EngineError, match="bf16"):
        Graphs(spec, "bf16")
    with pytest.raises(EngineError, match=r"no INT8 graph \(net\.int8\.onnx\)"):
        Graphs(spec, "int8")
    other = find_model(make_segmenter(tmp_path / "seg.onnx"))
    assert Graphs(other).precision == "f32"  # other people's values may be beyond FP16
    quantised(tmp_path / "net.int8.onnx")
    assert Graphs(spec).precision == "f16"
    graphs = Graphs(spec, "int8")
    assert graphs.precision == "int8"
    np.testing.assert_array_equal(
        run_onnx(graphs.made(), noise(SIZES[0])), run_onnx((tmp_path / "net.int8.onnx").read_bytes(), noise(SIZES[0]))
    )
    assert Graphs(find_model(tmp_path / "net.int8.onnx")).precision == "int8"


def test_the_int8_graph_is_the_one_that_the_card_names(network):
    """Not another of that name: it may be quantised for other sizes, or be no longer the one that was measured."""
    beside = quantised(network.with_name("net.int8.onnx"))
    with pytest.raises(EngineError, match=r"net has no INT8 graph: use precision auto or f16"):
        Graphs(find_model(network), "int8")
    card = json.loads(network.with_suffix(".json").read_text())
    for digest in (hashlib.sha256(beside.read_bytes()).hexdigest(), "0" * 64):
        named = {"int8": {"file": beside.name, "sha256": digest}}
        network.with_suffix(".json").write_text(json.dumps(card | named))
        if digest.strip("0"):
            assert Graphs(find_model(network), "int8").path == beside
        else:
            with pytest.raises(EngineError, match=r"net\.int8\.onnx is not the file that its card describes") as info:
                Graphs(find_model(network), "int8")
            one_line(info)


@pytest.mark.parametrize("model", [m for m in available_models() if eight_bits(find_model(m))])
def test_int8_of_the_shipped_models(model):
    """With signed activations, on half the steps, they still are what a swap accepts."""
    spec = find_model(model)
    graphs = Graphs(spec, "int8")
    assert graphs.precision == "int8"
    made = onnx.load_from_string(graphs.made())
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    zeros = {kinds[n.input[2]] for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert zeros == {TensorProto.INT8}
    for size in spec.sizes[:2]:
        frame = probe_picture(*size)
        whole = run_onnx(spec.path.read_bytes(), frame)
        assert 0.1 < whole.mean() < 0.9
        assert 0 < np.abs(run_onnx(made, frame) - whole).mean() < TOLERANCE


def test_broken_file(tmp_path):
    path = tmp_path / "broken.onnx"
    for data in (b"x" * 3000, make_network(tmp_path / "whole.onnx").read_bytes()[:500], b"version https://git-lfs"):
        path.write_bytes(data)
        with pytest.raises(EngineError, match=r"broken\.onnx.*whole ONNX file") as info:
            Graphs(find_model(path))
        one_line(info)


def test_unsigned_graphs_are_made_signed(tmp_path):
    path, plain = unsigned(tmp_path)
    graphs = Graphs(find_model(path))
    made = onnx.load_from_string(graphs.made())
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    zeros = {kinds[n.input[2]] for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert zeros == {TensorProto.INT8}
    frame = noise(SIZES[0], 9)
    wanted = run_onnx(plain.read_bytes(), frame)
    assert np.abs(run_onnx(path.read_bytes(), frame) - wanted).mean() < 0.02
    assert 0 < np.abs(run_onnx(made, frame) - wanted).mean() < 0.03
