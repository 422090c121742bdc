# %% [markdown]
r"""
# The Riccati equation and its closed form

The optimal plan of the last chapter is degenerate. Its entropy is $-\infty$, and it tolerates no noise. The smooth
encoder wants a plan with entropy, and $\gamma$ says how much: from independence at $\gamma = 0$ to the optimal map as
$\gamma \to \infty$. This chapter derives every formula on the way, and checks each in the cell below it.
[The next one](05-float32-and-libraries.ipynb) asks what a computer and other libraries make of them.
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
import sympy
import torch
from IPython.display import HTML
from scipy.linalg import solve_continuous_are
from scipy.optimize import minimize
from scipy.special import logsumexp

from se_core import DiagonalGaussian, FullGaussian
from se_core.gaussians import entropy
from se_core.lab.display import agree, book_style, holds, less
from se_core.lab.figures import METHODS
from se_core.transport import coupling, entropic_cost, entropic_w2_squared, mutual_information

book_style()
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def scalar(mean: float, sigma: float) -> DiagonalGaussian:
    return DiagonalGaussian(torch.tensor([mean]), 2 * torch.tensor([sigma]).log())


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Draws from the best plan at four couplings. Each panel has the same two marginals, $\\mathcal N(0, 1)$ and $\\mathcal N(0.5, 1.7^2)$. Only the coupling differs.", "name": "family-of-plans"}, "image": {"alt": "Four panels with samples of the plan of two scalar Gaussians. At gamma 0 a round cloud, at gamma 0.5 a tilted one, at gamma 5 a narrow one, at gamma 500 nearly a straight line."}}
a, b = scalar(0.0, 1.0), scalar(0.5, 1.7)
noise = torch.randn(250, 2, generator=torch.Generator().manual_seed(1))
figure, panels = plt.subplots(2, 2, figsize=(3.6, 4.6), sharex=True, sharey=True, layout="constrained")
for axes, gamma in zip(panels.flat, (0.0, 0.5, 5.0, 500.0), strict=True):
    joint = coupling(a, b, gamma).joint()
    z_a, z_b = (joint.mean + noise @ joint.scale.mT).T
    axes.plot(z_a, z_b, "o", markersize=1.5, color=METHODS["se"]["color"])
    axes.set_title(rf"$\gamma = {gamma:g}$")
    axes.set_aspect("equal")
for axes in panels[1]:
    axes.set_xlabel("$z_a$")
for axes in panels[:, 0]:
    axes.set_ylabel("$z_b$")
plt.show()

# %% [markdown]
r"""
## The functional

Entropic transport minimises, over all plans $Q$ of the two marginals,

(eq-13)=
$$
F[Q] = \frac\gamma2 \big\langle \operatorname{Tr} (Z_a - Z_b)(Z_a - Z_b)^\top \big\rangle_{Q(Z_a, Z_b)}
 - H[Q(Z_a, Z_b)] .
\tag{13}
$$

The first term pulls the two together, the second pushes the plan open. In other fields $\gamma$ is an inverse
temperature {cite}`cuturi2013,amari2017,solomon2018`.

**A Gaussian plan suffices.** The paper takes this for granted; here is why. Let $Q$ be any plan with finite second
moments, and $G$ the Gaussian with the same mean and covariance. The marginals of $Q$ are Gaussian, so $G$ has them too:
it is a plan. It has the same expected cost, which depends on second moments only. And
$H[G] - H[Q] = \mathcal{KL}(Q \,\|\, G) \ge 0$. So $F[G] \le F[Q]$. $\square$

