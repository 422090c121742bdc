"""How a chapter of the book says what it checked, and how its pictures look.

A check prints one line and `pytest --nbval` compares it. So it names the bound that a difference keeps, not the
difference itself, whose last digits change from machine to machine.
"""

import math
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from se_core.lab.figures import STYLE, WIDTH

Numbers = float | Tensor


def agree(what: str, ours: Numbers, theirs: Numbers, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Check that |ours - theirs| <= atol + rtol |theirs|, entry by entry, and say so: of tensors, for their largest
    entry. Raises AssertionError, with torch's account of the difference."""
    a, b = (torch.as_tensor(numbers).detach() for numbers in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False, msg=lambda m: f"{what}: {m}")
    bound = " + ".join(f"{size:.0e}{unit}" for size, unit in ((atol, ""), (rtol, " of it")) if size) or "0"
    many = f"{a.numel()} numbers, the largest " if a.numel() > 1 else ""
    largest = b.abs().argmax() if b.numel() else 0
    shown = [_rounded(float(values.reshape(-1)[largest]), rtol, atol) for values in (a, b)]
    print(f"{what}: {many}{shown[0]} and {shown[1]}, apart by at most {bound}")


def _rounded(value: float, rtol: float, atol: float) -> str:
    """To the digits that the tolerance vouches for, six at most: the others differ between machines."""
    if abs(value) <= atol:
        return "0"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = -math.log10(max(rtol + atol / abs(value), 1e-6))
    return f"{value:.{max(1, int(digits + 1e-9))}g}"


def less(what: str, smaller: float, larger: float, digits: int = 2) -> None:
    """Check that smaller < larger, and show both. Raises AssertionError."""
    shown = f"{what}: {smaller:.{digits}f} < {larger:.{digits}f}"
    assert smaller < larger, f"{shown} does not hold"
    print(shown)


def holds(what: str, condition: bool | Tensor) -> None:
    """Check what has no number of its own. Raises AssertionError."""
    assert condition, f"{what}: does not hold"
    print(f"{what}: yes")


def book_style() -> None:
    """Pictures of the book's chapters: SVG, the same bytes each time, readable at the width of a phone."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats  # of notebooks alone

    shown: dict[str, Any] = {"figure.figsize": (WIDTH, 2.6), "figure.facecolor": "none", "axes.facecolor": "none"}
    mpl.rcParams.update(STYLE | shown | {"savefig.facecolor": "none"})
    set_matplotlib_formats("svg", metadata={"Date": None})
