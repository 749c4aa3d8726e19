"""A plain loop with a scheduler and clipping: ten lines hand over to the second phase, or both go on to the end.

Runs in seconds: ``python examples/scheduler_loop.py``
"""

import copy

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import convexlab as cl

torch.manual_seed(0)
rows, targets = load_diabetes(return_X_y=True, scaled=True)
x, y = torch.tensor(rows * 20, dtype=torch.float32), torch.tensor((targets - 152) / 77, dtype=torch.float32)[:, None]
model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
adam = torch.optim.Adam(model.parameters(), lr=1e-2)
epochs, switch = 150, 50
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
objective = cl.Objective(model, [(x, y)], nn.MSELoss())


def train(count: int) -> None:
    """Take so many epochs of Adam's clipped steps along the schedule."""
    for _ in range(count):
        for batch in torch.randperm(len(x)).split(64):
            adam.zero_grad()
            nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
        scheduler.step()


train(switch)
weights = copy.deepcopy(model.state_dict())
print(f"epoch {switch}, rate {scheduler.get_last_lr()[0]:.4f}: loss {objective.value():.2e}")

second, spent = cl.second_phase(adam), 0
while spent < epochs - switch:  # on the whole batch: schedule and clipping end with Adam
    second.step(objective.closure)
    assert second.report is not None
    spent += second.report.gradients
print(f"then the second phase, {switch + spent} gradient equivalents in all: loss {objective.value():.2e}")

model.load_state_dict(weights)
train(epochs - switch)
print(f"or Adam on to the end of its schedule, {epochs} epochs: loss {objective.value():.2e}")
