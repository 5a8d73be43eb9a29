"""What callers ask of the Router, parsed: an object of these types is within every bound that the contract names.

Parsing collects every violation before it refuses, so that a caller mends a request in one go.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from catalogue.models import EmbeddingSpace
from router.domain.embeddings import EmbeddingPurpose
from servicekit.errors import FieldViolation, InvalidArgumentError
from servicekit.ids import check_request_id, uuid7_time

ID_LENGTH_MAX: Final = 128
SUBJECT_TYPE_LENGTH_MAX: Final = 64
ORGANIZATIONS_MAX: Final = 100
CONTENT_LENGTH_MAX: Final = 100_000
POLICY_LENGTH_MAX: Final = 20_000
RULES_MAX: Final = 50
RULE_ID_LENGTH_MAX: Final = 64
RULE_DESCRIPTION_LENGTH_MAX: Final = 2_000
TEXTS_MAX: Final = 2_048
DIMENSIONS_MAX: Final = 8_192
DIMENSIONS_DEFAULT: Final = 1_024
# Details of an error travel in HTTP/2 trailers, of which peers take 8 KiB.
VIOLATIONS_MAX: Final = 20

# Tabs and line ends are text; every other control character is refused, because models drop or misread it and a
# person who reviews the content does not see it.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """On whose behalf a call is made, as the caller asserts it."""

    owner_id: str = ""
    operator_id: str = ""
    organization_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an operation is for, opaque to the suite."""

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationContext:
    """Who an operation is for and how it is identified.

    Attributes:
        request_id: Names the operation, not its attempts.
        body_hash: SHA-256 over what the caller sent; the same id with another one is refused.
        agent_id: Whose budget; empty when the platform pays by the caller's request.
        platform_purpose: Why the platform pays by the caller's request; empty for an agent's operation.
        acting_for: On whose behalf, when the caller acts for an owner.
        actor: Who asks.
        subject: What it is for.
        supersedes_request_id: An earlier request that is bought again on purpose.
    """

    request_id: str
    body_hash: bytes
    agent_id: str = ""
    platform_purpose: str = ""
    acting_for: Principal | None = None
    actor: str = ""
    subject: Subject | None = None
    supersedes_request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailRule:
    """One rule of a policy."""

    rule_id: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailRequest:
    """Content to judge, by a policy in words or by named rules; exactly one of them is set."""

    context: OperationContext
    content: str
    policy_text: str = ""
    rules: tuple[GuardrailRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to turn into vectors; an unset space means the first candidate's, at the default size."""

    context: OperationContext
    texts: tuple[str, ...]
    purpose: EmbeddingPurpose = EmbeddingPurpose.UNSPECIFIED
    space: EmbeddingSpace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValidationRequest:
    """A key to test at its provider."""

    request_id: str
    body_hash: bytes
    acting_for: Principal
    key_id: str
    actor: str = ""


@dataclass(slots=True)
class Violations:
    """What is wrong with one request, gathered while it is looked at."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, reason: str, description: str) -> None:
        """Note that the field at `path` cannot be accepted, and what to do."""
        if len(self.found) < VIOLATIONS_MAX:
            self.found.append(FieldViolation(field=path, reason=reason, description=description))

    def check_id(self, path: str, value: str, *, length_max: int = ID_LENGTH_MAX) -> None:
        """Note an id that is empty, too long, or not of printable ASCII characters without spaces."""
        if not value:
            self.add(path, "REQUIRED", "is required")
        elif len(value) > length_max:
            self.add(path, "TOO_LONG", f"must have at most {length_max} characters")
        elif not value.isascii() or not value.isprintable() or " " in value:
            self.add(path, "UNPRINTABLE", "must be printable ASCII characters without spaces")

    def check_text(self, path: str, value: str, *, length_max: int) -> None:
        """Note a text that is empty, blank, too long, or holds control characters."""
        if not value or value.isspace():
            self.add(path, "REQUIRED", "must not be empty or blank")
        elif len(value) > length_max:
            self.add(path, "TOO_LONG", f"has {len(value)} characters; at most {length_max} are taken")
        elif (control := _CONTROL.search(value)) is not None:
            place = control.start()
            self.add(path, "CONTROL_CHARACTER", f"holds a control character at position {place}; remove it")

    def check_optional_text(self, path: str, value: str, *, length_max: int) -> None:
        """Note a short text that is too long or unprintable; empty is fine."""
        if len(value) > length_max:
            self.add(path, "TOO_LONG", f"must have at most {length_max} characters")
        elif value and not value.isprintable():
            self.add(path, "UNPRINTABLE", "must be printable characters")

    def check_request_id(self, path: str, value: str, now: datetime) -> None:
        """Note a request id that is malformed, too old or ahead of time."""
        try:
            check_request_id(value, now, field=path)
        except InvalidArgumentError as refused:
            self.found.extend(refused.violations)

    def ensure_none(self) -> None:
        """Refuse the request if anything was noted.

        Raises:
            InvalidArgumentError: With every violation noted.
        """
        if self.found:
            raise InvalidArgumentError(violations=self.found)


def check_context(context: OperationContext, violations: Violations, *, now: datetime) -> None:
    """Note what is wrong with who an operation is for."""
    violations.check_request_id("context.request_id", context.request_id, now)
    if context.agent_id:
        violations.check_id("context.agent_id", context.agent_id)
    elif context.platform_purpose:
        violations.check_optional_text(
            "context.platform_payer.purpose", context.platform_purpose, length_max=ID_LENGTH_MAX
        )
    else:
        violations.add("context.attribution", "REQUIRED", "name an agent_id, or a platform_payer with its purpose")
    if context.acting_for is not None:
        check_principal("context.acting_for", context.acting_for, violations)
    if context.actor:
        violations.check_optional_text("context.actor", context.actor, length_max=ID_LENGTH_MAX)
    if context.subject is not None:
        violations.check_id("context.subject.type", context.subject.type, length_max=SUBJECT_TYPE_LENGTH_MAX)
        violations.check_id("context.subject.id", context.subject.id)
    if context.supersedes_request_id:
        _check_superseded(context, violations)


def check_principal(path: str, principal: Principal, violations: Violations) -> None:
    """Note what is wrong with on whose behalf a call is made."""
    if bool(principal.owner_id) == bool(principal.operator_id):
        violations.add(path, "REQUIRED", "name exactly one of owner_id and operator_id")
    elif principal.owner_id:
        violations.check_id(f"{path}.owner_id", principal.owner_id)
    else:
        violations.check_id(f"{path}.operator_id", principal.operator_id)
    if len(principal.organization_ids) > ORGANIZATIONS_MAX:
        violations.add(f"{path}.organization_ids", "TOO_MANY", f"at most {ORGANIZATIONS_MAX} organizations are taken")
        return
    for index, organization_id in enumerate(principal.organization_ids):
        violations.check_id(f"{path}.organization_ids[{index}]", organization_id)


def check_guardrail(request: GuardrailRequest, *, now: datetime) -> None:
    """Check a guardrail request against every bound of the contract.

    Raises:
        InvalidArgumentError: Naming each field and its remedy.
    """
    violations = Violations()
    check_context(request.context, violations, now=now)
    violations.check_text("content", request.content, length_max=CONTENT_LENGTH_MAX)
    if request.policy_text:
        violations.check_text("policy_text", request.policy_text, length_max=POLICY_LENGTH_MAX)
    elif request.rules:
        _check_rules(request.rules, violations)
    else:
        violations.add("policy", "REQUIRED", "give policy_text, or rules with at least one rule")
    violations.ensure_none()


def check_embedding(request: EmbeddingRequest, *, now: datetime) -> None:
    """Check an embedding request against every bound of the contract.

    Raises:
        InvalidArgumentError: Naming each field and its remedy.
    """
    violations = Violations()
    check_context(request.context, violations, now=now)
    if not request.texts:
        violations.add("texts", "REQUIRED", "give at least one text")
    elif len(request.texts) > TEXTS_MAX:
        violations.add("texts", "TOO_MANY", f"has {len(request.texts)} texts; at most {TEXTS_MAX} are taken")
    else:
        for index, text in enumerate(request.texts):
            violations.check_text(f"texts[{index}]", text, length_max=CONTENT_LENGTH_MAX)
    if request.space is not None:
        violations.check_id("space.maker", request.space.maker)
        violations.check_id("space.model", request.space.model)
        if not 0 < request.space.dimensions <= DIMENSIONS_MAX:
            violations.add("space.dimensions", "OUT_OF_RANGE", f"must be between 1 and {DIMENSIONS_MAX}")
    violations.ensure_none()


def check_key_validation(request: KeyValidationRequest, *, now: datetime) -> None:
    """Check a request to validate a key.

    Raises:
        InvalidArgumentError: Naming each field and its remedy.
    """
    violations = Violations()
    violations.check_request_id("request_id", request.request_id, now)
    check_principal("acting_for", request.acting_for, violations)
    violations.check_optional_text("actor", request.actor, length_max=ID_LENGTH_MAX)
    violations.check_id("key_id", request.key_id)
    violations.ensure_none()


def _check_superseded(context: OperationContext, violations: Violations) -> None:
    path = "context.supersedes_request_id"
    try:
        # Of any age: what is bought again may be long past.
        uuid7_time(context.supersedes_request_id)
    except ValueError:
        violations.add(path, "REQUEST_ID_MALFORMED", "must be the UUIDv7 of the earlier request, in lower case")
    if context.supersedes_request_id == context.request_id:
        violations.add(path, "SAME_REQUEST_ID", "must name an earlier request; take a new request_id for this one")


def _check_rules(rules: Sequence[GuardrailRule], violations: Violations) -> None:
    if len(rules) > RULES_MAX:
        violations.add("rules.rules", "TOO_MANY", f"has {len(rules)} rules; at most {RULES_MAX} are taken")
        return
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        path = f"rules.rules[{index}]"
        violations.check_id(f"{path}.rule_id", rule.rule_id, length_max=RULE_ID_LENGTH_MAX)
        violations.check_text(f"{path}.description", rule.description, length_max=RULE_DESCRIPTION_LENGTH_MAX)
        if rule.rule_id in seen:
            violations.add(f"{path}.rule_id", "DUPLICATE", "names the same rule twice; rule ids must differ")
        seen.add(rule.rule_id)
