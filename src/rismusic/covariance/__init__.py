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
    IDENTITY_MAX,
    BackProjection,
    back_project,
    conditioning,
    projected_covariance,
    recording_covariance,
    sample_covariance,
)

__all__ = [
    "IDENTITY_MAX",
    "BackProjection",
    "Conditioning",
    "Covariance",
    "back_project",
    "blend",
    "conditioning",
    "finish",
    "predicted_covariance",
    "projected_covariance",
    "recording_covariance",
    "sample_covariance",
    "true_covariance",
]
