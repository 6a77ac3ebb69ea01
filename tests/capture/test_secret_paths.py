"""Secrets within JSON values: nowhere in the log, which still says that they changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from support.server import Conn

TABLE = """
create table operation (
    id int primary key, name text, options jsonb, config json, extra text, "odd.Name" jsonb
);
select pgaudit_wf.attach('operation', redact =>
    '{options.headers.*.value,options.token,config.auth.*,extra.key,"\\"odd.Name\\".\\"a.b\\".*",name.x}');
"""


def diffs(conn: Conn) -> list[Any]:
    return [
        row[0]
        for row in conn.execute(
            "select diff from pgaudit_wf.security_audit_log"
            " where resource_type = 'operation' order by id"
        )
    ]


def test_a_secret_within_a_value_is_never_recorded(
    db_dsn: str, form: str, secret: Callable[[], str]
) -> None:
    with psycopg.connect(db_dsn, autocommit=True) as conn:
        conn.execute(TABLE)
        row: dict[str, Any] = {
            "options": {"headers": [{"name": "A", "value": secret()}], "token": secret(), "n": 1},
            "config": {"auth": {"user": secret(), "none": None}, "url": "x"},
            "extra": {"key": secret(), "other": 1},
            "odd.Name": {"a.b": [secret()], "c": 1},
        }
        texts = [json.dumps(value) for value in row.values()]
        conn.execute("insert into operation values (1, null, %s, %s, %s, %s)", texts)
        (inserted,) = diffs(conn)
        value = inserted[0]["value"]
        assert value["options"] == {
            "headers": [{"name": "A", "value": "[redacted]"}], "token": "[redacted]", "n": 1,
        }  # fmt: skip
        assert value["config"] == {"auth": {"user": "[redacted]", "none": None}, "url": "x"}
        assert json.loads(value["extra"]) == {"key": "[redacted]", "other": 1}
        assert value["odd.Name"] == {"a.b": ["[redacted]"], "c": 1}

        # One that changes with something else, one alone, one that comes, one that goes.
        row["options"]["n"] = 2
        row["options"]["headers"][0]["value"] = secret()
        conn.execute("update operation set options = %s", [json.dumps(row["options"])])
        row["config"]["auth"]["user"] = secret()
        conn.execute("update operation set config = %s", [json.dumps(row["config"])])
        row["options"]["headers"].append({"name": "B", "value": secret()})
        del row["options"]["token"]
        conn.execute("update operation set options = %s", [json.dumps(row["options"])])
        conn.execute("update operation set extra = %s", [json.dumps({"key": secret()})])
        _, both, alone, moved, text = diffs(conn)
        assert {op["path"] for op in both} >= {"/options/n"}
        if form == "compiled":
            hidden = {"op": "replace", "old": "[redacted]", "value": "[redacted]"}
            assert hidden | {"path": "/options/headers/0/value"} in both
            assert alone == [hidden | {"path": "/config/auth/user"}]
        else:
            assert alone[0]["path"] == "/config"
        assert {"op": "remove", "path": "/options/token", "old": "[redacted]"} in moved
        assert json.loads(text[0]["value"]) == {"key": "[redacted]"}
        # What is no JSON, what jsonb cannot hold, very much of it, many rows.
        for column, odd in (
            ("options", json.dumps({"headers": {"x": {"value": [secret()]}}})),
            ("extra", secret()),
            ("config", f'{{"auth": {{"user": "{secret()}", "bad": "\\u0000"}}}}'),
            ("options", json.dumps({"token": secret(), "long": "x" * 1_500_000})),
            ("options", json.dumps({"token": secret(), "long": "y" * 1_500_000})),
            ("name", secret()),
        ):
            conn.execute(f"update operation set {column} = %s".encode(), [odd])
        conn.execute("select pgaudit_wf.attach('operation', max_value => 60)")
        conn.execute("insert into operation select i, null, options from operation,"
                     " generate_series(2, 4) as i")  # fmt: skip
        conn.execute("update operation set options = options || '{\"m\": 1}'")
        conn.execute("select pgaudit_wf.row_as_of('operation', '1')")
        conn.execute("delete from operation where id = 3")
        # Renamed, dropped, and made again with a default.
        conn.execute("alter table operation rename options to choices")
        conn.execute("update operation set choices = %s", [json.dumps({"token": secret()})])
        conn.execute("alter table operation drop config")
        default = json.dumps({"auth": {"user": secret()}})
        conn.execute(f"alter table operation add config json default '{default}'".encode())
        conn.execute("update operation set config = %s", [default.replace("user", "other")])
        conn.execute("alter table operation alter choices type text")
        conn.execute("update operation set choices = '{}'")
        conn.execute("delete from operation")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("redact => '{nothing.x}'", 'no column "nothing"'),
        ("redact => '{id.x}'", "both in redact and in id_columns"),
        ("redact => '{name.x}', label_column => 'name'", "both in redact and in label_column"),
    ],
)
def test_a_path_into_what_must_be_shown_is_refused(conn: Conn, call: str, message: str) -> None:
    conn.execute("create table operation (id int primary key, name text)")
    with pytest.raises(psycopg.Error, match=message) as caught:
        conn.execute(f"select pgaudit_wf.attach('operation', {call})".encode())
    assert caught.value.sqlstate == "PA002"


def test_what_versions_keep_is_not_redacted_silently(conn: Conn) -> None:
    conn.execute("create table flow (id int primary key, nodes jsonb, edges jsonb)")
    for secret in ("nodes", "nodes.*.data.key"):
        with pytest.raises(psycopg.Error, match="both in redact and in nodes_column"):
            conn.execute("select pgaudit_wf.attach_workflow('flow', redact => %s)", [[secret]])
