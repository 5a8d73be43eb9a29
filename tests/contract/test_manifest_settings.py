"""What the manifests put into a container's environment is what the service in it takes, name by name."""

import subprocess
import sys
from typing import Any

import pytest

from deploy.kubernetes.policies import config_of, workloads
from deploy.kubernetes.render import Resource, render

# What an operator would put into the Secrets that variables come from.
SECRET_VALUES = {
    "dsn": "postgresql://byok@postgres.example:5432/byok",
    "url": "rediss://redis.example:6379/0",
}


def environment(resources: list[Resource], container: dict[str, Any]) -> dict[str, str]:
    """Return the variables that a container starts with."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= config_of(resources, source["configMapRef"]["name"])
    for variable in container.get("env", []):
        variables[variable["name"]] = SECRET_VALUES[variable["valueFrom"]["secretKeyRef"]["key"]]
    return variables


def check_config(service: str, variables: dict[str, str], command: str) -> subprocess.CompletedProcess[str]:
    """Let a service judge its settings, with these variables and no others."""
    return subprocess.run(  # noqa: S603 - the suite's own service.
        [sys.executable, "-m", service, command, "--check-config"],
        env=variables,
        check=False,
        capture_output=True,
        text=True,
    )


RESOURCES = render()
CONTAINERS = [
    pytest.param(container["image"].removeprefix("byok-").partition(":")[0], container, id=name)
    for name, pod in workloads(RESOURCES)
    for container in pod["containers"]
]


@pytest.mark.parametrize(("service", "container"), CONTAINERS)
def test_a_container_is_configured_as_its_service_wants_it(service: str, container: dict[str, Any]) -> None:
    """Every variable is a setting, and no setting that must be given is missing."""
    outcome = check_config(service, environment(RESOURCES, container), container["args"][0])
    assert (outcome.returncode, outcome.stdout) == (0, "settings: OK\n"), outcome.stderr


@pytest.mark.parametrize(("service", "container"), CONTAINERS)
def test_a_misspelt_variable_is_found_out(service: str, container: dict[str, Any]) -> None:
    """A variable that no setting has ends the service, with its name."""
    misspelt = f"BYOK_{service.upper()}_SERVRE__LISTEN"
    outcome = check_config(service, environment(RESOURCES, container) | {misspelt: "x"}, container["args"][0])
    assert outcome.returncode == 2
    assert misspelt in outcome.stderr
