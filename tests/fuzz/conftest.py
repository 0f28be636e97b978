"""What pytest leaves alone: it would look for examples in docstrings, and the script imports what few have."""

collect_ignore = ["coverage_guided.py"]
