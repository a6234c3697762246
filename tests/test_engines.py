"""The contract of `engines.Engine`, over both engines; the shipped models; OpenVINO's cache."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import ENGINES, SIZES, capabilities, expected, make_network, noise, one_line

import engines
import engines.onnxruntime_engine
import engines.openvino_engine
import engines.signature
from engines import EngineError, available_models, load, nearest_size
from engines.machine import cache_dir

pytestmark = pytest.mark.usefixtures("cache_folder_of_its_own", "no_gpu")


# ---- the contract


@pytest.mark.parametrize("engine", ENGINES)
def test_contract(engine, network):
    loaded = load(network, engine=engine, precision="f32")
    assert isinstance(loaded, engines.Engine)
    assert loaded.name == engine
    assert loaded.device in ("OpenVINO CPU f32", "ONNX Runtime CPU f32")
    assert loaded.spec.name == "net"
    assert loaded.spec.path == network
    assert loaded.spec.sizes == tuple(SIZES)
    for size in [*SIZES, SIZES[0]]:
        for seed in (1, 2):
            frame = noise(size, seed)
            before = frame.copy()
            out = loaded.infer({"frame": frame})
            assert list(out) == ["alpha"]
            alpha = out["alpha"]
            assert (alpha.dtype, alpha.shape) == (np.float32, (1, 1, size[1], size[0]))
            np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)
            np.testing.assert_array_equal(frame, before)
    loaded.close()


@pytest.mark.parametrize("size", SIZES)
def test_engines_agree(size, network):
    frame = noise(size)
    first, second = (load(network, engine=e, precision="f32").infer({"frame": frame})["alpha"] for e in ENGINES)
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts(engine, threads, network):
    frame = noise(SIZES[0])
    alpha = load(network, engine=engine, threads=threads, precision="f32").infer({"frame": frame})["alpha"]
    np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_input_is_not_kept(engine, network):
    """The caller's array may be changed, strided, or gone after the call."""
    loaded = load(network, engine=engine, precision="f32")
    wide = noise((128, 48))
    first = loaded.infer({"frame": wide[..., ::2]})["alpha"].copy()
    np.testing.assert_allclose(first, expected(wide[..., ::2]), atol=1e-5)
    frame = noise(SIZES[0], 5)
    alpha = loaded.infer({"frame": frame})["alpha"]
    kept = alpha.copy()
    frame[:] = 0
    np.testing.assert_array_equal(alpha, kept)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "'frame'"),
        ({"picture": noise(SIZES[0])}, "'picture'"),
        ({"frame": noise(SIZES[0]), "more": noise(SIZES[0])}, "'more'"),
        ({"frame": noise(SIZES[0]).tolist()}, "list"),
        ({"frame": noise(SIZES[0]).astype(np.float64)}, "float64"),
        ({"frame": (noise(SIZES[0]) * 255).astype(np.uint8)}, "uint8"),
        ({"frame": noise(SIZES[0])[0]}, "(4, 48, 64)"),
        ({"frame": noise(SIZES[0])[:, :3]}, "(1, 3, 48, 64)"),
        ({"frame": noise((96, 96))}, "64x48, 48x64, 32x32"),
    ],
)
def test_wrong_input(engine, inputs, says, network):
    loaded = load(network, engine=engine)
    with pytest.raises(EngineError) as info:
        loaded.infer(inputs)
    assert says in one_line(info)
    loaded.infer({"frame": noise(SIZES[0])})  # and is none the worse for it


@pytest.mark.parametrize("engine", ENGINES)
def test_close(engine, network):
    loaded = load(network, engine=engine, precision="f32")
    frame = noise(SIZES[0])
    alpha = loaded.infer({"frame": frame})["alpha"]
    loaded.close()
    loaded.close()
    np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)
    with pytest.raises(EngineError, match="closed") as info:
        loaded.infer({"frame": frame})
    one_line(info)


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_is_the_callers_job(engine, network):
    """It neither raises nor outlives its picture. (OpenVINO's ReLU makes 0 of it: do not count on NaN out.)"""
    loaded = load(network, engine=engine, precision="f32")
    frame = noise(SIZES[0])
    loaded.infer({"frame": np.full_like(frame, np.nan)})
    np.testing.assert_allclose(loaded.infer({"frame": frame})["alpha"], expected(frame), atol=1e-5)


# ---- the shipped models


def test_shipped_models():
    """Fails until a model is shipped: a wheel without one is of no use."""
    assert available_models()


