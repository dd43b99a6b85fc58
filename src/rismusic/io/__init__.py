"""Recordings: in memory, and as ``.h5``, ``.npz`` and ``.mat`` files."""

from rismusic.io.pose import check_pose, to_room_frame
from rismusic.io.reader import RecordingFile, load_sample, open_recording, read
from rismusic.io.recording import Recording
from rismusic.io.validation import validate
from rismusic.io.writer import RecordingWriter, write

__all__ = [
    "Recording",
    "RecordingFile",
    "RecordingWriter",
    "check_pose",
    "load_sample",
    "open_recording",
    "read",
    "to_room_frame",
    "validate",
    "write",
]
