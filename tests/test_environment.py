"""Devices and precisions by name, and the description of where numbers were made."""

from __future__ import annotations

import json
import platform

import pytest
import torch

import convexlab
from convexlab.environment import describe_environment, resolve_device, resolve_dtype
from convexlab.errors import MisuseError


def test_the_cpu_can_always_be_had() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_fastest_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(expected)


# Whatever torch was built with, none of these can hold a number here; "meta" is a device that holds none anywhere.
@pytest.mark.parametrize(
    "name",
    ["meta", "cuda:99", "cuda:-1", "xla", "hpu", "vulkan", "fpga", "ipu", "privateuseone", "gpu", "", "cpu;", "AUTO"],
)
def test_devices_that_cannot_be_used_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(MisuseError, match=r"cannot be used here \(.+\)\. Use 'auto' or 'cpu'\.") as caught:
        resolve_device(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_auto_is_an_accelerator_where_there_is_one() -> None:
    assert resolve_device("auto").type == torch.accelerator.current_accelerator().type


def test_precisions() -> None:
    assert resolve_dtype("float32") is torch.float32
    assert resolve_dtype("float64") is torch.float64
    with pytest.raises(
        MisuseError, match=r"unknown dtype 'float46'\. Did you mean 'float64'\? Known: float32, float64\."
    ):
        resolve_dtype("float46")


def test_the_description_can_be_stored_and_is_true() -> None:
    described = describe_environment(torch.device("cpu"), "float32")
    assert json.loads(json.dumps(described)) == described
    assert described["convexlab"] == convexlab.__version__
    assert described["torch"] == torch.__version__
    assert described["python"] == platform.python_version()
    assert described["device"] == "cpu"
    assert described["dtype"] == "float32"
    assert described["threads"] == torch.get_num_threads()
    assert described["processor"]
    assert described["platform"]
