# %% [markdown]
r"""
# Figure 1

The paper's one figure: accuracy of a linear probe on the representation, against the radius of the attack, for the VAE
and for the smooth encoder. Four panels, two tasks on colour MNIST with an MLP, and two architectures on MNIST. We add a
third curve, an encoder of our own that cannot shrink.
"""

# %%
import json
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from IPython.display import Image

from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluate
from se_core.lab.experiments import METHODS, PANELS, PROFILES, figure1_runs
from se_core.lab.figures import METHODS as STYLES
from se_core.lab.figures import STYLE, figure1
from se_core.lab.statistics import claims, curve, mean_and_interval, robustness, select
from se_core.lab.training import train

torch.set_num_threads(1)
plt.rcParams.update(STYLE | {"figure.dpi": 120, "figure.figsize": (6.4, 2.8)})
results = json.loads((Path(BOOK) / "results" / "figure1-small.json").read_text())

# %% tags=["hide-input"] mystnb={"image": {"alt": "Figure 1 in four panels: adversarial test accuracy against attack radius. In each panel the VAE's accuracy drops first, then the smooth encoder's, and the pinned smooth encoder's last."}}
picture = BytesIO()
figure1(results).savefig(picture, dpi=130)
Image(picture.getvalue())

# %% [markdown]
r"""
Lines are means over seeds, bands are 95 % intervals. The vertical line is the radius at which the smooth encoders selected
their neighbours while training. The *pinned* one differs from the paper's in three things: the scale of its means is fixed,
so that it must smooth where the paper's may shrink ([next chapter](09-smooth-or-shrink.ipynb)); then $\gamma$ may be larger;
and its selection remembers where each image's last attack ended, and goes on from there with a single step.

## What was run

The picture shows the profile `small`, which trains in minutes on a laptop; the profile `paper` has the paper's sizes.
Colour MNIST paints each digit in one of seven colours, the corners of the RGB cube without black, drawn at random once.
Everything that the methods share is equal between them: architecture, initialisation, optimiser, schedule, number of steps,
observation variance, probe. The paper trains with SGD; we use Adam. The last sixth of the training digits is held out,
and what is ours (learning rate, schedule, and the pinned encoder's $\gamma$ and single step) was chosen on it, by one seed; the
test digits were read once. The committed results carry their provenance.
"""

# %%
provenance = results["provenance"]
size, first = PROFILES[provenance["profile"]], provenance["runs"][0]
steps, conv_steps, L = size.run["iterations"], size.conv["iterations"], size.run["attack_steps"]
attack = size.evaluation
print(f"profile {provenance['profile']}, seeds {provenance['seeds']}, {len(provenance['runs'])} runs")
print(f"iterations {steps} (convolutional {conv_steps}), L = {L}")
print(f"attack on the probe: {attack.attack_steps} steps, {attack.test_images} test images")
shared = ("latent_dim", "radius", "optimiser", "learning_rate", "schedule", "batch_size")
print(", ".join(f"{setting} {first[setting]}" for setting in shared))
print("noise_variance", {run["dataset"]: run["noise_variance"] for run in provenance["runs"]})
print("pinned:", METHODS["pinned"])

assert all(run[setting] == first[setting] for run in provenance["runs"] for setting in shared)
runs = [RunConfig(**run) for run in provenance["runs"]]
assert runs == figure1_runs(provenance["profile"])  # nothing left out

# %% [markdown]
r"""
## The threat model

The attacker knows encoder and probe, and may change every pixel by at most the radius, within $[0, 1]$. The
representation is the encoder's mean, and the probe a multinomial logistic regression on the raw means, trained on clean
data. An image counts as lost if any of the attacks succeeds, on the cross-entropy or on the margin {cite}`carlini2016`, at
this radius or at a smaller one of the list. So the accuracy cannot rise with the radius.

Where an attack begins matters more than how it goes on. Begun at a random point of the ball, as is usual, it leaves more of
a pinned encoder standing than begun beside the image itself, at the large radii most: far away the signed steps end in
another basin. So this one begins near the image, and goes on with momentum.
"""

