"""The Kubernetes base keeps the design's promises, and each check of a promise can fail."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.kubernetes import policies
from deploy.kubernetes.manifests import schema_faults
from deploy.kubernetes.render import RenderError, Resource, render

Spoil = Callable[[dict[tuple[str, str], Resource]], None]


@pytest.fixture
def resources() -> list[Resource]:
    """The base, rendered."""
    return copy.deepcopy(render())


def pod(by_name: dict[tuple[str, str], Resource], name: str, kind: str = "Deployment") -> dict[str, Any]:
    """Return the pod spec of a workload, to be spoilt."""
    found: dict[str, Any] = by_name[kind, name]["spec"]["template"]["spec"]
    return found


def test_the_base_meets_the_schemas_of_the_oldest_and_newest_kubernetes(resources: list[Resource]) -> None:
    """Every resource is valid, unknown fields included."""
    assert schema_faults(resources) == []


@pytest.mark.parametrize("check", policies.CHECKS, ids=lambda check: check.__name__)
def test_the_base_keeps_the_promise(check: policies.Check, resources: list[Resource]) -> None:
    """No check finds a breach in the base."""
    assert check(resources) == []


def mount_root_key_in_router(by_name: dict[tuple[str, str], Resource]) -> None:
    """Give Router the root key."""
    pod(by_name, "router")["volumes"].append({"name": "stolen", "secret": {"secretName": "keyvault-root-key"}})


def project_answer_key_into_metering(by_name: dict[tuple[str, str], Resource]) -> None:
    """Give Metering the answer key, by a projected volume."""
    sources = [{"secret": {"name": "router-answer-key"}}]
    pod(by_name, "metering")["volumes"].append({"name": "stolen", "projected": {"sources": sources}})


def root_key_as_variable(by_name: dict[tuple[str, str], Resource]) -> None:
    """Hand the root key to the migration as an environment variable."""
    container = pod(by_name, "keyvault-migrate", "Job")["containers"][0]
    container["envFrom"].append({"secretRef": {"name": "keyvault-root-key"}})


def forget_root_key(by_name: dict[tuple[str, str], Resource]) -> None:
    """Leave KeyVault without its root key."""
    del pod(by_name, "keyvault")["volumes"][1]


def run_under_default_account(by_name: dict[tuple[str, str], Resource]) -> None:
    """Forget which account a workload runs under."""
    del pod(by_name, "router")["serviceAccountName"]


def share_an_account(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let migrations run under the service's account."""
    pod(by_name, "keyvault-migrate", "Job")["serviceAccountName"] = "keyvault"


