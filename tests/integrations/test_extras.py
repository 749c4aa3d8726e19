"""Without an extra nothing of it is imported, and its absence is one clear message."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convexlab.cli import main
from convexlab.errors import MisuseError


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [
        ("lightning", "lightning.pytorch", "lightning"),
        ("huggingface", "transformers.trainer_callback", "huggingface"),
        ("huggingface", "accelerate", "huggingface"),
    ],
)
def test_a_missing_extra_is_named(module: str, needs: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, needs, None)
    monkeypatch.delitem(sys.modules, f"convexlab.integrations.{module}", raising=False)
    with pytest.raises(MisuseError, match=rf"pip install 'convexlab\[{extra}\]'"):
        importlib.import_module(f"convexlab.integrations.{module}")


def test_deepxde_is_named_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from convexlab.integrations.deepxde import hand_over

    monkeypatch.setitem(sys.modules, "deepxde.callbacks", None)
    with pytest.raises(MisuseError, match=r"pip install 'convexlab\[deepxde\]'"):
        hand_over(object(), 10)


def test_tensorboard_is_named_on_the_command_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = CliRunner().invoke(
        main, ["train", "two-phase", "--tensorboard", str(tmp_path / "events"), "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 2
    assert "pip install 'convexlab[tensorboard]'" in result.output
    assert not (tmp_path / "run").exists()