@pytest.mark.parametrize("model", available_models())
def test_shipped_model(model):
    first, second = (load(model, engine=e, precision="f32") for e in ENGINES)
    assert first.spec == second.spec
    assert first.spec.card["name"] == model
    assert "sha256" in first.spec.card
    for width, height in first.spec.sizes:
        assert width % 32 == height % 32 == 0
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        frame = np.zeros((1, 4, height, width), np.float32)
        frame[0, :3] = 0.4 + 0.3 * np.sin(x / 9) * np.cos(y / 13)
        for _ in range(2):
            alphas = [e.infer({"frame": frame})["alpha"].copy() for e in (first, second)]
            np.testing.assert_allclose(*alphas, atol=1e-2)
            assert 0 <= alphas[0].min() <= alphas[0].max() <= 1
            frame[:, 3:] = alphas[1]


def test_nearest_size():
    sizes = engines.signature.DEFAULT_SIZES
    assert nearest_size(sizes, 1920, 1080) == (384, 224)
    assert nearest_size(sizes, 640, 480) == (320, 256)
    assert nearest_size(sizes, 500, 510) == (288, 288)
    assert nearest_size(sizes, 1080, 1920) == (224, 384)


# ---- the cache folder


def test_cache_is_written_and_used(network, cache_folder_of_its_own):
    cache = cache_folder_of_its_own
    frame = noise(SIZES[0])
    for _ in range(2):
        alpha = load(network, engine="openvino", precision="f32").infer({"frame": frame})["alpha"]
        np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)
        assert len(list((cache / "openvino").glob("*.blob"))) == 1
    if os.name == "posix":
        assert cache.stat().st_mode & 0o077 == 0


def test_cache_tells_networks_of_one_shape_apart(tmp_path):
    """Same name, same graph, other weights: as after a new training."""
    for seed in (0, 1, 0):
        path = make_network(tmp_path / "net.onnx", seed=seed)
        frame = noise((288, 288))
        alpha = load(path, engine="openvino", precision="f32").infer({"frame": frame})["alpha"]
        np.testing.assert_allclose(alpha, expected(frame, seed), atol=1e-5)


def test_cache_keeps_precisions_apart(network):
    """OpenVINO stores one file for all of them."""
    if "BF16" not in capabilities():
        pytest.skip("this CPU computes in f32 only")
    frame = noise(SIZES[0])
    seen = {}
    for precision in ("bf16", "f32", "bf16"):
        alpha = load(network, engine="openvino", precision=precision).infer({"frame": frame})["alpha"]
        np.testing.assert_array_equal(alpha, seen.setdefault(precision, alpha))
    np.testing.assert_allclose(seen["f32"], expected(frame), atol=1e-5)
    assert np.abs(seen["bf16"] - seen["f32"]).max() > 1e-5


def test_damaged_cache(network, cache_folder_of_its_own):
    cache = cache_folder_of_its_own
    frame = noise(SIZES[0])
    load(network, engine="openvino", precision="f32").infer({"frame": frame})
    for keep in (0, 100, 2000):
        (blob,) = (cache / "openvino").glob("*.blob")
        part = blob.read_bytes()[:keep]
        blob.unlink()  # it is read-only
        blob.write_bytes(part)
        alpha = load(network, engine="openvino", precision="f32").infer({"frame": frame})["alpha"]
        np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)


@pytest.mark.parametrize("known", [True, False], ids=["seen beforehand", "seen by OpenVINO"])
def test_unwritable_cache(known, network, monkeypatch, tmp_path, caplog):
    """A folder below a file can be made by nobody, root included."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RTBG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert cache_dir() is None
    if not known:
        monkeypatch.setattr(engines.openvino_engine, "cache_dir", lambda *_: tmp_path / "file" / "cache")
    frame = noise(SIZES[0])
    with caplog.at_level(logging.INFO, "engines"):
        alpha = load(network, engine="openvino", precision="f32").infer({"frame": frame})["alpha"]
    np.testing.assert_allclose(alpha, expected(frame), atol=1e-5)
    assert "cache" in caplog.text


def test_cache_without_variable(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.delenv("RTBG_CACHE_DIR")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name, appauthor: tmp_path / "user" / name)
    assert cache_dir("openvino") == tmp_path / "user" / "rtbg" / "openvino"
    assert (tmp_path / "user" / "rtbg" / "openvino").is_dir()


# ---- the rest


def test_import_is_light():
    heavy = ("openvino", "onnxruntime", "torch", "onnx", "cv2", "rtbg", "training")
    code = f"import sys, engines; engines.available_models(); print([m for m in {heavy} if m in sys.modules])"
    root = Path(engines.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_public_names():
    assert sorted(engines.__all__) == [
        "Engine",
        "EngineError",
        "ModelSpec",
        "StatefulEngine",
        "available_models",
        "build_all",
        "load",
        "nearest_size",
    ]
    assert issubclass(EngineError, RuntimeError)
