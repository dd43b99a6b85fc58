"""Bad recordings, and what is said of each, as ``CASES``. The documentation prints this table."""

from __future__ import annotations

import bad_files  # noqa: F401  (enters its cases)
import numpy as np
from bad_case import CASES, PATH, BadInput, altered, at
from foreign import K, L, M, N, S, Values, direct, sound

__all__ = ["CASES", "PATH", "BadInput"]

# Format and wavelength.
altered("no format", "format", "no such text in the file", "format")
altered("no format in .mat 7.3", "format", "no such text in the file", "format", container="mat 7.3")
altered(
    "own names in .mat",
    "format",
    "no such text in the file, and no wavelength, elements, snapshots; it has P, Y, lambda",
    *("format", "wavelength", "elements", "snapshots", "channel", "codes"),
    container="mat 5",
    **{"Y": np.ones((2, 3)), "P": np.ones((3, 3)), "lambda": 0.1},
)
altered("another format", "format", 'got "rismusic/2"', container="npz", format="rismusic/2")
altered("format that is a number", "format", "got 1.0", container="mat 5", format=1.0)
altered("no wavelength", "wavelength", "one positive length in metres", "wavelength")
altered("several wavelengths", "wavelength", "shape [2]", wavelength=np.array([0.3, 0.1]))
altered(
    "several wavelengths in .npz", "wavelength", "shape [2]", container="npz", wavelength=np.array([0.3, 0.1])
)
altered("wavelength 0", "wavelength", "got 0", wavelength=0.0)
altered("negative wavelength", "wavelength", "got -0.3", container="npz", wavelength=-0.3)
altered("wavelength not finite", "wavelength", "got nan", container="mat 5", wavelength=np.nan)
altered("wavelength as text", "wavelength", "'0.3 m'", wavelength="0.3 m")
altered("wavelength complex", "wavelength", "(0.3+1j)", container="npz", wavelength=0.3 + 1j)
altered(
    "wavelength in millimetres",
    "wavelength",
    "a wavelength in millimetres would be 0.5 apart",
    wavelength=300.0,
)
altered(
    "frequency for wavelength", "wavelength", "frequency in Hz would be", container="mat 5", wavelength=1e9
)
altered(
    "elements in millimetres",
    "wavelength",
    "500 wavelengths apart (wavelength 0.3, least spacing 150; is one of them in another unit? elements in "
    "millimetres would be 0.5 apart)",
    elements=lambda p: p * 1000,
)
altered("element that is far away", "elements", "extend over 3.33e+14", elements=at(0, value=[1e14, 0, 0]))
altered("element beyond all limits", "elements", "within 1e+15 m", elements=at(0, value=[1e300, 0, 0]))
altered(
    "two elements in one place", "wavelength", "0 wavelengths apart", elements=at(1, value=[-0.15, -0.075, 0])
)

altered(
    "noise in another unit",
    "noise_variance",
    "cannot have the same unit",
    noise_variance=lambda v: v * 1e-300,
)
altered(
    "covariance of the noise in another unit, beside its variance",
    "noise_covariance",
    "cannot have the same unit",
    noise_covariance=np.eye(M) * (1e-60 + 0j),
)

# Fields that are missing.
altered("no elements", "elements", "missing; a recording needs elements", "elements")
altered("no snapshots", "snapshots", "missing; a recording needs snapshots", "snapshots", container="npz")
altered("codes without channel", "channel", "to go with codes", "channel")
altered("channel without codes", "codes", "to go with channel", "codes", container="mat 5")
altered("truth without range", "truth/range", "to go with truth/azimuth", "truth/range")

# Types.
altered("real snapshots", "snapshots", "float32 (real numbers", snapshots=lambda y: y.real)
altered(
    "real snapshots in .mat", "snapshots", "float64 (real", container="mat 5", snapshots=np.ones((S, L, M))
)
altered(
    "real snapshots in .mat 7.3",
    "snapshots",
    "float64 (real",
    container="mat 7.3",
    snapshots=np.ones((S, L, M)),
)
altered(
    "integer snapshots", "snapshots", "got int16", container="npz", snapshots=np.ones((S, L, M), np.int16)
)
altered("text for codes", "codes", "got text", container="npz", codes=np.array([["+", "-"]]))
altered("text for codes in .h5", "codes", "got object", codes=np.array([["+", "-"]], dtype=object))
altered("complex elements", "elements", "got complex128", elements=lambda p: p + 0j)
altered("integer noise variance", "noise_variance", "got int64", noise_variance=np.ones(S, np.int64))

