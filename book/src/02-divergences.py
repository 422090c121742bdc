# %% [markdown]
r"""
# Divergences between Gaussians

How different are two representations $q(Z \mid x)$ and $q(Z \mid x')$? The usual answer of variational inference is the
Kullback-Leibler divergence. This chapter takes it apart, and says why a smooth encoder measures with Wasserstein's
ruler instead.
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

import matplotlib.pyplot as plt
import numpy as np
import torch

from se_core import DiagonalGaussian, FullGaussian
from se_core.gaussians import kl_divergence, kl_terms
from se_core.lab.display import agree, book_style, holds, less
from se_core.lab.figures import METHODS
from se_core.transport import w2_squared

book_style()
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
r"""
## The same shift, seen by two rulers

Two Gaussians of one width $\sigma$, their means 0.1 apart. Let them become narrow.
"""

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A shift of 0.1, seen by two rulers. The divergence grows as the two densities cease to overlap; the transport distance stays what it is.", "name": "two-rulers"}, "image": {"alt": "Left: two pairs of Gaussian densities 0.1 apart, one pair wide and overlapping, one narrow and disjoint. Right: KL grows like one over sigma squared as sigma falls, the squared Wasserstein distance stays at 0.01."}}
sigma = torch.logspace(-3, 0, 61)
a = DiagonalGaussian(torch.zeros(61, 1), 2 * sigma.log()[:, None])
b = DiagonalGaussian(torch.full((61, 1), 0.1), a.log_var)

figure, (densities, rulers) = plt.subplots(1, 2, layout="constrained")
z = torch.linspace(-0.25, 0.35, 800)
for width, colour in ((0.08, "0.6"), (0.015, "k")):
    for mean, dash in ((0.0, "-"), (0.1, "--")):
        density = torch.distributions.Normal(mean, width).log_prob(z).exp()
        densities.plot(
            z, density, dash, color=colour, label=rf"$\sigma = {width}$" if dash == "-" else None
        )
densities.set(xlabel="$z$", yticks=[], title="same shift, two widths")
densities.legend()
rulers.loglog(
    sigma,
    kl_divergence(a, b),
    color=METHODS["vae"]["color"],
    linestyle="--",
    label=r"$\mathcal{KL}$ (nats)",
)
rulers.loglog(sigma, w2_squared(a, b), color=METHODS["se"]["color"], label="$W_2^2$")
rulers.set(xlabel=r"$\sigma$", title="how far apart?")
rulers.legend()
plt.show()

# %% [markdown]
r"""
The divergence counts how well one can tell the two apart from samples, so it explodes as they cease to overlap. The
Wasserstein distance counts how far mass has to travel, which is 0.1 for any width.

## Kullback-Leibler, in closed form

For $P_a = \mathcal N(\mu_a, \Sigma_a)$ and $P_b = \mathcal N(\mu_b, \Sigma_b)$,

(eq-8)=
$$
\mathcal{KL}(P_a \,\|\, P_b) =
 \tfrac12 \Big( \operatorname{Tr} \Sigma_b^{-1} (\Sigma_a - \Sigma_b) - \log \big|\Sigma_b^{-1} \Sigma_a\big| \Big)
 + \tfrac12 (\mu_a - \mu_b)^\top \Sigma_b^{-1} (\mu_a - \mu_b).
\tag{8}
$$

*Derivation.* The divergence is $\langle \log P_a(Z) - \log P_b(Z) \rangle_{P_a}$. The two normalisers differ by
$-\frac12 \log|\Sigma_a| + \frac12 \log|\Sigma_b| = -\frac12 \log |\Sigma_b^{-1} \Sigma_a|$. The two quadratic forms
average to $-\frac12 \operatorname{Tr} I$ and to
$\frac12 \operatorname{Tr} \Sigma_b^{-1} \big(\Sigma_a + (\mu_a - \mu_b)(\mu_a - \mu_b)^\top\big)$. Collect.

