"""Eigenpairs of a network of others against SciPy's ARPACK."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

import convexlab as cl
from tests.verification.conftest import Record

torchvision = pytest.importorskip("torchvision")


def test_the_hessian_of_a_resnet(record: Record) -> None:
    """ResNet-18 of torchvision, with the statistics of its normalisations; of its last block, so that it is quick."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    with torch.no_grad():
        model(torch.randn(8, 3, 16, 16))
    data = [(torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2]))]
    params = ["layer4.1.bn2.*", "layer4.1.bn1.*", "fc.*"]
    objective = cl.Objective(model, data, nn.CrossEntropyLoss(), params=params, dtype=torch.float64)
    pairs = cl.top_eigenpairs(objective.hessian(), 5, tolerance=1e-6)
    values = eigsh(objective.hessian().to_scipy(), k=5, which="LA", tol=1e-10, return_eigenvectors=False)
    assert pairs.converged
    error = float(np.abs(pairs.values.numpy() - np.sort(values)[::-1]).max() / values.max())
    record("5 largest eigenvalues, last block of ResNet-18 (relative)", "SciPy eigsh", error, 1e-8)
