"""From a finished run to a folder of ``models/``: a dozen checkpoints, rounded, with a card that says what they are."""

from convexlab.publishing.card import Card, read_card, write_index
from convexlab.publishing.folder import publish
from convexlab.publishing.physics import PhysicsPlan, solution_quality, train_physics

__all__ = ["Card", "PhysicsPlan", "publish", "read_card", "solution_quality", "train_physics", "write_index"]
