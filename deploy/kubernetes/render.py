"""Render the base as `kubectl kustomize` does, without kubectl.

It answers for the part of kustomize that the base uses: a tree of `resources`, and nothing else. A kustomization that
asks for more is refused, so that this rendering and kustomize's can never differ in silence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

BASE = Path(__file__).resolve().parent / "base"
_KUSTOMIZATION = "kustomization.yaml"
_UNDERSTOOD = {"apiVersion", "kind", "resources"}


class RenderError(Exception):
    """A kustomization asks for what this renderer does not do, or names one resource twice."""


def render(folder: Path = BASE) -> list[Resource]:
    """Return every resource under `folder`, in the order of the kustomizations.

    Raises:
        RenderError: A kustomization has a field other than `resources`, or two resources have one identity.
    """
    resources = list(_resources(folder))
    seen: set[tuple[str, str, str]] = set()
    for resource in resources:
        if identity(resource) in seen:
            raise RenderError(f"{' '.join(identity(resource))} stands twice in the base")
        seen.add(identity(resource))
    return resources


def identity(resource: Resource) -> tuple[str, str, str]:
    """Return kind, namespace and name: what tells one resource from all others."""
    metadata = resource["metadata"]
    return resource["kind"], metadata.get("namespace", ""), metadata["name"]


def _resources(folder: Path) -> Iterator[Resource]:
    kustomization = yaml.safe_load((folder / _KUSTOMIZATION).read_text(encoding="utf-8"))
    unknown = set(kustomization) - _UNDERSTOOD
    if unknown:
        raise RenderError(f"{folder}: the base uses `resources` only, not {', '.join(sorted(unknown))}")
    listed = [folder / name for name in kustomization["resources"]]
    forgotten = {path for path in folder.iterdir() if path.name != _KUSTOMIZATION} - set(listed)
    if forgotten:
        raise RenderError(f"{folder}: not listed: {', '.join(sorted(path.name for path in forgotten))}")
    for path in listed:
        if path.is_dir():
            yield from _resources(path)
        else:
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))
