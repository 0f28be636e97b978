"""Fixtures of the trainer's tests."""

# Importing it registers an objective, which doctest's collection would do for every test of the process.
collect_ignore = ["two_ahead.py"]
