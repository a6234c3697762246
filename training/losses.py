"""The training loss: cross entropy, absolute difference, soft IoU per picture, and the matte's gradients at the edge.

Where the edge is uncertain, cross entropy alone is best served by its mean, a broad blur; the absolute difference by
its median, an edge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_iou(alpha: Tensor, truth: Tensor) -> Tensor:
    """Per-picture soft intersection over union, (N,), after Rahman & Wang 2016; the constant keeps pictures
    with nobody in them stable."""
    inter = (alpha * truth).flatten(1).sum(1)
    union = (alpha + truth - alpha * truth).flatten(1).sum(1)
    slack = 0.002 * alpha[0].numel()
    return (inter + slack) / (union + slack)


def gradient_l1(alpha: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical differences: sharpness where the truth is sharp."""
    diff = alpha - truth
    return diff.diff(dim=-1).abs().mean() + diff.diff(dim=-2).abs().mean()


def matting_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Scalar loss. `logits` and `truth` are float (N, 1, H, W), truth in 0..1."""
    logits = logits.float()
    alpha = torch.sigmoid(logits)
    cross = F.binary_cross_entropy_with_logits(logits, truth)
    sharp = (alpha - truth).abs().mean() + 0.5 * gradient_l1(alpha, truth)
    return cross + sharp + 0.7 * (1 - soft_iou(alpha, truth)).mean()
