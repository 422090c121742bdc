"""Somebody else's encoder is attacked and given back as it was: threads, buffers, dropout, wrappers, exceptions."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from se_core import DiagonalGaussian, build_vae, fictive_sample, pgd
from se_core.transport import w2_squared

X = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """flatten, `first`, a linear head: the means and log-variances of four latents."""

    def __init__(self, first: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Identity() if first is None else first
        self.head = nn.Linear(784, 8) if head is None else head

    def forward(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(*self.head(self.first(x.flatten(1))).chunk(2, -1))


class Checkpointed(Net):
    def forward(self, x: Tensor) -> DiagonalGaussian:
        h = checkpoint(self.first, x.flatten(1), use_reentrant=False)
        return DiagonalGaussian(*self.head(h).chunk(2, -1))


class Counting(nn.Module):
    """Puts another tensor in the place of its buffer at each pass, instead of writing into it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return x


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _spectral(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer)


FIRST: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "batch norm": lambda: nn.BatchNorm1d(784),
    "batch norm without a momentum": lambda: nn.BatchNorm1d(784, momentum=None),
    "spectral norm": lambda: _spectral(nn.Linear(784, 784)),
    "a buffer replaced": Counting,
    "dropout": nn.Dropout,
    "in place": lambda: nn.ReLU(inplace=True),
    "lazy": lambda: nn.LazyLinear(784),
    "lazy batch norm": nn.LazyBatchNorm1d,
}


def _state(encoder: nn.Module) -> dict[str, Any]:
    tensors = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    return {
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "identities": {name: id(t) for name, t in tensors.items()},
        "gradients": {name: t.grad for name, t in encoder.named_parameters()},
        "flags": {name: t.requires_grad for name, t in tensors.items()},
        "modes": [module.training for module in encoder.modules()],
        "hooks": [(len(m._forward_hooks), len(m._backward_hooks)) for m in encoder.modules()],
        "generator": torch.get_rng_state(),
    }


def _assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("first", FIRST)
def test_everything_is_as_it_was(first: str, given: bool, training: bool) -> None:
    torch.manual_seed(0)
    encoder = Net(FIRST[first]()).train(training)
    if "lazy" in first:  # a first pass must give it its shape
        encoder(X.clone())
    encoder.first.requires_grad_(False)
    before, x = _state(encoder), X.clone()
    q_x = encoder(X.clone()) if given else None
    between = _state(encoder)
    x_prime = fictive_sample(encoder, x, 0.1, 3, q_x=q_x, generator=_generator())
    _assert_equal(_state(encoder), between if given else before)
    assert torch.equal(x, X)
    assert float((x_prime - X).abs().max()) > 0.09
    if q_x is not None and any(p.requires_grad for p in encoder.parameters()):
        q_x.mean.sum().backward()  # the graph built before is still whole