# %%
for panel in PANELS:
    for method in METHODS:
        for seed in provenance["seeds"]:
            falling = [
                r["accuracy"]
                for r in sorted(results["records"], key=lambda r: r["radius"])
                if (r["dataset"], r["architecture"], r["task"])
                == (panel.dataset, panel.architecture, panel.task)
                and (r["method"], r["seed"]) == (method, seed)
            ]
            assert falling == sorted(falling, reverse=True)

# %% [markdown]
r"""
## The claims

The paper gives no numbers, so there are none to match. It makes claims:

* *nominal* accuracy on the colour task is close to perfect for both (the text says "adversarial", and means nominal);
* under attack, the VAE's accuracy drops quickly and the smooth encoder's degrades gracefully;
* a representation trained at one radius is still robust at larger ones ([below](#a-smaller-radius));
* the ConvNET is a little more robust by itself, and smoothing increases that significantly.

Each as a number: accuracy without attack, mean accuracy over the radii from 0.02 to 0.2, and the *gain*, a smooth
encoder's such mean divided by the VAE's, with half of its 95 % interval. Seeds are compared in pairs.
"""

# %%
figures = claims(results["records"])
for method, numbers in STYLES.items():
    print(f"{numbers['label']:24s}nominal   under attack            gain    apart at 0.05")
    for claim in figures:
        row = "".join(f"{100 * claim[key][method]:10.0f} %" for key in ("nominal", "robustness"))
        if method != "vae":
            ratio, half = claim["gain"][method]
            row += f"{ratio:14.2f} ± {half:.2f}    {'yes' if claim['apart'][method] else 'no'}"
        print(f"  ({claim['panel'][1]}){row}")

colour = figures[0]
assert min(colour["nominal"].values()) >= 0.97
for claim in figures:
    assert claim["gain"]["pinned"][0] > claim["gain"]["se"][0]
for claim in (figures[0], figures[2], figures[3]):
    assert claim["gain"]["pinned"][0] >= 2
    ratio, half = claim["gain"]["se"]
    assert ratio - half > 1

# %% [markdown]
r"""
The first claim holds. The second holds in part: in (a), (c) and (d) the smooth encoder's gain is above one by more than its
interval; in (b), the digits of colour images, it is not. And at the radius of its own selection next to nothing is left
standing. The curve is shifted; graceful is another word. The third claim has a [section](#a-smaller-radius) of its own. Of
the fourth we see no more than the table shows. The pinned encoder has at least twice the VAE's accuracy under attack in
(a), (c) and (d).

## The floor

A sceptic asks first whether a line through the data does as well. So we put principal components, as many as there are
latents, and the raw pixels under the same probe and the same attack.
"""

# %%
floor = json.loads((Path(BOOK) / "results" / "floor-small.json").read_text())
linear = {
    (letter, name): robustness(
        {
            r["radius"]: r["accuracy"]
            for r in floor["records"]
            if (r["panel"], r["representation"]) == (letter, name)
        }
    )
    for letter in "abcd"
    for name in ("pixels", "pca")
}
print(f"accuracy under attack, in %{'pixels':>12s}{'PCA':>8s}{'VAE':>8s}{'SE':>8s}{'pinned':>8s}")
for claim in figures:
    letter, reached = claim["panel"][1], claim["robustness"]
    row = [linear[letter, "pixels"], linear[letter, "pca"], *reached.values()]
    print(f"  ({letter}){'':24s}" + "".join(f"{100 * value:8.0f}" for value in row))
    assert reached["vae"] < linear[letter, "pca"]
    assert (reached["pinned"] > linear[letter, "pca"]) == (letter != "b")

# %% [markdown]
r"""
Principal components are more robust than the VAE in every panel, and at least as robust as the smooth encoder at
$\gamma = 1$: whatever these two have learnt, it is not robustness. The pinned encoder clears the floor in (a), (c) and (d).
On the digits of colour images it does not, at this length of training.
"""

# %% [markdown]
r"""
## Longer, and on all of MNIST

Minutes of training prove little. The profile `full` takes all sixty thousand digits (the last sixth of them held out) and
thirty thousand steps, with the same settings for all methods of a panel. It is made in slices, a few runs at a time; this
is what is there so far. Along the way, at logarithmically spaced steps, each representation is judged on held-out digits.
"""

