"""The torch engine against the others; the operators it knows, and how it refuses the rest."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from gpu import needs_torch_cuda, torch_or_skip
from networks import REFERENCE, SIZES, expected, make_mattor, make_network, make_segmenter, noise, one_line, save
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

from engines import Engine, EngineError, available_models, load
from engines.segmenter import probe_picture
from engines.spec import find_model

torch = torch_or_skip()

import engines.torch_engine as te  # noqa: E402
from engines.torch_engine import TorchRunner  # noqa: E402

# ---- the contract


def test_contract(network):
    engine = load(network, engine="torch", device="cpu")
    assert isinstance(engine, Engine)
    assert (engine.name, engine.device) == ("torch", "torch CPU f32")
    assert engine.spec.sizes == tuple(SIZES)
    for size in [*SIZES, SIZES[0]]:
        for seed in (1, 2):
            frame = noise(size, seed)
            before = frame.copy()
            alpha = engine.infer({"frame": frame})["alpha"]
            assert (alpha.dtype, alpha.shape) == (np.float32, (1, 1, size[1], size[0]))
            np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)
            np.testing.assert_array_equal(frame, before)
            frame[:] = 0
            np.testing.assert_array_equal(engine.infer({"frame": before})["alpha"], alpha)
    wide = noise((128, 48))
    np.testing.assert_allclose(engine.infer({"frame": wide[..., ::2]})["alpha"], expected(wide[..., ::2]), atol=1e-5)
    engine.close()
    engine.close()
    assert alpha.shape
    with pytest.raises(EngineError, match="closed") as info:
        engine.infer({"frame": noise(SIZES[0])})
    one_line(info)


@pytest.mark.parametrize("model", available_models())
def test_the_shipped_models_are_as_on_openvino(model):
    first = load(model, engine="openvino", precision="f32")
    second = load(model, engine="torch", device="cpu")
    for width, height in first.spec.sizes:
        frame = probe_picture(width, height)
        for _ in range(3):
            alphas = [e.infer({"frame": frame})["alpha"].copy() for e in (first, second)]
            assert alphas[0].mean() > 0.1
            np.testing.assert_allclose(*alphas, atol=1e-4)
            frame[:, 3:] = alphas[1]
            frame[0, :3] = np.roll(frame[0, :3], 5, axis=2)


def test_outputs_may_be_fed_back(tmp_path):
    """An output handed straight through is not the caller's memory."""
    f = TensorProto.FLOAT
    ends = [oh.make_tensor_value_info(n, f, [1, "H", "W"]) for n in ("frame", "alpha")]
    path = save(tmp_path / "same.onnx", [oh.make_node("Identity", ["frame"], ["alpha"])], ends[:1], ends[1:], {})
    runner = TorchRunner(find_model(path), threads=1, device="cpu")
    frame = np.ascontiguousarray(noise(SIZES[0])[:, 0])
    out = runner.run({"frame": frame}, ["alpha"])[0]
    kept = out.copy()
    frame[:] = 0
    np.testing.assert_array_equal(out, kept)


def test_segmenters_run(tmp_path):
    path = make_segmenter(tmp_path / "seg.onnx", out=2, last=None)
    frame = noise((320, 320))
    alphas = [load(path, engine=e).infer({"frame": frame})["alpha"] for e in ("openvino", "torch")]
    np.testing.assert_allclose(*alphas, atol=2e-2)


def test_threads_of_others_are_left_alone(network):
    before = torch.get_num_threads()
    seen = []
    runner = TorchRunner(find_model(network), threads=before + 1, device="cpu")
    inner = runner.network
    runner.network = lambda feeds: (seen.append(torch.get_num_threads()), inner(feeds))[1]
    np.testing.assert_allclose(
        runner.run({"frame": noise(SIZES[0])}, ["alpha"])[0], expected(noise(SIZES[0])), atol=1e-5
    )
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


