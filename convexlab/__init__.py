"""ConvexLab: is the loss region that training has reached convex, and is it time to hand over from Adam?"""

from convexlab._version import __version__

# The loss as one function of one flat vector
from convexlab.cost import Cost

# Its curvature
from convexlab.curvature import (
    ExtremeEigenvalues,
    SpectralDensity,
    TraceEstimate,
    Verdict,
    convexity_verdict,
    extreme_eigenvalues,
    spectral_density,
    trace,
)

# When to hand over, and to what
from convexlab.detection import Algorithm1, Detector, FixedEpoch, GradientNormPeak

# Errors
from convexlab.errors import ConvexLabError, FailureError, MisuseError
from convexlab.objective import Objective
from convexlab.operators import SymmetricOperator
from convexlab.optim import NonlinearCG

__all__ = [
    "Algorithm1",
    "ConvexLabError",
    "Cost",
    "Detector",
    "ExtremeEigenvalues",
    "FailureError",
    "FixedEpoch",
    "GradientNormPeak",
    "MisuseError",
    "NonlinearCG",
    "Objective",
    "SpectralDensity",
    "SymmetricOperator",
    "TraceEstimate",
    "Verdict",
    "__version__",
    "convexity_verdict",
    "extreme_eigenvalues",
    "spectral_density",
    "trace",
]
