"""The card of a file of weights, its checksum, and the names of those that come with the package."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.nn import spec as card
from rismusic.nn.checkpoint import (
    checksum,
    load_network,
    optimizer_tensors,
    read_network,
    restore_optimizer,
    save_network,
)
from rismusic.nn.network import Network
from rismusic.nn.spec import NetworkSpec, TrainSpec, WeightsCard, card_of, weights_path
from rismusic.spec import SystemSpec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from ship_weights import card_text

SYSTEM = SystemSpec(panel={"rows": 4, "columns": 4}, sources=(1, 2), snr_db=(0.0, 10.0))
SPEC = TrainSpec(
    system=SYSTEM,
    network=NetworkSpec(sources_max=2, width=8, depth=1, stages=1, oversampling=1.5),
    schedule={"beta": 0.25},
)
CARD = WeightsCard(
    name="small", system=SYSTEM, sources_max=2, beta=0.25, scenes=1000, hours=0.5, device="2 cores",
    figures={"misses, K = 2, 5 dB": 0.0123}, limits=("Toy panels only.", "No use at sea."),
)  # fmt: skip


@pytest.fixture
def network() -> Network:
    grid = SearchGrid.cover(Panel.from_spec(SYSTEM.panel), Volume.from_spec(SYSTEM.scene), 1.5)
    return Network(SPEC.network, grid, torch.Generator().manual_seed(0))


def test_a_card_is_read_as_written(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(path, network, training=SPEC, card=CARD)
    assert card_of(str(path), read_network(path)[1]) == CARD


def test_without_a_card_the_training_says_it(network, tmp_path):
    path = tmp_path / "best.safetensors"
    save_network(path, network, training=SPEC)
    told = card_of(str(path), read_network(path)[1])
    assert (told.name, told.system, told.sources_max, told.beta) == ("best", SYSTEM, 2, 0.25)
    save_network(path, network)
    with pytest.raises(InputError, match="no valid card or training settings"):
        card_of(str(path), read_network(path)[1])


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"card": {"colour": "blue"}}, "is required"),
        ({"training": math.nan}, "a table is needed, not nan"),
        ({"training": {"system": {}, "network": 3}}, "a value has another type"),
    ],
)
def test_a_card_of_another_kind_is_refused(metadata, reason):
    with pytest.raises(InputError, match=rf"no valid card or training settings .*{reason}"):
        card_of("file", {name: json.dumps(value) for name, value in metadata.items()})


def test_a_damaged_number_is_noticed(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_network(path, network)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"the weights are damaged"):
        load_network(path)


def test_the_checksum_is_of_names_shapes_and_numbers():
    one = {"a": torch.arange(4.0), "b": torch.ones(2)}
    assert checksum(one) == checksum(dict(reversed(one.items())))
    for other in (
        {**one, "a": torch.arange(4.0).view(2, 2)},
        {**one, "a": torch.arange(4.0).flip(0)},
        {"c": one["a"], "b": one["b"]},
        {**one, "a": torch.arange(4.0).int()},
    ):
        assert checksum(other) != checksum(one)


def test_names_of_shipped_weights(network, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "WEIGHTS", tmp_path)
    assert weights_path("ideal") == tmp_path / "ideal.safetensors"
    assert weights_path("my/ideal") != weights_path("ideal")
    with pytest.raises(InputError, match=r"ideal.safetensors: cannot be read"):
        load_network("ideal")
    save_network(tmp_path / "ideal.safetensors", network)
    assert load_network("ideal").spec == network.spec


def test_a_card_as_text():
    text = card_text(CARD, checksum="abc", size=2**20)
    for said in ("## small", "0 to 10 dB", "1 to 2", "1,000", "0.5 hours on 2 cores", "0.0123",
                 "No use at sea.", "1.0 MiB, SHA-256 `abc`", "Apache-2.0", "none"):  # fmt: skip
        assert said in text
    errs = CARD.replace(system=SYSTEM.replace(hardware={"gain": 0.1}))
    assert "| hardware errors | gain 0.1 |" in card_text(errs, checksum="", size=0)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("0.stepx", torch.tensor(1.0), "the tensor optimizer/0.stepx does not fit"),
        ("7.step", torch.tensor(1.0), "the tensor optimizer/7.step does not fit"),
        ("x.step", torch.tensor(1.0), "the tensor optimizer/x.step does not fit"),
        ("0.exp_avg", torch.zeros(3), "the tensor optimizer/0.exp_avg does not fit"),
        ("0.step", None, "the tensor optimizer/0.step is missing"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(name, value, sentence):
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer)
    restore_optimizer(optimizer, tensors)
    changed = {**tensors, name: value}
    with pytest.raises(InputError, match=sentence):
        restore_optimizer(optimizer, {key: one for key, one in changed.items() if one is not None})