# %% tags=["hide-input"] mystnb={"image": {"alt": "Accuracy on held-out digits under attacks of radius 0.1, against the number of training steps, for the MLP and the ConvNET on MNIST. The VAE stays near zero at any length. The smooth encoder rises in the first thousand steps and then hardly more. The pinned smooth encoder stands far above both and goes on rising."}}
full = json.loads((Path(BOOK) / "results" / "figure1-full.json").read_text())
longer = [RunConfig(**run) for run in full["provenance"]["runs"]]
paths = {}
for run, rows in zip(longer, full["along_the_way"], strict=True):
    if run.label in METHODS and run.dataset == "mnist":
        path = {row["step"]: row["accuracy"]["digit"][row["radii"].index(0.1)] for row in rows}
        paths.setdefault((run.architecture, run.label), []).append(path)
figure, grid = plt.subplots(1, 2, sharey=True, layout="constrained")
for axes, panel in zip(grid, PANELS[2:], strict=True):
    for method, style in STYLES.items():
        for number, path in enumerate(paths.get((panel.architecture, method), [])):
            style = style | ({"label": None} if number else {})
            axes.plot(list(path), [100 * accuracy for accuracy in path.values()], **style)
    axes.set(xscale="log", xlabel="training steps", ylim=(0, 100), title=panel.title)
grid[0].set_ylabel("accuracy at radius 0.1 (%)")
grid[0].legend()
plt.show()

# %%
radii = (0.0, 0.05, 0.1, 0.2, 0.3)
print(f"accuracy in % at radius{'':21s}" + "".join(f"{radius:7g}" for radius in radii) + "   seeds")
measured = {}
for panel in PANELS:
    for method, style in STYLES.items():
        points = curve(full["records"], panel, method)
        if points:
            seeds = len({r["seed"] for r in select(full["records"], panel, method)})
            measured[panel.letter, method] = {radius: mean for radius, (mean, _) in points.items()}
            cells = "".join(f"{100 * points[radius][0]:7.0f}" for radius in radii)
            print(f"  ({panel.letter}) {style['label']:38s}{cells}{seeds:8d}")

for letter in {letter for letter, _ in measured}:
    vae, pinned = measured[letter, "vae"], measured[letter, "pinned"]
    assert robustness(pinned) > 2 * robustness(vae)
for of_run in paths["mlp", "vae"] + paths["conv", "vae"]:
    assert max(of_run.values()) < 0.1  # no length of training makes a VAE robust
for of_run in paths["mlp", "pinned"] + paths["conv", "pinned"]:
    assert of_run[30_000] > 0.5

# %% [markdown]
r"""
Length alone does not make a VAE robust, and adds little to the smooth encoder at $\gamma = 1$ after its first thousand
steps. The pinned encoder gains for longer. With so few seeds a curve is what it is, one run; no interval is claimed.
"""

# %% [markdown]
r"""
## A second judge

An attack of one's own may be too kind. So a run is put before AutoAttack {cite}`croce2020` as well: four attacks without
parameters to tune, one of which sees no gradient. And before checks that honest robustness passes: at a radius large enough
to turn any digit into any other the accuracy falls to chance; more steps and restarts find no more; attacks that see no
gradient, or that move the latent instead of the answer, are weaker; noise hardly matters.
"""

# %%
for judged in json.loads((Path(BOOK) / "results" / "judges.json").read_text())["judgements"]:
    for task in judged["tasks"]:
        print(
            f"{task['dataset']}, {task['architecture']}, {task['method']}, {task['n']} test digits, accuracy in %"
        )
        for radius, ours, theirs in zip(task["radii"], task["ours"], task["autoattack"], strict=True):
            print(
                f"  radius {radius:<6g} our attack {100 * ours:5.1f}   AutoAttack {100 * theirs:5.1f}"
            )
            assert ours - theirs < 0.02
        for check in task["masking"]["rows"]:
            print(
                f"  {check['check']:26s}{100 * check['accuracy']:5.1f}   against {100 * check['reference']:5.1f}"
            )
            assert check["holds"]

# %% [markdown]
r"""
Our attack and AutoAttack agree to two points, and no check gives the pinned encoder away. The first number of each check is
what the encoder keeps, the second what it is held against: chance, the direct attack, or the accuracy without any.
"""

# %% [markdown]
r"""
## Read with it

An encoder can look robust by shrinking, or by forgetting. So read with each robustness figure the bound, the error of
a reconstruction, and the number of active latents.
"""

