"""An estimator of your own: the K highest separated points of the Bartlett spectrum, nothing more.

It works in ``locate``, ``bench --methods``, reports and the conformance suite. Run it as a script, or name
the module: ``rismusic bench --locate.plugins own_estimator --methods grid_peaks omp``.
"""

import torch

import rismusic


def grid_peaks(spec):
    """Factory: takes the settings and returns the estimator."""

    def estimate(recording, n_sources):
        # With "auto", the number of sources is left to MDL on the received snapshots.
        if isinstance(n_sources, str):
            n_sources = rismusic.mdl(recording).clamp_max(spec.sources_max)
        count = torch.as_tensor(n_sources, device=recording.snapshots.device).expand(len(recording))
        most = max(1, int(count.max()))
        spectrum = rismusic.spectrum(recording, method="bartlett", spec=spec)
        found = spectrum.peaks(most)
        absent = torch.arange(most, device=count.device) >= count[:, None]
        found = found.each(lambda value: value.masked_fill(absent, torch.nan))
        return rismusic.Estimate.from_sources(recording, found, spec=spec)

    return estimate


rismusic.register_estimator("grid_peaks", grid_peaks)

if __name__ == "__main__":
    recording = rismusic.simulate(scenes=2, sources=2, snr_db=15.0)
    print(rismusic.locate(recording, method="grid_peaks", n_sources=2))
