r"""Cramer-Rao bounds of the sources' positions through any link, for all K sources jointly.

The bound says how small the standard deviation of an unbiased estimate can be, other unknowns being
estimated along with it. What counts as unknown makes the bound:

* *conditional* (deterministic symbols): positions of all K sources and every symbol :math:`s_{kl}`;
* *unconditional* (Gaussian symbols): positions and powers of all K sources, and the noise variance.

Both work in float64, without an N x N or M x M matrix.
"""

from __future__ import annotations

from typing import Literal

from rismusic.bounds.conditional import conditional_crb
from rismusic.bounds.problem import POSITION, Bound, Unknown
from rismusic.bounds.unconditional import unconditional_crb
from rismusic.errors import InputError
from rismusic.recording import Recording

__all__ = ["POSITION", "Bound", "Unknown", "conditional_crb", "recording_crb", "unconditional_crb"]


def recording_crb(
    recording: Recording, kind: Literal["conditional", "unconditional"] = "conditional"
) -> Bound:
    """The bound of every scene of a recording that carries its truth (symbols or powers) and noise variance.

    Raises:
        InputError: the truth or the noise variance is missing.
    """
    if recording.truth is None or recording.noise_variance is None:
        missing = "truth" if recording.truth is None else "noise_variance"
        raise InputError(missing, "a recording with truth and noise variance", "none")
    if kind == "conditional":
        return conditional_crb(recording.panel, recording.link, recording.truth, recording.noise_variance)
    L = recording.snapshots.shape[-2]
    return unconditional_crb(
        recording.panel, recording.link, recording.truth, recording.noise_variance, snapshots=L
    )
