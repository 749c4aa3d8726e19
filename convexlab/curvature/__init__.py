"""Curvature: Lanczos, both ends of the spectrum, density, trace, sampling error, and the verdict on convexity."""

from convexlab.curvature.density import SpectralDensity, spectral_density
from convexlab.curvature.extremes import ExtremeEigenvalues, extreme_eigenvalues
from convexlab.curvature.lanczos import Lanczos
from convexlab.curvature.sampling import SampledCurvature, sampled_curvature
from convexlab.curvature.trace import TraceEstimate, trace
from convexlab.curvature.verdict import Verdict, convexity_verdict

__all__ = [
    "ExtremeEigenvalues",
    "Lanczos",
    "SampledCurvature",
    "SpectralDensity",
    "TraceEstimate",
    "Verdict",
    "convexity_verdict",
    "extreme_eigenvalues",
    "sampled_curvature",
    "spectral_density",
    "trace",
]
