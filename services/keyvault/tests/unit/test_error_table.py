"""The one error table: every error of the domain has a row, and every row a reason of the contract."""

from __future__ import annotations

import inspect

from byok.keyvault.v1 import error_reason_pb2
from keyvault.api.errors import ERRORS
from keyvault.domain import errors
from keyvault.domain.errors import LeaseBoundReachedError
from servicekit.errors import DomainError, UnavailableError

PREFIX = "ERROR_REASON_"


def test_every_error_has_a_row_of_its_own() -> None:
    """No error of this service travels by its ancestor's row."""
    declared = {
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, DomainError) and each.__module__ == errors.__name__
    }
    assert declared - set(ERRORS.rows) == set()


def test_table_and_contract_name_the_same_reasons() -> None:
    """No more, no less."""
    contract = {name.removeprefix(PREFIX) for name in error_reason_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 (an enum wrapper)
    assert contract == ERRORS.reasons


def test_facts_that_travel_are_named_as_documented() -> None:
    """The metadata of an error is in lowerCamel, and only what its row lists."""
    error = errors.ProviderKeyNotFoundError("gone", provider_key_id="key-1", secret_like="x")
    status = ERRORS.status(error)
    assert b"providerKeyId" in status.SerializeToString()
    assert b"secret_like" not in status.SerializeToString()


def test_what_may_be_retried_is_unavailable() -> None:
    """Clients retry UNAVAILABLE on their own: nothing else travels with that code but what is safe to repeat."""
    retried = {kind for kind, row in ERRORS.rows.items() if row.code.name == "UNAVAILABLE"}
    assert errors.AuditUnavailableError in retried
    assert UnavailableError in retried
    assert not retried & {LeaseBoundReachedError, errors.EnvelopeCorruptError, errors.AuthorityForgedError}
