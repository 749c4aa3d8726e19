"""Curvature: Lanczos, both ends of the spectrum, density, trace, blocks, parts, segments, sampling error, verdict."""

from convexlab.curvature.adam_metric import AdamMetric, AdamSharpness, adam_metric, adam_sharpness
from convexlab.curvature.blocks import BlockCurvature, block_curvature
from convexlab.curvature.density import SpectralDensity, spectral_density
from convexlab.curvature.diagonal import DiagonalEstimate, diagonal
from convexlab.curvature.effort import Effort
from convexlab.curvature.extremes import ExtremeEigenvalues, extreme_eigenvalues
from convexlab.curvature.forecast import MemoryForecast, forecast_memory
from convexlab.curvature.lanczos import Lanczos
from convexlab.curvature.sampling import SampledCurvature, sampled_curvature
from convexlab.curvature.segment import Segment, segment_curvature
from convexlab.curvature.split import CurvatureSplit, curvature_split
from convexlab.curvature.top import Eigenpairs, top_eigenpairs
from convexlab.curvature.trace import TraceEstimate, trace
from convexlab.curvature.verdict import Verdict, convexity_verdict

__all__ = [
    "AdamMetric",
    "AdamSharpness",
    "BlockCurvature",
    "CurvatureSplit",
    "DiagonalEstimate",
    "Effort",
    "Eigenpairs",
    "ExtremeEigenvalues",
    "Lanczos",
    "MemoryForecast",
    "SampledCurvature",
    "Segment",
    "SpectralDensity",
    "TraceEstimate",
    "Verdict",
    "adam_metric",
    "adam_sharpness",
    "block_curvature",
    "convexity_verdict",
    "curvature_split",
    "diagonal",
    "extreme_eigenvalues",
    "forecast_memory",
    "sampled_curvature",
    "segment_curvature",
    "spectral_density",
    "top_eigenpairs",
    "trace",
]
