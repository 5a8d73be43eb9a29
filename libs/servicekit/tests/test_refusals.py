import asyncio
from datetime import timedelta

from servicekit.refusals import Refusal, RefusalReporter


async def test_the_first_of_a_window_is_reported_and_the_rest_counted() -> None:
    """However often a caller tries, the audit grows by two entries a window."""
    reports: list[Refusal] = []
    closed = asyncio.Event()

    def report(refusal: Refusal) -> None:
        reports.append(refusal)
        if refusal.count > 1:
            closed.set()

    reporter = RefusalReporter(report, window=timedelta(milliseconds=20))
    for _ in range(1_000):
        reporter.record("a", "/s/m")
    async with asyncio.timeout(5):
        await closed.wait()
    assert [each.count for each in reports] == [1, 999]


async def test_an_audit_that_fails_does_not_hinder_the_refusal() -> None:
    """Whoever is refused is refused, whatever becomes of the report."""
    tries: list[Refusal] = []

    def fail(refusal: Refusal) -> None:
        tries.append(refusal)
        raise RuntimeError

    reporter = RefusalReporter(fail)
    reporter.record("a", "/s/m")
    reporter.record("a", "/s/m")
    reporter.flush()
    assert [each.count for each in tries] == [1, 1]


async def test_callers_and_methods_are_told_apart_up_to_a_bound() -> None:
    """Each caller and method has its own window; an attacker with ever new names shares one."""
    reports: list[Refusal] = []
    reporter = RefusalReporter(reports.append)
    reporter.record("a", "/s/m")
    reporter.record("a", "/s/n")
    reporter.record("b", "/s/m")
    assert [(each.caller, each.method) for each in reports] == [("a", "/s/m"), ("a", "/s/n"), ("b", "/s/m")]
    for number in range(5_000):
        reporter.record(f"c{number}", "/s/m")
    assert len(reports) <= 1_001
    reporter.flush()
    assert sum(each.count for each in reports) == 5_003
