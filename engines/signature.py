"""Which kind of network a file holds, told from its inputs and outputs, and the adapter for it.

    rtbg       one float32 input (1, 4, H, W), one float32 output (1, 1, H, W)          `engines.adapter.Own`
    segmenter  one float32 picture (1, 3, H, W) or (1, H, W, 3); the first output has
               one channel, or two of which the second is the person                    `engines.segmenter`
    recurrent  src, r1i to r4i, downsample_ratio; pha, r1o to r4o (fgr is not used):
               the interface of Robust Video Matting (Lin et al. 2021)                  `engines.recurrent`

Only these: anything else is refused in one line that shows what was found. Used by `engines.load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.adapter import Adapter, Own
from engines.errors import ModelError
from engines.recurrent import NEEDED_IN, NEEDED_OUT, RATIO, SOURCE, Recurrent
from engines.runner import Runner
from engines.segmenter import Segmenter, picture_axis
from engines.spec import ModelSpec, Port, no_sizes

# For a file without a card whose height and width are free. The first are those of the shipped `balanced`; other
# people's networks more often want larger pictures.
DEFAULT_SIZES = ((384, 224), (320, 256), (288, 288), (256, 320), (224, 384))
OTHER_SIZES = ((512, 288), (384, 288), (320, 320), (288, 384), (288, 512))
EXPECTED = (
    "one float32 input (1, 4, H, W) and one float32 output (1, 1, H, W); or a segmenter, one float32 picture of "
    "3 channels to 1 or 2 channels; or a recurrent mattor, src, r1i to r4i, downsample_ratio to fgr, pha, r1o to r4o"
)


def adapt(spec: ModelSpec, runner: Runner) -> Adapter:
    """An engine out of an open runner, which it then owns. Runs a segmenter once, to see what it answers.
    Raises ModelError for a file that cannot be used, EngineError where only this engine cannot."""
    spec = recognise(spec, runner.inputs, runner.outputs)
    return {"rtbg": Own, "segmenter": Segmenter, "recurrent": Recurrent}[spec.kind](spec, runner)


def recognise(spec: ModelSpec, inputs: Sequence[Port], outputs: Sequence[Port]) -> ModelSpec:
    """The spec of a file whose graph was read, with its kind and sizes. Raises ModelError.

    A graph of fixed height and width has that one size, which must be among the card's, if that names any. Names of
    tensors are free but for recurrent mattors."""
    if len(inputs) == len(outputs) == 1 and _is_picture(inputs[0], 4) and _is_picture(outputs[0], 1):
        sides, out = inputs[0].shape[2:], outputs[0].shape[2:]
        if any(a is not None and b is not None and a != b for a, b in zip(sides, out, strict=True)):
            raise ModelError(
                f"{spec.path} answers another size than it takes ({inputs[0]} -> {outputs[0]}): it must have {EXPECTED}"
            )
        if spec.card and not spec.sizes:
            raise no_sizes(spec.path.with_suffix(".json"))
        return _fit(spec, "rtbg", inputs[0], sides, DEFAULT_SIZES)
    if len(inputs) == 1 and outputs and outputs[0].dtype == "float32":
        axis = picture_axis(inputs[0], spec)
        if axis is not None:
            sides = inputs[0].shape[2:] if axis == 1 else inputs[0].shape[1:3]
            return _fit(spec, "segmenter", inputs[0], sides, OTHER_SIZES)
    ports = {p.name: p for p in inputs}
    if (
        set(NEEDED_IN) <= set(ports) <= {*NEEDED_IN, RATIO}
        and set(NEEDED_OUT) <= {p.name for p in outputs}
        and _is_picture(ports[SOURCE], 3)
        and all(p.dtype == "float32" for p in (*inputs, *(o for o in outputs if o.name in NEEDED_OUT)))
    ):
        return _fit(spec, "recurrent", ports[SOURCE], ports[SOURCE].shape[2:], OTHER_SIZES)
    found = f"{', '.join(map(str, inputs)) or 'nothing'} -> {', '.join(map(str, outputs)) or 'nothing'}"
    found = found if len(found) <= 240 else found[:239] + "…"
    raise ModelError(f"{spec.path} is a network of another kind ({found}): it must have {EXPECTED}")


def _fit(
    spec: ModelSpec,
    kind: str,
    port: Port,
    sides: Sequence[int | None],
    default: tuple[tuple[int, int], ...],
) -> ModelSpec:
    """The spec with those sizes that the picture's input takes; `sides` are its height and width."""
    height, width = sides
    if not spec.sizes:
        wanted = default if height is None or width is None else ((width, height),)
        sizes = tuple((width or w, height or h) for w, h in wanted)
        return replace(spec, kind=kind, sizes=tuple(dict.fromkeys(sizes)))
    sizes = tuple((w, h) for w, h in spec.sizes if width in (None, w) and height in (None, h))
    if not sizes:
        raise ModelError(f"{spec.path} ({port}) takes none of the sizes {spec.shown_sizes}: correct its card")
    return replace(spec, kind=kind, sizes=sizes)


def _is_picture(port: Port, channels: int) -> bool:
    return (
        port.dtype == "float32"
        and len(port.shape) == 4
        and port.shape[0] in (1, None)
        and port.shape[1] in ((channels,) if channels == 4 else (channels, None))
    )
