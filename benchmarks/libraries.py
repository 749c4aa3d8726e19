"""ConvexLab and its peers behind one interface: a product of the Hessian, and calls that find ends of its spectrum.

The peers are called as their documentation has it, each with the settings of its documentation and with a small grid
of others. What is done in their favour is said where it is done.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pyhessian
import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings import HessianOperator, lanczos, spectral_density
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import convexlab as cl
from convexlab.linalg.operators import SymmetricOperator
from convexlab.linalg.vectors import flatten, unflatten
from convexlab.objective.cost import Cost
from convexlab.problems import ImageProblem

__all__ = [
    "LIBRARIES",
    "PEERS",
    "STEPS",
    "TOLERANCE",
    "Call",
    "ConvexLab",
    "Ends",
    "Found",
    "Library",
    "Products",
    "TooManyProductsError",
]

TOLERANCE = 1e-2
"""Wanted error of either end, relative to λ_max - λ_min."""
CONFIDENCE = 0.999
STEPS = (100, 80, 60, 50, 40, 30, 25, 20, 15, 10, 5)
"""Of a Krylov run. The longest first: the others repeat its products."""

Ends = tuple[float | None, float | None]
"""The smallest and the largest eigenvalue; None is an end that was not asked for."""


@dataclass(frozen=True)
class Call:
    """One call of a function of a library."""

    function: str
    end: str
    """"smallest", "largest" or "both"."""
    setting: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value:g}" for name, value in self.setting.items())
        return f"{self.function}({', '.join(filter(None, [self.end, values]))})"


@dataclass(frozen=True)
class Found:
    """What a call returned."""

    ends: Ends
    accepted: bool = False
    """Whether the library's own test, at the tolerance above, says that this is accurate."""
    certified: bool = False
    """Whether it comes with a bound that holds."""


class TooManyProductsError(Exception):
    """A call was given up."""


class Products:
    """A product that is counted and timed, and remembered where that is asked for.

    Krylov runs that differ only in when they stop make the same products: with memory, a grid costs its longest run.
    """

    def __init__(self, multiply: Callable[[Any], Any]) -> None:
        """Wrap a product; vectors and results are arrays, tensors, or lists of tensors."""
        self._multiply = multiply
        self._known: dict[bytes, Any] | None = None
        self.seconds: list[float] = []
        """Of every product since `reset`."""
        self.limit: int | None = None
        self.recall = False

    def reset(self, *, limit: int | None, recall: bool) -> None:
        """Count from 0 again, up to a limit; with ``recall``, take what is remembered, and remember from now on."""
        self.seconds, self.limit, self.recall = [], limit, recall
        self._known = {} if self._known is None else self._known

    def __call__(self, v: Any) -> Any:
        """Return the product.

        Raises:
            TooManyProductsError: it would be one more than the limit.
        """
        if self.limit is not None and len(self.seconds) >= self.limit:
            raise TooManyProductsError
        begin = time.perf_counter()
        result = self._multiply(v) if self._known is None else self._remembered(v, self._known)
        self.seconds.append(time.perf_counter() - begin)
        return result

    def _remembered(self, v: Any, known: dict[bytes, Any]) -> Any:
        digest = hashlib.blake2b()
        for leaf in tree_leaves(v):
            digest.update(np.asarray(leaf).tobytes())
        key = digest.digest()
        if not (self.recall and key in known):
            known[key] = self._multiply(v)
        # A copy: callers overwrite what they get.
        return tree_map(lambda leaf: leaf + 0, known[key])


class Library(ABC):
    """A library, set up at a problem's present parameters."""

    name: ClassVar[str]
    documented: ClassVar[tuple[tuple[Call, ...], ...]]
    """Ways to both ends, as nearly as the library has one, at the defaults of its documentation."""
    grid: ClassVar[tuple[Call, ...]] = ()
    """Other settings."""
    products: Products

    @abstractmethod
    def __init__(self, problem: ImageProblem, batch: int) -> None:
        """Set up the library; a peer evaluates ``batch`` examples at a time."""

    @abstractmethod
    def multiply(self, v: Tensor) -> Tensor:
        """Return H v for v (n,)."""

    @abstractmethod
    def find(self, call: Call) -> Found:
        """Make a call."""


