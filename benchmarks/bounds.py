"""Speed of the Cramer-Rao bound: ``python benchmarks/bounds.py [--json FILE]``."""

from __future__ import annotations

import time

import numpy as np

import plain_numpy
from measure import rate, report
from rismusic.crb import recording_crb
from rismusic.simulation.simulator import simulate

SCENES = 1000


def main() -> None:
    recording = simulate(scenes=SCENES, sources=5, snr_db=10.0)
    recording_crb(recording[:64])
    seconds = {}
    for kind in ("conditional", "unconditional"):
        start = time.perf_counter()
        bound = recording_crb(recording, kind)
        seconds[kind] = time.perf_counter() - start
        assert bound.std.isfinite().all()
    assert recording.truth is not None
    assert recording.noise_variance is not None
    p = recording.elements.numpy()
    truth = [getattr(recording.truth, name).double().numpy() for name in ("azimuth", "elevation", "range")]
    complexes = (recording.channel, recording.codes, recording.truth.symbols)
    H, codes, s = (value.numpy().astype(complex) for value in complexes if value is not None)
    variance = recording.noise_variance.double().numpy()
    next_scene = iter(range(SCENES))

    def one() -> int:
        i = next(next_scene)
        positions = np.stack([value[i] for value in truth], axis=1)
        plain_numpy.conditional_crb(p, H[i], codes[i], positions, s[i], variance[i])
        return 1

    slow = rate(one, seconds=0.5)
    report(
        "Cramer-Rao bound, default system, K = 5, float64",
        {
            "seconds for 1,000 scenes, conditional": seconds["conditional"],
            "seconds for 1,000 scenes, unconditional": seconds["unconditional"],
            "conditional: ratio to plain NumPy, scene by scene": SCENES / seconds["conditional"] / slow,
        },
    )


if __name__ == "__main__":
    main()
