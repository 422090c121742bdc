"""One SE training step: as usually written, and as written here.

Prints ratios measured in one run, interleaved, median of several rounds, and the share of the measured
matrix-multiply peak that each reaches. `--out FILE` keeps them with their provenance. MLP, L = 20, batch 128, one
thread on the CPU; `--device cuda` measures the same on a GPU.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from se_core.datasets import load
from se_core.lab.config import RunConfig
from se_core.lab.steps import derived_generator, make_optimiser, training_step
from se_core.lab.storage import provenance, write_json
from se_core.memory import SelectionMemory
from se_core.networks import VAE, WIDTH, build_vae
from se_core.objectives import se_elbo
from se_core.transport import w2_squared

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


def _step(changes: dict, device: str) -> Callable[[], None]:
    config = RunConfig(**({f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__} | changes | {"device": device}))
    data = load("mnist", "train").to(device)
    vae = build_vae("mlp", 1, LATENT, scale=config.scale).to(device)
    optimiser = make_optimiser(config, vae)
    memory = SelectionMemory(len(data), data.shape, config.radius, device) if config.memory else None
    step = 0

    def run() -> None:
        nonlocal step
        step += 1
        generator = derived_generator(device, 0, step)
        index = torch.randint(len(data), (BATCH,), generator=generator, device=device)
        training_step(config, vae, optimiser, data.images(index), generator, memory[index] if memory else None)

    return run


def _usual(device: str) -> Callable[[], None]:
    images = load("mnist", "train").images()
    batches = _endless(DataLoader(TensorDataset(images), BATCH, shuffle=True, drop_last=True))
    vae = build_vae("mlp", 1, LATENT).to(device)
    optimiser = torch.optim.Adam(vae.parameters(), CONFIG.learning_rate)
    return lambda: _usual_step(vae, optimiser, batches, device)


def _matrix_product(device: str) -> tuple[Callable[[], None], float]:
    a, b = torch.rand(1024, 1024, device=device), torch.rand(1024, 1024, device=device)

    def run() -> None:
        torch.mm(a, b)

    return run, 2 * 1024**3


def _seconds(run: Callable[[], None], device: str, repeats: int) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(1)

    product, product_flops = _matrix_product(device)
    ways = {
        "as usually written": _usual(device),
        "ours, eager": _step({}, device),
        "ours, compiled": _step({"compile": True}, device),
        "ours, compiled, bfloat16 attack": _step({"compile": True, "attack_dtype": "bfloat16"}, device),
        "ours, one remembered step": _step({"memory": True, "attack_steps": 1}, device),
        "ours, one remembered step, pinned": _step({"memory": True, "attack_steps": 1, "scale": "pinned"}, device),
        "VAE, no attack": _step({"method": "vae"}, device),
    }
    for run in (product, *ways.values()):  # compile and warm up
        _seconds(run, device, 3)
    times: dict[str, list[float]] = {name: [] for name in ("product", *ways)}
    for _ in tqdm(range(arguments.rounds), disable=not os.isatty(2)):
        times["product"].append(_seconds(product, device, 3))
        for name, run in ways.items():
            times[name].append(_seconds(run, device, 2))

    peak = product_flops / statistics.median(times["product"])
    usual = times["as usually written"]
    print(f"one SE step, MLP, L = {STEPS}, batch {BATCH}, {device}; matrix products peak at {peak / 1e9:.0f} GFLOP/s")
    rows = {}
    for name in ways:
        # The median of the ratios within a round: both terms of each saw the same machine.
        ratio = statistics.median(u / t for u, t in zip(usual, times[name], strict=True))
        median = statistics.median(times[name])
        rows[name] = {"ratio": round(ratio, 2), "ms": round(1e3 * median, 2)}
        share = ""
        if "remembered" not in name and "VAE" not in name:  # these do not attack with L = 20
            rows[name]["share_of_peak"] = FLOPS / median / peak
            share = f"{FLOPS / median / peak:4.0%} of peak"
        print(f"{name:34s} {ratio:5.2f} times as fast   {1e3 * median:8.2f} ms   {share}")
    print("(the share counts the operations that ours needs; the usual way does more of them)")
    against_vae = statistics.median(
        t / v for t, v in zip(times["ours, one remembered step"], times["VAE, no attack"], strict=True)
    )
    print(f"a step with one remembered attack step takes {against_vae:.2f} times the VAE's")
    unit = 1 if sys.platform == "darwin" else 2**10
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"peak memory of this process: {memory:.2f} GiB")
    if arguments.out:
        record = {"provenance": provenance(device), "peak_gflops": peak / 1e9, "rows": rows}
        record["remembered_step_against_vae"] = round(against_vae, 2)
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
