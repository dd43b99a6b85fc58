"""What the benchmark compares: locators by name, and rows that have peeked at the truth.

A name is ``[oracle:]base[:variant]``:

* ``base``: a method of :class:`~rismusic.spec.LocateSpec`, here with the unconditional likelihood; also the
  name of a registered estimator or spectrum (:mod:`rismusic.registry`);
* ``:conditional``: with the conditional one;
* ``:raw``: a spectrum's peaks as they are, without maximum likelihood behind them;
* ``hybrid:...``: the hybrid locator without a part of it, as in :data:`ABLATIONS`. Without its network it is
  ``music``;
* ``oracle:``: has peeked, and is no method. ``oracle:music`` works on the true covariance, ``oracle:truth``
  is maximum likelihood started from the truth, ``oracle:best`` the likeliest of the ends of OMP, SBL and
  ``oracle:truth``: what a perfect search under that likelihood would return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rismusic.errors import InputError
from rismusic.registry import ESTIMATORS, SPECTRA, method_names

ORACLES = ("music", "truth", "best")
# These fit the snapshots themselves: there is nothing that could be left unpolished.
_ALWAYS_POLISHED = ("omp", "relax", "sbl", "best", "truth")
# The fits among which oracle:best takes the likeliest one.
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
"""Variants of the hybrid locator: no R_samp in the blend; no second search of doubtful scenes, nor of those
with many sources; neither this nor the own list, so that all starts at MUSIC on the blend; a network that has
learned nothing, and all starting at its MUSIC; the number of sources by likelihood or network alone."""

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
    """A name taken apart; see the head of this module."""

    name: str
    base: str
    peeked: bool
    polish: bool
    criterion: Literal["conditional", "unconditional"]
    variant: str

    def beside(self, name: str) -> str:
        """The name of another method under the same likelihood."""
        return name if self.criterion == "unconditional" else f"{name}:conditional"


def parse_method(name: str) -> Method:
    """Take a name apart.

    Raises:
        InputError: no such method, or a variant that it does not have.
    """
    bare = name.removeprefix("oracle:")
    peeked = bare != name
    base, _, variant = bare.partition(":")
    known = ORACLES if peeked else method_names()
    if base not in known:
        names = ", ".join("oracle:" * peeked + one for one in known)
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
        variants = ("",)  # a user's estimator, which decides itself what it fits
    if variant not in variants or bare.endswith(":"):
        names = " or ".join(f"{name.partition(bare)[0]}{base}:{one}".rstrip(":") for one in variants)
        raise InputError("methods", f"{name!r} is not a variant of {base}; use {names}")
    criterion: Literal["conditional", "unconditional"] = (
        "conditional" if variant == "conditional" else "unconditional"
    )
    return Method(name, base, peeked, variant != "raw", criterion, variant)


def with_starts(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, and behind them what must be run for their sake.

    ``oracle:best`` is chosen among other rows, and a miss is blamed on the search or on the likelihood by
    comparison with ``oracle:truth``.
    """
    needed = dict.fromkeys(names)
    for name in names:
        method = parse_method(name)
        starts = STARTS if (method.peeked, method.base) == (True, "best") else STARTS[-1:]
        needed.update(dict.fromkeys(method.beside(start) for start in starts))
    return tuple(needed)
