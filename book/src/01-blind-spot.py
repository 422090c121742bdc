# %% [markdown]
r"""
# The blind spot of the ELBO

A variational autoencoder is trained on its data points, and only there. This chapter shows what that leaves open: an
encoder may do anything it likes between two data points, and the objective cannot tell. Then it shows the remedy at
work, on an encoder small enough to draw.
"""

# %% cellView="form" tags=["remove-cell"]
# @title Set-up: finds se_core, and chooses the sizes and the device
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile, is_zipfile

PROFILE = "tiny"  # @param ["tiny", "small", "paper"]
REPOSITORY = ""
BRANCH = "main"


def places():
    """Folders around this notebook; what a wheel or zip beside it or in Drive holds; a clone."""
    here, drive = Path.cwd(), Path("/content/drive/MyDrive")
    yield from (here, *here.parents, *here.glob("*/"))
    archives = [*here.glob("*.whl"), *here.glob("*.zip"), *here.glob("*/*.whl")]
    for archive in filter(is_zipfile, [*archives, *drive.glob("*.whl"), *drive.glob("*.zip")]):
        folder = Path(tempfile.mkdtemp())
        with ZipFile(archive) as content:
            if any("se_core" in name for name in content.namelist()):
                content.extractall(folder)
        for wheel in folder.rglob("*.whl"):
            with ZipFile(wheel) as content:
                content.extractall(folder)
        yield from (folder, *folder.glob("*/"))
    if REPOSITORY:
        to = here / "smooth-encoders"
        clone = ["git", "clone", "--quiet", "--depth=1", f"--branch={BRANCH}", REPOSITORY, to]
        print(subprocess.run(clone, capture_output=True, text=True).stderr, end="")
        yield to


if not importlib.util.find_spec("se_core"):
    found = next((place for place in places() if (place / "se_core" / "__init__.py").exists()), None)
    if not found:
        raise RuntimeError(
            "se_core is not here: put smooth-encoders-colab.zip, or its wheel, beside this notebook (on "
            "Colab, drop it on Files at the left, or mount your Drive with it). Then run this cell again."
        )
    sys.path.insert(0, str(found))
    print(f"se_core from {found}")

import se_core
from se_core.lab.config import usable_device

PROFILE = os.environ.get("SE_PROFILE", PROFILE)
DEVICE = str(usable_device(os.environ.get("SE_DEVICE", "auto")))
package = Path(se_core.__file__).parent
BOOK = next(place for place in (package / "book", package.parent / "book") if place.exists())
if (PROFILE, DEVICE) != ("tiny", "cpu"):
    print(f"profile {PROFILE}, device {DEVICE}")

# %% tags=["hide-input"]
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML
from torch import nn

from se_core import DiagonalGaussian, elbo, fictive_sample, se_elbo
from se_core.lab.display import agree, book_style, less
from se_core.lab.figures import METHODS

book_style()
# The order of additions, and so every digit below, does not depend on the machine's cores.
torch.set_num_threads(1)

# %% [markdown]
r"""
## Two encoders the ELBO cannot tell apart

Seven data points between 0 and 1, a one-dimensional latent, an encoder with enough freedom. The decoder is given: it
squeezes the latent into $[0, 1]$. We train the encoder twice, from two random initialisations.
"""


