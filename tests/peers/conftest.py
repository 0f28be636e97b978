"""Exclude files that run only beside the peers' own tests."""

collect_ignore = ["adapter_tests.py", "common_tests.py"]
