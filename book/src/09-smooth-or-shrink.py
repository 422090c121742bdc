# %% [markdown]
r"""
# Does it smooth or does it shrink?

$W_2$ has a unit: the unit of the latent. An encoder that is asked to keep $q(Z \mid x)$ and $q(Z \mid x')$ close can
learn to be smooth, or it can make its whole latent smaller. The second is cheap, and worth nothing. This chapter
measures how much of each happens, and closes the way out.
"""

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from se_core import DiagonalGaussian, build_vae, elbo, fictive_sample, load, pgd, se_elbo
from se_core.lab.evaluation import fit_probe
from se_core.lab.figures import METHODS, STYLE
from se_core.losses import margin
from se_core.transport import entropic_w2_squared, mutual_information, w2_squared

torch.set_num_threads(1)
plt.rcParams.update(STYLE | {"figure.dpi": 120, "figure.figsize": (6.4, 2.8)})
ITERATIONS = {"tiny": 350, "small": 4_000, "paper": 40_000}[PROFILE]
ATTACK_STEPS, RADIUS, V = 3, 0.2, 0.1

# %% tags=["hide-input"] mystnb={"image": {"alt": "What the smooth encoder pays for one latent, as a function of the factor by which it shrinks, for gamma 1, 10 and 100. The minimum moves to smaller scales as gamma grows."}}
scale = torch.logspace(-1.7, 0.3, 200, dtype=torch.float64)
shift, sigma = 1.0, 0.3  # of one latent: the shift of its mean under attack, its posterior width
figure, axes = plt.subplots(layout="constrained")
for gamma, colour in ((1.0, "#56B4E9"), (10.0, "#0072B2"), (100.0, "k")):
    a = DiagonalGaussian(0 * scale[:, None], 2 * (sigma * scale[:, None]).log())
    b = DiagonalGaussian(shift * scale[:, None], a.log_var)
    # Relative to scale 1, the latent's second moment there being 1.
    twice_kl = scale.square() - 1 - 2 * scale.log()
    price = twice_kl + mutual_information(a, b, gamma) + gamma / 2 * entropic_w2_squared(a, b, gamma)
    best = price.argmin()
    axes.loglog(scale, price, color=colour, label=rf"$\gamma = {gamma:g}$")
    axes.plot(scale[best], price[best], "o", color=colour)
axes.set(xlabel="scale of the latent, relative to the prior's", ylabel="price (nats)", ylim=(0.2, 40))
axes.legend()
plt.show()

# %% [markdown]
r"""
The curve is the price of one latent whose mean an attack shifts by one unit, the prior's standard deviation, if encoder and
decoder agree to shrink it. Nothing about the encoder's smoothness changes along the curve. The larger $\gamma$, the smaller the best
latent.

## A shrunken encoder at $\gamma$ is the same encoder at $\gamma s^2$

Multiply means and standard deviations by $s$, and let the decoder multiply by $1/s$. The likelihood does not change. The
canonical correlations of the plan depend on $\gamma s_k$ alone, and $s_k = \sigma_a^k \sigma_b^k$ carries $s^2$. So

$$
\tfrac\gamma2 W^2_{2,\gamma}(s a, s b) = \tfrac{\gamma s^2}{2} W^2_{2, \gamma s^2}(a, b) , \qquad
I_\gamma(s a, s b) = I_{\gamma s^2}(a, b) :
$$

the shrunken encoder has talked $\gamma$ down. What it pays is in the two divergences from the prior: at most
$2 \log \frac1s$ nats for each latent, a logarithm against a square.
"""

# %%
generator = torch.Generator().manual_seed(0)
a, b = (
    DiagonalGaussian(*torch.randn(2, 100, 8, generator=generator, dtype=torch.float64))
    for _ in range(2)
)
s, gamma = 0.3, 5.0


def shrunk(q: DiagonalGaussian) -> DiagonalGaussian:
    return DiagonalGaussian(s * q.mean, q.log_var + 2 * math.log(s))


coupling_cost = gamma / 2 * entropic_w2_squared(shrunk(a), shrunk(b), gamma)
torch.testing.assert_close(coupling_cost, gamma * s**2 / 2 * entropic_w2_squared(a, b, gamma * s**2))
torch.testing.assert_close(
    mutual_information(shrunk(a), shrunk(b), gamma), mutual_information(a, b, gamma * s**2)
)

