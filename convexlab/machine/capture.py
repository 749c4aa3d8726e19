"""Functions of tensors that are recorded once and replayed, so that hundreds of small kernels start by one call.

On CUDA a recording is a graph (Nguyen et al. 2021, "Accelerating PyTorch with CUDA graphs";
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It is the kernels of one call on tensors of fixed
places: what Python decides is decided for good when it is recorded. So a function is recorded only within a block in
which, as its user states, nothing but the arguments changes. A `Replayer` compares every recording with a plain call
first.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = ["Recorder", "Recording", "Replayer", "capture_asked", "recorder_for", "require_same", "warm"]

Recorded = TypeVar("Recorded")

_PLAIN_FIRST = 2
"""Plain calls of a shape before it is recorded. A recording costs about as much as these."""
_MOST = 16
"""Shapes that are recorded; each holds the memory that its call takes."""


def capture_asked() -> bool:
    """Whether the variable ``CONVEXLAB_CAPTURE`` asks for recorded evaluations where the code does not."""
    return os.environ.get("CONVEXLAB_CAPTURE", "").lower() not in {"", "0", "no", "off", "false"}


class Recording(Protocol):
    """A call that can be made again."""

    result: Any
    """Tensors, filled anew by every replay."""

    def replay(self) -> None:
        """Make the call again on what its arguments hold now."""


class Recorder(Protocol):
    """What a device offers."""

    def warm_up(self, function: Callable[[], Recorded]) -> Recorded:
        """Return what a plain call gives, made as a recording will be made.

        Raises:
            RuntimeError: it waits for the device, which no recording can.
        """

    def record(self, function: Callable[[], Any], beside: Recording | None = None) -> Recording:
        """Record a call; ``beside`` is a recording whose results it reads, and whose memory it may share."""


class _Graph:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: Any) -> None:
        self.graph = graph
        self.result = result

    def replay(self) -> None:
        self.graph.replay()


class _CudaRecorder:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One for all that is recorded: a backward pass runs where its forward pass ran, so both have to be on it.
        self._stream = _stream_of(device)

    def warm_up(self, function: Callable[[], Recorded]) -> Recorded:
        present = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream), _refusing_to_wait():
            result = function()
        present.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Any], beside: Recording | None = None) -> Recording:
        graph = torch.cuda.CUDAGraph()
        pool = beside.graph.pool() if isinstance(beside, _Graph) else None
        # Of other threads, such as that of a watchdog, nothing is asked meanwhile.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = function()
        return _Graph(graph, result)


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records on a device; None where nothing does."""
    return _CudaRecorder(device) if device.type == "cuda" and torch.version.hip is None else None


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Let what waits for the device raise a RuntimeError: within a recording it would spoil more than that."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of a prototype, which says so when it is switched on.
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _UnfitError(RuntimeError):
    """Says why something is not recorded."""


class _NotFiniteError(RuntimeError):
    """There is nothing to compare a replay with."""


class _Call:
    """One shape of a function."""

    def __init__(self, recorder: Recorder, function: Callable[..., Any], arguments: Any) -> None:
        self._arguments = _copies(arguments)
        plain = warm(recorder, lambda: function(*self._arguments))
        self._recording = recorder.record(lambda: function(*self._arguments))
        self._recording.replay()
        require_same(self._recording.result, plain)

    def __call__(self, arguments: Any) -> Any:
        _fill(self._arguments, arguments)
        self._recording.replay()
        return self._recording.result


class _LinearMap:
    """One shape of a linear function that is prepared at a place and then applied to many vectors there."""

    def __init__(
        self,
        recorder: Recorder,
        prepare: Callable[..., Any],
        apply: Callable[[Any, Tensor], Tensor],
        arguments: Any,
        columns: Tensor,
    ) -> None:
        self._recorder, self._apply = recorder, apply
        self._arguments = _copies(arguments)
        vectors = columns.clone()
        plain = warm(recorder, lambda: apply(prepare(*self._arguments), vectors))
        self._preparation = recorder.record(lambda: prepare(*self._arguments))
        self._preparation.replay()
        self._place: Any = None
        self._applied: dict[tuple[int, ...], tuple[Tensor, Recording]] = {}
        require_same(self._apply_to(columns), plain)

    def __call__(self, arguments: Any, columns: Tensor, place: Any) -> Tensor:
        if place != self._place:
            _fill(self._arguments, arguments)
            self._preparation.replay()
            self._place = place
        return self._apply_to(columns)

    def _apply_to(self, columns: Tensor) -> Tensor:
        shape = tuple(columns.shape)
        if shape not in self._applied:
            vectors = columns.clone()

            def apply() -> Tensor:
                return self._apply(self._preparation.result, vectors)

            plain = warm(self._recorder, apply)
            recording = self._recorder.record(apply, beside=self._preparation)
            recording.replay()
            require_same(recording.result, plain)
            self._applied[shape] = vectors, recording
        vectors, recording = self._applied[shape]
        vectors.copy_(columns)
        recording.replay()
        result: Tensor = recording.result
        return result


@dataclass
class _Shape:
    """What is known of a function at one shape of its arguments."""

    calls: int = 0
    recorded: Any = None


