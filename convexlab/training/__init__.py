"""Training in two phases."""

from convexlab.training.config import TwoPhaseConfig
from convexlab.training.phases import phase_two_names
from convexlab.training.two_phase import default_directory, train_two_phase

__all__ = ["TwoPhaseConfig", "default_directory", "phase_two_names", "train_two_phase"]
