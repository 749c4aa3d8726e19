"""Hugging Face: the same Trainer with a callback that hands over to the second phase, and without it.

Needs ``pip install 'convexlab[huggingface]'`` and runs in seconds: ``python examples/huggingface_two_phases.py``
"""

import tempfile
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import convexlab as cl
from convexlab.integrations.huggingface import TwoPhaseCallback

disable_progress_bar()
set_verbosity_error()
text = torch.tensor(list(topics["assignment"].encode()[:2048])).view(-1, 32)
data = [{"input_ids": row, "labels": row} for row in text]


def train(folder: str, epochs: int, *, two_phase: bool) -> float:
    """Train a small GPT-2 for so many epochs' worth of gradients, and return the loss over all data."""
    set_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 128}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    if two_phase:
        trainer.add_callback(TwoPhaseCallback(trainer, out=f"{folder}/run"))
    trainer.train()
    with torch.no_grad():
        return float(model.eval()(input_ids=text, labels=text).loss)


with tempfile.TemporaryDirectory() as folder:
    both = train(folder, 60, two_phase=True)
    summary = cl.Run.open(f"{folder}/run").summary or {}  # which `convexlab report` makes a page of
print(f"switch after epoch {summary['switch']['epoch']}: loss {summary['switch']['train_loss']:.2e}")
print(f"then the second phase, {summary['two_phase']['gradient_equivalents']:.0f} in all: loss {both:.2e}")
with tempfile.TemporaryDirectory() as folder:
    print(f"or Adam alone, 60 epochs: loss {train(folder, 60, two_phase=False):.2e}")
