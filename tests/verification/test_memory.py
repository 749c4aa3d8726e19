"""Memory of Krylov runs against what the C library has handed out, which torch does not count."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.curvature import Lanczos
from convexlab.curvature.lanczos import random_unit_vector
from tests.verification.conftest import Record

pytestmark = pytest.mark.verify

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


def _handed_out() -> int:
    """Return the bytes of the blocks in use, those of their own mapping included (mallinfo2(3), glibc 2.33)."""
    told = _mallinfo()
    return told.uordblks + told.hblkhd


_mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
if _mallinfo is not None:
    _mallinfo.restype = _Mallinfo
needs_glibc = pytest.mark.skipif(_mallinfo is None, reason="the C library has no mallinfo2")


@contextmanager
def _watching() -> Iterator[list[int]]:
    """Look every 2 ms at what is in use, and note the most beyond what was at the start."""
    start, most, stop = _handed_out(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            most[0] = max(most[0], _handed_out() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _images(model: str, examples: int) -> cl.Objective:
    torch.manual_seed(0)
    x, y = torch.randn(examples, 3, 32, 32), torch.randint(0, 10, (examples,))
    return cl.Objective(cl.build_model(model), [(x, y)], nn.CrossEntropyLoss())


def _perceptron() -> cl.Objective:
    """304,910 parameters and few examples: the basis is most of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 500), nn.Tanh(), nn.Linear(500, 400), nn.Tanh(), nn.Linear(400, 10))
    return cl.Objective(model, [(torch.randn(32, 200), torch.randint(0, 10, (32,)))], nn.CrossEntropyLoss())


RUNS: dict[str, tuple[Callable[[], cl.Objective], int]] = {
    "vit-nomlp, 1,024 images": (lambda: _images("vit-nomlp", 1024), 4),
    "vgg5-max-relu, 512 images": (lambda: _images("vgg5-max-relu", 512), 4),
    "perceptron, 3e5 parameters": (_perceptron, 100),
}


@needs_glibc
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith("vit") else pytest.mark.slow) for name in RUNS]
)
def test_a_krylov_run_takes_what_was_forecast(record: Record, name: str) -> None:
    build, steps = RUNS[name]
    objective = build()
    objective.gradient()  # What libraries take at their first use is not the run's.
    told = cl.forecast_memory(objective.hessian(), steps).total
    operator = objective.hessian()
    with _watching() as most:
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(0)), steps)
        process.extend(steps)
    assert process.steps == steps
    record(f"memory of {steps} steps, {name} (of the forecast)", "mallinfo2", abs(most[0] / told - 1), 0.1)


@needs_glibc
@pytest.mark.slow
def test_a_run_on_differences_of_gradients_takes_what_was_forecast(record: Record) -> None:
    objective = _images("vit-nomlp", 256)
    operator = objective.hessian().differences()
    told = cl.forecast_memory(operator, 40).total
    with _watching() as most:
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(0)), 40)
        process.extend(40)
    record(
        "memory of 40 steps on differences of gradients (of the forecast)", "mallinfo2", abs(most[0] / told - 1), 0.1
    )
