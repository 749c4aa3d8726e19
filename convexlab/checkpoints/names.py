"""The names in a checkpoint beside those of a model: prefixes that a wrapper left, and weights that are tied."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Match", "match_names"]

# What `torch.compile` puts before the names of a module, wherever it is.
_COMPILED = "_orig_mod."
# PEFT's names: of what an adapter adds, before its name; of whole modules that it replaces; of the first adapter.
_LORA, _SAVED, _DEFAULT = "lora_", "modules_to_save", "default"


@dataclass(frozen=True)
class Match:
    """Which tensor of a checkpoint is which of a model."""

    sources: dict[str, str]
    """The checkpoint's name by the model's."""
    missing: tuple[str, ...]
    """Names of the model without a source."""
    extra: tuple[str, ...]
    """Names of the checkpoint, without a prefix that all have, that the model has not."""

    def nearest(self) -> str:
        """Words for a missing name and an extra one that resemble each other; "" if none do."""
        for name in self.missing:
            near = difflib.get_close_matches(name, self.extra, n=1, cutoff=0.7)
            if near:
                return f"{near[0]!r} may be {name!r}"
        return ""


def match_names(model: nn.Module, names: Iterable[str], *, adapter: bool = False) -> Match:
    """Match a checkpoint's names with a model's.

    A prefix that all of them share is removed where that leaves more names of the model, also several in a row.
    Examples are ``module.`` of DataParallel and ``model.`` of Lightning. ``_orig_mod.`` of compiled modules is removed
    wherever it is. A name that is missing because its tensor is that of another name is filled from that.

    Of an ``adapter`` only the places in the model that it fills count. PEFT stores their names without that of the
    adapter, such as ``default``, which is taken where there are several.
    """
    state = model.state_dict(keep_vars=True)
    if adapter:
        return _match_adapter(state, list(names))
    plain = {name if name in state else _uncompiled(name, state): name for name in names}
    prefix = _prefix(plain, state)
    sources = {short.removeprefix(prefix): name for short, name in plain.items()}
    for name in state.keys() - sources.keys():
        twins = (other for other in state if other in sources and _same(state[name], state[other]))
        if twin := next(twins, None):
            sources[name] = sources[twin]
    return Match(
        {name: sources[name] for name in state if name in sources},
        tuple(sorted(state.keys() - sources.keys())),
        tuple(sorted(sources.keys() - state.keys())),
    )


def _match_adapter(state: Mapping[str, Tensor], names: list[str]) -> Match:
    places: dict[str, str] = {}
    for name in state:
        for short, is_default in _without_adapter(name):
            if is_default or short not in places:
                places[short] = name
    prefix = _prefix(names, places)
    stored = {name.removeprefix(prefix): name for name in names}
    sources = {places[short]: name for short, name in stored.items() if short in places}
    kinds = {part for name in stored for part in name.split(".") if part.startswith(_LORA)}
    wanted = {name for short, name in places.items() if short != name and kinds & set(name.split("."))}
    return Match(
        {name: sources[name] for name in state if name in sources},
        tuple(sorted(wanted - sources.keys())),
        tuple(sorted(stored.keys() - places.keys())),
    )


def _without_adapter(name: str) -> Iterator[tuple[str, bool]]:
    """Yield what PEFT may call a tensor in a file, and whether it is that of the default adapter."""
    yield name, True
    parts = name.split(".")
    for place in range(1, len(parts)):
        before = parts[place - 1]
        if before.startswith(_LORA):
            yield ".".join(parts[:place] + parts[place + 1 :]), parts[place] == _DEFAULT
        elif before == _SAVED:
            yield ".".join(parts[: place - 1] + parts[place + 1 :]), parts[place] == _DEFAULT


def _uncompiled(name: str, state: Mapping[str, Tensor]) -> str:
    return name if any(_COMPILED in known for known in state) else name.replace(_COMPILED, "")


def _prefix(names: Iterable[str], state: Container[str]) -> str:
    """Return the prefix of all names, ending in a dot, without which the most of them are of the state."""
    every = list(names)
    best, most = "", sum(name in state for name in every)
    parts = every[0].split(".")[:-1] if every else []
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length]) + "."
        if not all(name.startswith(prefix) for name in every):
            break
        known = sum(name.removeprefix(prefix) in state for name in every)
        if known > most:
            best, most = prefix, known
    return best


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or (
        first.data_ptr() == second.data_ptr() != 0 and first.shape == second.shape and first.stride() == second.stride()
    )
