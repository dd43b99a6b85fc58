"""Recordings: in memory, and as ``.h5``, ``.npz`` and ``.mat`` files."""

from rismusic.io.reader import RecordingFile, load_sample, open_recording, read
from rismusic.io.recording import Recording, check_recording, to_room_frame, validate
from rismusic.io.schema import check_pose
from rismusic.io.writer import RecordingWriter, write

__all__ = [
    "Recording",
    "RecordingFile",
    "RecordingWriter",
    "check_pose",
    "check_recording",
    "load_sample",
    "open_recording",
    "read",
    "to_room_frame",
    "validate",
    "write",
]
