"""A plain torch loop with a watch: it measures within 5 % of the cost, says when to leave Adam and why.

Runs in seconds: ``python examples/watch_and_switch.py``
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import convexlab as cl

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16.0, dtype=torch.float32), nn.functional.one_hot(torch.tensor(labels)).float()
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
adam = torch.optim.Adam(model.parameters(), lr=3e-3)
objective = cl.Objective(model, list(zip(x.split(512), y.split(512), strict=True)), nn.MSELoss())
watch = cl.Watch(objective, adam, detector=cl.GradientNormPeak(), examples=64)


def train_one_epoch() -> float:
    """Take an epoch of Adam's steps and return the mean loss over them."""
    losses = []
    for rows in torch.randperm(len(x)).split(72):
        adam.zero_grad()
        for half in rows.tensor_split(2):  # in two halves, so that the watch can take out the mini-batch's noise
            loss = nn.functional.mse_loss(model(x[half]), y[half]) / 2
            loss.backward()
            losses.append(2 * loss.item())
            if len(losses) % 2:
                watch.accumulated()
        adam.step()
    return sum(losses) / len(losses)


budget, epoch = 100, 0
while epoch < budget and not watch.fired:
    watch.update(loss=train_one_epoch())
    epoch += 1
watch.close()
print(f"measured for {watch.spent:.1f} gradient equivalents beside {watch.trained:.0f} of training")
for name in ("gradient_curvature", "smallest", "largest"):
    known = [value for signals in watch.history if (value := getattr(signals, name)) == value]
    print(f"{name}: {', '.join(f'{value:.3g}' for value in known) or 'not affordable yet'}")
print(f"epoch {epoch}, {watch.reason}: loss {objective.value():.2e}")

switch, spent = copy.deepcopy(model.state_dict()), epoch + watch.spent
optimizer = cl.second_phase(adam)
while spent < budget:
    optimizer.step(objective.closure)
    spent += optimizer.report.gradients if optimizer.report else 1
print(f"then the second phase, {spent:.0f} gradient equivalents in all: loss {objective.value():.2e}")

model.load_state_dict(switch)
for _ in range(epoch, budget):
    train_one_epoch()
print(f"or Adam on, {budget} gradient equivalents in all: loss {objective.value():.2e}")
