"""Watching API keys: events of what is about to happen to them, and of what is odd about their use.

The work is done by functions of the database, each call in a transaction of its own: an event and
the note that there was one are written together. So any number of processes may run at once, be
killed and run again, and each event is still made once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psycopg
from prometheus_client import Counter

from pgaudit_wf.jobs.service import Service
from pgaudit_wf.trail.statement import Connection, one

__all__ = ["KeyWatch"]

_BATCH = 1000


class KeyWatch:
    """Follows the log for uses of API keys, and compares the keys with the policy.

    Args:
        connect: Opens a connection in autocommit mode, as the schema's owner or as a login that
            `pgaudit_wf.grant_keys` was called for.
        service: The service that runs it and receives its metrics.
    """

    def __init__(self, connect: Callable[[], Connection], service: Service) -> None:
        self._connect = connect
        self._conn: Connection | None = None
        self._followed = Counter(
            "pgaudit_wf_keys_events", "Events of the log processed.", registry=service.registry
        )
        self._recorded = Counter(
            "pgaudit_wf_keys_recorded", "Events about API keys made.", registry=service.registry
        )

    def job(self, service: Service) -> bool:
        """Do the work that is due; return whether the log has more (see `Service.run`)."""
        try:
            if self._conn is None or self._conn.closed:
                self._conn = self._connect()
            followed, recorded = one(
                self._conn, "select events, recorded from pgaudit_wf._follow_api_keys(%s)", [_BATCH]
            )
            # Who has not read all uses yet would call a key unused that is in use.
            more = bool(followed == _BATCH)
            if not more:
                recorded += one(self._conn, "select pgaudit_wf._check_api_keys()")[0]
        except BaseException:
            # A connection that failed halfway is not used again.
            self.close()
            raise
        self._followed.inc(followed)
        self._recorded.inc(recorded)
        if recorded:
            service.log("recorded", events=recorded)
        return more

    def close(self) -> None:
        """Close the connection to the database."""
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None
