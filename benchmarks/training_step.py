"""One SE training step: as usually written, in JAX, and as written here.

Prints ratios measured in one run, interleaved, median of several rounds, and the share of the measured
matrix-multiply peak that each reaches. `--out FILE` keeps them with their provenance. Batch 128, one core of the CPU,
to which the whole process is pinned, because JAX takes all it sees; `--device cuda` measures the same on a GPU, without
JAX, and each step of ours a second time as a CUDA graph, as `se_core.lab.training` takes it there.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from se_core.datasets import load
from se_core.lab.captured import CapturedStep
from se_core.lab.config import RunConfig
from se_core.lab.steps import derived_seed, make_optimiser, training_step
from se_core.lab.storage import provenance, write_json
from se_core.memory import SelectionMemory
from se_core.networks import VAE, WIDTH, build_vae
from se_core.objectives import se_elbo
from se_core.transport import w2_squared

Step = Callable[[], None]

BATCH, STEPS, LATENT, PIXELS = 128, 20, 64, 784
CONFIG = RunConfig(batch_size=BATCH, attack_steps=STEPS, latent_dim=LATENT, noise_variance=0.25)
# Multiply-adds of one image through the encoder; the decoder mirrors all but the doubled output.
ENCODER = PIXELS * WIDTH + 3 * WIDTH**2 + WIDTH * 2 * LATENT
DECODER = PIXELS * WIDTH + 3 * WIDTH**2 + WIDTH * LATENT
# Forward and input gradient for each attack step; forward, input and weight gradients for two encodings and a decoding
# (the first layer of an encoder needs no input gradient).
FLOPS = 2 * BATCH * (2 * STEPS * ENCODER + 2 * (3 * ENCODER - PIXELS * WIDTH) + 3 * DECODER)


def _usual_step(vae: VAE, optimiser: torch.optim.Optimizer, batches: Iterator, device: str) -> None:
    """DataLoader, `.backward()` inside the attack (all gradients), q(x) encoded again at each of its steps."""
    x = next(batches)[0].to(device)
    radius, step_size = CONFIG.radius, 2.5 * CONFIG.radius / STEPS
    delta = (2 * torch.rand_like(x) - 1) * radius
    for _ in range(STEPS):
        x_prime = (x + delta).clamp(0, 1).requires_grad_()
        w2_squared(vae.encode(x), vae.encode(x_prime)).sum().backward()
        assert x_prime.grad is not None
        delta = (x_prime.detach() + step_size * x_prime.grad.sign() - x).clamp(-radius, radius)
    x_prime = (x + delta).clamp(0, 1)
    bound = se_elbo(x, vae.encode(x), vae.encode(x_prime), vae.decode, CONFIG.noise_variance, CONFIG.gamma).value.mean()
    optimiser.zero_grad()
    (-bound).backward()
    optimiser.step()
    bound.item()


def _endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def _step(device: str, captured: bool = False, **changes: Any) -> Step:
    config = replace(CONFIG, device=device, **changes)
    data = load("mnist", "train").to(device)
    vae = build_vae(config.architecture, 1, LATENT, scale=config.scale).to(device)
    optimiser = make_optimiser(config, vae)
    memory = SelectionMemory(len(data), data.shape, config.radius, device) if config.memory else None
    draws, number = torch.Generator(device), 0

    def step(index: Tensor, generator: torch.Generator) -> Tensor:
        x, remembered = data.images(index), memory[index] if memory else None
        return training_step(config, vae, optimiser, x, generator, remembered)

    take = CapturedStep(step, BATCH, torch.device(device)) if captured else None

    def run() -> None:
        nonlocal number
        number += 1
        seed = derived_seed(0, number)
        index = torch.randint(len(data), (BATCH,), generator=draws, device=device)
        take(index, seed) if take else step(index, draws.manual_seed(seed))

    return run


def _usual(device: str) -> Step:
    images = load("mnist", "train").images()
    batches = _endless(DataLoader(TensorDataset(images), BATCH, shuffle=True, drop_last=True))
    vae = build_vae("mlp", 1, LATENT).to(device)
    optimiser = torch.optim.Adam(vae.parameters(), CONFIG.learning_rate)
    return lambda: _usual_step(vae, optimiser, batches, device)


def _matrix_product(device: str) -> tuple[Step, float]:
    a, b = torch.rand(1024, 1024, device=device), torch.rand(1024, 1024, device=device)

    def run() -> None:
        torch.mm(a, b)

    return run, 2 * 1024**3


def _seconds(run: Step, device: str, repeats: int) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def _jax(device: str) -> dict[str, Step]:
    if device != "cpu" or not find_spec("jax"):
        print("JAX is left out: " + ("it is measured on the CPU" if device != "cpu" else "pip install 'se-core[jax]'"))
        return {}
    from _jax_step import step  # the package is optional

    return {"JAX, jit": step(CONFIG, build_vae("mlp", 1, LATENT), load("mnist", "train"))}


def _ways(device: str) -> dict[str, Step]:
    remembered: dict[str, Any] = {"memory": True, "attack_steps": 1}
    bfloat16: dict[str, Any] = {"compile": True, "attack_dtype": "bfloat16"}
    ours: dict[str, dict[str, Any]] = {
        "ours, eager": {},
        "ours, compiled": {"compile": True},
        "ours, compiled, bfloat16 attack": bfloat16,
        "ours, one remembered step": remembered,
        "ours, one remembered step, pinned": remembered | {"scale": "pinned"},
        "ours, one remembered step, compiled": remembered | {"compile": True},
        "ours, one remembered step, compiled, bfloat16 attack": remembered | bfloat16,
        "VAE, no attack": {"method": "vae"},
        "VAE, no attack, compiled": {"method": "vae", "compile": True},
        "ConvNET, compiled": {"architecture": "conv", "compile": True},
        "ConvNET, one remembered step, compiled": {"architecture": "conv", "compile": True} | remembered,
    }
    ways = {"as usually written": _usual(device)} | {name: _step(device, **changes) for name, changes in ours.items()}
    if device != "cpu":
        ways |= {f"{name}, captured": _step(device, captured=True, **changes) for name, changes in ours.items()}
    return ways | _jax(device)


# (what, against what): how many times as long the first takes.
COMPARED = {
    "remembered_against_vae": ("ours, one remembered step", "VAE, no attack"),
    "remembered_against_vae_compiled": ("ours, one remembered step, compiled", "VAE, no attack, compiled"),
    "conv_against_mlp": ("ConvNET, compiled", "ours, compiled"),
    "conv_against_mlp_remembered": ("ConvNET, one remembered step, compiled", "ours, one remembered step, compiled"),
    "ours_against_jax": ("ours, compiled", "JAX, jit"),
    "bfloat16_against_jax": ("ours, compiled, bfloat16 attack", "JAX, jit"),
    "captured": ("ours, eager, captured", "ours, eager"),
    "captured_compiled": ("ours, compiled, captured", "ours, compiled"),
    "captured_remembered_against_vae": ("ours, one remembered step, captured", "VAE, no attack, captured"),
}


def _measured(device: str, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds a step, round by round, and the peak of the matrix products, in FLOP/s."""
    product, product_flops = _matrix_product(device)
    ways = {"product": product} | _ways(device)
    for run in ways.values():  # compile, warm up and capture
        _seconds(run, device, 5)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds), disable=not os.isatty(2)):
        for name, run in ways.items():
            times[name].append(_seconds(run, device, 2 if device == "cpu" else 20))
    return times, product_flops / statistics.median(times.pop("product"))


