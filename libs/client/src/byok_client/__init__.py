"""The typed async client that a platform service imports."""
