"""Recordings: in memory, and as ``.h5``, ``.npz`` and ``.mat`` files."""

from rismusic.recording.data import Recording

__all__ = ["Recording"]
