"""Projected gradient ascent in an l-infinity ball: one algorithm, two uses.

The selection mechanism of section 2.1 maximises a divergence between q(Z | x) and q(Z | x + delta); the evaluation of
section 7 maximises a classifier's loss. Madry et al. (2017), arXiv:1706.06083.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from se_core.gaussians import Gaussian, as_gaussian
from se_core.transport import w2_squared

Objective = Callable[[Tensor], Tensor]
Divergence = Callable[[Gaussian, Gaussian], Tensor]


def _gradient(objective: Objective, x: Tensor) -> Tensor:
    """d objective / d x alone: the gradients of the parameters, half of a backward pass, are never computed."""
    if torch.compiler.is_compiling():  # Dynamo traces the functional form only
        return torch.func.grad(lambda x_prime: objective(x_prime).sum())(x)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(objective(x).sum(), x)[0]


def _ascend(
    objective: Objective, x: Tensor, x_adv: Tensor, radius: float, step_size: float, steps: int, low: float, high: float
) -> Tensor:
    """`steps` signed gradient steps from x_adv, each projected onto the ball around x and onto [low, high]."""
    lower, upper = (x - radius).clamp(min=low), (x + radius).clamp(max=high)
    for _ in range(steps):
        x_adv = torch.clamp(x_adv + step_size * _gradient(objective, x_adv).sign(), lower, upper)
    return x_adv


@functools.cache
def _compiled_ascend() -> Callable[..., Tensor]:
    return torch.compile(_ascend, dynamic=False)  # made when first asked for: it imports the whole compiler


def _validated_ball(radius: float, steps: int, step_size: float | None, restarts: int) -> float:
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"radius={radius} must be a finite number >= 0, in pixels scaled to [0, 1]")
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps={steps} and restarts={restarts} must be at least 1; for no attack, use x itself")
    step_size = 2.5 * radius / steps if step_size is None else step_size
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size={step_size} must be a finite number >= 0; None stands for 2.5 radius / steps")
    return step_size


def pgd(
    objective: Objective,
    x: Tensor,
    radius: float,
    steps: int,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    compile: bool = False,
) -> Tensor:
    """x' that maximises objective(x') over |x' - x| <= radius in each pixel and over `bounds`.

    objective: images (B, ...) -> values (B,), larger is worse for the model, each image's value its own.
    x: (B, ...). The start is uniform in the ball: at x' = x itself the gradient of W_2^2(q(.|x), q(.|x')) is exactly
    zero. step_size: 2.5 radius / steps by default, so that the far side of the ball is within reach. restarts: the
    best of several starts is kept, example by example. generator: on the device of x. compile: run the whole loop
    under `torch.compile` (worth it for many calls of one shape).

    Returns a tensor of the shape of x, detached. Raises TypeError for an x that is not floating; ValueError for a
    radius that is negative or not finite, for fewer than one step or restart, and for an x outside `bounds` (checked
    on the CPU only, where it costs no synchronisation).
    """
    step_size = _validated_ball(radius, steps, step_size, restarts)
    if not x.is_floating_point():
        raise TypeError(
            f"x must hold floating-point pixels, got {x.dtype}; scale images to [0, 1] (divide uint8 by 255)"
        )
    low, high = bounds
    x = x.detach()
    if x.device.type == "cpu" and x.numel() and not (float(x.min()) >= low and float(x.max()) <= high):
        raise ValueError(
            f"x has pixels in [{float(x.min()):.4g}, {float(x.max()):.4g}], outside bounds={bounds}; "
            "scale images to [0, 1] (divide uint8 by 255) or pass the bounds they have"
        )
    ascend = _compiled_ascend() if compile else _ascend
    best: Tensor | None = None
    for _ in range(restarts):
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        start = torch.clamp(x + radius * (2 * noise - 1), low, high)
        x_adv = ascend(objective, x, start, radius, step_size, steps, low, high).detach()
        if restarts == 1:
            return x_adv
        with torch.no_grad():
            value = objective(x_adv)
            if best is None:
                best, best_value = x_adv, value
            else:
                better = (value > best_value).reshape(-1, *[1] * (x.dim() - 1))
                best, best_value = torch.where(better, x_adv, best), torch.maximum(value, best_value)
    assert best is not None
    return best


def fictive_sample(
    encoder: nn.Module,
    x: Tensor,
    radius: float,
    steps: int,
    divergence: Divergence = w2_squared,
    q_x: Gaussian | Distribution | None = None,
    attack_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    compile: bool = False,
) -> Tensor:
    """The selection mechanism of section 2.1: x' near x whose representation differs most from that of x.

    Maximises divergence(q(Z | x), q(Z | x')) over |x' - x| <= radius, W_2^2 (eq. 12) unless another is given. q(Z | x)
    is encoded once (or passed as q_x, detached here), as any Gaussian that `as_gaussian` reads. attack_dtype: the
    precision in which the encoder is differentiated, bfloat16 where the hardware has it; x' itself keeps the dtype of
    x. The encoder's buffers, such as running statistics, are left as they were. Shapes, units and errors as in `pgd`.
    No gradient flows through the result.
    """
    weights = {name: w.detach() for name, w in encoder.named_parameters()}
    weights |= {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    if attack_dtype is not None:
        weights = {name: w.to(attack_dtype) if w.is_floating_point() else w for name, w in weights.items()}

    if q_x is None:
        with torch.no_grad():
            q_x = encoder(x)
    q_x = as_gaussian(q_x)
    target = type(q_x)(*(parameter.detach() for parameter in q_x))

    def objective(x_prime: Tensor) -> Tensor:
        q = as_gaussian(functional_call(encoder, weights, (x_prime.to(attack_dtype or x.dtype),)))
        return divergence(target, type(q)(*(parameter.to(target.mean.dtype) for parameter in q)))

    return pgd(objective, x, radius, steps, generator=generator, compile=compile)


def cross_entropy(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Objective:
    """The classifier attack's usual objective, in nats: -log softmax of the true label; labels (B,) int64."""
    return lambda x: nn.functional.cross_entropy(logits(x), labels, reduction="none")


def margin(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Objective:
    """The best wrong logit minus the true one (Carlini and Wagner, 2016): positive exactly where misclassified.

    Unlike the cross-entropy, its gradient does not vanish where the classifier is sure of itself.
    """

    def objective(x: Tensor) -> Tensor:
        scores = logits(x)
        true = labels[:, None]
        return scores.scatter(-1, true, -math.inf).amax(-1) - scores.gather(-1, true)[:, 0]

    return objective
