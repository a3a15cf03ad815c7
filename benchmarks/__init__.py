"""Measurements, not shipped and not run by the tests: each prints a table, and JSON with ``--json``."""