def _ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios within a round: both terms of each saw the same machine."""
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 2)


def _report(times: dict[str, list[float]], peak: float, device: str) -> dict[str, Any]:
    print(f"one SE step, MLP, L = {STEPS}, batch {BATCH}, {device}; matrix products peak at {peak / 1e9:.0f} GFLOP/s")
    rows: dict[str, dict[str, float]] = {}
    for name, measured in times.items():
        median = statistics.median(measured)
        rows[name] = {"ratio": _ratio(times["as usually written"], measured), "ms": round(1e3 * median, 2)}
        share = ""
        if not any(word in name for word in ("remembered", "VAE", "ConvNET")):  # these do something else
            rows[name]["share_of_peak"] = FLOPS / median / peak
            share = f"{FLOPS / median / peak:4.0%} of peak"
        print(f"{name:52s} {rows[name]['ratio']:5.2f} times as fast   {1e3 * median:8.2f} ms   {share}")
    print("(the share counts the operations that ours needs; the usual way does more of them)")
    compared = {key: _ratio(times[a], times[b]) for key, (a, b) in COMPARED.items() if b in times}
    for key, ratio in compared.items():
        print(f"{COMPARED[key][0]} takes {ratio:.2f} times as long as {COMPARED[key][1]}")
    return {"peak_gflops": peak / 1e9, "rows": rows} | compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.device == "cpu" and sys.platform == "linux":  # elsewhere a process cannot be pinned, and JAX has all
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    record = _report(*_measured(arguments.device, arguments.rounds), arguments.device)
    unit = 1 if sys.platform == "darwin" else 2**10
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"peak memory of this process: {memory:.2f} GiB")
    if arguments.out:
        source = provenance(arguments.device) | ({"jax": version("jax")} if "JAX, jit" in record["rows"] else {})
        write_json(arguments.out, {"provenance": source} | record)


if __name__ == "__main__":
    main()
