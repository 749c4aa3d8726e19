"""The paper's Table 1: its rows and figures, and a run of one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from types import MappingProxyType

import torch

from convexlab.architectures import build_model
from convexlab.datasets.torchvision_sets import data_folder
from convexlab.problems import build_problem
from convexlab.runs import Row, write_json
from paper.protocols import PAPERS, ProtocolPlan, train_protocols
from paper.records import stored

__all__ = [
    "CLASSES",
    "FULL_SIZES",
    "MODELS",
    "PUBLISHED",
    "PublishedRow",
    "TableCase",
    "least_train_size",
    "source",
    "train_case",
]

MODELS = ("vit-mlp", "vit-nomlp", "vit-nomlp-wkewq", "vit-nomlp-wkewq-wvwo", "vgg5-max-relu")
CLASSES: Mapping[str, int] = MappingProxyType({"mnist": 10, "cifar10": 10, "cifar100": 100, "digits": 10})
FULL_SIZES: Mapping[str, int] = MappingProxyType({"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000})
_CHANNELS = {"cifar10": 3, "cifar100": 3}


@dataclass(frozen=True)
class PublishedRow:
    """A row of Table 1: of each of Adam and Adam+CG, training loss and accuracy, validation loss and accuracy."""

    adam: tuple[float, float, float, float]
    adam_cg: tuple[float, float, float, float]
    overdetermination: float
    """Q, equation 7."""


PUBLISHED: Mapping[tuple[str, str], PublishedRow] = MappingProxyType(
    {
        (dataset, model): PublishedRow(adam, adam_cg, overdetermination)
        for dataset, rows in {
            "mnist": (
                ((0.0008, 0.995, 0.0061, 0.965), (0.0001, 1.000, 0.0044, 0.974), 3.9),
                ((0.0003, 0.998, 0.0064, 0.963), (0.0002, 0.999, 0.0053, 0.969), 11.0),
                ((0.0004, 0.998, 0.0057, 0.967), (0.0002, 0.999, 0.0048, 0.971), 14.1),
                ((0.0016, 0.990, 0.0073, 0.955), (0.0006, 0.996, 0.0063, 0.962), 33.5),
                ((0.0001, 1.000, 0.0014, 0.993), (0.0001, 1.000, 0.0011, 0.994), 4.9),
            ),
            "cifar10": (
                ((0.0091, 0.943, 0.0997, 0.428), (0.0041, 0.970, 0.0991, 0.435), 3.1),
                ((0.0290, 0.819, 0.0981, 0.428), (0.0175, 0.891, 0.0982, 0.444), 7.9),
                ((0.0386, 0.744, 0.0889, 0.441), (0.0270, 0.833, 0.0881, 0.461), 9.9),
                ((0.0567, 0.575, 0.0775, 0.414), (0.0527, 0.612, 0.0738, 0.436), 19.1),
                ((0.0059, 0.967, 0.0531, 0.710), (0.0047, 0.969, 0.0491, 0.719), 4.1),
            ),
            "cifar100": (
                ((0.0041, 0.706, 0.0128, 0.155), (0.0028, 0.758, 0.0134, 0.151), 29.7),
                ((0.0062, 0.478, 0.0112, 0.166), (0.0053, 0.534, 0.0116, 0.165), 72.6),
                ((0.0069, 0.425, 0.0108, 0.174), (0.0059, 0.487, 0.0109, 0.176), 88.4),
                ((0.0082, 0.291, 0.0099, 0.157), (0.0078, 0.326, 0.0097, 0.164), 156.4),
                ((0.0032, 0.755, 0.0108, 0.300), (0.0032, 0.737, 0.0102, 0.321), 38.9),
            ),
        }.items()
        for model, (adam, adam_cg, overdetermination) in zip(MODELS, rows, strict=True)
    }
)
"""By data set and model; facts of Hrycej et al. 2025, Table 1, whose name for wvwo is wvwo1."""


@dataclass(frozen=True)
class TableCase:
    """One run of one row."""

    dataset: str
    model: str
    train_size: int
    epochs: int
    switch: int
    batch_size: int
    seed: int
    rate: float
    device: str = "cpu"

    @property
    def row(self) -> tuple[str, str]:
        """Data set and model."""
        return self.dataset, self.model

    @property
    def key(self) -> str:
        """A file name."""
        return f"{self.dataset}-{self.model}-{self.rate:g}-{self.seed}"


def source(dataset: str) -> str:
    """Return what to load for a data set's name: ten thousand images of it, where the data folder has but those."""
    compact = data_folder() / f"{dataset}-10k.npz"
    return f"npz:{compact}" if compact.exists() else dataset


def least_train_size(dataset: str, model: str, *, step: int = 100) -> int:
    """Return the least multiple of ``step`` examples that overdetermine the network: Q = K M / P >= 1."""
    classes = CLASSES[dataset]
    network = build_model(model, channels=_CHANNELS.get(dataset, 1), classes=classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return step * ceil(parameters / classes / step)


def train_case(case: TableCase, folder: Path, *, paper: bool = True) -> Row:
    """Train a row's network by every protocol, or return what an earlier call has left in the folder.

    Args:
        case: what is trained, and how.
        folder: where the record is, and goes.
        paper: whether the paper's protocol is among them.

    Returns:
        The case, ``protocols`` as of `train_protocols`, ``parameters``, ``examples`` (K), ``overdetermination`` (Q) and
        ``processor_seconds``.
    """
    torch.set_num_threads(1)
    file, identity = folder / f"{case.key}.json", {"case": asdict(case)}
    known = stored(file, identity)
    if known is not None and (PAPERS in known["protocols"] or not paper):
        return known
    began = time.process_time()
    problem = build_problem(
        case.model,
        source(case.dataset),
        "mse",
        train_size=case.train_size,
        seed=case.seed,
        batch_size=case.batch_size,
        most_held_out=2000,
        device=case.device,
    )
    protocols = train_protocols(problem, ProtocolPlan(case.epochs, case.switch, case.rate, case.seed), paper=paper)
    record = identity | {
        "protocols": protocols,
        "parameters": problem.objective.size,
        "examples": problem.examples,
        "overdetermination": problem.overdetermination,
        "processor_seconds": time.process_time() - began,
    }
    write_json(file, record)
    return record
