"""The course of a training run: its stages of growing pictures, and its learning rate.

Used by `training.train`."""

from __future__ import annotations

import math

from training.config import PRESETS, TrainConfig
from training.lite import LiteConfig

# (share of the run at which the stage begins, scale of the sizes): most of what is learnt is learnt cheaply small.
STAGES = ((0.0, 0.6), (0.45, 0.8), (0.72, 1.0))


def learning_rate(config: TrainConfig, done: float) -> float:
    """Linear warm-up, then a cosine to zero; `done` is the share of the run."""
    if done < config.warmup:
        return config.rate * (done / config.warmup + 0.01)
    return config.rate * (0.5 + 0.5 * math.cos(math.pi * min(1.0, (done - config.warmup) / (1 - config.warmup)))) + 1e-6


def stage_of(config: TrainConfig, done: float) -> int:
    """Number of the picture-size stage at a share of the run."""
    return max(config.first_stage, *(i for i, (start, _) in enumerate(STAGES) if done >= start), 0)


def stage_sizes(config: TrainConfig, stage: int) -> list[tuple[int, int]]:
    """The input sizes of a stage, rounded to what the network takes; its own twice as often as those of other
    presets (`config.also`). What is larger than its own comes in the last stage only, the smaller from the start."""
    grain = 16 if isinstance(config.model, LiteConfig) and config.model.levels == 4 else 32
    k = STAGES[stage][1] / grain
    own = [(max(1, round(w * k)) * grain, max(1, round(h * k)) * grain) for w, h in config.sizes]
    most = max(w * h for w, h in own) if stage < len(STAGES) - 1 else math.inf
    others = [size for name in config.also for size in PRESETS[name].sizes if math.prod(size) <= most]
    return [*own, *own, *others] if others else own
