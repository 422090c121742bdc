"""Publishing: slices of a profile come together to the whole, and a slice that is published again replaces itself."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "book"))
from publish import merged, read

SMALL = read("figure1-small")


def _slice(seed: int) -> dict[str, Any]:
    rows = [i for i, run in enumerate(SMALL["provenance"]["runs"]) if run["seed"] == seed]
    part = {key: [SMALL[key][i] for i in rows] for key in ("diagnostics", "along_the_way")}
    records = [record for record in SMALL["records"] if record["seed"] == seed]
    runs = [SMALL["provenance"]["runs"][i] for i in rows]
    return {"provenance": SMALL["provenance"] | {"runs": runs, "seeds": [seed]}, "records": records} | part


def test_the_slices_make_the_whole() -> None:
    whole = merged([_slice(seed) for seed in SMALL["provenance"]["seeds"]])
    assert whole["provenance"]["seeds"] == SMALL["provenance"]["seeds"]
    for key in ("records", "diagnostics", "along_the_way"):
        assert sorted(map(str, whole[key])) == sorted(map(str, SMALL[key]))
    assert whole["provenance"]["training_wall_s"] == pytest.approx(3 * SMALL["provenance"]["training_wall_s"], abs=1)


def test_the_later_of_two_results_of_one_run_is_kept() -> None:
    again = copy.deepcopy(_slice(1))
    for record in again["records"]:
        record["accuracy"] = 0.5
    whole = merged([SMALL, again])
    assert len(whole["records"]) == len(SMALL["records"])
    assert all((record["accuracy"] == 0.5) or record["seed"] != 1 for record in whole["records"])


@pytest.mark.parametrize(("part", "key", "value"), [("evaluation", "attack_steps", 41), ("attack", "margin", [])])
def test_parts_that_were_judged_differently_are_refused(part: str, key: str, value: object) -> None:
    other = copy.deepcopy(_slice(1))
    other["provenance"][part][key] = value
    with pytest.raises(ValueError, match="not evaluated alike"):
        merged([SMALL, other])
