"""benchmarks.quality on pictures whose figures are known, by its command line; benchmarks.graph on counted networks."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from networks import save
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

import engines
from benchmarks import quality
from benchmarks.graph import Cost, count
from training.split import held_out

ROOT = Path(__file__).parent.parent
SIZE = (64, 48)
WITH, WITHOUT = ("bg008", "bg014"), "bg009"  # what the split holds out, and does not
AREA = 16 * 24 / (64 * 48)  # of the person
FIGURES = {key for _, key, _ in quality.COLUMNS} | {"empty_wrong", "device", "kind", "size"}


def person(left: int = 8, width: int = 16) -> np.ndarray:
    """bool (48, 64): a rectangle, 24 high, that touches no edge."""
    mask = np.zeros(SIZE[::-1], bool)
    mask[12:36, left : left + width] = True
    return mask


def pair(folder: Path, name: str, mask: np.ndarray, red: np.ndarray | None = None) -> None:
    """A picture that is red where the person is (or where `red` says), green elsewhere; and its mask."""
    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[..., 1] = 255  # BGR
    picture[mask if red is None else red] = (0, 0, 255)
    for part, image in (("images", picture), ("masks", mask.astype(np.uint8) * 255)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / part / f"{name}.png"), image)


def scene(data: Path, name: str, red: float = 0.0) -> None:
    """A background that is green, and red in its upper part."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 1] = 255
    picture[: round(red * 40)] = (0, 0, 255)
    (data / "backgrounds").mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(data / "backgrounds" / f"{name}.webp"), picture, [cv2.IMWRITE_WEBP_QUALITY, 101])


def make_data(data: Path) -> Path:
    """Everything that the benchmark reads. On pic1 the picture shows half of the person; in clip `a` the person
    jumps by its own width; the background that is not held out is all red."""
    pair(data / "person" / "val", "sup1", person())
    pair(data / "person" / "val", "sup2", person(30))
    pair(data / "person" / "val", "pic1", person(), red=person(width=8))
    pair(data / "alpha" / "val", "ais1", person(20))
    for name, places in (("a", (8, 24)), ("b", (40, 40))):
        for k, left in enumerate(places):
            pair(data / "video" / "val" / name, f"{k:03d}", person(left))
    scene(data, WITH[0])
    scene(data, WITHOUT, red=1.0)
    return data


def red_network(path: Path, weights: Sequence[float] = (1, 0, 0, 0), last: str = "Identity") -> Path:
    """`frame` to `alpha` by one 1x1 convolution: the red channel is the matte. last: "Max" also with the past. Its
    sizes are those of the pictures, so that nothing is lost by scaling."""
    values = {"w": np.array(weights, np.float32).reshape(1, 4, 1, 1)}
    nodes = [oh.make_node("Conv", ["frame", "w"], ["c"])]
    if last == "Max":
        values["past"] = np.array([0, 0, 0, 1], np.float32).reshape(1, 4, 1, 1)
        nodes.append(oh.make_node("Conv", ["frame", "past"], ["p"]))
    nodes.append(oh.make_node(last, ["c", "p"] if last == "Max" else ["c"], ["alpha"]))
    ends = [
        oh.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "H", "W"])
        for name, channels in (("frame", 4), ("alpha", 1))
    ]
    save(path, nodes, ends[:1], ends[1:], values)
    path.with_suffix(".json").write_text(json.dumps({"name": path.stem, "sizes": [SIZE, quality.WIDE]}))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.quality", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    (data / "models").mkdir()
    red_network(data / "models" / "truth.onnx")
    red_network(data / "models" / "nothing.onnx", (0, 0, 0, 0))
    red_network(data / "models" / "sticky.onnx", last="Max")
    return data


@pytest.fixture(scope="module")
def report(data: Path) -> tuple[list[str], dict]:
    """The lines, and the last one read, of a run with the models that it finds by itself."""
    done = run("--data", data, "--limit", 2, "--seconds", 0.05)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return lines, json.loads(lines[-1])


def test_the_split_is_what_this_test_takes_it_for() -> None:
    assert all(held_out(name) for name in WITH)
    assert not held_out(WITHOUT)


