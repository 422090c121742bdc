"""Calls of the data: wrong arguments are refused by name, and the state of torch around a call changes nothing."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from se_core.datasets import COLOURS, RGB, DigitImages, load
from se_core.errors import InvalidTypeError, InvalidValueError

# The state of torch around a call


@pytest.mark.parametrize("state", ["device", "dtype", "no gradients", "inference"])
def test_the_state_of_torch_changes_nothing(state):
    calls = [("mnist", "train"), ("colour-mnist", "test"), ("colour-mnist", "test", "bundled", "all")]
    expected = [load(*call) for call in calls]
    dtype = torch.get_default_dtype()
    modes = {"device": torch.device("meta"), "no gradients": torch.no_grad(), "inference": torch.inference_mode()}
    try:
        if state == "dtype":
            torch.set_default_dtype(torch.float64)
        with modes.get(state, torch.enable_grad()):
            found = [load(*call).to("cpu") for call in calls]
        images = [data.images(slice(0, 50)) for data in found]
    finally:
        torch.set_default_dtype(dtype)
    for data, image, plain in zip(found, images, expected, strict=True):
        for name in ("pixels", "digits", "source", *(["colours"] if plain.colours is not None else [])):
            ours, theirs = getattr(data, name), getattr(plain, name)
            assert ours.device.type == "cpu"
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        assert image.dtype == torch.float32
        assert torch.equal(image, plain.images(slice(0, 50)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_inference_mode_loads_can_be_trained_on(device):
    with torch.inference_mode():
        data = load("colour-mnist", "test").to(device)
    weight = torch.zeros(3 * 784, 10, device=device, requires_grad=True)
    # Both factors and the labels are saved for the backward pass, which tensors of inference mode cannot be.
    scores = data.images(slice(0, 20)).flatten(1) @ weight
    losses = [functional.cross_entropy(scores, data.labels(task)[:20]) for task in ("digit", "colour")]
    sum(losses).backward()
    assert weight.grad is not None
    assert not any(tensor.is_inference() for tensor in (data.pixels, data.digits, data.colours, data.source))


@pytest.mark.parametrize("state", ["torch.device('meta')", "torch.inference_mode()"])
def test_the_state_of_torch_at_import_changes_nothing(state):
    code = f"import torch\nwith {state}:\n    from se_core.datasets import RGB\nprint(RGB.is_inference(), RGB.tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"False {RGB.tolist()}"


# Arguments


def one_image(colour: str | None = None) -> DigitImages:
    colours = None if colour is None else torch.tensor([COLOURS.index(colour)])
    return DigitImages(torch.zeros(1, 28, 28, dtype=torch.uint8), torch.tensor([3]), colours, torch.tensor([0]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("minst", "train"), InvalidValueError, "dataset must be one of 'mnist', .*'images', not 'minst'"),
        (("mnist", "val"), InvalidValueError, "split must be one of 'train', 'test', not 'val'"),
        (("mnist", None), InvalidValueError, "split must be one of 'train', 'test', not None"),
        (("mnist", "test", "bundled", "no"), InvalidValueError, "colouring must be one of 'random', 'all', not 'no'"),
        (("mnist", "test", None), InvalidTypeError, "source must be a path, not None; pass a str or"),
        (("mnist", "test", 3), InvalidTypeError, "source must be a path, not 3"),
        (("mnist", "test", "~no-such-user/data"), InvalidValueError, "source ~no-such-user/data: .* Write .* in full"),
        (("mnist", "test", "bundled", "random", 0.5), InvalidTypeError, "seed must be an integer, not 0.5; pass"),
        (("mnist", "test", "bundled", "random", "0"), InvalidTypeError, "seed must be an integer, not '0'"),
        (("mnist", "test", "bundled", "random", None), InvalidTypeError, "seed must be an integer, not None"),
        (("mnist", "test", "bundled", "random", 2**63), InvalidValueError, f"seed must be .* not {2**63}; pass"),
        (("mnist", "test", "bundled", "random", -(2**63)), InvalidValueError, "seed must be at least -2\\*\\*62"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        load(*arguments)


def test_any_integer_is_a_seed():
    expected = load("colour-mnist", "test", seed=7).colours
    for seed in (np.int64(7), torch.tensor(7)):
        assert torch.equal(load("colour-mnist", "test", seed=seed).colours, expected)
    for seed in (2**63 - 1, -(2**62)):
        assert len(load("colour-mnist", "test", seed=seed)) == 2_000


def test_unknown_tasks_are_refused():
    with pytest.raises(InvalidValueError, match="task must be 'digit' or 'colour', not 'color'"):
        one_image("red").labels("color")
    with pytest.raises(InvalidValueError, match="load 'colour-mnist'"):
        one_image().labels("colour")


@pytest.mark.parametrize("colour", [None, "red"])
@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (0, InvalidTypeError, r"not 0; pass torch.tensor\(\[0\]\) for a batch of one"),
        (-1, InvalidTypeError, r"not -1; pass torch.tensor\(\[-1\]\)"),
        ([0], InvalidTypeError, r"not a list; pass torch.as_tensor\(index\)"),
        ((0,), InvalidTypeError, "not a tuple"),
        (range(1), InvalidTypeError, "not a range"),
        (np.zeros(1, dtype=np.int64), InvalidTypeError, "not a ndarray"),
        ("0", InvalidTypeError, "not a str"),
        (..., InvalidTypeError, "not a ellipsis"),
        (torch.zeros(1), InvalidTypeError, r"not torch.float32; pass index.long\(\)"),
        (torch.zeros(1, dtype=torch.uint8), InvalidTypeError, r"not torch.uint8; .* index.bool\(\) if it is a mask"),
        (torch.zeros(1, dtype=torch.int16), InvalidTypeError, "not torch.int16"),
        (torch.tensor(0), InvalidValueError, r"one dimension, not shape \(\); flatten"),
        (torch.zeros(1, 1, dtype=torch.int64), InvalidValueError, r"one dimension, not shape \(1, 1\)"),
        (torch.ones(1, 28, dtype=torch.bool), InvalidValueError, r"one dimension, not shape \(1, 28\)"),
        (torch.ones(2, dtype=torch.bool), InvalidValueError, "a mask of 2 entries for 1 images; pass one entry"),
        (
            torch.zeros(1, dtype=torch.int64, device="meta"),
            InvalidValueError,
            "is on meta and the images on cpu; move one",
        ),
    ],
)
def test_an_index_that_is_not_a_batch_is_refused(index, error, message, colour):
    with pytest.raises(error, match=f"index .*{message}"):
        one_image(colour).images(index)


# One at a time, and in a DataLoader


@pytest.mark.parametrize(("dataset", "tasks"), [("mnist", ["digit"]), ("colour-mnist", ["colour", "digit"])])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_makes_the_batches_that_images_and_labels_are(dataset, tasks, workers):
    data = load(dataset, "test").subset(100, 150)
    shown = list(DataLoader(data, batch_size=16, num_workers=workers))
    assert [len(batch[0]) for batch in shown] == [16, 16, 16, 2]
    for found, expected in zip(zip(*shown, strict=True), [data.images(), *map(data.labels, tasks)], strict=True):
        assert torch.equal(torch.cat(found), expected)
        assert found[0].dtype == expected.dtype


@pytest.mark.parametrize("colour", [None, "red"])
def test_one_image_is_that_of_a_batch_of_one(colour):
    data = load("mnist" if colour is None else "colour-mnist", "test").subset(0, 10)
    labels = [data.labels(task) for task in (("digit",) if colour is None else ("colour", "digit"))]
    for index, place in ((3, 3), (-1, 9), (-10, 0), (np.int64(4), 4), (torch.tensor(5), 5)):
        image, *said = data[index]
        assert image.shape == (data.channels, 28, 28)
        assert torch.equal(image, data.images(torch.tensor([place]))[0])
        assert [int(label) for label in said] == [int(label[place]) for label in labels]
    for index in (slice(2, 5), torch.tensor([7, 1]), torch.arange(10) % 3 == 0):
        for found, expected in zip(data[index], [data.images(), *labels], strict=True):
            assert torch.equal(found, expected[index])
    assert len(list(data)) == 10  # the loop ends at the IndexError
    for index in (10, -11):
        with pytest.raises(IndexError, match=f"there is no image {index} among 10"):
            data[index]
    for index in (None, [0], "0", 1.0):
        with pytest.raises(InvalidTypeError, match="index must be a slice or a one-dimensional tensor"):
            data[index]