class Replayer:
    """Calls functions of tensors; from the third call of a shape on it replays a recording, where the device has any.

    What it returns is valid until its next call. A function that cannot be recorded is called plainly from then on.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._recorder = recorder_for(device)
        self._shapes: dict[Hashable, _Shape] = {}
        self.reasons: dict[str, str] = {}
        """Why functions are called plainly, by their names; "" stands for all."""
        if self._recorder is None:
            self.reasons[""] = f"{device.type} has no graphs of kernels to record"

    @property
    def recordings(self) -> int:
        """How many shapes have been recorded."""
        return sum(shape.recorded is not None for shape in self._shapes.values())

    def refuses(self, name: str) -> bool:
        """Whether the function of that name is called plainly for good."""
        return not {"", name}.isdisjoint(self.reasons)

    def release(self) -> bool:
        """Drop all recordings, record no more, and return whether there were any: memory is short."""
        there = self.recordings > 0
        self._shapes.clear()
        if there:
            self.reasons[""] = "memory is short"
        return there

    def call(self, name: str, key: Hashable, function: Callable[..., Recorded], *arguments: Any) -> Recorded:
        """Return ``function(*arguments)``: tensors that no graph of autograd hangs on.

        Args:
            name: of the function, for `reasons`.
            key: what the function depends on beside its arguments.
            function: of nested tensors.
            arguments: likewise; other leaves than tensors have to be numbers, texts or None.
        """
        recorded = self._recorded(name, key, arguments, lambda recorder: _Call(recorder, function, arguments))
        result: Recorded = function(*arguments) if recorded is None else recorded(arguments)
        return result

    def apply(
        self,
        name: str,
        key: Hashable,
        prepare: Callable[..., Any],
        apply: Callable[[Any, Tensor], Tensor],
        columns: Tensor,
        place: Any,
        *arguments: Any,
    ) -> Tensor:
        """Return ``apply(prepare(*arguments), columns)``; prepared anew only where the place is another.

        Args:
            name: as for `call`; likewise ``key`` and ``arguments``.
            key: see ``name``.
            prepare: may return tensors with a graph of autograd.
            apply: linear in its second argument.
            columns: vectors (n, k).
            place: equal only where the arguments are.
            arguments: see ``name``.
        """
        recorded = self._recorded(
            name, key, arguments, lambda recorder: _LinearMap(recorder, prepare, apply, arguments, columns)
        )
        if recorded is not None:
            try:
                product: Tensor = recorded(arguments, columns, place)
                return product
            except RuntimeError as error:  # Columns of another number are recorded only now.
                self._give_up(name, error)
        return apply(prepare(*arguments), columns)

    def _recorded(self, name: str, key: Hashable, arguments: Any, make: Callable[[Recorder], Any]) -> Any:
        """Return the recording of this shape, made now if it is time; None where the call has to be plain."""
        if self._recorder is None or self.refuses(name):
            return None
        try:
            shape = self._shapes.setdefault((name, key, _signature(arguments)), _Shape())
            shape.calls += 1
            if shape.recorded is None and shape.calls > _PLAIN_FIRST:
                if self.recordings >= _MOST:
                    return None
                shape.recorded = make(self._recorder)
        except _NotFiniteError:
            shape.calls = 0
            return None
        except RuntimeError as error:
            self._give_up(name, error)
            return None
        return shape.recorded

    def _give_up(self, name: str, error: RuntimeError) -> None:
        self.reasons[name] = (str(error) or type(error).__name__).splitlines()[0]
        self._shapes = {place: shape for place, shape in self._shapes.items() if place[0] != name}  # type: ignore[index]


def warm(recorder: Recorder, function: Callable[[], Recorded]) -> Recorded:
    """Return what a plain call gives, made as a recording will be made.

    Raises:
        RuntimeError: it waits for the device, or draws random numbers on the host, which would be the same ever after.
    """
    before = torch.default_generator.get_state()
    result = recorder.warm_up(function)
    if not torch.equal(torch.default_generator.get_state(), before):
        raise _UnfitError("it draws random numbers on the host")
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, result)  # type: ignore[no-any-return]


def _signature(arguments: Any) -> Hashable:
    leaves, structure = tree_flatten(arguments)
    return str(structure), tuple(map(_kind_of, leaves))


def _kind_of(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
        return tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return type(leaf), leaf
    raise _UnfitError(f"its arguments hold a {type(leaf).__name__}")


def _copies(arguments: Any) -> Any:
    """Return the arguments with tensors of their own."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    return tree_map(copied, arguments)


def _fill(copies: Any, arguments: Any) -> None:
    """Give the copies the numbers of the arguments."""
    pairs = zip(tree_leaves(copies), tree_leaves(arguments), strict=True)
    tensors = [(ours, theirs) for ours, theirs in pairs if isinstance(ours, Tensor)]
    # As data: a graph of autograd that was recorded with these tensors shall not count it as a change.
    torch._foreach_copy_([ours.data for ours, _ in tensors], [theirs.detach() for _, theirs in tensors])


def require_same(replayed: Any, plain: Any) -> None:
    """Refuse a recording whose replay is not the plain call.

    A recording that reads wrong memory is off by its whole size. Sums in another order differ by much less than the
    fourth root of ε.

    Raises:
        RuntimeError: a tensor is off by more than that, or there is nothing to compare it with.
    """
    for ours, theirs in zip(tree_leaves(replayed), tree_leaves(plain), strict=True):
        if not isinstance(ours, Tensor) or not ours.is_floating_point():
            continue
        length = float(torch.linalg.vector_norm(theirs))
        if not math.isfinite(length):
            raise _NotFiniteError("a plain call is not finite, so that there is nothing to compare a replay with")
        difference = float(torch.linalg.vector_norm(ours.detach() - theirs))
        if not difference <= torch.finfo(ours.dtype).eps ** 0.25 * length:
            raise _UnfitError(f"its replay is off by {difference:.2g} of {length:.2g}")