def test_one_line_of_json_with_every_figure_of_every_model(report: tuple[list[str], dict]) -> None:
    lines, found = report
    assert set(found) == {"benchmark", "machine", "settings", "models"}
    assert found["benchmark"] == "quality"
    assert found["settings"] == {"limit": 2, "engine": "auto", "precision": "auto"}
    assert list(found["models"]) == [*engines.available_models(), "closely", "nothing", "sticky", "truth"]
    for name, figures in found["models"].items():
        assert set(figures) == FIGURES
        none = {"video_iou", "video_dtssd", "gflops"} if name == "closely" else set()
        assert {key for key in FIGURES if figures[key] is None} == none
        assert sum(line.split()[0] == name for line in lines if line) == 1, "its row in the table"
        assert all(0 <= figures[f"iou_{group}"] <= 1 for group in ("sup", "pic"))
        assert figures["ms_1"] > 0
        assert figures["ms_2"] > 0
        width, height = map(int, figures["size"].split("x"))
        if name in engines.available_models():
            sizes = engines.spec.find_model(name).sizes
            assert (width, height) == engines.nearest_size(sizes, 1280, 720), "timed at the size for video"
        else:
            assert width / height == pytest.approx(16 / 9, rel=0.07)


def test_a_shipped_model_is_counted_as_its_card_says(report: tuple[list[str], dict]) -> None:
    """Parameters: the card counts some more, since what follows a convolution is folded into it on export."""
    for name in engines.available_models():
        card = json.loads((engines.spec.MODELS / f"{name}.json").read_text())
        figures = report[1]["models"][name]
        assert figures["parameters"] == pytest.approx(card["parameters"], rel=0.02)
        assert figures["gflops"] == pytest.approx(2e-9 * card["macs"], rel=0.01)


def test_the_truth_scores_full_marks(report: tuple[list[str], dict]) -> None:
    figures = report[1]["models"]["truth"]
    assert figures["iou_sup"] == 1
    assert figures["iou_pic"] == 0.5, "the picture shows half of that person"
    assert figures["alpha_mad"] == figures["alpha_grad"] == figures["alpha_conn"] == 0
    assert figures["comp_mad"] < 0.5, "what rounding to 8 bits takes"
    assert (figures["video_iou"], figures["video_dtssd"]) == (1, 0)
    assert (figures["empty_alpha"], figures["empty_wrong"]) == (0, 0), "a background that is not held out was read"
    assert (figures["parameters"], figures["size"], figures["kind"]) == (4, "640x360", "rtbg")
    assert figures["gflops"] == round(2e-9 * 4 * 640 * 360, 4)


def test_pictures_are_looked_at_closely(data: Path, report: tuple[list[str], dict]) -> None:
    with closing(engines.load(data / "models" / "truth.onnx")) as truth:
        assert quality.score_people(quality.Closely([truth, truth]), data, None) == {"iou_sup": 1, "iou_pic": 0.5}
    figures = report[1]["models"]
    assert figures["closely"]["size"] == figures["quality"]["size"], "the larger of the two"


def test_nothing_scores_nothing(report: tuple[list[str], dict]) -> None:
    figures = report[1]["models"]["nothing"]
    assert figures["iou_sup"] == figures["iou_pic"] == figures["video_iou"] == 0
    assert figures["alpha_mad"] == pytest.approx(1000 * AREA, abs=1e-4)
    assert figures["comp_mad"] > 10
    assert figures["empty_alpha"] == 0


def test_the_past_is_carried_in_videos_only(report: tuple[list[str], dict]) -> None:
    """A network that keeps what it ever answered is right on stills and, since a clip begins with no past, on clip b.
    In the second picture of clip a it keeps the old place, of which 6 columns of 24 lie within the margin of 6."""
    figures = report[1]["models"]["sticky"]
    assert (figures["iou_sup"], figures["alpha_mad"], figures["comp_mad"] < 0.5) == (1, 0, True)
    assert figures["video_iou"] == pytest.approx(((1 + 16 / 22) / 2 + 1) / 2, abs=1e-4)
    # Within both margins (12 columns of 36) these 6 columns of 24 do not go dark as the truth does.
    assert figures["video_dtssd"] == pytest.approx(100 * math.sqrt(6 * 24 / (12 * 36)) / 2, abs=0.01)


