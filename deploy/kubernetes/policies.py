"""What the manifests must never allow, as checks over rendered resources.

Each check returns sentences, one per breach; none means that the manifests keep the promise. The promises are the
design's: who may hold which secret, who may talk to whom, and what a container may do.
"""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from deploy.kubernetes.render import Resource, identity

Check = Callable[[list[Resource]], list[str]]

# The workloads that may mount each secret of the suite. What rewraps unlocks the keyring, as the service does.
SECRET_HOLDERS = {
    "keyvault-root-key": {"keyvault", "keyvault-rewrap"},
    "router-answer-key": {"router"},
    "keyvault-tls": {"keyvault"},
    "metering-tls": {"metering"},
    "router-tls": {"router"},
}
# Which services may open a connection to which, by the arrows of the design; other callers are not of the base.
MAY_CALL = {"keyvault": set[str](), "metering": {"keyvault"}, "router": {"keyvault", "metering"}}
GRPC_PORT = 8443
# Postgres and Redis: all that a range of addresses may be opened for, beside the Internet for Routers.
DATABASE_PORTS = {5432, 6379}
# No network that a database, a node or a metadata endpoint may be in is part of the Internet.
PRIVATE = ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]


def workloads(resources: Iterable[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the pod spec of everything that runs pods."""
    for resource in resources:
        template = resource.get("spec", {}).get("template")
        if template:
            yield resource["metadata"]["name"], template["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all containers of a pod, initial ones too."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def secrets_stay_with_their_holder(resources: list[Resource]) -> list[str]:
    """Only KeyVault mounts the root key, only Routers the answer key, and each only its own certificate."""
    breaches = []
    mounted: set[tuple[str, str]] = set()
    for name, pod in workloads(resources):
        for secret in _secret_volumes(pod):
            mounted.add((secret, name))
            if name not in SECRET_HOLDERS.get(secret, ()):
                breaches.append(f"{name} mounts {secret}, which is not its own")
        breaches += [
            f"{name} takes {secret} from the environment" for secret in _secret_variables(pod) & set(SECRET_HOLDERS)
        ]
    meant = {(secret, name) for secret, names in SECRET_HOLDERS.items() for name in names}
    return breaches + [f"{name} does not mount {secret}" for secret, name in sorted(meant - mounted)]


def _secret_volumes(pod: dict[str, Any]) -> set[str]:
    plain = {volume["secret"]["secretName"] for volume in pod.get("volumes", []) if "secret" in volume}
    sources = [source for volume in pod.get("volumes", []) for source in volume.get("projected", {}).get("sources", [])]
    return plain | {source["secret"]["name"] for source in sources if "secret" in source}


def _secret_variables(pod: dict[str, Any]) -> set[str]:
    single = [variable.get("valueFrom", {}) for container in containers(pod) for variable in container.get("env", [])]
    whole = [source for container in containers(pod) for source in container.get("envFrom", [])]
    return {value["secretKeyRef"]["name"] for value in single if "secretKeyRef" in value} | {
        source["secretRef"]["name"] for source in whole if "secretRef" in source
    }


def accounts_are_own_and_tokenless(resources: list[Resource]) -> list[str]:
    """No pod runs under a default account, two workloads share none, and no token of the Kubernetes API is mounted."""
    declared = {
        resource["metadata"]["name"]: resource for resource in resources if resource["kind"] == "ServiceAccount"
    }
    breaches = [
        f"account {name} mounts a token"
        for name, account in declared.items()
        if account.get("automountServiceAccountToken") is not False
    ]
    users: dict[str, str] = {}
    for name, pod in workloads(resources):
        account = pod.get("serviceAccountName", "default")
        if account not in declared:
            breaches.append(f"{name} runs under {account}, which the base does not declare")
        if pod.get("automountServiceAccountToken") is not False:
            breaches.append(f"{name} mounts a token")
        if users.setdefault(account, name) != name:
            breaches.append(f"{name} and {users[account]} share the account {account}")
    return breaches


def containers_are_restricted(resources: list[Resource]) -> list[str]:
    """Every container meets the restricted pod security standard, with a read-only root and a bound on memory."""
    breaches = []
    for name, pod in workloads(resources):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            breaches.append(f"{name} may run as root")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            breaches.append(f"{name} runs without a seccomp profile")
        breaches += [
            f"{name} shares the node's {part}" for part in ("hostNetwork", "hostPID", "hostIPC") if pod.get(part)
        ]
        breaches += [f"{name} mounts the node's disk" for volume in pod.get("volumes", []) if "hostPath" in volume]
        if pod.get("enableServiceLinks") is not False:
            breaches.append(f"{name} gets variables made of Services, which settings refuse")
        for container in containers(pod):
            breaches += [f"{name}/{container['name']} {fault}" for fault in _container_faults(container)]
    return breaches


def _container_faults(container: dict[str, Any]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield "has no bound on memory"


def namespaces_are_restricted(resources: list[Resource]) -> list[str]:
    """Every namespace enforces the restricted standard and denies by default, and everything stands in one."""
    names = {resource["metadata"]["name"]: resource for resource in resources if resource["kind"] == "Namespace"}
    breaches = []
    for name, namespace in names.items():
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            breaches.append(f"{name} does not enforce the restricted standard")
        if not any(_denies_all(policy) for policy in _policies(resources) if policy["metadata"]["namespace"] == name):
            breaches.append(f"{name} does not deny by default")
    homeless = [
        resource
        for resource in resources
        if resource["kind"] != "Namespace" and resource["metadata"].get("namespace") not in names
    ]
    return breaches + [f"{' '.join(identity(resource))} stands in no namespace of the base" for resource in homeless]


def _policies(resources: list[Resource]) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] == "NetworkPolicy"]


def _denies_all(policy: Resource) -> bool:
    spec = policy["spec"]
    return (
        spec["podSelector"] == {}
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
        and not spec.get("ingress")
        and not spec.get("egress")
    )


def egress(resources: list[Resource], workload: str) -> list[dict[str, Any]]:
    """Return all rules that let a workload's pods out."""
    return [
        rule
        for policy in _policies(resources)
        if policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name") == workload
        or policy["spec"]["podSelector"] == {}
        for rule in policy["spec"].get("egress", [])
    ]


def only_routers_reach_the_internet(resources: list[Resource]) -> list[str]:
    """KeyVault and Metering have no way out but to databases; Routers have port 443, and no private range with it."""
    breaches = []
    for name, _ in workloads(resources):
        for rule in egress(resources, name):
            if not rule.get("to"):
                breaches.append(f"{name} may send anywhere")
            for block in (peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer):
                breaches += [
                    f"{name} {fault}"
                    for fault in _block_faults(block, ports=rule.get("ports"), is_router=name == "router")
                ]
    return breaches


def _block_faults(block: dict[str, Any], *, ports: list[dict[str, Any]] | None, is_router: bool) -> Iterator[str]:
    network = ip_network(block["cidr"])
    numbers = {port.get("port") for port in ports or [{}]}
    if network.is_private and not numbers <= DATABASE_PORTS:
        yield f"reaches {network} on ports that are no database's"
    if network.is_private:
        return
    if not is_router:
        yield f"reaches {network}"
    if numbers != {443}:
        yield f"reaches {network} on other ports than 443"
    carved = [str(part) for part in block.get("except", [])]
    yield from (f"reaches the private range {private}" for private in PRIVATE if _holds(network, private, carved))


def _holds(network: IPv4Network | IPv6Network, private: str, carved: list[str]) -> bool:
    return isinstance(network, IPv4Network) and private not in carved and IPv4Network(private).subnet_of(network)


def calls_follow_the_arrows(resources: list[Resource]) -> list[str]:
    """A service may call those that the design's arrows name, and is let in there; nobody else is."""
    breaches = []
    for caller, allowed in MAY_CALL.items():
        reached = _named_peers(egress(resources, caller), "to") & set(MAY_CALL)
        breaches += [f"{caller} cannot reach {name}" for name in sorted(allowed - reached)]
        breaches += [f"{caller} reaches {name}" for name in sorted(reached - allowed)]
    for called in MAY_CALL:
        admitted = _named_peers(_ingress(resources, called), "from") & set(MAY_CALL)
        expected = {caller for caller, allowed in MAY_CALL.items() if called in allowed}
        breaches += [f"{called} does not let {name} in" for name in sorted(expected - admitted)]
        breaches += [f"{called} lets {name} in" for name in sorted(admitted - expected)]
        breaches += [f"{called} lets everyone in" for rule in _ingress(resources, called) if not rule.get("from")]
        # Platform services call Routers from namespaces of their own; the other two are let in by name alone.
        if called != "router" and "" in _named_peers(_ingress(resources, called), "from"):
            breaches.append(f"{called} lets a whole namespace in")
    return breaches


def _ingress(resources: list[Resource], workload: str) -> list[dict[str, Any]]:
    return [
        rule
        for policy in _policies(resources)
        if policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name") == workload
        for rule in policy["spec"].get("ingress", [])
    ]


def _named_peers(rules: list[dict[str, Any]], direction: str) -> set[str]:
    return {
        peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name", "")
        for rule in rules
        for peer in rule.get(direction, [])
    }


def ports_match(resources: list[Resource]) -> list[str]:
    """Services, network policies and listeners of one workload agree on the port of gRPC."""
    breaches = []
    for name, pod in workloads(resources):
        if name not in MAY_CALL:
            continue
        ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        service = next(each for each in resources if each["kind"] == "Service" and each["metadata"]["name"] == name)
        if service["spec"].get("clusterIP") != "None":
            breaches.append(f"{name} is balanced by connection, not by call")
        if [port["port"] for port in service["spec"]["ports"]] != [ports["grpc"]] or ports["grpc"] != GRPC_PORT:
            breaches.append(f"{name} listens on {ports['grpc']}, which its Service or its callers do not know")
        variables = config_of(resources, name)
        for kind, variable in (("grpc", "SERVER"), ("admin", "ADMIN")):
            listen = variables.get(f"BYOK_{name.upper()}_{variable}__LISTEN", "")
            if listen.rpartition(":")[2] != str(ports[kind]):
                breaches.append(
                    f"{name} is set to listen on {listen or 'nothing'}, and its {kind} port is {ports[kind]}"
                )
    return breaches


def config_of(resources: list[Resource], workload: str) -> dict[str, str]:
    """Return the variables of a workload's ConfigMap."""
    for resource in resources:
        if resource["kind"] == "ConfigMap" and resource["metadata"]["name"] == workload:
            return dict(resource["data"])
    return {}


def pods_drain(resources: list[Resource]) -> list[str]:
    """A pod is given longer to end than the service takes to drain, and a disruption takes one pod at a time."""
    breaches = []
    budgets = {each["metadata"]["name"]: each for each in resources if each["kind"] == "PodDisruptionBudget"}
    for name, pod in workloads(resources):
        if name not in MAY_CALL:
            continue
        variables = config_of(resources, name)
        drain = sum(float(variables[f"BYOK_{name.upper()}_SERVER__{part}"]) for part in ("DRAIN_NOTICE", "DRAIN_GRACE"))
        if drain >= pod["terminationGracePeriodSeconds"]:
            breaches.append(f"{name} is killed before it has drained")
        if name not in budgets:
            breaches.append(f"{name} has no disruption budget")
    return breaches


CHECKS: tuple[Check, ...] = (
    secrets_stay_with_their_holder,
    accounts_are_own_and_tokenless,
    containers_are_restricted,
    namespaces_are_restricted,
    only_routers_reach_the_internet,
    calls_follow_the_arrows,
    ports_match,
    pods_drain,
)
