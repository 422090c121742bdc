"""Projected gradient ascent in an l-infinity ball: one algorithm, two uses.

The selection mechanism of section 2.1 maximises a divergence between q(Z | x) and q(Z | x + delta); the evaluation of
section 7 maximises a classifier's loss. Madry et al. (2017), arXiv:1706.06083.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from se_core._attack import Attack as Attack
from se_core._borrowing import left_unchanged, without_writing_buffers
from se_core._compilation import compiled as compile_once
from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.gaussians import Gaussian, GaussianLike, as_gaussian
from se_core.memory import Remembered, check_memory
from se_core.networks import VAE
from se_core.objectives import check_images
from se_core.transport import w2_squared

Objective = Callable[[Tensor], Tensor]
Divergence = Callable[[Gaussian, Gaussian], Tensor]


def pgd(
    objective: Objective,
    x: Tensor,
    radius: float,
    steps: int,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    compiled: bool = False,
    momentum: float = 0.0,
    spread: float = 1.0,
    decay: bool = False,
    widening: float = 1.0,
) -> Tensor:
    """x' that maximises objective(x') over |x' - x| <= radius in each pixel and over `bounds`.

    objective: images (B, ...) -> values (B,), larger is worse for the model, each image's value its own.
    x: (B, ...). The start is uniform in the ball: at x' = x itself the gradient of W_2^2(q(.|x), q(.|x')) is exactly
    zero. The result is the best point of the whole path, example by example, at the price of one forward pass after
    the last step. Against a classifier a start near x (a small `spread`) often finds more, and so do momentum, decay
    and widening.
    generator: on the device of x. compiled: run the whole loop under `torch.compile` (worth it for many calls of one
    shape). The other arguments are those of `Attack`.

    Returns a tensor of the shape of x, detached. Raises what `Attack` raises; InvalidTypeError for an x that is not
    floating; InvalidValueError for an x outside `bounds` (looked at on the CPU only, where it costs no
    synchronisation), for an objective whose values have another shape than (B,) or do not depend on x'.
    """
    attack = Attack(radius, steps, step_size, restarts, bounds, momentum, spread, decay, widening)
    best_point = _compiled(_best_point) if compiled else _best_point
    with torch.inference_mode(False):
        x = _checked_images(x, attack)
        target, wide = _in_the_dtype_of(x, objective), _wide(x)
        starts = (_random_start(x, attack, generator) for _ in range(attack.restarts))
        best = functools.reduce(_better, (best_point(target, wide, start, attack) for start in starts))
        return _inside(best.x, x, attack)


def fictive_sample(
    encoder: Callable[[Tensor], GaussianLike],
    x: Tensor,
    radius: float,
    steps: int,
    divergence: Divergence = w2_squared,
    q_x: GaussianLike | None = None,
    step_size: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    attack_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    compiled: bool = False,
    memory: Remembered | None = None,
) -> Tensor:
    """The selection mechanism of section 2.1: x' near x whose representation differs most from that of x.

    Maximises divergence(q(Z | x), q(Z | x')) over |x' - x| <= radius, W_2^2 (eq. 12) unless another is given. q(Z | x)
    is encoded once (or passed as q_x, detached here), as any Gaussian that `as_gaussian` reads. attack_dtype: the
    precision in which the encoder is differentiated (by autocast), bfloat16 where the hardware has it; x' itself keeps
    the dtype of x. memory: `SelectionMemory(...)[index]` of these images, to go on from where their last attack ended
    (ours, not the paper's), with steps of half the radius by default. Shapes, units and errors as in `pgd`. No gradient
    flows through the result.

    The result is the last point of the path, as in the paper: to know the best one, as `pgd` does, takes a pass more,
    half a step, and with L = 20 it is better by less than one per cent of the divergence.

    The encoder is called as it is, in its own mode. Its parameters, buffers (running statistics, power iterations) and
    gradients are left as they were, and so are the global generators, of which dropout draws.
    """
    if isinstance(encoder, VAE):
        raise InvalidTypeError("encoder must map images to q(Z | x), got the whole VAE; pass vae.encoder")
    remembered_step = None if memory is None else radius / 2
    attack = Attack(radius, steps, remembered_step if step_size is None else step_size, bounds=bounds)
    with torch.inference_mode(False):
        x = _checked_images(x, attack)
        check_memory(memory, x, radius)
        start = _random_start(x, attack, generator) if memory is None else memory.recall(_wide(x))
        with left_unchanged(encoder, x.device), _precision(attack_dtype, x.device):
            if q_x is None:
                with torch.enable_grad():  # see _value
                    q_x = encoder(x.clone())
            target = _constant(q_x)
            encode = without_writing_buffers(encoder) if compiled else encoder

            def objective(x_prime: Tensor) -> Tensor:
                q = as_gaussian(encode(x_prime))
                return divergence(target, type(q)(*(parameter.to(target.mean.dtype) for parameter in q)))

            last_point = _compiled(_last_point) if compiled else _last_point
            x_prime = _inside(last_point(_in_the_dtype_of(x, objective), _wide(x), start, attack), x, attack)
        if memory is not None:
            memory.keep(x, x_prime)
        return x_prime


class _Found(NamedTuple):
    x: Tensor  # (B, ...)
    value: Tensor  # (B,)


def _last_point(objective: Objective, x: Tensor, x_prime: Tensor, attack: Attack) -> Tensor:
    box = attack.box(x)
    x_prime = torch.clamp(x_prime, *box)  # what a memory keeps is rounded
    for step in range(attack.steps):
        _, gradient = _value_and_gradient(objective, x_prime)
        x_prime = torch.clamp(x_prime + attack.stride(step) * gradient.sign(), *box)
    return x_prime


def _best_point(objective: Objective, x: Tensor, x_prime: Tensor, attack: Attack) -> _Found:
    best, direction = None, torch.zeros_like(x)
    for step in range(attack.steps):
        value, gradient = _value_and_gradient(objective, x_prime)  # the pass that yields the gradient has the value
        if attack.reach(step) == 1:
            best = _better(best, _Found(x_prime, value))
        direction = attack.momentum * direction + (_normalised(gradient) if attack.momentum else gradient)
        box = attack.box(x, attack.reach(step + 1))
        x_prime = torch.clamp(x_prime + attack.stride(step) * direction.sign(), *box)
    return _better(best, _Found(x_prime, _value(objective, x_prime).detach()))


def _normalised(gradient: Tensor) -> Tensor:
    """Divided by its mean absolute value, example by example; a gradient of zeros stays one."""
    scale = gradient.abs().flatten(1).mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient / scale.reshape(-1, *[1] * (gradient.dim() - 1))


def _better(best: _Found | None, found: _Found) -> _Found:
    """The higher of the two values, example by example."""
    if best is None:
        return found
    higher = (found.value > best.value).reshape(-1, *[1] * (found.x.dim() - 1))
    return _Found(torch.where(higher, found.x, best.x), torch.maximum(found.value, best.value))


def _compiled(path: Callable[..., Any]) -> Callable[..., Any]:
    return torch.no_grad()(compile_once(path))  # nothing is stored for the gradients of parameters


def _value(objective: Objective, x: Tensor) -> Tensor:
    with torch.enable_grad():  # under no_grad, an autocast around us would keep weights without gradient in its cache
        value = objective(x.clone())  # not the leaf itself, which a layer that works in place could not change
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidValueError(
            f"objective must return one value for each image, shape ({len(x)},), got {shape}; do not average over the "
            "batch"
        )
    return value


def _value_and_gradient(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """objective(x) and its derivative with respect to x alone: half of a backward pass is never computed."""
    if torch.compiler.is_compiling():  # of the two forms, this one compiles to the faster code
        gradient, (_, value) = grad_and_value(lambda x: ((value := objective(x)).sum(), value), has_aux=True)(x)
        return value, gradient
    x = x.detach().requires_grad_()
    value = _value(objective, x)
    gradient = torch.autograd.grad(value.sum(), x, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise InvalidValueError(
            "objective does not depend on x': no gradient arrives at the images; is part of the encoder under "
            "torch.no_grad(), or its output detached?"
        )
    return value.detach(), gradient


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))  # in bfloat16 a step may be lost to rounding


def _in_the_dtype_of(x: Tensor, objective: Objective) -> Objective:
    return lambda x_prime: objective(x_prime.to(x.dtype))


def _random_start(x: Tensor, attack: Attack, generator: torch.Generator | None) -> Tensor:
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    low, high = attack.bounds
    return _wide(torch.clamp(x + attack.spread * attack.radius * (2 * noise - 1), low, high))


def _inside(x_prime: Tensor, x: Tensor, attack: Attack) -> Tensor:
    """x' in the dtype of x. Where that has few digits, one rounded out of the box goes to the next number inside."""
    rounded = x_prime.detach().to(x.dtype)
    if rounded.dtype == x_prime.dtype:
        return rounded
    lower, upper = attack.box(x.double())
    for _ in range(2):  # out of the ball and, one number further, out of the bounds
        inward = torch.nextafter(rounded, x)
        rounded = torch.where((rounded.double() < lower) | (rounded.double() > upper), inward, rounded)
    return rounded


def _checked_images(x: Tensor, attack: Attack) -> Tensor:
    check_images(x)
    low, high = attack.bounds
    if x.device.type == "cpu" and x.numel() and not (float(x.min()) >= low and float(x.max()) <= high):
        raise InvalidValueError(
            f"x has pixels in [{float(x.min()):.9g}, {float(x.max()):.9g}], outside bounds={attack.bounds}; scale "
            "images to [0, 1] (divide uint8 by 255), clamp what rounding has moved out, or pass the bounds they have"
        )
    return x.detach().clone() if x.is_inference() else x.detach()


def _constant(q: GaussianLike) -> Gaussian:
    q = as_gaussian(q)
    return type(q)(*(p.detach().clone() if p.is_inference() else p.detach() for p in q))


def _precision(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
