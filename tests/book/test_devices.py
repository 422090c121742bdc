"""The chapters on a GPU: one that is pretended, and refuses what a GPU refuses."""

import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import matplotlib.pyplot as plt
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretend_device import pretended_device

from se_core.lab import display
from se_core.lab.probe import fit_probe

SOURCES = Path(__file__).parents[2] / "book" / "src"
SETUP = (SOURCES.parent / "setup_cell.py").read_text()
CHAPTERS = [s.stem for s in sorted(SOURCES.glob("*.py")) if s.read_text().count("DEVICE") > SETUP.count("DEVICE")]


def shortened(name: str) -> str:
    """The code of a chapter with as few steps of training and attack as it runs with."""
    cells = jupytext.read(SOURCES / f"{name}.py", fmt="py:percent").cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    steps = 20 if name.endswith("-training") else 2  # its curves are means over twenty
    code = re.sub(r'("tiny": (?:\{"iterations": )?)\d[\d_]*', rf"\g<1>{steps}", code)
    code = re.sub(r"\b128\b", "16", code)  # images under attack, and the width of a layer
    return re.sub(r"attack_steps=\d+, test_images=\d+", "attack_steps=2, test_images=60", code)


def test_all_chapters_that_use_the_device_are_among_them() -> None:
    assert {"training", "figure1", "smooth-or-shrink"} <= {name.split("-", 1)[1] for name in CHAPTERS}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of torch, met by matplotlib
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a folder for the page is cleared late
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_keeps_its_tensors_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setenv("SE_DEVICE", "auto")
    monkeypatch.delenv("SE_PROFILE", raising=False)
    for check in ("agree", "less", "holds"):  # after so little training there is nothing to claim
        monkeypatch.setattr(display, check, lambda *numbers, **tolerances: None)
    monkeypatch.setattr(display, "book_style", lambda: None)  # it takes a notebook to set
    namespace: dict[str, Any] = {}
    with pretended_device("mps"):
        exec(compile(shortened(name), name, "exec"), namespace)
    assert namespace["DEVICE"] == "mps"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_probe_is_where_the_means_are_that_it_was_fitted_to(name: str) -> None:
    means = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = (means[:, 0] > 0).long()
    expected = fit_probe(means, labels, 2, 1e-3)
    with pretended_device(name):
        probe = fit_probe(means.to(name), labels.to(name), 2, 1e-3)
        assert probe.weight.device == torch.device(name)
        assert torch.equal(probe.weight.cpu(), expected.weight)


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with pretended_device("mps"):
        x, y = torch.ones(3, device="mps"), torch.ones(3)
        assert (2 * x + torch.tensor(1.0)).cpu().tolist() == [3.0] * 3
        assert (x[torch.tensor([0, 2])]).device == x.device
        for mixing in (lambda: x + y, lambda: torch.cat([x, y]), lambda: torch.nn.functional.linear(x[None], y[None])):
            with pytest.raises(RuntimeError, match="all tensors on one device, found mps and cpu"):
                mixing()
        with pytest.raises(RuntimeError, match="'mps' device type for generator but found 'cpu'"):
            torch.randn(3, generator=torch.Generator(), device="mps")
        with pytest.raises(RuntimeError, match="'cpu' device type for generator but found 'mps'"):
            torch.randn(3, generator=torch.Generator("mps"))
        for wide in (x.double, lambda: torch.ones(2, device="mps", dtype=torch.float64)):
            with pytest.raises(TypeError, match="MPS has no float64"):
                wide()
        with pytest.raises(TypeError, match="can't convert mps tensor to numpy"):
            plt.plot(x)
        plt.close("all")