# %% [markdown]
r"""
## A measure that shrinking cannot fool

Divide by the scale: the share of the latent's variance that the attack moves,

$$
\frac{\big\langle W_2^2\big(q(Z \mid x), q(Z \mid x')\big) \big\rangle}{\operatorname{Tr} \operatorname{Cov}\, \mu(X)} .
$$

It is unchanged when the latent is rescaled. Two images are $2 \operatorname{Tr} \operatorname{Cov} \mu$ apart in mean square, so
a share above 2 means that the attack moves an image farther than another image is away.

## The way out, and how to close it

We train at several $\gamma$, once as the paper does and once with the scale *pinned*: each latent's mean is
standardised by its mean and variance over the batch, like a batch norm without parameters. The bound holds for any encoder, so this is a choice of encoder and nothing else.
"""

# %%
digits, test = load("mnist", "train").to(DEVICE), load("mnist", "test").to(DEVICE)


class Pinned(nn.Module):
    """An encoder whose means have mean 0 and variance 1 over the data that it was last shown."""

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("centre", torch.zeros(latent_dim))
        self.register_buffer("spread", torch.ones(latent_dim))

    def standardise_over(self, x: torch.Tensor) -> None:
        means = self.encoder(x).mean
        self.centre, self.spread = means.mean(0), means.std(0)  # with their gradients

    def forward(self, x: torch.Tensor) -> DiagonalGaussian:
        q = self.encoder(x)
        return DiagonalGaussian((q.mean - self.centre) / self.spread, q.log_var)


def train(gamma: float | None, pinned: bool = False):
    generator = torch.Generator(DEVICE).manual_seed(0)
    vae = build_vae("mlp", 1, 16).to(DEVICE)
    if pinned:
        vae.encoder = Pinned(vae.encoder, 16).to(DEVICE)
    optimiser = torch.optim.Adam(vae.parameters(), 1e-3)
    for _ in range(ITERATIONS):
        x = digits.images(torch.randint(len(digits), (64,), generator=generator, device=DEVICE))
        if pinned:
            # The data alone decide; the neighbour is measured by the same ruler.
            vae.encoder.standardise_over(x)
        q_a = vae.encode(x)
        if gamma is None:
            bound = elbo(x, q_a, vae.decode, V, generator)
        else:
            x_prime = fictive_sample(vae.encoder, x, RADIUS, ATTACK_STEPS, q_x=q_a, generator=generator)
            bound = se_elbo(x, q_a, vae.encode(x_prime), vae.decode, V, gamma, generator)
        optimiser.zero_grad()
        (-bound.value.mean()).backward()
        optimiser.step()
    vae.requires_grad_(False)
    if pinned:
        vae.encoder.standardise_over(digits.images(torch.arange(4_000, device=DEVICE)))
    return vae


def measure(vae) -> dict[str, float]:
    """Standard deviation of the means, and the share of their variance that an attack of twenty steps moves."""
    x = test.images(torch.arange(300, device=DEVICE))
    q = vae.encode(x)
    x_prime = fictive_sample(
        vae.encoder, x, RADIUS, 20, generator=torch.Generator(DEVICE).manual_seed(0)
    )
    variance = q.mean.var(0)
    return {
        "scale": float(variance.mean().sqrt()),
        "moved": float(w2_squared(q, vae.encode(x_prime)).mean() / variance.sum()),
    }


# %%
GAMMAS = (1.0, 10.0)
free = {0.1: train(None), 1.0: train(1.0)}  # the VAE is drawn at the left edge

# %%
free[10.0] = train(10.0)

# %%
pinned = {0.1: train(None, pinned=True), 1.0: train(1.0, pinned=True)}

# %%
pinned[10.0] = train(10.0, pinned=True)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: the standard deviation of the means falls with gamma for the free encoder and stays near one for the pinned one. Right: the share of variance moved by the attack falls with gamma, much further for the pinned encoder."}}
outcomes = {
    name: {g: measure(v) for g, v in models.items()}
    for name, models in (("free", free), ("pinned", pinned))
}
figure, panels = plt.subplots(1, 2, layout="constrained")
styles = {"free": METHODS["se"], "pinned": {"color": "#009E73", "marker": "^", "linestyle": "-."}}
titles = {"scale": "scale of the means", "moved": "share of variance moved"}
for axes, (key, title) in zip(panels, titles.items(), strict=True):
    for name, values in outcomes.items():
        axes.semilogx(
            list(values), [o[key] for o in values.values()], **(dict(styles[name]) | {"label": name})
        )
    axes.set(
        xlabel=r"$\gamma$",
        title=title,
        xticks=[0.1, *GAMMAS],
        xticklabels=["VAE", "1", "10"],
        ylim=(0, None),
    )
    axes.minorticks_off()
