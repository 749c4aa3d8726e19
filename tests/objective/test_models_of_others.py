"""Models as others build them: a product of the Hessian is the derivative of the gradient, by central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

import convexlab as cl
from convexlab.objective.products import ObjectiveOperator

DOUBLE = torch.float64
VOCABULARY, LENGTH, ROWS = 23, 7, 4


def _resnet() -> cl.Objective:
    model = torchvision.models.resnet18(num_classes=4)
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 3])
    model(images)  # Running statistics of its own.
    return cl.Objective(model, [(images, labels)], nn.CrossEntropyLoss(), dtype=DOUBLE)


def _tokens() -> transformers.BatchEncoding:
    """Return rows of unequal lengths, padded."""
    ids = torch.randint(1, VOCABULARY, (ROWS, LENGTH))
    mask = (torch.arange(LENGTH) < torch.tensor([[7], [5], [4], [2]])).long()
    return transformers.BatchEncoding({"input_ids": ids * mask, "attention_mask": mask})


def _gpt2(*, own: bool = False) -> cl.Objective:
    """A language model, whose loss is the mean over the tokens that count, so that a batch weighs by these."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)

    def loss(network: nn.Module, batch: transformers.BatchEncoding) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
        logits: Tensor = network(**batch).logits[:, :-1]
        if own:
            value: Tensor = network(**batch, labels=batch["input_ids"]).loss
            return value
        return nn.functional.cross_entropy(logits.transpose(1, 2), labels)

    def tokens(batch: transformers.BatchEncoding) -> float:
        return float(batch["attention_mask"][:, 1:].sum())

    return cl.Objective.from_batch_loss(model, [_tokens(), _tokens()], loss, tokens, dtype=DOUBLE)


def _bert() -> cl.Objective:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForSequenceClassification(config)

    def loss(network: nn.Module, batch: dict[str, Any]) -> Tensor:
        value: Tensor = network(**batch["text"], labels=batch["labels"]).loss
        return value

    batch = {"text": _tokens(), "labels": torch.tensor([0, 1, 1, 0])}
    return cl.Objective.from_batch_loss(model, [batch], loss, dtype=DOUBLE)


class _Recurrent(nn.Module):
    """Two layers of LSTM, an embedding that is the head too, a frozen part and a part that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.lstm = nn.LSTM(6, 6, num_layers=2, batch_first=True)
        self.frozen, self.unused = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)
        self.head = nn.Linear(6, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.frozen(self.lstm(self.embedding(tokens))[0]))
        return output.transpose(1, 2)


def _lstm() -> cl.Objective:
    tokens = torch.randint(0, VOCABULARY, (5, LENGTH + 1))
    return cl.Objective(_Recurrent(), [(tokens[:, :-1], tokens[:, 1:])], nn.CrossEntropyLoss(), dtype=DOUBLE)


MODELS: dict[str, Callable[[], cl.Objective]] = {"resnet": _resnet, "gpt2": _gpt2, "bert": _bert, "lstm": _lstm}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_products_are_differences_of_gradients(name: str) -> None:
    torch.manual_seed(0)
    objective = MODELS[name]()
    theta, step = objective.flat_parameters(), 1e-5
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    v /= v.norm()
    with objective.at(theta + step * v):
        above = objective.gradient()
    with objective.at(theta - step * v):
        difference = (above - objective.gradient()) / (2 * step)
    product = objective.hvp(v)
    assert float((product - difference).norm()) <= 1e-6 * float(product.norm())


def test_tied_weights_count_once_and_frozen_ones_not_at_all() -> None:
    objective = _lstm()
    names = objective.parameter_names
    assert "head.weight" not in names
    assert not any(name.startswith("frozen") for name in names)
    assert [name for name in names if "unused" in name] == ["unused.weight", "unused.bias"]
    with objective.at(torch.where(objective.gradient() == 0, 1.0, 0.0) + objective.flat_parameters()):
        moved = objective.value()
    assert moved == pytest.approx(objective.value(), rel=1e-12)


def test_a_language_models_own_loss_rounds_to_float32_and_is_taken_for_no_fault() -> None:
    torch.manual_seed(0)
    operator = _gpt2(own=True).hessian()
    assert isinstance(operator, ObjectiveOperator)
    operator.prove()
