"""Records of shares and halts, the room for halts, and the set of halts that a process has seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from keyvault.adapters.memory import MemoryAuthority, MemoryKeyringStore
from keyvault.adapters.memory_shares_and_halts import MemorySharesAndHalts
from keyvault.domain.authority import RowSeal, seal_window
from keyvault.domain.canonical import CanonicalFormError
from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.halts import (
    HALTS_MAX,
    HALTS_PER_OWNER_MAX,
    OWNERS_HALTS_MAX,
    Halt,
    HaltKind,
    HaltScope,
    HaltSet,
    StoredHalts,
    decode_halts,
    encode_halts,
)
from keyvault.domain.provider_keys import Operation
from keyvault.domain.shares import (
    CAP_MAX,
    KeyShare,
    ShareCap,
    check_terms,
    decode_share,
    encode_share,
    share_name,
    share_parties,
)
from keyvault.ports import HaltsRow, KeyringSource
from keyvault.usecases.present_halts import PresentHalts
from keyvault.usecases.verify_rows import VerifyRows
from servicekit.errors import InvalidArgumentError
from services.keyvault.tests.unit.builders import NOW, keyring, leaf_sealer

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyvault.domain.keyring import Keyring

TEXT = st.text(max_size=20)
AMOUNTS = st.integers(0, CAP_MAX)
OPERATIONS = st.lists(st.sampled_from(list(Operation)), min_size=1, unique=True).map(tuple)


def halt(number: int = 0, *, owner_id: str = "", scope: HaltScope | None = None) -> Halt:
    """Return a halt of an agent."""
    return Halt(
        halt_id=f"halt-{number}",
        scope=scope or HaltScope(HaltKind.AGENT, f"agent-{number}"),
        reason="a test",
        actor="test",
        owner_id=owner_id,
        create_time=NOW,
    )


@given(operations=OPERATIONS, agent_id=TEXT, amounts=st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), is_ended=st.booleans())
def test_every_share_comes_back(
    operations: tuple[Operation, ...], agent_id: str, amounts: tuple[int, int, int], *, is_ended: bool
) -> None:
    """What was encoded is decoded to the same share; its name tells key and agent."""
    share = KeyShare(
        provider_key_id="key-1",
        agent_id=agent_id,
        organization_id="org-1",
        operations=operations,
        cap=ShareCap(month_cost_nano_usd=amounts[0], day_cost_nano_usd=amounts[1], day_calls=amounts[2]),
        is_ended=is_ended,
        create_time=NOW,
    )
    assert decode_share(encode_share(share)) == share
    assert share.covers(operations[0]) is not is_ended
    assert share_parties(share_name("key-1", agent_id)) == ("key-1", agent_id)


@given(names=st.lists(TEXT, max_size=5), reason=TEXT, audit_index=st.integers(0, CAP_MAX))
def test_every_set_of_halts_comes_back(names: list[str], reason: str, audit_index: int) -> None:
    """What was encoded is decoded to the same set."""
    halts = HaltSet(
        tuple(
            replace(halt(number, scope=HaltScope(HaltKind.OWNER, name)), reason=reason, audit_index=audit_index)
            for number, name in enumerate(names)
        )
    )
    assert decode_halts(encode_halts(halts)) == halts


@pytest.mark.parametrize("decode", [decode_share, decode_halts])
@given(record=st.binary(max_size=80))
def test_other_bytes_are_no_record(decode: Callable[[bytes], object], record: bytes) -> None:
    """Whatever stands in the column, the failure is typed."""
    with pytest.raises(CanonicalFormError):
        decode(record)


def test_a_full_set_fits_into_one_row() -> None:
    """As many halts as there may be, each as long as it may be, are one record."""
    longest = replace(halt(), reason="x" * 200, actor="x" * 128, owner_id="x" * 128)
    halts = HaltSet(
        tuple(replace(longest, scope=HaltScope(HaltKind.AGENT, "x" * 124 + str(n))) for n in range(HALTS_MAX))
    )
    assert decode_halts(encode_halts(halts)) == halts


def test_operators_always_have_room() -> None:
    """Owners together, and each of them, may make so many halts; the rest is kept for operators."""
    halts = HaltSet(tuple(halt(number, owner_id=f"owner-{number}") for number in range(OWNERS_HALTS_MAX)))
    with pytest.raises(InvalidArgumentError):
        halts.with_halt(halt(HALTS_MAX, owner_id="owner-new"))
    for number in range(OWNERS_HALTS_MAX, HALTS_MAX):
        halts = halts.with_halt(halt(number))
    with pytest.raises(InvalidArgumentError):
        halts.with_halt(halt(HALTS_MAX))
    of_one = HaltSet(tuple(halt(number, owner_id="owner-1") for number in range(HALTS_PER_OWNER_MAX)))
    with pytest.raises(InvalidArgumentError):
        of_one.with_halt(halt(99, owner_id="owner-1"))
    assert len(of_one.with_halt(halt(99, owner_id="owner-2")).halts) == HALTS_PER_OWNER_MAX + 1


def test_a_halt_gets_the_index_of_the_set_that_it_was_made_in() -> None:
    """Also after later changes of the set."""
    first = StoredHalts.of(HaltSet().with_halt(halt(1)), RowSeal(5, 1, b""))
    second = StoredHalts.of(first.halts.with_halt(halt(2)), RowSeal(9, 1, b""))
    third = StoredHalts.of(second.halts.without("halt-2"), RowSeal(12, 1, b""))
    assert [each.audit_index for each in second.halts.halts] == [5, 9]
    assert [each.audit_index for each in third.halts.halts] == [5]


@pytest.mark.parametrize(
    ("operations", "cap"),
    [
        ((), ShareCap()),
        ((Operation.CHAT, Operation.CHAT), ShareCap()),
        ((Operation.KEY_VALIDATION,), ShareCap()),
        ((Operation.CHAT,), ShareCap(day_calls=-1)),
    ],
)
def test_terms_that_do_not_fit_are_refused(operations: tuple[Operation, ...], cap: ShareCap) -> None:
    """At least one operation, each once, none that is not shared, no negative cap."""
    with pytest.raises(InvalidArgumentError):
        check_terms(operations, cap)


class FixedKeyring(KeyringSource):
    """A keyring that nobody rotates."""

    def __init__(self) -> None:
        self.ring = keyring()

    @override
    def current(self) -> Keyring:
        """Return it."""
        return self.ring

    @override
    async def reload(self) -> Keyring:
        """Return it."""
        return self.ring


class Sets:
    """Sets of halts in a store, each written at an index of its own."""

    def __init__(self) -> None:
        self.keyring = FixedKeyring()
        self.authority = MemoryAuthority(MemoryKeyringStore(), leaf_sealer())
        self.present = PresentHalts(MemorySharesAndHalts(self.authority), VerifyRows(self.keyring))

    def write(self, audit_index: int, *halts: Halt) -> RowSeal:
        """Make this the present set."""
        record = encode_halts(HaltSet(halts))
        window = seal_window(self.keyring.ring, record, first_index=audit_index, length=1)
        seal = window.seal_at(audit_index)
        assert seal is not None
        self.authority.halts_rows.append(HaltsRow(record, seal))
        return seal


async def test_a_set_is_read_again_when_its_seal_changes_only() -> None:
    """A row that was edited in place is not looked at; a new one is."""
    sets = Sets()
    first = sets.write(3)
    assert (await sets.present.sealed_by(first)).halts == HaltSet()
    sets.authority.halts_rows[-1] = HaltsRow(b"edited", first)
    assert (await sets.present.sealed_by(first)).halts == HaltSet()
    second = sets.write(7, halt())
    assert (await sets.present.sealed_by(second)).covered == {halt().scope}


async def test_an_older_set_than_the_one_seen_is_refused() -> None:
    """A set that was put back is valid in itself, and known to be older."""
    sets = Sets()
    first = sets.write(3)
    await sets.present.sealed_by(sets.write(7, halt()))
    sets.authority.halts_rows.pop()
    with pytest.raises(AuthorityForgedError, match="older"):
        await sets.present.sealed_by(first)
    with pytest.raises(AuthorityForgedError, match="older"):
        await sets.present.read()


async def test_a_snapshot_from_before_a_halt_is_no_forgery() -> None:
    """A batch that read authority before another call saw the new set gets the new set."""
    sets = Sets()
    first = sets.write(3)
    await sets.present.sealed_by(first)
    second = sets.write(7, halt())
    await sets.present.read()
    assert (await sets.present.sealed_by(first)).seal == second


async def test_a_missing_set_is_refused() -> None:
    """No row is no permission."""
    sets = Sets()
    with pytest.raises(AuthorityForgedError):
        await sets.present.sealed_by(None)
    with pytest.raises(AuthorityForgedError):
        await sets.present.read()
