"""DeepXDE: from its Adam to the second phase, or Adam on, on a Poisson problem.

Needs ``pip install 'convexlab[deepxde]'`` and runs in seconds: ``DDE_BACKEND=pytorch python examples/...``
"""

import copy
import os

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import numpy as np
import torch
from torch import Tensor

from convexlab.integrations.deepxde import hand_over

dde.config.set_random_seed(0)


def equation(x: Tensor, u: Tensor) -> Tensor:
    """Return the residual of -u'' = π² sin(πx), whose solution is sin(πx)."""
    residual: Tensor = -dde.grad.hessian(u, x) - torch.pi**2 * torch.sin(torch.pi * x)
    return residual


domain = dde.geometry.Interval(-1, 1)
boundary = dde.icbc.DirichletBC(domain, lambda x: np.sin(np.pi * x), lambda x, on_boundary: on_boundary)
data = dde.data.PDE(domain, equation, boundary, num_domain=32, num_boundary=2)
model = dde.Model(data, dde.nn.FNN([1, 16, 16, 1], "tanh", "Glorot normal"))


def loss() -> float:
    """Return the training loss."""
    return float(np.sum(model.train_state.loss_train))


model.compile("adam", lr=3e-3, verbose=0)
model.train(iterations=300, display_every=300, verbose=0)
print(f"Adam, 300 gradients: loss {loss():.2e}")
weights, adam = copy.deepcopy(model.net.state_dict()), model.opt
hand_over(model, 300, verbose=0)
print(f"then the second phase, 300 more: loss {loss():.2e}")
model.net.load_state_dict(weights)
model.opt = adam
model.train(iterations=300, display_every=300, verbose=0)
print(f"or Adam on, 300 more: loss {loss():.2e}")
