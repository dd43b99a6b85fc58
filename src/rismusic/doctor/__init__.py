"""Diagnosis of trainings: checks measure properties of a training and compare them with limits."""
