"""Which fault a call meets.

A rule says on which calls it applies and how often; the first rule that applies wins. A key made with
`make_key(…, fault="throttled")` meets its fault on every call, without a rule.
"""

import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """What can go wrong at a provider."""

    # Failures that the vendor puts in its own words.
    BAD_KEY = "bad_key"
    NO_CREDIT = "no_credit"
    PAYMENT_REQUIRED = "payment_required"
    FORBIDDEN = "forbidden"
    CONTENT_REFUSED = "content_refused"
    MODEL_GONE = "model_gone"
    TIMED_OUT = "timed_out"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    BAD_REQUEST = "bad_request"
    THROTTLED = "throttled"
    DAILY_QUOTA = "daily_quota"
    SERVER_ERROR = "server_error"
    BAD_GATEWAY = "bad_gateway"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    # Answers that arrive whole but are not what was asked for.
    OFF_SCHEMA = "off_schema"
    REFUSAL = "refusal"
    CUT_SHORT = "cut_short"
    NO_USAGE = "no_usage"
    EMPTY_ANSWER = "empty_answer"
    ODD_SHAPE = "odd_shape"
    # Deliveries that go wrong.
    DELAY = "delay"
    ERROR_IN_200 = "error_in_200"
    ERROR_MID_STREAM = "error_mid_stream"
    MALFORMED_JSON = "malformed_json"
    TRUNCATED_BODY = "truncated_body"
    EMPTY_BODY = "empty_body"
    SLOW_HEADERS = "slow_headers"
    STALL_MID_STREAM = "stall_mid_stream"
    RESET_BEFORE_READ = "reset_before_read"
    RESET_AFTER_READ = "reset_after_read"
    WRONG_CONTENT_TYPE = "wrong_content_type"
    HUGE_BODY = "huge_body"
    DECOMPRESSION_BOMB = "decompression_bomb"
    REDIRECT = "redirect"
    ECHO_KEY = "echo_key"


class RetryForm(StrEnum):
    """How a vendor says when to come back."""

    NONE = "none"
    SECONDS = "seconds"
    HTTP_DATE = "http_date"
    MILLISECONDS = "milliseconds"
    RETRY_DELAY_IN_BODY = "retry_delay_in_body"
    RESET_DURATION = "reset_duration"
    RESET_TIMESTAMP = "reset_timestamp"
    EPOCH_MILLISECONDS = "epoch_milliseconds"


class FaultRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault, the calls that it applies to, and how often."""

    kind: FaultKind
    vendor: str | None = None
    route: str | None = None
    model: str | None = None
    key_fingerprint: str | None = None
    # Text that the request's body contains.
    contains: str | None = None
    # How many calls meet it; none means all of them.
    times: int | None = 1
    # How many calls that it applies to pass untouched first.
    skip: int = 0
    # For failures in the vendor's words: how it says when to come back, and when.
    retry_form: RetryForm = RetryForm.SECONDS
    retry_after_seconds: float = 1.0
    # For delays and stalls.
    delay_seconds: float = 30.0
    # For huge bodies and bombs.
    size_bytes: int = 64 * 1024 * 1024
    # For errors inside a 200 or mid-stream: the failure reported; for an echoed key: the status it comes with.
    failure: FaultKind = FaultKind.OVERLOADED
    status: int = 401
    location: str = "https://169.254.169.254/latest/meta-data/"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What rules look at. The model and the body are empty while the request has not been read."""

    vendor: str
    route: str
    key: str
    key_fingerprint: str
    model: str = ""
    body: bytes = b""


_KEY_MARKER = re.compile(r"xFAULT([A-Z0-9]+)x")
_BY_MARKER = {kind.value.replace("_", "").upper(): kind for kind in FaultKind}
_BEFORE_READING = frozenset({FaultKind.RESET_BEFORE_READ})


class _Armed:
    """A rule with its counters."""

    def __init__(self, rule_id: int, rule: FaultRule) -> None:
        self.rule_id = rule_id
        self.rule = rule
        self.skipped = 0
        self.hits = 0

    def take(self, call: Call) -> bool:
        rule = self.rule
        if rule.times is not None and self.hits >= rule.times:
            return False
        if not _applies(rule, call):
            return False
        if self.skipped < rule.skip:
            self.skipped += 1
            return False
        self.hits += 1
        return True


class FaultPlan:
    """The rules in force, in the order in which they were added."""

    def __init__(self, rules: Iterable[FaultRule] = ()) -> None:
        """Start with the given rules."""
        self._next_id = 1
        self._armed: list[_Armed] = []
        for rule in rules:
            self.add(rule)

    def add(self, rule: FaultRule) -> int:
        """Put a rule in force and return its id."""
        rule_id = self._next_id
        self._next_id += 1
        self._armed.append(_Armed(rule_id, rule))
        return rule_id

    def remove(self, rule_id: int) -> None:
        """Withdraw a rule; one that is gone already is no matter."""
        self._armed = [each for each in self._armed if each.rule_id != rule_id]

    def clear(self) -> None:
        """Withdraw all rules."""
        self._armed.clear()

    def hits(self, rule_id: int) -> int:
        """Return how many calls have met the rule."""
        return next((each.hits for each in self._armed if each.rule_id == rule_id), 0)

    def take(self, call: Call, *, is_read: bool) -> FaultRule | None:
        """Return the fault that this call meets, and count it.

        Args:
            call: the call.
            is_read: whether the request was read: faults that come before are asked for first, without a body.
        """
        marked = _marked(call.key)
        if marked is not None and (marked in _BEFORE_READING) != is_read:
            return FaultRule(kind=marked, times=None)
        for armed in self._armed:
            if (armed.rule.kind in _BEFORE_READING) != is_read and armed.take(call):
                return armed.rule
        return None


def _marked(key: str) -> FaultKind | None:
    found = _KEY_MARKER.search(key)
    return None if found is None else _BY_MARKER.get(found[1])


def _applies(rule: FaultRule, call: Call) -> bool:
    wanted = (
        (rule.vendor, call.vendor),
        (rule.route, call.route),
        (rule.model, call.model),
        (rule.key_fingerprint, call.key_fingerprint),
    )
    if any(want is not None and want != got for want, got in wanted):
        return False
    return rule.contains is None or rule.contains.encode() in call.body
