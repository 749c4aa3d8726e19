"""The curvature of a small Vision Transformer, layer by layer: both ends of the spectrum of each.

Runs in seconds: ``python examples/gallery/layer_by_layer.py PICTURE.png``
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import convexlab as cl

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:64] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
y = nn.functional.one_hot(torch.tensor(labels[:64])).float()
model = cl.build_model("vit-nomlp", channels=1, classes=10, image_size=8)
objective = cl.Objective(model, [(x, y)], nn.MSELoss())
adam = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(20):
    adam.step(objective.closure)

blocks = cl.block_curvature(objective, tolerance=0.05, max_steps=30)
figure, (below, above) = plt.subplots(1, 2, figsize=(8, 0.3 * len(blocks) + 1), sharey=True, layout="constrained")
names = list(blocks)
below.barh(names, [block.extremes.smallest for block in blocks.values()], color="tab:orange")
above.barh(names, [block.extremes.largest for block in blocks.values()], color="tab:green")
below.set(xlabel="smallest eigenvalue found")
above.set(xlabel="largest eigenvalue found")
below.invert_yaxis()
figure.savefig(sys.argv[1], dpi=150)

negative = [name for name, block in blocks.items() if block.extremes.smallest < -1e-4]
steepest = max(blocks, key=lambda name: blocks[name].extremes.largest)
print(f"negative curvature within {len(negative)} of {len(blocks)} layers; the largest eigenvalue is in {steepest}")
