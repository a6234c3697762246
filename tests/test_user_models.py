"""Other people's networks: segmenters and recurrent mattors, told by signature, their cards, and what is refused."""

from __future__ import annotations

import json
import logging
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from networks import ENGINES, make_mattor, make_segmenter, noise, one_line, save, segmenter_logits
from onnx import TensorProto
from onnx import helper as oh

import engines.signature
import rtbg
from engines import Engine, EngineError, StatefulEngine, load
from engines.segmenter import guess_activation, probe_picture
from rtbg.color import rgb_to_planes
from rtbg.frame import BT709, FULL, Color, Frame, StreamInfo
from rtbg.matting import GAP, Matting

SIZE = (64, 48)
PERSON = np.array([0.9, 0.1, 0.5], np.float32)  # a colour that `make_segmenter` takes for a person


def picture(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame with a person's colour in its middle, blurred, on grey; and a past that must not matter."""
    frame = np.full((1, 4, size[1], size[0]), 0.4, np.float32)
    middle = np.s_[size[1] // 4 : -size[1] // 4, size[0] // 4 : -size[0] // 4]
    for plane, level in zip(frame[0], PERSON, strict=False):
        plane[middle] = level
        plane[:] = cv2.blur(plane, (5, 5))
    frame[0, 3] = noise(size)[0, 0]
    return frame


def card(path: Path, **keys: object) -> Path:
    path.with_suffix(".json").write_text(json.dumps(keys))
    return path


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def check_alpha(engine: Engine, frame: np.ndarray, expected: np.ndarray, atol: float = 1e-5) -> None:
    before = frame.copy()
    alpha = engine.infer({"frame": frame})["alpha"]
    assert (alpha.dtype, alpha.shape) == (np.float32, (1, 1, *frame.shape[2:]))
    np.testing.assert_allclose(alpha[0, 0], expected, atol=atol)
    np.testing.assert_array_equal(frame, before)


# ---- cards


@pytest.mark.parametrize(
    "key,meant", [("colours", "colors"), ("Mean", "mean"), ("downsample-ratio", "downsample_ratio")]
)
def test_a_key_that_is_misspelt_is_told(key: str, meant: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = card(make_segmenter(tmp_path / "net.onnx"), **{key: "bgr", "sizes": [list(SIZE)], "meta": 1, "name": "net"})
    load(path, engine="onnxruntime").close()
    (message,) = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert f'says "{key}", which is not looked at: did you mean "{meant}"?' in message


def test_a_card_as_windows_editors_save_it(tmp_path: Path) -> None:
    path = make_segmenter(tmp_path / "net.onnx")
    path.with_suffix(".json").write_text(json.dumps({"sizes": [list(SIZE)]}), "utf-8-sig")
    engine = load(path, engine="onnxruntime")
    assert engine.spec.sizes == (SIZE,)
    engine.close()


# ---- segmenters


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("side", [("H", "W"), SIZE[::-1]], ids=["free", "fixed"])
@pytest.mark.parametrize(("out", "last"), [(1, "Sigmoid"), (1, None), (2, "Softmax"), (2, None), (2, "Sigmoid")])
def test_segmenter(engine, layout, side, out, last, tmp_path, caplog):
    path = make_segmenter(tmp_path / "seg.onnx", layout=layout, out=out, side=side, last=last)
    if side == ("H", "W"):
        card(path, sizes=[SIZE])
    with caplog.at_level(logging.INFO, "engines"):
        loaded = load(path, engine=engine, precision="f32")
    assert isinstance(loaded, Engine)
    assert not isinstance(loaded, StatefulEngine)
    assert (loaded.name, loaded.spec.kind, loaded.spec.sizes) == (engine, "segmenter", (SIZE,))
    frame = picture()
    logits = segmenter_logits(frame[0, :3], out)
    alpha = sigmoid(logits[-1] - logits[0] if out == 2 and last != "Sigmoid" else logits[-1])
    check_alpha(loaded, frame, alpha)
    assert alpha.min() < 0.45 and alpha.max() > 0.9
    (text,) = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    guess = ("none" if last else "softmax" if out == 2 else "sigmoid") + " (guessed)"
    assert layout in text and guess in text and "guessed: if wrong" in text
    loaded.close()
    with pytest.raises(EngineError, match="closed"):
        loaded.infer({"frame": frame})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("out", [1, 2])
def test_smaller_answer_is_enlarged(engine, layout, out, tmp_path):
    path = make_segmenter(tmp_path / "seg.onnx", layout=layout, out=out, side=SIZE[::-1], last=None, half=True)
    frame = picture()
    small = frame[0, :3].reshape(3, SIZE[1] // 2, 2, SIZE[0] // 2, 2).mean((2, 4))
    logits = segmenter_logits(small, out)
    alpha = sigmoid(logits[1] - logits[0] if out == 2 else logits[0])
    check_alpha(load(path, engine=engine, precision="f32"), frame, cv2.resize(alpha, SIZE))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"squeeze": True}, {}),
        ({"extra": True}, {}),
        ({"batch": "N"}, {}),
        ({"batch": "N", "layout": "nhwc"}, {}),
        ({"channels": "C"}, {"layout": "nchw"}),
        ({"side": (48, "W")}, {}),
    ],
)
def test_variants(engine, options, keys, tmp_path):
    path = card(make_segmenter(tmp_path / "seg.onnx", **options), sizes=[SIZE], **keys)
    frame = picture()
    check_alpha(load(path, engine=engine, precision="f32"), frame, sigmoid(segmenter_logits(frame[0, :3]))[0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_card_normalises(engine, layout, tmp_path):
    path = make_segmenter(tmp_path / "seg.onnx", layout=layout, last=None)
    mean, std = [104.0, 117.0, 123.0], 58.5
    card(path, sizes=[SIZE], scale=255, mean=mean, std=std, colors="bgr", layout=layout, activation="sigmoid")
    frame = picture()
    fed = (frame[0, 2::-1] * 255 - np.reshape(mean, (3, 1, 1))) / std
    check_alpha(load(path, engine=engine, precision="f32"), frame, sigmoid(segmenter_logits(fed))[0], 1e-4)


@pytest.mark.parametrize(
    ("out", "activation", "expected"),
    [
        (1, "none", lambda s: np.clip(s[0], 0, 1)),
        (1, "softmax", lambda s: sigmoid(s[0])),
        (2, "none", lambda s: np.clip(s[1], 0, 1)),
        (2, "sigmoid", lambda s: sigmoid(s[1])),
    ],
)
def test_card_names_the_activation(out, activation, expected, tmp_path):
    path = card(make_segmenter(tmp_path / "seg.onnx", out=out, last=None), sizes=[SIZE], activation=activation)
    frame = picture()
    check_alpha(load(path, precision="f32"), frame, expected(segmenter_logits(frame[0, :3], out)))


def test_without_a_card_what_is_assumed_is_a_warning(tmp_path, caplog):
    path = make_segmenter(tmp_path / "seg.onnx", last=None)
    load(path).close()
    (text,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "\n" not in text
    assert "assumed to take RGB in 0..1, activation sigmoid" in text
    assert "scale, mean, std, colors or activation in seg.json" in text
    caplog.clear()
    card(path, scale=1)
    load(path).close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mattor_that_does_not_run_is_refused_at_once(engine, tmp_path):
    """One whose matte is of half the size, which its file does not say."""
    path = card(make_mattor(tmp_path / "mattor.onnx"), sizes=[SIZE])
    model = onnx.load(path)
    (matte,) = [n for n in model.graph.node if "pha" in n.output]
    matte.CopyFrom(oh.make_node("Identity", ["r1o"], ["pha"]))
    onnx.save(model, path)
    with pytest.raises(EngineError, match=r"it must give \(1, 1, H, W\)") as info:
        load(path, engine=engine)
    one_line(info)


def test_free_sizes_without_a_card(tmp_path):
    loaded = load(make_segmenter(tmp_path / "seg.onnx"))
    assert loaded.spec.sizes == engines.signature.OTHER_SIZES
    assert all(w % 32 == h % 32 == 0 for w, h in loaded.spec.sizes)


def test_guess_activation():
    low, high = np.float32([[0, 0.2]]), np.float32([[-1, 3]])
    assert guess_activation([low]) == guess_activation([low, low]) == "none"
    assert guess_activation([high]) == "sigmoid"
    assert guess_activation([high, low]) == guess_activation([low, high]) == "softmax"


def test_probe_picture():
    first, second = probe_picture(64, 48), probe_picture(64, 48)
    np.testing.assert_array_equal(first, second)
    assert (first.shape, first.dtype) == ((1, 4, 48, 64), np.float32)
    assert first.min() >= 0 and first.max() <= 1 and not first[0, 3].any()
    assert first[0, :3].std() > 0.1


# ---- recurrent mattors


def after(red: np.ndarray, pictures: int, ratio: float = 1) -> np.ndarray:
    """What `make_mattor` answers to the last of so many equal pictures without a ratio."""
    size = red.shape[::-1]
    small = red if ratio == 1 else cv2.resize(red, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_LINEAR)
    pooled = small.reshape(small.shape[0] // 2, 2, small.shape[1] // 2, 2).mean((1, 3))
    return cv2.resize(pooled * (1 - 0.5**pictures), size, interpolation=cv2.INTER_NEAREST)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ratio", [None, 1, 0.5])
def test_recurrent(engine, ratio, tmp_path, caplog):
    """Its state goes from picture to picture, per `reset` and size from the start."""
    path = make_mattor(tmp_path / "mattor.onnx", ratio=ratio is not None)
    sizes = [SIZE, SIZE[::-1]]
    card(path, sizes=sizes, **({"downsample_ratio": 0.5} if ratio == 0.5 else {}))
    with caplog.at_level(logging.INFO, "engines"):
        loaded = load(path, engine=engine, precision="f32")
    assert isinstance(loaded, StatefulEngine)
    assert (loaded.spec.kind, loaded.spec.sizes) == ("recurrent", tuple(sizes))
    assert ("downsample_ratio" in caplog.text) == (ratio is not None)
    frame, red = picture(), picture()[0, 0]
    for _ in range(2):
        loaded.reset()
        for k in range(1, 4):
            check_alpha(loaded, frame, after(red, k, ratio or 1))
    turned = np.ascontiguousarray(frame.transpose(0, 1, 3, 2))
    for k in (1, 2):
        check_alpha(loaded, turned, after(turned[0, 0], k, ratio or 1))
    check_alpha(loaded, frame, after(red, 1, ratio or 1))
    loaded.close()
    loaded.reset()
    with pytest.raises(EngineError, match="closed"):
        loaded.infer({"frame": frame})


@pytest.mark.parametrize("make", [make_segmenter, make_mattor])
def test_a_picture_is_looked_at_once_by_a_network_that_takes_no_past(make, tmp_path):
    """A second look of a mattor would be one at the next picture of a video."""
    path = str(card(make(tmp_path / "m.onnx"), sizes=[SIZE], range=[0, 1]))
    rgb = (255 * picture()[0, :3]).astype(np.uint8).transpose(1, 2, 0)
    mattes = [rtbg.matte(np.ascontiguousarray(rgb), model=path, closely=closely) for closely in (True, False)]
    assert np.ptp(mattes[0]) > 0.2 and np.array_equal(*mattes)


@pytest.mark.parametrize("why", ["cut", "gap", "backwards", "reset", "new stream", None])
def test_matting_resets_a_recurrent_engine(why, tmp_path):
    """Where `Matting` forgets the past, the network's own is forgotten too, and only there."""
    color = Color(BT709, FULL)

    def at(level: int, pts: int) -> Frame:
        rgb = np.zeros((96, 128, 3), np.uint8)
        rgb[24:72, 32:96] = level
        planes = rgb_to_planes(rgb, color, height=96, bits=8, chroma=(1, 1))
        return Frame(planes, pts, Fraction(1, 25), color)

    stream = StreamInfo(128, 96, Fraction(1, 25), Fraction(25), color, chroma=(1, 1))
    engine = load(card(make_mattor(tmp_path / "m.onnx"), sizes=[SIZE]), precision="f32")
    matting = Matting(engine, stream)
    seen: list[int] = []

    def push(frame: Frame) -> None:
        done = [*matting.push(frame), *(matting.flush() if why is None else [])]
        seen.extend(int(alpha[48, 64]) for _, alpha in done)

    resets = []
    engine.reset = lambda original=engine.reset: (resets.append(1), original())  # type: ignore[method-assign]
    push(at(200, 100))
    before = len(resets)
    if why == "reset":
        matting.reset()
    if why == "new stream":
        matting = Matting(engine, stream)
    following = {"gap": 101 + int(25 * GAP), "backwards": 90}.get(str(why), 101)
    push(at(0 if why == "cut" else 200, following))
    assert before == 1
    assert len(resets) == (1 if why is None else 2)


# ---- refused


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 1}, "image float32 (1, 1, ?, ?) -> score"),
        ({"batch": 2}, "image float32 (2, 3, ?, ?) -> score"),
        ({"nan": True}, "no numbers"),
    ],
)
def test_unusable_segmenter(engine, options, says, tmp_path):
    weights = {"side": SIZE[::-1]} if "nan" in options else {}
    path = (
        make_segmenter(tmp_path / "seg.onnx", **options, **weights) if options.get("channels") != 1 else grey(tmp_path)
    )
    with pytest.raises(EngineError) as info:
        load(path, engine=engine)
    assert says in one_line(info)


