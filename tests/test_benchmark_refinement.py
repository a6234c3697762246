"""The benchmark of the steps after the network: every step is timed, and the sum is theirs."""

from __future__ import annotations

import json

import pytest

from benchmarks import refinement
from engines.spec import find_model, nearest_size

pytest.importorskip("skimage", reason="the demo portrait is scikit-image's")


def test_a_short_run_gives_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    refinement.main(["--sizes", "320x180", "640x360", "--pictures", "6", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    done = json.loads(lines[-1])
    assert done["benchmark"] == "refinement" and list(done["ms"]) == ["320x180", "640x360"]
    for row in done["ms"].values():
        assert list(row) == [*refinement.STEPS, "sum", *refinement.BESIDE]
        assert all(v > 0 for v in row.values())
        assert row["sum"] == pytest.approx(sum(row[n] for n in refinement.STEPS), abs=0.005)
    assert len(lines) == 2 + len(row)


def test_the_mattes_are_the_networks_of_the_pictures() -> None:
    source, frames = refinement.pictures((640, 360), 4)
    mattes = refinement.raw_mattes(source, frames, "fast")
    spec = find_model("fast")
    assert len(mattes) == len(frames) == 4
    for matte, grey in mattes:
        assert matte.shape == grey.shape == nearest_size(spec.sizes, 640, 360)[::-1]
        assert 0.1 < matte.mean() < 0.8 and matte.max() > 0.95 and grey.std() > 10
    assert (frames[0].planes[0] != frames[1].planes[0]).mean() > 0.3
