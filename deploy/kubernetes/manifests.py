"""Render the Kubernetes base, hold it against the schemas and the policies, and say what was found.

Run as `python -m deploy.kubernetes.manifests`. It needs no cluster and no kubectl; where kubectl stands beside it, its
rendering is compared too.
"""

import shutil
import subprocess
import sys

import kubernetes_validate
import yaml

from deploy.kubernetes.policies import CHECKS
from deploy.kubernetes.render import BASE, Resource, identity, render

# The oldest and the newest Kubernetes that the base is meant for.
VERSIONS = ("1.29", "1.37")


def schema_faults(resources: list[Resource]) -> list[str]:
    """Return what the Kubernetes schemas refuse, unknown fields included."""
    return [
        f"{' '.join(identity(resource))}, Kubernetes {version}: {fault}"
        for resource in resources
        for version in VERSIONS
        if (fault := _schema_fault(resource, version))
    ]


def _schema_fault(resource: Resource, version: str) -> str | None:
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return str(error.message)
    return None


def kustomize_faults(resources: list[Resource], kubectl: str) -> list[str]:
    """Return which resources kubectl renders otherwise than this program does."""
    rendered = subprocess.run(  # noqa: S603 - a fixed command on the base's own folder.
        [kubectl, "kustomize", str(BASE)], check=True, capture_output=True, text=True
    )
    theirs = {identity(resource): resource for resource in yaml.safe_load_all(rendered.stdout)}
    ours = {identity(resource): resource for resource in resources}
    different = {name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]}
    return [
        f"{' '.join(name)}: kubectl renders it otherwise" for name in sorted(theirs.keys() ^ ours.keys() | different)
    ]


def main() -> None:
    """Print the outcome; a fault is a failure."""
    resources = render()
    faults = schema_faults(resources) + [breach for check in CHECKS for breach in check(resources)]
    kubectl = shutil.which("kubectl")
    if kubectl:
        faults += kustomize_faults(resources, kubectl)
    compared = "compared with kubectl's rendering" if kubectl else "no kubectl here to compare with"
    for fault in faults:
        print(f"manifests: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    versions = " and ".join(VERSIONS)
    print(f"manifests: {len(resources)} resources, {len(CHECKS)} policies, Kubernetes {versions}; {compared}")


if __name__ == "__main__":
    main()
