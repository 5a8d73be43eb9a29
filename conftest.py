"""Fixtures of the whole suite: embedded servers, the throw-away CA, the fake clock."""

pytest_plugins = ["testkit.pytest_plugin"]
