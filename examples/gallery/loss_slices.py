"""The loss along the two extreme eigenvectors, and what slope and curvature alone predict of it.

Runs in seconds: ``python examples/gallery/loss_slices.py PICTURE.png``
"""

import sys
import tempfile

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
for _ in range(40):
    adam.step(objective.closure)

with tempfile.TemporaryDirectory() as folder:
    torch.save({"model": model.state_dict(), "epoch": 40}, f"{folder}/ckpt-040.pt")
    probe = cl.probe([f"{folder}/ckpt-040.pt"], objective=objective, out=f"{folder}/probed", slice_points=21)
    cl.plot(probe, "slices").savefig(sys.argv[1], dpi=150, bbox_inches="tight")
    (row,) = probe.rows
    print(f"curvature along the two directions: {row['smallest']:.4f} and {row['largest']:.4f}")
