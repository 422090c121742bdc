"""Encoders and decoders of section 7, and the variational autoencoder made of one of each.

Images have shape (B, C, S, S) with pixels in [0, 1], S = 28 unless asked for otherwise; latents (B, latent_dim).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from se_core._batch_last import Layers
from se_core.errors import InvalidValueError
from se_core.gaussians import DiagonalGaussian, FullGaussian, Gaussian

Architecture = Literal["mlp", "conv"]
Covariance = Literal["diagonal", "full"]
Scale = Literal["free", "pinned"]
Initialisation = Literal["variance-preserving", "pytorch"]

# An encoder that begins sure of itself lets the decoder see a signal before the KL term puts the latents to sleep.
INITIAL_LOG_VAR = -4.0
WIDTH = 200  # "200 units of ReLU activations at each layer"
SIDE = 28

# The same networks whatever default device and dtype the caller has set.
_CPU: Any = {"device": "cpu", "dtype": torch.float32}


class Encoder(nn.Module):
    """q(Z | X = x): two outputs per latent dimension, the mean and the log-variance."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> DiagonalGaussian:
        """x (B, C, S, S) -> mean and log_var, each (B, latent_dim)."""
        mean, log_var = self.layers(x).chunk(2, dim=-1)
        return DiagonalGaussian(mean, log_var)


