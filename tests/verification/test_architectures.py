"""The paper's models have the paper's numbers of parameters."""

from __future__ import annotations

import pytest

import convexlab as cl
from tests.verification.conftest import Record

pytestmark = pytest.mark.verify

MODELS = ("vit-mlp", "vit-nomlp", "vit-nomlp-wkewq", "vit-nomlp-wkewq-wvwo", "vgg5-max-relu")

# Data set: training examples, channels, classes; then for each model the parameters that fit Table 1 of the paper, and
# the overdetermination Q = examples × classes / parameters that it prints.
TABLE: dict[str, tuple[tuple[int, int, int], tuple[tuple[int, float], ...]]] = {
    "MNIST": ((60_000, 1, 10), ((154_058, 3.9), (54_794, 11.0), (42_506, 14.1), (17_930, 33.5), (121_994, 4.9))),
    "CIFAR-10": ((50_000, 3, 10), ((162_250, 3.1), (62_986, 7.9), (50_698, 9.9), (26_122, 19.1), (122_570, 4.1))),
    "CIFAR-100": (
        (50_000, 3, 100),
        ((168_100, 29.7), (68_836, 72.6), (56_548, 88.4), (31_972, 156.4), (128_420, 38.9)),
    ),
}


@pytest.mark.parametrize("dataset", TABLE)
@pytest.mark.parametrize("column", range(len(MODELS)), ids=MODELS)
def test_parameters(record: Record, dataset: str, column: int) -> None:
    (examples, channels, classes), models = TABLE[dataset]
    expected, q = models[column]
    model = cl.build_model(MODELS[column], channels=channels, classes=classes, image_size=32)
    count = sum(parameter.numel() for parameter in model.parameters())
    record(f"parameters of {MODELS[column]}, {dataset}: {count:,}", "paper, table 1", abs(count - expected), 0)
    found = round(examples * classes / count, 1)
    record(f"Q of {MODELS[column]}, {dataset}: {found}", "paper, table 1", abs(found - q), 0)
