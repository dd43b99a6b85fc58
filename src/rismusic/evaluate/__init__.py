"""Estimates as rows in degrees and dB."""
