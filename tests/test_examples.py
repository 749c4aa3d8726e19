"""Every example runs, warns of nothing, and shows what it is there to show."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.slowly import mostly_slow

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PICTURES = sorted((FOLDER / "gallery").glob("*.py"))
# What needs another trainer, which may say what it likes while it starts.
HOSTS = {"deepxde_hand_over": "deepxde", "huggingface_two_phases": "accelerate", "lightning_two_phases": "lightning"}


def each_time(paths: list[Path], names: set[str]) -> list[Any]:
    """Return these first, and the others as slow."""
    return mostly_slow(sorted(paths, key=lambda path: path.stem not in names), quick=len(names))


@pytest.mark.parametrize("path", each_time(EXAMPLES, {"adam_then_lbfgs", "scheduler_loop"}), ids=lambda path: path.stem)
def test_example_runs(path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    host = HOSTS.get(path.stem)
    with warnings.catch_warnings(action="ignore" if host else "error"):
        if host:
            pytest.importorskip(host)
        runpy.run_path(str(path), run_name="__main__")
    printed, complaints = capfd.readouterr()
    assert host or not complaints
    losses = [float(loss) for loss in re.findall(r"loss (\S+)$", printed, re.MULTILINE)]
    assert len(losses) == 3, "an example prints the losses at the switch, after it, and of Adam alone at equal cost"
    switch, lbfgs, adam = losses
    assert lbfgs < 0.5 * switch
    assert lbfgs < adam


# What the lines that a script prints say, and what must hold of the numbers in them.
SHOWN = {
    "edge_of_stability": (
        r"at the end (\S+) of the border, at most (\S+)$",
        lambda *shares: 0 < min(shares) < 0.5 < 0.9 < max(shares) < 1.5,
    ),
    "ends_of_the_spectrum": (
        r"^proven non-convex at (\d+) of (\d+) checkpoints$",
        lambda proven, all_: 5 < proven <= all_,
    ),
    "layer_by_layer": (r"^negative curvature within (\d+) of (\d+) layers", lambda negative, all_: 2 < negative < all_),
    "loss_slices": (r": (\S+) and (\S+)$", lambda smallest, largest: smallest < -0.01 < 1 < largest),
    "second_phase_on_physics": (
        r"loss (\S+), relative error (\S+)$",
        lambda *numbers: 1000 * numbers[2] < numbers[4] < numbers[0] and 10 * numbers[3] < numbers[5],
    ),
    "spectral_density": (
        r"largest: (\S+), estimated as (\S+) to (\S+)$",
        lambda exact, low, high: low <= exact <= high,
    ),
    "training_path": (r"^two of 910 directions hold (\S+)%", lambda percent: 90 < percent < 100),
    "where_curvature_comes_from": (
        r"residual part (\S+) at the start, (\S+) after",
        lambda first, last: first < last < 0,
    ),
}


@pytest.mark.parametrize("path", each_time(PICTURES, {"loss_slices", "spectral_density"}), ids=lambda path: path.stem)
def test_example_of_the_gallery_draws_its_picture(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(path), str(tmp_path / "picture.png")])
    runpy.run_path(str(path), run_name="__main__")
    printed, complaints = capfd.readouterr()
    assert not complaints
    pattern, holds = SHOWN[path.stem]
    rows = re.findall(pattern, printed, re.MULTILINE)
    assert rows, printed
    assert holds(*(float(number) for row in rows for number in ([row] if isinstance(row, str) else row))), printed
    with Image.open(tmp_path / "picture.png") as picture:
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height) or []) > 20
    page = (FOLDER.parent / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert f"](gallery/{path.stem}.png)" in page
    assert (FOLDER.parent / "docs" / "gallery" / f"{path.stem}.png").is_file()


def test_there_are_examples_and_they_are_short() -> None:
    assert EXAMPLES
    assert len(PICTURES) == 8
    long = [path.name for path in (*EXAMPLES, *PICTURES) if len(path.read_text(encoding="utf-8").splitlines()) >= 60]
    assert long == []