# %% tags=["hide-input"]
class Encoder(nn.Module):
    """x in [0, 1] -> q(Z | x): a layer of sine waves of random frequency; it can pass through anything."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequency", 25 * torch.randn(1, 60, generator=generator))
        self.register_buffer("phase", 2 * math.pi * torch.rand(60, generator=generator))
        self.head = nn.Linear(60, 2)
        with torch.no_grad():
            self.head.weight.copy_(
                torch.randn(2, 60, generator=generator) * torch.tensor([[0.35], [0.05]])
            )
            self.head.bias.copy_(torch.tensor([0.0, -2.0]))

    def forward(self, x: torch.Tensor) -> DiagonalGaussian:
        mean, log_var = self.head(torch.sin(x @ self.frequency + self.phase)).chunk(2, -1)
        return DiagonalGaussian(mean, log_var)


def decoder(z: torch.Tensor) -> torch.Tensor:
    """A decoder that is given, not learned: the latent, squeezed into [0, 1]."""
    return torch.sigmoid(z)


x = torch.linspace(0.08, 0.92, 7)[:, None]
V = 0.02  # observation variance
RADIUS = 0.07  # of the selection: half the distance of two data points
GAMMA = 20.0  # the price of coupling


def bound(
    encoder: Encoder,
    method: str,
    generator: torch.Generator,
    gamma: float = GAMMA,
    radius: float = RADIUS,
):
    many = x.repeat(16, 1)  # sixteen draws of the noise for each data point
    q_a = encoder(many)
    if method == "vae":
        return elbo(many, q_a, decoder, V, generator)
    x_prime = fictive_sample(encoder, many, radius, steps=5, q_x=q_a, generator=generator)
    return se_elbo(many, q_a, encoder(x_prime), decoder, V, gamma, generator=generator)


def train(method: str, seed: int, **price: float) -> Encoder:
    encoder, generator = Encoder(seed), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(encoder.parameters(), 0.02)
    for _ in range(700):
        optimiser.zero_grad()
        (-bound(encoder, method, generator, **price).value.mean()).backward()
        optimiser.step()
    return encoder.requires_grad_(False)


def draw(axes, encoder: Encoder, style: dict) -> None:
    line = torch.linspace(0, 1, 600)[:, None]
    q = encoder(line)
    mean, sigma = q.mean[:, 0], (q.log_var[:, 0] / 2).exp()
    axes.fill_between(
        line[:, 0], mean - 2 * sigma, mean + 2 * sigma, color=style["color"], alpha=0.2, linewidth=0
    )
    axes.plot(line, mean, color=style["color"])
    axes.plot(x, encoder(x).mean, "o", color="k", markersize=4)
    axes.set(xlabel="observation $x$", ylim=(-5.2, 5.2))


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two encoders after the same training. The line is the mean of $q(Z \\mid x)$, the band two standard deviations to either side, the black points are the data. Both place the data alike, and between them each does something else.", "name": "two-encoders"}, "image": {"alt": "Two panels with the mean and two standard deviations of q(Z|x) against x. Both curves pass through the same seven points and oscillate wildly, and differently, between them."}}
vaes = [train("vae", seed) for seed in (1, 2)]
figure, panels = plt.subplots(1, 2, sharey=True, layout="constrained")
titles = ("first initialisation", "second initialisation")
for axes, encoder, title in zip(panels, vaes, titles, strict=True):
    draw(axes, encoder, METHODS["vae"])
    axes.set_title(title, loc="left")
panels[0].set_ylabel(r"latent: mean $\pm\, 2\sigma$")
plt.show()

# %% [markdown]
r"""
The same as numbers. The two bounds differ by a fraction of a nat. At the data the two means agree; halfway between two
data points they are far apart.
"""


# %%
def mean_gap(points: torch.Tensor) -> float:
    return float((vaes[0](points).mean - vaes[1](points).mean).abs().mean())


between = (x[1:] + x[:-1]) / 2
elbos = [float(bound(e, "vae", torch.Generator().manual_seed(0)).value.mean()) for e in vaes]
less("nats between the two bounds, against 0.2", abs(elbos[0] - elbos[1]), 0.2, 1)
less("five times the means' gap at the data, against between", 5 * mean_gap(x), mean_gap(between), 1)

# %% [markdown]
r"""
## Why: the bound sees its data only

Write $p(X \mid Z, \theta)$ for the decoder, $p(Z) = \mathcal N(0, I)$ for the prior and $q(Z \mid X, \eta)$ for the
encoder. For one observation $x$ the evidence lower bound is {cite}`kingma2013,rezende2014`

$$
\log p(x \mid \theta) \;\ge\; \big\langle \log p(x \mid Z, \theta) \big\rangle_{q(Z \mid x, \eta)}
 - \mathcal{KL}\big(q(Z \mid x, \eta) \,\|\, p(Z)\big) \;\equiv\; \mathcal B_x(\eta, \theta).
$$

Now average it over the data $x^{(1)}, \dots, x^{(N)}$, that is, over the empirical distribution $\hat\pi$ that puts
mass $1/N$ on each. The average is a single Kullback-Leibler divergence between two joint distributions, up to a
constant:

(eq-1)=
$$
\mathcal B(\eta, \theta) \equiv \frac1N \sum_{n=1}^N \mathcal B_{x^{(n)}}(\eta, \theta)
 = -\mathcal{KL}\big(\hat\pi(X)\, q(Z \mid X, \eta) \,\|\, p(X \mid Z, \theta)\, p(Z)\big) + \text{const.}
\tag{1}
$$

To see it, put $\hat\pi(x) q(z \mid x)$ into the definition of the divergence and split the logarithm:

$$
\mathcal{KL} = \underbrace{\langle \log \hat\pi(X) \rangle}_{-\log N \text{ (distinct points)}}
 + \big\langle \log q(Z \mid X) - \log p(X \mid Z) - \log p(Z) \big\rangle
 = -\log N - \mathcal B .
$$

So the constant is $-\log N$. Here $\hat\pi$ stands for the weights $1/N$ at the data. (Read it as a density over all
$x$, and it is one of point masses, which the decoder's smooth density cannot match: the divergence is then infinite, and
so is the constant.)

Every average in this line is over $\hat\pi$. Where $\hat\pi$ has no mass, $q(Z \mid X)$ does not appear. That is the
blind spot.

