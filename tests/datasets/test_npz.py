from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlab.datasets import load_dataset
from convexlab.errors import MisuseError


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 3,
        "x_test": rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(5) % 3,
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values_come_back(tmp_path: Path, save: Any) -> None:
    file, expected = tmp_path / "a.npz", arrays()
    save(file, **expected, class_names=np.array(["a", "b", "c"]))
    dataset = load_dataset(f"npz:{file}")
    restored = dataset.x_train * dataset.standard_deviation[:, None, None] + dataset.mean[:, None, None]
    # Standardised values below 2 are stored to 1.2e-7; times a deviation of 0.3, times 255: far below half a grey.
    assert np.array_equal((restored * 255).round().permute(0, 2, 3, 1).numpy(), expected["x_train"])
    assert (dataset.name, dataset.classes, dataset.validation_size) == (f"npz:{file}", 3, 5)


def test_relative_path_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_dataset("npz:a.npz").train_size == load_dataset("npz:~/a.npz").train_size == 20


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_entry(tmp_path: Path, key: str) -> None:
    rest = {other: value for other, value in arrays().items() if other != key}
    np.savez(tmp_path / "a.npz", **rest)
    with pytest.raises(MisuseError, match=f"lacks {key} and holds {', '.join(rest)}.*numpy.savez"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")


def test_missing_file_folder_and_name(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none.npz"), str(tmp_path), ""):
        with pytest.raises(MisuseError, match=r"no file at '/.*npz:FILE expects an .npz archive"):
            load_dataset(f"npz:{path}")


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\x03\x04 not really", np.random.default_rng(0).bytes(500)])
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(MisuseError, match=r"does not fit: .*npz:FILE expects an .npz archive"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_cut_off(tmp_path: Path, save: Any, part: float) -> None:
    file = tmp_path / "a.npz"
    save(file, **arrays())
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(MisuseError, match="does not fit"):
        load_dataset(f"npz:{file}")


def test_damaged_inside(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, **arrays())
    content = bytearray(file.read_bytes())
    content[2000:2100] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(MisuseError, match="does not fit"):
        load_dataset(f"npz:{file}")


def test_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8)))
    with pytest.raises(MisuseError, match="single array"):
        load_dataset(f"npz:{tmp_path / 'a.npy'}")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **(arrays() | {"y_train": np.array([{}] * 20, dtype=object)}))
    with pytest.raises(MisuseError, match="allow_pickle=False"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")


def test_channels_first_is_refused_with_the_remedy(tmp_path: Path) -> None:
    wrong = {key: value.transpose(0, 3, 1, 2) if key[0] == "x" else value for key, value in arrays().items()}
    np.savez(tmp_path / "a.npz", **wrong)
    with pytest.raises(MisuseError, match=r"got \(20, 3, 32, 32\).*transpose\(0, 2, 3, 1\)"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")