An independent judge that never heard of Gaussians is Sinkhorn's algorithm on a grid. It scales the kernel
$e^{-\gamma c / 2}$ until both marginals fit.
"""


# %% tags=["hide-input"]
def sinkhorn(
    log_kernel: np.ndarray, log_p: np.ndarray, log_q: np.ndarray, sweeps: int = 200
) -> np.ndarray:
    """The logarithm of the plan diag(e^f) K diag(e^g) with marginals p and q."""
    g = np.zeros_like(log_q)
    for _ in range(sweeps):
        f = log_p - logsumexp(log_kernel + g[None, :], axis=1)
        g = log_q - logsumexp(log_kernel + f[:, None], axis=0)
    return log_kernel + f[:, None] + g[None, :]


def grid(q: DiagonalGaussian, n: int = 120) -> tuple[np.ndarray, np.ndarray, float]:
    """Points up to 9 standard deviations, log masses, and the spacing."""
    mean, sigma = float(q.mean), float((q.log_var / 2).exp())
    z = np.linspace(mean - 9 * sigma, mean + 9 * sigma, n)
    log_density = -0.5 * ((z - mean) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    return z, log_density + np.log(z[1] - z[0]), z[1] - z[0]


# %%
gamma = 1.0
(x, log_p, h_a), (y, log_q, h_b) = grid(a), grid(b)
squared = (x[:, None] - y[None, :]) ** 2
log_plan = sinkhorn(-gamma / 2 * squared, log_p, log_q)
plan = np.exp(log_plan)

cost = (plan * squared).sum()
F_grid = gamma / 2 * cost + (plan * (log_plan - np.log(h_a * h_b))).sum()  # eq. 13
psi_grid = (plan * (x[:, None] * (y[None, :] - 0.5))).sum()
agree("F, closed form against the grid", entropic_cost(a, b, gamma), F_grid, rtol=1e-10)
agree("its expected cost", entropic_w2_squared(a, b, gamma), cost, rtol=1e-10)
agree("its Psi", coupling(a, b, gamma).psi[0], psi_grid, rtol=1e-10)

# %% [markdown]
r"""
The grid's optimum is the closed form's, so the best plan is Gaussian: its log-density is a quadratic, whose third
differences vanish.
"""

# %%
for name, axis, line in (("z_a", 1, log_plan[:, 60]), ("z_b", 0, log_plan[60])):
    inside = plan.max(axis) > 1e-9  # where the plan has mass
    third = np.abs(np.diff(line[inside], n=3)).max()
    holds(f"third differences along {name} below 1e-9", third < 1e-9)

# %% [markdown]
r"""
## The functional as a function of $\Psi$

From here on $Q$ is the Gaussian with means $\mu_a, \mu_b$, covariances $\Sigma_a, \Sigma_b$ and cross-covariance
$\Psi$, subject to $\Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top \succ 0$. The cost is linear in $\Psi$:

(eq-14)=
$$
\big\langle \operatorname{Tr} (Z_a - Z_b)(Z_a - Z_b)^\top \big\rangle = -2 \operatorname{Tr}(\Psi) + \text{const} .
\tag{14}
$$

The determinant of the joint covariance factorises by Schur's formula, and with $D = 2 D_z$ the dimension of the pair

(eq-15)=
$$
H[Q(z_a, z_b)] = \frac D2 \log(2 \pi e)
 + \frac12 \log \big( |\Sigma_b|\, |\Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top| \big) .
\tag{15}
$$

Drop what does not depend on $\Psi$:

(eq-16)=
$$
\tilde F(\Psi) = -\gamma \operatorname{Tr}(\Psi)
 - \frac12 \log \big| \Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top \big| .
\tag{16}
$$

(The paper has an idle trace before the logarithm.) The check draws five random plans in three dimensions and computes the
left sides from the joint alone. What does not depend on $\Psi$ is one constant for all five.
"""

# %% tags=["hide-input"]
D_z, gamma = 3, 0.8
generator = torch.Generator().manual_seed(0)


def random_gaussian() -> FullGaussian:
    scale = torch.eye(D_z) + 0.5 * torch.randn(D_z, D_z, generator=generator)
    return FullGaussian(torch.randn(D_z, generator=generator), scale)


a, b = random_gaussian(), random_gaussian()
S_a, S_b = a.covariance, b.covariance


def open_part(psi: torch.Tensor) -> torch.Tensor:
    """Sigma_a - Psi Sigma_b^{-1} Psi^T, the covariance of z_a given z_b."""
    return S_a - psi @ torch.linalg.solve(S_b, psi.mT)


def F_tilde(psi: torch.Tensor) -> torch.Tensor:  # eq. 16
    return -gamma * torch.trace(psi) - torch.linalg.slogdet(open_part(psi)).logabsdet / 2


def random_plan() -> tuple[torch.Tensor, torch.distributions.MultivariateNormal]:
    K = torch.randn(D_z, D_z, generator=generator)
    psi = a.scale @ (0.7 * K / torch.linalg.matrix_norm(K, 2)) @ b.scale.mT
    covariance = torch.cat([torch.cat([S_a, psi], 1), torch.cat([psi.mT, S_b], 1)])
    return psi, torch.distributions.MultivariateNormal(torch.cat([a.mean, b.mean]), covariance)


def expected_cost(joint: torch.distributions.MultivariateNormal) -> torch.Tensor:
    difference = torch.cat([torch.eye(D_z), -torch.eye(D_z)], 1)  # z_a - z_b = difference @ (z_a, z_b)
    second_moment = joint.covariance_matrix + torch.outer(joint.mean, joint.mean)
    return torch.trace(difference @ second_moment @ difference.mT)


def schur_entropy(psi: torch.Tensor) -> torch.Tensor:  # eq. 15
    return D_z * np.log(2 * np.pi * np.e) + (torch.logdet(S_b) + torch.logdet(open_part(psi))) / 2


# %%
plans = [random_plan() for _ in range(5)]
costs = torch.stack([expected_cost(joint) for _, joint in plans])
entropies = torch.stack([joint.entropy() for _, joint in plans])
linear = torch.stack([-2 * torch.trace(psi) for psi, _ in plans])
schur = torch.stack([schur_entropy(psi) for psi, _ in plans])
reduced = torch.stack([F_tilde(psi) for psi, _ in plans])

rest = costs - linear
agree("eq. (14), what is left of the cost", rest, rest[0].expand(5), rtol=1e-12)
agree("eq. (15), the entropy", schur, entropies, rtol=1e-12)
rest = gamma / 2 * costs - entropies - reduced
agree("eq. (16), what is left of F", rest, rest[0].expand(5), rtol=1e-12)

# %% [markdown]
r"""
## The derivative, and the Riccati equation

