"""training.prune: what is taken out is what gives least, and what is left does the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from training.lite import Inverted, LiteConfig, LiteUNet  # noqa: E402
from training.prune import prune  # noqa: E402

WIDE = LiteConfig(widths=(32, 32, 24, 16))
THIN = LiteConfig(widths=(24, 16, 16, 8), keep=0.5, contrast=(1.5, -0.75))


def network(config: LiteConfig) -> LiteUNet:
    torch.manual_seed(3)
    made = LiteUNet(config).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after some training
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return made


def pictures(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(1, 4, 64, 96, generator=generator) for _ in range(count)]


def logits(net: LiteUNet, picture: torch.Tensor) -> torch.Tensor:
    factor, offset = net.config.contrast
    with torch.inference_mode():
        return (torch.logit(net(picture).double(), 1e-9) - offset) / factor


def test_nothing_is_lost_where_nothing_is_taken() -> None:
    net = network(WIDE)
    same = prune(net, WIDE, pictures(4))
    for picture in pictures(2):
        torch.testing.assert_close(logits(same, picture), logits(net, picture), atol=2e-2, rtol=2e-2)


def test_idle_channels_are_the_ones_taken() -> None:
    """All but as many channels of each block as will be left are silenced: the thin one does what the wide one does."""
    net, thin = network(WIDE), LiteUNet(LiteConfig(widths=WIDE.widths, keep=THIN.keep))
    blocks = [b for b in net.encoder._blocks if isinstance(b, Inverted) and b.widens]
    left = [b._project_conv.in_channels for b in thin.encoder._blocks if isinstance(b, Inverted) and b.widens]
    for block, count in zip(blocks, left, strict=True):
        idle = torch.randperm(block._project_conv.in_channels)[count:]
        with torch.no_grad():
            block._project_conv.weight[:, idle] = 0
    pruned = prune(net, thin.config, pictures(4))
    assert sum(p.numel() for p in pruned.parameters()) < 0.75 * sum(p.numel() for p in net.parameters())
    for picture in pictures(2):
        torch.testing.assert_close(logits(pruned, picture), logits(net, picture), atol=2e-2, rtol=2e-2)


def test_a_thinner_decoder_follows_the_wide_one() -> None:
    """Fitted again, it is far nearer to the wide network than one of the same shape with weights of its own."""
    net = network(WIDE)
    thin, other = prune(net, THIN, pictures(12)), network(THIN)
    assert thin.config == THIN

    def far(a: LiteUNet) -> float:
        return sum(float((logits(a, p) - logits(net, p)).abs().mean()) for p in pictures(3))

    assert far(thin) < 0.5 * far(other)
