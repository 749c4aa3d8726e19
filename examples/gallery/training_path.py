"""The loss on the plane that holds most of the training path.

Runs in seconds: ``python examples/gallery/training_path.py PICTURE.png``
"""

import json
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
    for epoch in range(41):
        if epoch % 8 == 0:
            torch.save({"model": model.state_dict(), "epoch": epoch}, f"{folder}/ckpt-{epoch:03}.pt")
        adam.step(objective.closure)
    probe = cl.probe(sorted(Path(folder).glob("*.pt")), objective=objective, out=f"{folder}/probed", slice_points=0)
    cl.plot(probe, "plane").savefig(sys.argv[1], dpi=150, bbox_inches="tight")
    plane = json.loads((probe.run.path / "landscape.json").read_text(encoding="utf-8"))
    print(f"two of {objective.size} directions hold {sum(plane['explained_variance']):.1%} of the path's variance")
