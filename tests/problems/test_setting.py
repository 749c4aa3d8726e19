"""What a checkpoint says of itself, and which of it is still true where something else is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convexlab.checkpoints import Checkpoint
from convexlab.errors import MisuseError
from convexlab.problems import Setting, setting_of

IMAGES = {"model": "vit-mlp", "dataset": "mnist", "loss": "mse", "train_size": "1000", "probe_size": "100", "seed": "4"}
PHYSICS = {"objective": "pinn-convection", "train_size": "1000", "seed": "4", "dtype": "float32"}


def setting(metadata: dict[str, str], **given: Any) -> Setting:
    return setting_of(Checkpoint(Path("epoch-00001.safetensors"), {}, metadata), given)


@pytest.mark.parametrize(
    ("metadata", "given", "expected"),
    [
        (IMAGES, {}, Setting(None, "vit-mlp", "mnist", "mse", 1000, 100, 4, None)),
        (IMAGES, {"probe_size": 50}, Setting(None, "vit-mlp", "mnist", "mse", 1000, 50, 4, None)),
        (IMAGES, {"train_size": 500}, Setting(None, "vit-mlp", "mnist", "mse", 500, None, 4, None)),
        (IMAGES, {"train_size": 500, "probe_size": 9}, Setting(None, "vit-mlp", "mnist", "mse", 500, 9, 4, None)),
        (IMAGES, {"dataset": "digits"}, Setting(None, "vit-mlp", "digits", "mse", None, None, 0, None)),
        (IMAGES, {"model": "vgg5-max-relu"}, Setting(None, "vgg5-max-relu", "mnist", "mse", 1000, 100, 4, None)),
        (PHYSICS, {}, Setting("pinn-convection", "", "", "", 1000, None, 4, "float32")),
        (PHYSICS, {"seed": 5}, Setting("pinn-convection", "", "", "", 1000, None, 5, "float32")),
        (PHYSICS, {"objective": "pinn-burgers"}, Setting("pinn-burgers", "", "", "", None, None, 0, "float32")),
        (IMAGES, {"objective": "pinn-burgers"}, Setting("pinn-burgers", "", "", "", None, None, 0, None)),
        (
            PHYSICS,
            {"model": "vit-mlp", "dataset": "mnist", "loss": "mse"},
            Setting(None, "vit-mlp", "mnist", "mse", None, None, 0, "float32"),
        ),
    ],
)
def test_metadata_and_overrides(metadata: dict[str, str], given: dict[str, Any], expected: Setting) -> None:
    assert setting(metadata, **given) == expected


@pytest.mark.parametrize(
    ("metadata", "given", "message"),
    [
        ({}, {}, "does not say which model it belongs to. Name it by --model, or a loss of another kind"),
        (PHYSICS, {"model": "vit-mlp"}, "does not say which dataset"),
        (IMAGES, {"objective": "x:y", "loss": "mse"}, "expected no loss beside it, got 'mse'"),
        (IMAGES, {"objective": "x:y", "probe_size": 3}, "expected no probe_size beside it, got 3"),
        (IMAGES | {"probe_size": "few"}, {}, "has damaged metadata"),
    ],
)
def test_misuse(metadata: dict[str, str], given: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError) as raised:
        setting(metadata, **given)
    assert message in str(raised.value)


def test_labels_are_words_for_folders() -> None:
    assert setting({}, objective="here/file.py:bowl").label == "bowl"
    assert setting(PHYSICS).label == "pinn-convection"
    assert setting(IMAGES).label == "vit-mlp"
