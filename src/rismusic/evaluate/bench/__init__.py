"""The benchmark: every method on the same scenes, resumable at any moment and shared between machines."""
