"""A problem so small that a whole run takes a fraction of a second: three classes of noisy 8x8 images, 83 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TRAIN_SIZE = 120
VALIDATION_SIZE = 30
CLASSES = 3
PARAMETERS = (16 + 1) * 4 + (4 + 1) * 3

MODELS = """
import torch
from torch import nn

def small(channels, classes, image_size, width=4):
    layers = nn.Linear(16 * channels, width), nn.Tanh(), nn.Linear(width, classes)
    return nn.Sequential(nn.AvgPool2d(image_size // 4), nn.Flatten(), *layers)

def wider(channels, classes, image_size):
    return small(channels, classes, image_size, width=5)

def moody(channels, classes, image_size):
    frozen = nn.Linear(16 * channels, 16)
    frozen.requires_grad_(False)
    return nn.Sequential(
        nn.AvgPool2d(image_size // 4), nn.Flatten(), frozen, nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, classes)
    )

def mismatched(channels, classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))

def broken():
    raise ValueError("no luck today")
"""


def write_problem(folder: Path) -> dict[str, Any]:
    """Write data and models, and return the options that name them."""
    random = np.random.default_rng(0)
    prototypes = random.normal(size=(CLASSES, 8, 8))

    def split(size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(size) % CLASSES
        images = 128 + 40 * prototypes[labels] + 25 * random.normal(size=(size, 8, 8))
        return np.clip(images, 0, 255).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(TRAIN_SIZE), split(VALIDATION_SIZE)
    np.savez(folder / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    (folder / "models.py").write_text(MODELS, encoding="utf-8")
    return {"model": f"{folder / 'models.py'}:small", "dataset": f"npz:{folder / 'data.npz'}"}


def without_seconds(value: Any) -> Any:
    """Return a copy without what differs from run to run."""
    if isinstance(value, dict):
        timed = {"seconds", "vector_seconds", "peak_memory"}
        return {key: without_seconds(item) for key, item in value.items() if key not in timed}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value