class ConvexLab(Library):
    """Ours. Micro-batches are its own business."""

    name = "ConvexLab"
    documented = ((Call("extreme_eigenvalues", "both", {"tolerance": TOLERANCE, "confidence": CONFIDENCE}),),)

    def __init__(self, problem: ImageProblem, batch: int) -> None:
        """See `Library`."""
        self._objective = problem.objective
        self._hessian: SymmetricOperator | None = None
        self.products = Products(self.multiply)
        self._objective.spend = self._record  # type: ignore[method-assign]

    def multiply(self, v: Tensor) -> Tensor:
        """See `Library`."""
        if self._hessian is None:
            self._hessian = self._objective.hessian()
        return self._hessian @ v

    def find(self, call: Call) -> Found:
        """See `Library`."""
        # A new operator each time: one that was used before has its graphs, and what it compiled, ready.
        found = cl.extreme_eigenvalues(self._objective.hessian(), **call.setting)  # type: ignore[arg-type]
        return Found((found.smallest, found.largest), accepted=found.converged, certified=found.converged)

    def _record(self, cost: Cost) -> None:
        cl.Objective.spend(self._objective, cost)
        # A product by differences of gradients is a gradient.
        count = round(cost.hessian_products + cost.gradients)
        self.products.seconds.extend([cost.seconds / max(1, count)] * count)


class Curvlinops(Library):
    """curvlinops with SciPy's eigsh, its documented way to eigenvalues."""

    name = "curvlinops"
    # eigsh's own default is machine precision; that of curvlinops' `approximate_boundaries` is one run for both ends.
    documented = (
        (Call("eigsh", "smallest", {"tol": 0}), Call("eigsh", "largest", {"tol": 0})),
        (Call("eigsh", "both", {"tol": 1e-2}),),
    )
    grid = tuple(
        Call("eigsh", end, {"tol": tol} | ncv)
        for end in ("smallest", "largest", "both")
        for ncv in ({}, {"ncv": 10}, {"ncv": 40})  # The default is 20.
        for tol in (1e-3, 1e-2, 1e-1)
    )

    def __init__(self, problem: ImageProblem, batch: int) -> None:
        """See `Library`. Its check that products are deterministic is left out, which saves it time."""
        # A criterion of torch's own, whose `reduction` curvlinops reads: the same loss on one-hot targets.
        targets = torch.nn.functional.one_hot(problem.y, problem.dataset.classes).to(problem.x)
        data = list(zip(problem.x.split(batch), targets.split(batch), strict=True))
        parameters = list(problem.model.parameters())
        self._operator = HessianLinearOperator(
            problem.model, torch.nn.MSELoss(), parameters, data, check_deterministic=False
        )
        exported = self._operator.to_scipy()
        self.products = Products(exported.matvec)
        self._exported = LinearOperator(exported.shape, matvec=self.products, dtype=exported.dtype)

    def multiply(self, v: Tensor) -> Tensor:
        """See `Library`."""
        product: Tensor = self._operator @ v
        return product

    def find(self, call: Call) -> Found:
        """See `Library`."""
        start = np.random.default_rng(0).standard_normal(self._exported.shape[0])
        which = {"smallest": "SA", "largest": "LA", "both": "BE"}[call.end]
        count = 2 if call.end == "both" else 1
        values = eigsh(self._exported, k=count, which=which, v0=start, return_eigenvectors=False, **call.setting)
        accepted = call.setting["tol"] == TOLERANCE
        return Found(_ends(call.end, float(values.min()), float(values.max())), accepted=accepted)


