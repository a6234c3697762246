"""TensorRT: what is missing, the graphs it is given, real compilation, and, with a GPU, running."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from gpu import needs_rtx, needs_tensorrt
from networks import SIZES, expected, make_network, make_segmenter, noise, one_line, save
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

import engines.tensorrt_engine as trt
from engines import EngineError, available_models, cuda, load
from engines.cuda import Gpu, NoGpu
from engines.half import to_half
from engines.plan_cache import PlanCache, user_cache
from engines.segmenter import probe_picture
from engines.spec import find_model
from engines.tensorrt_engine import NO_GPU, RTX_SMS, Graphs, Target, compile_plan, find_target, import_flavour, plan_for

ROOT = Path(__file__).parent.parent
ADA, HOPPER = Gpu("NVIDIA GeForce RTX 4090", (8, 9), "13.0"), Gpu("NVIDIA H200", (9, 0), "13.0")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> PlanCache:
    monkeypatch.setenv("RTBG_CACHE_DIR", str(tmp_path / "cache"))
    found = user_cache()
    assert found is not None
    return found


def rtx(gpu: Gpu = NO_GPU) -> Target:
    return Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", gpu)


# ---- what is here


class Driver:
    """A driver library that answers as told: code of cuInit, number of GPUs, of a failing description."""

    def __init__(self, init: int = 0, count: int = 1, described: int = 0) -> None:
        self.init, self.count, self.described = init, count, described

    def cuInit(self, _flags):
        return self.init

    def cuDeviceGetCount(self, out):
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out, _index):
        out._obj.value = 0
        return self.described

    def cuDeviceGetName(self, text, _size, _device):
        text.value = b"NVIDIA H200"
        return 0

    def cuDeviceGetAttribute(self, out, which, _device):
        out._obj.value = {75: 9, 76: 0}[which]
        return 0

    def cuDriverGetVersion(self, out):
        out._obj.value = 13010
        return 0


def test_the_driver_describes_its_gpu():
    gpu = cuda.ask_driver(Driver())
    assert (gpu.name, gpu.capability, gpu.sm) == ("NVIDIA H200", (9, 0), 90)
    assert gpu.driver.startswith("13.1")


@pytest.mark.parametrize(
    ("driver", "missing", "says"),
    [
        (Driver(init=100), False, "shows no GPU"),
        (Driver(count=0), False, "CUDA_VISIBLE_DEVICES"),
        (Driver(init=35), True, "cuInit: 35"),
        (Driver(described=999), True, "error 999"),
    ],
)
def test_a_driver_without_a_gpu(driver, missing, says):
    with pytest.raises(NoGpu) as info:
        cuda.ask_driver(driver)
    assert says in one_line(info)
    assert info.value.driver is missing


def test_a_card_without_its_driver(tmp_path):
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "c").mkdir()
    assert not cuda._has_nvidia_card(tmp_path)
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert cuda._has_nvidia_card(tmp_path)


def here(monkeypatch, gpu: Gpu | NoGpu, *installed: str) -> None:
    def probe() -> Gpu:
        if isinstance(gpu, NoGpu):
            raise gpu
        return gpu

    monkeypatch.setattr(trt, "probe", probe)
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: name in installed or None)


@pytest.mark.parametrize(
    ("gpu", "installed", "says", "silent"),
    [
        (NoGpu("no GPU here", driver=False), (), ["no GPU here", "rtbg[rtx]", "rtbg[tensorrt]"], []),
        (NoGpu("no GPU here", driver=False), ("tensorrt_rtx",), ["no GPU here"], ["pip install"]),
        (NoGpu("its driver is missing", driver=True), ("tensorrt",), ["driver is missing"], ["pip install"]),
        (ADA, (), ["TensorRT-RTX is not installed: pip install 'rtbg[rtx]'"], ["GPU", "rtbg[tensorrt]"]),
        (HOPPER, (), ["TensorRT is not installed: pip install 'rtbg[tensorrt]'"], ["rtbg[rtx]"]),
    ],
)
def test_which_of_the_three_is_missing(gpu, installed, says, silent, monkeypatch):
    here(monkeypatch, gpu, *installed)
    with pytest.raises(EngineError) as info:
        find_target()
    text = one_line(info)
    assert all(s in text for s in says)
    assert not any(s in text for s in silent)


def test_the_package_that_fits_the_gpu(monkeypatch, caplog):
    monkeypatch.setattr(trt, "import_flavour", lambda name: name)
    for gpu, installed, flavour in (
        (ADA, ("tensorrt", "tensorrt_rtx"), "tensorrt_rtx"),
        (ADA, ("tensorrt",), "tensorrt"),
        (HOPPER, ("tensorrt", "tensorrt_rtx"), "tensorrt"),
    ):
        here(monkeypatch, gpu, *installed)
        assert find_target(strict=True).flavour == flavour
    assert not caplog.records
    here(monkeypatch, HOPPER, "tensorrt_rtx")
    with pytest.raises(EngineError, match=r"does not serve the NVIDIA H200 \(sm_90\).*rtbg\[tensorrt\]"):
        find_target(strict=True)
    assert find_target().flavour == "tensorrt_rtx"
    assert "trying all the same" in caplog.text


def test_a_broken_package(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"libnvinfer.*--force-reinstall tensorrt"):
        import_flavour("tensorrt")


def test_without_a_gpu_tensorrt_is_never_touched(tmp_path):
    """It would crash the process: so this runs in one of its own. Where a GPU is, it is hidden."""
    code = (
        "import sys, engines; from engines import EngineError, load\n"
        "try: load(sys.argv[1], engine='tensorrt')\n"
        "except EngineError as exc: print(exc)\n"
        "e = load(sys.argv[1]); print(e.device)\n"
        "print([m for m in ('tensorrt', 'tensorrt_rtx', 'torch', 'onnx') if m in sys.modules])"
    )
    path = make_network(tmp_path / "net.onnx")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "RTBG_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    refused, device, loaded = done.stdout.splitlines()
    assert refused.startswith("TensorRT cannot run: ")
    assert "GPU" in refused
    assert device.startswith("OpenVINO CPU ")
    assert loaded == "[]"
    assert done.stderr == ""


def test_cuda_errors_are_ours():
    pytest.importorskip("cuda.bindings")
    from cuda.bindings import runtime

    with pytest.raises(EngineError, match="no CUDA-capable device") as info:
        cuda.result(runtime, "cudaMalloc", (runtime.cudaError_t.cudaErrorNoDevice, None))
    one_line(info)
    assert cuda.result(runtime, "cudaMalloc", (runtime.cudaError_t.cudaSuccess, 7)) == 7


def test_cuda_bindings_missing(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        cuda.import_runtime()


# ---- graphs


def run(model: onnx.ModelProto | bytes, frame: np.ndarray) -> np.ndarray:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: frame})[0]


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
            alpha = run(whole, frame)
            assert 0.1 < alpha.mean() < 0.9
            difference = np.abs(run(half, frame) - alpha)
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
        run(graphs.made(), noise(SIZES[0])), run((tmp_path / "net.int8.onnx").read_bytes(), noise(SIZES[0]))
    )
    assert Graphs(find_model(tmp_path / "net.int8.onnx")).precision == "int8"


def test_broken_file(tmp_path):
    path = tmp_path / "broken.onnx"
    for data in (b"x" * 3000, make_network(tmp_path / "whole.onnx").read_bytes()[:500], b"version https://git-lfs"):
        path.write_bytes(data)
        with pytest.raises(EngineError, match=r"broken\.onnx.*whole ONNX file") as info:
            Graphs(find_model(path))
        one_line(info)


# ---- real compilation


@needs_rtx
@pytest.mark.parametrize("model", available_models())
def test_the_shipped_models_compile(model, cache, monkeypatch):
    """At all their sizes, in FP16, by our own code; and are found again."""
    spec, target = find_model(model), rtx()
    graphs = Graphs(spec)
    assert graphs.precision == "f16"
    plans = {}
    for width, height in spec.sizes:
        plans[width, height] = plan_for(graphs, target, {"frame": (1, 4, height, width)}, cache)
        assert len(plans[width, height]) > 100_000
    assert len(list(cache.folder.glob("*.plan"))) == len(spec.sizes)
    monkeypatch.setattr(trt, "compile_plan", None)
    again = Graphs(spec)
    for (width, height), plan in plans.items():
        assert plan_for(again, target, {"frame": (1, 4, height, width)}, cache) == plan


@needs_rtx
def test_the_graph_is_typed_half(tmp_path):
    """What the parser makes of it: convolutions in HALF between FLOAT ends."""
    module = import_flavour("tensorrt_rtx")
    log = trt._logger(module)
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log)
    assert parser.parse(Graphs(find_model(make_network(tmp_path / "net.onnx"))).made())
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    kinds = {layer.get_output(0).dtype for layer in layers if layer.type == module.LayerType.CONVOLUTION}
    assert kinds == {module.DataType.HALF}
    assert {network.get_input(0).dtype, network.get_output(0).dtype} == {module.DataType.FLOAT}


@needs_rtx
@pytest.mark.parametrize("sm", RTX_SMS)
def test_every_gpu_of_the_flavour_has_a_plan_of_its_own(sm, tmp_path, cache):
    graphs = Graphs(find_model(make_network(tmp_path / "net.onnx")))
    gpu = Gpu(f"sm_{sm}", divmod(sm, 10), "13.0")
    shapes = {"frame": (1, 4, 48, 64)}
    assert plan_for(graphs, rtx(gpu), shapes, cache)
    assert cache.load(graphs.key(rtx(gpu), shapes))
    assert cache.load(graphs.key(rtx(replace(gpu, driver="13.1")), shapes)) is None


@needs_rtx
def test_quantised_compiles(tmp_path):
    graphs = Graphs(find_model(quantised(tmp_path / "net.onnx")))
    plan, timings = compile_plan(graphs, rtx(), {"frame": (1, 4, 48, 64)})
    assert plan
    assert timings == b""


def unsigned(tmp_path: Path) -> tuple[Path, Path]:
    """(`make_network` as ONNX Runtime quantises it: unsigned activations, biases of 32 bits; the same in float)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        rest = iter([{"frame": noise(SIZES[0], seed)} for seed in range(4)])

        def get_next(self):
            return next(self.rest, None)

    f = TensorProto.FLOAT
    values = {"w1": RNG.normal(size=(8, 4, 3, 3)) * 0.3, "b1": RNG.normal(size=8)}
    values |= {"w2": RNG.normal(size=(1, 8, 3, 3)) * 0.1, "b2": RNG.normal(size=1)}
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


