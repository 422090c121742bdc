"""The networks of section 7: their sizes, ranges and initialisation."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from se_core.attacks import fictive_sample
from se_core.networks import Architecture, PinnedEncoder, build_vae

IMAGES = {1: torch.rand(6, 1, 28, 28), 3: torch.rand(6, 3, 28, 28)}


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("latent_dim", [32, 64, 128])
def test_shapes_and_ranges(architecture: str, channels: int, latent_dim: int) -> None:
    vae = build_vae(architecture, channels, latent_dim)
    q = vae.encode(IMAGES[channels])
    assert q.mean.shape == q.log_var.shape == (6, latent_dim)
    x = vae.decode(100 * torch.randn(6, latent_dim))
    assert x.shape == (6, channels, 28, 28)
    assert float(x.detach().min()) >= 0
    assert float(x.detach().max()) <= 1
    # "latent space dimensions of 32, 64 and 128, corresponding to an output sizes of an encoder with 64, 128 and 256"
    assert [m for m in vae.encoder.modules() if isinstance(m, nn.Linear)][-1].out_features == 2 * latent_dim


@pytest.mark.parametrize(
    ("architecture", "size"), [*[(a, s) for a in get_args(Architecture) for s in (8, 28, 32, 64)], ("mlp", 5)]
)
def test_networks_are_built_for_the_size_of_the_images(architecture: str, size: int) -> None:
    """And see all of them: each pixel moves the representation, and each is drawn."""
    vae = build_vae(architecture, 3, 4, image_size=size)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    vae.encode(x).mean.sum().backward()
    assert float((x.grad != 0).float().mean()) > 0.99
    image = vae.decode(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    assert image.shape == (50, 3, size, size)
    assert float(image.detach().std(0).min()) > 0


def test_sizes_that_no_network_is_built_for_are_refused() -> None:
    with pytest.raises(
        ValueError, match="image_size=30 must be a multiple of 4 for architecture='conv', such as 32; an"
    ):
        build_vae("conv", 1, 4, image_size=30)
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        build_vae("mlp", 1, 4, image_size=0)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_full_covariances_are_square_roots_of_full_rank(architecture: str) -> None:
    """L is lower triangular with a positive diagonal, so L L^T is a covariance, with correlations worth the name."""
    q = build_vae(architecture, 3, 16, covariance="full").encode(IMAGES[3])
    assert q.mean.shape == (6, 16)
    assert q.scale.shape == (6, 16, 16)
    assert torch.equal(q.scale, q.scale.tril())
    assert bool((q.scale.diagonal(dim1=-2, dim2=-1) > 0).all())
    below = q.scale.tril(-1)
    # Each entry below the diagonal is an output of its own: none is lost, none is used twice.
    below = q.scale.detach()[0].tril(-1)
    assert below[below != 0].unique().numel() == 16 * 15 // 2


def test_the_mlp_has_four_layers_of_200_relu_units_each_way() -> None:
    vae = build_vae("mlp", 1, 32)
    for network in (vae.encoder, vae.decoder):
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.ReLU)]
        assert [type(m) for m in layers] == [nn.Linear, nn.ReLU] * 4 + [nn.Linear]
        assert [m.out_features for m in layers if isinstance(m, nn.Linear)][:-1] == [200] * 4


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_encoder_ignores_everything_but_its_own_image(architecture: str) -> None:
    """No batch statistics: the representation of an image does not depend on its neighbours."""
    vae = build_vae(architecture, 1, 32)
    together, alone = vae.encode(IMAGES[1]).mean, vae.encode(IMAGES[1][2:3]).mean
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-6)


def _second_moments(network: nn.Module, x: torch.Tensor) -> list[float]:
    """Mean square of the signal after each weighted layer."""
    moments = []
    handles = [
        m.register_forward_hook(lambda _m, _i, output: moments.append(float(output.detach().square().mean())))
        for m in network.modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return moments


@pytest.mark.parametrize("latent_dim", [64])
def test_variance_preserving_initialisation_keeps_the_signal(latent_dim: int) -> None:
    """He et al. (2015): below a ReLU the mean square doubles that of the input and stays there, layer after layer."""
    torch.manual_seed(0)
    z = torch.randn(500, latent_dim)
    moments = [_second_moments(build_vae("mlp", 1, latent_dim, seed=s).decoder.layers, z) for s in range(8)]
    for layer, moment in enumerate(torch.tensor(moments).mean(0).tolist()):
        expected = 1.0 if layer == 4 else 2.0
        assert moment == pytest.approx(expected, rel=0.2), f"layer {layer}"


def test_pytorch_initialisation_is_kept_and_shrinks_the_signal() -> None:
    """The measured reason for not using it: uniform weights of variance 1 / (3 fan_in) lose a factor 6 a layer."""
    z = torch.randn(500, 64)
    ours = _second_moments(build_vae("mlp", 1, 64).decoder.layers, z)[-1]
    theirs = _second_moments(build_vae("mlp", 1, 64, initialisation="pytorch").decoder.layers, z)[-1]
    assert ours / theirs > 50
    first = next(
        m for m in build_vae("mlp", 1, 64, initialisation="pytorch").encoder.modules() if isinstance(m, nn.Linear)
    )
    assert float(first.weight.detach().abs().max()) <= 1 / math.sqrt(784)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_latents_begin_awake(architecture: str) -> None:
    """Log-variances begin around -4: the decoder sees the means through noise of an eighth of the prior's scale."""
    for covariance in ("diagonal", "full"):
        q = build_vae(architecture, 1, 64, covariance).encode(IMAGES[1])
        variances = (
            q.covariance.diagonal(dim1=-2, dim2=-1)
            if covariance == "diagonal"
            else q.scale.diagonal(dim1=-2, dim2=-1).square()
        )
        assert float(variances.detach().log().mean()) == pytest.approx(-4, abs=0.5)
    untouched = build_vae(architecture, 1, 64, initialisation="pytorch").encode(IMAGES[1])
    assert float(untouched.log_var.detach().mean()) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_transposed_convolutions_preserve_variance_too(architecture: str) -> None:
    z = torch.randn(200, 64)
    moments = [_second_moments(build_vae(architecture, 3, 64, seed=s).decoder.layers, z)[-1] for s in range(8)]
    assert 0.5 < sum(moments) / 8 < 2


