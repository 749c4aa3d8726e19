from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from torch.func import grad, jvp, vmap

from convexlab.errors import MisuseError
from convexlab.problems.losses import accuracy, build_loss, loss_names, takes_model

EPSILON = np.finfo(np.float64).eps
N, CLASSES = 7, 4

# torch, on the first forward-mode derivative in a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


@pytest.fixture
def output() -> torch.Tensor:
    return torch.randn(N, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3, 3, 1, 0])


def one_hot(labels: torch.Tensor) -> np.ndarray:
    return np.eye(CLASSES)[labels.numpy()]


def expected_value(name: str, output: torch.Tensor, target: np.ndarray) -> float:
    z = output.numpy()
    if name == "mse":
        return float(((z - target) ** 2).sum() / z.size)
    return float(-(target * scipy.special.log_softmax(z, axis=1)).sum() / len(z))


def expected_gradient(name: str, output: torch.Tensor, target: np.ndarray) -> np.ndarray:
    z = output.numpy()
    if name == "mse":
        return 2 * (z - target) / z.size
    return (scipy.special.softmax(z, axis=1) - target) / len(z)


def expected_product(name: str, output: torch.Tensor, v: np.ndarray) -> np.ndarray:
    """The Hessian with respect to the output, times v: 2 v / (N classes), or (diag(p) - p pᵀ) v / N."""
    z = output.numpy()
    if name == "mse":
        return 2 * v / z.size
    p = scipy.special.softmax(z, axis=1)
    return p * (v - (p * v).sum(axis=1, keepdims=True)) / len(z)


def test_names() -> None:
    assert loss_names() == ("mse", "cross-entropy")


# Sums of at most 28 terms of size O(1): rounding stays below 100 epsilon.
TOLERANCE = 100 * EPSILON


@pytest.mark.parametrize("name", loss_names())
def test_value_gradient_and_product_have_their_closed_forms(
    name: str, output: torch.Tensor, labels: torch.Tensor
) -> None:
    loss, target = build_loss(name, classes=CLASSES), one_hot(labels)
    v = torch.linspace(-1, 1, N * CLASSES, dtype=torch.float64).reshape(N, CLASSES)
    gradient = grad(lambda z: loss(z, labels))
    assert loss(output, labels).item() == pytest.approx(expected_value(name, output, target), rel=TOLERANCE)
    np.testing.assert_allclose(gradient(output), expected_gradient(name, output, target), atol=TOLERANCE)
    product = expected_product(name, output, v.numpy())
    # The two ways of taking second derivatives: forward over reverse, and reverse over reverse.
    np.testing.assert_allclose(jvp(gradient, (output,), (v,))[1], product, atol=TOLERANCE)
    reverse = grad(lambda z: (gradient(z) * v).sum())(output)
    np.testing.assert_allclose(reverse, product, atol=TOLERANCE)


@pytest.mark.parametrize("name", loss_names())
def test_floating_point_targets_in_the_shape_of_the_output(
    name: str, output: torch.Tensor, labels: torch.Tensor
) -> None:
    loss = build_loss(name, classes=CLASSES)
    mixed = 0.9 * one_hot(labels) + 0.1 / CLASSES
    assert loss(output, torch.from_numpy(mixed)).item() == pytest.approx(
        expected_value(name, output, mixed), rel=TOLERANCE
    )


def test_regression_of_any_width() -> None:
    loss = build_loss("mse", classes=CLASSES)
    value = loss(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.5]], dtype=torch.float64))
    assert value.item() == (1.0**2 + 1.5**2) / 2  # exact in binary
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", loss_names())
def test_per_example_losses_by_vmap_average_to_the_loss(name: str, output: torch.Tensor, labels: torch.Tensor) -> None:
    loss = build_loss(name, classes=CLASSES)
    each = vmap(loss)(output, labels)
    assert each.shape == (N,)
    assert each.mean().item() == pytest.approx(loss(output, labels).item(), rel=TOLERANCE)


@pytest.mark.parametrize("name", loss_names())
def test_dimensions_before_the_classes_are_all_examples(name: str, output: torch.Tensor, labels: torch.Tensor) -> None:
    loss = build_loss(name, classes=CLASSES)
    folded = loss(output[:6].reshape(2, 3, CLASSES), labels[:6].reshape(2, 3))
    assert folded.item() == pytest.approx(loss(output[:6], labels[:6]).item(), rel=TOLERANCE)


@pytest.mark.parametrize("name", loss_names())
@pytest.mark.parametrize(
    ("output_shape", "target", "message"),
    [
        ((5, 4), torch.zeros(5, 1, dtype=torch.long), r"one integer label an example, of shape \(5,\), got .*\(5, 1\)"),
        ((5, 4), torch.zeros(4, dtype=torch.long), r"shape \(5,\)"),
        ((5, 3), torch.zeros(5, dtype=torch.long), "expected a model with 4 outputs, one a class, got 3"),
        ((5, 1), torch.zeros(5), r"in the output's shape \(5, 1\), got \(5,\)"),  # would broadcast to (5, 5)
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    name: str, output_shape: tuple[int, ...], target: torch.Tensor, message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        build_loss(name, classes=4)(torch.zeros(output_shape), target)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(MisuseError, match=r"unknown loss 'crossentropy'. Did you mean 'cross-entropy'\?"):
        build_loss("crossentropy", classes=4)


def test_loss_from_a_file_is_told_the_classes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def scaled(classes):\n    return lambda output, target: classes * output.sum()\n\ndef wrong():\n    return 3\n"
    )
    loss = build_loss(f"{tmp_path / 'mine.py'}:scaled", classes=4)
    assert loss(torch.ones(2, 3), torch.zeros(2)).item() == 24
    with pytest.raises(MisuseError, match="returned int: expected a loss"):
        build_loss(f"{tmp_path / 'mine.py'}:wrong", classes=4)


def test_loss_from_a_module_is_called_without_what_it_does_not_name(output: torch.Tensor, labels: torch.Tensor) -> None:
    loss = build_loss("torch.nn:CrossEntropyLoss", classes=CLASSES)
    assert loss(output, labels).item() == pytest.approx(
        expected_value("cross-entropy", output, one_hot(labels)), rel=TOLERANCE
    )


def test_a_function_of_two_arguments_is_the_loss_itself() -> None:
    loss = build_loss("torch.nn.functional:mse_loss", classes=CLASSES)
    assert loss(torch.ones(2, 3), torch.zeros(2, 3)).item() == 1
    assert not takes_model(loss)
    with pytest.raises(MisuseError, match="requires input1, input2, target: expected a loss"):
        build_loss("torch.nn.functional:margin_ranking_loss", classes=CLASSES)


def test_accuracy_counts_hits_in_float64() -> None:
    output = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-1.0, -2.0]])
    share = accuracy(output, torch.tensor([1, 1, 0]))
    assert share.dtype == torch.float64
    assert share.item() == 2 / 3


def test_accuracy_refuses_regression_targets() -> None:
    with pytest.raises(MisuseError, match="one integer label an example"):
        accuracy(torch.zeros(3, 1), torch.zeros(3, 1))
