"""Where the eigenvalues are: the estimated share of them below each value, beside all of them from the dense Hessian.

Runs in seconds: ``python examples/gallery/spectral_density.py PICTURE.png``
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import convexlab as cl

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:200] / 16, dtype=torch.float64)
y = nn.functional.one_hot(torch.tensor(labels[:200])).double()
model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
objective = cl.Objective(model, [(x, y)], nn.MSELoss())
adam = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    adam.step(objective.closure)

density = cl.spectral_density(objective.hessian(), probes=4, steps=40)
identity = torch.eye(objective.size, dtype=torch.float64)
exact = torch.linalg.eigvalsh(objective.hessian() @ identity).numpy()  # of 460 parameters: for a check, not for yours

thresholds = np.linspace(-0.03, 0.1, 131) * exact[-1]
bounds = np.array([density.mass_interval(threshold) for threshold in thresholds])
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.fill_between(thresholds, bounds[:, 0], bounds[:, 1], alpha=0.3, label="estimate, 95 % interval")
axes.step(thresholds, np.searchsorted(exact, thresholds) / len(exact), label="all eigenvalues")
axes.axvline(0, color="grey", linewidth=0.8)
axes.set(xlabel="eigenvalue", ylabel="share of the eigenvalues below it")
axes.legend(loc="lower right")
figure.savefig(sys.argv[1], dpi=150)

low, high = density.mass_interval(0.01 * exact[-1])
share = float(np.mean(exact < 0.01 * exact[-1]))
print(f"share of eigenvalues below 1 % of the largest: {share:.3f}, estimated as {low:.3f} to {high:.3f}")
