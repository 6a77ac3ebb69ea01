"""`attach --all` and files of one's own: the plan, the question, and what is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgaudit_wf.errors import PresetError
from pgaudit_wf.presets import preset_names, read_preset
from support.command import command
from support.server import Conn

SECRET = "hush-hush"
TABLES = """
create schema "Odd schema";
create table "Odd schema"."a ""b" (id int primary key, "apiKey" text, note text);
create table client (
    id int primary key, config jsonb, extra json, wild jsonb, pin_hash text, pin_count int,
    passed date
);
create table session (access_token text primary key, data text);
create table unkeyed (x int);
create table parent (id int primary key);
create table child (primary key (id)) inherits (parent);
create table known (id int primary key);
create table waived (id int primary key);
insert into pgaudit_wf.waiver (subject, reason) values ('public.waived', 'not needed');
select pgaudit_wf.attach('known');
"""


@pytest.fixture
def db(conn: Conn) -> Conn:
    conn.execute(TABLES.encode())
    config = {
        "url": "u",
        "auth": [{"my api_key": SECRET, "": {"token": SECRET}}],
        "headers": {"Authorization": f"Bearer {SECRET}"},
        "hasToken": True,
        "tokenCount": 3,
    }
    wild = {f"user {number}": {"password": SECRET} for number in range(30)}
    # What jsonb cannot hold must not end the search.
    conn.execute(
        "insert into client values (1, %s, %s, %s, %s), (2, null, %s, null, null)",
        [json.dumps(config), json.dumps({"secret": SECRET}), json.dumps(wild), SECRET,
         '{"x": "\\u0000"}'],
    )  # fmt: skip
    return conn


def test_all_tables_with_what_looks_like_a_secret_redacted(
    db: Conn, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = command(capsys, "attach", "--all", "-d", dsn, "--dry-run", "--json")
    plan = {step["name"]: step for step in json.loads(planned.out)}
    assert sorted(plan["public.client"]["settings"]["redact"]) == [
        'config.auth.*."my api_key"', "config.auth.*.*.token", "config.headers.Authorization",
        "extra.secret", "pin_hash", "wild",
    ]  # fmt: skip
    assert plan['"Odd schema"."a ""b"']["settings"] == {"redact": ["apiKey"]}
    assert "key looks like a secret" in plan["public.session"]["left_out"]
    assert "no primary key" in plan["public.unkeyed"]["left_out"]
    names = list(plan)
    assert names.index("public.child") < names.index("public.parent")
    assert {"public.known", "public.waived"} & set(names) == set()
    count = "select count(*) from pgaudit_wf.attachment"
    assert db.execute(count).fetchone() == (1,)

    # Nobody to ask.
    refused = command(capsys, "attach", "--all", "-d", dsn)
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert db.execute(count).fetchone() == (1,)
    done = command(capsys, "attach", "--all", "-d", dsn, "--yes")
    assert (done.code, "4 tables are recorded from now on" in done.out) == (0, True)
    db.execute("update client set config = jsonb_set(config, '{url}', '\"v\"')")
    db.execute("update client set config = jsonb_set(config, '{headers,Authorization}', '\"x\"')")
    db.execute("delete from client")
    db.execute("""insert into "Odd schema"."a ""b" values (1, %s)""", [SECRET])
    assert db.execute(
        "select count(*), count(*) filter (where e::text ~ %s)"
        " from pgaudit_wf.security_audit_log as e where action !~ '^audit[.]'",
        [SECRET],
    ).fetchone() == (5, 0)
    again = command(capsys, "attach", "--all", "-d", dsn, "--yes")
    assert (again.code, "Nothing is left to attach" in again.out) == (0, True)


def test_only_one_schema_and_a_table_that_is_in_use(
    db: Conn, dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_wf.cli.attaching._LOCK_TIMEOUT", "50ms")
    gone = command(capsys, "attach", "--all", "-d", dsn, "--schema", "nowhere")
    assert (gone.code, "there is no schema nowhere" in gone.err) == (1, True)
    with db.transaction():
        db.execute("""lock table "Odd schema"."a ""b" in row exclusive mode""")
        done = command(capsys, "attach", "--all", "-d", dsn, "--schema", "Odd schema", "--yes")
    assert done.code == 1
    assert "it is in use for more than 50ms: run the command again" in done.out
    assert "0 tables are recorded" in done.out


def test_a_file_of_ones_own(
    db: Conn, dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = command(capsys, "attach", "--preset", "django", "--show")
    assert (shown.code, 'name = "auth_user"' in shown.out) == (0, True)
    mine = tmp_path / "mine.toml"
    mine.write_text(shown.out)
    assert read_preset(str(mine)) == read_preset("django")
    absent = command(capsys, "attach", "--preset", mine, "-d", dsn, "--yes")
    assert (absent.code, "none of the tables of Django is there" in absent.err) == (1, True)

    mine.write_text(
        'schema = "public"\n'
        '[[table]]\nname = "client"\nlabel_column = "gone"\nredact = ["config.url", "older"]\n'
        'not_secret = ["pin_hash"]\n'
        '[[table]]\nname = "unkeyed"\n'
        '[[rule]]\nresource_type = "client"\nop = "update"\ncondition = "new.nowhere"\n'
        'action = "client.x"\n'
        '[[directory]]\nview = "actor_directory"\nquery = "select id as actor_id'
        ' from {schema}.client"\n'
    )
    planned = command(capsys, "attach", "--preset", mine, "-d", dsn, "--dry-run", "--json")
    assert json.loads(planned.out)[0]["notes"] == ["has no column gone, older"]
    assert db.execute("select count(*) from pgaudit_wf.attachment").fetchone() == (1,)
    done = command(capsys, "attach", "--preset", mine, "-d", dsn, "--yes")
    assert done.code == 1
    # One that fails does not keep the others from being done.
    assert "table public.unkeyed failed: public.unkeyed has no primary key" in done.out
    assert "rule client.x failed" in done.out
    assert "1 table is recorded" in done.out
    [(redact, label)] = db.execute(
        "select redact, label_column from pgaudit_wf.attachment where target = 'client'::regclass"
    ).fetchall()
    assert ("config.url" in redact, "pin_hash" in redact, "wild" in redact) == (True, False, True)
    assert label is None
    assert db.execute("select pgaudit_wf._unset_directories()").fetchone() == (
        ["credential_directory", "org_member"],
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[table]", "not valid TOML"),
        ("", r"has no \[\[table\]\]"),
        ('[[table]]\nresource_type = "x"', "name is missing"),
        ('[[table]]\nname = "x"\nredacted = []', "redacted is not a setting"),
        ('[[table]]\nname = "x"\nredact = "y"', "redact must be a list of texts"),
        ('[[table]]\nname = "x"\nmax_value = true', "max_value must be a whole number"),
        ('table = 1', "table must be a list"),
        ('colour = 1\n[[table]]\nname = "x"', "colour is no setting"),
        ('[[directory]]\nview = "org_member"', "either source or query"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(PresetError, match=message):
        read_preset(str(mine))


def test_what_is_there_and_what_goes_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert preset_names() == ["directus", "django", "flowise", "n8n", "supabase-auth"]
    for arguments in (
        ["--preset", "rails"], ["--preset", "./gone.toml"], [], ["--show"],
        ["public.t", "--all"], ["--all", "--redact", "x"], ["--all", "--preset", "n8n"],
    ):  # fmt: skip
        assert command(capsys, "attach", *arguments).code in (1, 2)
