"""Pretrained encoders: what the record says of each is what it does, and a damaged one is never loaded."""

import json
from pathlib import Path

import pytest
import torch

from se_core import load, load_pretrained, pretrained
from se_core.lab.config import EvaluationConfig
from se_core.lab.evaluation import evaluate_pretrained

FOLDER = Path(pretrained.__file__).parent / "weights"


@pytest.mark.parametrize("name", pretrained.PRETRAINED)
def test_its_accuracy_is_the_recorded_one(name: str) -> None:
    """Without attack and under it, on a hundred digits, to one digit: another processor may round another way."""
    recorded = load_pretrained(name).record["quick"]
    quick = EvaluationConfig(radii=(0.0, 0.1), test_images=100)
    for found, expected in zip(evaluate_pretrained(name, quick), recorded, strict=True):
        assert {k: v for k, v in found.items() if k != "accuracy"} == {
            k: v for k, v in expected.items() if k != "accuracy"
        }
        assert abs(found["accuracy"] - expected["accuracy"]) < 0.011


def test_the_promised_ones_are_there_and_small() -> None:
    networks = ("mnist-mlp", "mnist-conv", "colour-mnist-mlp")
    expected = {f"{network}-{method}" for network in networks for method in ("vae", "se", "pinned")}
    assert expected <= set(pretrained.PRETRAINED)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12 * 2**20


def test_a_probe_reads_the_means_of_its_encoder() -> None:
    model = load_pretrained("mnist-conv-pinned")
    test = load("mnist", "test")
    x, digits = test.images(torch.arange(300)), test.digits[:300]
    logits = model.vae.encode(x).mean @ model.probes["digit"].weight.T + model.probes["digit"].bias
    torch.testing.assert_close(model.classifier()(x), logits)
    assert float((logits.argmax(-1) == digits).float().mean()) > 0.85
    with pytest.raises(ValueError, match="task='colour' is unknown; choose one of digit"):
        model.classifier("colour")


def test_unknown_names_and_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"name='mnist' is unknown; choose one of .*mnist-conv-vae"):
        load_pretrained("mnist")
    for path in FOLDER.glob("mnist-conv-vae.*"):
        content = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            content[-1] ^= 1
        (tmp_path / path.name).write_bytes(content)
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    with pytest.raises(pretrained.DataError, match=r"is damaged: its SHA-256 is .*; nothing was loaded"):
        load_pretrained("mnist-conv-vae")
    (tmp_path / "mnist-conv-vae.safetensors").unlink()
    with pytest.raises(pretrained.DataError, match=r"cannot read .*; install the package again"):
        load_pretrained("mnist-conv-vae")


def test_its_record_says_where_it_comes_from() -> None:
    for name in pretrained.PRETRAINED:
        record = json.loads((FOLDER / f"{name}.json").read_text())
        assert {"run", "trained", "provenance", "sha256", "evaluation", "bundled"} <= set(record)
        assert {"commit", "torch", "device"} <= set(record["trained"])
        nominal = [r["accuracy"] for r in record["bundled"] if r["radius"] == 0]
        assert min(nominal) > 0.6