class HessianEigenthings(Library):
    """hessian-eigenthings: one Lanczos run an end, or the Ritz values of one run of its density."""

    name = "hessian-eigenthings"
    # Of `lanczos`: k=10 pairs from 2 k steps.
    documented = ((Call("lanczos", "smallest"), Call("lanczos", "largest")),)
    grid = (
        *(
            Call("lanczos", end, {"k": 1, "max_iter": steps, "tol": TOLERANCE})
            for end in ("smallest", "largest")
            for steps in STEPS
        ),
        *(Call("spectral_density", "both", {"num_runs": 1, "lanczos_steps": steps}) for steps in STEPS),
    )

    def __init__(self, problem: ImageProblem, batch: int) -> None:
        """See `Library`."""
        data = list(zip(problem.x.split(batch), problem.y.split(batch), strict=True))
        self._operator = HessianOperator(problem.model, data, lambda model, part: problem.loss(model(part[0]), part[1]))
        self.multiply_uncounted = self._operator.matvec
        self.products = Products(self._operator.matvec)
        self._operator.matvec = self.products

    def multiply(self, v: Tensor) -> Tensor:
        """See `Library`."""
        product: Tensor = self.multiply_uncounted(v)
        return product

    def find(self, call: Call) -> Found:
        """See `Library`."""
        if call.function == "spectral_density":
            nodes = spectral_density(self._operator, seed=0, **call.setting).raw_eigenvalues
            return Found((float(nodes.nan_to_num(np.inf).min()), float(nodes.nan_to_num(-np.inf).max())))
        which = {"smallest": "SA", "largest": "LA"}[call.end]
        found = lanczos(self._operator, which=which, seed=0, **call.setting)
        value = float(found.eigenvalues[0])
        return Found(_ends(call.end, value, value), accepted=bool(found.converged[0]))


class PyHessian(Library):
    """PyHessian: power iteration for the eigenvalue largest in size, and the Ritz values of its density.

    A batch that is the whole data set is handed over as such, and its gradient's graph is kept between products.
    """

    name = "PyHessian"
    documented = (
        (Call("eigenvalues", "largest", {"maxIter": 100, "tol": 1e-3}),),
        (Call("density", "both", {"iter": 100}),),
    )
    grid = tuple(Call("density", "both", {"iter": steps}) for steps in STEPS)

    def __init__(self, problem: ImageProblem, batch: int) -> None:
        """See `Library`."""
        data = list(zip(problem.x.split(batch), problem.y.split(batch), strict=True))
        single = len(data) == 1
        source: dict[str, Any] = {"data": data[0]} if single else {"dataloader": data}
        problem.model.zero_grad()  # It adds to what is there.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
            self._hessian = pyhessian.hessian(problem.model, problem.loss, cuda=False, **source)
            self._parameters = list(self._hessian.params)
        self._product = self._from_graph if single else self._hessian.dataloader_hv_product
        self.products = Products(self._product)
        # Both of its ways to a product through the one door that can be counted.
        self._hessian.full_dataset = True
        self._hessian.dataloader_hv_product = self.products

    def multiply(self, v: Tensor) -> Tensor:
        """See `Library`."""
        return flatten(self._product(unflatten(v, self._parameters))[1])

    def find(self, call: Call) -> Found:
        """See `Library`. ``torch.eig``, gone since torch 1.13, is put back, without which the density cannot run."""
        torch.manual_seed(0)
        with mock.patch.object(torch, "eig", _eig), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
            if call.function == "eigenvalues":
                values, _ = self._hessian.eigenvalues(**call.setting)
                return Found((None, float(values[0])))
            (nodes,), _ = self._hessian.density(**call.setting)
        return Found((float(min(nodes)), float(max(nodes))))

    def _from_graph(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        product = torch.autograd.grad(self._hessian.gradsH, self._parameters, v, retain_graph=True)
        return float(sum((a * b).sum() for a, b in zip(product, v, strict=True))), list(product)


def _eig(matrix: Tensor, *, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def _ends(end: str, smallest: float, largest: float) -> Ends:
    return (None if end == "largest" else smallest, None if end == "smallest" else largest)


PEERS: dict[str, type[Library]] = {kind.name: kind for kind in (Curvlinops, HessianEigenthings, PyHessian)}
LIBRARIES: dict[str, type[Library]] = {ConvexLab.name: ConvexLab} | PEERS