panels[1].legend()
plt.show()

# %% [markdown]
r"""
The free encoder's latent shrinks as $\gamma$ grows. The pinned one's cannot, so the pressure of $\gamma$ goes where it was
meant to go.
"""

# %%
free_outcome, pinned_outcome = outcomes["free"], outcomes["pinned"]
assert free_outcome[10.0]["scale"] < 0.6 * free_outcome[0.1]["scale"]  # it shrinks,
assert free_outcome[10.0]["moved"] < 0.8 * free_outcome[0.1]["moved"]  # and it smooths as well;
assert pinned_outcome[10.0]["scale"] > 0.75  # the pinned one does not shrink,
assert pinned_outcome[10.0]["moved"] < 0.7 * free_outcome[10.0]["moved"]  # and smooths more

# %% [markdown]
r"""
## The probe's part

Robustness is measured through a probe, and the probe has a say. Suppose that some latents sleep: their means have a
standard deviation of 0.01 over the data. A probe on the raw means all but ignores them. A probe on *standardised* means sees them at scale 1, a
hundred times larger; and whatever the attacker moves there is magnified as much. Standardising, a harmless habit
elsewhere, hands the attacker a lever. We give the attacked digits of one encoder to both probes.
"""

# %%
vae, n = free[10.0], 4_000
means = vae.encode(digits.images(torch.arange(n, device=DEVICE))).mean
labels = digits.labels("digit")[:n]
centre, spread = means.mean(0), means.std(0)
raw = fit_probe(means, labels, 10, l2=1e-3)
standard = fit_probe((means - centre) / spread, labels, 10, l2=1e-3)

probes = {
    "raw": lambda x: raw(vae.encode(x).mean),
    "standardised": lambda x: standard((vae.encode(x).mean - centre) / spread),
}
x, y = test.images(torch.arange(500, device=DEVICE)), test.labels("digit")[:500]
accuracy = {}
for name, probe in probes.items():
    attacked = pgd(margin(probe, y), x, 0.05, 20, generator=torch.Generator(DEVICE).manual_seed(0))
    accuracy[name] = [float((probe(images).argmax(-1) == y).float().mean()) for images in (x, attacked)]
assert spread.max() > 5 * spread.min()  # some latents are far smaller than others
assert accuracy["standardised"][0] > accuracy["raw"][0] - 0.02  # no worse on clean digits,
assert accuracy["standardised"][1] < accuracy["raw"][1] - 0.03  # and worse under attack

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bars of accuracy on clean and on attacked digits. The standardised probe is no worse on clean digits and behind on attacked ones."}}
figure, axes = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
for offset, (name, values) in enumerate(accuracy.items()):
    bars = axes.barh(
        [0.8 - 0.35 * offset, 2.3 - 0.35 * offset], [100 * v for v in values[::-1]], 0.3, label=name
    )
    for bar in bars:
        bar.set_color(("#0072B2", "#E69F00")[offset])
axes.set(
    yticks=[0.62, 2.12],
    yticklabels=["attacked, radius 0.05", "clean"],
    xlabel="accuracy of the probe (%)",
    xlim=(0, 100),
)
axes.legend(title="latents", loc="center right")
plt.show()

# %% [markdown]
r"""
So in this book the probe is fitted on the raw means, with a recorded penalty.

## Exercises

**1.** At very large $\gamma$ the share of variance moved of the free encoder can *rise*. Why?

:::{dropdown} Solution
The means have then all but collapsed, so the denominator vanishes faster than the numerator. The posterior widths differ
a little between $x$ and $x'$, and their part of $W_2^2$ does not shrink with the means.
:::

**2.** Why do only the data, and not their neighbours, decide the mean and the variance?

:::{dropdown} Solution
The scale to be pinned is that of the data. The neighbours are chosen by an adversary, who could move statistics that
included them. And if the two had rulers of their own, the encoder could learn to make the neighbour's longer.
:::

## What we checked

* A shrunken encoder at $\gamma$ pays for coupling what the encoder itself pays at $\gamma s^2$, exactly.
* The free encoder at $\gamma = 10$ has less than 0.6 of the VAE's scale. The pinned one keeps its scale and moves less.
* A probe on standardised latents is no worse on clean digits and worse under attack.
"""
