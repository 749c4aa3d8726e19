"""From a finished run to a folder of ``models/``: a dozen checkpoints, rounded, with a card that says what they are."""

from convexlab.publishing.card import Card, read_card, write_index
from convexlab.publishing.folder import publish

__all__ = ["Card", "publish", "read_card", "write_index"]