@pytest.mark.parametrize("first", ["batch norm", "spectral norm", "dropout", "a buffer replaced"])
def test_an_exception_leaves_everything_as_it_was(first: str) -> None:
    encoder = Net(FIRST[first]()).train()
    before, calls = _state(encoder), 0

    def fail(a: Any, b: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("in the middle of the attack")
        return w2_squared(a, b)

    with pytest.raises(RuntimeError, match="in the middle of the attack"):
        fictive_sample(encoder, X, 0.1, 5, fail, generator=_generator())
    _assert_equal(_state(encoder), before)


def test_a_lazy_encoder_is_initialised_by_the_attack() -> None:
    encoder = Net(nn.LazyLinear(784))
    assert fictive_sample(encoder, X, 0.1, 2).shape == X.shape
    assert encoder.first.weight.shape == (784, 784)


def test_without_a_generator_each_call_starts_elsewhere() -> None:
    """What is put back is what the encoder drew, not what the attack did."""
    encoder = Net(nn.Dropout()).eval()
    assert not torch.equal(*(fictive_sample(encoder, X, 0.1, 1) for _ in range(2)))


def test_many_threads_attack_one_encoder() -> None:
    vae = build_vae("mlp", 1, 8)
    x = torch.rand(8, 1, 28, 28)
    alone = [fictive_sample(vae.encoder, x, 0.1, 5, generator=_generator(i)) for i in range(4)]
    together: dict[int, list[Tensor]] = {i: [] for i in range(4)}

    def attack(i: int) -> None:
        together[i] = [fictive_sample(vae.encoder, x, 0.1, 5, generator=_generator(i)) for _ in range(10)]

    threads = [threading.Thread(target=attack, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found, alone[i]) for i in range(4) for found in together[i])
    assert all(isinstance(m.weight, nn.Parameter) for m in vae.encoder.modules() if hasattr(m, "weight"))
    assert vae.encode(x).mean.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast.*is deprecated")  # torch 2.4's checkpointing, of itself
def test_wrapped_encoders_are_attacked_as_the_plain_one() -> None:
    """Data parallelism, activation checkpointing, a bound method, a lambda: the same x' from the same start."""
    vae = build_vae("mlp", 1, 8)
    plain = Net(nn.Linear(784, 784))
    checkpointed = Checkpointed(plain.first, plain.head)
    expected = fictive_sample(plain, X, 0.1, 3, generator=_generator())
    for wrapped in (checkpointed, nn.DataParallel(plain), lambda x: plain(x), plain.forward):
        assert torch.equal(fictive_sample(wrapped, X, 0.1, 3, generator=_generator()), expected)
    expected = fictive_sample(vae.encoder, X, 0.1, 3, generator=_generator())
    assert torch.equal(fictive_sample(vae.encode, X, 0.1, 3, generator=_generator()), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler, of itself
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_attacked_alike_compiled_or_not(training: bool) -> None:
    torch.manual_seed(0)
    encoder = Net(nn.BatchNorm1d(784)).train(training)
    before = _state(encoder)
    reached = [
        w2_squared(encoder(X), encoder(fictive_sample(net, X, 0.1, 5, generator=_generator(), compiled=compiled)))
        for net, compiled in ((encoder, False), (encoder, True), (torch.compile(encoder), False))
        if not _restore(encoder, before)
    ]
    _restore(encoder, before)
    for other in reached[1:]:
        torch.testing.assert_close(other, reached[0], rtol=1e-2, atol=0)


def _restore(encoder: nn.Module, state: dict[str, Any]) -> None:
    encoder.load_state_dict(state["values"])


def test_an_autocast_around_the_attack_keeps_the_gradients_of_training() -> None:
    """Autocast caches the weights it casts; made without gradient, such a copy would starve the training step."""
    encoder = Net()
    with torch.autocast("cpu", torch.bfloat16):
        x_prime = fictive_sample(encoder, X, 0.1, 2, generator=_generator())
        encoder(x_prime).mean.float().square().sum().backward()
    assert encoder.head.weight.grad is not None
    assert float(encoder.head.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_of_gradients_does_not_matter(mode: Any) -> None:
    vae = build_vae("mlp", 1, 8)
    expected = fictive_sample(vae.encoder, X, 0.1, 3, generator=_generator())
    with mode():
        found = fictive_sample(vae.encoder, X, 0.1, 3, generator=_generator())
        given = fictive_sample(vae.encoder, X + 0, 0.1, 3, q_x=vae.encode(X), generator=_generator())
    assert torch.equal(found, expected)
    assert torch.equal(given, expected)
    assert not found.is_inference()  # it can be trained on


def _head_under_no_grad(encoder: Net) -> Callable[[Tensor], DiagonalGaussian]:
    def encode(x: Tensor) -> DiagonalGaussian:
        with torch.no_grad():
            h = encoder.first(x.flatten(1))
        return DiagonalGaussian(*encoder.head(h).chunk(2, -1))

    return encode


@pytest.mark.parametrize("frozen", [True, False])
def test_an_encoder_that_stops_the_gradient_is_refused(frozen: bool) -> None:
    encoder = Net(nn.Linear(784, 784)).requires_grad_(not frozen)
    with pytest.raises(ValueError, match=r"objective does not depend on x': .* under torch\.no_grad\(\)"):
        fictive_sample(_head_under_no_grad(encoder), X, 0.1, 2)


def test_the_whole_vae_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got the whole VAE; pass vae\.encoder"):
        fictive_sample(build_vae("mlp", 1, 8), X, 0.1, 2)


@pytest.mark.parametrize(
    ("objective", "shape"),
    [
        (lambda x: x.mean(), r"\(\)"),
        (lambda x: x.flatten(1), r"\(8, 784\)"),
        (lambda x: x.sum((1, 2, 3))[:, None], r"\(8, 1\)"),
        (lambda x: x.detach().sum().item(), "float"),
    ],
)
def test_an_objective_gives_each_image_a_value(objective: Callable, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"objective must return one value for each image, shape \(8,\), got {shape}"):
        pgd(objective, X, 0.1, 2)
