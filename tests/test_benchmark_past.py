"""benchmarks.past on a network that never forgets and on one that has no past, by its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_benchmark_quality import ROOT, make_data, red_network

from benchmarks import past


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    data = make_data(tmp_path_factory.mktemp("data"))
    models = [red_network(data / "truth.onnx"), red_network(data / "sticky.onnx", last="Max")]
    command = [sys.executable, "-m", "benchmarks.past", "--data", data, "--model", *models]
    command += ["--pictures", 12, "--stills", 2, "--repeats", 3]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_without_a_past_both_columns_are_the_same(report: tuple[str, dict]) -> None:
    found = report[1]["models"]["truth"]
    assert found["none"] == {key: found["past"][key] for key in found["none"]}
    assert found["past"]["dtssd"] > 0  # noise and codec
    assert found["past"]["video_iou"] == pytest.approx(1, abs=0.01)


def test_a_network_that_never_forgets_is_found_out(report: tuple[str, dict]) -> None:
    found = report[1]["models"]["sticky"]
    assert found["past"]["cut_first"] > found["none"]["cut_first"] + 50
    assert found["past"]["cut_fifth"] >= found["past"]["cut_first"]
    assert found["past"]["mad"] > 2 * found["none"]["mad"]
    assert found["past"]["video_iou"] < 0.95 < found["none"]["video_iou"]


def test_repeats(report: tuple[str, dict]) -> None:
    for found in report[1]["models"].values():  # neither changes its mind about a still
        assert found["past"]["drift"] == found["past"]["drift_worst"] == 0
        assert found["past"]["drift_first"] == found["past"]["drift_last"]


def test_the_table_names_every_figure(report: tuple[str, dict]) -> None:
    said, last = report
    for key in last["models"]["truth"]["past"]:
        assert said.count(f"  {key} ") == 2


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^benchmarks\.past: .* is missing"):
        past.main(["--data", str(tmp_path)])


@pytest.mark.parametrize(
    "option,value", [("--pictures", "1"), ("--stills", "0"), ("--repeats", "0"), ("--repeats", "-1")]
)
def test_too_few_pictures_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        past.main(["--data", "nowhere", option, value])
    assert info.value.code == 2 and option in capsys.readouterr().err.splitlines()[-1]
