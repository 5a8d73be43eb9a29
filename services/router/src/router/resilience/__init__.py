"""Wrappers of the transport port that are the transport port, each with one purpose."""
