"""The version of the library, read by setup.cfg."""

__version__ = "0.1.0"
