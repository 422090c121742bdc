# %% [markdown]
r"""
# Training smooth encoders

Everything is in place: the bound, its closed forms, and the mechanism that selects neighbours. This chapter is section 6
of the paper, live on real digits {cite}`lecun1998`: what each term does while one trains, which latents sleep, and why
the initialisation matters.
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
import math
from copy import deepcopy

import matplotlib.pyplot as plt
import torch

from se_core import build_vae, load
from se_core.lab.config import RunConfig
from se_core.lab.evaluation import encode_means
from se_core.lab.figures import METHODS, STYLE
from se_core.lab.steps import derived_generator, make_optimiser, training_step
from se_core.objectives import ElboTerms, gaussian_log_likelihood, se_elbo
from se_core.transport import entropic_cost

torch.set_num_threads(1)
plt.rcParams.update(STYLE | {"figure.dpi": 120, "figure.figsize": (6.4, 2.8)})
SIZE = {
    "tiny": {"iterations": 300, "attack_steps": 3},
    "small": {"iterations": 3_000, "attack_steps": 5},
    "paper": {"iterations": 300_000, "attack_steps": 20},
}[PROFILE]
digits = load("mnist", "train").to(DEVICE)


def train(**fields):
    """The networks after some steps of `se_core.lab.training`, and the terms at each step."""
    config = RunConfig(latent_dim=32, batch_size=64, device=DEVICE, **SIZE, **fields)
    initialisation = config.initialisation
    vae = build_vae("mlp", 1, config.latent_dim, initialisation=initialisation).to(DEVICE)
    optimiser, history = make_optimiser(config, vae), []
    for step in range(config.iterations):
        generator = derived_generator(DEVICE, config.seed, "step", step)
        index = torch.randint(len(digits), (config.batch_size,), generator=generator, device=DEVICE)
        history.append(training_step(config, vae, optimiser, digits.images(index), generator))
    return vae.requires_grad_(False), torch.stack(history).cpu()


# %%
vae, vae_terms = train(method="vae")
smooth, smooth_terms = train(method="se", gamma=1.0)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels against training steps. Left: the negative log-likelihood of VAE and smooth encoder falls steeply, the VAE's ends a little lower. Right: four losses of the smooth encoder. The divergence of q_a from the prior falls, then rises to the largest; the transport cost is next, the divergence of q_b and the mutual information stay below."}}


def running_mean(series: torch.Tensor, width: int = 20) -> torch.Tensor:
    return series.unfold(0, width, 1).mean(-1)


column = {name: index for index, name in enumerate(ElboTerms._fields)}
figure, (left, right) = plt.subplots(1, 2, layout="constrained")
for terms, method in ((vae_terms, "vae"), (smooth_terms, "se")):
    style = {key: value for key, value in METHODS[method].items() if key != "marker"}
    left.plot(running_mean(-terms[:, column["log_likelihood"]]), **style)
left.set(xlabel="step", title=r"$-\langle \log p(x \mid Z_a) \rangle$ (nats)", ylim=(-60, 400))
left.legend()
for name, label, colour in (
    ("kl", r"$\mathcal{KL}(q_a \| p)$", "#CC79A7"),
    ("kl_fictive", r"$\mathcal{KL}(q_b \| p)$", "#E69F00"),
    ("mutual_information", "$I(Z_a; Z_b)$", "#56B4E9"),
    ("transport", r"$\frac{\gamma}{2} W^2_{2,\gamma}$", "#009E73"),
):
    right.plot(running_mean(smooth_terms[:, column[name]]), color=colour, label=label)
right.set(xlabel="step", title="what the smooth encoder pays (nats)", ylim=(0, 24))
right.legend(ncols=2, loc="upper right")
plt.show()

# %% [markdown]
r"""
## The algorithm

For each batch of images $x$:

1. **Select.** Find $x'$ near $x$ by [attack](06-selection.ipynb). No gradient flows through the search.
2. **Encode** both: $\mu_a, \Sigma_a$ from $x$ and $\mu_b, \Sigma_b$ from $x'$, factorised.
3. **Sample** $z_a = \mu_a + \Sigma_a^{1/2} \varepsilon$ and decode, $\bar x = g(z_a; \theta)$.
4. **Add up** the bound and ascend its gradient in $\eta$ and $\theta$.

The terms, as section 6 of the paper prints them:

$$
\begin{aligned}
\langle \log p(x \mid Z_a) \rangle &\approx -\tfrac{D_x}{2} \log 2 \pi v - \tfrac{1}{2v} \textstyle\sum_i (x_i - \bar x_i)^2 , \\
\langle \log p(Z_a) \rangle &= -\tfrac12 \textstyle\sum_k \big( (\mu_a^k)^2 + \Sigma_a^k \big) - \tfrac{D_z}{2} \log 2 \pi
 \quad \text{(and so for } Z_b \text{)} , \\
\mathcal{WD}_{2,\gamma} &= \tfrac\gamma2 \textstyle\sum_k \big( (\mu_a^k - \mu_b^k)^2 + \Sigma_a^k + \Sigma_b^k \big)
 \\
 &\quad - \tfrac12 \textstyle\sum_k \big( (u^k - 1) - \log (u^k + 1) + \log 2 \Sigma_b^k \Sigma_a^k \big) - D_z \log 2 \pi - D_z ,
\end{aligned}
$$

