"""Public functions answer a wrong argument with a sentence, not with another result or a Python error."""

from __future__ import annotations

import pytest

import rismusic
from rismusic import InputError


@pytest.fixture(scope="module")
def recording():
    system = {"panel": {"rows": 4, "columns": 4}, "channel": {"antennas": 4}, "codebook": {"snapshots": 4}}
    return rismusic.simulate(scenes=1, sources=1, snr_db=20.0, **system)


CALLS = {
    "kind of a bound": (
        lambda r: rismusic.recording_crb(r, "Conditional"),
        "kind: must be one of cond.* got 'Cond",
    ),
    "kind in a room": (lambda r: rismusic.room_crb([r], "best"), "kind: must be one of"),
    "kind in a table": (
        lambda _: rismusic.bound_table(sources=[1], scenes=1, kind="best"),
        "kind: must be one",
    ),
    "kind in a plan": (lambda _: rismusic.plan(1.0, 3.0, kind="best"), "kind: must be one of"),
    "criterion": (lambda r: rismusic.log_likelihood(r, r.truth, criterion="ml"), "criterion: must be one of"),
    "range of a slice": (
        lambda r: rismusic.spectrum(r, n_sources=1).plot(range_m=-3.0),
        "range_m: must be pos",
    ),
    "snapshots for a number": (
        lambda r: rismusic.mdl(r.snapshots),
        "recording: must be a rismusic.Recording",
    ),
    "snapshots to check": (lambda r: rismusic.check(r.snapshots.numpy()), "from_arrays"),
    "snapshots to calibrate": (lambda r: rismusic.calibrate_panel(r.snapshots), "got Tensor"),
    "recording to read": (lambda r: rismusic.read(r), "path: must be the name of a file; got Recording"),
    "file name last": (lambda r: rismusic.write(r, "a.h5"), r"it comes first: write\(path, recording\)"),
    "file name twice": (lambda _: rismusic.write("a.h5", "b.h5"), "recording: must be a rismusic.Recording"),
    "elements to a locator": (
        lambda r: rismusic.Locator(r.elements),
        r"panel: must be Panel\(elements, wave",
    ),
    "recording to match": (lambda r: rismusic.match(r.truth, r), "found: must be an estimate"),
    "sources to score": (lambda r: rismusic.score(r.truth), "matched: must be match"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_named(name, recording, untyped):
    call, sentence = CALLS[name]
    with pytest.raises(InputError, match=sentence):
        call(recording)
