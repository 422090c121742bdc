"""Projected gradient ascent: exact optima on linear objectives, the ball, the trap at delta = 0, an independent PGD."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from se_core.attacks import fictive_sample, pgd
from se_core.gaussians import DiagonalGaussian
from se_core.losses import cross_entropy, margin
from se_core.networks import Architecture, build_vae
from se_core.transport import entropic_cost, w2_squared


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.rand(7, 1, 28, 28, generator=_generator(3))


@pytest.mark.parametrize(("radius", "compiled"), [(0.0, False), (0.05, False), (0.3, False), (2.0, False), (0.3, True)])
def test_a_linear_objective_is_maximised_exactly(radius: float, compiled: bool) -> None:
    """max over the box of w.x' is attained at x + radius sign(w), clipped: known in closed form."""
    w = torch.randn(X.shape, generator=_generator(1))
    x_adv = pgd(lambda x: (w * x).flatten(1).sum(-1), X, radius, steps=4, generator=_generator(), compiled=compiled)
    torch.testing.assert_close(x_adv, torch.clamp(X + radius * w.sign(), 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("radius", [0.01, 0.2, 0.9])
def test_the_ball_and_the_bounds_hold(architecture: str, radius: float) -> None:
    encoder = build_vae(architecture, 1, 8).encoder
    x_prime = fictive_sample(encoder, X, radius, steps=5, generator=_generator())
    rounding = 1e-6
    assert float((x_prime - X).abs().max()) <= radius + rounding
    assert float((x_prime - X).abs().max()) >= 0.9 * radius
    assert float(x_prime.min()) >= 0
    assert float(x_prime.max()) <= 1
    assert not x_prime.requires_grad
    assert x_prime.dtype == torch.float32


def test_other_bounds_are_respected() -> None:
    x_adv = pgd(lambda x: x.flatten(1).sum(-1), 2 * X - 1, 3.0, steps=3, bounds=(-1, 1), generator=_generator())
    assert torch.equal(x_adv, torch.ones_like(X))


def test_at_the_image_itself_the_gradient_is_exactly_zero() -> None:
    """Why PGD starts at random: W_2^2(q(.|x), q(.|x')) is least at x' = x, and signed steps would never leave."""
    encoder = build_vae("mlp", 1, 8).encoder
    x_prime = X.clone().requires_grad_()
    w2_squared(type(q := encoder(X))(*(p.detach() for p in q)), encoder(x_prime)).sum().backward()
    assert x_prime.grad is not None
    assert torch.equal(x_prime.grad, torch.zeros_like(X))


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_attack_beats_noise_and_more_steps_help(architecture: str) -> None:
    encoder = build_vae(architecture, 1, 8).encoder

    def moved(x_prime: Tensor) -> float:
        with torch.no_grad():
            return float(w2_squared(encoder(X), encoder(x_prime)).mean())

    noise = torch.rand(X.shape, generator=_generator(2))
    random_corner = torch.clamp(X + 0.1 * (2 * noise - 1).sign(), 0, 1)
    attacked = [moved(fictive_sample(encoder, X, 0.1, steps, generator=_generator())) for steps in (1, 5, 40)]
    assert attacked[0] > 5 * moved(random_corner)
    assert attacked[0] < attacked[1] < attacked[2]


def test_restarts_keep_the_best_example_by_example() -> None:
    encoder = build_vae("mlp", 1, 8).encoder
    with torch.no_grad():
        q_x = encoder(X)

    def objective(x: Tensor) -> Tensor:
        return w2_squared(q_x, encoder(x))

    generator = _generator()
    singly = torch.stack([objective(pgd(objective, X, 0.2, 2, generator=generator)).detach() for _ in range(3)])
    together = objective(pgd(objective, X, 0.2, 2, restarts=3, generator=_generator())).detach()
    assert singly.argmax(0).unique().numel() > 1  # the best start differs between examples
    assert torch.equal(together, singly.amax(0))


def test_the_best_point_of_the_path_is_returned_example_by_example() -> None:
    """Every value that the attack has seen, kept here: none is above the returned one, and one more pass was made."""
    encoder = build_vae("mlp", 1, 8).encoder
    with torch.no_grad():
        q_x = encoder(X)
    seen: list[Tensor] = []

    def objective(x: Tensor) -> Tensor:
        value = w2_squared(q_x, encoder(x))
        seen.append(value.detach())
        return value

    x_adv = pgd(objective, X, 0.2, steps=12, step_size=0.15, generator=_generator())  # long steps overshoot
    values = torch.stack(seen)
    assert len(values) == 13
    assert torch.equal(objective(x_adv).detach(), values.amax(0))
    assert len({int(i) for i in values.argmax(0)} - {12}) > 1  # for several images, at several points, not the last


def test_it_finds_what_an_independent_implementation_finds() -> None:
    """foolbox's PGD, from the same start with the same steps, follows the same path and returns its end."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is a test dependency: pip install -e '.[test]'")
    torch.manual_seed(1)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 50), torch.nn.ReLU())
    classifier.append(torch.nn.Linear(50, 10)).eval().requires_grad_(False)
    labels = classifier(X).argmax(-1)
    loss = cross_entropy(classifier, labels)
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    start = torch.clamp(X + 0.1 * (2 * torch.rand(X.shape, generator=_generator()) - 1), 0, 1)

    class FromThere(foolbox.attacks.LinfPGD):  # type: ignore[misc]
        def get_random_start(self, x0, epsilon):
            return type(x0)(start)

    theirs = FromThere(abs_stepsize=0.06, steps=10).run(model, X, labels, epsilon=0.1)
    ours = pgd(loss, X, 0.1, steps=10, step_size=0.06, generator=_generator())
    assert bool((loss(ours) >= loss(theirs)).all())
    assert bool((loss(ours) > loss(theirs)).any())  # the end of the path is not its best point
    torch.testing.assert_close(loss(ours).mean(), loss(theirs).mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("momentum", [0.5, 1.0])
def test_momentum_is_that_of_an_independent_implementation(momentum: float) -> None:
    """foolbox's MI-FGSM, from the image itself, ends at the same point; without momentum one ends at another."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is a test dependency: pip install -e '.[test]'")
    torch.manual_seed(1)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 50), torch.nn.Tanh())
    classifier.append(torch.nn.Linear(50, 10)).eval().requires_grad_(False).double()
    x, labels = X.double(), classifier(X.double()).argmax(-1)
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    from foolbox.attacks.gradient_descent_base import normalize_lp_norms
    from foolbox.attacks.mi_fgsm import GDMOptimizer

    class Dong18(foolbox.attacks.LinfMomentumIterativeFastGradientMethod):  # type: ignore[misc]
        """As printed: gradients over their L1 norms are accumulated, and the step is the sign of the sum."""

        def get_optimizer(self, x, stepsize):
            return GDMOptimizer(x, stepsize, self.momentum)

        def normalize(self, gradients, *, x, bounds):
            return normalize_lp_norms(gradients, p=1)

    theirs = Dong18(momentum=momentum, abs_stepsize=0.004, steps=20).run(model, x, labels, epsilon=0.1)
    path = {"radius": 0.1, "steps": 20, "step_size": 0.004, "spread": 0.0}
    ours = pgd(cross_entropy(classifier, labels), x, momentum=momentum, **path)
    same = ((ours - theirs).abs().flatten(1).amax(1) < 1e-12).tolist()
    better = (cross_entropy(classifier, labels)(ours) > cross_entropy(classifier, labels)(theirs)).tolist()
    assert sum(same) >= 5
    assert all(s or b for s, b in zip(same, better, strict=True))  # where the end is not the best point of the path
    plain = pgd(cross_entropy(classifier, labels), x, **path)
    assert sum(((plain - theirs).abs().flatten(1).amax(1) < 1e-12).tolist()) < 5


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_steps_that_decay_sum_to_half_of_those_that_do_not(steps: int) -> None:
    """Along half a cosine n steps go (n + 1) / 2 times as far as the first: by symmetry, all but it average a half."""
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    path = {"radius": 0.5, "steps": steps, "step_size": 0.01, "spread": 0.0, "decay": True}
    moved = pgd(lambda x: x.flatten(1).sum(-1), x, **path) - x
    torch.testing.assert_close(moved, torch.full_like(x, 0.01 * (steps + 1) / 2), rtol=1e-12, atol=0)
    first = pgd(lambda x: x.flatten(1).sum(-1), x, 0.4, 1, spread=0.0, decay=True) - x
    torch.testing.assert_close(first, torch.full_like(x, 0.2), rtol=1e-12, atol=0)  # half the radius


