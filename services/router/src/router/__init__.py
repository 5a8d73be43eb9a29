"""Runs AI operations on providers with the key that the owner brought."""
