"""Training and inference share one implementation of the spectral search, of MVDR and of the SBL update."""

from __future__ import annotations

import torch

from rismusic import hybrid
from rismusic.covariance import Covariance
from rismusic.estimation import classical, sbl, spectra
from rismusic.estimation.spectra import mvdr
from rismusic.nn import network, statistics, validation
from rismusic.nn.losses import mvdr_value


def test_validation_runs_the_search_of_inference():
    for module in (validation, hybrid, classical):
        assert module.rap_music_sources is spectra.rap_music_sources


def test_network_and_estimator_share_the_sbl_update():
    assert network.sbl_update is statistics.sbl_update is sbl.sbl_update
    power, matched, expected = torch.tensor([[[2.0, 3.0]], [[6.0, 1.0]], [[3.0, 0.0]]])
    assert sbl.sbl_update(power, matched, expected).tolist() == [[4.0, 0.0]]


def test_loss_and_spectrum_have_the_same_mvdr(generator):
    F = torch.complex(*torch.randn(2, 3, 8, 4, generator=generator, dtype=torch.float64))
    a = torch.complex(*torch.randn(2, 3, 8, 5, generator=generator, dtype=torch.float64))
    a = a / torch.linalg.vector_norm(a, dim=-2, keepdim=True)
    R = Covariance(F, torch.full((3,), 0.1, dtype=torch.float64))
    spectrum = mvdr(R)
    explained = (spectrum.vectors.mH @ a).abs().square().sum(-2)
    torch.testing.assert_close(mvdr_value(R, a), spectrum.value(explained))