class PinnedEncoder(nn.Module):
    """q(Z | X = x) whose means have mean 0 and variance 1 over the data, latent by latent. Ours, beyond the paper.

    W_2 is not scale free: an encoder may pay less for the coupling by shrinking its means instead of smoothing them. An
    affine-free batch norm on the mean closes that way out. While training it uses the statistics of the batch, and
    running ones afterwards. Either way each bound is one of log p(x), for those hold whatever q is: while training, q
    depends on the rest of the batch too.
    """

    def __init__(self, layers: nn.Sequential, latent_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.norm = nn.BatchNorm1d(latent_dim, momentum=0.05, affine=False, **_CPU)

    def forward(self, x: Tensor) -> DiagonalGaussian:
        """x (B, C, S, S) -> mean and log_var, each (B, latent_dim); while training, B >= 2."""
        mean, log_var = self.layers(x).chunk(2, dim=-1)
        return DiagonalGaussian(self.norm(mean), log_var)

    def encode_around(self, x: Tensor) -> tuple[DiagonalGaussian, Callable[[Tensor], DiagonalGaussian]]:
        """q(Z | x), and the encoder of neighbours of x, which measures them by the statistics of x."""
        if not self.training:
            return self(x), self
        if len(x) < 2:
            raise InvalidValueError(
                f"x must hold at least two images, of which a pinned encoder in training takes its statistics, got "
                f"{len(x)}; leave out the last, incomplete batch, or call .eval()"
            )
        mean, log_var = self.layers(x).chunk(2, dim=-1)
        variance, centre = torch.var_mean(mean, 0, unbiased=False)
        neighbours = _NeighbourEncoder(self.layers, centre, (variance + self.norm.eps).rsqrt())
        return DiagonalGaussian(self.norm(mean), log_var), neighbours


class _NeighbourEncoder(nn.Module):
    """A pinned encoder with the statistics of one batch; a module, so that an attack can find its buffers."""

    def __init__(self, layers: nn.Sequential, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.layers, self.centre, self.scale = layers, centre, scale

    def forward(self, x: Tensor) -> DiagonalGaussian:
        mean, log_var = self.layers(x).chunk(2, dim=-1)
        return DiagonalGaussian((mean - self.centre) * self.scale, log_var)


class FullEncoder(nn.Module):
    """q(Z | X = x) with a full covariance L L^T: the mean, the logarithm of L's squared diagonal, and L below it.

    The matrix Riccati equation (eq. 18) is what the entropic coupling of two of its outputs solves.
    """

    def __init__(self, layers: nn.Sequential, latent_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> FullGaussian:
        """x (B, C, S, S) -> mean (B, latent_dim) and lower triangular scale (B, latent_dim, latent_dim)."""
        d = self.latent_dim
        mean, log_var, below = self.layers(x).split([d, d, d * (d - 1) // 2], dim=-1)
        row, column = torch.tril_indices(d, d, -1, device=x.device)
        lower = torch.zeros(*mean.shape, d, dtype=mean.dtype, device=mean.device)
        # Scaled so that the rows of L have the same length whatever the dimension.
        lower = lower.index_put((torch.arange(len(mean), device=x.device)[:, None], row, column), below / math.sqrt(d))
        return FullGaussian(mean, lower + torch.diag_embed(torch.exp(log_var / 2)))


class Decoder(nn.Module):
    """g(z; theta), the mean of p(X | Z = z); the sigmoid keeps it in [0, 1]."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> Tensor:
        """z (B, latent_dim) -> images (B, C, S, S) in [0, 1]."""
        return torch.sigmoid(self.layers(z))


def _linear_stack(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, **_CPU), nn.ReLU()]
    return layers[:-1]


def mlp_encoder(channels: int, outputs: int, side: int = SIDE) -> nn.Sequential:
    """The paper's MLP: four layers of 200 ReLU units, then the outputs (2 x latent_dim for diagonal covariances)."""
    return nn.Sequential(nn.Flatten(), *_linear_stack([channels * side**2] + 4 * [WIDTH] + [outputs]))


def mlp_decoder(channels: int, latent_dim: int, side: int = SIDE) -> Decoder:
    """The paper's MLP the other way round."""
    stack = _linear_stack([latent_dim] + 4 * [WIDTH] + [channels * side**2])
    return Decoder(nn.Sequential(*stack, nn.Unflatten(1, (channels, side, side))))


def conv_encoder(channels: int, outputs: int, side: int = SIDE) -> nn.Sequential:
    """Four strided convolutions, 28 -> 14 -> 7 -> 4 -> 2 pixels (64 -> 32 -> 16 -> 8 -> 4), and a linear layer.

    The paper names a 4 layer ConvNET and does not lay it out. This layout is ours: the resolution halves at each
    layer while the channels double, which one CPU core still trains at four times the cost of the MLP.
    """
    if side % 4:  # the decoder doubles twice
        raise InvalidValueError(
            f"image_size={side} must be a multiple of 4 for architecture='conv', such as {4 * math.ceil(side / 4)}; an "
            "'mlp' takes any"
        )
    layers: list[nn.Module] = []
    widths = [channels, 8, 16, 32, 64]
    for fan_in, fan_out, kernel in zip(widths[:-1], widths[1:], (4, 4, 3, 3), strict=True):
        layers += [nn.Conv2d(fan_in, fan_out, kernel, stride=2, padding=1, **_CPU), nn.ReLU()]
    return Layers(*layers, nn.Flatten(), nn.Linear(64 * math.ceil(side / 16) ** 2, outputs, **_CPU))


def conv_decoder(channels: int, latent_dim: int, side: int = SIDE) -> Decoder:
    """Two linear layers and two transposed convolutions, 7 -> 14 -> 28 pixels (our layout, see `conv_encoder`)."""
    quarter = side // 4
    return Decoder(
        nn.Sequential(
            nn.Linear(latent_dim, WIDTH, **_CPU),
            nn.ReLU(),
            nn.Linear(WIDTH, 16 * quarter**2, **_CPU),
            nn.ReLU(),
            nn.Unflatten(1, (16, quarter, quarter)),
            nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, **_CPU),
            nn.ReLU(),
            nn.ConvTranspose2d(16, channels, 4, stride=2, padding=1, **_CPU),
        )
    )


def _fan_in(layer: nn.Module) -> int:
    if isinstance(layer, nn.ConvTranspose2d):
        # Each output pixel receives kernel / stride taps in each direction.
        taps = math.prod(layer.kernel_size) // math.prod(layer.stride)
        return layer.in_channels * taps
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.weight[0].numel()


@torch.no_grad()
def variance_preserving_(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw each weight from N(0, gain / fan_in): gain 2 below a ReLU, 1 for the last layer; biases are zero.

    PyTorch's default for `nn.Linear` is uniform with variance 1 / (3 fan_in), so five ReLU layers shrink the signal
    about a hundredfold and few latents ever wake (He et al., 2015).
    """
    weighted = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    for layer in weighted:
        gain = 1.0 if layer is weighted[-1] else 2.0
        layer.weight.normal_(0.0, math.sqrt(gain / _fan_in(layer)), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()


class VAE(nn.Module):
    """A pair (q(Z | X; eta), p(X | Z; theta)).

    Any two modules serve, provided that `encoder(x)` returns a Gaussian of `se_core.gaussians` and `decoder(z)` an
    image in [0, 1].
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim

    def encode(self, x: Tensor) -> Gaussian:
        """q(Z | X = x) for images x (B, C, S, S)."""
        return self.encoder(x)

    def encode_around(self, x: Tensor) -> tuple[Gaussian, Callable[[Tensor], Gaussian]]:
        """q(Z | X = x), and the encoder to use for neighbours x' of x: another one only if the scale is pinned.

        A training step that serves every encoder:

            q, encode = vae.encode_around(x)
            x_prime = fictive_sample(encode, x, radius, steps, q_x=q)
            bound = se_elbo(x, q, encode(x_prime), vae.decode, noise_variance, gamma)
        """
        around = getattr(self.encoder, "encode_around", None)  # of a wrapped encoder, or of somebody's own, too
        return around(x) if around else (self.encoder(x), self.encoder)

    def decode(self, z: Tensor) -> Tensor:
        """g(z; theta), the mean image (B, C, S, S) of p(X | Z = z)."""
        return self.decoder(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n mean images g(z) with z drawn from the prior N(0, I): (n, C, 28, 28)."""
        weight = next(self.parameters())
        z = torch.randn(n, self.latent_dim, generator=generator, device=weight.device, dtype=weight.dtype)
        return self.decode(z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """g(E[Z | x]): the image decoded from the posterior mean, the shape of x."""
        return self.decode(self.encode(x).mean)


def _head(layers: nn.Sequential, latent_dim: int, covariance: Covariance, scale: Scale) -> nn.Module:
    if covariance == "full":
        return FullEncoder(layers, latent_dim)
    return PinnedEncoder(layers, latent_dim) if scale == "pinned" else Encoder(layers)


def build_vae(
    architecture: Architecture,
    channels: int,
    latent_dim: int,
    covariance: Covariance = "diagonal",
    initialisation: Initialisation = "variance-preserving",
    seed: int = 0,
    scale: Scale = "free",
    image_size: int = SIDE,
) -> VAE:
    """The encoder and decoder of section 7, float32 on the CPU, initialised from `seed` alone.

    The global generators are left as they were.

    architecture: "mlp" (as in the paper) or "conv" (our layout); covariance of q(Z | X): "diagonal" (section 6) or
    "full"; initialisation: "variance-preserving", with log-variances that begin around -4, or "pytorch"; scale of the
    means: "free" (as in the paper) or "pinned" (`PinnedEncoder`; train it with `VAE.encode_around`); image_size: the
    side of the square images, for "conv" a multiple of 4. Raises InvalidValueError for an unknown name, for fewer than
    one channel, latent or pixel, and for a size that "conv" cannot halve twice.
    """
    for name, value, choices in (
        ("architecture", architecture, Architecture),
        ("covariance", covariance, Covariance),
        ("initialisation", initialisation, Initialisation),
        ("scale", scale, Scale),
    ):
        if value not in get_args(choices):
            raise InvalidValueError(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(choices))}")
    for name, count in (("channels", channels), ("latent_dim", latent_dim), ("image_size", image_size)):
        if not count >= 1:
            raise InvalidValueError(f"{name}={count} must be at least 1")
    if (scale, covariance) == ("pinned", "full"):
        raise InvalidValueError("scale='pinned' needs covariance='diagonal'")
    make_encoder, make_decoder = (mlp_encoder, mlp_decoder) if architecture == "mlp" else (conv_encoder, conv_decoder)
    outputs = 2 * latent_dim + (latent_dim * (latent_dim - 1) // 2 if covariance == "full" else 0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU; torch.manual_seed would seed those of every GPU, too
        layers = make_encoder(channels, outputs, image_size)
        decoder = make_decoder(channels, latent_dim, image_size)
        vae = VAE(_head(layers, latent_dim, covariance, scale), decoder, latent_dim)
        if initialisation == "variance-preserving":
            variance_preserving_(vae.encoder)
            variance_preserving_(vae.decoder)
            with torch.no_grad():
                head = layers[-1]
                assert isinstance(head, nn.Linear)
                head.bias[latent_dim : 2 * latent_dim] = INITIAL_LOG_VAR
    return vae