def test_false_persons_on_empty_backgrounds(data: Path, tmp_path: Path) -> None:
    scene(tmp_path, WITH[0])
    scene(tmp_path, WITH[1], red=0.1)
    with closing(engines.load(data / "models" / "truth.onnx")) as engine:
        found = quality.score_empty(quality.Predictor(engine), tmp_path, None)
    assert found["empty_alpha"] == pytest.approx(1000 * 0.1 / 2, rel=0.1), "scaled: the edge is soft"
    assert found["empty_wrong"] == 0.5


def test_limit_spreads_over_a_set() -> None:
    assert quality.spread(list(range(10)), 3) == [0, 3, 6]
    assert quality.spread([1, 2], 3) == quality.spread([1, 2], None) == [1, 2]


def test_a_set_without_pictures_is_null(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / "person" / "val").rglob("pic*"):
        path.unlink()
    done = run("--data", tmp_path / "data", "--model", data / "models" / "truth.onnx", "--seconds", 0.05)
    last = done.stdout.splitlines()[-1]
    assert "NaN" not in last
    assert json.loads(last)["models"]["truth"]["iou_pic"] is None
    assert json.loads(last)["models"]["truth"]["iou_sup"] == 1


@pytest.mark.parametrize("gone", ["person/val", "alpha/val/masks", "video/val", "backgrounds", ""])
def test_a_missing_folder_is_one_line(data: Path, tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "data"
    if gone:
        shutil.copytree(data, folder)
        shutil.rmtree(folder / gone)
    done = run("--data", folder)
    assert done.returncode == 1
    assert done.stdout == ""
    line = done.stderr.strip()
    assert "\n" not in line
    assert line.startswith("benchmarks.quality: ")
    assert str(folder / gone) in line
    assert "is missing" in line


def test_other_errors_are_one_line(data: Path, tmp_path: Path) -> None:
    """No background that is held out; a picture that is none; a model that is none."""
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "backgrounds" / f"{WITH[0]}.webp").unlink()
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "person" / "val" / "images" / "sup1.png").write_bytes(b"none")
    truth = data / "models" / "truth.onnx"
    for folder, model, said in (
        (tmp_path / "data", truth, "held out"),
        (broken, truth, "cannot read"),
        (data, "nosuch.onnx", "nosuch.onnx"),
    ):
        done = run("--data", folder, "--model", model)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if "benchmarks.quality" in line]
        assert len(lines) == 1
        assert said in lines[0]
        assert "Traceback" not in done.stderr


def test_no_pictures_are_refused_and_hidden_files_are_none(tmp_path: Path) -> None:
    done = run("--data", tmp_path, "--limit", 0)
    assert done.returncode == 2 and "--limit 0: one at least" in done.stderr
    (tmp_path / "images").mkdir()
    for name in (".DS_Store", "a.webp"):
        (tmp_path / "images" / name).touch()
    assert [image.name for image, _ in quality.pairs(tmp_path)] == ["a.webp"]


# -- what a network costs --

# At 64x48: 3 -> 8 by 3x3, every other pixel; each of the 8 by itself, 3x3; 8 -> 4 in two groups, 1x1; back to 64x48.
FILTERS = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (4, 4, 1, 1), "w4": (4, 1, 2, 2)}
COUNTED = Cost(
    parameters=8 * 3 * 9 + 8 + 8 * 9 + 4 * 4 + 4 * 4,
    macs=(8 * 3 * 9 + 8 * 9 + 4 * 4 + 4 * 4) * 32 * 24,
)


