"""References that share no code with the library: the loss as one function of one vector, its derivatives whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel


class Dense:
    """A dense symmetric matrix, with the least that an operator must offer."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, tuple(matrix.shape), matrix.dtype, matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v


def as_vector(model: nn.Module, names: Sequence[str]) -> Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach().flatten() for name in names])


def as_function(
    model: nn.Module, names: Sequence[str], evaluate: Callable[[nn.Module, dict[str, Tensor]], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return θ -> evaluate(model, the named parameters cut from θ and copies of the buffers)."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def function(theta: Tensor) -> Tensor:
        values, start = {name: buffer.clone() for name, buffer in model.named_buffers()}, 0
        for name in names:
            stop = start + shapes[name].numel()
            values[name] = theta[start:stop].reshape(shapes[name])
            start = stop
        return evaluate(model, values)

    return function


def loss_of(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, names: Sequence[str]
) -> Callable[[Tensor], Tensor]:
    """Return θ -> criterion(model(x), y) over all examples at once."""
    return as_function(model, names, lambda module, values: criterion(functional_call(module, values, (x,)), y))


def derivatives(function: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value, the gradient (n,) and the Hessian (n, n)."""
    point = theta.clone().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value, point)
    with sdpa_kernel(SDPBackend.MATH):
        return value.detach(), gradient, torch.autograd.functional.hessian(function, theta, vectorize=True)


def gauss_newton(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, names: Sequence[str]
) -> Tensor:
    """Return JᵀH_LJ (n, n) of criterion(model(x), y)."""
    output = as_function(model, names, lambda module, values: functional_call(module, values, (x,)).flatten())
    theta = as_vector(model, names)
    shape = model(x).shape
    point = output(theta).detach()
    curvature = jacrev(jacrev(lambda flat: criterion(flat.reshape(shape), y)))(point)
    jacobian = jacrev(output)(theta)
    return (jacobian.T @ curvature @ jacobian).detach()
