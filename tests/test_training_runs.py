"""Training runs that are cut off, started wrongly, or started elsewhere than on Linux with one GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_parts import ROOT, make_data, python

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rtbg[train]'")

from training import train  # noqa: E402
from training.config import TrainConfig  # noqa: E402
from training.model import UNetConfig  # noqa: E402

TINY = TrainConfig(model=UNetConfig(8, (8, 16, 32), (1, 1, 2), 8), sizes=((64, 64),))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a program without asking it")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGTERM to its workers too", "SIGKILL"])
def test_an_epoch_that_is_cut_off_is_gone_on_with(how: str, data: Path, tmp_path: Path) -> None:
    """SIGTERM has the run saved; against SIGKILL it is saved now and then."""
    every = "0" if how == "SIGKILL" else "1e9"
    code = f"from training import train; train.SAVE_EVERY = {every}; train.main()"
    run = ["--data", data, "--out", tmp_path, "--batch", 2, "--model", "unet", "--epochs", 1]
    command = [sys.executable, "-c", code, *map(str, run), "--epoch-pictures", "1000000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while not process.stdout.readline().startswith("sizes"):
            assert process.poll() is None, process.stderr and process.stderr.read()
        deadline = time.monotonic() + 120
        while how == "SIGKILL" and not (tmp_path / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # somewhere in a step
    finally:
        if "workers" in how:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.send_signal(signal.Signals[how])
        process.communicate(timeout=120)
    if "workers" not in how:  # else torch may be the first to say so
        assert process.returncode == (128 + signal.SIGTERM if how == "SIGTERM" else -signal.SIGKILL)
    spent = torch.load(tmp_path / "last.pt", weights_only=True)["spent"]
    said = python("training.train", *run, "--epoch-pictures", 4)
    assert "resumed after 0 min, 0 epochs" in said
    assert [h["epoch"] for h in json.loads((tmp_path / "history.json").read_text())] == [1]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["spent"] > spent


def test_what_is_saved_is_whole(tmp_path: Path) -> None:
    """Also where a kill came between the checkpoint and the history for people."""
    run = train.Run(TINY, tmp_path, "cpu")
    run.rng.random(7)
    run.spent, run.history = 12.5, [{"epoch": 1, "iou": 0.5}]
    run.save()
    (tmp_path / "history.json").unlink()
    again = train.Run(TINY, tmp_path, "cpu")
    assert again.resumed
    assert (again.spent, again.saved, again.history) == (12.5, 12.5, run.history)
    np.testing.assert_array_equal(again.rng.random(5), run.rng.random(5), "everything is seeded")


@pytest.mark.parametrize("batch", ["64", "-1"])
def test_an_epoch_of_less_than_a_batch_is_refused(
    batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        train.main(
            ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--batch", batch, "--epoch-pictures", "32"]
        )
    assert info.value.code == 2
    assert f"an epoch of --epoch-pictures 32 holds no --batch of {batch}" in capsys.readouterr().err


def test_a_run_where_affinity_is_not_known(data: Path, tmp_path: Path) -> None:
    """macOS and Windows have no `os.sched_getaffinity`. In a process of its own: a loader's workers leave it a handler
    of torch's for children that end."""
    code = "import os; vars(os).pop('sched_getaffinity', None); from training import train; train.main()"
    run = ("--data", data, "--out", tmp_path, "--batch", 2, "--epoch-pictures", 2, "--epochs", 1, "--model", "unet")
    done = subprocess.run([sys.executable, "-c", code, *map(str, run)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "last.pt").exists()


def test_autocast_is_given_a_kind_of_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of several GPUs is none of its business: it refuses "cuda:1"."""
    asked: list[str] = []
    real = torch.autocast

    def autocast(kind: str, *more: Any) -> Any:
        asked.append(kind)
        return real(kind, *more)

    monkeypatch.setattr(torch, "autocast", autocast)
    run = train.Run(TINY, tmp_path, "cpu:0", train.build(TINY.model).eval())
    run.step(torch.zeros(2, 5, 64, 64, dtype=torch.uint8), 1e-3, own_past=True)
    assert len(asked) >= 3 and set(asked) == {"cpu"}


def test_checkpoints_of_before_are_read() -> None:
    """With what configurations held once: no sizes beside their own, or one preset's; a share of channels."""
    values = json.loads(json.dumps(asdict(TrainConfig(rate=0.5))))
    for also, read in (("", ()), ("quality", ("quality",)), (["fast", "quality"], ("fast", "quality"))):
        older = json.loads(json.dumps(values | {"also": also, "model": values["model"] | {"keep": 1.0}}))
        assert TrainConfig.from_dict(older) == TrainConfig(rate=0.5, also=read)
    with pytest.raises(ValueError, match="thinned"):
        TrainConfig.from_dict(values | {"model": values["model"] | {"keep": 0.5}})
