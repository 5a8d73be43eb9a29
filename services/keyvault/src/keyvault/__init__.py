"""Custody of provider keys: the only service that can reach the KEK."""
