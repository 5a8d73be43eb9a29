"""Fixtures of the whole suite: embedded servers, the throw-away CA, the fake clock."""

from hypothesis import settings

pytest_plugins = ["testkit.pytest_plugin"]

# How long an example takes says only how busy the machine is; the whole test has its time-out.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