# Shapes.
altered(
    "elements without z",
    "elements",
    "Of a line along x, the columns are x, 0 and 0",
    elements=lambda p: p[:, 0],
)
altered(
    "elements of two coordinates",
    "elements",
    "got shape [6, 2]. In the panel's plane, the third column, z, is 0",
    elements=lambda p: p[:, :2],
)
altered(
    "elements transposed", "elements", "shape [3, 6] (transposed?)", container="mat 5", elements=lambda p: p.T
)
altered("snapshots of one scene", "snapshots", "complex [S, L, M]", snapshots=lambda y: y[0])
altered("no scene", "snapshots", "at least one scene", snapshots=np.empty((0, L, M), np.complex64))
altered(
    "no snapshot",
    "snapshots",
    "at least one snapshot",
    container="npz",
    snapshots=np.empty((S, 0, M), np.complex64),
)
altered(
    "no antenna",
    "snapshots",
    "at least one antenna",
    container="mat 5",
    snapshots=np.empty((S, L, 0), np.complex64),
)
altered("L of codes", "codes", f"shape [{L}, {N}] or [{S}, {L}, {N}]", codes=lambda c: c[:, :2])
altered("N of codes", "codes", f"shape [{L}, {N}] or [{S}, {L}, {N}]", codes=lambda c: c[..., :5])
altered("M of channel", "channel", f"shape [{M}, {N}] or [{S}, {M}, {N}]", channel=lambda h: h[:, :1])
altered(
    "N of channel transposed",
    "channel",
    f"[{N}, {M}] (transposed?)",
    container="mat 5",
    channel=lambda h: h[0].T,
)
altered(
    "channel of each scene transposed",
    "channel",
    f"[{S}, {N}, {M}] (transposed?)",
    channel=lambda h: h.transpose(0, 2, 1),
)
altered("codes transposed", "codes", f"[{N}, {L}] (transposed?)", codes=lambda c: c[0].T)
altered("S of channel", "channel", f"[{S - 1}, {M}, {N}]", channel=lambda h: h[1:])
altered("S of noise variance", "noise_variance", f"shape [{S}]", noise_variance=np.ones(S + 1))
altered("one noise variance for all", "noise_variance", f"shape [{S}]", noise_variance=np.float64(1.0))
altered("direct sampling, M != N", "snapshots", f"M = N = {N}", base=direct, snapshots=lambda y: y[..., :M])
altered("S of truth", "truth/azimuth", f"shape [{S}, {K}]", truth_azimuth=lambda a: a[:-1])
altered("K_max of truth", "truth/range", f"shape [{S}, {K}]", truth_range=lambda r: r[:, :1])
altered("truth of no source", "truth/azimuth", "at least one source", truth_azimuth=np.empty((S, 0)))

# Values.
altered(
    "NaN in snapshots", "snapshots", "scene 2, snapshot 1, antenna 0", snapshots=at(2, 1, 0, value=np.nan)
)
altered("infinity in snapshots", "snapshots", "inf", container="npz", snapshots=at(2, 1, 0, value=np.inf))
altered("NaN in channel", "channel", "scene 1, antenna 0, element 5", channel=at(1, 0, 5, value=np.nan))
altered(
    "NaN in codes of all scenes",
    "codes",
    "in snapshot 2, element 3",
    codes=lambda c: at(2, 3, value=1j * np.nan)(c[0]),
)
altered("NaN in elements", "elements", "a NaN", elements=at(0, 0, value=np.nan))
altered("scene of zeros", "snapshots", "zero power (every value is 0) in scene 3", snapshots=at(3, value=0))
altered(
    "snapshots too large", "snapshots", "a largest modulus of 1e+30 in scene 1", snapshots=at(1, value=1e30)
)
altered(
    "snapshots too small",
    "snapshots",
    "a largest modulus of 1e-30 in scene 1; scale it to 1e-15 to 1e+15",
    snapshots=at(1, value=1e-30),
)
altered(
    "channel of zeros", "channel", "zero power", container="mat 7.3", channel=np.zeros((M, N), np.complex64)
)
altered("codes of zeros", "codes", "zero power (every value is 0) in scene 0", codes=at(0, value=0))
altered("noise variance 0", "noise_variance", "0 in scene 1", noise_variance=at(1, value=0))
altered("negative noise variance", "noise_variance", "-2 in scene 1", noise_variance=at(1, value=-2))
altered(
    "noise variance NaN",
    "noise_variance",
    "nan in scene 1",
    container="mat 5",
    noise_variance=at(1, value=np.nan),
)
altered("range 0", "truth/range", "ranges must be positive, in metres; got 0", truth_range=at(1, 0, value=0))
altered("negative range", "truth/range", "got -3", container="npz", truth_range=at(1, 0, value=-3))
altered(
    "source behind the panel", "truth/azimuth", "in front of the panel", truth_azimuth=at(1, 0, value=2.0)
)
altered("source in the panel's plane", "truth/elevation", "pi/2", truth_elevation=at(1, 0, value=-np.pi / 2))
altered("angles in degrees", "truth/azimuth", "got 30. Is it in degrees?", truth_azimuth=at(1, 0, value=30.0))
altered(
    "NaN in one of three",
    "truth/range",
    "must be in the same places as in azimuth",
    truth_range=at(1, 0, value=np.nan),
)
altered("infinite range", "truth/range", "an infinity", truth_range=at(1, 0, value=np.inf))
altered(
    "power 0 of a source",
    "truth/power",
    "powers must be positive",
    truth_power=np.array([[0.0, np.nan]] + 3 * [[1, 1]]),
)
altered(
    "L of symbols", "truth/symbols", f"shape [{S}, {K}, {L}]", truth_symbols=np.ones((S, K, L + 1), complex)
)
altered(
    "symbols without a source",
    "truth/symbols",
    "scene 0, source 1",
    truth_symbols=np.ones((S, K, L), complex),
)

