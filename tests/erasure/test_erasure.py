"""Who somebody was is gone from log, history and archives; what he did is not."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf import request_context
from pgaudit_wf.archive.erase import (
    PersonalValue,
    archives_with,
    erase_from_archive,
    find_archived_values,
)
from pgaudit_wf.archive.files import list_archives, verify_archive
from pgaudit_wf.archive.read import archived_trail, whole_trail
from pgaudit_wf.archive.write import archive_partition
from pgaudit_wf.cli import app
from pgaudit_wf.errors import ArchiveError
from support.server import Conn

NAME, EMAIL, NEW_EMAIL = "Ada Lovelace", "ada@example.com", "countess@example.org"
IP, AGENT = "203.0.113.77", "Analytical/1.0 (Engine)"
PERSONAL = (NAME, EMAIL, NEW_EMAIL, IP, AGENT, "ADA@Example.com")
PARTITION = "security_audit_log_y2021m03"


def as_ada(conn: Conn) -> Any:  # noqa: ANN401
    return request_context(
        conn, actor_id="u_ada", actor_label=NAME, org_id="o_1", ip=IP, user_agent=AGENT
    )


@pytest.fixture
def lived(app_conn: Conn) -> Conn:
    """A database in which Ada did things and others did things to her."""
    conn = app_conn
    conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    conn.execute(
        "insert into app_user (id, email, name) values ('u_bob', 'bob@example.com', 'Bob')"
    )
    with request_context(conn, actor_id="u_bob", actor_label="Bob", org_id="o_1", ip="192.0.2.1",
                         user_agent="Mozilla", reason=f"for {EMAIL.upper()}."):  # fmt: skip
        conn.execute(
            "insert into app_user (id, email, name) values ('u_ada', %s, %s)", [EMAIL, NAME]
        )
        conn.execute(
            "select pgaudit_wf.record_event('mail.sent', 'mail', '1', after => %s)",
            [json.dumps({"to": [f"{NAME} <{EMAIL}>", "bada@example.com"], EMAIL: 1})],
        )
    with request_context(conn, actor_id="u_bob", actor_label="Bob", ip="192.0.2.1",
                         user_agent="Mozilla"):  # fmt: skip
        # Not hers: somebody else of that name, and an address that only begins like hers.
        conn.execute(
            "select pgaudit_wf.record_event('customer.created', 'customer', '1', after => %s)",
            [json.dumps({"name": NAME, "email": "ada@example.com.au", "ip": IP})],
        )
    with as_ada(conn):
        conn.execute("update app_user set email = %s where id = 'u_ada'", [NEW_EMAIL])
        conn.execute(
            "insert into workflow (org_id, user_id, name, nodes, edges)"
            " values ('o_1', 'u_ada', 'w', '[]', '[]')"
        )
        conn.execute(
            "select pgaudit_wf.record_event('thing.seen', 'thing', '1',"
            " metadata => jsonb_build_object('from', %s::text, 'count', 1))",
            [IP],
        )
    conn.execute("delete from workflow")
    conn.execute("delete from app_user where id = 'u_ada'")
    return conn


def everything(conn: Conn) -> str:
    """All that the audit schema's tables hold, as text."""
    tables = conn.execute(
        "select oid::regclass::text from pg_class where relnamespace = 'pgaudit_wf'::regnamespace"
        " and relkind = 'r'"
    ).fetchall()
    texts = []
    for (table,) in tables:
        texts += conn.execute(
            sql.SQL("select t::text from {} as t").format(sql.SQL(table))
        ).fetchall()
    return "\n".join(text for (text,) in texts)


def pseudonymise(conn: Conn, actor: str = "u_ada", *more: str) -> tuple[str, int, int, int]:
    row = conn.execute(
        "select * from pgaudit_wf.pseudonymise(%s, %s)", [actor, list(more)]
    ).fetchone()
    assert row
    return row  # type: ignore[no-any-return]


