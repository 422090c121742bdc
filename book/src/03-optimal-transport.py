# %% [markdown]
r"""
# Optimal transport between Gaussians

Move one heap of sand onto another at the least cost. Between two Gaussians the answer is an affine map, and the cost
has a closed form. Both are derived here, and then confronted with a linear program that knows nothing of Gaussians.
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
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment, linprog

from se_core import FullGaussian
from se_core.lab.display import agree, book_style, holds, less
from se_core.lab.figures import METHODS
from se_core.transport import coupling, monge_map, w2_squared

book_style()
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

a = FullGaussian.from_covariance(torch.tensor([-1.5, 0.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
b = FullGaussian.from_covariance(torch.tensor([1.5, 0.3]), torch.tensor([[0.3, -0.2], [-0.2, 1.2]]))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A hundred and twenty draws from a Gaussian, each joined to the place where the optimal map sends it. The images are draws from the other Gaussian, and no exchange of partners would make the lines shorter.", "name": "monge-map"}, "image": {"alt": "Two clouds of points, one elongated upwards to the right, the other nearly vertical; thin grey lines connect each point to its image under the optimal map."}}
generator = torch.Generator().manual_seed(3)
z_a = a.mean + torch.randn(120, 2, generator=generator) @ a.scale.mT
z_b = monge_map(a, b)(z_a)
figure, axes = plt.subplots(figsize=(4.8, 3.2), layout="constrained")
for start, end in zip(z_a, z_b, strict=True):
    axes.plot([start[0], end[0]], [start[1], end[1]], color="0.8", linewidth=0.6, zorder=0)
axes.plot(*z_a.T, "o", color=METHODS["vae"]["color"], label="$z_a$", markersize=3)
axes.plot(*z_b.T, "s", color=METHODS["se"]["color"], label="its image $z_b$", markersize=3)
axes.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
r"""
## Plans

A *plan* (or coupling) of two distributions $Q_a$ and $Q_b$ is a joint distribution that has them as its marginals:

(eq-9)=
$$
\Gamma[Q_a, Q_b] \equiv \Big\{ Q :\; Q_a(Z_a) = \int Q(Z_a, Z_b)\, dZ_b, \quad
 Q_b(Z_b) = \int Q(Z_a, Z_b)\, dZ_a \Big\}.
\tag{9}
$$

The least expected cost over all plans is the transport, or Wasserstein, divergence

(eq-10)=
$$
\mathcal{WD}[c](Q_a, Q_b) = \inf_{Q \in \Gamma} \int c(Z_a, Z_b)\, Q(Z_a, Z_b)\, dZ_a\, dZ_b .
\tag{10}
$$

