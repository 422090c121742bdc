# %% [markdown]
r"""
# Selection by attack

The smooth encoder needs a neighbour $x'$ for each datum $x$. Which one? The paper lets an adversary choose: the
neighbour whose representation is farthest away. This chapter builds that adversary, tests it against brute force, and
shows the one mistake that disarms it.
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
import json
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import pad

from se_core import DiagonalGaussian, fictive_sample, load, load_pretrained, pgd
from se_core.lab.display import agree, book_style, holds, less
from se_core.lab.figures import METHODS
from se_core.lab.tables import Table
from se_core.losses import cross_entropy
from se_core.transport import entropic_cost, w2_squared

book_style()
torch.set_num_threads(1)

# %% [markdown]
r"""
We need an encoder to attack. It is the plain VAE of the long runs of [Figure 1](09-figure1.ipynb): an MLP with 64 latents,
trained on MNIST {cite}`lecun1998` for 30,000 steps, and it comes with the package.
"""

# %%
RADIUS = 0.2
# In double precision, so that the digits below are the same on every processor; not every GPU has it.
vae = load_pretrained("mnist-mlp-vae").vae.double().requires_grad_(False)
encoder = vae.encoder
test = load("mnist", "test")
x = test.images(torch.arange(128)).double()

generator = torch.Generator().manual_seed(0)
x_prime = fictive_sample(encoder, x, RADIUS, steps=20, generator=generator)
noise = RADIUS * (2 * torch.randint(2, x.shape, generator=generator) - 1)
x_random = (x + noise).clamp(0, 1)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two neighbours of each digit, both changed by at most 0.2 in each pixel, and what the VAE makes of them. By eye, five of the eight are decoded as another digit after noise, and all eight after the attack (the 4 already before).", "name": "two-neighbours"}, "image": {"alt": "Six rows of eight digits, 9 0 4 2 1 7 3 5. The digits, and their reconstructions, of which only the 4 fails. The digits with random noise, and their reconstructions: the 9 becomes a 5, the 4 a 0, the 1 an 8, the 7 a 3, the 5 an 8. The attacked digits, with patches of grey, still legible, and their reconstructions: a 2, and shapes like 3 and 8."}}


def strip(images: torch.Tensor) -> torch.Tensor:
    """Eight images in a row, as ink on paper."""
    return torch.cat(list(pad(images[:8, 0], (1, 1, 1, 1))), -1)


rows = []
for name, images in (("digit $x$", x), ("with noise", x_random), ("attacked $x'$", x_prime)):
    rows += [(name, images), ("decoded", vae.reconstruct(images))]
figure, lines = plt.subplots(len(rows), figsize=(4.6, 3.5), layout="constrained")
for (name, images), axes in zip(rows, lines, strict=True):
    axes.imshow(strip(images), cmap="gray_r", vmin=0, vmax=1, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
r"""
To us the neighbours are the same digits, on dirtier paper. To this encoder they are not: plain noise is enough to change
most of its answers, and the attack changes all of them.

## The attack

Projected gradient ascent {cite}`madry2017` maximises the distance between the two representations,

