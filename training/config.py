"""What is trained, and how: sizes, configurations, presets.

Used by all of `training`; a checkpoint carries its configuration as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.errors import TrainingError
from training.lite import LiteConfig, LiteUNet
from training.model import UNet, UNetConfig

# Input sizes, (width, height): landscape 16:9 and 4:3, square, portrait 3:4 and 9:16.
SIZES = ((384, 224), (320, 256), (288, 288), (256, 320), (224, 384))
SMALL = ((224, 128), (192, 160), (160, 160), (160, 192), (128, 224))
LARGE = ((512, 288), (448, 352), (384, 384), (352, 448), (288, 512))


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Written to the checkpoint's JSON."""

    model: UNetConfig | LiteConfig = field(default_factory=LiteConfig)
    sizes: tuple[tuple[int, int], ...] = SIZES
    batch: int = 32
    epoch_pictures: int = 16384
    rate: float = 2e-3
    encoder_rate: float = 0.25  # of the encoder that began with published weights, as a share of `rate`
    warmup: float = 0.01
    weight_decay: float = 0.05
    ema: float = 0.9995
    hold_norms: bool = False  # of trained weights, or of the published encoder: as they are; on a CPU core much faster
    calm: bool = False  # photographs nearly as they are all along, see `data.CALM`, to finish trained weights
    own_past: float = 0.7  # share of the steps with the network's own answers as pasts
    also: tuple[str, ...] = ()  # presets whose sizes some batches have, see `schedule.stage_sizes`
    first_stage: int = 0  # of `schedule.STAGES`; the last one only, to go on from trained weights
    distill: float = 0.5  # share of the loss against the teacher's matte, where there is a teacher
    seed: int = 1

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """The inverse of `dataclasses.asdict`, after a trip through JSON."""
        values = dict(values)
        model = values.pop("model")
        model = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}
        values["sizes"] = tuple(tuple(s) for s in values["sizes"])
        also = values.get("also", ())  # one name in older checkpoints, and "" for none
        values["also"] = tuple(also.split() if isinstance(also, str) else also)
        if model.pop("keep", 1.0) != 1.0:
            raise TrainingError(
                "a checkpoint of a thinned network: there are none any more, train `balanced` on instead"
            )
        return TrainConfig(model=LiteConfig(**model) if "lite" in model else UNetConfig(**model), **values)


def build(config: UNetConfig | LiteConfig) -> UNet | LiteUNet:
    """The network of a configuration, with random weights."""
    return LiteUNet(config) if isinstance(config, LiteConfig) else UNet(config)


# Of the logits (`LiteConfig.contrast`). 1.5 and -0.5 took a fifth off the true-alpha portraits' MAD at 0.001 of IoU
# (run 5), these another 3 % at 0.0007 (run 15).
CONTRAST = (1.7, -0.8)

# What is trained under each name. `fast` and `quality` are balanced's network at other sizes: a third of its
# multiply-adds, and 1.7 times as many. `large` ships nowhere: it shows what a larger network makes of the same
# pictures. `unet` is the network that shipped first: no weights from elsewhere.
PRESETS = {
    "balanced": TrainConfig(model=LiteConfig(contrast=CONTRAST)),
    "fast": TrainConfig(model=LiteConfig(contrast=CONTRAST), sizes=SMALL),
    "quality": TrainConfig(model=LiteConfig(contrast=CONTRAST), sizes=LARGE, batch=16),
    "large": TrainConfig(model=LiteConfig(lite=2, widths=(192, 112, 64, 40), contrast=CONTRAST), own_past=0.0),
    "both": TrainConfig(model=LiteConfig(contrast=CONTRAST), sizes=SIZES + LARGE, batch=16),
    "unet": TrainConfig(model=UNetConfig()),
}
