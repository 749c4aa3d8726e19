"""Coverage-guided fuzzing of the readers of binary files, by atheris: pip install .[fuzz].

    python -m tests.faults.atheris_readers safetensors|npz|pt|state [FOLDER -runs=20000 -seed=1]

FOLDER keeps the inputs that reached new code. Whatever but an error of ours ends it, with the input beside it.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import safetensors.torch
import torch

with atheris.instrument_imports(include=["convexlab.checkpoints", "convexlab.datasets", "convexlab.training.state"]):
    import convexlab as cl
    from convexlab.checkpoints import read_checkpoint, read_header
    from convexlab.datasets import load_dataset
    from convexlab.training.state import read_state

Reader = Callable[[Path], object]


def _checkpoint(path: Path) -> None:
    read_header(path)
    read_checkpoint(path)


READERS: dict[str, Reader] = {
    "safetensors": _checkpoint,
    "npz": lambda path: load_dataset(f"npz:{path}", image_size=4),
    "pt": _checkpoint,
    "state": read_state,
}


def _sound(kind: str) -> bytes:
    """Return a file that is read."""
    file, weights = io.BytesIO(), {"layer.weight": torch.zeros(2, 3), "layer.bias": torch.zeros(2)}
    if kind == "safetensors":
        return bytes(safetensors.torch.save(weights, {"epoch": "3", "model": "vit-mlp"}))
    if kind == "npz":
        images, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3
        np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    else:
        torch.save(weights if kind == "pt" else {"schema": 1, "weights": weights, "rows": {}}, file)
    return file.getvalue()


def main() -> None:
    kind, *options = sys.argv[1:]
    folder = Path(tempfile.mkdtemp())
    path = folder / f"input.{'pt' if kind == 'state' else kind}"
    corpus = Path(options[0]) if options and not options[0].startswith("-") else folder / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "sound").write_bytes(_sound(kind))

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(cl.ConvexLabError), warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.errors.DamageWarning)
            READERS[kind](path)

    flags = [option for option in options if option.startswith("-")]
    # One case: at most 20 seconds and 2 GB.
    atheris.Setup([sys.argv[0], str(corpus), "-timeout=20", "-rss_limit_mb=2048", *flags], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
