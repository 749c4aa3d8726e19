from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torchvision

from convexlab.datasets import load_dataset
from convexlab.datasets.torchvision_sets import TORCHVISION_SETS, data_folder, read_torchvision_set
from convexlab.errors import MisuseError

RNG = np.random.default_rng(0)
SPLITS = {"train": RNG.integers(0, 256, (30, 28, 28)), "t10k": RNG.integers(0, 256, (10, 28, 28))}


def idx_files() -> dict[str, bytes]:
    """MNIST's format (yann.lecun.com/exdb/mnist), written from its description: big-endian sizes, then bytes."""
    files = {}
    for split, images in SPLITS.items():
        n = len(images)
        files[f"{split}-images-idx3-ubyte"] = struct.pack(">4i", 2051, n, 28, 28) + images.astype(np.uint8).tobytes()
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, n) + bytes(label % 10 for label in range(n))
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def cifar_files(labels_key: str) -> tuple[dict[str, bytes], np.ndarray]:
    """One file a split, each with rows of 3,072 values: 1,024 red, 1,024 green, 1,024 blue (cs.toronto.edu/~kriz)."""
    rows = np.random.default_rng(1).integers(0, 256, (8, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": rows, labels_key: [index % 4 for index in range(8)]})
    return {"one": batch, "names": pickle.dumps({"label_names": [], "fine_label_names": []})}, rows


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision and us expect one training file, used as the test file too, of known checksum."""
    for name, labels_key, label_names in (
        ("cifar10", "labels", "label_names"),
        ("cifar100", "fine_labels", "fine_label_names"),
    ):
        kind = getattr(torchvision.datasets, TORCHVISION_SETS[name].torchvision_name)
        files, _ = cifar_files(labels_key)
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        monkeypatch.setattr(kind, "train_list", [["one", md5["one"]]])
        monkeypatch.setattr(kind, "test_list", [["one", md5["one"]]])
        monkeypatch.setattr(kind, "meta", {"filename": "names", "key": label_names, "md5": md5["names"]})
        monkeypatch.setitem(
            TORCHVISION_SETS, name, type(TORCHVISION_SETS[name])(kind.__name__, kind.base_folder, ("one", "names"))
        )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: nothing answers
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a server on this machine hands its files out."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


@pytest.fixture
def mirror(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our small MNIST, on a server that torchvision takes for the real one."""
    folder, address = server
    write(folder, {f"{name}.gz": gzip.compress(content) for name, content in idx_files().items()})
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    resources = [(file.name, None) for file in sorted(folder.iterdir())]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return folder


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files_are_read(tmp_path: Path, no_network: None, name: str, folder: str) -> None:
    write(tmp_path / folder / "raw", idx_files())
    source = read_torchvision_set(name, tmp_path)
    assert np.array_equal(source.x_train[:, 0].numpy(), SPLITS["train"])
    assert np.array_equal(source.x_test[:, 0].numpy(), SPLITS["t10k"])
    assert source.y_train.tolist() == [label % 10 for label in range(30)]
    assert load_dataset(name, root=tmp_path).x_train.shape == (30, 1, 32, 32)


@pytest.mark.parametrize(
    ("name", "folder", "labels_key"),
    [("cifar10", "cifar-10-batches-py", "labels"), ("cifar100", "cifar-100-python", "fine_labels")],
)
def test_cifar_files_are_read(
    tmp_path: Path, small_cifar: None, no_network: None, name: str, folder: str, labels_key: str
) -> None:
    files, rows = cifar_files(labels_key)
    write(tmp_path / folder, files)
    source = read_torchvision_set(name, tmp_path)
    assert np.array_equal(source.x_train.numpy(), rows.reshape(8, 3, 32, 32))
    assert source.y_train.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("name", list(TORCHVISION_SETS))
def test_no_files_and_no_network(
    tmp_path: Path, no_network: None, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(MisuseError) as caught:
        load_dataset(name, root=tmp_path)
    for part in (str(tmp_path / TORCHVISION_SETS[name].folder), "CONVEXLAB_DATA", "digits", "npz:FILE", "refused"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MisuseError, match=r"looked in '.*/file/MNIST/raw'"):
        load_dataset("mnist", root=tmp_path / "file")


def test_download_once(tmp_path: Path, mirror: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "new" / "data"
    assert np.array_equal(read_torchvision_set("mnist", root).x_train[:, 0].numpy(), SPLITS["train"])
    assert capfd.readouterr() == ("", "")
    assert [entry.name for entry in root.iterdir()] == ["MNIST"]
    for file in mirror.iterdir():
        file.unlink()
    assert read_torchvision_set("mnist", root).y_test.tolist() == list(range(10))


# torchvision extracts without a filter, of which Python 3.12 and 3.13 warn.
@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_cifar_is_downloaded(
    tmp_path: Path, server: tuple[Path, str], small_cifar: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    files, rows = cifar_files("labels")
    write(tmp_path / "cifar-10-batches-py", files)
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}{archive.name}")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    source = read_torchvision_set("cifar10", tmp_path / "root")
    assert np.array_equal(source.x_test.numpy(), rows.reshape(8, 3, 32, 32))
    assert [entry.name for entry in (tmp_path / "root").iterdir()] == ["cifar-10-batches-py"]


def test_download_that_breaks_off_leaves_nothing(tmp_path: Path, mirror: Path) -> None:
    broken = mirror / "train-labels-idx1-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(MisuseError, match="downloading them failed"):
        read_torchvision_set("mnist", tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def test_missing_files_are_completed(tmp_path: Path, mirror: Path) -> None:
    files = idx_files()
    del files["t10k-labels-idx1-ubyte"]
    write(tmp_path / "MNIST" / "raw", files)
    assert read_torchvision_set("mnist", tmp_path).y_test.tolist() == list(range(10))


@pytest.mark.parametrize("keep", [0, 3, 500])
def test_damaged_files_are_named_not_replaced(tmp_path: Path, no_network: None, keep: int) -> None:
    files = idx_files()
    files["train-images-idx3-ubyte"] = files["train-images-idx3-ubyte"][:keep]
    write(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(MisuseError, match=r"files in '.*MNIST/raw' are damaged .*Delete them"):
        load_dataset("mnist", root=tmp_path)
    assert (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").stat().st_size == keep


def test_where_the_data_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVEXLAB_DATA", str(tmp_path / "variable"))
    assert data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder() == tmp_path / "variable"
    monkeypatch.setenv("CONVEXLAB_DATA", "")
    assert data_folder() == Path(platformdirs.user_cache_dir("convexlab"))
    assert data_folder("~/data") == Path.home() / "data"
