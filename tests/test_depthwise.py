"""The depthwise convolution made for training: what it gives, and its gradients, are the library's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'rtbg[train]'")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from training import depthwise  # noqa: E402
from training.depthwise import FilteredBetween, library, usable  # noqa: E402
from training.lite import Inverted  # noqa: E402


@pytest.fixture(autouse=True)
def compiler() -> None:
    if library() is None:
        pytest.skip("no C++ compiler: g++")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(12, 20), (6, 10), (2, 4)])
def test_as_the_library_computes(
    kernel: int, stride: int, size: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for maps smaller than the filter. Small numbers, so that no value rounds across ReLU6's corners."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(kernel * 10 + stride)
    z = torch.randn(3, 48, *size).bfloat16()
    weight, bias = 0.1 * torch.randn(48, 1, kernel, kernel), 2 + 0.1 * torch.randn(48)
    wanted = [t.clone().float().requires_grad_() for t in (z, weight, bias)]
    pad = ((kernel - stride) // 2, (kernel - stride + 1) // 2) * 2
    want = F.relu6(F.conv2d(F.pad(F.relu6(wanted[0]), pad), *wanted[1:], stride, groups=48))
    given = [t.clone().requires_grad_() for t in (z, weight, bias)]
    got = FilteredBetween.apply(*given, stride)
    assert got.shape == want.shape
    assert (want > 0).all() and (want < 5.9).all(), "no corner is near"
    assert torch.allclose(got.float(), want, atol=0.02)
    slope = torch.randn(want.shape).bfloat16()
    want.backward(slope.float())
    got.backward(slope)
    for mine, theirs in zip(given, wanted, strict=True):
        scale = theirs.grad.abs().max()
        assert (mine.grad.float() - theirs.grad).abs().max() <= 0.01 * scale


def test_both_ends_of_relu6() -> None:
    """What lies beyond them is cut off, on both sides of the filter, and has no slope."""
    z = torch.tensor([-1.0, 3.0, 8.0, 5.0]).repeat(4, 1).reshape(1, 1, 4, 4).repeat(1, 16, 1, 1).requires_grad_()
    one = torch.zeros(16, 1, 3, 3)
    one[:, 0, 1, 1] = torch.tensor([1.0, 2.0]).repeat(8)
    made = FilteredBetween.apply(z, one.requires_grad_(), torch.zeros(16, requires_grad=True), 1)
    assert made[0, 0, 0].tolist() == [0, 3, 6, 5]
    assert made[0, 1, 0].tolist() == [0, 6, 6, 6]
    made.sum().backward()
    assert z.grad[0, 0, 0].tolist() == [0, 1, 0, 1]
    assert z.grad[0, 1].abs().sum() == 0
    broken = FilteredBetween.apply(z, torch.full_like(one, float("nan")), torch.zeros(16), 1)
    assert broken.isnan().all(), "what is no number is not made one"


def test_a_block_with_its_norms_held_learns_alike() -> None:
    """Folded and fused, or norm by norm in the library: the same output and the same gradients, but for bfloat16."""
    torch.manual_seed(1)
    block = Inverted(32, 32, 5, 1, 6)
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            part.eval()
    x = torch.randn(2, 32, 16, 24)
    plain = block(x)
    (plain * torch.linspace(0, 1, 24)).sum().backward()
    wanted = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        fused = block(x)
    (fused.float() * torch.linspace(0, 1, 24)).sum().backward()
    walk, seen = [fused.grad_fn], set()
    while walk:
        at = walk.pop()
        seen.add(at.name())
        walk += [f for f, _ in at.next_functions if f is not None]
    assert any("FilteredBetween" in name for name in seen)
    assert (fused.float() - plain).norm() < 0.02 * plain.norm()
    for name, p in block.named_parameters():
        assert (p.grad - wanted[name]).norm() < 0.05 * wanted[name].norm(), name


def test_not_for_other_maps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that do not come in sixteens, other kernels, no autocast, no compiler."""
    x = torch.zeros(1, 48, 4, 4)
    assert not usable(x, 48, 3, 1), "outside autocast: what is evaluated is evaluated plainly"
    with torch.autocast("cpu", torch.bfloat16):
        assert usable(x, 48, 3, 2)
        assert not usable(x, 40, 3, 1) and not usable(x, 48, 7, 1) and not usable(x[:, :, 1:], 48, 3, 2)
        monkeypatch.setattr(depthwise, "COMPILE", ("no-such-compiler",))
        library.cache_clear()
        try:
            assert not usable(x, 48, 3, 1)
        finally:
            library.cache_clear()
    assert "no-such-compiler" in capsys.readouterr().err
