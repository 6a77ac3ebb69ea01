"""A save that says it rests on an older version is refused, with what both sides changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from pgaudit_wf.errors import StaleSaveError, from_database
from support.server import Conn


@pytest.fixture
def db(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "create table flow (id text primary key, org_id text, name text, description text,"
            " nodes jsonb, edges jsonb); select pgaudit_wf.attach_workflow('flow');"
            " insert into flow values ('w', 'o_1', 'First', 'd', '[]', '[]')"
        )
        yield conn


@contextmanager
def resting_on(conn: Conn, version: str, hash_: str = "") -> Iterator[None]:
    with conn.transaction():
        conn.execute(
            "select set_config('app.base_version', %s, true),"
            " set_config('app.base_hash', %s, true)",
            [version, hash_],
        )
        yield


def rename(conn: Conn, name: str) -> None:
    conn.execute("update flow set name = %s", [name])


def test_a_save_on_an_older_version_is_refused_with_both_differences(db: Conn) -> None:
    with resting_on(db, "1"):
        rename(db, "Theirs")
        # On the version that this transaction has just made.
        rename(db, "Theirs, again")
    with pytest.raises(psycopg.Error) as caught, resting_on(db, "1"):
        db.execute("update flow set description = 'mine'")
    error = from_database(caught.value)
    assert isinstance(error, StaleSaveError)
    said = error.differences
    assert (said["base"], said["current"]) == (1, 3)
    assert said["theirs"]["settings"] == [
        {"field": "name", "before": "First", "after": "Theirs, again"}
    ]
    assert {"field": "description", "before": "d", "after": "mine"} in said["yours"]["settings"]
    db.execute("select pgaudit_wf.attach_workflow('flow', on_failure => 'warn')")
    with pytest.raises(psycopg.Error), resting_on(db, "1"):
        rename(db, "Stale, on a table whose failures only warn")
    rename(db, "Nothing said")
    with resting_on(db, "4"):
        rename(db, "On the newest")
    row = db.execute("select max(version) from pgaudit_wf.workflow_history").fetchone()
    assert row == (5,)


def test_a_base_is_a_hash_too_and_an_unknown_one_is_refused(db: Conn) -> None:
    row = db.execute("select content_hash from pgaudit_wf.workflow_history").fetchone()
    assert row
    db.execute('update flow set nodes = \'[{"id": "a"}]\'')
    for version, hash_, base in (("", row[0], 1), ("1", row[0], 1), ("2", row[0], None),
                                 ("9", "", None), ("", "x' or true", None)):  # fmt: skip
        with pytest.raises(psycopg.Error) as caught, resting_on(db, version, hash_):
            rename(db, "Stale")
        error = from_database(caught.value)
        assert isinstance(error, StaleSaveError)
        assert (error.differences["base"], error.differences["yours"] is None) == (
            base, base is None,
        )  # fmt: skip
    with pytest.raises(psycopg.Error) as caught, resting_on(db, "two"):
        rename(db, "Stale")
    assert caught.value.sqlstate == "PA008"
    with resting_on(db, "2"):
        # A version of its own, of another workflow.
        db.execute("insert into flow values ('new', 'o_1', 'New', '', '[]', '[]')")
        db.execute('update flow set nodes = \'[{"id": "a", "position": {}}]\' where id = \'w\'')


def test_of_two_who_save_at_once_the_second_is_refused(db: Conn) -> None:
    with psycopg.connect(db.info.dsn) as other:
        other.execute("set local app.base_version = '1'")
        other.execute("update flow set name = 'Theirs'")
        with psycopg.connect(db.info.dsn) as mine, mine.pipeline():
            mine.execute("set local app.base_version = '1'")
            mine.execute("set local lock_timeout = '30s'")
            saved = mine.execute("update flow set name = 'Mine'")
            other.commit()
            with pytest.raises(psycopg.Error) as caught:
                saved.fetchone()
            assert caught.value.sqlstate == "PA305"
            mine.rollback()
