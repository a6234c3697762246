"""training.cards: figures of benchmarks on copies of the shipped cards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from engines.spec import MODELS, find_model
from training import cards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped `balanced`, with the card that it had before any benchmark."""
    for suffix in (".onnx", ".json", ".md"):
        shutil.copy(MODELS / f"balanced{suffix}", tmp_path)
    card, words = tmp_path / "balanced.json", tmp_path / "balanced.md"
    card.write_text(json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k not in cards.TITLES}))
    parts = re.split(r"^(?=## )", words.read_text(), flags=re.MULTILINE)
    words.write_text("".join(p for p in parts if not any(p.startswith(f"## {t}\n") for t in cards.TITLES.values())))
    return tmp_path


def report(path: Path, benchmark: str, figures: dict) -> Path:
    path.write_text(
        f"a table\n{json.dumps({'benchmark': benchmark, 'models': {'balanced': figures, 'peer': figures}})}\n"
    )
    return path


def test_figures_are_added_and_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "balanced.md").read_text()
    assert not any(title in before for title in cards.TITLES.values())
    for value in (0.125, 0.25):
        one = report(tmp_path / "one.txt", "quality", {"iou_sup": value})
        two = report(tmp_path / "two.txt", "past", {"past": {"dtssd": value, "drift": 7}, "none": {"dtssd": 9.5}})
        cards.main([str(one), str(two), "--out", str(folder)])
        assert capsys.readouterr().out == f"{one} balanced\n{two} balanced\n"
    card, words = json.loads((folder / "balanced.json").read_text()), (folder / "balanced.md").read_text()
    assert card["quality"] == {"iou_sup": 0.25}
    assert card["past"]["past"]["drift"] == 7
    assert (
        words.count("| iou_sup | 0.25 |")
        == words.count("| dtssd | 0.25 | 9.5 |")
        == words.count("| drift | 7 |  |")
        == 1
    )
    assert "0.125" not in words.replace(before, "")
    for title in cards.TITLES.values():
        assert words.count(f"## {title}\n") == 1
    for heading in ("## Figures", "## Trained on", "## Limits", "## Reproduce"):
        assert words.count(heading) == 1
    assert not (folder / "peer.json").exists()
    assert find_model(str(folder / "balanced.onnx")).sizes == find_model("balanced").sizes  # still a card
