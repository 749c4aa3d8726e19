"""ConvexLab: is the loss region that training has reached convex, and is it time to hand over from Adam?"""

# ruff: noqa: E402 - the command line is to be quiet if it is interrupted from here on
from typing import TYPE_CHECKING, Any

from convexlab.interrupts import quiet_while_starting

quiet_while_starting()

from convexlab._version import __version__

# Networks and data by name
from convexlab.architectures import build_model

# The curvature of a loss
from convexlab.curvature import (
    AdamMetric,
    AdamSharpness,
    BlockCurvature,
    CurvatureSplit,
    DiagonalEstimate,
    Effort,
    Eigenpairs,
    ExtremeEigenvalues,
    MemoryForecast,
    SampledCurvature,
    Segment,
    SpectralDensity,
    TraceEstimate,
    Verdict,
    adam_metric,
    adam_sharpness,
    block_curvature,
    convexity_verdict,
    curvature_split,
    diagonal,
    extreme_eigenvalues,
    forecast_memory,
    sampled_curvature,
    segment_curvature,
    spectral_density,
    top_eigenpairs,
    trace,
)
from convexlab.datasets import Dataset, load_dataset

# When to hand over
from convexlab.detection import (
    Algorithm1,
    BudgetFraction,
    Detector,
    FixedEpoch,
    GradientNormChange,
    GradientNormPeak,
    LossPlateau,
    NoiseAwarePeak,
    NoNegativeCurvature,
    SmoothedNormPeak,
    Swats,
    UnimodalNorm,
    Watch,
)

# Errors
from convexlab.errors import ConvexLabError, FailureError, MisuseError

# The loss as one function of one flat vector
from convexlab.linalg.operators import SymmetricOperator
from convexlab.objective import Objective
from convexlab.objective.cost import Cost

# What to hand over to
from convexlab.optim import (
    LBFGS,
    LevenbergMarquardt,
    NonlinearCG,
    ProgressiveLBFGS,
    SelfScaledBroyden,
    adam_preconditioner,
)

# Runs and checkpoints
from convexlab.probing import Probe, probe
from convexlab.problems import Problem
from convexlab.runs import Run
from convexlab.training import TwoPhaseConfig, train_two_phase
from convexlab.training.phases import second_phase

if TYPE_CHECKING:
    from convexlab.reporting.plot import plot

__all__ = [
    "LBFGS",
    "AdamMetric",
    "AdamSharpness",
    "Algorithm1",
    "BlockCurvature",
    "BudgetFraction",
    "ConvexLabError",
    "Cost",
    "CurvatureSplit",
    "Dataset",
    "Detector",
    "DiagonalEstimate",
    "Effort",
    "Eigenpairs",
    "ExtremeEigenvalues",
    "FailureError",
    "FixedEpoch",
    "GradientNormChange",
    "GradientNormPeak",
    "LevenbergMarquardt",
    "LossPlateau",
    "MemoryForecast",
    "MisuseError",
    "NoNegativeCurvature",
    "NoiseAwarePeak",
    "NonlinearCG",
    "Objective",
    "Probe",
    "Problem",
    "ProgressiveLBFGS",
    "Run",
    "SampledCurvature",
    "Segment",
    "SelfScaledBroyden",
    "SmoothedNormPeak",
    "SpectralDensity",
    "Swats",
    "SymmetricOperator",
    "TraceEstimate",
    "TwoPhaseConfig",
    "UnimodalNorm",
    "Verdict",
    "Watch",
    "__version__",
    "adam_metric",
    "adam_preconditioner",
    "adam_sharpness",
    "block_curvature",
    "build_model",
    "convexity_verdict",
    "curvature_split",
    "diagonal",
    "extreme_eigenvalues",
    "forecast_memory",
    "load_dataset",
    "plot",
    "probe",
    "sampled_curvature",
    "second_phase",
    "segment_curvature",
    "spectral_density",
    "top_eigenpairs",
    "trace",
    "train_two_phase",
]


def __getattr__(name: str) -> Any:
    """Load what draws when it is asked for: matplotlib would double the time that the package takes to start."""
    if name == "plot":
        from convexlab.reporting.plot import plot

        return plot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