START = "from engines.torch_engine import import_torch; import_torch()"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
@pytest.mark.parametrize(
    ("start", "env", "turns"),
    [
        ("import training.model", {}, 5000),
        (START, {}, 5000),
        (START, {"OMP_WAIT_POLICY": "PASSIVE"}, 0),
        (START, {"GOMP_SPINCOUNT": "7"}, 7),
    ],
)
def test_threads_that_wait_do_not_spin_for_long(start, env, turns):
    """As OpenMP itself tells when it is loaded. Else a busy core makes a network fifty times slower."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=clean | env | {"OMP_DISPLAY_ENV": "VERBOSE"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr


def test_low_precision(network):
    engine = load(network, engine="torch", device="cpu", precision="bf16")
    frame = noise(SIZES[0])
    alpha = engine.infer({"frame": frame})["alpha"]
    assert engine.device == "torch CPU bf16"
    np.testing.assert_allclose(alpha, expected(frame), atol=3e-2)
    assert np.abs(alpha - expected(frame)).max() > 1e-5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "mps"}, "no mps here"),
        ({"device": "cuda:63"}, "no cuda:63 here"),
        ({"device": "cuda:x"}, "no device 'cuda:x'"),
        ({"device": "cpu", "precision": "f16"}, "precision f32, bf16"),
        ({"device": "cpu", "precision": "int8"}, "precision f32, bf16"),
    ],
)
def test_wrong_options(options, says, network):
    with pytest.raises(EngineError) as info:
        load(network, engine="torch", **options)
    assert says in one_line(info)


@pytest.mark.parametrize(("package", "command"), [("torch", "rtbg[torch]"), ("onnx", "pip install onnx")])
def test_missing_package(package, command, network, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match="is not installed") as info:
        load(network, engine="torch")
    assert command in one_line(info)


def test_auto_asks_torch_only_where_there_may_be_a_gpu(network, monkeypatch, caplog):
    monkeypatch.setattr("engines.worth_asking", lambda: True)
    monkeypatch.setattr(te.find_device.__globals__["logger"], "level", logging.INFO)
    with caplog.at_level(logging.INFO, "engines"):
        engine = load(network)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        assert engine.name == "torch"
    else:
        assert engine.name == "openvino"
        assert "torch does not use the GPU: torch" in caplog.text
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_torch_is_the_last_resort(network, monkeypatch, caplog):
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    engine = load(network, device="cpu")
    assert engine.device == "torch CPU f32"
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 2


@pytest.mark.parametrize("case", ["garbage", "cut"])
def test_broken_file(case, tmp_path):
    path = tmp_path / "broken.onnx"
    whole = make_network(tmp_path / "whole.onnx").read_bytes()
    path.write_bytes(b"x" * 3000 if case == "garbage" else whole[:500])
    with pytest.raises(EngineError, match=r"broken\.onnx.*whole ONNX file") as info:
        load(path, engine="torch")
    one_line(info)


# ---- operators


def graph(tmp_path: Path, nodes: list, values: dict[str, np.ndarray], opset: int = 18) -> Path:
    """From `x`, float32 (1, 4, H, W), to `y`."""
    f = TensorProto.FLOAT
    made = oh.make_graph(
        nodes,
        "net",
        [oh.make_tensor_value_info("x", f, [1, 4, "H", "W"])],
        [oh.make_tensor_value_info("y", f, None)],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(oh.make_model(made, opset_imports=[oh.make_opsetid("", opset)], ir_version=8).SerializeToString())
    return path


RNG = np.random.default_rng(3)
W = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32)
GROUPED = RNG.normal(size=(8, 1, 3, 3)).astype(np.float32)
B = RNG.normal(size=8).astype(np.float32)
I = np.array  # noqa: E741
N = oh.make_node

KNOWN = {
    "conv": ([N("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4)], {"w": W, "b": B}),
    "conv without bias, strided": ([N("Conv", ["x", "w"], ["y"], strides=[2, 2])], {"w": W}),
    "conv dilated": ([N("Conv", ["x", "w"], ["y"], dilations=[2, 3], pads=[2, 3, 2, 3])], {"w": W}),
    "conv in groups": ([N("Conv", ["x", "w"], ["y"], group=4, pads=[1] * 4)], {"w": GROUPED}),
    "conv padded on one side": ([N("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 0], strides=[2, 1])], {"w": W}),
    "max pool": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], {}),
    "average pool": ([N("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}),
    "average pool with edges": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)], {}),
    "global pool": ([N("GlobalAveragePool", ["x"], ["y"])], {}),
    "mean": ([N("ReduceMean", ["x", "a"], ["y"], keepdims=1)], {"a": I([-1, -2])}),
    "mean, dropped": ([N("ReduceMean", ["x", "a"], ["y"], keepdims=0)], {"a": I([2])}),
    "linear": (
        [N("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel")],
        {"s": np.float32([1, 1, 2, 2])},
    ),
    "linear by size": (
        [N("Resize", ["x", "", "", "n"], ["y"], mode="linear", coordinate_transformation_mode="pytorch_half_pixel")],
        {"n": I([1, 4, 30, 41])},
    ),
    "linear aligned": (
        [N("Resize", ["x", "", "", "n"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"n": I([1, 4, 30, 41])},
    ),
    "nearest": (
        [N("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"s": np.float32([1, 1, 2, 3])},
    ),
    "depth to space": ([N("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD")], {}),
    "slice": (
        [N("Slice", ["x", "b", "e", "a", "s"], ["y"])],
        {"b": I([1, -9]), "e": I([2**63 - 1, -1]), "a": I([1, 3]), "s": I([2, 3])},
    ),
    "slice without axes": ([N("Slice", ["x", "b", "e"], ["y"])], {"b": I([0, 1]), "e": I([1, 3])}),
    "concat": ([N("Concat", ["x", "x", "c"], ["y"], axis=1)], {"c": np.ones((1, 2, 20, 24), np.float32)}),
    "clip": ([N("Clip", ["x", "l", "h"], ["y"])], {"l": np.float32(0.2), "h": np.float32(0.6)}),
    "clip below": ([N("Clip", ["x", "", "h"], ["y"])], {"h": np.float32(0.6)}),
    "arithmetic": (
        [
            N("Mul", ["x", "k"], ["a"]),
            N("Sub", ["a", "x"], ["b"]),
            N("Add", ["b", "v"], ["c"]),
            N("Div", ["c", "k"], ["y"]),
        ],
        {"k": np.float32(3), "v": RNG.normal(size=(1, 4, 1, 1)).astype(np.float32)},
    ),
    "activations": ([N("Sigmoid", ["x"], ["a"]), N("HardSwish", ["a"], ["y"])], {}),
    "constant node": (
        [N("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([2]))), N("Mul", ["x", "k"], ["y"])],
        {},
    ),
    "filters stored in half": (
        [N("Cast", ["h"], ["w"], to=TensorProto.FLOAT), N("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        {"h": W.astype(np.float16)},
    ),
    # What is read twice must not be overwritten.
    "relu beside its input": (
        [N("Sub", ["x", "k"], ["a"]), N("Relu", ["a"], ["b"]), N("Add", ["a", "b"], ["y"])],
        {"k": np.float32(0.5)},
    ),
    "relu beside its input, which would do": (
        [N("Conv", ["x", "w"], ["a"]), N("Relu", ["a"], ["b"]), N("Add", ["a", "b"], ["y"])],
        {"w": W},
    ),
    "relu of another's view": (
        [
            N("Conv", ["x", "w"], ["a"]),
            N("Identity", ["a"], ["v"]),
            N("Relu", ["v"], ["b"]),
            N("Sub", ["a", "b"], ["y"]),
        ],
        {"w": W},
    ),
    "relu of the input": ([N("Sub", ["x", "k"], ["a"]), N("Relu", ["a"], ["y"])], {"k": np.float32(0.5)}),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_operators_are_as_in_onnx_runtime(case, tmp_path):
    nodes, values = KNOWN[case]
    path = graph(tmp_path, nodes, values)
    x = noise((24, 20))
    before = x.copy()
    wanted = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    runner = TorchRunner(find_model(path), threads=1, device="cpu")
    for _ in range(2):
        got = runner.run({"x": x}, ["y"])[0]
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_array_equal(x, before)


def test_mean_of_older_files(tmp_path):
    path = graph(tmp_path, [N("ReduceMean", ["x"], ["y"], axes=[2, 3])], {}, opset=13)
    x = noise((24, 20))
    got = TorchRunner(find_model(path), threads=1, device="cpu").run({"x": x}, ["y"])[0]
    np.testing.assert_allclose(got, x.mean((2, 3), keepdims=True), atol=1e-6)


REFUSED = {
    "Cast": ([N("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], {}),
    "Erf": ([N("Erf", ["x"], ["y"])], {}),
    "Conv with auto_pad": ([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")], {"w": W}),
    "DepthToSpace in the order DCR": ([N("DepthToSpace", ["x"], ["y"], blocksize=2)], {}),
    "Resize with cubic": (
        [N("Resize", ["x", "", "s"], ["y"], mode="cubic")],
        {"s": np.float32([1, 1, 2, 2])},
    ),
    "Resize of other than height and width": (
        [N("Resize", ["x", "", "s"], ["y"], mode="linear")],
        {"s": np.float32([1, 2, 2, 2])},
    ),
    "Resize whose input 2 is computed": (
        [N("Abs", ["k"], ["s"]), N("Resize", ["x", "", "s"], ["y"], mode="linear")],
        {"k": np.float32([1, 1, 2, 2])},
    ),
    "Slice backwards": (
        [N("Slice", ["x", "b", "e", "a", "s"], ["y"])],
        {"b": I([-1]), "e": I([-9]), "a": I([3]), "s": I([-1])},
    ),
    "Split": ([N("Split", ["x"], ["y", "z"], axis=1, num_outputs=2)], {}),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_not_known_is_refused_by_name(says, tmp_path):
    path = graph(tmp_path, *REFUSED[says])
    shown = "Abs" if "computed" in says else says
    with pytest.raises(EngineError, match=f"does not know {shown} ") as info:
        TorchRunner(find_model(path), threads=1, device="cpu")
    one_line(info)


def test_recurrent_mattors_are_refused_by_name(tmp_path):
    with pytest.raises(EngineError, match=r"does not know \w+ .*engine openvino"):
        load(make_mattor(tmp_path / "mattor.onnx"), engine="torch")


# ---- on a GPU


@needs_torch_cuda
@pytest.mark.parametrize("model", available_models())
def test_cuda_agrees_with_openvino(model):
    first, second = load(model, engine=REFERENCE, precision="f32"), load(model, engine="torch", device="cuda")
    assert second.device.startswith("torch CUDA ")
    assert second.device.endswith(" f16")
    for width, height in first.spec.sizes:
        frame = probe_picture(width, height)
        for _ in range(3):
            alphas = [e.infer({"frame": frame})["alpha"].copy() for e in (first, second)]
            assert np.abs(alphas[0] - alphas[1]).mean() < 5e-3
            frame[:, 3:] = alphas[1]
            frame[0, :3] = np.roll(frame[0, :3], 5, axis=2)


@needs_torch_cuda
def test_cuda_graph(network):
    runner = TorchRunner(find_model(network), threads=1, device="cuda", precision="f32")
    for size in [*SIZES, *SIZES]:
        frame = noise(size, size[0])
        np.testing.assert_allclose(runner.run({"frame": frame}, ["alpha"])[0], expected(frame), atol=5e-3)
    assert len(runner._captured) == 3
    assert all(c._graph is not None for c in runner._captured.values())
    for captured in runner._captured.values():
        captured._graph = None  # as where it cannot be captured
    np.testing.assert_allclose(runner.run({"frame": frame}, ["alpha"])[0], expected(frame), atol=5e-3)
    kept = runner.run({"frame": frame}, ["alpha"])[0]
    runner.close()
    np.testing.assert_allclose(kept, expected(frame), atol=5e-3)
