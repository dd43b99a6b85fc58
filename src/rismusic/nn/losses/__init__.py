"""Losses: of covariances, of positions and number of sources, and their weighted total."""

from rismusic.nn.losses.covariance import (
    covariance_error,
    cross_coherence,
    eigengap_hinge,
    eigenvalue_gap,
    factor_coherence,
    inner,
    mvdr_value,
    peak_contrast,
    steering_basis,
    subspace_leakage,
)
from rismusic.nn.losses.sources import (
    Matched,
    Targets,
    assign,
    count_divergence,
    heat_map_divergence,
    heat_map_target,
    match_heads,
)
from rismusic.nn.losses.total import NO_GRADIENT, Losses, check_start, total_loss

__all__ = [
    "NO_GRADIENT",
    "Losses",
    "Matched",
    "Targets",
    "assign",
    "check_start",
    "count_divergence",
    "covariance_error",
    "cross_coherence",
    "eigengap_hinge",
    "eigenvalue_gap",
    "factor_coherence",
    "heat_map_divergence",
    "heat_map_target",
    "inner",
    "match_heads",
    "mvdr_value",
    "peak_contrast",
    "steering_basis",
    "subspace_leakage",
    "total_loss",
]
