"""A tiny configuration and a whole tiny reproduction, which several files share."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import reproduce_command

from se_core.lab import autoattack
from se_core.lab.config import RunConfig


@pytest.fixture
def tiny_config() -> Any:
    """A RunConfig of a second: `tiny_config(**fields)`."""

    def make(**fields: Any) -> RunConfig:
        return RunConfig(**({"latent_dim": 4, "attack_steps": 2, "batch_size": 16, "iterations": 60} | fields))

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted `se-core reproduce --profile tiny`; what it printed is in `printed`."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(reproduce_command(out, "--workers", "1"), capture_output=True, text=True, check=True)
    (out / "printed").write_text(done.stdout)
    return out


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`shortened(queries=..., steps=...)`: AutoAttack of fewer queries of Square and steps of FAB in this test."""
    standard = autoattack._standard

    def shorten(queries: int, steps: int = 100) -> None:
        def make(*arguments: Any) -> Any:
            judge = standard(*arguments)
            judge.square.n_queries, judge.fab.n_iter = queries, steps
            return judge

        monkeypatch.setattr(autoattack, "_standard", make)

    return shorten
