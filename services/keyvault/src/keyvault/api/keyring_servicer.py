"""KeyringService: the life of the keyring, for operators."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import keyring_service_pb2, keyring_service_pb2_grpc
from keyvault.api.fields import ACTOR_CHARACTERS_MAX, actor_from, enum_from
from keyvault.api.key_mapping import timestamp_to
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.keyring_versions import Backup, KeyringVersion, Replica, proved_by
from keyvault.domain.new_keys import check_text, refused
from keyvault.usecases.change_keyring import Change, ChangeKeyring, Destruction
from keyvault.usecases.follow_rewrap import FollowRewrap
from keyvault.usecases.list_keyring import COUNTED, KeyringListing, ListKeyring
from servicekit.identity import current_caller

if TYPE_CHECKING:
    import grpc
    from google.protobuf.timestamp_pb2 import Timestamp

    from keyvault.domain.rewrap import Rewrap

    Context = grpc.aio.ServicerContext[Any, Any]

_NOT_COUNTED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyringUseCases:
    """What the service does."""

    list_keyring: ListKeyring
    change: ChangeKeyring
    follow_rewrap: FollowRewrap


class KeyringServicer(keyring_service_pb2_grpc.KeyringServiceServicer):
    """Takes calls, asks use cases, answers."""

    def __init__(self, usecases: KeyringUseCases) -> None:
        """Serve `usecases`."""
        self._do = usecases

    @override
    async def ListKeyring(
        self, request: keyring_service_pb2.ListKeyringRequest, context: Context
    ) -> keyring_service_pb2.ListKeyringResponse:
        return _listing_to(await self._do.list_keyring(counts_rows=request.count_rows))

    @override
    async def StageKey(
        self, request: keyring_service_pb2.StageKeyRequest, context: Context
    ) -> keyring_service_pb2.StageKeyResponse:
        staged = await self._do.change.stage(_change_from(request), _purpose_from(request.purpose))
        return keyring_service_pb2.StageKeyResponse(version=_version_to(staged))

    @override
    async def PromoteKey(
        self, request: keyring_service_pb2.PromoteKeyRequest, context: Context
    ) -> keyring_service_pb2.PromoteKeyResponse:
        promoted = await self._do.change.promote(
            _change_from(request), _purpose_from(request.purpose), _number_from(request.version)
        )
        return keyring_service_pb2.PromoteKeyResponse(version=_version_to(promoted))

    @override
    async def RewrapKeys(
        self, request: keyring_service_pb2.RewrapKeysRequest, context: Context
    ) -> keyring_service_pb2.RewrapKeysResponse:
        stands = await self._do.follow_rewrap(
            caller=current_caller().uri,
            actor=check_text("actor", request.actor, characters_max=ACTOR_CHARACTERS_MAX),
            start=request.start,
            keys_per_second_max=request.keys_per_second_max,
            pause=request.pause if request.HasField("pause") else None,
        )
        return _rewrap_to(stands)

    @override
    async def DisableKey(
        self, request: keyring_service_pb2.DisableKeyRequest, context: Context
    ) -> keyring_service_pb2.DisableKeyResponse:
        disabled = await self._do.change.disable(
            _change_from(request), _purpose_from(request.purpose), _number_from(request.version)
        )
        return keyring_service_pb2.DisableKeyResponse(version=_version_to(disabled))

    @override
    async def EnableKey(
        self, request: keyring_service_pb2.EnableKeyRequest, context: Context
    ) -> keyring_service_pb2.EnableKeyResponse:
        enabled = await self._do.change.enable(
            _change_from(request), _purpose_from(request.purpose), _number_from(request.version)
        )
        return keyring_service_pb2.EnableKeyResponse(version=_version_to(enabled))

    @override
    async def DestroyKey(
        self, request: keyring_service_pb2.DestroyKeyRequest, context: Context
    ) -> keyring_service_pb2.DestroyKeyResponse:
        destroyed = await self._do.change.destroy(
            _change_from(request),
            _purpose_from(request.purpose),
            _number_from(request.version),
            Destruction(request.confirmation, request.old_root_key_is_gone, request.give_up_backups),
        )
        return keyring_service_pb2.DestroyKeyResponse(version=_version_to(destroyed))

    @override
    async def RegisterBackup(
        self, request: keyring_service_pb2.RegisterBackupRequest, context: Context
    ) -> keyring_service_pb2.RegisterBackupResponse:
        backup = Backup(
            request.backup.backup_id,
            _time_from(request.backup.snapshot_time, "backup.snapshot_time"),
            _time_from(request.backup.expire_time, "backup.expire_time"),
        )
        registered = await self._do.change.put_backup(_change_from(request), backup)
        return keyring_service_pb2.RegisterBackupResponse(backup=_backup_to(registered))

    @override
    async def RotateRootKey(
        self, request: keyring_service_pb2.RotateRootKeyRequest, context: Context
    ) -> keyring_service_pb2.RotateRootKeyResponse:
        if not request.root_key_id:
            raise refused("root_key_id", "REQUIRED", "Send the id of the next root key; ListKeyring tells it.")
        rewrapped = await self._do.change.rotate_root(_change_from(request), request.root_key_id)
        return keyring_service_pb2.RotateRootKeyResponse(rewrapped_versions=rewrapped, root_key_id=request.root_key_id)


def _rewrap_to(stands: Rewrap) -> keyring_service_pb2.RewrapKeysResponse:
    message = keyring_service_pb2.RewrapKeysResponse(
        state=int(stands.state),  # type: ignore[arg-type]  # the numbers are the contract's own
        kek_version=stands.kek_version,
        done=stands.done,
        remaining=stands.remaining,
        failed=stands.failed,
        keys_per_second=stands.keys_per_second,
        keys_per_second_max=stands.keys_per_second_max,
        completion_index=stands.completion_index,
        start_time=timestamp_to(stands.start_time),
        end_time=timestamp_to(stands.end_time),
    )
    if stands.remaining_time is not None:
        message.remaining_time.FromTimedelta(stands.remaining_time)
    return message


def _change_from(request: Any) -> Change:
    return Change(request_id=request.request_id, caller=current_caller().uri, actor=actor_from(request.actor))


def _purpose_from(purpose: int) -> KeyPurpose:
    return enum_from(KeyPurpose, purpose, "purpose")


def _number_from(version: int) -> int:
    if version < 1:
        raise refused("version", "OUT_OF_RANGE", "Send the number of a version, from 1.")
    return version


def _time_from(message: Timestamp, field: str) -> datetime:
    if not message.ByteSize():
        raise refused(field, "REQUIRED", "Send a time.")
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise refused(field, "OUT_OF_RANGE", "Send a time between the years 1 and 9999.") from None


def _listing_to(listing: KeyringListing) -> keyring_service_pb2.ListKeyringResponse:
    return keyring_service_pb2.ListKeyringResponse(
        versions=[
            _version_to(each, _rows_of(each, listing), proved_by(each, listing.replicas)) for each in listing.versions
        ],
        replicas=[_replica_to(each) for each in listing.replicas],
        backups=[_backup_to(each) for each in listing.backups],
        root_key_id=listing.root_key_id,
        next_root_key_id=listing.next_root_key_id,
    )


def _rows_of(version: KeyringVersion, listing: KeyringListing) -> int:
    if listing.rows is None or version.purpose not in COUNTED:
        return _NOT_COUNTED
    return listing.rows.get((version.purpose, version.version), 0)


def _version_to(
    version: KeyringVersion, rows: int = _NOT_COUNTED, proved: list[str] | None = None
) -> keyring_service_pb2.KeyringVersion:
    return keyring_service_pb2.KeyringVersion(
        purpose=int(version.purpose),  # type: ignore[arg-type]  # the numbers are the contract's own
        version=version.version,
        state=int(version.state),  # type: ignore[arg-type]  # as above
        root_key_id=version.root_key_id,
        needed_by_rows=rows,
        proved_by=proved or [],
        update_time=timestamp_to(version.update_time),
        create_time=timestamp_to(version.create_time),
    )


def _replica_to(replica: Replica) -> keyring_service_pb2.Replica:
    return keyring_service_pb2.Replica(
        replica_id=replica.replica_id,
        last_seen_time=timestamp_to(replica.last_seen),
        is_live=replica.is_live,
        root_key_ids=replica.root_key_ids,
        release=replica.release,
    )


def _backup_to(backup: Backup) -> keyring_service_pb2.Backup:
    return keyring_service_pb2.Backup(
        backup_id=backup.backup_id,
        snapshot_time=timestamp_to(backup.snapshot_time),
        expire_time=timestamp_to(backup.expire_time),
    )
