"""The database of an alias of `settings.DATABASES`, as libpq names it."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from psycopg.conninfo import make_conninfo

# What Django adds for psycopg itself, which libpq does not know.
_DRIVER_ONLY = {"autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory"}


def conninfo(alias: str) -> str:
    """Return the connection string of a database, a test database where Django uses one.

    Args:
        alias: Its alias in `settings.DATABASES`.

    Raises:
        ImproperlyConfigured: It is not PostgreSQL, or has no name.
        ConnectionDoesNotExist: There is no such alias.
    """
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured(f"database {alias} is not PostgreSQL")
    parameters = {
        name: value
        for name, value in connection.get_connection_params().items()
        if name not in _DRIVER_ONLY
    }
    # Only connections of Django itself take it on.
    role = connection.settings_dict["OPTIONS"].get("assume_role")
    if role:
        escaped = str(role).replace("\\", "\\\\").replace(" ", "\\ ")
        parameters["options"] = f"{parameters.get('options', '')} -c role={escaped}".strip()
    return make_conninfo(**parameters)
