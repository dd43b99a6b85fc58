"""A spectrum of your own: MUSIC with eigenvectors weighted by their eigenvalues.

Peak search, Newton refinement, maximum likelihood and the number of sources come from rismusic. Run it as a
script, or name the module: ``rismusic locate FILE --plugins own_spectrum --method weighted_music``.
"""

import torch

import rismusic


def weighted_music(covariance, n_sources):
    """MUSIC on the leading eigenvectors, each weighted by its share of signal 1 - loading / eigenvalue."""
    values, vectors = covariance.eigen(int(n_sources.max()))
    weight = (1 - covariance.loading[:, None] / values).clamp_min(0)
    inside = torch.arange(values.shape[1], device=values.device) < n_sources[:, None]
    return rismusic.Spectrum.from_subspace(vectors * (weight.sqrt() * inside)[:, None, :])


rismusic.register_spectrum("weighted_music", weighted_music)

if __name__ == "__main__":
    recording = rismusic.simulate(scenes=2, sources=2, snr_db=15.0)
    print(rismusic.locate(recording, method="weighted_music", n_sources=2))
    print(rismusic.spectrum(recording, method="weighted_music", n_sources=2).peaks(2).azimuth.rad2deg())