# %% tags=["hide-input"]
rows = {}
for run, numbers in zip(provenance["runs"], results["diagnostics"], strict=True):
    method = RunConfig(**run).label
    rows.setdefault((run["dataset"], run["architecture"], method), []).append(numbers)
print(f"{'':26s}{'ELBO':>8s}{'error':>9s}{'active':>8s}{'variance':>10s}{'moved':>7s}")
for (dataset, architecture, method), group in rows.items():
    mean = {key: mean_and_interval([c[key] for c in group])[0] for key in group[0]}
    print(
        f"{dataset:14s}{architecture:5s}{method:7s}{mean['elbo']:8.0f}{mean['reconstruction_mse']:9.4f}"
        f"{mean['active_latents']:8.0f}{mean['latent_variance']:10.1f}{mean['moved_share']:7.2f}"
    )

for (dataset, architecture, method), group in rows.items():
    if method == "se":
        plain = rows[dataset, architecture, "vae"]
        left = {key: sum(c[key] for c in group) / sum(c[key] for c in plain) for key in group[0]}
        assert left["moved_share"] < left["latent_variance"] < 1
        pinned = rows[dataset, architecture, "pinned"]
        assert all(numbers["active_latents"] == 64 for numbers in pinned)
        assert max(n["moved_share"] for n in pinned) < min(n["moved_share"] for n in group)

# %% [markdown]
r"""
*Error* is the mean squared error of a pixel. *Variance* is the total variance of the means. *Moved* is $W_2^2$ under the
selection attack over that variance: [the next chapter](09-smooth-or-shrink.ipynb) is about it.

The smooth encoder does shrink, in each of the three, though the share that the attack moves falls by more than the variance
does. The pinned encoder keeps every latent awake, and the attack moves a fraction of what it moves in the others.

## Look at it

Colour digits, what the selection attack makes of them, and what each model reconstructs from either. The attacked digits
are still the same digits in the same colours to us.
"""

# %% tags=["hide-input"] mystnb={"image": {"alt": "Eight coloured digits in ten rows: the digits; for the VAE, the smooth encoder and the pinned smooth encoder the attacked digits, the reconstructions of the digits, and those of the attacked digits. The VAE reconstructs attacked digits as other digits in other colours, the smooth encoder as dark blurs; the pinned encoder keeps the colour, and often the digit."}}
Image(Path(BOOK) / "_static" / "attacked_digits-small.png", width=640)

# %% [markdown]
r"""
## One panel, live

The committed results took minutes. Here is a smaller panel (c) that trains as the page is made: the same functions, fewer
steps, one seed.
"""

# %%
size = {
    "tiny": {"iterations": 800, "attack_steps": 3},
    "small": {"iterations": 1_500, "attack_steps": 5},
    "paper": {"iterations": 300_000, "attack_steps": 20},
}[PROFILE]
attack = EvaluationConfig(radii=(0.0, 0.02, 0.05, 0.1, 0.2), attack_steps=20, test_images=300)
live = {}
with TemporaryDirectory() as runs:
    for method, own in METHODS.items():
        run = RunConfig(**(size | own | {"latent_dim": 32, "device": DEVICE}))
        evaluation = evaluate(train(run, Path(runs)), attack, DEVICE)
        records = json.loads(evaluation.read_text())["records"]
        live[method] = {r["radius"]: r["accuracy"] for r in records}

assert live["se"][0.05] > 1.2 * live["vae"][0.05]
assert robustness(live["pinned"]) > robustness(live["se"]) > robustness(live["vae"])

# %% tags=["hide-input"] mystnb={"image": {"alt": "Accuracy against attack radius of a VAE, a smooth encoder and a pinned one trained for this page. They start alike; the smooth encoder's curve falls later, and the pinned one's last."}}
figure, axes = plt.subplots(layout="constrained")
for method, points in live.items():
    axes.plot(list(points), [100 * accuracy for accuracy in points.values()], **STYLES[method])
axes.set(xlabel="attack radius (pixels in [0, 1])", ylabel="accuracy (%)", ylim=(0, 100))
axes.legend()
plt.show()

