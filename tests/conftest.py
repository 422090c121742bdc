"""One thread a process in every test, and numbers down to the smallest."""

import torch

torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    """Code that torch 2.4 compiles with -ffast-math has small numbers flushed to zero from then on, everywhere."""
    torch.set_flush_denormal(False)
