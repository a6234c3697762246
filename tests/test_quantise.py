"""training.quantise: its rule, and what becomes of models that are one graph at several sizes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
from networks import make_network
from training_parts import make_data

pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")
pytest.importorskip("onnxruntime.quantization", reason="pip install 'rtbg[train]'")

import engines.spec
from engines.int8 import eight_bits
from engines.spec import find_model
from training import export, quantise

NAMES = ("one", "two")  # `two` is the graph of `one` at other sizes


def test_the_rule() -> None:
    before = {"iou": 0.9, "mad": 0.02, "iou_sup": 0.8, "mad_sup": 0.03}
    assert quantise.holds(before, before) == []
    assert quantise.holds(before, {"iou": 0.8971, "mad": 0.0205, "iou_sup": 0.95, "mad_sup": 0.01}) == []
    assert quantise.holds(before, before | {"iou_sup": 0.7969}) == ["iou_sup falls by 0.0031"]
    assert quantise.holds(before, before | {"mad": 0.0207}) == ["mad grows to 1.035 of what it was"]
    assert len(quantise.holds(before, {"iou": 0.1, "mad": 1, "iou_sup": 0.1, "mad_sup": 1})) == 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the shipped models are during this test: `one` and `two`, with nothing of 8 bits yet."""
    write_graph(tmp_path / "one.onnx", seed=0)
    write_cards(tmp_path, *NAMES)
    monkeypatch.setattr(engines.spec, "MODELS", tmp_path)
    monkeypatch.setattr(quantise.quantise, "__defaults__", (2,))  # pictures
    return tmp_path


def write_graph(path: Path, seed: int) -> None:
    model = onnx.load(make_network(path, seed=seed))
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"  # as the exporter does; those not to be quantised are told by it
    onnx.save(model, path)


def write_cards(folder: Path, *names: str) -> None:
    """As `training.export` leaves them."""
    for name in names:
        card = {
            "name": name,
            "graph": "one.onnx",
            "sha256": hashlib.sha256((folder / "one.onnx").read_bytes()).hexdigest(),
        }
        card |= {"sizes": [[64, 48]] if name == "one" else [[32, 32]]}
        (folder / f"{name}.json").write_text(json.dumps(card))
        (folder / f"{name}.md").write_text("## Reproduce\n")


def run(folder: Path, data: Path, name: str, monkeypatch: pytest.MonkeyPatch, *, worst: float) -> None:
    """worst: by how much the IoU may fall at most."""
    monkeypatch.setattr(quantise, "WORST_IOU", worst)
    monkeypatch.setattr(quantise, "WORST_MAD", 1e9)
    quantise.main(["--data", str(data), "--name", name, "--out", str(folder)])


def usable(name: str) -> bool:
    """Whether a model has an 8-bit graph; an error where its card names another file than there is."""
    return eight_bits(find_model(name)) is not None


def test_a_shared_graph(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        assert not usable(name)
        run(folder, data, name, monkeypatch, worst=1)
        assert usable(name)
        run(folder, data, name, monkeypatch, worst=1)
        assert (folder / f"{name}.md").read_text().count("training.quantise") == 1
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}
    operators = {n.op_type for n in onnx.load(folder / "one.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators

    # Another try that does not hold: nothing is lost, of no model.
    with pytest.raises(SystemExit, match="not kept: iou falls by"):
        run(folder, data, "one", monkeypatch, worst=-2)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == kept

    # Another file in its place: what was measured on the old one is known of the old one only.
    make = quantise.quantise

    def other(path: Path, target: Path, *more: object) -> None:
        make(path, target, *more)  # type: ignore[arg-type]
        model = onnx.load(target)
        model.producer_version = "another"
        onnx.save(model, target)

    monkeypatch.setattr(quantise, "quantise", other)
    capsys.readouterr()
    run(folder, data, "one", monkeypatch, worst=1)
    assert usable("one") and not usable("two")
    assert "two.json names no 8-bit graph now" in capsys.readouterr().out
    run(folder, data, "two", monkeypatch, worst=1)
    assert all(map(usable, NAMES))

    # `two` alone does not hold.
    with pytest.raises(SystemExit, match="not kept"):
        run(folder, data, "two", monkeypatch, worst=-2)
    assert usable("one") and not usable("two")


@pytest.mark.parametrize("exported", [("one",), NAMES], ids=str)
def test_an_older_file_of_another_graph_goes(
    exported: tuple[str, ...], folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another training, whose 8-bit graph does not hold; whether or not the second card is exported anew yet."""
    for name in NAMES:
        run(folder, data, name, monkeypatch, worst=1)
    write_graph(folder / "one.onnx", seed=1)
    write_cards(folder, *exported)
    with pytest.raises(SystemExit, match="not kept"):
        run(folder, data, "one", monkeypatch, worst=-2)
    assert not (folder / "one.int8.onnx").exists()
    assert all("int8" not in json.loads((folder / f"{name}.json").read_text()) for name in NAMES)
    assert not usable("one")


def test_a_failure_leaves_nothing_half_done(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        run(folder, data, name, monkeypatch, worst=1)
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(_data: Path) -> list[tuple[str, object]]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(quantise.quantise, "__defaults__", (5,))  # pictures: other ranges, so another file
    monkeypatch.setattr(quantise, "load_validation", fail)
    with pytest.raises(SystemExit, match="the disk is gone"):
        run(folder, data, "one", monkeypatch, worst=1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == kept


def test_only_what_is_trained_on_is_described(data: Path, tmp_path: Path) -> None:
    """A tenth of the backgrounds is held out for the benchmarks."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    names = [f"room{k}" for k in range(40)]
    for name in names:
        shutil.copy(data / "backgrounds" / "room0.webp", tmp_path / "backgrounds" / f"{name}.webp")
    seen = len(quantise.load_backgrounds(tmp_path))
    assert 0 < seen < len(names)
    assert export.describe_data(tmp_path)[-1].startswith(f"{seen} backgrounds")
