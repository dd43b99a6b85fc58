"""Mistakes in R_samp and its loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from faults.plant import Fault, function, method
from rismusic.covariance import (
    BackProjection,
    Conditioning,
    Covariance,
    back_project,
    conditioning,
    sample_covariance,
)
from rismusic.nn.losses import Targets


def _centred(_: Any, self: BackProjection) -> Covariance:
    field = self.field - self.field.mean(-2, keepdim=True)
    return Covariance(field.mT / field.shape[-2] ** 0.5, torch.zeros_like(self.noise_share))


def _reversed(_: Any, link: Any, snapshots: Tensor, noise: Tensor) -> Any:
    projected = back_project(link, snapshots, noise)
    sound = projected.covariance().normalised()
    # 2 I / N - R_samp: the structure of R_samp with its sign reversed.
    dense = 2 * torch.eye(sound.size) / sound.size - sound.dense()
    values, vectors = torch.linalg.eigh(dense)
    factor = vectors * values.clamp_min(0).sqrt()[..., None, :]
    return Covariance(factor, sound.loading).normalised(), conditioning(projected)


def _through(_: Any, link: Any, snapshots: Tensor, noise: Tensor) -> Any:
    """From H c_l [L, M] instead of (H, c_l)."""
    response = (link.channel @ link.codes.mT).mT
    weight = (snapshots * response.conj()).sum(-1, keepdim=True)
    field = weight * link.codes
    made = Covariance(field.mT / field.shape[-2] ** 0.5, torch.zeros_like(noise)).normalised()
    return made, conditioning(back_project(link, snapshots, noise))


def _leaked(original: Callable[..., Targets], cls: type, *given: Any, **named: Any) -> Targets:
    sound = original(cls, *given, **named)
    return replace(sound, sample=sound.true)


def _loaded(original: Callable[..., Conditioning], *given: Any, **named: Any) -> Conditioning:
    sound = original(*given, **named)
    return Conditioning(torch.ones_like(sound.loading), sound.shrinkage)


FAULTS = (
    Fault(
        7,
        "R_samp from the labels",
        "R_samp is computed from the labels.",
        ("leak",),
        method(Targets, "of", _leaked),
    ),
    Fault(
        7,
        "R_samp centred",
        "The mean over the snapshots is subtracted in R_samp.",
        ("the back-projected snapshots less its mean over axis 1",),
        method(BackProjection, "covariance", _centred),
    ),
    Fault(
        7,
        "R_samp from H c",
        "R_samp is built from H c_l [L, M] instead of (H, c_l).",
        ("built from H c_l",),
        function(sample_covariance, _through),
    ),
    Fault(
        22,
        "loading too large",
        "Diagonal loading is half of the matrix.",
        ("conditioning does not give", "(1 everywhere, in place of"),
        function(conditioning, _loaded),
    ),
    Fault(
        0,
        "R_samp reversed",
        "The sign of R_samp is reversed.",
        ("R_samp is not the mean of x_l x_l^H",),
        function(sample_covariance, _reversed),
    ),
)