def convolutions(path: Path, stored: str) -> Path:
    """The network of `FILTERS`, with them as "fp32" or "constant" (nodes) as they are, "fp16" behind a Cast, or
    "int8" with a scale for each filter, the bias as int32, and its input quantised too."""
    rng = np.random.default_rng(0)
    values, nodes, image = {"low": np.float32(0), "high": np.float32(6)}, [], "image"
    if stored == "int8":
        values |= {"scale": np.float32(1 / 255), "zero": np.uint8(0)}
        nodes.append(oh.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image.q"]))
        nodes.append(oh.make_node("DequantizeLinear", ["image.q", "scale", "zero"], ["image.dq"]))
        image = "image.dq"
    for name, shape in (*FILTERS.items(), ("b1", (8,))):
        full = rng.normal(size=shape).astype(np.float32)
        if stored == "fp16":
            values[f"{name}.half"] = full.astype(np.float16)
            nodes.append(oh.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
        elif stored == "int8":
            kind = np.int32 if name == "b1" else np.int8
            values |= {f"{name}.q": np.rint(20 * full).astype(kind), f"{name}.s": np.full(shape[0], 0.05, np.float32)}
            values[f"{name}.z"] = np.zeros(shape[0], kind)
            nodes.append(oh.make_node("DequantizeLinear", [f"{name}{x}" for x in (".q", ".s", ".z")], [name], axis=0))
        elif stored == "constant":
            nodes.append(oh.make_node("Constant", [], [name], value=numpy_helper.from_array(full)))
        else:
            values[name] = full
    nodes += [
        oh.make_node("Conv", [image, "w1", "b1"], ["a"], pads=[1] * 4, strides=[2, 2]),
        oh.make_node("Clip", ["a", "low", "high"], ["b"]),
        oh.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, group=8),
        oh.make_node("Conv", ["c", "w3"], ["d"], group=2),
        oh.make_node("ConvTranspose", ["d", "w4"], ["alpha"], strides=[2, 2]),
    ]
    return save(path, nodes, [value("image", [1, 3, "H", "W"])], [value("alpha", [1, 1, "H", "W"])], values)


def value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize("stored", ["fp32", "constant", "fp16", "int8"])
def test_convolutions_are_counted_however_they_are_stored(tmp_path: Path, stored: str) -> None:
    path = convolutions(tmp_path / "net.onnx", stored)
    assert count(path, SIZE) == COUNTED
    assert count(path, (128, 48)) == Cost(COUNTED.parameters, 2 * COUNTED.macs)


def test_a_grouped_transposed_convolution(tmp_path: Path) -> None:
    """6 -> 4 in two groups, 3x3: each of the 6 goes into 2; once for each pixel that comes in."""
    nodes = [oh.make_node("ConvTranspose", ["image", "w"], ["alpha"], group=2, strides=[2, 2])]
    weights = {"w": np.ones((6, 2, 3, 3), np.float32)}
    path = save(tmp_path / "net.onnx", nodes, [value("image", [1, 6, 48, 64])], [value("alpha", list("abcd"))], weights)
    assert count(path, SIZE) == Cost(6 * 2 * 9, 6 * 2 * 9 * 64 * 48)


def test_matrix_products_of_a_picture_with_channels_last_in_fp16(tmp_path: Path) -> None:
    """(pixels, 3) by (3, 5); and the first one turned, (3, pixels), by (pixels, 2)."""
    half = np.float16
    nodes = [
        oh.make_node("Reshape", ["image", "rows"], ["r"]),
        oh.make_node("MatMul", ["r", "m"], ["a"]),
        oh.make_node("Gemm", ["r", "g", "bias"], ["alpha"], transA=1),
    ]
    pixels = SIZE[0] * SIZE[1]
    values = {"rows": np.array([-1, 3]), "m": np.ones((3, 5), half), "g": np.ones((pixels, 2), half)}
    values["bias"] = np.ones(2, half)
    image = value("image", [1, "H", "W", 3], TensorProto.FLOAT16)
    results = [value("alpha", [3, 2], TensorProto.FLOAT16), value("a", [pixels, 5], TensorProto.FLOAT16)]
    path = save(tmp_path / "net.onnx", nodes, [image], results, values)
    assert count(path, SIZE) == Cost(3 * 5 + 2 * pixels + 2, pixels * 3 * 5 + 3 * 2 * pixels)


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    """And not taken for nothing: here the picture is convolved in integers."""
    nodes = [
        oh.make_node("Cast", ["image"], ["i"], to=TensorProto.UINT8),
        oh.make_node("ConvInteger", ["i", "w"], ["c"]),
        oh.make_node("Cast", ["c"], ["alpha"], to=TensorProto.FLOAT),
    ]
    weights = {"w": np.ones((1, 3, 1, 1), np.uint8)}
    path = save(tmp_path / "net.onnx", nodes, [value("image", [1, 3, 48, 64])], [value("alpha", list("abcd"))], weights)
    with pytest.raises(ValueError, match="ConvInteger cannot be counted"):
        count(path, SIZE)
