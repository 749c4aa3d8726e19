from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.machine.precision import PRECISIONS, calculating_in, require_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolution", [True, False])
def test_full_precision_within_and_the_users_after(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution

    def nested_and_failing() -> None:
        with calculating_in("full", CPU):
            with calculating_in("full", CPU):
                assert settings() == ("highest", False)
            assert settings() == ("highest", False)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            nested_and_failing()
        assert settings() == (matmul, convolution)


def test_an_objective_evaluates_in_full_precision() -> None:
    states = []

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        states.append(settings())
        return (output - target).square().mean()

    torch.set_float32_matmul_precision("high")
    objective = cl.Objective(nn.Linear(2, 1), [(torch.ones(3, 2), torch.ones(3, 1))], criterion)
    objective.value_and_gradient()
    objective.closure()
    objective.hvp(torch.ones(3))
    assert set(states) == {("highest", False)}
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has no switch for each operation")
def test_what_was_chosen_operation_by_operation_is_left_alone() -> None:
    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    torch.backends.cudnn.allow_tf32 = True
    convolution.fp32_precision = "ieee"
    try:
        with calculating_in("full", CPU):
            assert convolution.fp32_precision == "ieee"
        assert convolution.fp32_precision == "ieee"
    finally:
        convolution.fp32_precision = before


def test_bfloat16_within_and_the_users_autocast_after() -> None:
    weights = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with calculating_in("full", CPU):
            assert (weights @ weights).dtype == torch.float32
        assert (weights @ weights).dtype == torch.bfloat16
    with calculating_in("bf16", CPU):
        assert (weights @ weights).dtype == torch.bfloat16
        assert (weights.double() @ weights.double()).dtype == torch.float64
        assert settings() == ("highest", False)
    assert (weights @ weights).dtype == torch.float32


def test_tensor_cores_are_allowed_within_alone() -> None:
    before = settings()
    with calculating_in("tf32", CPU):
        assert settings() == ("high", True)
    assert settings() == before


@pytest.mark.parametrize(
    ("precision", "device", "dtype", "message"),
    [
        ("half", "cpu", torch.float32, "half"),
        ("bf16", "cpu", torch.float64, "expected a loss in float32, got torch.float64"),
        ("tf32", "cpu", torch.float32, "expected a cuda device, got cpu"),
        ("tf32", "cuda", torch.float64, "expected a loss in float32"),
    ],
)
def test_a_precision_that_saves_nothing_is_refused(
    precision: str, device: str, dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        require_precision(precision, torch.device(device), dtype)


def test_precisions_that_are_to_be_had() -> None:
    assert PRECISIONS == ("full", "bf16", "tf32")
    require_precision("full", CPU, torch.float64)
    require_precision("bf16", CPU, torch.float32)
    require_precision("tf32", torch.device("cuda"), torch.float32)


@pytest.mark.gpu
def test_convolutions_on_an_accelerator_are_exact_to_float32() -> None:
    device = torch.accelerator.current_accelerator()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32 * 36, 3))
    batches = [(torch.randn(64, 16, 8, 8), torch.arange(64) % 3)]
    exact = cl.Objective(model, batches, nn.CrossEntropyLoss(), dtype=torch.float64).gradient()
    gradient = cl.Objective(model.to(device), batches, nn.CrossEntropyLoss()).gradient().cpu().double()
    # TensorFloat-32 rounds at 5e-4; float32's sums of some hundred products at some ten times 6e-8.
    assert float((gradient - exact).norm() / exact.norm()) < 2e-5