# %% [markdown]
r"""
## How the settings were chosen

VAE and smooth encoder share the observation variance $v$, the initialisation, the number of steps, the latent and the probe.
Whoever chooses these could favour one of the two. So we changed them one at a time, with several seeds each. This study is
older than the picture above: it was made with a constant learning rate of $10^{-3}$ and with $v = 0.3$ for colour images,
and judged by test images. What it says is how much an answer hangs on the settings, not which settings to take.
"""

# %% tags=["hide-input"] mystnb={"image": {"alt": "The gain under each changed setting, one point a seed, for MNIST digits, colour MNIST colours and colour MNIST digits. Nearly all points lie to the right of one; the largest gains are those of colours with PyTorch's initialisation."}}
study = json.loads((Path(BOOK) / "results" / "sensitivity.json").read_text())
own = {"gamma", "radius"}  # the smooth encoder's own; the rest it shares with the VAE


def name(change: dict) -> str:
    return ", ".join(f"{setting} {value}" for setting, value in change.items()) or "as chosen"


gains: dict[tuple, dict[str, list[float]]] = {}
nominal: dict[tuple, dict[str, list[float]]] = {}
for vae, se in zip(study["rows"][::2], study["rows"][1::2], strict=True):
    assert (vae["method"], se["method"], vae["seed"], vae["change"]) == (
        "vae",
        "se",
        se["seed"],
        se["change"],
    )
    if own & set(vae["change"]):
        continue
    for task in vae["accuracy"]:
        curves = [dict(zip(study["radii"], run["accuracy"][task], strict=True)) for run in (vae, se)]
        panel, change = (vae["base"], task), name(vae["change"])
        gain = robustness(curves[1]) / robustness(curves[0])
        gains.setdefault(panel, {}).setdefault(change, []).append(gain)
        nominal.setdefault(panel, {}).setdefault(change, []).append(curves[0][0.0])

changes = list(dict.fromkeys(change for of_panel in gains.values() for change in of_panel))
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
styles = (("#0072B2", "s"), ("#D55E00", "o"), ("#009E73", "^"))
for offset, (panel, of_panel), (colour, marker) in zip(
    (-0.2, 0, 0.2), gains.items(), styles, strict=True
):
    for change, values in of_panel.items():
        line = [changes.index(change) + offset] * len(values)
        label = ", ".join(panel) if change == "as chosen" else None
        axes.plot(values, line, marker, color=colour, label=label, markersize=4)
axes.axvline(1, color="0.6", linewidth=0.8)
axes.set(xscale="log", xlabel="gain of the smooth encoder over the VAE")
axes.set_xticks([1, 1.5, 2, 3, 5], ["1", "1.5", "2", "3", "5"])
axes.set_yticks(range(len(changes)), changes)
axes.minorticks_off()
axes.invert_yaxis()
axes.legend()
plt.show()

# %%
print(f"{'':56s}{'nominal VAE':>11s}{'gain':>7s}")
for panel, of_panel in gains.items():
    for change, values in of_panel.items():
        gain, _ = mean_and_interval(values)
        clean, _ = mean_and_interval(nominal[panel][change])
        print(f"{', '.join(panel):22s}{change:34s}{100 * clean:9.0f} %{gain:7.2f}")
        assert gain > 1.1  # no shared setting turns the answer round

# %% [markdown]
r"""
None of these turns the answer round, and some make it look better than we show it. A larger $v$ raises the gain and lowers
the accuracy on digits that there is to lose. PyTorch's initialisation gives the largest gain of all, on colours, because it
ruins the VAE. At $v = 0.1$ the digits of the colour images are read more accurately by both, and the gain on them is small:
held-out digits say the same of the pinned encoder, and the picture above takes $v = 0.1$ throughout.

Full covariances, which the paper derives and does not use, train as well. At 16 latents they bring about as much as
factorised ones.

(a-smaller-radius)=
## A smaller radius

The paper observes that "a representation that is trained with small selection radius is still adversarially robust against
attacks with a larger radius". Figure 1 cannot show it, for its selection radius is the large one. So we trained at radius
0.05 as well, and as a control at radius 0, where the neighbour is the image itself: that run pays each term of the bound, and
nothing asks it to be smooth.
"""

