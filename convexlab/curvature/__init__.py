"""Curvature: Lanczos, both ends of the spectrum, density, trace, blocks, parts, segments, sampling error, verdict."""

from convexlab.curvature.blocks import BlockCurvature, block_curvature
from convexlab.curvature.density import SpectralDensity, spectral_density
from convexlab.curvature.effort import Effort
from convexlab.curvature.extremes import ExtremeEigenvalues, extreme_eigenvalues
from convexlab.curvature.forecast import MemoryForecast, forecast_memory
from convexlab.curvature.lanczos import Lanczos
from convexlab.curvature.sampling import SampledCurvature, sampled_curvature
from convexlab.curvature.segment import Segment, segment_curvature
from convexlab.curvature.split import CurvatureSplit, curvature_split
from convexlab.curvature.trace import TraceEstimate, trace
from convexlab.curvature.verdict import Verdict, convexity_verdict

__all__ = [
    "BlockCurvature",
    "CurvatureSplit",
    "Effort",
    "ExtremeEigenvalues",
    "Lanczos",
    "MemoryForecast",
    "SampledCurvature",
    "Segment",
    "SpectralDensity",
    "TraceEstimate",
    "Verdict",
    "block_curvature",
    "convexity_verdict",
    "curvature_split",
    "extreme_eigenvalues",
    "forecast_memory",
    "sampled_curvature",
    "segment_curvature",
    "spectral_density",
    "trace",
]
