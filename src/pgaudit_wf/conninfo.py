"""Connection strings as people write them, made ready for libpq."""

from __future__ import annotations

import re

from psycopg.conninfo import conninfo_to_dict, make_conninfo


def without_driver(conninfo: str) -> str:
    """Return a connection string without SQLAlchemy's driver name, as in `postgresql+psycopg://`."""
    return re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", conninfo.strip())


def with_timeout(conninfo: str, seconds: int) -> str:
    """Return a connection string with a connect timeout, unless it already has one.

    Raises:
        psycopg.ProgrammingError: libpq cannot read the string.
    """
    if "connect_timeout" in conninfo_to_dict(conninfo):
        return conninfo
    return make_conninfo(conninfo, connect_timeout=seconds)
