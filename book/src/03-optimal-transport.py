# %% [markdown]
r"""
# Optimal transport between Gaussians

Move one heap of sand onto another at the least cost. Between two Gaussians the answer is an affine map, and the cost
has a closed form. Both are derived here, and then confronted with a linear program that knows nothing of Gaussians.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment, linprog

from se_core import FullGaussian
from se_core.lab.figures import METHODS, STYLE
from se_core.transport import coupling, monge_map, w2_squared

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
plt.rcParams.update(STYLE | {"figure.dpi": 120, "figure.figsize": (6.4, 3.4)})

a = FullGaussian.from_covariance(torch.tensor([-1.5, 0.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
b = FullGaussian.from_covariance(torch.tensor([1.5, 0.3]), torch.tensor([[0.3, -0.2], [-0.2, 1.2]]))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two clouds of points, one elongated upwards to the right, the other nearly vertical; thin grey lines connect each point to its image under the optimal map."}}
generator = torch.Generator().manual_seed(3)
z_a = a.mean + torch.randn(120, 2, generator=generator) @ a.scale.mT
z_b = monge_map(a, b)(z_a)
figure, axes = plt.subplots(layout="constrained")
for start, end in zip(z_a, z_b, strict=True):
    axes.plot([start[0], end[0]], [start[1], end[1]], color="0.8", linewidth=0.6, zorder=0)
axes.plot(*z_a.T, "o", color=METHODS["vae"]["color"], label="$z_a$", markersize=3)
axes.plot(*z_b.T, "s", color=METHODS["se"]["color"], label="its image $z_b$", markersize=3)
axes.set_aspect("equal")
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
independent judge. A cost that depends on second moments alone does not see whether a distribution is Gaussian, so we
may replace the Gaussian $Q_a$ by a discrete distribution with the same moments: the nodes $z_i$ and weights $p_i$ of
Gauss-Hermite quadrature. Its image under the affine map $T$ from $a$ to $b$, derived below, has the moments of $Q_b$. If $T$ is optimal for the
Gaussians, it is optimal for the nodes, for both are a matter of $T$ being the gradient of a convex function.
"""

# %%
x, w = np.polynomial.hermite_e.hermegauss(6)
nodes = a.mean + torch.cartesian_prod(torch.from_numpy(x), torch.from_numpy(x)) @ a.scale.mT
images = monge_map(a, b)(nodes)
p = np.outer(w, w).ravel() / w.sum() ** 2

cost = torch.cdist(nodes, images).square().numpy()
n = len(p)
rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
marginals = np.vstack([rows, columns])  # eq. 9
program = linprog(cost.ravel(), A_eq=marginals, b_eq=np.concatenate([p, p]), method="highs")  # eq. 10

assert program.status == 0
np.testing.assert_allclose(program.fun, float(w2_squared(a, b)), rtol=1e-12)
print(f"{n * n} unknowns, {2 * n} equations: {program.fun:.6f};  closed form: {w2_squared(a, b):.6f}")

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

Only $\operatorname{Tr} \Psi$ depends on the plan, whatever its shape; so a plan is as good as its cross-covariance. Factor
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

# %%
covariance_a, covariance_b = a.covariance.numpy(), b.covariance.numpy()
root_b = sqrtm(covariance_b).real
middle = sqrtm(root_b @ covariance_a @ root_b).real
psi = covariance_a @ root_b @ np.linalg.inv(middle) @ root_b

L_a, L_b = a.scale.numpy(), b.scale.numpy()
X, s, Yt = np.linalg.svd(L_a.T @ L_b)
np.testing.assert_allclose(L_a @ X @ Yt @ L_b.T, psi, atol=1e-12)

assert np.abs(psi - psi.T).max() > 0.1  # not symmetric
joint = np.block([[covariance_a, psi], [psi.T, covariance_b]])
assert np.linalg.eigvalsh(joint).min() > -1e-12  # a covariance
printed = np.block([[covariance_a, psi], [psi, covariance_b]])
assert np.linalg.eigvalsh((printed + printed.T) / 2).min() < -0.01  # as printed in the paper: none
print(np.round(psi, 4))

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
open_part = covariance_a - psi @ np.linalg.solve(covariance_b, psi.T)
np.testing.assert_allclose(open_part, 0, atol=1e-12)

