"""Lightning: the same trainer with a callback that hands over to the second phase, and without it.

Needs ``pip install 'convexlab[lightning]'`` and runs in seconds: ``python examples/lightning_two_phases.py``
"""

import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexlab as cl
from convexlab.integrations.lightning import TwoPhaseCallback

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images[:512] / 16, dtype=torch.float32), nn.functional.one_hot(torch.tensor(labels[:512])).float()


class Digits(pl.LightningModule):
    """A perceptron that tells digits apart."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Adam:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def train(folder: str, epochs: int, *, two_phase: bool) -> float:
    """Train for so many epochs' worth of gradients, and return the loss over all data."""
    pl.seed_everything(0, verbose=False)
    module, data = Digits(), TensorDataset(x, y)
    objective = cl.Objective(module.net, DataLoader(data, batch_size=512), nn.MSELoss())
    callbacks: list[Any] = [TwoPhaseCallback(objective, out=folder)] if two_phase else []
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.fit(module, DataLoader(data, batch_size=128, shuffle=True))
    return objective.value()


with tempfile.TemporaryDirectory() as folder:
    both = train(f"{folder}/run", 100, two_phase=True)
    summary = cl.Run.open(f"{folder}/run").summary or {}  # which `convexlab report` makes a page of
print(f"switch after epoch {summary['switch']['epoch']}: loss {summary['switch']['train_loss']:.2e}")
print(f"then the second phase, {summary['two_phase']['gradient_equivalents']:.0f} in all: loss {both:.2e}")
print(f"or Adam alone, 100 epochs: loss {train('', 100, two_phase=False):.2e}")
