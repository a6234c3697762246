"""Data of one's own, and what the training programmes say to what they cannot use: one line, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from training_parts import ROOT, make_data

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rtbg[train]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'rtbg[train]'")
pytest.importorskip("onnxruntime.quantization", reason="pip install 'rtbg[train]'")

import training.train  # noqa: E402
from training import average, cards, evaluate, export, quantise  # noqa: E402
from training.checkpoint import load_checkpoint, save_best  # noqa: E402
from training.config import TrainConfig, build  # noqa: E402
from training.data import load_backgrounds, load_people  # noqa: E402
from training.evaluate import load_validation  # noqa: E402
from training.model import UNetConfig  # noqa: E402

RUN = ("--model", "unet", "--batch", "2", "--epoch-pictures", "2", "--epochs", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a network that has learnt nothing, as a run of one epoch leaves it."""
    config = TrainConfig(model=UNetConfig(8, (8, 16, 32), (1, 1, 2), 8), sizes=((64, 64),))
    (tmp_path / "run").mkdir()
    how = {"commands": ["made"], "device": "CPU"}
    save_best(tmp_path / "run", build(config.model), config, how, {"epoch": 1, "minutes": 1.0, "iou": 0.5})
    return tmp_path / "run" / "best.pt"


def rename(data: Path, name: Callable[[int], str]) -> None:
    """Gives all pictures of people and their masks other names; name: with its suffix."""
    for k, image in enumerate(sorted(data.glob("*/*/images/*"))):
        mask = image.parents[1] / "masks" / f"{image.stem}.png"
        new = image.with_name(name(k))
        cv2.imwrite(str(new), cv2.imread(str(image)))
        image.unlink()
        mask.rename(mask.with_name(f"{new.stem}.png"))