We check [(8)](#eq-8) against the definition itself: the integral of $P_a \log (P_a / P_b)$, by Gauss-Hermite
quadrature, which is exact here because the logarithm of the ratio is a quadratic polynomial.
"""

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(0)


def random_gaussian(dimension: int) -> FullGaussian:
    mean = torch.randn(dimension, generator=generator)
    scale = torch.randn(dimension, dimension, generator=generator)
    return FullGaussian(mean, torch.eye(dimension) + 0.3 * scale)


def log_density(p: FullGaussian, z: torch.Tensor) -> torch.Tensor:
    return torch.distributions.MultivariateNormal(p.mean, p.covariance).log_prob(z)


def gauss_hermite(p: FullGaussian, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (n^D, D) and weights; averages over p are exact up to the degree 2 nodes - 1."""
    x, w = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
    dimension = len(p.mean)
    grid = torch.cartesian_prod(*[x] * dimension)
    weights = torch.cartesian_prod(*[w / w.sum()] * dimension).prod(-1)
    return p.mean + grid @ p.scale.mT, weights


# %%
a, b = random_gaussian(3), random_gaussian(3)
z, weights = gauss_hermite(a, nodes=3)
definition = weights @ (log_density(a, z) - log_density(b, z))
agree("KL, eq. (8) against its definition", kl_divergence(a, b), definition, rtol=1e-11)

# %% [markdown]
r"""
## Its two parts

The first bracket compares the covariances alone. It is half the log-det divergence (also named after Stein, and for
scalars after Itakura and Saito). The second is half the squared Mahalanobis
distance of the means, in the metric of $\Sigma_b$.
"""

# %%
terms = kl_terms(a, b)
ratio = torch.linalg.solve(b.covariance, a.covariance)
stein = torch.trace(ratio) - 3 - torch.linalg.slogdet(ratio).logabsdet
shift = a.mean - b.mean
mahalanobis = shift @ torch.linalg.solve(b.covariance, shift)
agree("the covariances' part against Stein's divergence", terms.covariance, stein / 2, rtol=1e-10)
agree("the means' part against Mahalanobis' distance", terms.mean, mahalanobis / 2, rtol=1e-10)
agree("their sum against KL", sum(terms), kl_divergence(a, b), rtol=1e-14)

# %% [markdown]
r"""
Each part ignores the choice of coordinates. Replace $z$ by $A z + c$ with any invertible $A$: nothing changes. The
Wasserstein distance does change: it measures in the units of $z$.
"""

# %%
A, c = torch.randn(3, 3, generator=generator), torch.randn(3, generator=generator)


def transformed(p: FullGaussian) -> FullGaussian:
    return FullGaussian(A @ p.mean + c, A @ p.scale)


moved = kl_terms(transformed(a), transformed(b))
half = [FullGaussian(p.mean / 2, p.scale / 2) for p in (a, b)]
agree("both parts of KL, in other coordinates", torch.stack(moved), torch.stack(terms), rtol=1e-9)
agree(
    "W_2^2 of latents half as large, against a quarter",
    w2_squared(*half),
    w2_squared(a, b) / 4,
    rtol=1e-12,
)

# %% [markdown]
r"""
## Why Wasserstein

Keep three things in mind for what follows.

1. **It is finite where the divergence is not.** An encoder that is sure of itself has $\sigma \to 0$. The divergence
   between two such representations is infinite, and its gradient is of no use.
2. **It measures where the classifier looks.** A linear probe on the latent reads differences of the means in the units
   of the latent. So does $W_2$.
3. **It has a scale**, and so it has a way out: an encoder that halves its latent quarters its $W_2^2$ and has not
   become any smoother. [A later chapter](12-smooth-or-shrink.ipynb) measures how much of that happens.
"""

# %%
point_a = FullGaussian(torch.zeros(2), torch.zeros(2, 1))  # no spread at all
point_b = FullGaussian(torch.tensor([3.0, 4.0]), torch.zeros(2, 1))
holds("KL between two points is infinite", kl_divergence(point_a, point_b) == math.inf)
agree("W_2^2 between two points", w2_squared(point_a, point_b), 3.0**2 + 4.0**2)

# %% [markdown]
r"""
## Exercises

**1.** Show that the covariance part of [(8)](#eq-8) is never negative.

:::{dropdown} Solution
Let $\lambda_k > 0$ be the eigenvalues of $\Sigma_b^{-1} \Sigma_a$. The part is
$\frac12 \sum_k (\lambda_k - 1 - \log \lambda_k)$, and $\log \lambda \le \lambda - 1$ with equality at 1 only.
:::

**2.** Encoders emit log-variances. With $d = \log \lambda$ the summand is $e^d - 1 - d$. What goes wrong in float32
when $d = 10^{-4}$, and what does `se_core` do?

:::{dropdown} Solution
The true value is about $d^2/2 = 5 \cdot 10^{-9}$. The numbers that are subtracted are near 1 and carry errors of
$6 \cdot 10^{-8}$: no digit survives. `se_core.gaussians` sums the series $\frac{d^2}{2}(1 + \frac d3 + \dots)$ there.
:::
"""

# %% tags=["hide-input"]
d = torch.tensor([[1e-4]], dtype=torch.float32)
naive = float((d.exp() - 1 - d) / 2)
ours = float(kl_divergence(DiagonalGaussian(0 * d, d), DiagonalGaussian(0 * d, 0 * d)))
exact = (math.expm1(float(d)) - float(d)) / 2
agree("the summand in float32, as a series", ours, exact, rtol=1e-6)
less("half of it, against the error of e^d - 1 - d, in 1e-9", 0.5e9 * exact, 1e9 * abs(naive - exact))

# %% [markdown]
r"""
## What we checked

* Equation [(8)](#eq-8) against its definition, by exact quadrature in three dimensions, to eleven digits.
* Each of its two terms against its textbook form, and the invariance of each under affine maps.
* $W_2$ is finite for point masses and scales with the latent.
"""
