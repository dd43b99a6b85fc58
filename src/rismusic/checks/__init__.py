"""Checks of recording files before they are used: facts, implausible values and wrong conventions."""

from rismusic.checks.recording import CHECKS, CheckFinding, CheckReport, check

__all__ = ["CHECKS", "CheckFinding", "CheckReport", "check"]
