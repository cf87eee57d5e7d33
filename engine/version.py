"""The version of pfdiff, in the one place that code reads; a test compares it with pyproject.toml."""

__version__ = "0.1.0"