def test_steps_that_decay_end_on_a_peak_that_others_leap_over() -> None:
    """max of -|x' - peak| is known; steps of one size come no nearer than half of one, on average over pixels."""
    peak = X.clamp(0.1, 0.9) + 0.05 * (2 * torch.rand(X.shape, generator=_generator(4)) - 1)

    def distance(decay: bool) -> float:
        path = {"radius": 0.2, "steps": 40, "spread": 0.01, "generator": _generator(), "decay": decay}
        return float((pgd(lambda x: -(x - peak).abs().flatten(1).sum(-1), X, **path) - peak).abs().mean())

    assert distance(decay=True) < 0.001
    assert distance(decay=False) > 0.002


def test_a_wider_ball_leads_around_a_wall_into_the_ball() -> None:
    """Beyond a = 0.15 the way is up along b, and at home only from b = 0.05 on: from b = 0 it leads down."""

    def value(x: Tensor) -> Tensor:
        a, b = (x - 0.5).unbind(-1)
        return a + torch.where(a > 0.15, 10 * b, 10 * (b - 0.05).relu() - b)

    x = torch.full((8, 2), 0.5)
    path = {"radius": 0.1, "steps": 40, "spread": 0.01, "generator": _generator(), "decay": True}
    torch.testing.assert_close(pgd(value, x, **path), x + torch.tensor([0.1, -0.1]))
    torch.testing.assert_close(pgd(value, x, **path, widening=2.0), x + torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
@pytest.mark.parametrize("widening", [1.0, 2.0, 50.0])
def test_a_wider_ball_ends_in_the_ball(steps: int, widening: float) -> None:
    """Even of an objective that is largest outside of it, and for which any point outside would do."""
    path = {"momentum": 0.5, "generator": _generator(), "widening": widening}
    outward = pgd(lambda x: (x - X).abs().flatten(1).sum(-1), X, 0.1, steps, **path)
    assert float((outward - X).abs().max()) <= 0.1 + 1e-7
    assert float(outward.min()) >= 0
    assert float(outward.max()) <= 1


@pytest.mark.parametrize("widening", [0.5, math.inf, math.nan])
def test_a_ball_cannot_begin_narrower(widening: float) -> None:
    with pytest.raises(ValueError, match=f"widening={widening} must be a finite number >= 1; 1 is the ball itself"):
        pgd(lambda x: x.flatten(1).sum(-1), X, 0.1, 2, widening=widening)


def test_the_start_is_as_near_as_it_is_asked_to_be() -> None:
    seen: list[Tensor] = []
    pgd(lambda x: (seen.append(x.detach()), x.flatten(1).sum(-1))[1], X, 0.2, 1, spread=0.1, generator=_generator())
    moved = (seen[0] - X).abs().max()
    assert 0.015 < float(moved) <= 0.02 + 1e-6
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"spread={share} must be in"):
            pgd(lambda x: x.flatten(1).sum(-1), X, 0.2, 1, spread=share)
        with pytest.raises(ValueError, match=f"momentum={share} must be in"):
            pgd(lambda x: x.flatten(1).sum(-1), X, 0.2, 1, momentum=share)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("radius", [0.001, 0.01, 0.05, 0.3])
