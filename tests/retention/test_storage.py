"""What the log costs in bytes, and will: the view `storage`."""

from __future__ import annotations

import psycopg
import pytest

from support.server import Conn

SUMS = """
select count(*), sum(events), sum(heap_bytes), sum(index_bytes)
from pgaudit_wf.storage where partition_name = %s
"""


def test_bytes_are_shared_among_types_and_forecast(conn: Conn, dsn: str) -> None:
    (partition,) = conn.execute(
        "select 'security_audit_log_' || to_char(now() at time zone 'utc', '\"y\"YYYY\"m\"MM')"
    ).fetchone() or ("",)
    # Names that an array's text quotes.
    odd = 'Ödd "{,}\n\\ type'
    for resource_type, count in (("order", 300), (odd, 100)):
        conn.execute(
            "select pgaudit_wf.record_event('order.seen', %s, i::text)"
            " from generate_series(1, %s) as i",
            [resource_type, count],
        )
    # Without statistics nothing is known of types.
    before = conn.execute(
        "select resource_type, heap_bytes > 0, index_bytes > 0 from pgaudit_wf.storage"
        " where partition_name = %s",
        [partition],
    ).fetchall()
    assert before == [(None, True, True)]
    conn.execute("analyze pgaudit_wf.security_audit_log")
    shown = conn.execute(
        "select resource_type, events, kept_days, events_a_day > 0, forecast_bytes > 0"
        " from pgaudit_wf.storage where partition_name = %s order by 2 desc",
        [partition],
    ).fetchall()
    assert shown == [("order", 300, 730, True, True), (odd, 100, 730, True, True)]
    row = conn.execute(SUMS, [partition]).fetchone()
    sizes = conn.execute(
        "select pg_table_size(c), pg_indexes_size(c) from (select ('pgaudit_wf.' || %s)::regclass)"
        " as r (c)",
        [partition],
    ).fetchone()
    assert row is not None
    assert sizes is not None
    assert row[:2] == (2, 400)
    assert [abs(a - b) <= 2 for a, b in zip(row[2:], sizes, strict=True)] == [True, True]

    # The longest policy that may apply, and none that cannot.
    conn.execute(
        "insert into pgaudit_wf.retention_policy (action_pattern, keep_days)"
        " values ('ord*', 2000), ('other.*', 3000)"
    )
    conn.execute(
        "insert into pgaudit_wf.retention_policy (org_id, action_pattern, keep_days)"
        " values ('o', 'order.seen', null)"
    )
    kept = dict(
        conn.execute(
            "select resource_type, (kept_days, forecast_bytes is null)::text"
            " from pgaudit_wf.storage where partition_name = %s",
            [partition],
        ).fetchall()
    )
    assert kept == {"order": "(,t)", odd: "(730,f)"}
    # Months that have not begun have no rate to speak of, and do no harm.
    assert conn.execute("select count(*) > 3 from pgaudit_wf.storage").fetchone() == (True,)
    conn.execute("create role storing login in role pgaudit_wf_reader")
    try:
        with (
            psycopg.connect(dsn, user="storing") as other,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            other.execute("select from pgaudit_wf.storage")
    finally:
        conn.execute("drop role storing")