matrix = covariance_a @ root_b @ np.linalg.inv(middle) @ np.linalg.inv(root_b)
back = monge_map(b, a)
np.testing.assert_allclose(back.matrix, matrix, atol=1e-12)
np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)  # symmetric,
assert np.linalg.eigvalsh(matrix).min() > 0  # and positive definite: the gradient of a convex function
torch.testing.assert_close(back(monge_map(a, b)(z_a)), z_a)  # there and back again

# %% [markdown]
r"""
Brenier's theorem says that a map is optimal exactly if it is the gradient of a convex function. Then no exchange of
partners can help, among any points. The assignment solver agrees: of all $400!$ ways to pair 400 points with their
images, the cheapest is to pair each with its own.
"""

# %%
z_a = a.mean + torch.randn(400, 2, generator=generator) @ a.scale.mT
rows, columns = linear_sum_assignment(torch.cdist(z_a, monge_map(a, b)(z_a)).square())
assert (rows == columns).all()

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
np.testing.assert_allclose(float(w2_squared(a, b)), printed, rtol=1e-12)

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
Procrustes distance of the two factors: $\|L_a X Y^\top - L_b\|_F^2$. An attack starts where
the two are close, and needs exactly these digits.
"""

# %%
near = FullGaussian(a.mean, a.scale * (1 + 1e-5))
exact = float(w2_squared(a, near))
single = [FullGaussian(q.mean.float(), q.scale.float()) for q in (a, near)]
ours = float(w2_squared(*single))

c_a, c_b = (q.covariance.numpy() for q in single)
root = sqrtm(c_b).real.astype(np.float32)
trace_form = float(np.trace(c_a + c_b - 2 * sqrtm(root @ c_a @ root).real.astype(np.float32)))

true_here = float(w2_squared(*(FullGaussian(q.mean.double(), q.scale.double()) for q in single)))
assert abs(ours - true_here) < 1e-3 * true_here
assert abs(trace_form - true_here) > 10 * true_here  # not a digit left

# %% [markdown]
r"""
## Exercises

**1.** Is the plan that pairs nothing, $\Psi = 0$, ever optimal?

:::{dropdown} Solution
Only if $L_a^\top L_b = 0$: the two Gaussians live in orthogonal subspaces. Then all plans cost the same.
:::

**2.** Let $\Sigma_a$ be singular. Is there a map from $a$ to $b$? Is there a plan?

:::{dropdown} Solution
If $\Sigma_b$ has full rank there are maps, but none is affine and none is optimal: the only optimal plan is the map from
$b$ to $a$, which sends many points to one. Seen from $a$, the mass must split. The plan exists, and [(12)](#eq-12) holds
by continuity. `monge_map` refuses, `coupling` works:
:::
"""

# %% tags=["hide-input"]
flat = FullGaussian(torch.zeros(2), torch.tensor([[1.0], [0.0]]))
try:
    monge_map(flat, b)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a map out of a line")
plan = coupling(flat, b, gamma=1e6).joint()
cost = (flat.mean - b.mean).square().sum() + torch.trace(
    flat.covariance + b.covariance - 2 * plan.covariance[:2, 2:]
)
torch.testing.assert_close(cost, w2_squared(flat, b), rtol=1e-5, atol=0)

# %% [markdown]
r"""
## What we checked

* Equations [(9)](#eq-9), [(10)](#eq-10) and [(12)](#eq-12) by a linear program over all plans, to twelve digits.
* Equation [(11)](#eq-11) as printed but for the corner, against the form with singular vectors; $\Psi$ is not symmetric,
  and the joint as printed is no covariance.
* The map: symmetric, positive definite, invertible, and the best of $400!$ assignments.
* In float32 the sum of squares keeps its digits and the trace form has none.
"""
