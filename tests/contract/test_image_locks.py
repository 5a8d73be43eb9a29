"""An image holds all that its service imports, and KeyVault's nothing that only Router needs."""

import re
import sys
from importlib import metadata
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Built from this tree into every image, so no lock names them.
OWN = {"servicekit", "catalogue", "transparency", "byok", "google"}


def locked(service: str) -> set[str]:
    """Return the distributions that a service's lock names."""
    text = (ROOT / "services" / service / "requirements.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9-]+)==", text, flags=re.MULTILINE))


def imported(service: str) -> set[str]:
    """Return the top-level packages outside the standard library that a service and its libs import."""
    graph = grimp.build_graph(
        service,
        "servicekit",
        "catalogue",
        "transparency",
        include_external_packages=True,
        cache_dir=str(ROOT / ".cache" / "grimp"),
    )
    reached = {service, *graph.find_descendants(service)}
    reached |= {module for each in set(reached) for module in graph.find_upstream_modules(each)}
    names = {module.partition(".")[0] for module in reached}
    return names - set(sys.stdlib_module_names) - OWN - {service}


@pytest.mark.parametrize("service", ["keyvault", "router", "metering"])
def test_an_image_holds_what_its_service_imports(service: str) -> None:
    """Every import of a service, and of the libs it reaches, is in its lock."""
    owners = metadata.packages_distributions()
    names = locked(service)
    missing = {
        package
        for package in imported(service)
        if not {each.lower().replace("_", "-") for each in owners[package]} & names
    }
    assert missing == set()


@pytest.mark.parametrize("service", ["keyvault", "metering"])
def test_only_the_routers_image_holds_provider_clients(service: str) -> None:
    """What talks to providers is not in reach of the vault or the ledger."""
    assert not {"anthropic", "openai", "genai-prices"} & locked(service)
    assert {"anthropic", "openai"} <= locked("router")


@pytest.mark.parametrize("service", ["keyvault", "router", "metering"])
def test_an_image_holds_the_versions_that_were_tested(service: str) -> None:
    """A service's lock agrees with the common one, line by line."""
    pin = re.compile(r"^([a-z0-9-]+==\S+)", flags=re.MULTILINE)
    own = set(pin.findall((ROOT / "services" / service / "requirements.txt").read_text(encoding="utf-8")))
    common = set(pin.findall((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    assert own
    assert own <= common


def test_no_lock_names_an_address() -> None:
    """A lock names versions and hashes, never where they were downloaded."""
    locks = [*ROOT.glob("requirements*.txt"), *ROOT.glob("services/*/requirements.txt")]
    assert len(locks) == 6
    assert [path.name for path in locks if "://" in path.read_text(encoding="utf-8")] == []
