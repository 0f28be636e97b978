"""Implement `quickstart.py`: a made-up language, and tiny models trained on it."""
