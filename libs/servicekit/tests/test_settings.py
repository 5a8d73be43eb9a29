from datetime import timedelta
from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict

from servicekit.settings import (
    Duration,
    PeerSettings,
    ServerSettings,
    ServiceSettings,
    SettingsError,
    SettingsGroup,
    load,
    read,
)


class Limits(SettingsGroup):
    """A group of a service's own."""

    linger: Duration = timedelta(milliseconds=8)
    hosts: tuple[str, ...] = ()


class Sample(ServiceSettings):
    """Settings as a service would define them."""

    model_config = SettingsConfigDict(env_prefix="BYOK_SAMPLE_")

    server: ServerSettings
    limits: Limits = Limits()
    peer: PeerSettings | None = None
    deployment: str = "local"


@pytest.fixture
def tls(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set the fields that have no default."""
    for name in ("CERTIFICATE", "PRIVATE_KEY", "CA"):
        monkeypatch.setenv(f"BYOK_SAMPLE_SERVER__TLS__{name}_FILE", f"/etc/{name.lower()}.pem")
    return monkeypatch


def test_the_environment_sets_nested_fields(tls: pytest.MonkeyPatch) -> None:
    """Names nest by two underscores; durations are seconds or ISO 8601; lists are JSON."""
    tls.setenv("BYOK_SAMPLE_SERVER__LISTEN", "0.0.0.0:7000")
    tls.setenv("BYOK_SAMPLE_SERVER__DRAIN_GRACE", "2.5")
    tls.setenv("BYOK_SAMPLE_LIMITS__LINGER", "PT0.25S")
    tls.setenv("BYOK_SAMPLE_LIMITS__HOSTS", '["localhost:1"]')
    tls.setenv("BYOK_SAMPLE_PEER__TARGET", "dns:///keyvault:7000")
    settings = read(Sample)
    assert settings.server.listen == "0.0.0.0:7000"
    assert settings.server.drain_grace == timedelta(seconds=2.5)
    assert settings.limits == Limits(linger=timedelta(milliseconds=250), hosts=("localhost:1",))
    assert settings.peer == PeerSettings(target="dns:///keyvault:7000")
    assert settings.server.tls.files().ca == Path("/etc/ca.pem")


def test_the_file_fills_in_and_the_environment_wins(tls: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A TOML file sets what the environment leaves open, within a group too."""
    path = tmp_path / "settings.toml"
    path.write_text('deployment = "prod"\n[server]\nlisten = "127.0.0.1:1"\ndrain_grace = 7\n', encoding="utf-8")
    tls.setenv("BYOK_SAMPLE_SERVER__LISTEN", "127.0.0.1:2")
    settings = read(Sample, config=path)
    assert (settings.deployment, settings.server.listen) == ("prod", "127.0.0.1:2")
    assert settings.server.drain_grace == timedelta(seconds=7)
    assert read(Sample).deployment == "local"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        pytest.param("BYOK_SAMPLE_SERVR__LISTEN", "x", "BYOK_SAMPLE_SERVR__LISTEN", id="a misspelt group"),
        pytest.param("BYOK_SAMPLE_SERVER__LISTN", "x", "server.listn", id="a misspelt field"),
        pytest.param("BYOK_SAMPLE_SERVER__LISTEN", "no port", "server.listen", id="a wrong address"),
        pytest.param("BYOK_SAMPLE_SERVER__DRAIN_GRACE", "0", "server.drain_grace", id="a zero duration"),
        pytest.param("BYOK_SAMPLE_LIMITS__LINGER", "-1", "limits.linger", id="a negative duration"),
        pytest.param("BYOK_SAMPLE_TELEMETRY__LOG_LEVEL", "loud", "telemetry.log_level", id="an unknown level"),
    ],
)
def test_what_is_wrong_is_named(tls: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """A setting that cannot be used is refused by its name."""
    tls.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        read(Sample)


def test_a_faulty_value_is_not_shown(tls: pytest.MonkeyPatch) -> None:
    """Somebody may have put a secret where a path belongs."""
    tls.setenv("BYOK_SAMPLE_SERVER__LISTEN", "sk-canary-secret")
    with pytest.raises(SettingsError) as refused:
        read(Sample)
    assert "canary" not in str(refused.value)


def test_an_unknown_name_in_the_file_is_refused(tls: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file is held to the same names."""
    path = tmp_path / "settings.toml"
    path.write_text("deploymnt = 'prod'\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="deploymnt"):
        read(Sample, config=path)
    with pytest.raises(SettingsError, match="no such file"):
        read(Sample, config=tmp_path / "missing.toml")


def test_check_config_says_ok_and_ends(tls: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The check starts nothing."""
    with pytest.raises(SystemExit) as ended:
        load(Sample, ["--check-config"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "settings: OK\n"


def test_unusable_settings_end_the_program_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is named on standard error."""
    with pytest.raises(SystemExit) as ended:
        load(Sample, ["--check-config"])
    assert ended.value.code == 2
    assert "server: Field required" in capsys.readouterr().err


def test_the_command_is_the_first_by_default(tls: pytest.MonkeyPatch) -> None:
    """`serve` unless something else is asked for; an unknown command is refused."""
    assert load(Sample, [], commands=("serve", "migrate")).command == "serve"
    assert load(Sample, ["migrate"], commands=("serve", "migrate")).command == "migrate"
    with pytest.raises(SystemExit):
        load(Sample, ["destroy"], commands=("serve", "migrate"))
