"""One compilation in a process of its own: a crash or a lack of memory there changes nothing here.

The process runs at low priority, is the first to go where memory runs out, and ends with the one that started it,
however that ends: it watches a pipe that the system closes then. It puts the plan into the cache, where the parent
finds it, and says on its output what failed. Not `multiprocessing`: its spawned processes run the program's main module
again. Used by `engines.swap`. Memory bound: one plan, and in the process what TensorRT's builder takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.cuda import Gpu
from engines.errors import EngineError, short_reason
from engines.plan_cache import PlanCache
from engines.spec import ModelSpec
from engines.tensorrt_engine import TITLES, Graphs, Shapes, Target, import_flavour, plan_for

# Isolated (-I): no file of the working directory and no variable of the user's changes what is imported.
COMMAND: tuple[str, ...] = (
    sys.executable,
    "-I",
    "-c",
    "import json, sys; job = json.loads(sys.stdin.readline()); sys.path[:] = job['path']; "
    "from engines.compile_job import main; sys.exit(main(job))",
)
_WAIT = 0.05


def make_job(graphs: Graphs, target: Target, shapes: Shapes, cache: PlanCache) -> dict[str, Any]:
    """What the process is to do, as plain values."""
    return {
        "path": sys.path,
        "model": str(graphs.path),
        # A graph with Q/DQ nodes is taken as it is under any name.
        "precision": "f32" if graphs.precision == "int8" else graphs.precision,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "flavour": target.flavour,
        "gpu": [target.gpu.name, list(target.gpu.capability), target.gpu.driver],
        "folder": str(cache.folder),
    }


def compile_apart(
    job: Mapping[str, Any], *, cancelled: Callable[[], bool] | None = None, command: Sequence[str] = COMMAND
) -> None:
    """Compiles in a process of its own and waits for it. Raises EngineError when that fails, crashes or is cancelled;
    no process is left behind in any case. command: for tests."""
    title = TITLES.get(str(job.get("flavour")), "TensorRT")
    # On Windows flags do what elsewhere the process does (low priority) and a session of its own (out of reach of the
    # terminal's Ctrl-C, which is for the program: that may have much to finish yet).
    flags = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # pipes would have to be read all the time
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                creationflags=flags,
                start_new_session=True,
            )
        except OSError as exc:
            raise EngineError(f"{title}'s compilation cannot be started ({exc}): use another engine") from exc
        try:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
                process.stdin.flush()
            except OSError:  # it ended before it read: its exit says why
                pass
            while True:
                try:
                    code = process.wait(_WAIT)
                    break
                except subprocess.TimeoutExpired:
                    if cancelled is not None and cancelled():
                        raise EngineError(f"{title}'s compilation was cancelled") from None
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(OSError):  # what was not read yet
                    process.stdin.close()
        if code:
            said = _said(out, err)
            raise EngineError(f"{title}'s compilation failed ({said or _ending(code)}): the engine before goes on")


def main(job: Mapping[str, Any]) -> int:
    """In the process: compiles one plan into the cache; the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    with contextlib.suppress(OSError):  # Linux: where memory runs out, this process is the one to be ended
        Path("/proc/self/oom_score_adj").write_text("1000")
    name, (major, minor), driver = job["gpu"]
    try:
        target = Target(import_flavour(job["flavour"]), job["flavour"], Gpu(name, (major, minor), driver))
        path = Path(job["model"])
        graphs = Graphs(ModelSpec(path.stem, path, ()), job["precision"])
        shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
        plan_for(graphs, target, shapes, PlanCache(Path(job["folder"])))
    except (EngineError, OSError, MemoryError) as exc:
        print(json.dumps({"error": str(exc) or type(exc).__name__}))
        return 1
    return 0


def _end_with_parent() -> None:
    while sys.stdin.read(1024):
        pass
    os._exit(3)


def _said(out: Any, err: Any) -> str:
    """The error that the process reported; else the last line of its complaints."""
    out.seek(0)
    try:
        return short_reason(RuntimeError(str(json.loads(out.read().decode("utf-8", "replace"))["error"])), 300)
    except (ValueError, KeyError, TypeError):
        pass
    err.seek(0)
    lines = err.read()[-4000:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return short_reason(RuntimeError(last)) if last else ""


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"it was ended by {name}" + (": out of memory, perhaps" if name == "SIGKILL" else "")
