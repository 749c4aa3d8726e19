"""Plain torch on the full batch: Adam first, then a second phase that goes on from what Adam has learnt, or Adam on.

Runs in seconds: ``python examples/adam_then_lbfgs.py``
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import convexlab as cl

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16.0, dtype=torch.float32), nn.functional.one_hot(torch.tensor(labels)).float()
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def closure() -> float:
    """Return the loss over all data, with its gradient in the parameters."""
    model.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss.item()


def train(name: str, optimizer: torch.optim.Optimizer, evaluations: int) -> None:
    """Step until that many gradients are spent."""
    spent = 0
    while spent < evaluations:
        optimizer.step(closure)
        report = getattr(optimizer, "report", None)
        spent += report.gradients if report else 1
    print(f"{name}, {spent} gradients: loss {closure():.2e}")


adam = torch.optim.Adam(model.parameters(), lr=5e-3)
train("Adam", adam, 300)
switch = copy.deepcopy(model.state_dict())
train("then the second phase", cl.second_phase(adam), 300)
model.load_state_dict(switch)
train("or Adam on", adam, 300)