For discrete distributions [(9)](#eq-9) is a list of linear equations and [(10)](#eq-10) a linear program. That gives an
independent judge.

A cost that depends on second moments alone does not see whether a distribution is Gaussian. So we may replace the
Gaussian $Q_a$ by a discrete distribution with the same moments: the nodes $z_i$ and weights $p_i$ of Gauss-Hermite
quadrature. Its image under the affine map $T$ from $a$ to $b$, derived below, has the moments of $Q_b$. If $T$ is optimal
for the Gaussians, it is optimal for the nodes, for both are a matter of $T$ being the gradient of a convex function.

With six nodes a coordinate there are 36 points on either side. A plan then has 1,296 unknowns, and 72 equations say that
its marginals are right.
"""

# %% tags=["hide-input"]
x, w = np.polynomial.hermite_e.hermegauss(6)
nodes = a.mean + torch.cartesian_prod(torch.from_numpy(x), torch.from_numpy(x)) @ a.scale.mT
images = monge_map(a, b)(nodes)
p = np.outer(w, w).ravel() / w.sum() ** 2

# %%
cost = torch.cdist(nodes, images).square().numpy()
n = len(p)
rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
marginals, right_side = np.vstack([rows, columns]), np.concatenate([p, p])  # eq. 9
program = linprog(cost.ravel(), A_eq=marginals, b_eq=right_side, method="highs")  # eq. 10
agree("eq. (9), the marginals of the best plan", marginals @ program.x, right_side, atol=1e-9)
agree("eq. (10), its cost against the closed form", program.fun, w2_squared(a, b), rtol=1e-12)

# %% [markdown]
r"""
## The best Gaussian plan

Take the squared distance for the cost, $c(z_a, z_b) = \|z_a - z_b\|^2$. The paper states that the optimum is Gaussian,

(eq-11)=
$$
Q^*(z_a, z_b) = \mathcal N\left( \begin{pmatrix} \mu_a \cr \mu_b \end{pmatrix},
 \begin{pmatrix} \Sigma_a & \Psi \cr \Psi^\top & \Sigma_b \end{pmatrix} \right),
\qquad
\Psi = \Sigma_a \Sigma_b^{1/2} \big( \Sigma_b^{1/2} \Sigma_a \Sigma_b^{1/2} \big)^{-1/2} \Sigma_b^{1/2} .
\tag{11}
$$

(The paper prints $\Psi$ in both corners. The lower left one is $\Psi^\top$, and $\Psi$ is not symmetric unless the
covariances commute.)

*Derivation.* Expand the cost:

$$
\langle \|Z_a - Z_b\|^2 \rangle = \|\mu_a - \mu_b\|^2 + \operatorname{Tr} (\Sigma_a + \Sigma_b) - 2 \operatorname{Tr} \Psi .
$$

Only $\operatorname{Tr} \Psi$ depends on the plan, whatever its shape: a plan is as good as its cross-covariance. Factor
$\Sigma_a = L_a L_a^\top$, $\Sigma_b = L_b L_b^\top$. The joint covariance is positive semi-definite exactly if
$\Psi = L_a K L_b^\top$ with a $K$ whose singular values are at most 1. Now let
$L_a^\top L_b = X \operatorname{diag}(s)\, Y^\top$ be a singular value decomposition. By von Neumann's inequality

$$
\operatorname{Tr} \Psi = \operatorname{Tr} K L_b^\top L_a \;\le\; \sum_k s_k ,
\qquad \text{with equality at } K = X Y^\top .
$$

Take $L_b = \Sigma_b^{1/2}$. Then $(L_b \Sigma_a L_b)^{1/2} = Y \operatorname{diag}(s)\, Y^\top$, so
$\Psi = L_a X Y^\top L_b^\top$ is the $\Psi$ of [(11)](#eq-11), and
$\sum_k s_k = \operatorname{Tr} (\Sigma_b^{1/2} \Sigma_a \Sigma_b^{1/2})^{1/2}$. $\square$
"""

# %% tags=["hide-input"]
covariance_a, covariance_b = a.covariance.numpy(), b.covariance.numpy()
L_a, L_b = a.scale.numpy(), b.scale.numpy()


def least_eigenvalue(matrix: np.ndarray) -> float:
    """Of the symmetric part: what a quadratic form sees of a matrix."""
    return np.linalg.eigvalsh((matrix + matrix.T) / 2).min()


# %%
root_b = sqrtm(covariance_b).real
middle = sqrtm(root_b @ covariance_a @ root_b).real
psi = covariance_a @ root_b @ np.linalg.inv(middle) @ root_b
X, s, Yt = np.linalg.svd(L_a.T @ L_b)
agree("Psi, eq. (11) against the singular vectors", psi, L_a @ X @ Yt @ L_b.T, atol=1e-12)

joint = np.block([[covariance_a, psi], [psi.T, covariance_b]])
printed = np.block([[covariance_a, psi], [psi, covariance_b]])
holds("with its transpose below, a covariance", least_eigenvalue(joint) > -1e-12)
less("as printed, its least eigenvalue, against zero", least_eigenvalue(printed), 0)
less("a tenth, against |Psi_12 - Psi_21|", 0.1, abs(psi[0, 1] - psi[1, 0]))

# %% [markdown]
r"""
## The plan is degenerate

A plan that wastes nothing leaves nothing open: given $z_b$, the point $z_a$ is known. The conditional covariance
$\Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top = L_a (I - K K^\top) L_a^\top$ vanishes at $K = X Y^\top$, and

$$
z_a(z_b) = \mu_a + \Sigma_a \Sigma_b^{1/2} \big( \Sigma_b^{1/2} \Sigma_a \Sigma_b^{1/2} \big)^{-1/2}
 \Sigma_b^{-1/2} (z_b - \mu_b) .
$$
"""

# %%
explained = psi @ np.linalg.solve(covariance_b, psi.T)
matrix = covariance_a @ root_b @ np.linalg.inv(middle) @ np.linalg.inv(root_b)
there, back = monge_map(a, b), monge_map(b, a)
agree("what z_b explains of Sigma_a, against all of it", explained, covariance_a, atol=1e-12)
agree("the map's matrix, ours against the printed one", back.matrix, matrix, atol=1e-12)
agree("it is symmetric", matrix, matrix.T, atol=1e-12)
less("and positive: zero, against its least eigenvalue", 0, least_eigenvalue(matrix))
agree("there and back again", back(there(z_a)), z_a, atol=1e-10)

# %% [markdown]
r"""
A symmetric positive matrix makes the map the gradient of a convex function. Brenier's theorem says that a map is
optimal exactly if it is such a gradient. Then no exchange of partners can help, among any points. The assignment solver
agrees: of all $400!$ ways to pair 400 points with their images, the cheapest is to pair each with its own.
"""

# %%
z_a = a.mean + torch.randn(400, 2, generator=generator) @ a.scale.mT
rows, columns = linear_sum_assignment(torch.cdist(z_a, monge_map(a, b)(z_a)).square())
holds("each of the 400 points keeps its own image", (rows == columns).all())

# %% [markdown]
r"""
## The distance

Put the best $\operatorname{Tr} \Psi$ into the expanded cost:

(eq-12)=
$$
W_2^2(P_a, P_b) = \|\mu_a - \mu_b\|_2^2
 + \operatorname{Tr} \Big( \Sigma_a + \Sigma_b - 2 \big( \Sigma_b^{1/2} \Sigma_a \Sigma_b^{1/2} \big)^{1/2} \Big) .
\tag{12}
$$
"""

# %%
shift = (a.mean - b.mean).numpy()
printed = shift @ shift + np.trace(covariance_a + covariance_b - 2 * middle)
agree("W_2^2, ours against eq. (12)", w2_squared(a, b), printed, rtol=1e-12)

# %% [markdown]
r"""
For factorised Gaussians the matrices commute, $s_k = \sigma_a^k \sigma_b^k$, and [(12)](#eq-12) is the squared
Euclidean distance of the vectors $(\mu, \sigma)$:

$$
W_2^2 = \sum_k (\mu_a^k - \mu_b^k)^2 + (\sigma_a^k - \sigma_b^k)^2 .
$$

That is what the selection mechanism of the smooth encoder maximises.

## Float32 is enough, in the right form

Near equal arguments the trace form [(12)](#eq-12) subtracts large numbers. The same number is a sum of squares, the
Procrustes distance of the two factors:

$$
W_2^2 = \|\mu_a - \mu_b\|_2^2 + \|L_a X Y^\top - L_b\|_F^2 .
$$

An attack starts where the two are close, and needs exactly these digits. Here $b$ is $a$, wider by one part in 100,000.
"""

# %%
near = FullGaussian(a.mean, a.scale * (1 + 1e-5))
single = [FullGaussian(q.mean.float(), q.scale.float()) for q in (a, near)]
c_a, c_b = (q.covariance.numpy() for q in single)
root = sqrtm(c_b).real.astype(np.float32)
trace_form = float(np.trace(c_a + c_b - 2 * sqrtm(root @ c_a @ root).real.astype(np.float32)))

exact = w2_squared(*(FullGaussian(q.mean.double(), q.scale.double()) for q in single))
agree("W_2^2 in float32, as a sum of squares", w2_squared(*single), exact, rtol=1e-6)
holds("the trace form misses it by more than ten times itself", abs(trace_form - exact) > 10 * exact)

# %% [markdown]
r"""
## Exercises

**1.** Is the plan that pairs nothing, $\Psi = 0$, ever optimal?

:::{dropdown} Solution
Only if $L_a^\top L_b = 0$: the two Gaussians live in orthogonal subspaces. Then all plans cost the same.
:::

**2.** Let $\Sigma_a$ be singular. Is there a map from $a$ to $b$? Is there a plan?

:::{dropdown} Solution
Let $\Sigma_b$ have full rank. If $\Sigma_a = 0$ there is no map at all: a point cannot become a cloud. Otherwise there are
maps, but none is affine and none is optimal. The only optimal plan is the map from $b$ to $a$, which sends many points to
one; seen from $a$, the mass must split. So the plan exists, and [(12)](#eq-12) holds by continuity. `monge_map` refuses,
`coupling` works, as the cell below shows.
:::
"""

# %% tags=["hide-input"]
flat = FullGaussian(torch.zeros(2), torch.tensor([[1.0], [0.0]]))
try:
    monge_map(flat, b)
    refusal = ""
except ValueError as error:
    refusal = str(error)
holds("monge_map refuses a line", refusal.startswith("a must have a covariance of full rank"))
plan = coupling(flat, b, gamma=1e6)
spread = torch.trace(flat.covariance + b.covariance - 2 * plan.psi)
cost = (flat.mean - b.mean).square().sum() + spread
agree("the cost of the plan at gamma = 1e6, against W_2^2", cost, w2_squared(flat, b), rtol=1e-5)

# %% [markdown]
r"""
## What we checked

* Equations [(9)](#eq-9), [(10)](#eq-10) and [(12)](#eq-12) by a linear program over all plans, to twelve digits.
* The $\Psi$ of equation [(11)](#eq-11) against the form with singular vectors. It is not symmetric, and the joint as
  printed is no covariance.
* The map: symmetric, positive definite, invertible, and the best of $400!$ assignments.
* In float32 the sum of squares keeps its digits and the trace form has none.
"""