with $u^k = \sqrt{1 + 4 \gamma^2 \Sigma_b^k \Sigma_a^k}$; the paper misprints $\mu_a^k - \mu_b^k$ as
$\mu_a^k - \mu_a^k$, which would take the means out of the coupling. The library computes the same number as nonnegative
terms. The cell compares the two, in double precision, on the trained encoder.
"""

# %%
x = load("mnist", "test").images(torch.arange(32)).double()  # on the CPU, for not every GPU has float64
x_prime = (x + 0.1).clamp(0, 1)
v, gamma, D_z = 0.1, 1.0, 32
model = deepcopy(smooth).cpu().double()
q_a, q_b = model.encode(x), model.encode(x_prime)


def same_noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


z_a = q_a.mean + (q_a.log_var / 2).exp() * torch.randn(
    q_a.mean.shape, generator=same_noise(), dtype=torch.float64
)
x_bar = model.decode(z_a)
miss = (x - x_bar).square().flatten(1).sum(-1)
likelihood = -x[0].numel() / 2 * math.log(2 * math.pi * v) - miss / (2 * v)
prior_a, prior_b = (
    -(q.mean.square() + q.log_var.exp()).sum(-1) / 2 - D_z / 2 * math.log(2 * math.pi)
    for q in (q_a, q_b)
)
var_a, var_b = q_a.log_var.exp(), q_b.log_var.exp()
u = (1 + 4 * gamma**2 * var_a * var_b).sqrt()
WD = (
    gamma / 2 * ((q_a.mean - q_b.mean).square() + var_a + var_b).sum(-1)
    - ((u - 1) - (u + 1).log() + (2 * var_a * var_b).log()).sum(-1) / 2
    - D_z * math.log(2 * math.pi)
    - D_z
)
as_printed = likelihood + prior_a + prior_b - WD

torch.testing.assert_close(WD, entropic_cost(q_a, q_b, gamma), rtol=1e-10, atol=0)
torch.testing.assert_close(likelihood, gaussian_log_likelihood(x, x_bar, v))
ours = se_elbo(x, q_a, q_b, model.decode, v, gamma, same_noise())
torch.testing.assert_close(ours.value, as_printed, rtol=1e-10, atol=0)

# %% [markdown]
r"""
## What each term does

The likelihood keeps the images apart. The two divergences pull both representations towards the prior, so the smooth
encoder pays twice. The spring $\frac\gamma2 W^2_{2,\gamma}$ pulls the two representations together, and the mutual
information charges for knowing one from the other.
"""

# %%
last = smooth_terms[-50:].mean(0)
first = smooth_terms[:10].mean(0)
assert last[column["log_likelihood"]] > first[column["log_likelihood"]]
assert (smooth_terms[:, 1:] >= 0).all()  # term by term nonnegative, at each step

# %% [markdown]
r"""
## Latents that sleep, and latents that wake

A latent *sleeps* when its mean does not depend on the image: then $q = p$ there and its divergence costs nothing. The
usual count calls a latent active if the variance of its mean over the data exceeds 0.01 {cite}`burda2016`. How many wake
depends on the initialisation. PyTorch's default for linear layers shrinks the signal at each of five layers; a
variance-preserving one {cite}`he2015` keeps it.
"""


# %%
def sorted_variances(model) -> torch.Tensor:
    return encode_means(model, digits, 2_000).var(0).sort(descending=True).values.cpu()


default, _ = train(method="se", gamma=1.0, initialisation="pytorch")
variances = {
    "VAE": sorted_variances(vae),
    "smooth encoder": sorted_variances(smooth),
    "smooth encoder,\nPyTorch's initialisation": sorted_variances(default),
}
active = {name: int((values > 0.01).sum()) for name, values in variances.items()}
assert active["smooth encoder,\nPyTorch's initialisation"] < active["smooth encoder"]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Variance of the mean of each latent, sorted, on a logarithmic axis. All latents of VAE and smooth encoder are above the threshold of 0.01; with PyTorch's initialisation the variances are about ten times smaller and many fall below."}}
figure, axes = plt.subplots(layout="constrained")
styles = (METHODS["vae"], METHODS["se"], {"color": "#009E73", "marker": "^", "linestyle": ":"})
for (name, values), style in zip(variances.items(), styles, strict=True):
    axes.semilogy(range(1, 33), values, **(dict(style) | {"label": name}))
axes.axhline(0.01, color="0.6", linewidth=0.8)
axes.text(32, 0.012, "active above", ha="right", color="0.4", fontsize=8)
axes.set(xlabel="latent, sorted", ylabel="variance of its mean", ylim=(1e-4, 5))
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
r"""
## In earnest

These are runs of seconds. The `se-core train` command trains in earnest: in a folder of its own, resumable after any
interruption, bit for bit.

## Exercises

**1.** Why does no gradient flow through the selection of $x'$?

:::{dropdown} Solution
The bound holds for any $x'$, so the encoder may treat it as data. A gradient through the search would need second
derivatives of the encoder, for $L$ steps, and would teach the encoder to mislead this search rather than to be smooth.
:::

**2.** The likelihood of an image has 784 terms and the coupling 32. What happens to their balance on colour images?

:::{dropdown} Solution
The likelihood has three times as many terms, so at equal $\gamma$ and $v$ the coupling weighs a third. The runs behind
Figure 1 therefore choose $v$ in proportion to the number of channels.
:::

## What we checked

* The bound as section 6 prints it (with the subscript of the means mended) equals the library's, to ten digits, on trained
  networks.
* All four losses are nonnegative at each step, and the likelihood rises.
* With PyTorch's initialisation fewer latents wake.
"""
