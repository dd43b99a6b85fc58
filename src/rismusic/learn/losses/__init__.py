"""What the network learns by: small batched losses, one idea to a file, and their weighted total."""

from rismusic.learn.losses.contrast import capon, peak_contrast
from rismusic.learn.losses.count import count_divergence
from rismusic.learn.losses.eigengap import eigengap_hinge, eigenvalue_gap
from rismusic.learn.losses.factors import cross_coherence, factor_coherence
from rismusic.learn.losses.frobenius import covariance_error, inner
from rismusic.learn.losses.heatmap import heat_map_divergence, heat_map_target
from rismusic.learn.losses.matching import assign
from rismusic.learn.losses.positions import Matched, match_heads
from rismusic.learn.losses.start import check_start
from rismusic.learn.losses.subspace import steering_basis, subspace_leakage
from rismusic.learn.losses.targets import Targets
from rismusic.learn.losses.total import Losses, total_loss

__all__ = [
    "Losses",
    "Matched",
    "Targets",
    "assign",
    "capon",
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
    "peak_contrast",
    "steering_basis",
    "subspace_leakage",
    "total_loss",
]
