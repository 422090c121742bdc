"""The arithmetic of the pictures, in a browser, against the library in float64; and the files that they show."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import CHROMIUM, serve
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from se_core import DiagonalGaussian, load, load_pretrained
from se_core.attacks import pgd
from se_core.lab.evaluation import NEAR
from se_core.losses import cross_entropy
from se_core.pretrained import Mean, Pretrained
from se_core.transport import coupling, entropic_w2_squared, mutual_information, w2_squared

sys.path.insert(0, str(Path(__file__).parents[2] / "book"))
import blind_spot
import demo
import figure1_digits

METHODS = ("vae", "se", "pinned")
EXACT = {"rtol": 1e-9, "atol": 1e-9}
RADIUS, STEPS = 0.1, 40

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; apt-get install chromium")


@pytest.fixture(scope="module")
def made() -> dict[str, Tensor]:
    demo.write_weights()
    return read_tensors(demo.WEIGHTS.read_bytes())


def test_the_same_weights_give_the_same_bytes_and_few(made: dict[str, Tensor]) -> None:
    content = demo.WEIGHTS.read_bytes()
    demo.write_weights()
    assert demo.WEIGHTS.read_bytes() == content
    assert len(content) < 6_000_000


def test_the_page_has_the_accuracies_of_the_records() -> None:
    assert f"<!-- withstood -->\n{demo.withstood()}\n<!-- /withstood -->" in demo.PAGE.read_text()
    rows = load_pretrained("mnist-mlp-pinned").record["bundled"]
    assert {row["radius"]: row["accuracy"] for row in rows}[0.2] < 0.5  # "wrong most of the time"


def test_the_sixteen_digits_are_the_first_of_each_class_and_the_second_of_some(made: dict[str, Tensor]) -> None:
    data = load("mnist", "test")
    assert made["labels"].tolist() == [*range(10), *range(6)]
    for digit in range(10):
        first, second = data.pixels[data.digits == digit][:2]
        assert torch.equal(made["digits"][digit], first)
        assert digit > 5 or torch.equal(made["digits"][10 + digit], second)


def test_the_digits_behind_figure_1_are_attacked_within_the_radius_and_read_as_it_says() -> None:
    tensors, data = read_tensors(figure1_digits.DIGITS.read_bytes()), load("mnist", "test").subset(0, 8)
    assert torch.equal(tensors["labels"].long(), data.digits)
    for panel, architecture in figure1_digits.ARCHITECTURES.items():
        for method in METHODS:
            pixels = tensors[f"{panel}.{method}"]
            assert len(pixels) == len(figure1_digits.EVALUATION["radii"])
            for radius, attacked in zip(figure1_digits.EVALUATION["radii"], pixels, strict=True):
                furthest = (attacked / 255 - data.images()).abs().amax((1, 2, 3))
                assert ((furthest - radius).abs() <= 0.5 / 255 + 1e-6).all()
            logits = load_pretrained(f"mnist-{architecture}-{method}").classifier()((pixels / 255).flatten(0, 1))
            torch.testing.assert_close(logits.argmax(-1), tensors[f"{panel}.{method}.read"].long())


def test_the_encoders_of_chapter_1_are_those_of_its_code() -> None:
    kept = json.loads(blind_spot.RESULTS.read_text())
    prices = [(row["gamma"], row["radius"]) for row in kept["se"]]
    assert prices == [(gamma, radius) for gamma in blind_spot.GAMMAS for radius in blind_spot.RADII]
    (row,) = [row for row in kept["se"] if (row["gamma"], row["radius"]) == (500.0, 0.07)]
    again = blind_spot.curve(blind_spot.chapter(), "se", blind_spot.SEEDS[0], gamma=500.0, radius=0.07)
    for key, values in again.items():
        np.testing.assert_allclose(values, row["encoders"][0][key], atol=0.05)  # another machine rounds otherwise


@pytest.fixture(scope="module")
def call(browser: Any, made: dict[str, Tensor]) -> Iterator[Callable[..., Any]]:
    """call("(name, x) => ...", name, x): a function of JavaScript, beside `tensors` and `models`; arrays as lists."""
    with serve(demo.WEIGHTS.parent) as address:
        page = browser.new_page()
        page.goto(address)
        page.add_script_tag(url="smooth-encoders.js")
        page.evaluate(
            """async ([file, methods]) => {
                window.tensors = SmoothEncoders.readSafetensors(await (await fetch(file)).arrayBuffer());
                window.models = Object.fromEntries(methods.map((m) => [m, new SmoothEncoders.Model(tensors, m)]));
                window.plain = (value) => ArrayBuffer.isView(value) ? [...value] : value;
            }""",
            [demo.WEIGHTS.name, list(METHODS)],
        )

        def call(function: str, *values: Any) -> Any:
            # As text, which playwright carries many times as fast as thousands of numbers.
            text = json.dumps(values, default=Tensor.tolist)
            code = f"(text) => JSON.stringify(({function})(...JSON.parse(text)), (_, value) => plain(value))"
            return json.loads(page.evaluate(code, text))

        yield call
        page.close()


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest) -> tuple[str, Pretrained]:
    pretrained = load_pretrained(f"mnist-mlp-{request.param}")
    pretrained.vae.double().requires_grad_(False)
    pretrained.probes["digit"].double()
    return request.param, pretrained


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Three of the sixteen digits, (3, 1, 28, 28) float64; of the second the VAE reads a 6 where a 4 is written."""
    return load("mnist", "test").images(torch.tensor([6, 2, 7])).double()


