from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from convexlab.architectures import VGG5


@pytest.mark.parametrize("channels", [1, 3])
def test_network_agrees_with_torchvision(channels: int) -> None:
    torch.manual_seed(0)
    ours = VGG5(channels=channels, classes=7).double()
    features = torchvision.models.vgg.make_layers([32, "M", 64, "M", 64, "M"])
    features[0] = nn.Conv2d(channels, 32, kernel_size=3, padding=1)
    reference = nn.Sequential(features, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 7)).double()
    with torch.no_grad():
        for target, source in zip(reference.parameters(), ours.parameters(), strict=True):
            target.copy_(source)
    images = torch.randn(3, channels, 32, 32, dtype=torch.float64)
    results = [
        (model(images), torch.autograd.grad(model(images).square().sum(), list(model.parameters())))
        for model in (ours, reference)
    ]
    # The same float64 function in another order and layout: sums of at most 3072 terms of size O(1).
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