The equation holds for any encoder, so the check takes one that was never trained. It computes each side by its own
route: the left with the closed form of the KL term, the right as one integral of the joint density ratio on a fine grid.
"""

# %% tags=["hide-input"]
q = Encoder(seed=1).double().requires_grad_(False)(x.double())
points, N = x.double()[:, 0], len(x)

z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
normal = torch.distributions.Normal
log_q = normal(q.mean, (q.log_var / 2).exp()).log_prob(z)  # (N, grid)
log_likelihood = normal(decoder(z), math.sqrt(V)).log_prob(points[:, None])
log_prior = normal(0.0, 1.0).log_prob(z)


def integrate(density_times_function: torch.Tensor) -> torch.Tensor:
    return torch.trapezoid(density_times_function, z)


# %%
closed_kl = 0.5 * (q.mean.square() + q.log_var.exp() - 1 - q.log_var)[:, 0]
left = (integrate(log_q.exp() * log_likelihood) - closed_kl).mean()

log_joint_q = -math.log(N) + log_q
divergence = integrate(log_joint_q.exp() * (log_joint_q - log_likelihood - log_prior)).sum()
right = -divergence - math.log(N)
agree("eq. (1), its left side against its right", left, right, atol=1e-10)

# %% [markdown]
r"""
## The remedy, at a glance

Give the encoder a second task. For each data point $x$, an external *selection mechanism* supplies a fictive neighbour
$x'$: here, the point within 0.07 of $x$ whose representation is farthest from that of $x$. Then ask that
$q(Z \mid x)$ and $q(Z \mid x')$ be easy to couple, at a price $\gamma$, here 20. The
[smooth encoder's bound](06-bound.ipynb) makes this precise.

The data points are 0.14 apart, so 0.07 is half their spacing: between them the neighbours can reach every $x$. The
initialisations are those from above.
"""

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same two initialisations, trained as smooth encoders. Between the data the curves now have a reason to be calm.", "name": "blind-spot-mended"}, "image": {"alt": "The same two panels for smooth encoders: both curves now rise gently through the seven points, and look alike."}}
smooth = [train("se", seed) for seed in (1, 2)]
figure, panels = plt.subplots(1, 2, sharey=True, layout="constrained")
for axes, encoder, title in zip(panels, smooth, titles, strict=True):
    draw(axes, encoder, METHODS["se"])
    axes.set_title(title, loc="left")
panels[0].set_ylabel(r"latent: mean $\pm\, 2\sigma$")
plt.show()

# %% [markdown]
r"""
How far does the mean travel on its way from $x = 0$ to $x = 1$? Every rise counts, and every fall. A monotone curve
travels only the distance between its ends.
"""


# %%
def travel(encoder: Encoder) -> float:
    means = encoder(torch.linspace(0, 1, 600)[:, None]).mean[:, 0]
    return float(means.diff().abs().sum())


for wild, calm in zip(vaes, smooth, strict=True):
    less("travel of the smooth mean, against a third of the VAE's", travel(calm), travel(wild) / 3, 1)

# %% [markdown]
r"""
## Touch it

The price has two settings: how much the coupling costs, $\gamma$, and how far the neighbour may be. These encoders were
trained beforehand, from the two initialisations again; the bars on the axis are what the neighbours reach. Try the
smallest radius: beside the data the encoder is calm, and between them it goes its own way. Then raise $\gamma$.
"""

# %% tags=["hide-input"]
HTML(
    f"""
<link rel="stylesheet" href="../_static/pictures.css">
<script id="blind-spot-data" type="application/json">
{(Path(BOOK) / "results" / "blind-spot.json").read_text()}</script>
<div class="picture" id="blind-spot"><p>The rendered book has a picture to play with here.</p></div>
<script src="../_static/blind-spot.js" defer></script>
"""
)

# %% [markdown]
r"""
Nothing is free. The smooth encoder draws its means together, because a smaller latent is cheaper to couple. Whether an
encoder has become smooth or has only shrunk is a question of its own, and has
[its own chapter](12-smooth-or-shrink.ipynb).

## Exercises

**1.** The decoder here is fixed. Would learning it as well pin the encoder down between the data?

:::{dropdown} Solution
No. The decoder enters [(1)](#eq-1) only under the average over $q(Z \mid x^{(n)})$ at the data. It cannot see, nor
punish, what $q(Z \mid x)$ is at any other $x$.
:::

**2.** What is the constant of [(1)](#eq-1) if two of the $N$ data points are equal?

:::{dropdown} Solution
The constant is $-H(\hat\pi)$, minus the entropy of the empirical distribution. One point then has mass $2/N$ and
$H(\hat\pi) = \log N - \tfrac2N \log 2$.
:::

## What we checked

* Equation [(1)](#eq-1), with its constant, by two routes that share no formula, to $10^{-10}$.
* Two trained encoders whose bounds agree to 0.2 nats, and whose means differ between the data five times as much as on
  it, and more.
* At $\gamma = 20$ and a radius of half the spacing, the smooth encoder's mean travels less than a third of the way.
"""
