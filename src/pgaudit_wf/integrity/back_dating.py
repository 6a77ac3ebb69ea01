"""Events dated before the transactions that were over when theirs began.

Nothing signed says when an event was sealed. But leaves are in the order in which transactions took
their numbers: a transaction with a lower number and an event of a later time was under way at the
earlier time. Only so many can be under way at once.
"""

from __future__ import annotations

import heapq
from datetime import UTC, datetime, timedelta

from pgaudit_wf.integrity import leaf as leaves
from pgaudit_wf.trail.statement import Connection, one

# A clock may be set right.
_TOLERANCE = timedelta(hours=1)


def most_transactions(conn: Connection) -> int:
    """Return how many transactions can be under way at once in this cluster."""
    (most,) = one(
        conn,
        "select sum(s.setting::integer) from pg_settings as s where s.name in"
        " ('max_connections', 'max_prepared_transactions', 'max_worker_processes')",
    )
    return int(most)


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        # Before the year 1 or after 9999.
        is_early = text.startswith("-") or text.endswith("BC")
        return (datetime.min if is_early else datetime.max).replace(tzinfo=UTC)


class Clock:
    """Follows the events in the order of their leaves.

    Args:
        most: How many transactions can have been under way at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tx_id = ""
        self._newest = datetime.min.replace(tzinfo=UTC)
        # The newest times of as many transactions as there can be, the oldest of them first.
        self._last: list[datetime] = []

    def precedes_too_many(self, row: leaves.EventText) -> bool:
        """Take the next event; return whether too many transactions before it are later."""
        at = _time(row.occurred_at)
        if row.tx_id == self._tx_id:
            self._newest = max(self._newest, at)
        else:
            if len(self._last) < self._most:
                heapq.heappush(self._last, self._newest)
            else:
                heapq.heappushpop(self._last, self._newest)
            self._tx_id, self._newest = row.tx_id, at
        return len(self._last) == self._most and self._last[0] - at > _TOLERANCE
