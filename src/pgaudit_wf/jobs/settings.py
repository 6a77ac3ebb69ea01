"""The settings of `pgaudit-wf run`: a TOML file, and environment variables that go before it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pgaudit_wf.errors import JobSettingsError

__all__ = [
    "JOBS",
    "AlertsSettings",
    "KeysSettings",
    "MaintainSettings",
    "RunSettings",
    "SealSettings",
    "StreamSettings",
    "read",
]

JOBS = ("alerts", "seal", "maintain", "keys", "stream")
# Streams need the secrets of their destinations, so they run where they are asked for.
_USUAL = ("alerts", "seal", "maintain", "keys")
_PREFIX = "PGAUDIT_WF_"
# These go to the alerts by their variables, as docs/how-to/alerts.md lists them.
_CHANNELS = {
    "smtp": ("host", "from", "port", "tls", "user", "password", "password_file", "ca_file"),
    "webhook": ("secret", "secret_file", "secrets_file", "ca_file"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "interval": (0.05, 86400),
    "send_timeout": (1, 600),
    "months_ahead": (1, 120),
    "health_port": (0, 65535),
}
# What other commands call it.
_VARIABLES = {
    "alerts.templates": "PGAUDIT_WF_ALERT_TEMPLATES",
    "alerts.pages_url": "PGAUDIT_WF_PAGES_URL",
    "maintain.archive": "PGAUDIT_WF_ARCHIVE",
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AlertsSettings:
    """How alerts are delivered; the options of `pgaudit-wf alerts run` say what each is."""

    database: str | None = None
    interval: float = 5.0
    channels: tuple[str, ...] = ()
    templates: Path | None = None
    pages_url: str = ""
    send_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class SealSettings:
    """How the log is sealed; the options of `pgaudit-wf seal` say what each is."""

    database: str | None = None
    interval: float = 5.0
    key_file: Path | None = None
    sign_command: str | None = None
    public_key: str | None = None
    state: Path | None = None
    push: tuple[str, ...] = ()
    witness: tuple[str, ...] = ()
    tsa: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MaintainSettings:
    """How the log is maintained; the options of `pgaudit-wf maintain` say what each is."""

    database: str | None = None
    interval: float = 3600.0
    archive: str | None = None
    months_ahead: int = 3


@dataclass(frozen=True, slots=True)
class KeysSettings:
    """How API keys are watched; the options of `pgaudit-wf keys watch` say what each is."""

    database: str | None = None
    interval: float = 60.0


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How the log is sent elsewhere; the options of `pgaudit-wf stream` say what each is."""

    database: str | None = None
    interval: float = 5.0
    send_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class RunSettings:
    """All settings of a process.

    Attributes:
        database: The database, for jobs that name none of their own.
        jobs: The jobs to run.
        health_port: The port of the health check; None: none.
        health_host: Its address.
        alerts: The settings of this job.
        seal: The settings of this job.
        maintain: The settings of this job.
        keys: The settings of this job.
        stream: The settings of this job.
        variables: The environment, with those of the mail server and of webhooks.
    """

    database: str | None = None
    jobs: tuple[str, ...] = _USUAL
    health_port: int | None = None
    health_host: str = "127.0.0.1"
    alerts: AlertsSettings = field(default_factory=AlertsSettings)
    seal: SealSettings = field(default_factory=SealSettings)
    maintain: MaintainSettings = field(default_factory=MaintainSettings)
    keys: KeysSettings = field(default_factory=KeysSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


def read(path: Path | None, environment: Mapping[str, str]) -> RunSettings:
    """Return the settings of a file, where the environment does not say otherwise.

    Args:
        path: The file, in TOML; None: only the environment counts.
        environment: Variables such as `os.environ`: PGAUDIT_WF_ and the name of the setting, with
            that of its table before it (PGAUDIT_WF_SEAL_KEY_FILE). Lists are separated by blanks.

    Raises:
        JobSettingsError: The file cannot be read, or a setting is unknown or has no valid value.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise JobSettingsError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            # What the parser quotes of the file may be a password.
            place = str(error).rpartition("(")[2].rstrip(")") if "(at " in str(error) else "it"
            raise JobSettingsError(f"{path} is not valid TOML: see {place}") from None
    source = str(path)
    channels: dict[str, str] = {}
    for table, names in _CHANNELS.items():
        values = _table(given.pop(table, {}), table, source)
        for name, value in values.items():
            if name not in names or isinstance(value, (bool, dict, list)):
                raise JobSettingsError(
                    f"{source}: {table}.{name} is not a setting or has no valid value; there are"
                    f" {', '.join(names)}"
                )
            channels[f"{_PREFIX}{table}_{name}".upper()] = str(value)
    settings = _read(RunSettings, given, "", source, environment)
    unknown = set(settings.jobs) - set(JOBS)
    if unknown or not settings.jobs:
        raise JobSettingsError(
            f"jobs: {', '.join(sorted(unknown)) or 'none'} given, but there are {', '.join(JOBS)}"
        )
    return replace(settings, variables={**channels, **environment})


def _table(value: object, name: str, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JobSettingsError(f"{source}: {name} must be a table: [{name}]")
    return value


def _read(
    kind: type[_T], given: dict[str, Any], prefix: str, source: str, environment: Mapping[str, str]
) -> _T:
    hints = get_type_hints(kind)
    names = [each for each in fields(kind) if each.name != "variables"]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for each in names:
        name, wanted = f"{prefix}{each.name}", hints[each.name]
        if is_dataclass(wanted):
            table = _table(given.pop(each.name, {}), name, source)
            values[each.name] = _read(
                cast(type[Any], wanted), table, f"{name}.", source, environment
            )
            continue
        variable = _VARIABLES.get(name, f"{_PREFIX}{name.replace('.', '_')}".upper())
        in_file = given.pop(each.name, None)
        if text := environment.get(variable):
            values[each.name] = _in_range(_from_text(text, wanted, variable), each.name, variable)
        elif in_file is not None:
            place = f"{source}: {name}"
            values[each.name] = _in_range(_from_toml(in_file, wanted, place), each.name, place)
    if given:
        known = ", ".join(each.name for each in names)
        raise JobSettingsError(
            f"{source}: {prefix}{min(given)} is not a setting; there are {known}"
        )
    return kind(**values)


def _in_range(value: Any, setting: str, name: str) -> object:  # noqa: ANN401 - as read
    lowest, highest = _RANGES.get(setting, (None, None))
    if lowest is not None and highest is not None and not lowest <= value <= highest:
        raise JobSettingsError(f"{name} must be between {lowest:g} and {highest:g}")
    return value


def _from_text(text: str, wanted: Any, name: str) -> object:  # noqa: ANN401 - a type
    kinds = get_args(wanted) or (wanted,)
    try:
        if wanted == tuple[str, ...]:
            return tuple(text.split())
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except ValueError:
        raise JobSettingsError(f"{name} must be a number") from None
    return Path(text) if Path in kinds else text


def _from_toml(value: object, wanted: Any, name: str) -> object:  # noqa: ANN401 - a type
    kinds = get_args(wanted) or (wanted,)
    if wanted == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise JobSettingsError(f'{name} must be a list of texts: ["…"]')
        return tuple(value)
    if isinstance(value, bool):
        raise JobSettingsError(f"{name} must not be true or false")
    if int in kinds or float in kinds:
        if not isinstance(value, int | float if float in kinds else int):
            raise JobSettingsError(f"{name} must be a number")
        return value
    if not isinstance(value, str):
        raise JobSettingsError(f'{name} must be a text: "…"')
    return Path(value) if Path in kinds else value
