"""Checkpoints: fp16 weights in `best.pt`, readable configuration, commands and figures in `best.json` beside it.

Where one is read, a run's `last.pt` may be named too: its moving average as it was when the run ended, whichever epoch
was the best.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.config import PRESETS, TrainConfig, build
from training.errors import TrainingError, write
from training.lite import LiteUNet
from training.model import UNet


def load_checkpoint(path: Path) -> tuple[UNet | LiteUNet, TrainConfig]:
    """The network of a `best.pt` (with its `best.json` beside it), in eval mode, float32. Raises TrainingError."""
    try:
        config = TrainConfig.from_dict(describe(path)["config"])
    except (KeyError, TypeError) as exc:
        raise TrainingError(f"{path} is of another version, whose configuration is not known: {exc}") from exc
    model = build(config.model)
    weights = read_state(path, "cpu")
    weights = weights.get("average", weights)
    try:
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    except (AttributeError, RuntimeError) as exc:
        raise TrainingError(f"{path} has not the weights that {path.with_suffix('.json').name} describes") from exc
    return model.eval(), config


def read_state(path: Path, device: str) -> dict[str, Any]:
    """What `torch.save` wrote. Raises TrainingError."""
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except OSError as exc:
        raise TrainingError(f"{path} cannot be read ({exc.strerror}): name the best.pt or last.pt of a run") from exc
    except (RuntimeError, LookupError, EOFError, TypeError, ValueError, pickle.UnpicklingError) as exc:
        raise TrainingError(f"{path} is damaged, or no checkpoint: delete it, or name another") from exc


def describe(path: Path) -> dict[str, Any]:
    """What the JSON file beside a checkpoint says; of a `last.pt`, with the figures of its last epoch. Raises
    TrainingError."""
    last = path.name == "last.pt"
    said = path.with_name("best.json") if last else path.with_suffix(".json")
    if not path.exists():
        raise TrainingError(
            f"{path} does not exist: name the best.pt or last.pt of a run, which an epoch must have left"
        )
    try:
        found = dict(json.loads(said.read_text()))
        if last:
            found["figures"] = json.loads(path.with_name("history.json").read_text())[-1]
        found["config"], found["figures"]
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise TrainingError(
            f"{said}, which describes {path.name}, is missing or damaged: keep a run's files together"
        ) from exc
    return found


def history_of(init: Path | None) -> list[str]:
    """The commands that made the weights which a run begins with."""
    return list(describe(init).get("commands", ())) if init else []


def command(
    config: TrainConfig, hours: float | None, epochs: int | None, init: Path | None, teacher: Path | None,
    masks: Path | None = None,
) -> str:  # fmt: skip
    """How to start a run like this one; PREVIOUS is what the command before it left, TEACHER another run's best.pt,
    MASKS what `training.refine` wrote."""
    name = next((n for n, p in PRESETS.items() if (p.model, p.sizes) == (config.model, config.sizes)), "balanced")
    words = ["python -m training.train --data PATH --out runs/NAME --model", name]
    words += ["--hours", f"{hours:g}"] if hours else ["--epochs", str(epochs)]
    preset = PRESETS[name]
    for field_name in ("batch", "epoch_pictures", "rate", "encoder_rate", "ema", "first_stage", "seed"):
        if getattr(config, field_name) != getattr(preset, field_name):
            words += [f"--{field_name.replace('_', '-')}", f"{getattr(config, field_name):g}"]
    words += ["--also", *config.also] if config.also else []
    words += ["--calm"] if config.calm else []
    words += ["--hold-norms"] if config.hold_norms else []
    options = {"--init PREVIOUS": init, "--teacher TEACHER": teacher, "--masks MASKS": masks}
    return " ".join(words + [text for text, given in options.items() if given])


def save_best(out: Path, model: nn.Module, config: TrainConfig, how: dict[str, Any], figures: dict[str, Any]) -> None:
    """fp16 weights and readable JSON; written beside and renamed, so a kill leaves the older pair whole."""
    card = {"config": asdict(config), **how, "figures": figures}
    weights = {k: v.half() if v.dtype.is_floating_point else v for k, v in model.state_dict().items()}
    write({out / "best.pt": packed(weights), out / "best.json": json.dumps(card, indent=1).encode()})


def packed(state: dict[str, Any]) -> bytes:
    """What `torch.save` writes: a full disk is told by the file then, not by torch."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()
