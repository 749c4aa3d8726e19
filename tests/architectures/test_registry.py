from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from convexlab.architectures import ARCHITECTURES, build_model, model_names
from convexlab.errors import MisuseError
from convexlab.problems.losses import build_loss

# torch, on the first forward-mode derivative in a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

MODELS = ("vit-mlp", "vit-nomlp", "vit-nomlp-wkewq", "vit-nomlp-wkewq-wvwo", "vgg5-max-relu")
# Data set: examples, channels, classes; then, a model, its parameters and the Q that Table 1 of the paper prints.
TABLE_1 = {
    ("mnist", 60_000, 1, 10): ((154_058, 3.9), (54_794, 11.0), (42_506, 14.1), (17_930, 33.5), (121_994, 4.9)),
    ("cifar10", 50_000, 3, 10): ((162_250, 3.1), (62_986, 7.9), (50_698, 9.9), (26_122, 19.1), (122_570, 4.1)),
    ("cifar100", 50_000, 3, 100): ((168_100, 29.7), (68_836, 72.6), (56_548, 88.4), (31_972, 156.4), (128_420, 38.9)),
}
CASES = [
    pytest.param(model, *data[1:], *row, id=f"{data[0]}-{model}")
    for data, rows in TABLE_1.items()
    for model, row in zip(MODELS, rows, strict=True)
]


@pytest.mark.parametrize(("model", "examples", "channels", "classes", "parameters", "overdetermination"), CASES)
def test_parameter_counts_give_the_overdetermination_of_table_1(
    model: str, examples: int, channels: int, classes: int, parameters: int, overdetermination: float
) -> None:
    built = build_model(model, channels=channels, classes=classes)
    count = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    assert count == parameters
    assert round(examples * classes / count, 1) == overdetermination


def test_every_name_has_one_line_of_description() -> None:
    assert model_names() == (*MODELS, "tanh-1d", "tanh-2layer")
    assert all(
        ARCHITECTURES[name].description and "\n" not in ARCHITECTURES[name].description for name in model_names()
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("image_size", [8, 16, 40])
def test_other_sizes_of_images(model: str, image_size: int) -> None:
    built = build_model(model, channels=2, classes=5, image_size=image_size)
    assert built(torch.zeros(3, 2, image_size, image_size)).shape == (3, 5)


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_gives_the_same_weights(model: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_model(model).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("model", model_names())
def test_state_holds_each_parameter_once_and_nothing_else(model: str) -> None:
    built = build_model(model)
    assert set(built.state_dict()) == {name for name, _ in built.named_parameters()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_hessian_product_is_the_difference_quotient_of_the_gradient(model: str, loss: str) -> None:
    torch.manual_seed(0)
    built = build_model(model, channels=1, classes=3, image_size=16).double()
    criterion = build_loss(loss, classes=3)
    images, labels = torch.randn(4, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    theta = dict(built.named_parameters())
    names = list(theta)
    direction = {name: torch.randn_like(parameter) for name, parameter in theta.items()}
    length = torch.cat([part.flatten() for part in direction.values()]).norm()
    direction = {name: part / length for name, part in direction.items()}

    def value(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return criterion(functional_call(built, parameters, (images,)), labels)

    def flat(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([parts[name].flatten() for name in names])

    def shifted(step: float) -> torch.Tensor:
        moved = {name: (theta[name] + step * direction[name]).detach() for name in names}
        return flat(grad(value)(moved))

    forward = flat(jvp(grad(value), (theta,), (direction,))[1])
    first = torch.autograd.grad(value(theta), list(theta.values()), create_graph=True)
    second = torch.autograd.grad(first, list(theta.values()), list(direction.values()))
    reverse = torch.cat([part.flatten() for part in second])
    # Both are exact derivatives: they differ by rounding alone, 1e-16 times the few thousand operations an entry.
    assert (forward - reverse).norm() <= 1e-12 * forward.norm()
    # Central differences at steps 2h and h err by 4 c h² and c h²; Richardson's combination removes that and leaves h⁴
    # (1e-14) times a fifth derivative, and rounding eps |g| / h, below 1e-12 of the gradient. The bound allows for high
    # derivatives 1e6 times the second. A ReLU kink inside the step would break it, hence the fixed seed.
    h = 3e-4
    wide, narrow = ((shifted(step) - shifted(-step)) / (2 * step) for step in (2 * h, h))
    quotient = (4 * narrow - wide) / 3
    assert (forward - quotient).norm() <= 1e-8 * forward.norm()


@pytest.mark.parametrize("model", MODELS)
def test_vmap_over_examples_gives_the_batch(model: str) -> None:
    torch.manual_seed(0)
    built = build_model(model, image_size=16).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    # The same sums in another order: at most 1024 terms of size O(1), each rounded to 1e-16.
    torch.testing.assert_close(vmap(built)(images), built(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("image_size", [28, 4])
def test_image_size_that_the_network_cannot_take(model: str, image_size: int) -> None:
    with pytest.raises(MisuseError, match=f"multiple of 8 .*got {image_size}.*Resize"):
        build_model(model, image_size=image_size)


@pytest.mark.parametrize("size", ["channels", "classes", "image_size"])
def test_sizes_below_one(size: str) -> None:
    with pytest.raises(MisuseError, match=f"expected {size} of at least 1, got 0"):
        build_model("vit-mlp", **{size: 0})


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(MisuseError, match=r"unknown model 'vit-mpl'. Did you mean 'vit-mlp'\? Known: .*vgg5-max-relu"):
        build_model("vit-mpl")


def test_model_from_a_file_receives_the_sizes_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def linear(classes, channels):\n    return nn.Linear(channels, classes)\n"
        "def wrong():\n    return 3\n"
    )
    built = build_model(f"{tmp_path / 'mine.py'}:linear", channels=2, classes=7)
    assert tuple(built.weight.shape) == (7, 2)
    with pytest.raises(MisuseError, match=r"returned int: expected a torch\.nn\.Module"):
        build_model(f"{tmp_path / 'mine.py'}:wrong")


def test_model_from_a_module() -> None:
    built = build_model("convexlab.architectures.vgg:VGG5", channels=1, classes=4, image_size=8)
    assert built(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
