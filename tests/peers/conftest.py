"""Leaves out what runs beside the peers' own tests only."""

collect_ignore = ["adapter_tests.py", "common_tests.py"]
