"""Plans in the cache folder: whole or not there, the right one or none, two processes at once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import engines.plan_cache
from engines import EngineError
from engines.plan_cache import PlanCache, PlanKey, user_cache

ROOT = Path(__file__).parent.parent
KEY = PlanKey("tensorrt_rtx", "1.7", "RTX 4090", "8.9", "13.0 (580.1)", "ab" * 32, "frame=1x4x176x320", "f16")

# A process that asks for KEY's plan: it notes when it compiles, takes its time, and prints what it got.
CLIENT = """
import sys, time
from pathlib import Path
from engines.plan_cache import PlanCache, PlanKey
folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
key = eval(sys.argv[4])
def build():
    with log.open("a") as f:
        f.write("build\\n")
    time.sleep(seconds)
    return b"plan of one process" * 50000
print(hash_ := __import__("hashlib").sha256(PlanCache(folder).get(key, build)).hexdigest())
"""


def client(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLIENT, str(folder), str(log), str(seconds), repr(KEY)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def never() -> bytes:
    raise AssertionError("compiled although the cache holds it")


@pytest.fixture
def cache(tmp_path) -> PlanCache:
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o700)
    return PlanCache(folder)


def plan_file(cache: PlanCache) -> Path:
    (path,) = cache.folder.glob("*.plan")
    return path


def test_kept_and_found(cache):
    assert cache.load(KEY) is None
    assert cache.get(KEY, lambda: b"plan") == b"plan"
    assert cache.get(KEY, never) == b"plan"
    assert PlanCache(cache.folder).load(KEY) == b"plan"
    if os.name == "posix":
        assert plan_file(cache).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("field", list(KEY.__dataclass_fields__))
def test_everything_that_matters_makes_another_plan(cache, field):
    cache.get(KEY, lambda: b"one")
    other = replace(KEY, **{field: "x" + getattr(KEY, field)})
    assert cache.load(other) is None
    assert cache.get(other, lambda: b"two") == b"two"
    assert cache.get(KEY, never) == b"one"


def test_damaged_plans_are_deleted_and_made_anew(cache):
    cache.get(KEY, lambda: b"plan" * 100)
    whole = plan_file(cache).read_bytes()
    wrong = [b"", whole[:7], whole[:200], whole[:-1], whole + b"x", whole.replace(b"planplan", b"plamplan", 1)]
    wrong += [b"x" + whole, whole.replace(b"rtbg plan 1", b"rtbg plan 2"), whole.replace(b"580.1", b"580.2")]
    for data in wrong:
        assert data != whole
        plan_file(cache).write_bytes(data)
        assert cache.load(KEY) is None
        assert not list(cache.folder.glob("*.plan"))
        assert cache.get(KEY, lambda: b"plan" * 100) == b"plan" * 100
        assert plan_file(cache).read_bytes() == whole


def test_a_plan_under_anothers_name_is_not_taken(cache):
    """As after a rename, or when somebody puts the plan of another machine there."""
    cache.get(KEY, lambda: b"foreign")
    other = replace(KEY, gpu="RTX 3060")
    plan_file(cache).rename(cache.folder / f"{other.stem}.plan")
    assert cache.load(other) is None
    assert cache.get(other, lambda: b"own") == b"own"


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_only_a_folder_and_files_of_ones_own(cache, tmp_path):
    cache.get(KEY, lambda: b"plan")
    path = plan_file(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.load(KEY) is None
    assert not path.is_symlink()
    assert (tmp_path / "elsewhere").exists()
    for mode in (0o720, 0o702):
        cache.folder.chmod(mode)
        with pytest.raises(EngineError, match="chmod 700"):
            PlanCache(cache.folder)


def test_a_folder_in_the_plans_place(cache, caplog):
    (cache.folder / f"{KEY.stem}.plan").mkdir()
    with caplog.at_level(logging.INFO, "engines"):
        assert cache.get(KEY, lambda: b"plan") == b"plan"
    assert "cannot be" in caplog.text


def test_a_full_disk_costs_the_plan_and_nothing_else(cache, monkeypatch, caplog):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines.plan_cache.os, "fsync", full)
    with caplog.at_level(logging.INFO, "engines"):
        assert cache.get(KEY, lambda: b"plan") == b"plan"
    assert "No space left" in caplog.text
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]


def test_a_failing_compilation_leaves_nothing(cache):
    def fail():
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        cache.get(KEY, fail)
    assert cache.get(KEY, lambda: b"plan") == b"plan"


def test_two_processes_compile_once(cache, tmp_path):
    log = tmp_path / "log"
    processes = [client(cache.folder, log, 0.5) for _ in range(3)]
    answers = {p.communicate(timeout=60)[0] for p in processes}
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert log.read_text().count("build") == 1
    assert not list(cache.folder.glob("*.part"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_compiler_blocks_nobody(cache, tmp_path):
    log = tmp_path / "log"
    with client(cache.folder, log, 600) as first:
        deadline = time.monotonic() + 30
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with client(cache.folder, log, 0) as second:
            time.sleep(0.3)
            assert second.poll() is None  # it waits
            first.kill()
            second.communicate(timeout=30)
            assert second.returncode == 0
    assert log.read_text().count("build") == 2
    assert cache.load(KEY)


def test_waiting_can_be_given_up(cache):
    with cache.locked(KEY):
        with pytest.raises(EngineError, match="given up"):
            cache.get(KEY, never, cancelled=lambda: True)
        # Another plan is not held up.
        assert cache.get(replace(KEY, gpu="other"), lambda: b"x") == b"x"
    assert cache.get(KEY, lambda: b"plan") == b"plan"


def test_threads_compile_once(cache):
    calls: list[int] = []

    def build() -> bytes:
        calls.append(1)
        time.sleep(0.2)
        return b"plan"

    threads = [threading.Thread(target=cache.get, args=(KEY, build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert calls == [1]


def test_the_oldest_go(cache, monkeypatch):
    monkeypatch.setattr(engines.plan_cache, "MOST_FILES", 3)
    for k in range(5):
        key = replace(KEY, gpu=str(k))
        cache.get(key, lambda: b"plan")
        os.utime(cache.folder / f"{key.stem}.plan", (k, k))
    cache.get(KEY, lambda: b"plan")
    assert cache.load(KEY)
    assert [cache.load(replace(KEY, gpu=str(k))) is not None for k in range(5)] == [False, False, False, True, True]


def test_leftovers_of_killed_writers_go(cache):
    old, new = cache.folder / ".a.part", cache.folder / ".b.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.get(KEY, lambda: b"plan")
    assert not old.exists()
    assert new.exists()


def test_notes(cache):
    assert cache.load_note(KEY.machine) == b""
    cache.save_note(KEY.machine, b"timings")
    assert cache.load_note(KEY.machine) == b"timings"
    (path,) = cache.folder.glob("*.note")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.load_note(KEY.machine) == b""
    assert replace(KEY, shapes="x").machine == KEY.machine
    assert replace(KEY, driver="x").machine != KEY.machine


def test_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RTBG_CACHE_DIR", str(tmp_path / "cache"))
    found = user_cache()
    assert found is not None
    assert found.folder == tmp_path / "cache" / "tensorrt"
    (tmp_path / "file").touch()
    monkeypatch.setenv("RTBG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert user_cache() is None
