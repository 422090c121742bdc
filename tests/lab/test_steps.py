"""One step of each method: what it maximises, against the same written by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from se_core.datasets import load
from se_core.lab import steps
from se_core.lab.runs import networks
from se_core.lab.steps import derived_generator, make_optimiser, training_step
from se_core.networks import build_vae
from se_core.transport import entropic_w2_squared


def test_one_step_is_adam_on_the_negative_bound(tiny_config: Any) -> None:
    """From the first moments: Adam's first step moves each weight by the learning rate against its gradient's sign."""
    config = tiny_config(method="vae", learning_rate=1e-3)
    vae = build_vae("mlp", 1, 4)
    x = load("mnist", "train").images(torch.arange(16))
    reference = build_vae("mlp", 1, 4)
    terms = steps.bound(config, reference, x, derived_generator("cpu", 0))
    (-terms.value.mean()).backward()
    means = training_step(config, vae, make_optimiser(config, vae), x, derived_generator("cpu", 0))
    for old, new in zip(reference.parameters(), vae.parameters(), strict=True):
        assert old.grad is not None
        moves = old.grad.abs() > 1e-4  # Adam's epsilon is felt below
        expected = old.detach() - 1e-3 * old.grad.sign()
        torch.testing.assert_close(new.detach()[moves], expected[moves], rtol=0, atol=1e-6)
    torch.testing.assert_close(means, torch.stack([t.detach().mean() for t in terms]))


def test_a_classifier_maximises_the_likelihood_of_the_labels_that_its_adversary_leaves(tiny_config: Any) -> None:
    """A head of zeros says log 1/10 of every label; the adversary of one that knows something leaves it less."""
    x, labels = load("mnist", "train").images(torch.arange(64)), load("mnist", "train").labels("digit")[:64]
    values = {}
    for radius in (0.0, 0.1):
        config = tiny_config(method="classifier", radius=radius, attack_steps=5, learning_rate=3e-3)
        vae = networks(config)
        terms = steps.label_likelihood(config, vae, x, labels, derived_generator("cpu", 0))
        torch.testing.assert_close(terms.value, torch.full((64,), -math.log(10)))
        optimiser = make_optimiser(config, vae)
        for step in range(40):
            training_step(config, vae, optimiser, x, derived_generator("cpu", step), None, labels)
        harder = replace(config, radius=0.1)
        values[radius] = [
            steps.label_likelihood(c, vae, x, labels, derived_generator("cpu", 9)).value.mean().item()
            for c in (replace(config, radius=0.0), harder)
        ]
        torch.testing.assert_close(
            values[radius][0],
            -torch.nn.functional.cross_entropy(vae.decode(vae.encode(x).mean), labels).item(),
            rtol=1e-6,
            atol=0,
        )
    assert values[0.0][0] > values[0.0][1]
    assert values[0.1][1] > values[0.0][1]  # trained against the adversary, it stands more of it


def test_beta_weighs_the_kl_term_alone(tiny_config: Any) -> None:
    x, vae = load("mnist", "train").images(torch.arange(8)), build_vae("mlp", 1, 4)
    one, two = (
        steps.bound(tiny_config(method="vae", beta=beta), vae, x, derived_generator("cpu", 0)) for beta in (1.0, 2.0)
    )
    torch.testing.assert_close(two.value, one.value - one.kl)
    assert torch.equal(two.log_likelihood, one.log_likelihood)


def test_without_steps_the_neighbour_is_anywhere_in_the_ball(tiny_config: Any) -> None:
    """The distance of the representations that a random neighbour has, and not the adversary's."""
    x, vae = load("mnist", "train").images(torch.arange(200)), build_vae("mlp", 1, 4)
    noise = 0.2 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 1)
    config = tiny_config(attack_steps=0, radius=0.2, gamma=10.0)
    random = steps.bound(config, vae, x, derived_generator("cpu", 0)).transport.mean()
    expected = 5.0 * entropic_w2_squared(vae.encode(x), vae.encode((x + noise).clamp(0, 1)), 10.0).mean()
    torch.testing.assert_close(random, expected, rtol=0.03, atol=0)
    attacked = steps.bound(replace(config, attack_steps=5), vae, x, derived_generator("cpu", 0)).transport.mean()
    assert attacked.item() > 2 * random.item()


@pytest.mark.parametrize("fields", [{"method": "vae"}, {"prior": "paired"}, {"scale": "pinned", "gamma": 10.0}])
def test_compiled_it_is_the_same_objective(fields: dict, tiny_config: Any) -> None:
    """The same draws: each term and each gradient, to the rounding of float32."""
    x, outcomes = load("mnist", "train").images(torch.arange(16)), []
    for compiled in (False, True):
        config = tiny_config(compile=compiled, **fields)
        vae = build_vae("mlp", 1, 4, scale=config.scale)
        terms = steps.bound(config, vae, x, derived_generator("cpu", 0))
        (-terms.value.mean()).backward()
        outcomes.append((*terms, *(p.grad for p in vae.parameters())))
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.detach().abs().max()))
