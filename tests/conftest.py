"""One thread a process in every test, and a tiny configuration that several files share."""

from typing import Any

import pytest
import torch

from se_core.lab.training import RunConfig

torch.set_num_threads(1)


@pytest.fixture
def tiny_config() -> Any:
    """A RunConfig of a second: `tiny_config(**fields)`."""

    def make(**fields: Any) -> RunConfig:
        return RunConfig(**({"latent_dim": 4, "attack_steps": 2, "batch_size": 16, "iterations": 60} | fields))

    return make
