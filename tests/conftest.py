"""Fixtures for every test: none may leak a thread or log an error. And those that several files share."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from gpu import MARKS, REQUIRED

from engines.cuda import NoGpu
from engines.machine import calm_openmp
from engines.plan_cache import PlanCache, user_cache

calm_openmp()  # before any test imports torch
POLICY = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a GPU skips without one, and fails instead where RTBG_REQUIRE_GPU=1 promises one."""
    for mark in item.iter_markers():
        if mark.name in MARKS and (missing := mark.kwargs["missing"]):
            if REQUIRED:
                pytest.fail(f"RTBG_REQUIRE_GPU=1, but: {missing}", pytrace=False)
            pytest.skip(missing)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The engines' cache of this test run, never the user's."""
    os.environ["RTBG_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts what runs in its background with SIGINT ignored; the programs tested here would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_exit(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test that leaves one of our threads behind, logs an error (unless marked `logs_errors`), or leaves this
    thread more urgent than others.

    What the engines compile that `rtbg.api` keeps for the next call is no leak, and ended here: on a machine with
    TensorRT that is every test that has the program run by itself."""
    yield
    if "rtbg-engine" in _ours():
        from rtbg.api import close_engines

        close_engines()
    deadline = time.monotonic() + 5
    while (left := _ours()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"threads left behind: {left}"
    if POLICY is not None:  # what is started from here on would inherit it, and may starve this process
        assert os.sched_getscheduler(0) == POLICY, "the thread that runs the tests has another scheduling policy now"
    if "logs_errors" not in request.keywords:
        errors = [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
        assert not errors, f"errors logged: {errors}"


def _ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("rtbg-")]


@pytest.fixture
def settings() -> Iterator[None]:
    """What the command line sets for its process, when a test calls it in this one, is as before."""
    kept = cv2.getNumThreads(), sys.getswitchinterval()
    yield
    cv2.setNumThreads(kept[0])
    sys.setswitchinterval(kept[1])


# ---- for the tests of engines


@pytest.fixture
def cache_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engines' cache of this test alone; not made yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RTBG_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def cache(cache_folder_of_its_own: Path) -> PlanCache:
    """The compiled networks in it."""
    found = user_cache()
    assert found is not None
    return found


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small network with a card."""
    from networks import SIZES, make_network

    path = make_network(tmp_path / "net.onnx")
    path.with_suffix(".json").write_text(json.dumps({"name": "net", "sizes": SIZES}))
    return path


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `engine="auto"` does where there is none, on machines with one too."""

    def nothing() -> None:
        raise NoGpu("the GPU is hidden from this test", driver=False)

    monkeypatch.setattr("engines.worth_asking", lambda: False)
    monkeypatch.setattr("engines.swap.probe", nothing)


@pytest.fixture
def cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done with frames on a GPU is done on torch's CPU."""
    monkeypatch.setattr("engines.on_device.KINDS", {"cuda", "cpu"})


# ---- for the tests of sources


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """FFmpeg and OpenCV print nothing, whatever they are fed."""
    yield
    assert capfd.readouterr().err == ""