def train(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """By itself: a run leaves the process its handlers of signals."""
    command = [sys.executable, "-c", f"from training import train\n{before}\ntrain.main()", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=110)


def said(main: Callable[[list[str]], object], *arguments: object) -> str:
    """The one line with which a programme ends."""
    with pytest.raises(SystemExit) as info:
        main(list(map(str, arguments)))
    assert isinstance(info.value.code, str) and "\n" not in info.value.code
    return info.value.code


def test_pictures_of_any_names_and_kinds_are_trained_on_and_exported(data: Path, tmp_path: Path) -> None:
    rename(data, lambda k: f"me at home {k}.{('jpg', 'png', 'JPEG')[k % 3]}")
    (data / "person" / "train" / "images" / "._me at home 0.jpg").write_bytes(b"macOS leaves such files")
    for scene in (data / "backgrounds").iterdir():
        cv2.imwrite(str(scene.with_suffix(".jpg")), cv2.imread(str(scene)))
        scene.unlink()
    done = train("--data", data, "--out", tmp_path / "run", *RUN)
    assert done.returncode == 0, done.stderr
    assert "5 people, 2 scenes" in done.stdout
    for name in ("curve.png", "sheet.jpg", "best.pt"):
        assert (tmp_path / "run" / name).exists(), name
    options = [
        "--data",
        data,
        "--checkpoint",
        tmp_path / "run" / "best.pt",
        "--name",
        "mine",
        "--out",
        tmp_path / "new",
    ]
    export.main(list(map(str, options)))
    card = json.loads((tmp_path / "new" / "mine.json").read_text())["data"]
    assert card[0] == "5 pictures of no set known here" and len(card) == 2, "nobody else's pictures, nobody's terms"
    assert export.describe_data(data, 2)[1] == "what the weights that the last run began with were trained on"
    again = train("--data", data, "--out", tmp_path / "run", *RUN)
    assert again.returncode == 0 and "has had its 1 epochs already" in again.stdout
    other = train("--data", data, "--out", tmp_path / "run", *RUN[2:], "--model", "fast")
    assert other.returncode == 1
    assert other.stderr.startswith("training.train: ") and other.stderr.count("\n") == 1
    assert "is no run of this network" in other.stderr


def test_the_first_epoch_is_the_best_so_far(data: Path, tmp_path: Path) -> None:
    """Also where nobody is found yet: later steps need its file."""
    nobody = "from training.evaluate import Score; train.evaluate = lambda *a: [Score('sup9', 0.0, 0.5)] * 3"
    done = train("--data", data, "--out", tmp_path / "run", *RUN, before=nobody)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.pt").exists()


def test_a_resumed_run_still_tells_what_it_began_with(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also where --init is not given again: whose pictures its weights have seen must not get lost."""
    for epochs, more in ((1, ("--init", checkpoint)), (2, ())):
        better = (
            f"from training.evaluate import Score; train.evaluate = lambda *a: [Score('sup9', {epochs / 2}, 0.5)] * 3"
        )
        done = train("--data", data, "--out", tmp_path / "mine", *RUN[:-1], epochs, *more, before=better)
        assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "mine" / "best.json").read_text())
    assert stored["figures"]["epoch"] == 2
    assert stored["commands"][0] == "made" and len(stored["commands"]) == 2
    assert stored["commands"][1].endswith("--init PREVIOUS")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda d: shutil.rmtree(d), "no pictures to learn from in "),
    "no backgrounds": (lambda d: shutil.rmtree(d / "backgrounds"), "no backgrounds in "),
    "none to measure": (lambda d: shutil.rmtree(d / "person" / "val"), "some that are not trained on"),
    "no mask": (lambda d: (d / "person/train/masks/sup1.png").unlink(), "sup1.png is missing: each picture"),
    "no picture": (lambda d: (d / "person/train/images/sup1.webp").write_bytes(b"no"), "cannot read "),
    "broken mask": (lambda d: (d / "person/train/masks/sup1.png").write_bytes(b"no"), "sup1.png cannot be read: each"),
    "two of a name": (
        lambda d: shutil.copy(d / "person/train/images/sup1.webp", d / "person/train/images/sup1.jpg"),
        "one mask",
    ),
    "labels": (lambda d: edit(d, lambda m: m // 255), "nowhere brighter than 1"),
    "cut-out": (lambda d: edit(d, lambda m: np.dstack([m, m, m, m])), "partly transparent"),
    "turned": (lambda d: edit(d, lambda m: np.ascontiguousarray(m.T)), "is 120x160, its picture 160x120"),
}


def edit(data: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = str(data / "person/train/masks/sup1.png")
    cv2.imwrite(path, change(cv2.imread(path, cv2.IMREAD_GRAYSCALE)))


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_cannot_be_used(fault: str, data: Path) -> None:
    spoil, message = FAULTS[fault]
    spoil(data)
    with pytest.raises(ValueError, match=message):
        load_people(data), load_backgrounds(data), load_validation(data)


def test_masks_that_can_be_used(data: Path) -> None:
    before = {p.name: p.levels[0] for p in load_people(data)}
    edit(data, lambda m: np.dstack([m, m, m, np.full_like(m, 255)]))
    np.testing.assert_array_equal({p.name: p.levels[0] for p in load_people(data)}["sup1"], before["sup1"])
    edit(data, lambda m: cv2.resize(m, (81, 60)))
    assert load_people(data), "half the size, rounded"


def test_a_full_disk_leaves_what_was_there(data: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits are Unix's")
    assert resource
    out = tmp_path / "run"
    assert train("--data", data, "--out", out, *RUN).returncode == 0
    kept = {p.name: p.read_bytes() for p in out.iterdir()}
    full = "import resource; train.SAVE_EVERY = 0; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000,) * 2)"
    done = train("--data", data, "--out", out, *RUN[:-1], "2", before=full)
    assert done.returncode == 1
    assert done.stderr.startswith(f"training.train: {out / 'last.pt'} cannot be written"), done.stderr
    assert done.stderr.count("\n") == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == kept


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT to send")
def test_ctrl_c_is_one_line_and_saves(data: Path, tmp_path: Path) -> None:
    """Also a second one, from somebody who has no patience."""
    code = "from training import train; train.main()"
    command = [sys.executable, "-c", code, "--data", data, "--out", tmp_path / "run", *RUN[:4], "--epochs", "1"]
    process = subprocess.Popen(
        [*map(str, command), "--epoch-pictures", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("sizes"):
        assert process.poll() is None, process.stderr and process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "training.train: interrupted: the same command goes on with what was learnt\n"
    assert (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    "option,value",
    [("--epochs", "0"), ("--epochs", "-1"), ("--hours", "0"), ("--hours", "nan"), ("--rate", "0"), ("--ema", "1"),
     ("--first-stage", "3")],
)  # fmt: skip
def test_options_that_make_no_sense(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        training.train.main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), option, value])
    assert info.value.code == 2 and option in capsys.readouterr().err.splitlines()[-1]


def test_an_output_that_is_no_folder_and_a_device_that_is_none(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, device, message in (
        (tmp_path / "file", "cpu", f"--out {tmp_path / 'file'} cannot be made a folder"),
        (tmp_path / "run", "gpu", "--device gpu cannot be used"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            training.train.train(TrainConfig(), data, out, hours=1, epochs=None, device=device)


def test_checkpoints_that_cannot_be_used(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "none" / "best.pt"
    assert f"{nowhere} does not exist" in said(evaluate.main, "--data", data, "--checkpoint", nowhere)
    assert "does not exist" in said(average.main, "--data", data, "--out", tmp_path / "mean", checkpoint, nowhere)
    weights = checkpoint.read_bytes()
    checkpoint.write_bytes(weights[:300])
    assert "is damaged" in said(evaluate.main, "--data", data, "--checkpoint", checkpoint)
    checkpoint.write_bytes(weights)
    checkpoint.with_suffix(".json").write_text("{")
    assert "is missing or damaged" in said(evaluate.main, "--data", data, "--checkpoint", checkpoint)


def test_an_export_replaces_nothing_that_is_no_export(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = ("--data", data, "--checkpoint", checkpoint, "--out")
    described = checkpoint.with_suffix(".json").read_bytes()
    assert "best.json is no model's card" in said(export.main, *out, checkpoint.parent, "--name", "best")
    assert checkpoint.with_suffix(".json").read_bytes() == described
    load_checkpoint(checkpoint)
    with pytest.raises(SystemExit) as info:
        export.main(list(map(str, (*out, tmp_path, "--name", "mine.v2"))))
    assert info.value.code == 2, "its card would be that of `mine`"
    assert "export more first" in said(export.main, *out, tmp_path / "new", "--name", "less", "--graph-of", "more")
    export.main(list(map(str, (*out, tmp_path / "new", "--name", "mine"))))
    kept = {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()}
    assert set(kept) == {"mine.onnx", "mine.json", "mine.md"}
    elsewhere = ("--data", tmp_path, *out[2:], tmp_path / "new", "--name", "mine")
    assert "no pictures in" in said(export.main, *elsewhere)
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()} == kept


def test_quantise_looks_at_cards_alone(data: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of a run other files end in .json too."""
    folder = checkpoint.parent
    (folder / "history.json").write_text("[]")
    (folder / "notes.json").write_text("none")
    export.main(list(map(str, ("--data", data, "--checkpoint", checkpoint, "--out", folder, "--name", "mine"))))
    monkeypatch.setattr(quantise, "WORST_IOU", 1.0)
    monkeypatch.setattr(quantise, "WORST_MAD", 1e9)
    monkeypatch.setattr(quantise.quantise, "__defaults__", (2,))  # pictures
    quantise.main(["--data", str(data), "--name", "mine", "--out", str(folder)])
    assert json.loads((folder / "mine.json").read_text())["int8"]["file"] == "mine.int8.onnx"
    for name in ("other", "history"):
        assert "is no card of an exported model" in said(quantise.main, "--data", data, "--name", name, "--out", folder)


@pytest.mark.parametrize("text", [None, "", "a table\n", '{"benchmark": "effects", "models": {}}\n'])
def test_reports_that_are_none(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    if text is not None:
        path.write_text(text)
    assert str(path) in said(cards.main, path, "--out", tmp_path)
