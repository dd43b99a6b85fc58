"""Recordings from arrays, their scenes, joining them, the panel's pose, and the samples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import wideband
from foreign import WRITERS, K, L, M, N, S, direct, sound
from test_recording_files import SUFFIX, assert_equal, kept

from rismusic.errors import InputError
from rismusic.io import Recording, check_pose, load_sample, open_recording, read, to_room_frame
from rismusic.io.recording import tensors
from rismusic.sources import Sources


def arrays(values=None):
    values = sound() if values is None else values
    keys = ("snapshots", "elements", "wavelength", "channel", "codes")
    return {key: values[key] for key in keys if key in values}


def full() -> Recording:
    values = sound()
    truth = Sources(**{k: torch.from_numpy(values[f"truth/{k}"]) for k in ("azimuth", "elevation", "range")})
    noise = values["noise_variance"]
    return Recording.from_arrays(**arrays(values), noise_variance=noise, truth=truth, pose=turned())


def turned():
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    pose[:3, 3] = [1, 2, 3]
    return pose


def of_one_scene(values):
    """The second scene alone, without the axis S."""
    return {
        name: values[name][1] if name in ("snapshots", "channel", "codes") else values[name]
        for name in values
    }


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_numpy_and_torch(convert, dtype):
    values = arrays(sound(dtype=dtype))
    built = Recording.from_arrays(**{k: v if k == "wavelength" else convert(v) for k, v in values.items()})
    assert built.elements.dtype == torch.float64
    for name in ("snapshots", "channel", "codes"):
        np.testing.assert_array_equal(getattr(built, name).numpy(), values[name])


def test_long_doubles():
    values = arrays()
    wide = {**values, "snapshots": values["snapshots"].astype(np.clongdouble)}
    built = Recording.from_arrays(**wide | {"elements": values["elements"].astype(np.longdouble)})
    assert built.snapshots.dtype == torch.complex128
    np.testing.assert_array_equal(built.snapshots.numpy(), values["snapshots"])


@pytest.mark.parametrize("wide", ["snapshots", "channel", "codes"])
def test_mixed_precision_becomes_the_widest(wide):
    values = arrays()
    built = Recording.from_arrays(**{**values, wide: values[wide].astype(np.complex128)})
    assert built.snapshots.dtype == built.channel.dtype == built.codes.dtype == torch.complex128
    np.testing.assert_array_equal(built.channel.numpy(), values["channel"])
    built.link.matmul(torch.ones(N, 1, dtype=built.snapshots.dtype))


def test_one_scene_without_the_leading_axis():
    values = arrays()
    one = Recording.from_arrays(
        values["snapshots"][1],
        values["elements"],
        0.3,
        values["channel"][1],
        values["codes"][1],
        noise_variance=0.5,
        truth=Sources.from_degrees([10, 20], 0, 2),
    )
    assert one.snapshots.shape == (1, L, M)
    assert one.noise_variance.tolist() == [0.5]
    assert one.truth.azimuth.shape == (1, 2)
    array = arrays(direct())
    assert Recording.from_arrays(array["snapshots"][0], array["elements"], 0.3).snapshots.shape == (1, L, N)


@pytest.mark.parametrize("container", sorted(WRITERS))
@pytest.mark.parametrize("make", [sound, direct, wideband])
def test_files_of_one_scene_without_the_leading_axis(make, container, tmp_path):
    values = make()
    values = {
        name: value for name, value in values.items() if name != "noise_variance" and "truth" not in name
    }
    some = of_one_scene(values)
    if make is wideband and container.startswith("mat"):
        some["snapshots"] = some["snapshots"][None]
    path = WRITERS[container](tmp_path / f"a{SUFFIX[container]}", some)
    found = read(path)
    assert found.snapshots.shape == (1, *values["snapshots"].shape[1:])
    np.testing.assert_array_equal(found.snapshots[0].numpy(), values["snapshots"][1])


def test_real_pilots(tmp_path):
    signs = np.where(np.arange(L * 2).reshape(L, 2) % 3, 1.0, -1.0)
    built = Recording.from_arrays(**arrays(), pilots=signs)
    assert torch.equal(built.pilots.real, torch.from_numpy(signs))
    found = read(WRITERS["h5"](tmp_path / "a.h5", {**sound(), "symbols": "known", "pilots": signs}))
    np.testing.assert_array_equal(found.pilots.numpy(), signs)


def square_array(side=8):
    x, y = np.meshgrid(np.arange(side) * 0.15, np.arange(side) * 0.15)
    return np.stack((x.ravel(), y.ravel(), 0 * x.ravel()), -1)


def ones(*shape):
    return np.ones(shape, np.complex64)


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"snapshots": ones(M, L)}, "snapshots", "looks like M x L, one scene: pass snapshots.T "),
        ({"snapshots": ones(M, L)}, "snapshots", "also conjugates, pass snapshots.conj().T"),
        (
            {"snapshots": ones(M, L, S)},
            "snapshots",
            "looks like [M, L, S]: pass snapshots.transpose(2, 1, 0)",
        ),
        (
            {"snapshots": ones(S, M, L)},
            "snapshots",
            "looks like [S, M, L]: pass snapshots.transpose(0, 2, 1)",
        ),
        ({"snapshots": ones(L)}, "snapshots", f"must be complex [S, L, M]; got shape [{L}]. One scene"),
        ({"snapshots": np.ones((S, L, M))}, "snapshots", "must hold complex numbers; got float64"),
        ({"elements": np.zeros((3, N))}, "elements", "Pass the transpose, elements.T"),
        ({"codes": None}, "codes", "channel"),
        ({"channel": ones(N, M)}, "channel", "It looks transposed: pass channel.T"),
        ({"codes": ones(S, N, L)}, "codes", "It looks transposed: pass codes.swapaxes(-1, -2)"),
        ({"channel": ones(M, N + 1)}, "codes", "as many elements"),
        ({"codes": np.zeros((L, N))}, "codes", "If they are phases in radians, pass exp(1j * phase)"),
        ({"channel": ones(M)}, "channel", "For a single antenna, pass channel.reshape(1, -1)"),
        ({"pilots": ones(2, L)}, "pilots", f"must have shape [{L}, 2]"),
        ({"noise_variance": np.ones(S + 1)}, "noise_variance", f"[{S}]"),
        ({"noise_variance": -1.0}, "noise_variance", "-1 in scene 0"),
        ({"pose": np.eye(3)}, "pose", "[4, 4]"),
        ({"wavelength": 0}, "wavelength", "must be positive"),
        ({"snapshots": ones(S, L, M) * np.nan}, "snapshots", "scene 0, snapshot 0, antenna 0"),
    ],
)
def test_bad_arrays(change, field, sentence, untyped):
    with pytest.raises(InputError) as caught:
        Recording.from_arrays(**{**arrays(), **change})
    assert sentence in str(caught.value)
    assert caught.value.field == field


def test_matlab_matrix_of_a_direct_array():
    sentence = (
        "snapshots: shape [64, 200] does not fit [L, M] with M = N = 64 of a directly sampled array. It "
        "looks like M x L, one scene: pass snapshots.T"
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        Recording.from_arrays(ones(64, 200), square_array(), 0.3)
    assert len(Recording.from_arrays(ones(64, 200).T, square_array(), 0.3)) == 1


INDICES = [
    (0, [0]),
    (-1, [S - 1]),
    (np.int64(2), [2]),
    (torch.tensor(1), [1]),
    (slice(1, 3), [1, 2]),
    (slice(None, None, -1), [3, 2, 1, 0]),
    ([2, -1], [2, 3]),
    (np.array([3, 0]), [3, 0]),
    (torch.tensor([-4, 1]), [0, 1]),
    ([True, False, False, True], [0, 3]),
    (np.array([False, True, True, False]), [1, 2]),
    (torch.tensor([False, False, True, False]), [2]),
    ([], []),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("index", "numbers"), INDICES)
def test_scenes_by_any_index(index, numbers, shared):
    values = sound()
    if shared:
        values["channel"], values["codes"] = values["channel"][0], values["codes"][0]
    recording = Recording.from_arrays(**arrays(values), noise_variance=values["noise_variance"])
    part = recording[index]
    assert part.snapshots.shape == (len(numbers), L, M)
    np.testing.assert_array_equal(part.snapshots.numpy(), values["snapshots"][numbers])
    np.testing.assert_array_equal(part.noise_variance.numpy(), values["noise_variance"][numbers])
    for name in ("channel", "codes"):
        expected = values[name] if shared else values[name][numbers]
        np.testing.assert_array_equal(getattr(part, name).numpy(), expected)


def test_an_integer_keeps_the_scene_axis_of_every_field():
    recording = full()
    for name, value in tensors(recording[1]).items():
        whole = tensors(recording)[name]
        expected = whole if name in ("elements", "pose") else whole[1:2]
        np.testing.assert_array_equal(value.numpy(), expected.numpy(), err_msg=name)


def test_iteration_yields_scenes():
    scenes = list(full())
    assert [len(scene) for scene in scenes] == [1] * S
    assert_equal(Recording.concatenate(scenes), full())


@pytest.mark.parametrize("index", [S, -S - 1, [0, S], torch.tensor([-S - 1]), [True, False], [[0, 1]]])
def test_index_out_of_range(index):
    with pytest.raises(IndexError):
        full()[index]


@pytest.mark.parametrize("index", [1.0, [0.5], "a", True, None])
def test_index_of_another_type(index):
    with pytest.raises((TypeError, IndexError)):
        full()[index]


def test_concatenate():
    whole = full()
    assert_equal(Recording.concatenate([whole[:1], whole[1:]]), whole)
    values = sound()
    values["channel"], values["codes"] = values["channel"][0], values["codes"][0]
    shared = Recording.from_arrays(**arrays(values))
    assert Recording.concatenate([shared, shared]).channel.shape == (M, N), "shared stays shared"
    mixed = Recording.concatenate([shared, Recording.from_arrays(**arrays())])
    assert mixed.channel.shape == (2 * S, M, N)
    assert torch.equal(mixed.channel[S - 1], shared.channel)
    assert Recording.concatenate([Recording.from_arrays(**arrays()), whole_without_pose()]).truth is None


def whole_without_pose():
    recording = full()
    return Recording(**{**{k: getattr(recording, k) for k in recording.__dataclass_fields__}, "pose": None})


def test_concatenate_pads_truth():
    one = Recording.from_arrays(**arrays(), truth=Sources.from_degrees([10], 0, 2))
    joined = Recording.concatenate([one, whole_without_pose()])
    assert joined.truth.active[:S].tolist() == [[True, False]] * S
    assert joined.truth.azimuth.shape == (2 * S, K)
    assert joined.noise_variance is None, "one of them does not have it"


def test_what_cannot_be_joined():
    whole = full()
    array = Recording.from_arrays(**arrays(direct()))
    for others, sentence in (
        ([], "recordings: needs at least one"),
        ([whole, whole_without_pose()], r"recordings\[1\].pose: must equal pose"),
        ([whole_without_pose(), array], r"recordings\[1\].snapshots: must have \[L, M\]"),
    ):
        with pytest.raises(InputError, match=sentence):
            Recording.concatenate(others)


def test_repr():
    text = "Recording(4 scenes, L=3, M=2, N=6, wavelength 0.3 m; channel per scene, codes per scene, "
    assert repr(full()) == text + "noise_variance, truth, pose)"
    array = Recording.from_arrays(**arrays(direct()))
    assert str(array[0]) == "Recording(1 scene, L=3, M=6, N=6, wavelength 0.3 m; direct sampling)"


@pytest.mark.parametrize("container", WRITERS)
def test_pose_in_files(container, tmp_path):
    assert_equal(read(kept(tmp_path, full(), container)), full())


def altered_pose(row, column, value):
    pose = turned()
    pose[row, column] = value
    return pose


@pytest.mark.parametrize(
    ("pose", "sentence"),
    [
        (np.eye(3), r"pose: must be a homogeneous transform of shape \[4, 4\]; got \[3, 3\]"),
        (altered_pose(3, 0, 1.0), "pose: the last row must be 0 0 0 1; got 1 0 0 1"),
        (turned().T, "The last column is 0 0 0 1: pass the transpose"),
        (altered_pose(0, 0, 0.1), "must be a rotation .orthonormal columns"),
        (np.diag([1.0, 1, -1, 1]), "its determinant is -1, a reflection"),
        (altered_pose(0, 3, np.nan), "pose: must be finite"),
    ],
)
def test_bad_poses(pose, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        check_pose(torch.from_numpy(np.ascontiguousarray(pose)))
    if pose.shape == (4, 4):
        with pytest.raises(InputError, match="pose: "):
            read(WRITERS["h5"](tmp_path / "a.h5", {**sound(), "pose": np.ascontiguousarray(pose)}))


def test_to_room_frame():
    """The panel's normal (z) is the room's x here; its centre is at (1, 2, 3) m."""
    points = to_room_frame(turned(), [[0, 0, 2.0], [1.0, 0, 0], [0, 1.0, 0]])
    assert points.tolist() == [[3, 2, 3], [1, 2, 2], [1, 3, 3]]
    assert to_room_frame(turned(), [float("nan")] * 3).isnan().all()
    with pytest.raises(InputError, match="position: must have shape"):
        to_room_frame(turned(), [1.0, 2.0])


def test_samples_are_read_by_name(samples: Path):
    assert len(load_sample("ideal_10dB")) == 24
    assert_equal(load_sample("direct_10dB"), read(samples / "direct_10dB.h5"))
    with open_recording("sample:one_link_20dB") as file:
        assert len(file) == 10


def test_all_samples_load():
    for name in ("ideal_0dB", "physical_10dB", "physical_direct_10dB", "impaired_10dB", "raytraced_20dB"):
        assert len(load_sample(name)) in (12, 24)


@pytest.mark.parametrize("name", ["", "ideal", "../samples/ideal_10dB"])
def test_unknown_samples(name):
    with pytest.raises(
        InputError, match=r"sample: unknown name .* Samples: direct_10dB, ideal_0dB, ideal_10dB"
    ):
        load_sample(name)
    with pytest.raises(InputError, match="sample: unknown name"):
        open_recording(f"sample:{name}")


def test_pilots_of_no_source_are_refused():
    with pytest.raises(InputError, match=r"pilots: needs at least one source; got shape \[5, 0\]"):
        Recording.from_arrays(
            elements=np.eye(3), wavelength=0.3, snapshots=ones(1, 5, 3), symbols="known", pilots=ones(5, 0)
        )