$$
\max_{\|x' - x\|_\infty \le \epsilon,\; x' \in [0, 1]^{D_x}} W_2^2\big( q(Z \mid x),\, q(Z \mid x') \big) ,
$$

by $L$ steps of the sign of the gradient, each followed by the projection onto the ball and onto valid images:

$$
x' \leftarrow \Pi \big( x' + \alpha \operatorname{sign} \nabla_{x'} W_2^2 \big) .
$$

The idea of attacking a latent is that of Kos et al. {cite:year}`kos2017`. The paper cites Carlini and Wagner
{cite:year}`carlini2016` for the algorithm; the algorithm it describes is Madry's. Here is all of it.
"""


# %%
def attack(x: torch.Tensor, steps: int, generator: torch.Generator) -> torch.Tensor:
    step_size = 2.5 * RADIUS / steps
    q_x = encoder(x)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    x_prime = (x + RADIUS * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        x_prime.requires_grad_()
        distance = w2_squared(q_x, encoder(x_prime))
        (gradient,) = torch.autograd.grad(distance.sum(), x_prime)
        x_prime = x_prime.detach() + step_size * gradient.sign()
        x_prime = x_prime.clamp(x - RADIUS, x + RADIUS).clamp(0, 1)
    return x_prime


# %% [markdown]
r"""
`fictive_sample` does this, and is careful of the encoder's buffers and random numbers while it does. From the same start
the two find the same.
"""

# %%
q_x = encoder(x)
by_hand = attack(x, 20, torch.Generator().manual_seed(0))
from_library = fictive_sample(encoder, x, RADIUS, 20, generator=torch.Generator().manual_seed(0))
moved, ours = (w2_squared(q_x, encoder(neighbour)).mean() for neighbour in (from_library, by_hand))
less("mean W_2^2, loop against library, apart by per cent", 100 * (ours / moved - 1).abs(), 1.0)
holds("no pixel changes by more than the radius", (x_prime - x).abs().max() <= RADIUS + 1e-6)
holds("each pixel stays in [0, 1]", (x_prime.min() >= 0) & (x_prime.max() <= 1))

# %% [markdown]
r"""
How much farther than noise does it go? The distance that is maximised is a squared one. Its root says how far, and by that
measure the advantage is smaller.
"""

# %%
moved, moved_by_noise = (w2_squared(q_x, encoder(neighbour)) for neighbour in (x_prime, x_random))
less("mean W_2^2, five times by noise against by attack", 5 * moved_by_noise.mean(), moved.mean(), 1)
less(
    "mean W_2, twice by noise against by attack",
    2 * moved_by_noise.sqrt().mean(),
    moved.sqrt().mean(),
    1,
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How far 128 digits move in the latent space of the VAE, by a random corner of the ball and by the attack.", "name": "moved-by-noise-and-by-attack"}, "image": {"alt": "Two histograms of the squared Wasserstein distance on a logarithmic axis. Random neighbours lie around 3, attacked ones around 20, and the two hardly overlap."}}
figure, axes = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
bins = torch.logspace(-0.5, 2, 45).tolist()
axes.hist(moved_by_noise, bins, color="0.6", label="random neighbour")
axes.hist(moved, bins, color=METHODS["vae"]["color"], alpha=0.8, label="attacked neighbour")
axes.set(xscale="log", xlabel=r"$W_2^2(q(Z \mid x), q(Z \mid x'))$", ylabel="digits")
figure.legend(loc="outside upper center", ncols=2)
plt.show()

# %% [markdown]
r"""
## Why not start at $x$ itself

At $x' = x$ the distance is at its minimum, zero, and its gradient is zero. An ascent that starts there stays
there. It does not fail loudly: it returns $x$, and the smooth encoder trains without an adversary. So the attack
starts from a uniformly random point of the ball.
"""


# %%
def gradient_at(start: torch.Tensor) -> torch.Tensor:
    start = start.clone().requires_grad_()
    return torch.autograd.grad(w2_squared(q_x, encoder(start)).sum(), start)[0]


at_x, at_noise = gradient_at(x).abs().max(), gradient_at(x_random).abs().max()
less("largest slope at x, in thousandths of that at a random neighbour", 1000 * at_x / at_noise, 1.0)

# %% [markdown]
r"""
## How many steps

The paper uses $L = 20$ steps. Each costs a pass forwards and backwards through the encoder, so the search soon takes most
of the training time. {numref}`steps-of-the-attack` says what the steps buy, on the VAE and on the smooth encoder that is
trained with this adversary. The step size is $\alpha = 2.5\, \epsilon / L$, so that for each $L$ the far side of the ball is
within reach.
"""

# %%
smooth = load_pretrained("mnist-mlp-se").vae.double().requires_grad_(False)
budgets, few, found = (1, 2, 3, 5, 10, 20, 40), x[:64], {}
for name, network in (("vae", vae.encoder), ("se", smooth.encoder)):
    q = network(few)
    found[name] = []
    for L in budgets:
        start = torch.Generator().manual_seed(1)
        neighbour = fictive_sample(network, few, RADIUS, steps=L, generator=start)
        found[name].append(float(w2_squared(q, network(neighbour)).mean()))

share = min(values[budgets.index(5)] / values[-1] for values in found.values())
less("0.7, against the share that five steps find at least", 0.7, share)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The mean squared distance that an attack of L steps finds, relative to one of forty. On the smooth encoder, five steps leave little to be found.", "name": "steps-of-the-attack"}, "image": {"alt": "Two curves against the number of steps, from 1 to 40, in per cent of what forty steps find. The VAE's begins below 50, the smooth encoder's near 80; at five steps they are near 85 and 95, and they flatten after ten."}}
figure, axes = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
for name, values in found.items():
    axes.plot(budgets, [100 * value / values[-1] for value in values], **METHODS[name])
axes.set(xscale="log", xticks=budgets, xticklabels=budgets, xlabel="steps $L$")
axes.set(ylabel=r"found, % of $L = 40$", ylim=(0, 105))
axes.minorticks_off()
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
r"""
## An attack that remembers

Training meets an image again, and the encoder has changed little in between. So why begin anew? Let each image keep its
$x' - x$, a byte a pixel, and let the attack go on from there, with a step or two. This is ours, not the paper's. It was
measured on short runs of MLPs: a thousand steps, two seeds, validation digits. *Found* is the mean of $W_2^2$ after training,
relative to an attack of a hundred steps; *accuracy* is the probe's under attack, its mean over the radii from 0.02 to 0.2.
"""

# %% tags=["hide-input"]
study = json.loads((Path(BOOK) / "results" / "memory.json").read_text())["rows"]
cells: dict[tuple, dict[str, float]] = {}
for row in study:
    alike = [r for r in study if all(r[key] == row[key] for key in ("mechanism", "gamma"))]
    cells[row["mechanism"], row["gamma"]] = {
        key: fmean(r[key] for r in alike) for key in ("share_found", "robustness", "ms")
    }
mechanisms = list(dict.fromkeys(row["mechanism"] for row in study))
rows = [
    [m]
    + [f"{100 * cells[m, gamma]['share_found']:.0f}" for gamma in (1.0, 10.0)]
    + [f"{100 * cells[m, gamma]['robustness']:.0f}" for gamma in (1.0, 10.0)]
    + [f"{cells[m, 1.0]['ms']:.0f}"]
    for m in mechanisms
]
found_at, accuracy_at = ([f"{what} (%), γ = {g}" for g in (1, 10)] for what in ("found", "accuracy"))
Table(["the attack begins", *found_at, *accuracy_at, "ms a step"], rows)

# %%
for gamma in (1.0, 10.0):
    one, five, twenty = (cells[m, gamma] for m in ("remembered, L = 1", "anew, L = 5", "anew, L = 20"))
    less(
        f"gamma {gamma:g}: time of twenty steps over one remembered, above 3",
        3,
        twenty["ms"] / one["ms"],
    )
    less(
        f"gamma {gamma:g}: accuracy, one remembered against five anew, points apart",
        100 * abs(one["robustness"] - five["robustness"]),
        5,
        1,
    )

# %% [markdown]
r"""
One remembered step costs less than a third of twenty, and finds nine tenths of what can be found. At $\gamma = 1$ the encoders
that it trains are a few points less robust than those of five or twenty steps, in both seeds; at $\gamma = 10$ the seeds
part, one either way. The pinned encoders of this book are trained so. The paper's smooth encoder starts anew, as in the paper.

## Against brute force

Does the ascent find the maximum? For two pixels we can look everywhere. The function below has many hills; the attack
may start several times and keeps the best, example by example.
"""


# %%
def hills(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(23 * x[:, 0]) + torch.cos(17 * x[:, 1]) + 2 * x.prod(-1)


centres = torch.tensor([[0.5, 0.4], [0.1, 0.9], [0.97, 0.5]], dtype=torch.float64)
best = []
for centre in centres:
    low, high = (centre - 0.3).clamp(min=0), (centre + 0.3).clamp(max=1)
    lines = [a + (b - a) * torch.linspace(0, 1, 600) for a, b in zip(low, high, strict=True)]
    best.append(hills(torch.cartesian_prod(*lines)).max())
seed = torch.Generator().manual_seed(0)
peaks = hills(pgd(hills, centres, radius=0.3, steps=60, restarts=20, generator=seed))
agree("the highest point, attack against grid", peaks, torch.stack(best), atol=0.02)
seed = torch.Generator().manual_seed(0)
one_start = hills(pgd(hills, centres, radius=0.3, steps=60, generator=seed))
less("the least of three peaks with one start, as a share", (one_start / torch.stack(best)).min(), 0.95)

# %% [markdown]
r"""
With twenty starts it finds the summit. With one it climbs the nearest hill: the selection, which has one, finds *a* far
neighbour, not the farthest.

## Which distance to attack

One could maximise $\mathcal{WD}_{2,\gamma}$, the very term of the bound, instead of $W_2^2$. But it contains $-H(q_b)$,
so it pays the attacker for making $q(Z \mid x')$ narrow, wherever its mean is. The distance pays for distance.
"""

# %%
zero, two, very_narrow = (torch.tensor([value], dtype=torch.float64) for value in (0, 2, -12))
here, far, narrow = (DiagonalGaussian(*q) for q in ((zero, zero), (two, zero), (zero, very_narrow)))
less("W_2^2, to a narrow neighbour against a far one", w2_squared(here, narrow), w2_squared(here, far))
to_far, to_narrow = entropic_cost(here, far, 1.0), entropic_cost(here, narrow, 1.0)
less("WD, to a far neighbour against a narrow one", to_far, to_narrow)

# %% [markdown]
r"""
## One algorithm, two uses

The same `pgd` evaluates, there with momentum, from near the image and from anywhere. The objective is a classifier's loss,
and the attacker wants a wrong answer. A representation is trained against one objective and judged by the other. The
classifier is a linear probe on the encoder's mean, and each pretrained encoder brings its own.
"""

# %%
labels, share = test.labels("digit")[:128], {}
for name in METHODS:
    classifier = load_pretrained(f"mnist-mlp-{name}").classifier("digit").double()
    seed = torch.Generator().manual_seed(0)
    fooled = pgd(cross_entropy(classifier, labels), x, radius=0.1, steps=20, generator=seed)
    share[name] = [
        float((classifier(images).argmax(-1) == labels).double().mean()) for images in (x, fooled)
    ]
less("accuracy at radius 0.1, VAE against smooth encoder", share["vae"][1], share["se"][1])
less("accuracy at radius 0.1, smooth encoder against pinned", share["se"][1], share["pinned"][1])

# %% tags=["hide-input"]
rows = [[METHODS[name]["label"], *(f"{100 * value:.0f}" for value in share[name])] for name in METHODS]
Table(["accuracy in %, 128 digits", "clean", "attacked, radius 0.1"], rows)

# %% [markdown]
r"""
The *pinned* smooth encoder is ours; [a later chapter](12-smooth-or-shrink.ipynb) explains it. Forty steps and a thousand
digits judge them in the long runs of [Figure 1](09-figure1.ipynb); this is a glance.

## Exercises

**1.** The gradient at $x' = x$ is zero. Is that so for every divergence between $q(Z \mid x)$ and $q(Z \mid x')$?

:::{dropdown} Solution
For every one that is smooth and has its minimum at equal arguments: $\mathcal{KL}$, the Sinkhorn divergence.
$\mathcal{WD}_{2,\gamma}$ has its minimum elsewhere, so its gradient there is not zero.
:::

**2.** Why the sign of the gradient, and not the gradient?

:::{dropdown} Solution
Among all steps of largest entry $\alpha$, the one along the sign gains most to first order. It also makes the step free
of the scale of the objective.
:::

**3.** On the VAE the attack moves a digit six times as far as noise does, in squared distance. Measure the same on the
smooth encoder (`smooth` above). What does the answer tell?

:::{dropdown} Solution
Less than twice as far. The adversary of its training has little left to find that noise does not. But noise moves it
*farther* than it moves the VAE: being robust and being still are not the same. [The next chapter](08-training.ipynb) looks
at what this encoder does with its neighbours.
:::

## What we checked

* The attack, written out, finds what the library's finds; it stays in its ball and in $[0, 1]$; and it moves the VAE's
  representations at least five times as far as noise does in squared distance, twice as far in distance.
* The gradient at $x' = x$ is zero.
* Five steps find at least 0.7 of the squared distance that forty find, on the VAE and on the smooth encoder.
* A remembered step takes less than a third of the time of twenty, and its encoders come within five points of those of five.
* With twenty starts it finds the maximum of a function of two pixels.
* $\mathcal{WD}_{2,\gamma}$ prefers a narrow neighbour to a far one, $W_2^2$ does not.
"""
