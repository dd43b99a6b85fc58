"""What is in a recording file, and what looks wrong with it."""

from rismusic.checking.report import FINDINGS, Check, Finding, check

__all__ = ["FINDINGS", "Check", "Finding", "check"]