@in_a_browser
def test_half_precision_is_read_exactly(call: Callable[..., Any]) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))]
    found = call("(bits) => bits.map(SmoothEncoders.half)", finite.tolist())
    np.testing.assert_array_equal(np.array(found), finite.view(np.float16).astype(np.float64))


@in_a_browser
def test_means_images_and_votes_are_torch_s(call: Callable[..., Any], model: tuple[str, Pretrained], x: Tensor) -> None:
    name, pretrained = model
    q = pretrained.vae.encode(x)
    for k, image in enumerate(x.flatten(1)):
        found = call(
            """(name, x) => {
                const q = models[name].encode(x);
                return {...q, image: models[name].decode(q.mean), votes: models[name].votes(q.mean)};
            }""",
            name,
            image,
        )
        expected = {
            "mean": q.mean[k],
            "sigma": (q.log_var[k] / 2).exp(),
            "image": pretrained.vae.decode(q.mean[k : k + 1]).flatten(),
            "votes": pretrained.probes["digit"](q.mean[k]).softmax(-1),
        }
        for key, value in expected.items():
            torch.testing.assert_close(torch.tensor(found[key], dtype=torch.float64), value, **EXACT)


def objectives(pretrained: Pretrained, x: Tensor, labels: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    logits = nn.Sequential(Mean(pretrained.vae.encoder), pretrained.probes["digit"])
    q = pretrained.vae.encode(x)
    return {
        "votes": cross_entropy(logits, labels),
        "representation": lambda x_prime: w2_squared(q, pretrained.vae.encode(x_prime)),
    }


OBJECTIVE = """const objective = aim === "votes" ? SmoothEncoders.crossEntropy(models[name], label)
                                                 : SmoothEncoders.movedFrom(models[name].encode(x));"""


@in_a_browser
@pytest.mark.parametrize("aim", ["votes", "representation"])
def test_gradients_are_torch_s(aim: str, call: Callable[..., Any], model: tuple[str, Pretrained], x: Tensor) -> None:
    name, pretrained = model
    labels = torch.tensor([3, 4, 5])
    x_prime = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))).clamp(max=1).requires_grad_()
    values = objectives(pretrained, x, labels)[aim](x_prime)
    (gradients,) = torch.autograd.grad(values.sum(), x_prime)
    x_prime, values = x_prime.detach(), values.detach()
    for k in range(len(x)):
        found = call(
            f"(name, aim, x, label, xPrime) => {{ {OBJECTIVE} return models[name].slope(xPrime, objective); }}",
            *(name, aim, x[k].flatten(), int(labels[k]), x_prime[k].flatten()),
        )
        assert found["value"] == pytest.approx(float(values[k]), rel=1e-9)
        torch.testing.assert_close(
            torch.tensor(found["gradient"], dtype=torch.float64), gradients[k].flatten(), **EXACT
        )


