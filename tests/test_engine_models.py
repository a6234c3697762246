"""Files, cards and names that `engines.load` is given: good ones, other ones, broken ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import ENGINES, SIZES, expected, make_network, noise, one_line
from onnx import TensorProto

import engines.signature
import engines.spec
from engines import EngineError, available_models, load
from engines.errors import short_reason

pytestmark = pytest.mark.usefixtures("cache_folder_of_its_own", "no_gpu")


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize("kind", ["garbage", "empty", "folder", "missing", "cut", "pointer", "unknown op", "long name"])
def test_broken_file(engine, kind, tmp_path, capfd):
    path = tmp_path / "broken.onnx"
    if kind == "garbage":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "cut":
        path.write_bytes(make_network(tmp_path / "whole.onnx").read_bytes()[:500])
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    elif kind == "unknown op":
        make_network(path, last="Sigmund")
    elif kind == "long name":
        path = tmp_path / ("x" * 5000)
    with pytest.raises(EngineError) as info:
        load(path, engine=engine)
    text = str(info.value)
    assert "\n" not in text
    assert path.name in text
    assert "Exception from" not in text
    assert "ONNXRuntimeError" not in text
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 5}, "frame float32 (1, 5, ?, ?) -> alpha float32 (1, 1, ?, ?)"),
        ({"out": 2}, "alpha float32 (1, 2, ?, ?)"),
        ({"kind": TensorProto.FLOAT16}, "frame float16 (1, 4, ?, ?)"),
        ({"stride": 2, "side": (32, 64)}, "answers another size"),
    ],
)
def test_other_signature(engine, options, says, tmp_path):
    path = make_network(tmp_path / "other.onnx", **options)
    with pytest.raises(EngineError) as info:
        load(path, engine=engine)
    text = one_line(info)
    assert says in text
    assert "one float32 input (1, 4, H, W) and one float32 output (1, 1, H, W)" in text


@pytest.mark.parametrize("engine", ENGINES)
def test_half_size_answer_with_free_sides(engine, tmp_path):
    """Only running it shows that this network answers another size."""
    with pytest.raises(EngineError, match=r"it must give \(1, 1, H, W\)") as info:
        load(make_network(tmp_path / "half.onnx", stride=2), engine=engine)
    one_line(info)


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_a_shipped_graph_without_its_card_runs(engine, tmp_path):
    """At the sizes of the model that ships it: each is one that its halvings take."""
    path = shutil.copy(engines.spec.MODELS / "balanced.onnx", tmp_path / "mine.onnx")
    loaded = load(path, engine=engine, precision="f32")
    assert loaded.spec.sizes == engines.spec.find_model("balanced").sizes
    for size in loaded.spec.sizes:
        assert loaded.infer({"frame": noise(size)})["alpha"].shape == (1, 1, size[1], size[0])
    loaded.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_does_not_run_is_refused_at_once(engine, tmp_path):
    path = Path(shutil.copy(engines.spec.MODELS / "balanced.onnx", tmp_path / "mine.onnx"))
    path.with_suffix(".json").write_text(json.dumps({"sizes": [[320, 176]]}))
    with pytest.raises(
        EngineError, match=r"mine\.onnx was tried at 320x176: .*sizes that it takes in mine\.json"
    ) as info:
        load(path, engine=engine, precision="f32")
    one_line(info)


@pytest.mark.parametrize("engine", ENGINES)
def test_file_without_card(engine, tmp_path):
    free = load(make_network(tmp_path / "free.onnx"), engine=engine, precision="f32")
    assert free.spec.sizes == engines.signature.DEFAULT_SIZES
    fixed = load(str(make_network(tmp_path / "fixed.onnx", side=(32, 64))), engine=engine, precision="f32")
    assert fixed.spec.sizes == ((64, 32),)
    for loaded, size in ((free, (224, 384)), (fixed, (64, 32))):
        frame = noise(size)
        np.testing.assert_allclose(loaded.infer({"frame": frame})["alpha"], expected(frame), atol=1e-5)


def test_fixed_file_with_card(tmp_path):
    path = make_network(tmp_path / "fixed.onnx", side=(48, 64))
    card = path.with_suffix(".json")
    card.write_text(json.dumps({"sizes": SIZES}))
    assert load(path).spec.sizes == ((64, 48),)
    card.write_text(json.dumps({"sizes": [[96, 96]]}))
    with pytest.raises(EngineError, match="96x96") as info:
        load(path)
    one_line(info)


@pytest.mark.parametrize(
    "sizes", ["3", "[]", "[[0, 4]]", "[[1.5, 4]]", "[[64]]", '[["64", "48"]]', "[[true, 48]]", "[[64, 48, 1]]", None]
)
def test_card_without_sizes(sizes, network):
    network.with_suffix(".json").write_text('{"name": "net"}' if sizes is None else f'{{"sizes": {sizes}}}')
    with pytest.raises(EngineError, match=r"net\.json names no usable sizes") as info:
        load(network)
    one_line(info)


@pytest.mark.parametrize("card", [b"", b"{", b"[]", b"\xff"])
def test_broken_card(card, network):
    network.with_suffix(".json").write_bytes(card)
    with pytest.raises(EngineError, match=r"net\.json") as info:
        load(network)
    one_line(info)


def test_checksum(network):
    card = network.with_suffix(".json")
    right = hashlib.sha256(network.read_bytes()).hexdigest()
    card.write_text(json.dumps({"sizes": SIZES, "sha256": right}))
    assert load(network).spec.card["sha256"] == right
    card.write_text(json.dumps({"sizes": SIZES, "sha256": "0" * 64}))
    with pytest.raises(EngineError, match="not the file that its card") as info:
        load(network)
    one_line(info)


def test_names(network, monkeypatch, tmp_path):
    """A shipped name is found by name; what is neither a name nor a file names those that are."""
    monkeypatch.setattr(engines.spec, "MODELS", network.parent)
    make_network(tmp_path / "cardless.onnx")
    assert available_models() == ("net",)
    assert load("net").spec.path == network
    monkeypatch.chdir(tmp_path)
    assert load("cardless.onnx").spec.name == "cardless"
    for wrong in ("fine", "", "a\0b"):
        with pytest.raises(EngineError, match=r"shipped model \(net\)") as info:
            load(wrong)
        one_line(info)
    with pytest.raises(EngineError, match="no file"):
        load(Path("net"))


def test_short_reason():
    assert short_reason(ValueError("")) == "ValueError"
    text = "Exception from a.cpp:1:\nCheck 'x' failed at b.cpp:2:\nFrontEnd API failed with X:\n\n-- it broke\n"
    assert short_reason(RuntimeError(text)) == "it broke"
    assert short_reason(RuntimeError("[ONNXRuntimeError] : 7 : BAD : Load model from /a b.onnx failed:no")) == "no"
    assert len(short_reason(RuntimeError("x" * 900))) == 160


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Importing OpenVINO would load a telemetry package that posts to a server and leaves a thread."""
    code = (
        "import sys, threading, engines; from tests.networks import make_network\n"
        f"from pathlib import Path; engines.load(make_network(Path({str(tmp_path / 'n.onnx')!r})), engine='openvino')\n"
        "print('openvino_telemetry' in sys.modules, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split() == ["False", "1"], done.stderr
