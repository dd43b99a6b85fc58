"""Recordings: in memory, and as ``.h5``, ``.npz`` and ``.mat`` files."""

from rismusic.recording.data import Recording
from rismusic.recording.reader import RecordingFile, open_recording, read
from rismusic.recording.validate import validate
from rismusic.recording.writer import RecordingWriter, write

__all__ = ["Recording", "RecordingFile", "RecordingWriter", "open_recording", "read", "validate", "write"]