def test_half_precision_images_stay_inside_their_ball(dtype: torch.dtype, radius: float) -> None:
    """Near 1, bfloat16 has steps of 1/256: an image rounded to nearest would leave a ball of radius 0.01."""
    x = torch.cat([X, (X > 0.5).float(), 1 - 0.01 * X]).to(dtype)
    w = torch.randn(x.shape, generator=_generator(1))
    x_adv = pgd(lambda x: (w * x.float()).flatten(1).sum(-1), x, radius, steps=5, generator=_generator())
    assert x_adv.dtype == dtype
    assert float((x_adv.double() - x.double()).abs().max()) <= radius
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    # No number of this dtype lies farther in the wanted direction and inside.
    best = torch.clamp(x.double() + radius * w.sign().double(), 0, 1)
    further = torch.nextafter(x_adv, x_adv + w.sign().to(dtype))
    beyond = (further.double() - x.double()).abs() > radius
    assert bool(((x_adv.double() == best) | beyond | (further < 0) | (further > 1)).all())


def test_restarts_are_for_any_shape() -> None:
    """A batch of vectors, not images: the best restart of each row."""
    x = torch.full((4, 3), 0.5)
    x_adv = pgd(lambda v: (v - 0.5).square().sum(-1), x, 0.25, 20, restarts=2, generator=_generator())
    assert torch.equal((x_adv - x).abs(), torch.full_like(x, 0.25))


