"""Recordings: in memory, and as ``.h5``, ``.npz`` and ``.mat`` files."""

from rismusic.io.reader import RecordingFile, open_recording, read
from rismusic.io.recording import Recording
from rismusic.io.schema import validate
from rismusic.io.writer import RecordingWriter, write

__all__ = ["Recording", "RecordingFile", "RecordingWriter", "open_recording", "read", "validate", "write"]
