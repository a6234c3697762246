"""Refined masks: nearer the truth where the picture shows the edge, left alone where it does not, and taken by
the training in place of masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'rtbg[train]'")
pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")

from training import refine
from training.data import U8, load_people, soften

SIZE = (352, 264)


def truth() -> U8:
    alpha = np.zeros(SIZE, np.uint8)
    cv2.ellipse(alpha, (132, 200), (80, 120), 0, 0, 360, 255, -1)
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), 0.9), dtype=np.uint8)


def picture(alpha: U8, person: tuple[int, int, int], room: tuple[int, int, int]) -> U8:
    a = alpha[..., None] / 255
    noise = np.random.default_rng(3).normal(0, 2, (*SIZE, 3))
    return np.clip(a * np.array(person) + (1 - a) * np.array(room) + noise, 0, 255).astype(np.uint8)


def loose(alpha: U8) -> U8:
    """A mask as people draw them: a pixel too large."""
    return np.asarray(cv2.dilate((alpha > 127).astype(np.uint8) * 255, np.ones((3, 3), np.uint8)), dtype=np.uint8)


def test_nearer_the_truth() -> None:
    alpha = truth()
    mask = loose(alpha)
    matte, why = refine.refine(picture(alpha, (200, 120, 90), (40, 90, 140)), mask)
    assert matte is not None, why
    error = [float(np.abs(x.astype(float) - alpha).mean()) for x in (matte, cv2.GaussianBlur(mask, (0, 0), 0.9), mask)]
    assert error[0] < 0.6 * min(error[1:]), error
    assert not matte[refine.trimap(mask, 4) == 0].any(), "nothing far outside"
    assert (matte[refine.trimap(mask, 4) == 1] == 255).all(), "no holes"


@pytest.mark.parametrize("room, why", [((198, 122, 92), "alike"), ((40, 90, 140), "size")])
def test_left_alone(room: tuple[int, int, int], why: str) -> None:
    alpha = truth() if why == "alike" else np.zeros(SIZE, np.uint8)
    assert refine.refine(picture(alpha, (200, 120, 90), room), loose(alpha)) == (None, why)


def test_command_resumes_and_training_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpha = truth()
    for kind in ("images", "masks"):
        (tmp_path / "person" / "train" / kind).mkdir(parents=True)
    for name, room in {"pic0": (40, 90, 140), "pic1": (198, 122, 92), "sup0": (40, 90, 140)}.items():
        image = picture(alpha, (200, 120, 90), room)
        cv2.imwrite(str(tmp_path / "person" / "train" / "images" / f"{name}.webp"), image)
        cv2.imwrite(str(tmp_path / "person" / "train" / "masks" / f"{name}.png"), loose(alpha))
    out = tmp_path / "mattes"
    arguments = ["--data", str(tmp_path), "--out", str(out), "--groups", "pic"]
    assert refine.main(arguments) == 0
    assert "pic: 1 of 2 accepted; refused: 1 alike" in capsys.readouterr().out
    assert [p.name for p in out.glob("*.png")] == ["pic0.png"] and json.loads((out / "refused.json").read_text())
    before = (out / "pic0.png").stat().st_mtime_ns
    assert refine.main(arguments) == 0
    assert (out / "pic0.png").stat().st_mtime_ns == before and "1 of 2" in capsys.readouterr().out

    people = {p.name: p for p in load_people(tmp_path, out)}
    assert {n: p.soft for n, p in people.items()} == {"pic0": True, "pic1": False, "sup0": False}
    assert len(np.unique(people["pic0"].levels[0][..., 3])) > 10, "a matte"
    matte = people["pic0"].levels[0][..., 3]
    moved = np.abs(soften(np.random.default_rng(0), matte, soft=True) - matte / 255.0)
    assert moved.max() < 0.09, "hardly changed"
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no mattes"):
        load_people(tmp_path, tmp_path / "none")

    (tmp_path / "person" / "train" / "images" / "pic2.webp").write_bytes(b"no picture")
    assert refine.main(arguments) == 1
    assert "cannot read" in capsys.readouterr().err.splitlines()[-1]
    for wrong in ("xyz", "cel"):
        with pytest.raises(SystemExit):
            refine.main([*arguments[:4], "--groups", wrong])
