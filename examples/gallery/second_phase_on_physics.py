"""A differential equation, -u'' = π² sin(πx) with u(±1) = 0: Adam, then a second phase, and Adam on at equal cost.

Runs in seconds: ``python examples/gallery/second_phase_on_physics.py PICTURE.png``
"""

import copy
import sys
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import convexlab as cl

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
points = torch.linspace(-1, 1, 64)[:, None]
solution = torch.sin(torch.pi * points)


def residuals(model: nn.Module, points: Tensor) -> Tensor:
    """Return the mean squared residual of the equation, with its boundary values."""
    x = points.detach().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    loss: Tensor = (bend + torch.pi**2 * torch.sin(torch.pi * x)).square().mean() + u[[0, -1]].square().mean()
    return loss


objective = cl.Objective.from_batch_loss(model, [points], residuals)
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")


def train(name: str, optimizer: Any, spent: int, budget: int) -> None:
    """Step until the budget is spent, and draw the loss over the cost."""
    costs, losses = [], []
    while spent < budget:
        costs.append(spent)
        losses.append(float(optimizer.step(objective.closure)))
        report = getattr(optimizer, "report", None)
        spent += report.gradients if report else 1
    axes.plot(costs, losses, label=name)
    error = (model(points) - solution).norm() / solution.norm()
    print(f"{name}, after {spent} gradients: loss {objective.value():.1e}, relative error {error.item():.1e}")


adam = torch.optim.Adam(model.parameters(), lr=5e-3)
train("Adam", adam, 0, 150)
weights = copy.deepcopy(model.state_dict())
train("then the second phase", cl.second_phase(adam), 150, 500)
model.load_state_dict(weights)
train("or Adam on", adam, 150, 500)
axes.set(xlabel="cost in gradients", ylabel="loss", yscale="log")
axes.legend()
figure.savefig(sys.argv[1], dpi=150)
