"""Judges a run, compares two, and searches for the highest rate within the SLO."""