def test_erasure_leaves_nothing_that_identifies_the_person(lived: Conn) -> None:
    conn = lived
    kept = "id, tx_id, occurred_at, actor_id, org_id, action, resource_type, resource_id, outcome"
    before = conn.execute(
        f"select {kept} from pgaudit_wf.security_audit_log order by id"
    ).fetchall()
    text = everything(conn)
    assert all(value in text for value in (NAME, EMAIL, NEW_EMAIL, IP, AGENT))

    pseudonym, events, versions, archives = pseudonymise(conn)
    assert pseudonym.startswith("erased-")
    assert (events > 5, versions, archives) == (True, 1, 0)

    customers = "select diff from pgaudit_wf.security_audit_log where action = 'customer.created'"
    [(diff,)] = conn.execute(customers).fetchall()
    assert diff[0]["value"] == {"name": NAME, "email": "ada@example.com.au", "ip": IP}, "not hers"
    for line in everything(conn).replace("bada@example.com", "").splitlines():
        assert "customer.created" in line or not [v for v in PERSONAL if v in line], line
    [(mail,)] = conn.execute(
        "select diff -> 0 -> 'value' from pgaudit_wf.security_audit_log where action = 'mail.sent'"
    ).fetchall()
    assert mail == {"to": [f"{pseudonym} <{pseudonym}>", "bada@example.com"], pseudonym: 1}

    after = conn.execute(
        f"select {kept} from pgaudit_wf.security_audit_log where id <= %s order by id",
        [before[-1][0]],
    ).fetchall()
    assert after == before
    assert conn.execute(
        "select distinct actor_label, ip, user_agent from pgaudit_wf.security_audit_log"
        " where actor_id = 'u_ada'"
    ).fetchall() == [(pseudonym, None, pseudonym)]
    # Bob and his browser are untouched.
    assert conn.execute(
        "select distinct actor_label, host(ip), user_agent from pgaudit_wf.security_audit_log"
        " where actor_id = 'u_bob'"
    ).fetchall() == [("Bob", "192.0.2.1", "Mozilla")]


def test_the_act_is_recorded_without_the_values(lived: Conn) -> None:
    conn = lived
    with request_context(conn, actor_id="u_dpo", actor_label="Officer",
                         reason=f"Request 7 of {NEW_EMAIL}"):  # fmt: skip
        pseudonym, events, versions, _ = pseudonymise(conn)
    [row] = conn.execute(
        "select actor_id, actor_label, resource_type, resource_id, outcome, metadata"
        " from pgaudit_wf.security_audit_log where action = 'actor.pseudonymised'"
    ).fetchall()
    assert row == (
        "u_dpo", "Officer", "actor", "u_ada", "succeeded",
        {"pseudonym": pseudonym, "events": events, "versions": versions, "archives": 0,
         "reason": f"Request 7 of {pseudonym}"},
    )  # fmt: skip
    assert conn.execute(
        "select actor_id, pseudonym, events, versions from pgaudit_wf.erasure"
    ).fetchall() == [("u_ada", pseudonym, events, versions)]
    fields = conn.execute(
        "select distinct f from pgaudit_wf.erased_event, unnest(fields) as f order by 1"
    ).fetchall()
    assert fields == [("actor_label",), ("diff",), ("ip",), ("metadata",), ("user_agent",)]
    assert conn.execute("select count(*) from pgaudit_wf.erased_event").fetchone() == (events,)


def test_whoever_erases_herself_leaves_no_name(lived: Conn) -> None:
    with as_ada(lived):
        pseudonymise(lived)
        # Her context goes on as it was.
        assert lived.execute("select current_setting('app.actor_label')").fetchone() == (NAME,)
    assert lived.execute(
        "select actor_id, actor_label, ip, user_agent from pgaudit_wf.security_audit_log"
        " where action = 'actor.pseudonymised'"
    ).fetchall() == [("u_ada", None, None, None)]


def test_erasing_again_covers_events_written_since(lived: Conn) -> None:
    conn = lived
    first = pseudonymise(conn)
    again = pseudonymise(conn)
    assert again == (first[0], 0, 0, 0)
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where action = 'actor.pseudonymised'"
    ).fetchone() == (1,)
    with as_ada(conn):
        conn.execute("select pgaudit_wf.record_event('thing.seen', 'thing', '2')")
    assert pseudonymise(conn)[:2] == (first[0], 1)


def test_values_that_only_the_owner_knows_can_be_given(lived: Conn) -> None:
    with request_context(lived, actor_id="u_bob"):
        lived.execute(
            "select pgaudit_wf.record_event('note.added', 'note', '1', metadata =>"
            ' \'{"by": "countess.l@example.net", "for": "u_ada", "nick": "AAL"}\')'
        )
    pseudonym, *_ = pseudonymise(lived, "u_ada", "countess.l@example.net", "AAL")
    assert lived.execute(
        "select metadata from pgaudit_wf.security_audit_log where action = 'note.added'"
    ).fetchone() == ({"by": pseudonym, "for": "u_ada", "nick": pseudonym},)