# The signal model.
F = 2
BANDS = np.array([0.9e9, 1.1e9])


def wideband() -> Values:
    """A sound wideband recording of F = 2 subcarriers."""
    values = sound()
    y, H = values["snapshots"], values["channel"]
    return {
        **values,
        "frequencies": BANDS,
        "snapshots": np.stack([y] * F, axis=1),
        "channel": np.stack([H] * F, axis=1),
    }


PILOTS = np.ones((L, K), np.complex64)
EYE = np.eye(M, dtype=np.complex64)

altered(
    "unknown wave", "wave", "must be one of the texts spherical, uniform, fresnel, paraxial", wave="plane"
)
altered("unknown wave in .npz", "wave", "plane", container="npz", wave="plane")
altered("pattern exponent out of range", "pattern_exponent", "0 to 100; got 1e+09", pattern_exponent=1e9)
altered("negative pattern exponent", "pattern_exponent", "-1", pattern_exponent=-1.0)
altered(
    "unknown symbols",
    "symbols",
    "must be one of the texts independent, correlated, constant, known",
    symbols="pilot",
)
altered("known symbols without pilots", "pilots", "symbols = known and pilots go together", symbols="known")
altered(
    "pilots of constant symbols",
    "symbols",
    "symbols = known and pilots go together",
    symbols="constant",
    pilots=PILOTS,
)
altered("pilots of another length", "pilots", f"[{L}, {K}]", pilots=np.ones((L + 1, K), np.complex64))
altered("pilots of more sources", "pilots", f"[{L}, {K}]", pilots=np.ones((L, K + 1), np.complex64))
altered(
    "pilots transposed", "pilots", "(transposed?)", container="mat 5", pilots=np.ones((K, L), np.complex64)
)
altered("pilots of one source as a vector", "pilots", "pass pilots[:, None]", pilots=PILOTS[:, 0])
altered(
    "wideband snapshots transposed",
    "snapshots",
    "looks like [S, F, M, L]: pass snapshots.transpose(0, 1, 3, 2)",
    base=wideband,
    snapshots=lambda y: y.swapaxes(-1, -2),
)
altered("pilots of zeros", "pilots", "zero power", pilots=0 * PILOTS)
altered("subcarriers without frequencies", "snapshots", "need frequencies", "frequencies", base=wideband)
altered(
    "subcarriers without frequencies in .mat",
    "snapshots",
    "need frequencies",
    "frequencies",
    base=wideband,
    container="mat 5",
)
altered(
    "another number of frequencies",
    "snapshots",
    "F = 3 subcarriers, one for each of frequencies; got 2",
    base=wideband,
    frequencies=np.array([0.9e9, 1e9, 1.1e9]),
)
altered(
    "channel without subcarriers", "channel", f"[{F}, {M}, {N}]", base=wideband, channel=sound()["channel"][0]
)
altered("frequencies in GHz", "frequencies", "Are they in GHz?", base=wideband, frequencies=BANDS / 1e9)
altered(
    "offsets as frequencies",
    "frequencies",
    "Are they offsets?",
    base=wideband,
    frequencies=BANDS - BANDS[0] + 1e5,
)
altered("frequency 0", "frequencies", "must be positive, in hertz", base=wideband, frequencies=0 * BANDS)
altered("frequency NaN", "frequencies", "must be finite", base=wideband, frequencies=np.array([1e9, np.nan]))
altered(
    "noise covariance that is not Hermitian",
    "noise_covariance",
    "it is not Hermitian",
    noise_covariance=np.array([[1, 0.5], [0, 1]], np.complex64),
)
altered(
    "noise covariance that is not positive",
    "noise_covariance",
    "it is not positive definite in scene 2",
    noise_covariance=np.stack([EYE, EYE, -EYE, EYE]),
)
altered(
    "noise covariance that is nearly singular",
    "noise_covariance",
    "its eigenvalues differ by more than 1e+14",
    noise_covariance=np.diag([5e-324, *[1.0] * (M - 1)]).astype(np.complex128),
)
altered(
    "noise covariance of another size", "noise_covariance", f"[{M}, {M}]", noise_covariance=np.eye(M + 1) + 0j
)
altered("times NaN", "times", "nan in scene 1", times=np.array([0, np.nan, 2, 3]))
altered("times of another number of scenes", "times", f"[{S}]", times=np.arange(S + 1.0))
