"""Fixtures of the trainer's tests."""

import pytest

# Importing it registers an objective, which doctest's collection would do for every test of the process.
collect_ignore = ["two_ahead.py"]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Hide data sets cached by another test or run, and let no test wait for a network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