def test_what_is_within_a_document_is_found_and_masked(lived: Conn) -> None:
    home, work, odd = "lovelace@example.org", "byron@example.net", "a/~b@example.net"
    profile = {"pad": "x" * 100, "contact": {"email": home, "first_name": "Augusta"}, odd: [1, 2]}
    lived.execute("alter table app_user add profile jsonb")
    lived.execute(
        "insert into app_user (id, email, name, profile) values ('u_ada', %s, %s, %s)",
        [EMAIL, NAME, json.dumps(profile)],
    )
    steps = [
        ["{contact,email}", f'"{work}"'],
        [f"{{{odd},0}}", f'"{home} and Augusta"'],
        ["{contact,phone}", '["+44 1234567"]'],
    ]
    for step in steps:
        lived.execute("update app_user set profile = jsonb_set(profile, %s, %s)", step)
    lived.execute("update app_user set profile = profile #- '{contact,email}' where id = 'u_ada'")
    [(at,)] = lived.execute("select clock_timestamp()").fetchall()
    lived.execute("delete from app_user where id = 'u_ada'")
    paths = (
        "select array_agg(op ->> 'path') from pgaudit_wf.security_audit_log, {} where {}".format(
            "jsonb_array_elements(diff) as op", "op ->> 'path' like '/profile/%'"
        )
    )
    assert lived.execute(paths).fetchone() == (
        ["/profile/contact/email", "/profile/a~1~0b@example.net/0", "/profile/contact/phone",
         "/profile/contact/email"],
    )  # fmt: skip

    pseudonym, *_ = pseudonymise(lived, "u_ada", odd)
    text = everything(lived)
    assert not [v for v in (home, work, "Augusta", odd, "a~1~0b", "1234567") if v in text]
    [(row,)] = lived.execute(
        "select pgaudit_wf.row_as_of('app_user', 'u_ada', %s) -> 'profile'", [at]
    ).fetchall()
    assert row == {
        "pad": "x" * 100,
        "contact": {"first_name": pseudonym, "phone": [pseudonym]},
        pseudonym: [f"{pseudonym} and {pseudonym}", 2],
    }


