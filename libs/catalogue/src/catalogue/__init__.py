"""Reviewed data on providers and models: capabilities, limits, defaults."""
