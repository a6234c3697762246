"""The 8-bit graph of a model, NAME.int8.onnx: whether it has one, and whether this machine computes it as it should.

CPUs with VNNI (Intel from 2019, AMD from 2022 on) add 8-bit products exactly. Older ones add two of them in 16 bits,
where large ones overflow, and the matte suffers (some 0.05 of IoU). No library says which it does, so a tiny network
with the largest numbers is run: `probe.onnx`, made by `training.quantise`. Used by `engines.load`.
Memory bound: nothing that stays.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from engines.errors import EngineError, ModelError
from engines.runner import Runner
from engines.spec import MODELS, ModelSpec

ENGINES = ("openvino", "onnxruntime")  # that run such graphs on the CPU
PROBE = ModelSpec("probe", MODELS / "probe.onnx", ())
EXPECTED = 9 * (16 * 127 / 128) ** 2


def eight_bits(spec: ModelSpec) -> ModelSpec | None:
    """The model's 8-bit graph, where its card names one (made and measured by `training.quantise`). Raises ModelError
    for a file that is not the one that the card describes."""
    named = spec.card.get("int8")
    if not isinstance(named, dict):
        return None
    path = spec.path.with_name(f"{spec.path.stem}.int8.onnx")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as exc:
        raise ModelError(f"{path} cannot be read ({exc.strerror}): install or export the model again") from exc
    if digest != named.get("sha256"):
        raise ModelError(f"{path} is not the file that its card describes: install or export the model again")
    return replace(spec, path=path)


@cache
def is_exact(make: Callable[..., Runner]) -> bool:
    """Whether this library, on this machine, adds 8-bit products without losing any. Elsewhere than on x86-64 nobody
    has measured whether it gains, so it is not asked there."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        probe = make(PROBE, threads=1, precision="f32")
        try:
            ones = np.ones((1, 16, 8, 8), np.float32)
            (got,) = probe.run({probe.inputs[0].name: ones}, [probe.outputs[0].name])
            return bool(np.abs(got - EXPECTED).max() < EXPECTED / 100)
        finally:
            probe.close()
    except EngineError:
        return False
