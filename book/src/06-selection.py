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

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from se_core import DiagonalGaussian, build_vae, elbo, fictive_sample, load, pgd
from se_core.lab.figures import METHODS, STYLE
from se_core.transport import entropic_cost, w2_squared

torch.set_num_threads(1)
plt.rcParams.update(STYLE | {"figure.dpi": 120})
STEPS = {"tiny": 800, "small": 3_000, "paper": 30_000}[PROFILE]
RADIUS = 0.2

# %% [markdown]
r"""
We need an encoder to attack: a plain VAE, trained on the bundled digits for a few seconds.
"""

# %%
digits = load("mnist", "train").to(DEVICE)
vae = build_vae("mlp", channels=1, latent_dim=16).to(DEVICE)
optimiser = torch.optim.Adam(vae.parameters(), 1e-3)
generator = torch.Generator(DEVICE).manual_seed(0)
for _ in range(STEPS):
    batch = digits.images(torch.randint(len(digits), (64,), generator=generator, device=DEVICE))
    optimiser.zero_grad()
    (-elbo(batch, vae.encode(batch), vae.decode, 0.1, generator).value.mean()).backward()
    optimiser.step()
vae.requires_grad_(False)

x = load("mnist", "test").images(torch.arange(64)).to(DEVICE)
q_x = vae.encode(x)
x_prime = fictive_sample(vae.encoder, x, RADIUS, steps=20, generator=generator)
noise = RADIUS * (2 * torch.randint(2, x.shape, generator=generator, device=DEVICE) - 1)
x_random = (x + noise).clamp(0, 1)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three rows of eight images of digits with their reconstructions below. With random noise the reconstructions change a little; those of the attacked digits, changed no more, are of something else."}}
rows = {
    "digit $x$": x,
    "reconstructed": vae.reconstruct(x),
    "random\nneighbour": x_random,
    "reconstructed ": vae.reconstruct(x_random),
    "attacked $x'$": x_prime,
    "reconstructed  ": vae.reconstruct(x_prime),
}
figure, grid = plt.subplots(len(rows), 8, figsize=(6.4, 5.0), layout="constrained")
for (name, images), line in zip(rows.items(), grid, strict=True):
    for image, axes in zip(images, line, strict=False):
        axes.imshow(image[0].cpu(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
r"""
Both neighbours differ from $x$ by at most 0.2 in each pixel, and both still look like the same digit to us. Noise changes
the reconstruction a little; the attack changes it wholly.

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
{cite:year}`carlini2016` for the algorithm; the algorithm it describes is Madry's.
"""

# %%
moved = w2_squared(q_x, vae.encode(x_prime))
moved_by_noise = w2_squared(q_x, vae.encode(x_random))

assert float((x_prime - x).abs().max()) <= RADIUS + 1e-6
assert float(x_prime.min()) >= 0
assert float(x_prime.max()) <= 1
assert float(moved.mean()) > 3 * float(moved_by_noise.mean())  # about six times; other seeds, five

# %% tags=["hide-input"] mystnb={"image": {"alt": "Histogram of the squared Wasserstein distance moved by random neighbours and by attacked ones on a logarithmic axis; they do not overlap, and the attack moves several times as far."}}
figure, axes = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
bins = torch.logspace(-1.5, 2.5, 45).tolist()
axes.hist(moved_by_noise.cpu(), bins, color="0.6", label="random neighbour")
axes.hist(moved.cpu(), bins, color=METHODS["vae"]["color"], alpha=0.8, label="attacked neighbour")
axes.set(xscale="log", xlabel=r"$W_2^2(q(Z \mid x), q(Z \mid x'))$", ylabel="digits")
axes.legend()
plt.show()

# %% [markdown]
r"""
## Why not start at $x$ itself

At $x' = x$ the distance is at its minimum, zero, and its gradient is exactly zero. An ascent that starts there stays
there. It does not fail loudly: it returns $x$, and the smooth encoder trains without an adversary. So the attack
starts from a uniformly random point of the ball.
"""

# %%
start = x.clone().requires_grad_()
q_start = vae.encode(start)
fixed = DiagonalGaussian(q_start.mean.detach(), q_start.log_var.detach())
(gradient,) = torch.autograd.grad(w2_squared(fixed, q_start).sum(), start)
assert gradient.abs().max() == 0

# %% [markdown]
r"""
## How many steps

The paper uses $L = 20$ steps. Each costs a pass forwards and backwards through the encoder, so the search soon takes most
of the training time. The curve says what the steps buy. The step size is $\alpha = 2.5\, \epsilon / L$, so that
for each $L$ the far side of the ball is within reach.
"""

# %%
budgets = (1, 2, 3, 5, 10, 20, 40)
gains = []
for L in budgets:
    same_start = torch.Generator(DEVICE).manual_seed(1)
    attacked = fictive_sample(vae.encoder, x, RADIUS, steps=L, generator=same_start)
    gains.append(float(w2_squared(q_x, vae.encode(attacked)).mean()))

assert gains[0] < gains[3] < gains[-1]  # more is better,
assert gains[3] > 0.75 * gains[-1]  # and five steps already find most of it

# %% tags=["hide-input"] mystnb={"image": {"alt": "The share of the distance that the strongest attack finds, against the number of steps: it rises steeply up to five steps and flattens after ten."}}
figure, axes = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
axes.plot(budgets, [100 * g / gains[-1] for g in gains], **METHODS["se"])
axes.set(
    xscale="log",
    xticks=budgets,
    xticklabels=budgets,
    xlabel="steps $L$",
    ylabel="% of $L = 40$",
    ylim=(0, 105),
)
axes.minorticks_off()
plt.show()

# %% [markdown]
r"""
## Against brute force

Does the ascent find the maximum? For two pixels we can look everywhere. The function below has many hills; the attack
may start several times and keeps the best, example by example.
"""


# %%
def hills(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(23 * x[:, 0]) + torch.cos(17 * x[:, 1]) + 2 * x.prod(-1)


centre = torch.tensor([[0.5, 0.4], [0.1, 0.9], [0.97, 0.5]])
best = []
for point in centre:
    sides = [torch.linspace(max(float(p) - 0.3, 0), min(float(p) + 0.3, 1), 600) for p in point]
    best.append(hills(torch.cartesian_prod(*sides)).max())
found = hills(
    pgd(hills, centre, radius=0.3, steps=60, restarts=20, generator=torch.Generator().manual_seed(0))
)
torch.testing.assert_close(found, torch.stack(best), rtol=0, atol=0.05)

# %% [markdown]
r"""
## Which distance to attack

One could maximise $\mathcal{WD}_{2,\gamma}$, the very term of the bound, instead of $W_2^2$. But it contains $-H(q_b)$,
so it pays the attacker for making $q(Z \mid x')$ narrow, wherever its mean is. The distance pays for distance.
"""

# %%
here = DiagonalGaussian(torch.zeros(1), torch.zeros(1))
narrow, far = (
    DiagonalGaussian(torch.zeros(1), torch.tensor([-12.0])),
    DiagonalGaussian(torch.tensor([2.0]), torch.zeros(1)),
)
assert entropic_cost(here, narrow, 1.0) > entropic_cost(here, far, 1.0)
assert w2_squared(here, narrow) < w2_squared(here, far)

# %% [markdown]
r"""
## One algorithm, two uses

The same `pgd` evaluates: there the objective is a classifier's loss, and the attacker wants a wrong answer. A
representation is trained against one objective and judged by the other.
"""

# %%
probe = nn.Linear(16, 10).to(DEVICE).requires_grad_(False)
with torch.no_grad():
    probe.weight.copy_(torch.randn(10, 16, generator=torch.Generator().manual_seed(0)))
    probe.bias.zero_()
answers = probe(vae.encode(x).mean).argmax(-1)


def loss(x_prime: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(probe(vae.encode(x_prime).mean), answers, reduction="none")


fooled = pgd(loss, x, RADIUS, steps=20, generator=generator)
assert float((probe(vae.encode(fooled).mean).argmax(-1) == answers).float().mean()) < 0.1

# %% [markdown]
r"""
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

## What we checked

* The attack stays in its ball and in $[0, 1]$, and moves representations at least three times farther than noise does.
* The gradient at $x' = x$ is exactly zero.
* Five steps find at least three quarters of what forty find.
* Against a search of the whole ball, in two dimensions, it finds the maximum.
"""