def test_the_seed_decides_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    a, b, c = (build_vae("conv", 3, 32, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["encoder.layers.0.weight"], c["encoder.layers.0.weight"])


def test_sample_and_reconstruct() -> None:
    vae = build_vae("mlp", 1, 32)
    draw = [vae.sample(5, torch.Generator().manual_seed(s)).detach() for s in (0, 0, 1)]
    assert draw[0].shape == (5, 1, 28, 28)
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    # The prior has unit scale: a decoder that returns z itself shows what was drawn.
    vae.decoder = nn.Identity()
    z = vae.sample(20_000, torch.Generator().manual_seed(0))
    assert float(z.mean()) == pytest.approx(0, abs=5 / math.sqrt(z.numel()))
    assert float(z.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / z.numel()))
    assert torch.equal(vae.reconstruct(IMAGES[1]), vae.encode(IMAGES[1]).mean)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("cnn", 1, 8), "cnn"), (("mlp", 1, 8, "lower"), "lower"), (("mlp", 1, 8, "full", "he"), "he")],
)
def test_unknown_names_are_refused_with_the_choices(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=rf"'{named}' is unknown; choose one of"):
        build_vae(*arguments)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_networks_do_not_depend_on_global_defaults(architecture: str) -> None:
    expected = build_vae(architecture, 1, 8, seed=3).state_dict()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")  # stands for a GPU
        found = build_vae(architecture, 1, 8, seed=3)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for name, value in found.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])
    assert found.encode(IMAGES[1]).mean.shape == (6, 8)


def test_no_generator_of_a_gpu_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    build_vae("mlp", 1, 4, seed=7)
    assert not seeded


