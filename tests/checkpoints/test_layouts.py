"""Checkpoints as people have them: layouts, prefixes, tied weights, and when along training they were stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convexlab.checkpoints import check_fit, load_weights, read_checkpoint, read_header
from convexlab.checkpoints.layouts import STATE_NAMES, is_weights_folder
from convexlab.checkpoints.names import match_names
from convexlab.checkpoints.timing import Time, time_in, time_of_name
from convexlab.errors import MisuseError
from convexlab.probing.places import files_of, times_of


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def _state(seed: int = 1) -> dict[str, Tensor]:
    return dict(_model(seed).state_dict())


def _prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in _state().items()}


def _holds(model: nn.Module, path: Path, key: str | None = None) -> None:
    """Assert that the model takes the weights at a path, and that the header knows them too."""
    check_fit(model, read_header(path, key))
    load_weights(model, read_checkpoint(path, key))
    for name, tensor in _state().items():
        assert torch.equal(model.state_dict()[name], tensor)


# Layouts.

CONTENTS: dict[str, Any] = {
    "bare": _state(),
    "DataParallel": _prefixed("module."),
    "compiled": {"model": _prefixed("_orig_mod.")},
    "both": _prefixed("module._orig_mod."),
    "a compiled layer": {name.replace("0.", "0._orig_mod."): tensor for name, tensor in _state().items()},
    "Lightning": {"epoch": 3, "state_dict": _prefixed("model."), "optimizer_states": [], "lr_schedulers": []},
    "nested": {"state": 1, "model": {"state_dict": _state()}},
    "with an average": {"model": _state(), "model_ema": _state(2), "optimizer": {}},
} | {f"under {name}": {name: _state(), "acc": 91.2, "epoch": 7} for name in STATE_NAMES}


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_layout_of_a_file(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(CONTENTS[name], path)
    _holds(_model(), path)


def test_another_name_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"model": _state(2), "averaged": {"weights": _state()}}, path)
    _holds(_model(), path, "averaged.weights")
    assert read_header(path).key == "model"
    for key, message in (
        ("average", "nothing under 'average'. It has 'model', 'averaged'"),
        ("averaged", "no weights"),
    ):
        with pytest.raises(MisuseError, match=message):
            read_checkpoint(path, key)


def _folder(path: Path, *, parts: int) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "mlp"}')
    if parts == 1:
        save_file(_state(), path / "model.safetensors")
        return path
    index = {}
    for number, (name, tensor) in enumerate(_state().items(), start=1):
        index[name] = f"model-{number:05d}-of-00004.safetensors"
        save_file({name: tensor}, path / index[name])
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


@pytest.mark.parametrize("parts", [1, 4])
def test_folders_of_one_file_or_of_several(parts: int, tmp_path: Path) -> None:
    path = _folder(tmp_path / "checkpoint-12", parts=parts)
    assert is_weights_folder(path)
    _holds(_model(), path)
    assert files_of([path], None) == [path]
    assert read_header(path).time == Time(step=12)


def test_a_key_beside_safetensors_is_refused(tmp_path: Path) -> None:
    save_file(_state(), tmp_path / "a.safetensors")
    for read in (read_checkpoint, read_header):
        with pytest.raises(MisuseError, match="hold tensors under no other name: expected no key, got 'model'"):
            read(tmp_path / "a.safetensors", "model")


def test_a_trainers_folder_is_a_row_of_checkpoints(tmp_path: Path) -> None:
    folders = [_folder(tmp_path / f"checkpoint-{step}", parts=1) for step in (10, 100, 20)]
    assert sorted(files_of([tmp_path], None)) == sorted(folders)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an index that leads elsewhere": (
        lambda path: (path / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "../secret.safetensors"}}'
        ),
        "not beside it",
    ),
    "a part that is missing": (
        lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        r"lacks b\.safetensors",
    ),
    "a damaged index": (lambda path: (path / "pytorch_model.bin.index.json").write_text("[1]"), "expected an index"),
    "a damaged distributed checkpoint": (lambda path: (path / ".metadata").write_bytes(b"x"), "dcp_to_torch"),
    "nothing": (lambda path: None, "holds no weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_are_refused(name: str, tmp_path: Path) -> None:
    write, message = REFUSED[name]
    write(tmp_path)
    for read in (read_checkpoint, read_header):
        with pytest.raises(MisuseError, match=message):
            read(tmp_path)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.per_tensor_affine")
def test_tensors_that_are_not_plain_are_refused_by_name(tmp_path: Path) -> None:
    kinds = {"sparse": torch.eye(3).to_sparse(), "a meta tensor": torch.empty(3, device="meta")}
    for kind, tensor in kinds.items():
        torch.save({"0.weight": tensor}, tmp_path / "a.pt")
        with pytest.raises(MisuseError, match=f"0.weight is {kind}"):
            read_checkpoint(tmp_path / "a.pt")


# Names.


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.inner.weight


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model, weight = _Tied(), torch.randn(7, 4)
    save_file({"inner.weight": weight}, tmp_path / "model.safetensors")
    load_weights(model, read_checkpoint(tmp_path / "model.safetensors"))
    assert torch.equal(model.head.weight, weight)
    assert model.head.weight is model.inner.weight


def _adapted(*, second: bool = False) -> nn.Module:
    """A model with the names of PEFT 0.21, and those of a second adapter that no file is about."""
    model = nn.Module()
    layer, head = nn.Module(), nn.Module()
    adapters = ("other", "default") if second else ("default",)
    layer.base_layer = nn.Linear(4, 5)
    layer.lora_A = nn.ModuleDict({name: nn.Linear(4, 2, bias=False) for name in adapters})
    layer.lora_B = nn.ModuleDict({name: nn.Linear(2, 5, bias=False) for name in adapters})
    layer.lora_embedding_A = nn.ParameterDict({"default": torch.zeros(2, 7)})
    head.original_module = nn.Linear(5, 3)
    head.modules_to_save = nn.ModuleDict({"default": nn.Linear(5, 3)})
    model.layer, model.head = layer, head
    return model


ADAPTER = {
    "layer.lora_A.weight": torch.full((2, 4), 1.0),
    "layer.lora_B.weight": torch.full((5, 2), 2.0),
    "layer.lora_embedding_A": torch.full((2, 7), 3.0),
    "head.weight": torch.full((3, 5), 4.0),
    "head.bias": torch.full((3,), 5.0),
}


def _adapter(folder: Path, state: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in state.items()}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_an_adapter_goes_into_the_model_that_the_factory_adapted(second: bool, whole: bool, tmp_path: Path) -> None:
    inner = _adapted(second=second)
    model = nn.ModuleDict({"base_model": nn.ModuleDict({"model": inner})}) if whole else inner
    before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    folder = _adapter(tmp_path / "checkpoint-30", ADAPTER)
    check_fit(model, read_header(folder))
    load_weights(model, read_checkpoint(folder))
    places = {
        "layer.lora_A.default.weight": 1.0,
        "layer.lora_B.default.weight": 2.0,
        "layer.lora_embedding_A.default": 3.0,
        "head.modules_to_save.default.weight": 4.0,
        "head.modules_to_save.default.bias": 5.0,
    }
    for name, tensor in inner.state_dict().items():
        assert torch.equal(tensor, torch.full_like(tensor, places[name]) if name in places else before[name]), name
    assert read_header(folder).time == Time(step=30)
    load_weights(model, read_checkpoint(folder / "adapter_model.safetensors"))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    few = _adapter(tmp_path / "few", {name: tensor for name, tensor in ADAPTER.items() if "lora_B" not in name})
    check_fit(_adapted(), read_header(few))  # What it does not speak of, no place waits for.
    half = _adapter(tmp_path / "half", {f"other.{name}": tensor.clone() for name, tensor in ADAPTER.items()} | ADAPTER)
    with pytest.raises(MisuseError, match=r"not in the model other\.head\.bias, other\.head\.weight"):
        check_fit(_adapted(), read_header(half))
    twice = nn.ModuleDict({"layer": _adapted().layer, "more": _adapted().layer, "head": _adapted().head})
    with pytest.raises(MisuseError, match=r"missing more\.lora_A\.default\.weight, more\.lora_B\.default\.weight"):
        check_fit(twice, read_header(_adapter(tmp_path / "one", ADAPTER)))
    with pytest.raises(MisuseError, match=r"not in the model layer\.lora_A\.weight"):
        check_fit(nn.ModuleDict({"layer": nn.Linear(4, 5), "head": nn.Linear(5, 3)}), read_header(tmp_path / "one"))


def test_a_prefix_of_the_models_own_stays() -> None:
    model = nn.ModuleDict({"model": _model()})
    match = match_names(model, model.state_dict())
    assert (match.missing, match.extra) == ((), ())
    names = {name: f"module.{name}" for name in model.state_dict()}
    assert match_names(model, names.values()).sources == names


def test_what_does_not_match_is_said_once_with_what_resembles_it(tmp_path: Path) -> None:
    state = _state()
    state["0.wieght"] = state.pop("0.weight")
    torch.save({"net": state}, tmp_path / "a.pt")
    message = (
        r"under 'net', is of another architecture: missing 0\.weight; not in the model 0\.wieght; '0\.wieght' may be"
    )
    with pytest.raises(MisuseError, match=f"{message}.*by --model"):
        check_fit(_model(), read_header(tmp_path / "a.pt"))
    with pytest.raises(MisuseError, match=r"factory that --objective names") as error:
        check_fit(_model(), read_header(tmp_path / "a.pt"), by_objective=True)
    assert "--model" not in str(error.value)


# Times.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ckpt_10.pt", Time(10)),
        ("epoch-00007.safetensors", Time(7)),
        ("epoch=1-step=10.ckpt", Time(1, 10)),
        ("model_epoch10.pth", Time(10)),
        ("weights.ep3.pt", Time(3)),
        ("step_2000.pt", Time(step=2000)),
        ("global_step500.pt", Time(step=500)),
        ("iter-40.pt", Time(step=40)),
        ("checkpoint-100/model.safetensors", Time(step=100)),
        ("epoch_4/weights.pt", Time(4)),
        ("best.pt", Time()),
        ("final.pt", Time()),
        ("resnet20.pt", Time()),
        ("ckpt-best.pt", Time()),
        ("lr-1e-3.pt", Time()),
    ],
)
def test_the_time_that_a_name_states(name: str, expected: Time, tmp_path: Path) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert time_of_name(path) == expected


def test_the_time_that_a_file_states_comes_first(tmp_path: Path) -> None:
    assert time_in({"epoch": 3, "global_step": 40}) == Time(3, 40)
    assert time_in({"epoch": True, "step": -1, "iteration": "12"}) == Time(step=12)
    torch.save({"epoch": 30, "state_dict": _state()}, tmp_path / "ckpt_5.pt")
    assert read_header(tmp_path / "ckpt_5.pt").time == Time(30)
    (tmp_path / "checkpoint-7").mkdir()
    save_file(_state(), tmp_path / "checkpoint-7" / "model.safetensors")
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text('{"epoch": 0.5, "global_step": 7}')
    assert read_header(tmp_path / "checkpoint-7").time == Time(step=7)


def test_epochs_where_any_is_said_and_steps_elsewhere(tmp_path: Path) -> None:
    for name in ("epoch=1-step=10.pt", "best.pt"):
        torch.save(_state(), tmp_path / name)
    headers = [read_header(tmp_path / name) for name in ("epoch=1-step=10.pt", "best.pt")]
    assert times_of(headers, None) == ("epoch", [1, None])
    assert times_of(headers, "step") == ("step", [10, None])
    assert times_of(headers[1:], None) == ("epoch", [None])
    with pytest.raises(MisuseError, match="unknown axis 'time'"):
        times_of(headers, "time")
