"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest

from rtbg.backgrounds.names import GENERATED
from rtbg.cli import build_parser
from tests.media import make_video, picture

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", picture(64, 48, 0))
    cv2.imwrite("beach.jpg", picture(64, 48, 3))
    make_video(tmp_path / "in.mp4", frames=150)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert (tmp_path / "out.mp4").stat().st_size > 0 and (tmp_path / "web.webm").stat().st_size > 0


def test_options_it_names_exist() -> None:
    known = {o for action in build_parser()._actions for o in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(re.findall(r"`(rtbg .*?|-.*?)`", README))))
    assert named and named <= known | {"--help"}, named - known
    assert any(name in README for name in GENERATED)


def test_options_of_the_training_programmes_exist() -> None:
    commands = re.findall(r"python -m training\.(\w+)((?:[^\n`#]|(?<=\\)\n)*)", README)
    assert {name for name, _ in commands} >= {"train", "evaluate", "export", "quantise"}, "own models, step by step"
    for name, words in commands:
        source = (Path(__file__).parents[1] / "training" / f"{name}.py").read_text("utf-8")
        for option in re.findall(r"--[a-z][a-z-]*", words):
            assert f'"{option}"' in source, f"training.{name} {option}"


def test_links_and_folders_exist() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
    for folder in ("rtbg", "engines", "training", "benchmarks", "tests"):
        assert (root / folder).is_dir() and f"{folder}/" in README
