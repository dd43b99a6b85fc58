"""Covariances of the field on the panel: built, conditioned and blended in one place."""

from rismusic.covariance.build import (
    Conditioning,
    blend,
    finish,
    predicted_covariance,
    true_covariance,
)
from rismusic.covariance.lowrank import Covariance
from rismusic.covariance.sample import (
    BackProjection,
    back_project,
    recording_covariance,
    sample_covariance,
)

__all__ = [
    "BackProjection",
    "Conditioning",
    "Covariance",
    "back_project",
    "blend",
    "finish",
    "predicted_covariance",
    "recording_covariance",
    "sample_covariance",
    "true_covariance",
]