@pytest.mark.parametrize("actor", ["u_adaa", "", None])
def test_an_unknown_actor_is_refused(lived: Conn, actor: str | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        lived.execute("select pgaudit_wf.pseudonymise(%s)", [actor])
    assert caught.value.sqlstate == "PA360"
    assert lived.execute("select from pgaudit_wf.erasure").fetchall() == []


def test_only_the_owner_may_erase_and_the_log_stays_append_only(lived: Conn) -> None:
    pseudonymise(lived)
    for role in ("pgaudit_wf_app", "pgaudit_wf_reader"):
        for call in ("pseudonymise('u_bob')", "_begin_erasure('u_bob')"):
            with lived.transaction(force_rollback=True):
                lived.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    lived.execute(f"select pgaudit_wf.{call}")
    for statement in (
        "update pgaudit_wf.security_audit_log set actor_label = 'x'",
        "update pgaudit_wf.security_audit_log_default set actor_label = 'x'",
        "update pgaudit_wf.workflow_history set actor_label = 'x'",
        "delete from pgaudit_wf.erasure", "truncate pgaudit_wf.erased_event",
    ):  # fmt: skip
        with pytest.raises(psycopg.Error) as caught:
            lived.execute(statement)
        assert caught.value.sqlstate == "PA001", statement
    assert (
        lived.execute("select from pgaudit_wf.doctor() where severity = 'error'").fetchall() == []
    )


def test_two_at_once_agree_on_the_pseudonym(lived: Conn, app_dsn: str) -> None:
    with psycopg.connect(app_dsn) as other:
        first = pseudonymise(other)
        lived.execute("set lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            pseudonymise(lived)
    assert pseudonymise(lived)[0] == first[0]


# Archives.


@pytest.fixture
def archived(lived: Conn, tmp_path: Path) -> Conn:
    """The same, and in an archived month Ada under a name that only this month knows."""
    lived.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, actor_id, actor_label, ip,"
        " user_agent, action, org_id, diff) values"
        " ('2021-03-01', 'u_ada', 'Ada Byron', '198.51.100.1', 'Old/1', 'thing.seen', 'o_1', null),"
        " ('2021-03-02', 'u_bob', 'Bob', '192.0.2.1', 'Mozilla', 'thing.seen', 'o_1',"
        """ '[{"op": "add", "path": "", "value": {"to": "ada@example.com", "of": "u_ada","""
        """ "name": "Ada Byron", "n": 0.10}}]'),"""
        " ('2021-03-03', 'u_bob', 'Bob', '192.0.2.1', 'Mozilla', 'thing.seen', 'o_1', null)"
    )
    lived.execute("select pgaudit_wf.add_log_partition('2021-03-01')")
    archive_partition(lived, PARTITION, str(tmp_path))
    lived.execute("select pgaudit_wf.prune(%s)", [PARTITION])
    return lived


def test_an_archive_is_masked_while_it_is_read(archived: Conn, tmp_path: Path) -> None:
    archives = list_archives(str(tmp_path))
    assert [e.actor_name for e in archived_trail(archived, archives)] == ["Bob", "Bob", "Ada Byron"]
    pseudonym, _, _, waiting = pseudonymise(archived)
    assert waiting == 1
    entry = list(archived_trail(archived, archives))[-1]
    assert (entry.actor_id, entry.actor_name, entry.ip, entry.user_agent) == (
        "u_ada", pseudonym, None, pseudonym
    )  # fmt: skip
    # Searching for what is masked finds nothing either.
    assert list(archived_trail(archived, archives, search="Ada Byron")) == []
    assert list(archived_trail(archived, archives, search="198.51.100.1")) == []
    assert len(list(archived_trail(archived, archives, search="Mozilla"))) == 2


def test_erase_rewrites_archives(
    archived: Conn, app_dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [before] = list_archives(str(tmp_path))
    kept = [(e.id, e.occurred_at, e.action, e.actor_id)
            for e in whole_trail(archived, [before])]  # fmt: skip
    for attempt in range(2):
        with pytest.raises(SystemExit) as caught:
            app(["erase", "u_ada", "--yes", "--as", "u_dpo", "--reason", "7", "--json",
                 "-d", app_dsn])  # fmt: skip
        assert caught.value.code == 0
        told = json.loads(capsys.readouterr().out)
        assert told["archives"] == 0
        assert told["archived_events"] == (2 if attempt == 0 else 0)
    [after] = list_archives(str(tmp_path))
    verify_archive(after)
    assert after.manifest["erasures"][0]["pseudonym"] == told["pseudonym"]
    assert after.manifest["erasures"][0]["previous_sha256"] == before.manifest["sha256"]
    assert len(after.manifest["erasures"]) == 1
    assert archived.execute("select sha256, manifest from pgaudit_wf.archive").fetchone() == (
        after.manifest["sha256"], after.manifest
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [after.manifest["file"], after.manifest["file"].replace(".parquet", ".manifest.json")]
    )
    entries = list(archived_trail(archived, [after]))
    assert [e.actor_name for e in entries] == ["Bob", "Bob", told["pseudonym"]]
    # Found by the name that only the archive knew, also in what others did.
    assert entries[1].diff == [{"op": "add", "path": "", "value": {
        "to": told["pseudonym"], "of": "u_ada", "name": told["pseudonym"],
        "n": Decimal("0.10")}}]  # fmt: skip
    assert [
        (e.id, e.occurred_at, e.action, e.actor_id)
        for e in whole_trail(archived, [after])
        if e.action not in ("actor.pseudonymised", "audit.archive_rewritten")
    ] == kept  # fmt: skip


def test_an_interrupted_rewriting_can_be_run_again(
    archived: Conn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = archived.execute("select pgaudit_wf._begin_erasure('u_ada')").fetchone()
    assert row
    [(number, archive)] = archives_with(archived, row[0])
    events, values = find_archived_values(archived, [archive], "u_ada")
    assert events == 1
    assert PersonalValue("name", "Ada Byron") in values
    filesystem = type(__import__("fsspec").filesystem("file"))
    real = filesystem.mv
    for fail_at in (1, 2):
        moved = 0

        def stop(self: Any, *args: Any, **rest: Any) -> None:  # noqa: ANN401
            nonlocal moved
            moved += 1
            if moved == fail_at:  # noqa: B023
                raise KeyboardInterrupt
            real(self, *args, **rest)

        monkeypatch.setattr(filesystem, "mv", stop)
        with pytest.raises(KeyboardInterrupt):
            erase_from_archive(archived, number, archive, "u_ada", row[0], values)
        monkeypatch.undo()
    archived.execute("create function pgaudit_wf.fail() returns trigger language plpgsql as"
                     " $$ begin raise 'lost'; end $$")  # fmt: skip
    archived.execute("create trigger fail before update on pgaudit_wf.archive"
                     " for each row execute function pgaudit_wf.fail()")  # fmt: skip
    with pytest.raises(psycopg.Error, match="lost"):
        erase_from_archive(archived, number, archive, "u_ada", row[0], values)
    archived.execute("drop trigger fail on pgaudit_wf.archive")
    erase_from_archive(archived, number, archive, "u_ada", row[0], values)
    [after] = list_archives(str(tmp_path))
    verify_archive(after)
    assert archives_with(archived, row[0]) == []


def test_a_file_that_somebody_changed_is_not_rewritten(archived: Conn, tmp_path: Path) -> None:
    [(number, archive)] = archives_with(archived, "")
    [path] = tmp_path.glob("*.parquet")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArchiveError, match="SHA-256"):
        erase_from_archive(archived, number, archive, "u_ada", "erased-x", [])
    with pytest.raises(psycopg.Error) as caught:
        archived.execute("select pgaudit_wf._replace_archive(%s, %s, '{}')", [number, "0" * 64])
    assert caught.value.sqlstate == "PA350"


def test_erase_asks_first(app_dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        app(["erase", "u_ada", "-d", app_dsn])
    assert caught.value.code == 2
    assert "--yes" in capsys.readouterr().err