def test_no_parameter_receives_a_gradient() -> None:
    vae = build_vae("mlp", 1, 8)
    fictive_sample(vae.encoder, X, 0.2, steps=2, q_x=vae.encode(X), generator=_generator())
    assert all(p.grad is None for p in vae.parameters())


def test_the_generator_decides() -> None:
    encoder = build_vae("mlp", 1, 8).encoder
    a, b, c = (fictive_sample(encoder, X, 0.2, 2, generator=_generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_compiled_attack_finds_what_the_eager_one_finds(architecture: str) -> None:
    encoder = build_vae(architecture, 1, 8).encoder
    values = []
    for compiled in (False, True):
        x_prime = fictive_sample(encoder, X, 0.2, 5, generator=_generator(), compiled=compiled)
        values.append(w2_squared(encoder(X), encoder(x_prime)).detach())
    # Kernels that round differently flip the signs of vanishing gradients; the value reached is what must agree.
    torch.testing.assert_close(values[0], values[1], rtol=2e-2, atol=0)


def test_a_bfloat16_attack_stays_in_float32_images() -> None:
    encoder = build_vae("mlp", 1, 8).encoder
    full, half = (
        fictive_sample(encoder, X, 0.2, 20, attack_dtype=dtype, generator=_generator())
        for dtype in (None, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    reached = [float(w2_squared(encoder(X), encoder(x)).detach().mean()) for x in (full, half)]
    assert reached[1] == pytest.approx(reached[0], rel=0.1)


def test_the_entropic_cost_can_be_attacked_instead() -> None:
    """An ablation: WD = gamma/2 W^2 - H(Q) grows as the joint entropy falls, so it pays the attacker for a small
    Sigma_b, which W_2^2 does not."""
    encoder = build_vae("mlp", 1, 8).encoder

    def cost(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
        return entropic_cost(a, b, 1.0)

    with torch.no_grad():
        q_x = encoder(X)
        q_w2, q_wd = (
            encoder(fictive_sample(encoder, X, 0.2, 20, divergence, generator=_generator()))
            for divergence in (w2_squared, cost)
        )
        assert bool((cost(q_x, q_wd) > cost(q_x, q_x)).all())
        assert float(q_wd.log_var.mean()) < float(q_x.log_var.mean()) < float(q_w2.log_var.mean())


def test_an_empty_batch_is_an_empty_answer() -> None:
    encoder = build_vae("mlp", 1, 8).encoder
    assert fictive_sample(encoder, X[:0], 0.2, 3).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": -0.1}, r"radius=-0\.1 must be a finite number >= 0"),
        ({"radius": math.nan}, r"radius=nan"),
        ({"radius": math.inf}, r"radius=inf"),
        ({"steps": 0}, r"steps=0 must be at least 1"),
        ({"steps": 2.5}, r"steps=2\.5 must be at least 1, and whole"),
        ({"restarts": 0}, r"restarts=0 must be at least 1"),
        ({"bounds": (1.0, 0.0)}, r"bounds=\(1\.0, 0\.0\) must be a lower and a higher number"),
        ({"x": X.where(X < 0.9, 1.0000001)}, r"pixels in \[.*, 1\.00000012\], outside bounds"),
        ({"step_size": -1.0}, r"step_size=-1\.0"),
        ({"x": 255 * X}, r"outside bounds=\(0\.0, 1\.0\); scale images"),
        ({"x": X - 0.5}, r"outside bounds"),
        ({"x": X.where(X < 0.9, math.nan)}, r"outside bounds"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments: dict, message: str) -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("the objective was evaluated")

    with pytest.raises(ValueError, match=message):
        pgd(never, **({"x": X, "radius": 0.1, "steps": 3} | arguments))


def test_margin_is_positive_exactly_where_misclassified() -> None:
    logits = torch.randn(500, 10, generator=_generator())
    labels = torch.randint(10, (500,), generator=_generator(1))
    wrong = logits.argmax(-1) != labels
    value = margin(lambda x: x, labels)(logits)
    assert torch.equal(value > 0, wrong)
    # By hand, for one row: the best of the others less the true one.
    others = [float(v) for i, v in enumerate(logits[0]) if i != int(labels[0])]
    assert float(value[0]) == pytest.approx(max(others) - float(logits[0, labels[0]]))
    targets = (labels + 1) % 10
    (first, true), target = logits[0, [int(targets[0]), int(labels[0])]], margin(lambda x: x, labels, targets)(logits)
    assert float(target[0]) == pytest.approx(float(first - true))
    assert (target <= value).all()


def test_cross_entropy_is_the_negative_log_probability() -> None:
    logits = torch.randn(50, 7, generator=_generator(), dtype=torch.float64)
    labels = torch.randint(7, (50,), generator=_generator(1))
    expected = -torch.distributions.Categorical(logits=logits).log_prob(labels)
    torch.testing.assert_close(cross_entropy(lambda x: x, labels)(logits), expected, rtol=1e-12, atol=1e-12)


class _TheirEncoder(torch.nn.Module):
    """With running statistics, an integer buffer, and distributions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(784), torch.nn.Linear(784, 8)
        self.register_buffer("order", torch.randperm(784, generator=_generator()))

    def forward(self, x: Tensor) -> torch.distributions.Independent:
        mean, log_scale = self.head(self.norm(x.flatten(1)[:, self.order])).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_scale.exp()), 1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_encoder_keeps_its_buffers_and_may_return_distributions_of_torch(dtype: torch.dtype | None) -> None:
    encoder = _TheirEncoder()
    q_x = encoder(X)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    x_prime = fictive_sample(encoder, X, 0.1, steps=3, q_x=q_x, attack_dtype=dtype, generator=_generator())
    assert float((x_prime - X).abs().max()) > 0.05
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


def test_pixels_are_floating() -> None:
    with pytest.raises(TypeError, match=r"x must hold floating-point pixels, got torch\.uint8; scale images"):
        pgd(lambda x: x.flatten(1).sum(-1), (X > 0.5).to(torch.uint8), 0.1, steps=2)
