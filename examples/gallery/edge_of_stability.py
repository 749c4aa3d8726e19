"""Adam's sharpness: the largest eigenvalue in its own metric climbs to the border of stability, at each learning rate.

Runs in seconds: ``python examples/gallery/edge_of_stability.py PICTURE.png``
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import convexlab as cl

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:200] / 16, dtype=torch.float32)
y = nn.functional.one_hot(torch.tensor(labels[:200])).float()


def ratios(rate: float, steps: int) -> list[float]:
    """Return sharpness over its border, every 30th step of full-batch Adam at a learning rate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    objective = cl.Objective(model, [(x, y)], nn.MSELoss())
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    measured = []
    for step in range(1, steps + 1):
        adam.step(objective.closure)
        if step % 30 == 0:
            measured.append(cl.adam_sharpness(objective, adam, tolerance=0.05).ratio)
    return measured


figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for rate in (3e-3, 1e-2, 3e-2):
    measured = ratios(rate, 300)
    axes.plot(range(30, 301, 30), measured, ".-", label=f"rate {rate:g}")
    print(f"rate {rate:g}: at the end {measured[-1]:.2f} of the border, at most {max(measured):.2f}")
axes.axhline(1, color="grey", linestyle="--", linewidth=0.8, label="border of stability")
axes.set(xlabel="step of Adam", ylabel="sharpness over its border", yscale="log")
axes.legend()
figure.savefig(sys.argv[1], dpi=150)
