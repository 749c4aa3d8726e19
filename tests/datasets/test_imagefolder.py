from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convexlab.datasets import load_dataset
from convexlab.errors import MisuseError


def save(file: Path, pixels: np.ndarray, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for kind in ("cat", "dog"):
            for index in range(count):
                pixels = rng.integers(0, 256, (16 + index, 20, 3), dtype=np.uint8)
                save(tmp_path / split / kind / f"{index}.png", pixels)
    return tmp_path


def test_images_of_any_size(folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{folder}", image_size=24)
    assert dataset.x_train.shape == (6, 3, 24, 24)
    assert dataset.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.y_test.tolist() == [0, 0, 1, 1]
    assert (dataset.name, dataset.classes) == (f"imagefolder:{folder}", 2)


def test_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for split in ("train", "test"):
        save(tmp_path / split / "only" / "a.png", pixels)
    dataset = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    restored = dataset.x_train[0] * dataset.standard_deviation[:, None, None] + dataset.mean[:, None, None]
    assert np.array_equal((restored * 255).round().permute(1, 2, 0).numpy(), pixels)


def test_grey_and_transparent_images_get_three_channels(folder: Path) -> None:
    pixels = np.full((10, 10, 3), 77, dtype=np.uint8)
    save(folder / "train" / "cat" / "grey.png", pixels, "L")
    save(folder / "train" / "dog" / "transparent.png", pixels, "RGBA")
    assert load_dataset(f"imagefolder:{folder}").x_train.shape == (8, 3, 32, 32)


def test_classes_must_agree(folder: Path) -> None:
    (folder / "test" / "dog").rename(folder / "test" / "hog")
    with pytest.raises(MisuseError, match="same classes; only one has: dog, hog"):
        load_dataset(f"imagefolder:{folder}")


def test_missing_folders(folder: Path) -> None:
    for path in (str(folder / "none"), "", str(folder / "train")):
        with pytest.raises(MisuseError, match=r"no folder at '/.*/train'; imagefolder:DIR expects DIR/train/CLASS"):
            load_dataset(f"imagefolder:{path}")


def test_folder_without_classes_or_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(MisuseError, match=r"class folder.*imagefolder:DIR expects"):
        load_dataset(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(MisuseError, match=r"no valid file for the classes cat.*imagefolder:DIR expects"):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image(folder: Path, content: bytes) -> None:
    (folder / "test" / "cat" / "broken.png").write_bytes(content)
    with pytest.raises(MisuseError, match=r"broken.png' is not an image that can be read"):
        load_dataset(f"imagefolder:{folder}")


def test_image_that_is_cut_off(folder: Path) -> None:
    file = folder / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(MisuseError, match=r"1.png' is not an image"):
        load_dataset(f"imagefolder:{folder}")
