"""The same training step in JAX: the same networks, numbers and operations, one `jax.jit` around all of it.

The sums and products of `se_core` in its dtype, float32; images are gathered, noise is drawn and Adam is applied inside
of the compiled function, which leaves Python with one call a step.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from torch import nn

from se_core.datasets import DigitImages
from se_core.lab.config import RunConfig
from se_core.networks import VAE

Layers = list[tuple[jax.Array, jax.Array]]
Gaussian = tuple[jax.Array, jax.Array]  # mean and log-variance, (B, latent_dim) each


def step(config: RunConfig, vae: VAE, data: DigitImages) -> Callable[[], None]:
    """One SE step with a fresh start and L = config.attack_steps, from the parameters of an MLP."""
    pixels = jnp.asarray(data.pixels.flatten(1)[data.source].numpy())
    parameters = _parameters(vae.encoder), _parameters(vae.decoder)
    zeros = [jax.tree.map(jnp.zeros_like, parameters) for _ in "mv"]
    state: Any = (parameters, *zeros, jnp.zeros(()), jax.random.key(config.seed))
    compiled = jax.jit(functools.partial(_step, config), donate_argnums=0)

    def run() -> None:
        nonlocal state
        state, value = compiled(state, pixels)
        value.block_until_ready()

    return run


def _parameters(network: nn.Module) -> Layers:
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return [(jnp.asarray(m.weight.detach().T.numpy()), jnp.asarray(m.bias.detach().numpy())) for m in layers]


def _step(config: RunConfig, state: Any, pixels: jax.Array) -> tuple[Any, jax.Array]:
    parameters, first, second, count, key = state
    key, *keys = jax.random.split(key, 4)
    x = pixels[jax.random.randint(keys[0], (config.batch_size,), 0, len(pixels))] / jnp.float32(255)
    x_prime = _fictive_sample(config, parameters[0], x, keys[1])
    value, gradient = jax.value_and_grad(_negative_bound, 1)(config, parameters, x, x_prime, keys[2])
    count += 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)

    def adam(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return p - config.learning_rate * m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

    return (jax.tree.map(adam, parameters, first, second), first, second, count, key), value


def _network(layers: Layers, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def _encode(layers: Layers, x: jax.Array) -> Gaussian:
    mean, log_var = jnp.split(_network(layers, x), 2, axis=-1)
    return mean, log_var


def _fictive_sample(config: RunConfig, encoder: Layers, x: jax.Array, key: jax.Array) -> jax.Array:
    radius, steps = config.radius, config.attack_steps
    low, high = jnp.maximum(x - radius, 0), jnp.minimum(x + radius, 1)
    target = _encode(encoder, x)
    gradient = jax.grad(lambda x_prime: _w2_squared(target, _encode(encoder, x_prime)).sum())

    def ascend(_: int, x_prime: jax.Array) -> jax.Array:
        return jnp.clip(x_prime + 2.5 * radius / steps * jnp.sign(gradient(x_prime)), low, high)

    start = jnp.clip(x + radius * jax.random.uniform(key, x.shape, minval=-1, maxval=1), 0, 1)
    return jax.lax.fori_loop(0, steps, ascend, start)


def _negative_bound(
    config: RunConfig, parameters: tuple[Layers, Layers], x: jax.Array, x_prime: jax.Array, key: jax.Array
) -> jax.Array:
    encoder, decoder = parameters
    a, b = _encode(encoder, x), _encode(encoder, x_prime)
    z = a[0] + jnp.exp(a[1] / 2) * jax.random.normal(key, a[0].shape)
    squares = jnp.square(x - jax.nn.sigmoid(_network(decoder, z))).sum(-1)
    v, gamma = config.noise_variance, config.gamma
    log_likelihood = -(squares / v + x.shape[-1] * math.log(2 * math.pi * v)) / 2
    cost, information = _transport_terms(a, b, gamma)
    return -(log_likelihood - _kl_divergence(a) - _kl_divergence(b) - information - gamma / 2 * cost).mean()


def _kl_divergence(q: Gaussian) -> jax.Array:
    mean, log_var = q
    return (jnp.square(mean) + jnp.expm1(log_var) - log_var).sum(-1) / 2


def _w2_squared(a: Gaussian, b: Gaussian) -> jax.Array:
    spread = 2 * jnp.exp((a[1] + b[1]) / 4) * jnp.sinh((a[1] - b[1]) / 4)
    return (jnp.square(a[0] - b[0]) + jnp.square(spread)).sum(-1)


def _transport_terms(a: Gaussian, b: Gaussian, gamma: float) -> tuple[jax.Array, jax.Array]:
    """W^2_{2,gamma} and the mutual information, as `se_core.transport._by_coordinate` puts them."""
    log_s = (a[1] + b[1]) / 2
    log_c = jnp.minimum(jax.lax.stop_gradient(log_s), -math.log(2 * gamma))
    c = jnp.exp(log_c)
    x, y = c * 2 * gamma, jnp.exp(log_c - log_s)
    u = jnp.hypot(x, y)
    rho = x / (y + u)
    cost = _w2_squared(a, b) + (2 * c * (1 + rho) / (x + u)).sum(-1)
    return cost, jnp.log1p(gamma * rho * jnp.exp(log_s)).sum(-1) / 2
