"""The most negative curvature along a training, in two parts: the loss bends in the output, the output in the weights.

Runs in seconds: ``python examples/gallery/where_curvature_comes_from.py PICTURE.png``
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import convexlab as cl

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:200] / 16, dtype=torch.float32)
y = nn.functional.one_hot(torch.tensor(labels[:200])).float()
model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
objective = cl.Objective(model, [(x, y)], nn.MSELoss())
adam = torch.optim.Adam(model.parameters(), lr=1e-2)

steps, parts = [], []
for step in range(61):
    if step % 10 == 0:
        ends = cl.extreme_eigenvalues(objective.hessian())
        steps.append(step)
        parts.append(cl.curvature_split(objective, ends.smallest_vector))
    adam.step(objective.closure)

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(steps, [float(part.hessian) for part in parts], "o-", label="Hessian")
axes.plot(steps, [float(part.gauss_newton) for part in parts], "^--", label="Gauss-Newton part: never negative")
axes.plot(steps, [float(part.residual) for part in parts], "v--", label="residual part: weighted by the error")
axes.axhline(0, color="grey", linewidth=0.8)
axes.set(xlabel="step of Adam", ylabel="curvature along the smallest eigenvector")
axes.legend()
figure.savefig(sys.argv[1], dpi=150)
first, last = parts[0], parts[-1]
print(f"residual part {first.residual:.4f} at the start, {last.residual:.4f} after {steps[-1]} steps")
print(f"the parts add up within {max(float(part.mismatch) for part in parts):.1e}")
