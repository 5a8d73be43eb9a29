"""What a developer may set for the embedded stack."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class TestkitSettings(BaseSettings):
    """Servers to use in place of the embedded ones."""

    __test__ = False
    model_config = SettingsConfigDict(env_prefix="BYOK_TEST_", frozen=True, extra="ignore")

    # A server on which databases may be created and dropped freely, e.g. postgresql://postgres@localhost/postgres.
    postgres_dsn: str | None = None
    # A server that may be flushed freely, e.g. redis://localhost:6379.
    redis_url: str | None = None
    # How often each process is killed in the chaos tests; `make chaos` asks for more than `make test`.
    chaos_rounds: int = 1
    # The shared library of SoftHSM2; softhsm2-util is then looked for on PATH.
    softhsm_module: Path | None = None
    # A Vault or OpenBao where engines, keys and policies may be made freely, with a token that may do all of that.
    vault_addr: str | None = None
    vault_token: str | None = None
