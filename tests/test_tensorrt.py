"""TensorRT: real compilation, which needs no GPU, and, with one, running."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from gpu import needs_rtx, needs_tensorrt
from networks import REFERENCE, SIZES, expected, make_network, noise, one_line, quantised, run_onnx, unsigned
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

import engines.tensorrt_engine as trt
from engines import EngineError, available_models, load
from engines.cuda import Gpu
from engines.int8 import eight_bits
from engines.segmenter import probe_picture
from engines.spec import find_model
from engines.tensorrt_engine import NO_GPU, RTX_SMS, Graphs, Target, compile_plan, find_target, import_flavour, plan_for


def rtx(gpu: Gpu = NO_GPU) -> Target:
    return Target(import_flavour("tensorrt_rtx"), "tensorrt_rtx", gpu)


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
@pytest.mark.parametrize("model", [m for m in available_models() if eight_bits(find_model(m))])
def test_the_shipped_models_compile_in_int8(model, cache):
    spec, target = find_model(model), rtx()
    graphs, (width, height) = Graphs(spec, "int8"), spec.sizes[0]
    shapes = {"frame": (1, 4, height, width)}
    plan = plan_for(graphs, target, shapes, cache)
    assert len(plan) > 100_000
    assert cache.load(graphs.key(target, shapes)) == plan
    assert cache.load(Graphs(spec).key(target, shapes)) is None  # that in FP16 is another


@needs_rtx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_for_the_next_compilation(tmp_path, cache):
    """TensorRT's own way, by TensorRT-RTX, which takes the same calls; its timings are nearly empty."""
    graphs = Graphs(find_model(make_network(tmp_path / "net.onnx")))
    target = replace(rtx(), flavour="tensorrt")
    machine = graphs.key(target, {}).machine
    kept = []
    for width, height in SIZES[:2]:
        assert plan_for(graphs, target, {"frame": (1, 4, height, width)}, cache)
        kept.append(cache.load_note(machine))
    assert all(kept)
    cache.save_note(machine, b"of another version")
    assert plan_for(graphs, target, {"frame": (1, 4, 32, 32)}, cache)
    assert cache.load_note(machine) in kept


def test_the_key_holds_all_that_a_plan_depends_on(tmp_path):
    spec, shapes = find_model(make_network(tmp_path / "net.onnx")), {"frame": (1, 4, 48, 64)}
    target = Target(SimpleNamespace(__version__="1.7"), "tensorrt_rtx", Gpu("RTX 4090", (8, 9), "13.0 (580.1)"))
    key = Graphs(spec).key(target, shapes)
    assert (key.flavour, key.version, key.shapes, key.precision) == ("tensorrt_rtx", "1.7", "frame=1x4x48x64", "f16")
    assert (key.gpu, key.capability, key.driver) == ("RTX 4090", "8.9", "13.0 (580.1)")
    assert hashlib.sha256(spec.path.read_bytes()).hexdigest() in key.network
    gpu = target.gpu
    others = [replace(target, flavour="tensorrt"), replace(target, trt=SimpleNamespace(__version__="1.8"))]
    others += [replace(target, gpu=replace(gpu, **{f: v})) for f, v in (("name", "RTX 4080"), ("capability", (12, 0)))]
    others += [replace(target, gpu=replace(gpu, driver="13.0 (580.2)"))]
    keys = [Graphs(spec).key(other, shapes) for other in others]
    keys += [Graphs(spec, "f32").key(target, shapes), Graphs(spec).key(target, {"frame": (1, 4, 64, 48)})]
    retrained = find_model(make_network(tmp_path / "net.onnx", seed=1))
    keys.append(Graphs(retrained).key(target, shapes))
    assert len({k.stem for k in [key, *keys]}) == 9


@needs_rtx
def test_a_plan_that_never_loads_is_made_anew_once_and_then_given_up(tmp_path, cache, caplog):
    """The runtime is none: the real one crashes the process where there is no driver. Its answer for a plan of another
    version or GPU is None."""
    runner = trt.TensorRTRunner.__new__(trt.TensorRTRunner)
    offered = []
    runner._target, runner._cache, runner.device = rtx(), cache, "TensorRT-RTX"
    runner._runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: offered.append(data))
    runner._log = trt._logger(runner._target.trt)
    runner.graphs = Graphs(find_model(make_network(tmp_path / "net.onnx")))
    shapes = {"frame": (1, 4, 48, 64)}
    key = runner.graphs.key(runner._target, shapes)
    cache.get(key, lambda: b"of another version")
    with caplog.at_level(logging.INFO, "engines"), pytest.raises(EngineError, match="does not load what it") as info:
        runner._open(shapes)
    one_line(info)
    assert offered[0] == b"of another version" and len(offered[1]) > 1000 and len(offered) == 2
    assert cache.load(key) is None
    assert caplog.text.count("a compiled network does not load") == 2


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
    np.testing.assert_allclose(run_onnx(made, noise(SIZES[0])), expected(noise(SIZES[0])), atol=1e-3)


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
    first, second = load(model, engine=REFERENCE, precision="f32"), load(model, engine="tensorrt")
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
