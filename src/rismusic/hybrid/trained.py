"""A network with its weights and their card, loaded once for each file and device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from rismusic.errors import InputError
from rismusic.learn.card import SHIPPED, WeightsCard, card_of, weights_path
from rismusic.learn.network import Network
from rismusic.learn.weights import read_network

# Networks that are kept: weights and the statistics of their grid.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and what is known of it.

    Args:
        network: on a device.
        card: of its weights.
    """

    network: Network
    card: WeightsCard


def missing(weights: str) -> bool:
    """Whether these are weights that come with the package, but not with this one."""
    return weights in SHIPPED and not weights_path(weights).exists()


def trained(weights: str, device: torch.device, *, untrained: bool = False) -> Trained:
    """The network of a name or a file of weights.

    Args:
        weights: ``ideal``, ``robust`` or a file.
        device: where it is to work.
        untrained: whether to give it weights that have learned nothing.

    Raises:
        InputError: no file, or none of weights.
    """
    path = weights_path(weights)
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(
            str(path), "a readable file of weights", (error.strerror or "none").lower()
        ) from None
    version = state.st_mtime_ns, state.st_size
    return _trained(path.absolute(), version, str(device), untrained)


@lru_cache(maxsize=_KEPT)
def _trained(path: Path, _version: tuple[int, int], device: str, untrained: bool) -> Trained:
    """Also of the file's time and size, so that one that was replaced is read again."""
    network, said = read_network(path, device=device)
    if untrained:
        network = Network(network.spec, network.grid, torch.Generator().manual_seed(0)).to(device)
    return Trained(network.requires_grad_(False), card_of(str(path), said))
