"""The linear probe: what a representation says of a label, by the simplest means of reading it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from se_core.errors import SmoothEncoderError


class ProbeNotConverged(SmoothEncoderError):
    """L-BFGS ended before the gradient of the probe's loss vanished."""


def fit_probe(means: Tensor, labels: Tensor, classes: int, l2: float) -> nn.Linear:
    """Multinomial logistic regression, minimising the mean cross-entropy (nats) + l2/2 ||W||^2 to convergence.

    means (N, latent_dim), labels (N,) int64 in [0, classes). L-BFGS in float64; the problem is convex, so the answer
    depends on the data alone. Raises ProbeNotConverged if the gradient's largest entry stays above 1e-6.
    """
    home = torch.device("cpu") if means.device.type == "mps" else means.device  # MPS has no float64
    with torch.inference_mode(False), torch.enable_grad():
        features, centre, unit = _whitened(means.clone().to(home).double(), l2)
        weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=home, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, device=home, requires_grad=True)
        labels = labels.clone().to(home)

        def loss() -> Tensor:
            penalty = l2 / 2 * (weight * unit).square().sum()
            return nn.functional.cross_entropy(features @ weight.T + bias, labels) + penalty

        _minimise(loss, [weight, bias], l2)
        probe = nn.Linear(features.shape[1], classes, device=means.device, dtype=torch.float32)
        with torch.no_grad():
            probe.weight.copy_((weight * unit).float())
            probe.bias.copy_((bias - (weight * unit) @ centre).float())
    return probe.requires_grad_(False)


def _whitened(means: Tensor, l2: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same problem in coordinates of unit curvature, whatever the scale of each latent: W = V diag(unit)."""
    centre, variance = means.mean(0), means.var(0)
    unit = (variance + l2).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    return (means - centre) * unit, centre, unit


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor], l2: float) -> None:
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=2000,
        max_eval=4000,
        history_size=30,
        tolerance_grad=1e-7,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    closure()
    residual = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
    if not residual <= 1e-6:
        raise ProbeNotConverged(f"the probe did not converge: gradient {residual:.1e} after L-BFGS; raise l2={l2}")
