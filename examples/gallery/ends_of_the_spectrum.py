"""Both ends of the Hessian's spectrum along a training: Adam first, then a second-order method.

Runs in seconds: ``python examples/gallery/ends_of_the_spectrum.py PICTURE.png``
"""

import sys
import tempfile
from pathlib import Path

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

with tempfile.TemporaryDirectory() as folder:
    checkpoints: list[Path] = []

    def keep(epoch: int) -> None:
        """Store a checkpoint, as anybody's loop does."""
        checkpoints.append(Path(folder) / f"ckpt-{epoch:03}.pt")
        torch.save({"model": model.state_dict(), "epoch": epoch}, checkpoints[-1])

    keep(0)
    for epoch in range(1, 41):
        adam.step(objective.closure)
        if epoch % 10 == 0:
            keep(epoch)
    second = cl.second_phase(adam)
    for epoch in range(41, 71):
        second.step(objective.closure)
        if epoch % 10 == 0:
            keep(epoch)
    probe = cl.probe(checkpoints, objective=objective, out=f"{folder}/probed", density_probes=1, slice_points=0)
    proven = sum(row["verdict"] == "non-convex" for row in probe.rows)
    print(f"proven non-convex at {proven} of {len(probe.rows)} checkpoints")
    cl.plot(probe).savefig(sys.argv[1], dpi=150, bbox_inches="tight")