With $S = \Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top$ we have $d \log |S| = \operatorname{Tr} S^{-1} dS$ and
$dS = -d\Psi\, \Sigma_b^{-1} \Psi^\top - \Psi \Sigma_b^{-1} d\Psi^\top$. Both terms have the same trace against
$S^{-1}$, so

(eq-17)=
$$
\frac{\partial \tilde F(\Psi)}{\partial \Psi} = -\gamma I
 + \Sigma_b^{-1} \Psi^\top \big( \Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top \big)^{-1} ,
\tag{17}
$$

in the layout where the entry $(i, j)$ is the derivative with respect to $\Psi_{ji}$. Set it to zero and multiply by
$S / \gamma$ from the right:

(eq-18)=
$$
0 = -\Psi \Sigma_b^{-1} \Psi^\top - \frac1\gamma \Sigma_b^{-1} \Psi^\top + \Sigma_a .
\tag{18}
$$

This is a Riccati equation in disguise. Its first and last terms are symmetric, so the middle one is: $G = \Psi
\Sigma_b^{-1}$ is a symmetric matrix, though $\Psi$ is not, and

$$
G \Sigma_b G + \tfrac1\gamma G - \Sigma_a = 0 .
$$

$G$ is the matrix that predicts $z_a$ from $z_b$. The equation also says $G = \gamma S$: the prediction is $\gamma$ times
what stays open.
"""

# %%
psi, _ = random_plan()
psi.requires_grad_()
(gradient,) = torch.autograd.grad(F_tilde(psi), psi)
pull = torch.linalg.solve(S_b, psi.mT) @ torch.linalg.inv(open_part(psi))
printed = pull.detach() - gamma * torch.eye(D_z)
agree("eq. (17) against autograd", printed, gradient.mT, rtol=1e-10, atol=1e-12)

psi = coupling(a, b, gamma).psi
G = torch.linalg.solve(S_b, psi.mT).mT
agree("eq. (18), two terms against the third", G @ psi.mT + G.mT / gamma, S_a, rtol=1e-10)
agree("G against its transpose", G, G.mT, atol=1e-12)
agree("G against gamma S", G, gamma * open_part(psi), atol=1e-12)
less("0.05, against the largest entry of Psi - Psi^T", 0.05, float((psi - psi.mT).max()))

# %% [markdown]
r"""
Control engineers have solved Riccati equations for sixty years, and SciPy carries one of their solvers. In its notation
$A = -\frac{1}{2 \gamma} I$, $B B^\top = \Sigma_b$, $Q = \Sigma_a$, $R = I$. It knows nothing of transport, and agrees.
So does a minimiser that is given nothing but [(16)](#eq-16).
"""


# %% tags=["hide-input"]
def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
    psi = torch.tensor(flat.reshape(D_z, D_z), requires_grad=True)
    if torch.linalg.eigvalsh(open_part(psi.detach())).min() <= 0:
        return np.inf, np.zeros(D_z**2)
    value = F_tilde(psi)
    return float(value.detach()), torch.autograd.grad(value, psi)[0].numpy().ravel()


# %%
one = np.eye(D_z)
care = solve_continuous_are(-one / (2 * gamma), np.linalg.cholesky(S_b), S_a.numpy(), one)
agree("G against SciPy's Riccati solver", G, care, rtol=1e-9)

settings = {"gtol": 1e-9, "maxiter": 500}
search = minimize(objective, np.zeros(D_z**2), jac=True, method="BFGS", options=settings)
agree("Psi against the minimiser", psi, search.x.reshape(D_z, D_z), atol=1e-6)
agree("and the minimum", F_tilde(psi), search.fun, rtol=1e-10)

# %% [markdown]
r"""
## The closed form

The paper announces a closed form for $\Psi$ and gives it for scalars only. Here it is. With factors
$\Sigma_a = L_a L_a^\top$, $\Sigma_b = L_b L_b^\top$ and $L_a^\top L_b = X \operatorname{diag}(s)\, Y^\top$, try
$\Psi = L_a X \operatorname{diag}(\rho)\, Y^\top L_b^\top$. Then

$$
S = L_a X \operatorname{diag}(1 - \rho^2)\, X^\top L_a^\top , \qquad
\gamma S \Sigma_b = L_a X \operatorname{diag}\big(\gamma (1 - \rho^2) s\big)\, Y^\top L_b^\top ,
$$

and $G = \gamma S$, that is $\Psi = \gamma S \Sigma_b$, asks for $\rho_k = \gamma s_k (1 - \rho_k^2)$: one scalar
quadratic for each singular value. With $w = 2 \gamma s$ and $u = \sqrt{1 + w^2}$ its root in $[0, 1]$ is

$$
\rho = \frac{w}{1 + u} .
$$

The $\rho_k$ are the canonical correlations of the plan. The stationary point is the minimum: $\tilde F$ is strictly
convex, because $\Psi \Sigma_b^{-1} \Psi^\top$ is convex in the order of matrices and $-\log |\cdot|$ is convex and
decreasing.

The formula contains no inverse and no subtraction. It holds for singular covariances. As $\gamma \to \infty$ all
$\rho_k \to 1$, which is the $\Psi$ of [(11)](#eq-11).
"""

# %%
L_a, L_b = a.scale.numpy(), b.scale.numpy()
X, s, Yt = np.linalg.svd(L_a.T @ L_b)
w = 2 * gamma * s
rho = w / (1 + np.sqrt(1 + w**2))
agree("Psi in closed form", L_a @ X @ np.diag(rho) @ Yt @ L_b.T, psi, atol=1e-12)

# The same correlations, by their definition: singular values of the whitened cross-covariance.
half_white = torch.linalg.solve(torch.linalg.cholesky(S_a), psi)
whitened = torch.linalg.solve(torch.linalg.cholesky(S_b), half_white.mT)
agree("the canonical correlations", rho, torch.linalg.svdvals(whitened), rtol=1e-10)

# %% [markdown]
r"""
## The regularised distance

The cost of the optimal plan is (the paper writes $m$ for $\mu$ from here on)

(eq-19)=
$$
W^2_{2,\gamma}\big(\mathcal N(\mu_a, \Sigma_a), \mathcal N(\mu_b, \Sigma_b)\big)
 = \|\mu_a - \mu_b\|_2^2 + \operatorname{Tr} \{ \Sigma_a + \Sigma_b - 2 \Psi \} ,
\tag{19}
$$

and the whole functional at its minimum is

(eq-20)=
$$
\mathcal{WD}_{2,\gamma}\big(\mathcal N(\mu_a, \Sigma_a), \mathcal N(\mu_b, \Sigma_b)\big) \equiv
 \frac\gamma2 W^2_{2,\gamma}\big(\mathcal N(\mu_a, \Sigma_a), \mathcal N(\mu_b, \Sigma_b)\big)
\tag{20}
$$

(eq-21)=
$$
\qquad - \frac D2 \log(2 \pi e)
 - \frac12 \log \big( |\Sigma_b|\, |\Sigma_a - \Psi \Sigma_b^{-1} \Psi^\top| \big) .
\tag{21}
$$

Neither is a distance: $W^2_{2,\gamma}$ is positive at equal arguments, and $\mathcal{WD}$ can be negative. We prefer to
compute the second through the mutual information. With $H_a$ and $H_b$ for the entropies of the marginals,

$$
I = H_a + H_b - H[Q] = -\tfrac12 \sum_k \log(1 - \rho_k^2) = \tfrac12 \sum_k \log(1 + \tfrac12 w_k \rho_k) .
$$

The last step is $\rho_k = \gamma s_k (1 - \rho_k^2)$ again. The information is finite at every finite $\gamma$, for
singular covariances too:

$$
\mathcal{WD}_{2,\gamma} = \frac\gamma2 W^2_{2,\gamma} + I - H_a - H_b .
$$
"""

# %%
shift = a.mean - b.mean
eq_19 = shift @ shift + torch.trace(S_a + S_b - 2 * psi)
eq_21 = gamma / 2 * eq_19 - schur_entropy(psi)
agree("W^2_{2,gamma}, ours against eq. (19)", entropic_w2_squared(a, b, gamma), eq_19, rtol=1e-12)
agree("WD_{2,gamma}, ours against eqs. (20)-(21)", entropic_cost(a, b, gamma), eq_21, rtol=1e-12)

information = 0.5 * np.log1p(w * rho / 2).sum()
joint_entropy = entropy(coupling(a, b, gamma).joint())
agree("I, ours against the last sum", mutual_information(a, b, gamma), information, rtol=1e-12)
agree("and against the entropies", entropy(a) + entropy(b) - joint_entropy, information, rtol=1e-10)

# %% [markdown]
r"""
## One dimension

For two scalars [(18)](#eq-18) is a quadratic. Multiply by $\Sigma_b$:

(eq-22)=
$$
f(\psi)' = \psi^2 + \frac1\gamma \psi - \Sigma_a \Sigma_b = 0 ,
\tag{22}
$$

(eq-23)=
$$
\psi = -\frac{1}{2 \gamma} \pm \frac{1}{2 |\gamma|} \big( 1 + 4 \gamma^2 \Sigma_a \Sigma_b \big)^{1/2} .
\tag{23}
$$

($f'$ is the numerator of the derivative, for $\gamma \ne 0$.) A covariance needs $\psi^2 \le \Sigma_a \Sigma_b$, and one
root only satisfies it:

(eq-24)=
$$
\psi = \frac{1}{2 \gamma} \big( u_\gamma(\Sigma_a, \Sigma_b) - 1 \big) , \qquad
u_\gamma(\Sigma_a, \Sigma_b) = \big( 1 + 4 \gamma^2 \Sigma_b \Sigma_a \big)^{1/2} .
\tag{24}
$$

SymPy does the algebra.
"""

# %%
g, A, B = sympy.symbols("gamma Sigma_a Sigma_b", positive=True)
t = sympy.symbols("psi", real=True)
f = -g * t - sympy.log(A - t**2 / B) / 2  # eq. 16 in one dimension
quadratic = t**2 + t / g - A * B  # eq. 22
factor = g / (A * B - t**2)
same = sympy.simplify(sympy.diff(f, t) - factor * quadratic) == 0
holds("f' is eq. (22) times gamma / (Sigma_a Sigma_b - psi^2)", same)

u = sympy.sqrt(1 + 4 * g**2 * A * B)
feasible, other = (u - 1) / (2 * g), (-u - 1) / (2 * g)  # eq. 24, and the root it discards
roots = {sympy.simplify(root) for root in sympy.solve(quadratic, t)}
holds("eq. (23) has the two roots", roots == {sympy.simplify(feasible), sympy.simplify(other)})
# By eq. 22 psi^2 = Sigma_a Sigma_b - psi / gamma: at most Sigma_a Sigma_b exactly where psi >= 0.
at_one = {g: 1, A: 1, B: 1}
holds("eq. (24) is the positive one", other.subs(at_one) < 0 < feasible.subs(at_one))

# %% [markdown]
r"""
Put [(24)](#eq-24) into [(20)](#eq-20)-[(21)](#eq-21), and the paper's scalar formula comes out. Section 6 of the paper
sums it over the coordinates of a factorised Gaussian:

$$
\begin{aligned}
\mathcal{WD}_{2,\gamma} = {} & \tfrac\gamma2 \big( \|\mu_a - \mu_b\|^2 + \Sigma_a + \Sigma_b \big) - \tfrac12 (u_\gamma - 1) \\
 & + \tfrac12 \log (u_\gamma + 1) - \tfrac12 \log (2 \Sigma_b \Sigma_a) - \log (2 \pi) - 1 .
\end{aligned}
$$
"""

# %% tags=["hide-input"]
m = sympy.symbols("Delta", real=True)
by_definition = (
    g / 2 * (m**2 + A + B - 2 * feasible)
    - sympy.log(2 * sympy.pi * sympy.E)
    - sympy.log(B * (A - feasible**2 / B)) / 2
)
printed = (
    g / 2 * (m**2 + A + B)
    - (u - 1) / 2
    + sympy.log(u + 1) / 2
    - sympy.log(2 * A * B) / 2
    - sympy.log(2 * sympy.pi)
    - 1
)

# %%
values = dict(zip((g, A, B, m), map(sympy.Rational, ("3/7", "2/3", "5/2", "1/3")), strict=True))
error = abs(sympy.N((by_definition - printed).subs(values), 40))
holds("eqs. (20)-(21) and the printed formula agree to 35 digits", error < 1e-35)

ours = entropic_cost(scalar(0.0, (2 / 3) ** 0.5), scalar(1 / 3, 2.5**0.5), 3 / 7)
agree("WD of two scalars, ours against it", ours, float(printed.subs(values)), rtol=1e-12)

# %% [markdown]
r"""
## Touch it

Move $\gamma$. The marginals stay; the plan closes from a cloud to a line.
"""

# %% tags=["hide-input"]
HTML(
    """
<link rel="stylesheet" href="../_static/pictures.css">
<div class="picture" id="plan"><p>The rendered book has a picture to play with here.</p></div>
<script src="../_static/smooth-encoders.js" defer></script>
<script src="../_static/plan.js" defer></script>
"""
)

# %% [markdown]
r"""
## Sinkhorn is a Riccati iteration

The plan's density is $e^{-\gamma c/2}$ times a function of $z_a$ times a function of $z_b$. So its precision matrix has
$-\gamma I$ in the off-diagonal corners, whatever the marginals, and only the diagonal blocks $P_a, P_b$ are to be found.
Sinkhorn's algorithm fits one marginal at a time. For Gaussians one sweep is

$$
P_a \leftarrow \Sigma_a^{-1} + \gamma^2 P_b^{-1} , \qquad P_b \leftarrow \Sigma_b^{-1} + \gamma^2 P_a^{-1} ,
$$

a discrete Riccati iteration. Each sweep shrinks the error by the fourth power of the largest canonical correlation.
"""

# %%
precision = torch.linalg.inv(coupling(a, b, gamma).joint().covariance)
corner = precision[:D_z, D_z:]
agree("the corner of the precision, against -gamma I", corner, -gamma * torch.eye(D_z), atol=1e-10)

P_b, errors = torch.linalg.inv(S_b), []
for _ in range(40):
    P_a = torch.linalg.inv(S_a) + gamma**2 * torch.linalg.inv(P_b)
    P_b = torch.linalg.inv(S_b) + gamma**2 * torch.linalg.inv(P_a)
    errors.append(float(torch.linalg.matrix_norm(P_b - precision[D_z:, D_z:])))
agree("P_b after forty sweeps", P_b, precision[D_z:, D_z:], rtol=1e-6)
agree("error over the last sweep's, against rho^4", errors[12] / errors[11], rho.max() ** 4, rtol=1e-3)

# %% [markdown]
r"""
## Exercises

**1.** When is $\Psi$ symmetric?

:::{dropdown} Solution
$\Psi = G \Sigma_b$ with $G$ symmetric. So $\Psi = \Psi^\top$ exactly if $G$ commutes with $\Sigma_b$. By the Riccati
equation $\Sigma_a = G \Sigma_b G + G / \gamma$ then commutes with $\Sigma_b$ as well. Conversely, commuting covariances
have common eigenvectors, and [(18)](#eq-18) is solved in their basis by a diagonal $\Psi$.
:::

**2.** Where does the other root of [(23)](#eq-23) lead?

:::{dropdown} Solution
To $\psi < 0$ with $\psi^2 > \Sigma_a \Sigma_b$, a correlation below $-1$. The open part $\Sigma_a - \psi^2 / \Sigma_b$
would be negative.
:::

## What we checked

* That a Gaussian plan suffices, by Sinkhorn on a grid, to ten digits; the optimum's log-density is quadratic.
* Equations [(13)](#eq-13)-[(16)](#eq-16) on random plans, [(17)](#eq-17) by automatic differentiation, [(18)](#eq-18)
  by substitution, by SciPy's Riccati solver, and by minimising [(16)](#eq-16).
* The closed form for matrices, and that $\Psi$ is not symmetric while $\Psi \Sigma_b^{-1}$ is.
* Equations [(19)](#eq-19)-[(21)](#eq-21) from determinants, [(22)](#eq-22)-[(24)](#eq-24) and the scalar
  $\mathcal{WD}$ with SymPy.
* That Sinkhorn's algorithm is a Riccati iteration, and its rate.
"""
