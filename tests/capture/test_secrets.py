"""The search for secrets that ends every test is itself able to find one."""

from collections.abc import Callable

import psycopg


def test_a_planted_secret_is_found(
    conn: psycopg.Connection,
    secret: Callable[[], str],
    find_secrets: Callable[[psycopg.Connection], list[str]],
) -> None:
    assert find_secrets(conn) == []
    with conn.transaction(force_rollback=True):
        conn.execute(
            "insert into pgaudit_wf.security_audit_log (action, metadata) "
            "values ('planted', jsonb_build_object('key', %s::text))",
            [secret()],
        )
        [table] = find_secrets(conn)
    assert table.startswith("pgaudit_wf.security_audit_log")