def mount_a_token(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let a pod talk to the Kubernetes API."""
    pod(by_name, "metering")["automountServiceAccountToken"] = True


def run_as_root(by_name: dict[tuple[str, str], Resource]) -> None:
    """Run as user 0."""
    pod(by_name, "keyvault")["securityContext"]["runAsUser"] = 0


def add_a_lax_container(by_name: dict[tuple[str, str], Resource]) -> None:
    """Add a container that says nothing of its security."""
    pod(by_name, "router")["initContainers"] = [{"name": "lax", "image": "lax:1"}]


def mount_the_host(by_name: dict[tuple[str, str], Resource]) -> None:
    """Mount the node's disk."""
    pod(by_name, "metering")["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


def add_service_links(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let Kubernetes make variables of Services."""
    del pod(by_name, "router")["enableServiceLinks"]


def relax_a_namespace(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let a namespace run anything."""
    by_name["Namespace", "byok-router"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


def allow_by_default(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let everything out where everything should be denied."""
    by_name["NetworkPolicy", "default-deny"]["spec"]["egress"] = [{}]


def open_the_internet_to_keyvault(by_name: dict[tuple[str, str], Resource]) -> None:
    """Give KeyVault what Routers have."""
    internet = by_name["NetworkPolicy", "router"]["spec"]["egress"][-1]
    by_name["NetworkPolicy", "keyvault"]["spec"]["egress"].append(internet)


def open_every_port_to_router(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let Routers out on any port."""
    del by_name["NetworkPolicy", "router"]["spec"]["egress"][-1]["ports"]


def open_metadata_endpoint_to_router(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let Routers reach link-local addresses, where clouds keep credentials."""
    by_name["NetworkPolicy", "router"]["spec"]["egress"][-1]["to"][0]["ipBlock"]["except"].remove("169.254.0.0/16")


def open_any_database_port(by_name: dict[tuple[str, str], Resource]) -> None:
    """Let KeyVault reach every port of the databases' range."""
    del by_name["NetworkPolicy", "keyvault"]["spec"]["egress"][2]["ports"]


def let_keyvault_call_metering(by_name: dict[tuple[str, str], Resource]) -> None:
    """Close the circle that the design leaves open."""
    arrow = by_name["NetworkPolicy", "router"]["spec"]["egress"][3]
    by_name["NetworkPolicy", "keyvault"]["spec"]["egress"].append(arrow)


def let_everyone_into_keyvault(by_name: dict[tuple[str, str], Resource]) -> None:
    """Name nobody, and so admit everybody."""
    del by_name["NetworkPolicy", "keyvault"]["spec"]["ingress"][0]["from"]


def let_a_namespace_into_keyvault(by_name: dict[tuple[str, str], Resource]) -> None:
    """Admit every pod that stands beside Routers."""
    del by_name["NetworkPolicy", "keyvault"]["spec"]["ingress"][0]["from"][0]["podSelector"]


def move_the_port(by_name: dict[tuple[str, str], Resource]) -> None:
    """Listen where nobody calls."""
    by_name["ConfigMap", "metering"]["data"]["BYOK_METERING_SERVER__LISTEN"] = "0.0.0.0:7000"


def balance_by_connection(by_name: dict[tuple[str, str], Resource]) -> None:
    """Put a virtual address before the pods."""
    del by_name["Service", "router"]["spec"]["clusterIP"]


def kill_before_drained(by_name: dict[tuple[str, str], Resource]) -> None:
    """Give a pod less time than it needs."""
    pod(by_name, "router")["terminationGracePeriodSeconds"] = 30


@pytest.mark.parametrize(
    ("check", "spoil", "breach"),
    [
        (policies.secrets_stay_with_their_holder, mount_root_key_in_router, "router mounts keyvault-root-key"),
        (
            policies.secrets_stay_with_their_holder,
            project_answer_key_into_metering,
            "metering mounts router-answer-key",
        ),
        (policies.secrets_stay_with_their_holder, root_key_as_variable, "takes keyvault-root-key from the environment"),
        (policies.secrets_stay_with_their_holder, forget_root_key, "keyvault does not mount keyvault-root-key"),
        (policies.accounts_are_own_and_tokenless, run_under_default_account, "router runs under default"),
        (policies.accounts_are_own_and_tokenless, share_an_account, "share the account keyvault"),
        (policies.accounts_are_own_and_tokenless, mount_a_token, "metering mounts a token"),
        (policies.containers_are_restricted, run_as_root, "keyvault may run as root"),
        (policies.containers_are_restricted, add_a_lax_container, "router/lax may write to its root"),
        (policies.containers_are_restricted, mount_the_host, "metering mounts the node's disk"),
        (policies.containers_are_restricted, add_service_links, "router gets variables made of Services"),
        (policies.namespaces_are_restricted, relax_a_namespace, "byok-router does not enforce"),
        (policies.namespaces_are_restricted, allow_by_default, "does not deny by default"),
        (policies.only_routers_reach_the_internet, open_the_internet_to_keyvault, "keyvault reaches 0.0.0.0/0"),
        (
            policies.only_routers_reach_the_internet,
            open_every_port_to_router,
            "router reaches 0.0.0.0/0 on other ports",
        ),
        (policies.only_routers_reach_the_internet, open_metadata_endpoint_to_router, "private range 169.254.0.0/16"),
        (policies.only_routers_reach_the_internet, open_any_database_port, "keyvault reaches 192.0.2.0/24 on ports"),
        (policies.calls_follow_the_arrows, let_keyvault_call_metering, "keyvault reaches metering"),
        (policies.calls_follow_the_arrows, let_everyone_into_keyvault, "keyvault lets everyone in"),
        (policies.calls_follow_the_arrows, let_a_namespace_into_keyvault, "keyvault lets a whole namespace in"),
        (policies.ports_match, move_the_port, "metering is set to listen on 0.0.0.0:7000"),
        (policies.ports_match, balance_by_connection, "router is balanced by connection"),
        (policies.pods_drain, kill_before_drained, "router is killed before it has drained"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_spoilt_base_is_found_out(
    check: policies.Check, spoil: Spoil, breach: str, resources: list[Resource]
) -> None:
    """Each check sees the breach that it is there for."""
    spoil({(resource["kind"], resource["metadata"]["name"]): resource for resource in resources})
    assert any(breach in each for each in check(resources)), check(resources)


def test_an_unknown_field_is_refused(resources: list[Resource]) -> None:
    """A misspelt field is a fault, not a silence."""
    deployment = next(each for each in resources if each["kind"] == "Deployment")
    deployment["spec"]["replikas"] = 2
    assert any("replikas" in fault for fault in schema_faults(resources))


@pytest.mark.parametrize(
    ("kustomization", "reason"),
    [
        ("resources: [one.yaml]\nnamePrefix: x-\n", "uses `resources` only, not namePrefix"),
        ("resources: []\n", "not listed: one.yaml"),
        ("resources: [one.yaml, one.yaml]\n", "stands twice"),
    ],
)
def test_a_base_that_kustomize_would_read_otherwise_is_refused(kustomization: str, reason: str, tmp_path: Path) -> None:
    """The renderer renders all and only what it understands."""
    (tmp_path / "kustomization.yaml").write_text(kustomization, encoding="utf-8")
    (tmp_path / "one.yaml").write_text("kind: Namespace\nmetadata: {name: one}\n", encoding="utf-8")
    with pytest.raises(RenderError, match=reason):
        render(tmp_path)
