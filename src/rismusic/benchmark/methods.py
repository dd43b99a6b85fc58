"""What the benchmark compares: estimators by name, and oracles, which use the truth.

A name is ``[oracle:]base[:variant]``:

* ``base``: a method of :class:`~rismusic.spec.LocateSpec`, here with the unconditional likelihood; also the
  name of a registered estimator or spectrum (:mod:`rismusic.registry`);
* ``:conditional``: with the conditional one;
* ``:raw``: the peaks of a spectrum, without maximum likelihood;
* ``hybrid:...``: the hybrid estimator without one of its parts, see :data:`ABLATIONS`. Without its network it
  is ``music``;
* ``oracle:``: uses the truth, and is no method. ``oracle:music`` works on the true covariance,
  ``oracle:truth`` is maximum likelihood started from the truth, and ``oracle:best`` is the most likely result
  of OMP, SBL and ``oracle:truth``: what a perfect search under that likelihood would return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rismusic.errors import InputError
from rismusic.registry import ESTIMATORS, SPECTRA, method_names

ORACLES = ("music", "truth", "best")
# These fit the snapshots themselves, so there is no variant without maximum likelihood.
_ALWAYS_POLISHED = ("omp", "relax", "sbl", "best", "truth")
# oracle:best is the most likely of these fits.
STARTS = ("omp", "sbl", "oracle:truth")

ABLATIONS: dict[str, dict[str, object]] = {
    "beta0": {"beta": 0.0},
    "sure": {"recheck_p_value": 0.0, "birth_death_min_sources": 0},
    "music": {"network_sources": False, "recheck_p_value": 0.0, "birth_death_min_sources": 0},
    "untrained": {"untrained": True, "recheck_p_value": 0.0, "birth_death_min_sources": 0},
    "untrained_music": {
        "untrained": True,
        "network_sources": False,
        "recheck_p_value": 0.0,
        "birth_death_min_sources": 0,
    },
    "likelihood": {"model_order": "likelihood"},
    "network": {"model_order": "network"},
}
"""Variants of the hybrid estimator, as changes of :class:`~rismusic.spec.HybridSpec`.

* ``beta0``: R_blend without R_samp;
* ``sure``: no SBL where the p-value is low, and no birth-death search;
* ``music``: ``sure``, and without the network's source list and heat map: all fits start at MUSIC on R_blend;
* ``untrained``, ``untrained_music``: ``sure`` and ``music`` with an untrained network;
* ``likelihood``, ``network``: the number of sources by likelihood or network alone.
"""

DEFAULT_METHODS = (
    "music:raw",
    "music",
    "soft_music",
    "mvdr",
    "bartlett",
    "omp:conditional",
    "omp",
    "relax",
    "sbl:conditional",
    "sbl",
    "best",
    "hybrid:raw",
    "hybrid",
    "oracle:music:raw",
    "oracle:music",
    "oracle:best:conditional",
    "oracle:best",
    "oracle:truth",
)


@dataclass(frozen=True)
class Method:
    """The parts of a name; see the docstring of this module.

    Args:
        name: the whole name.
        base: the method.
        uses_truth: whether it is an oracle.
        polish: whether maximum likelihood refines the peaks of a spectrum.
        criterion: the likelihood.
        variant: what follows the base.
    """

    name: str
    base: str
    uses_truth: bool
    polish: bool
    criterion: Literal["conditional", "unconditional"]
    variant: str

    def beside(self, name: str) -> str:
        """The name of another method under the same likelihood."""
        return name if self.criterion == "unconditional" else f"{name}:conditional"


def parse_method(name: str) -> Method:
    """Split a name into its parts.

    Raises:
        InputError: no such method, or a variant that it does not have.
    """
    bare = name.removeprefix("oracle:")
    uses_truth = bare != name
    base, _, variant = bare.partition(":")
    known = ORACLES if uses_truth else method_names()
    if base not in known:
        names = ", ".join("oracle:" * uses_truth + one for one in known)
        raise InputError(
            "methods",
            f"no method is named {name!r}; known are {names}. Name the module that registers your own "
            "method with --locate.plugins",
        )
    variants: tuple[str, ...] = ("", "conditional", "raw")
    if base in _ALWAYS_POLISHED:
        variants = variants[:2]
    elif base == "hybrid":
        variants = ("", "raw", *ABLATIONS)
    elif base not in SPECTRA and base in ESTIMATORS:
        variants = ("",)  # variants are settings that a user's estimator need not have
    if variant not in variants or bare.endswith(":"):
        names = " or ".join(f"{name.partition(bare)[0]}{base}:{one}".rstrip(":") for one in variants)
        raise InputError("methods", f"{name!r} is not a variant of {base}; use {names}")
    criterion: Literal["conditional", "unconditional"] = (
        "conditional" if variant == "conditional" else "unconditional"
    )
    return Method(name, base, uses_truth, variant != "raw", criterion, variant)


def with_starts(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, followed by the methods that they are compared with.

    ``oracle:best`` is chosen among other rows, and a miss is attributed to the search or to the likelihood
    by comparison with ``oracle:truth``.
    """
    needed = dict.fromkeys(names)
    for name in names:
        method = parse_method(name)
        starts = STARTS if (method.uses_truth, method.base) == (True, "best") else STARTS[-1:]
        needed.update(dict.fromkeys(method.beside(start) for start in starts))
    return tuple(needed)