@in_a_browser
@pytest.mark.parametrize(("aim", "settings"), [("votes", NEAR), ("representation", {"spread": 1.0, "momentum": 0.0})])
def test_attacked_images_are_torch_s(
    aim: str, settings: dict[str, float], call: Callable[..., Any], model: tuple[str, Pretrained], x: Tensor
) -> None:
    name, pretrained = model
    labels = torch.tensor([3, 4, 5])
    objective = objectives(pretrained, x, labels)[aim]
    expected = pgd(objective, x, RADIUS, STEPS, generator=torch.Generator().manual_seed(0), **settings)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    assert (expected - x).abs().max() > 0.99 * RADIUS
    for k in range(len(x)):
        found = call(
            f"""(name, aim, x, label, noise, settings) => {{
                {OBJECTIVE}
                x = Float64Array.from(x);
                const start = SmoothEncoders.startNear(x, settings.radius, settings.spread, noise);
                const path = [...SmoothEncoders.attack(models[name], x, objective, settings, start)];
                return {{steps: path.length, x: path.at(-1).x, value: path.at(-1).value}};
            }}""",
            *(name, aim, x[k].flatten(), int(labels[k]), noise[k].flatten()),
            settings | {"radius": RADIUS, "steps": STEPS},
        )
        assert found["steps"] == STEPS + 1
        torch.testing.assert_close(torch.tensor(found["x"], dtype=torch.float64), expected[k].flatten(), **EXACT)
        assert found["value"] == pytest.approx(float(objective(expected)[k]), rel=1e-9)


@in_a_browser
@pytest.mark.parametrize(
    "strokes",
    [
        [[[0.1, 0.2], [0.3, 0.2], [0.12, 0.6]]],  # a small seven in a corner
        [[[0.2, 0.1], [0.2, 0.8], [0.6, 0.8]]],  # lopsided both ways
        [[[0.2, 0.1], [0.25, 0.9]]],  # a one
        [[[0.1, 0.5], [0.9, 0.5]], [[0.5, 0.4], [0.5, 0.6]]],  # wider than high
        [[[0.7, 0.7]]],  # a dot
    ],
)
def test_a_drawing_takes_mnist_s_form(strokes: list[list[list[float]]], call: Callable[..., Any]) -> None:
    """Its box has twenty pixels, and the centre of mass is the middle of the image; wherever it was drawn."""
    image = np.array(call("SmoothEncoders.mnistDigit", strokes)).reshape(28, 28)
    assert image.min() == 0
    assert 0.98 < image.max() <= 1
    rows, columns = np.nonzero(image.max(1) > 0.3)[0], np.nonzero(image.max(0) > 0.3)[0]
    place = np.arange(28) + 0.5
    for axis in (0, 1):
        assert (image.sum(axis) @ place) / image.sum() == pytest.approx(14, abs=0.1)
    if strokes != [[[0.7, 0.7]]]:
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
    moved = [[[x + 0.05, y + 0.03] for x, y in stroke] for stroke in strokes]
    np.testing.assert_allclose(np.array(call("SmoothEncoders.mnistDigit", moved)).reshape(28, 28), image, atol=1e-9)


@in_a_browser
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1e4])
def test_the_plan_is_the_library_s(gamma: float, call: Callable[..., Any]) -> None:
    means, sigmas = torch.tensor([0.0, 0.5]).double(), torch.tensor([1.2, 0.7], dtype=torch.float64)
    a, b = (DiagonalGaussian(means[[k]], 2 * sigmas[[k]].log()) for k in (0, 1))
    found = call("SmoothEncoders.plan", gamma, 1.2, 0.7, 0.5)
    expected = {
        "rho": coupling(a, b, gamma).rho,
        "information": mutual_information(a, b, gamma),
        "cost": entropic_w2_squared(a, b, gamma),
        "least": w2_squared(a, b),
    }
    assert found == {key: pytest.approx(float(value), rel=1e-7, abs=1e-12) for key, value in expected.items()}
