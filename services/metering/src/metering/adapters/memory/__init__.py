"""Admission in memory: what the scripts do, said again in Python, for tests that need no Redis.

One behaviour suite runs against both; where they differ, one of them is wrong. Nothing is lost here, so there is no
rebuild and no identity to check: only generations.
"""