# %% tags=["hide-input"] mystnb={"image": {"alt": "Accuracy against attack radius on MNIST. The smooth encoder with selection radius 0.05 and gamma 1 lies on the VAE's curve. With selection radius 0.2 and gamma 1 it lies above, and with selection radius 0.05 and gamma 10 it lies higher still, also beyond radius 0.05."}}
variants = {"VAE": ({}, "vae")}
for change in ({"radius": 0.0}, {"radius": 0.05}, {}, {"radius": 0.05, "gamma": 10.0}):
    setting = {"radius": 0.2, "gamma": 1.0} | change
    label = rf"$\epsilon = {setting['radius']:g}$, $\gamma = {setting['gamma']:g}$"
    variants[label] = change, "se"
means = {}
for label, (change, method) in variants.items():
    runs = [
        row["accuracy"]["digit"]
        for row in study["rows"]
        if (row["base"], row["change"], row["method"]) == ("mnist", change, method)
    ]
    means[label] = dict(zip(study["radii"], torch.tensor(runs).mean(0).tolist(), strict=True))
figure, axes = plt.subplots(layout="constrained")
looks = (
    ("#D55E00", "o", "--"),
    ("0.5", "x", ":"),
    ("#56B4E9", "v", ":"),
    ("#0072B2", "s", "-"),
    ("#009E73", "^", "-."),
)
for (label, points), (colour, marker, dash) in zip(means.items(), looks, strict=True):
    percent = [100 * accuracy for accuracy in points.values()]
    axes.plot(list(points), percent, color=colour, marker=marker, linestyle=dash, label=label)
axes.axvline(0.05, color="0.8", linewidth=0.8, zorder=0)
axes.set(
    xlabel="attack radius (pixels in [0, 1])", ylabel="accuracy (%)", xlim=(-0.01, 0.3), ylim=(0, 100)
)
axes.legend(title="trained with")
plt.show()

# %%
plain, control, weak, paper, strong = means.values()
assert robustness(control) < 1.1 * robustness(plain)  # the terms alone buy nothing,
assert robustness(weak) < 1.1 * robustness(plain)  # nor at gamma = 1 does the small radius;
assert robustness(strong) > robustness(paper)  # at gamma = 10 it buys more than the large one,
assert strong[0.1] > 5 * plain[0.1]  # beyond the radius of training, too,
assert strong[0.0] > plain[0.0] - 0.05  # and costs next to nothing on clean digits

# %% [markdown]
r"""
At $\gamma = 1$ the claim fails: the curve of the small radius lies on the VAE's. At $\gamma = 10$ it holds, and costs
next to nothing in nominal accuracy. There is a simple reason. The spring charges
$\frac\gamma2$ times a squared shift, and a nearer neighbour shifts a smooth encoder's mean less. To be felt, it needs a
larger $\gamma$. If the shift grew in proportion to $\epsilon$, what counts would be $\gamma \epsilon^2$. That is a rule of
thumb and no more: by it $\gamma = 16$ would replace the large radius, and 10 was more than enough.
"""

# %% [markdown]
r"""
## Reproduce it

```
make reproduce PROFILE=small    # the picture above, in minutes
make reproduce PROFILE=paper    # the paper's sizes; a GPU is a good idea
```

## Exercises

**1.** The probe is trained on clean data, never against attacks. What would adversarial training of the probe change?

:::{dropdown} Solution
It would find the directions of the latent that the attacker cannot move. That measures what robust information the
representation holds, and not whether an ordinary user of it is safe. The paper asks the second question.
:::

**2.** By the rule of thumb above, which $\gamma$ belongs to a selection radius of 0.1? Is it enough?

:::{dropdown} Solution
$\gamma \epsilon^2 = 1 \cdot 0.2^2$ at $\epsilon = 0.1$ gives $\gamma = 4$. Train it,
`se-core train --radius 0.1 --gamma 4`, and evaluate the folder that is printed with `se-core evaluate`.
:::

## What we checked

* The results are those of all runs of the profile, and no accuracy rises with the radius.
* The pinned encoder's gain is at least 2 in (a), (c) and (d), and above the smooth encoder's in each panel; that one is above
  one by more than its interval in the same three; nominal accuracy on colour is at least 97 %.
* Three encoders trained for this page tell the same story.
* The answer does not hang on any of the shared settings that we changed.
* The paper's remark on small radii fails at $\gamma = 1$ and holds at $\gamma = 10$; paying the terms alone buys nothing.
"""
