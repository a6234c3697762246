"""training.stem and the 8-bit graph that is made with it, on the networks that ship."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from training_parts import make_data

pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")
pytest.importorskip("onnxruntime.quantization", reason="pip install 'rtbg[train]'")

import onnxruntime

from engines.segmenter import probe_picture
from engines.spec import MODELS, Array
from training.quantise import full_precision, quantise
from training.stem import SCALE, SEEN, ZERO, has_stem

SIZE = (384, 224)


def answer(path: Path, frame: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"frame": frame})[0])


def portrait() -> Array:
    """The frame of a portrait in whole codes."""
    frame: Array = probe_picture(*SIZE)
    return np.asarray(np.round(frame * 255) / np.float32(255), np.float32)


@pytest.mark.parametrize("past", ["none", "own", "moved"])
def test_one_convolution_does_what_two_did(past: str, tmp_path: Path) -> None:
    merged = tmp_path / "merged.onnx"
    full_precision(MODELS / "balanced.onnx", merged)
    model = onnx.load(merged)
    onnx.checker.check_model(model)
    assert [n.op_type for n in model.graph.node[:3]] == ["Mul", "Add", "Conv"] and not has_stem(model)
    frame = portrait()
    if past != "none":
        frame[0, 3] = answer(MODELS / "balanced.onnx", frame)[0, 0]
    if past == "moved":
        frame[0, 3] = np.roll(frame[0, 3], (9, -14), (0, 1))
    want, got = answer(MODELS / "balanced.onnx", frame), answer(merged, frame)
    assert 0.1 < want.mean() < 0.9
    assert np.abs(got - want).max() < 2e-3
    assert np.abs(got - want)[..., : SIZE[1] // 2, : SIZE[0] // 2].max() < 1e-4  # far from the last row and column


@pytest.fixture(scope="module", params=["shipped", "made here"])
def eight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An 8-bit graph of `balanced`: the one that ships, and one with ranges from two pictures."""
    if request.param == "shipped":
        return MODELS / "balanced.int8.onnx"
    folder = tmp_path_factory.mktemp("eight")
    quantise(MODELS / "balanced.onnx", folder / "eight.onnx", make_data(folder / "data"), (64, 64), 2)
    return folder / "eight.onnx"


def test_the_8_bit_graph_loses_nothing_of_the_picture(eight: Path) -> None:
    graph = onnx.load(eight).graph
    values = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    (first,) = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == SEEN]
    assert values[first.input[1]] == SCALE and values[first.input[2]] == ZERO
    scaled = np.arange(256) * np.float32(1 / 255) * values["seen.scale"][0, 0] + values["seen.offset"][0, 0]
    assert (np.rint(scaled / SCALE) + ZERO == np.arange(256)).all()
    past = np.array([0, 1]) * values["seen.scale"][0, 3] + values["seen.offset"][0, 3]
    assert (np.rint(past / SCALE) + ZERO).ravel().tolist() == [128, 255]


def test_the_8_bit_graph_has_no_constant_that_nothing_reads(eight: Path) -> None:
    graph = onnx.load(eight).graph
    assert {w.name for w in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_the_8_bit_graph_answers_in_full(eight: Path) -> None:
    """Logits rounded to 256 steps would give a matte of fewer values still."""
    graph = onnx.load(eight).graph
    makers = {n.output[0]: n for n in graph.node}
    (head,) = [n for n in graph.node if n.op_type == "Conv" and makers[n.input[1]].input[0].startswith("head.")]
    assert {n.op_type for n in graph.node if head.output[0] in n.input}.isdisjoint({"QuantizeLinear"})
    matte = answer(eight, portrait())[0, 0]
    assert len(np.unique(matte)) > 10_000
    soft = cv2.inRange(matte, 0.05, 0.95)
    assert len(np.unique(matte[soft > 0])) > 0.9 * np.count_nonzero(soft)