def grey(folder: Path) -> Path:
    """A network that takes one channel."""
    image = oh.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "H", "W"])
    score = oh.make_tensor_value_info("score", TensorProto.FLOAT, None)
    return save(folder / "grey.onnx", [oh.make_node("Sigmoid", ["image"], ["score"])], [image], [score], {})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("reshape", "shown"), [([1, 3, 48, 64], "(1, 3, 48, 64)"), ([1, 9216], "(1, 9216)")])
def test_answers_that_are_no_matte(engine, reshape, shown, tmp_path):
    image = oh.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 48, 64])
    score = oh.make_tensor_value_info("score", TensorProto.FLOAT, None)
    node = oh.make_node("Reshape", ["image", "shape"], ["score"])
    path = save(tmp_path / "many.onnx", [node], [image], [score], {"shape": np.array(reshape)})
    with pytest.raises(EngineError, match="accepted are 1 or 2 channels") as info:
        load(path, engine=engine)
    assert shown in one_line(info)


def test_larger_answer(tmp_path):
    image = oh.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 48, 64])
    score = oh.make_tensor_value_info("score", TensorProto.FLOAT, None)
    node = oh.make_node("DepthToSpace", ["four"], ["score"], blocksize=2)
    four = oh.make_node("Conv", ["image", "w"], ["four"])
    weights = {"w": np.ones((4, 3, 1, 1), np.float32)}
    with pytest.raises(EngineError, match=r"\(1, 1, 96, 128\).*no larger than the picture") as info:
        load(save(tmp_path / "large.onnx", [four, node], [image], [score], weights))
    one_line(info)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{"drop": "pha"}, {"drop": "r3o"}, {"channels": 4}])