@pytest.mark.parametrize(("arguments", "named"), [(("mlp", 0, 8), "channels=0"), (("conv", 1, 0), "latent_dim=0")])
def test_sizes_are_at_least_one(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be at least 1"):
        build_vae(*arguments)


# --- the pinned scale -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_pinned_means_have_the_scale_of_the_prior_and_log_variances_are_free(architecture: str) -> None:
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    vae, free = build_vae(architecture, 1, 8, scale="pinned"), build_vae(architecture, 1, 8)
    q = vae.train().encode(x)
    torch.testing.assert_close(q.mean.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.mean.var(0, unbiased=False), torch.ones(8), rtol=5e-3, atol=0)  # less its epsilon
    assert torch.equal(q.log_var, free.encode(x).log_var)


def test_a_pinned_encoder_cannot_shrink() -> None:
    """The last layer scaled by a thousandth: the free means shrink, the pinned ones do not notice."""
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    means = {}
    for scale in ("free", "pinned"):
        vae = build_vae("mlp", 1, 8, scale=scale).train()
        before = vae.encode(x).mean
        with torch.no_grad():
            vae.encoder.layers[-1].weight[:8] *= 0.1
        means[scale] = before.detach(), vae.encode(x).mean.detach()
    torch.testing.assert_close(means["free"][1], 0.1 * means["free"][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(means["pinned"][1], means["pinned"][0], rtol=0.02, atol=1e-3)


def test_neighbours_are_measured_by_the_statistics_of_the_data() -> None:
    """Against torch's own batch norm, given those; a shift of the whole batch is seen, not normalised away."""
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    vae = build_vae("mlp", 1, 8, scale="pinned").train()
    q, encode = vae.encode_around(x)
    assert torch.equal(q.mean, build_vae("mlp", 1, 8, scale="pinned").train().encode(x).mean)
    head, shifted = (vae.encoder.layers(images)[:, :8] for images in (x, (x + 0.1).clamp(0, 1)))
    variance, mean = torch.var_mean(head, 0, unbiased=False)
    expected = nn.functional.batch_norm(shifted, mean.detach(), variance.detach())
    torch.testing.assert_close(encode((x + 0.1).clamp(0, 1)).mean, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encode(x).mean, q.mean, rtol=1e-4, atol=1e-5)
    assert float((encode((x + 0.1).clamp(0, 1)).mean - q.mean).detach().abs().mean()) > 0.05


def test_running_statistics_see_each_datum_once_and_no_neighbour() -> None:
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    vae = build_vae("mlp", 1, 8, scale="pinned").train()
    _, encode = vae.encode_around(x)
    head = vae.encoder.layers(x)[:, :8]
    torch.testing.assert_close(vae.encoder.norm.running_mean, 0.05 * head.mean(0).detach(), rtol=1e-4, atol=1e-6)
    before = {name: b.clone() for name, b in vae.encoder.named_buffers()}
    fictive_sample(encode, x, 0.1, 2)
    encode(x)
    assert all(torch.equal(b, before[name]) for name, b in vae.encoder.named_buffers())
    vae.eval()
    q, encode = vae.encode_around(x)
    assert torch.equal(encode(x).mean, q.mean)
    alone = vae.encode(x[3:4]).mean
    torch.testing.assert_close(alone, q.mean[3:4], rtol=1e-5, atol=1e-6)  # once trained, its neighbours do not matter


def test_around_a_free_encoder_is_the_encoder() -> None:
    vae = build_vae("mlp", 1, 8)
    q, encode = vae.encode_around(IMAGES[1])
    assert encode is vae.encoder
    assert torch.equal(q.mean, vae.encode(IMAGES[1]).mean)


def test_a_pinned_scale_is_of_diagonal_covariances() -> None:
    with pytest.raises(ValueError, match="scale='pinned' needs covariance='diagonal'"):
        build_vae("mlp", 1, 8, "full", scale="pinned")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler, of itself
def test_an_attack_leaves_the_buffers_of_a_pinned_encoder_s_layers_alone() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 16))
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    encoder = PinnedEncoder(layers, 8).train()
    q, encode = encoder.encode_around(x)
    before = {name: b.clone() for name, b in encoder.named_buffers()}
    for compiled in (False, True):
        fictive_sample(encode, x, 0.1, 3, q_x=q, compiled=compiled)
        assert all(torch.equal(b, before[name]) for name, b in encoder.named_buffers())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_wrapped_pinned_encoder_is_still_one() -> None:
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    vae, wrapped = (build_vae("mlp", 1, 8, scale="pinned").train() for _ in range(2))
    wrapped.encoder = torch.compile(wrapped.encoder, backend="eager")
    shifted = (x + 0.1).clamp(0, 1)
    assert torch.equal(wrapped.encode_around(x)[1](shifted).mean, vae.encode_around(x)[1](shifted).mean)


def test_a_batch_of_one_has_no_statistics() -> None:
    vae = build_vae("mlp", 1, 8, scale="pinned")
    with pytest.raises(ValueError, match=r"at least two images, .* got 1; leave out the last, incomplete batch"):
        vae.train().encode_around(IMAGES[1][:1])
    assert vae.eval().encode_around(IMAGES[1][:1])[0].mean.shape == (1, 8)