RNG = np.random.default_rng(5)


def test_unsigned_graphs_are_made_signed(tmp_path):
    path, plain = unsigned(tmp_path)
    graphs = Graphs(find_model(path))
    made = onnx.load_from_string(graphs.made())
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    zeros = {kinds[n.input[2]] for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert zeros == {TensorProto.INT8}
    frame = noise(SIZES[0], 9)
    wanted = run(plain.read_bytes(), frame)
    assert np.abs(run(path.read_bytes(), frame) - wanted).mean() < 0.02
    assert 0 < np.abs(run(made, frame) - wanted).mean() < 0.03


@needs_rtx
def test_unsigned_graphs_compile(tmp_path):
    graphs = Graphs(find_model(unsigned(tmp_path)[0]))
    assert graphs.precision == "int8"
    assert compile_plan(graphs, rtx(), {"frame": (1, 4, 48, 64)})[0]


@needs_rtx
def test_filters_stored_in_half_compile(tmp_path):
    """As `training.export` stores them: each behind a Cast."""
    path = make_network(tmp_path / "net.onnx")
    model = onnx.load(str(path))
    for tensor in list(model.graph.initializer):
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half")
        model.graph.initializer.append(half)
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, oh.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    onnx.save(model, str(path))
    for precision in ("f16", "f32"):
        graphs = Graphs(find_model(path), precision)
        made = onnx.load_from_string(graphs.made())
        weights = {t.name: t.data_type for t in made.graph.initializer}
        assert set(weights.values()) == {TensorProto.FLOAT16 if precision == "f16" else TensorProto.FLOAT}
        assert compile_plan(graphs, rtx(), {"frame": (1, 4, 48, 64)})[0]
    np.testing.assert_allclose(run(made, noise(SIZES[0])), expected(noise(SIZES[0])), atol=1e-3)


@needs_rtx
@pytest.mark.parametrize("case", ["operator", "shape"])
def test_what_tensorrt_refuses(case, tmp_path, capfd):
    path = make_network(tmp_path / "net.onnx", last="Sigmund" if case == "operator" else "Sigmoid")
    shape = (1, 4, 48, 64) if case == "operator" else (1, 5, 48, 64)
    with pytest.raises(EngineError, match=r"TensorRT-RTX cannot compile .*net\.onnx") as info:
        compile_plan(Graphs(find_model(path)), rtx(), {"frame": shape})
    one_line(info)
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_compiling_is_not_running(tmp_path):
    with pytest.raises(EngineError, match="does not run without one"):
        trt.TensorRTRunner(find_model(make_network(tmp_path / "net.onnx")), target=rtx())


# ---- on a GPU


@needs_tensorrt
@pytest.mark.parametrize("size", SIZES)
def test_runs(size, tmp_path, cache):
    path = make_network(tmp_path / "net.onnx")
    with_sizes = path.with_suffix(".json")
    with_sizes.write_text('{"sizes": [[64, 48], [48, 64], [32, 32]]}')
    engine = load(path, engine="tensorrt")
    assert engine.device.endswith(" f16")
    for seed in (1, 2, 1):
        frame = noise(size, seed)
        kept = engine.infer({"frame": frame})["alpha"]
        np.testing.assert_allclose(kept, expected(frame), atol=1e-2)
    engine.close()
    engine.close()
    np.testing.assert_allclose(kept, expected(frame), atol=1e-2)  # readable after close
    with pytest.raises(EngineError, match="closed"):
        engine.infer({"frame": frame})


@needs_tensorrt
@pytest.mark.parametrize("model", available_models())
def test_agrees_with_openvino(model, cache):
    first, second = load(model, engine="openvino", precision="f32"), load(model, engine="tensorrt")
    for width, height in first.spec.sizes:
        frame = probe_picture(width, height)
        for _ in range(2):
            alphas = [e.infer({"frame": frame})["alpha"].copy() for e in (first, second)]
            assert np.abs(alphas[0] - alphas[1]).mean() < 5e-3
            frame[:, 3:] = alphas[0]
    second.close()


@needs_tensorrt
def test_the_graph_is_captured(tmp_path, cache):
    runner = trt.TensorRTRunner(find_model(make_network(tmp_path / "net.onnx")))
    runner.run({"frame": noise(SIZES[0])}, ["alpha"])
    (plan,) = runner._plans.values()
    assert plan._graph is not None
    plan._graph = None  # as where it cannot be
    np.testing.assert_allclose(
        runner.run({"frame": noise(SIZES[0], 3)}, ["alpha"])[0], expected(noise(SIZES[0], 3)), atol=1e-2
    )
    runner.close()


@needs_tensorrt
def test_a_plan_that_does_not_load_is_made_anew(tmp_path, cache, caplog):
    spec = find_model(make_network(tmp_path / "net.onnx"))
    target = find_target()
    key = Graphs(spec).key(target, {"frame": (1, 4, 48, 64)})
    cache.get(key, lambda: b"of another version")
    runner = trt.TensorRTRunner(spec)
    with caplog.at_level(logging.INFO, "engines"):
        alpha = runner.run({"frame": noise(SIZES[0])}, ["alpha"])[0]
    np.testing.assert_allclose(alpha, expected(noise(SIZES[0])), atol=1e-2)
    assert "does not load" in caplog.text
    assert cache.load(key) != b"of another version"
    runner.close()
