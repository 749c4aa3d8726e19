"""Hugging Face: the same Trainer with a callback that hands over to the second phase, and without it.

Needs ``pip install 'convexlab[huggingface]'`` and runs in seconds: ``python examples/huggingface_two_phases.py``
"""

import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

import convexlab as cl
from convexlab.integrations.huggingface import TwoPhaseCallback

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images[:512] / 16, dtype=torch.float32), nn.functional.one_hot(torch.tensor(labels[:512])).float()
data = [{"x": image, "labels": label} for image, label in zip(x, y, strict=True)]


class Digits(nn.Module):
    """A perceptron that tells digits apart; any model that returns its loss will do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch, and the output."""
        output = self.net(x)
        return {"loss": nn.functional.mse_loss(output, labels), "logits": output}


def train(folder: str, epochs: int, *, two_phase: bool) -> float:
    """Train for so many epochs' worth of gradients, and return the loss over all data."""
    set_seed(0)
    quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    schedule: dict[str, Any] = {"num_train_epochs": epochs, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}
    arguments = TrainingArguments(folder, per_device_train_batch_size=128, use_cpu=True, **schedule, **quiet)
    model = Digits()
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    if two_phase:
        trainer.add_callback(TwoPhaseCallback(trainer, out=f"{folder}/run"))
    trainer.train()
    return float(model.eval()(x, y)["loss"].detach())


with tempfile.TemporaryDirectory() as folder:
    both = train(folder, 100, two_phase=True)
    summary = cl.Run.open(f"{folder}/run").summary or {}  # which `convexlab report` makes a page of
    print(f"switch after epoch {summary['switch']['epoch']}: loss {summary['switch']['train_loss']:.2e}")
    print(f"then the second phase, {summary['two_phase']['gradient_equivalents']:.0f} in all: loss {both:.2e}")
    print(f"or Adam alone, 100 epochs: loss {train(folder, 100, two_phase=False):.2e}")
