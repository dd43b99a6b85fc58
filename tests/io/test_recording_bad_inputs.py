from __future__ import annotations

import errno
from pathlib import Path

import pytest
from bad_inputs import CASES, PATH, BadInput
from foreign import SUFFIX, WRITERS, sound

from rismusic.errors import InputError
from rismusic.io import open_recording, read


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_that_names_the_field(case: BadInput, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    with pytest.raises(InputError) as caught:
        read(path)
    sentence = str(caught.value)
    assert caught.value.field == (str(path) if case.field == PATH else case.field), sentence
    assert case.fragment in sentence
    assert str(path) in sentence
    assert "\n" not in sentence
    assert "object at 0x" not in sentence


def test_names_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30


@pytest.mark.parametrize(
    "fault", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")]
)
def test_unreadable_file(fault: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WRITERS["h5"](tmp_path / "a.h5", sound())

    def refuse(self: Path, *args: object, **settings: object) -> None:
        raise fault

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=fault.strerror) as caught:
        read(path)
    assert caught.value.field == str(path)


@pytest.mark.parametrize("container", WRITERS)
def test_damaged_bytes_never_raise_anything_else(container: str, tmp_path: Path) -> None:
    """Bytes cut off and bytes overwritten, all over the file: read, or refused as bad input."""
    path = WRITERS[container](tmp_path / f"a{SUFFIX[container]}", sound())
    content = path.read_bytes()
    refused = 0
    for step in range(60):
        place = len(content) * step // 60
        damaged = content[:place] if step % 2 else content[:place] + b"\xff\xfe\x01" + content[place + 3 :]
        path.write_bytes(damaged)
        try:
            read(path)
        except InputError:
            refused += 1
    assert refused >= 30


def test_values_are_checked_in_the_block_that_holds_them(tmp_path: Path) -> None:
    values = sound()
    values["snapshots"][3, 0, 0] = float("nan")
    with open_recording(WRITERS["h5"](tmp_path / "a.h5", values)) as file:
        assert len(file[0:3]) == 3
        with pytest.raises(InputError, match="scene 3, snapshot 0, antenna 0"):
            file[2:4]


@pytest.mark.parametrize("scenes", [slice(2, 2), slice(0, 4, 2), slice(9, 12)])
def test_slices_without_scenes_or_with_steps_are_refused(scenes: slice, tmp_path: Path) -> None:
    with (
        open_recording(WRITERS["h5"](tmp_path / "a.h5", sound())) as file,
        pytest.raises(InputError, match="scenes"),
    ):
        file[scenes]


def test_closed_file(tmp_path: Path) -> None:
    with open_recording(WRITERS["npz"](tmp_path / "a.npz", sound())) as file:
        pass
    with pytest.raises(InputError, match="closed"):
        file[:]
    with pytest.raises(InputError, match="batch"):
        next(file.batches(0))
