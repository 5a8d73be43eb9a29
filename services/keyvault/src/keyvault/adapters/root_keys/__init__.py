"""Providers of the root key."""
