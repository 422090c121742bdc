"""Classifiers whose worst case is known in closed form, which several files share."""

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from se_core.gaussians import DiagonalGaussian

PIXELS = 64


class LinearEncoder(nn.Module):
    """Images (B, 1, 8, 8) -> Gaussians whose means are the logits of a linear classifier.

    Any two rows of weights are equally far apart, so that the nearest wrong class is the one to attack.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        rows = torch.tensor(hadamard(PIXELS)[1 : classes + 1], dtype=torch.float32)
        self.weight = nn.Parameter(rows, requires_grad=False)

    def forward(self, x: Tensor) -> DiagonalGaussian:
        mean = (x.flatten(1) - 0.5) @ self.weight.T
        return DiagonalGaussian(mean, torch.zeros_like(mean))


def linear_problem(classes: int, n: int) -> tuple[LinearEncoder, Tensor, Tensor]:
    """Encoder; x (n, 1, 8, 8) so far from 0 and 1 that no ball of radius 0.2 meets them; labels, a few of them wrong.

    About three in four images survive radius 0.05, and half survive radius 0.1.
    """
    encoder, g = LinearEncoder(classes), torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (n,), generator=g)
    towards = encoder.weight[labels] * torch.rand(n, 1, generator=g)
    x = 0.5 + 0.2 * towards + 0.05 * (2 * torch.rand(n, PIXELS, generator=g) - 1)
    wrong = torch.rand(n, generator=g) < 0.03
    return encoder, x.reshape(n, 1, 8, 8), torch.where(wrong, (labels + 1) % classes, labels)


def worst_case(encoder: LinearEncoder, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """Which images no attack of this radius can have misclassified, (n,) bool: for each wrong class, the difference of
    logits exceeds radius times the l1 norm of the difference of weights."""
    weight, logits = encoder.weight.double(), encoder(x).mean.double()
    gaps = logits.gather(1, labels[:, None]) - logits
    reach = radius * (weight[labels][:, None] - weight).abs().sum(-1)
    return ((gaps > reach) | (torch.arange(len(weight)) == labels[:, None])).all(1)