def test_unusable_mattor(engine, options, tmp_path):
    with pytest.raises(EngineError, match="network of another kind") as info:
        load(make_mattor(tmp_path / "mattor.onnx", **options), engine=engine)
    text = one_line(info)
    assert "src, r1i to r4i, downsample_ratio" in text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"mean": [1, 2]}, '"mean": [1, 2]: it must be a number or three'),
        ({"std": "x"}, '"std"'),
        ({"std": 0}, '"std": 0'),
        ({"scale": True}, '"scale"'),
        ({"layout": "chw"}, "nchw, nhwc"),
        ({"layout": "nhwc"}, "image float32 (1, 3, ?, ?)"),
        ({"colors": "gbr"}, "rgb, bgr"),
        ({"activation": "relu"}, "none, sigmoid, softmax"),
        ({"activation": ["none"]}, "none, sigmoid, softmax"),
        ({"sizes": []}, "no usable sizes"),
        ({"sizes": [[256, 144], [25600, 14400]]}, "a size of 25600 pixels on a side: 8192 at most"),
    ],
)
def test_wrong_segmenter_card(keys, says, tmp_path):
    path = card(make_segmenter(tmp_path / "seg.onnx"), **keys)
    with pytest.raises(EngineError) as info:
        load(path)
    assert says in one_line(info)


@pytest.mark.parametrize("ratio", [0, 1.5, "1", None, True])
def test_wrong_mattor_card(ratio, tmp_path):
    path = card(make_mattor(tmp_path / "mattor.onnx"), downsample_ratio=ratio)
    with pytest.raises(EngineError, match="downsample_ratio") as info:
        load(path)
    one_line(info)


def test_card_sizes_that_a_fixed_file_does_not_take(tmp_path):
    path = card(make_segmenter(tmp_path / "seg.onnx", side=(48, 64)), sizes=[[96, 96]])
    with pytest.raises(EngineError, match="takes none of the sizes 96x96") as info:
        load(path)
    one_line(info)
