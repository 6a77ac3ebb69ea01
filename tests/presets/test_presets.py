"""Presets: products' tables with their rows, attached by name; and all tables at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import command
from support.server import Conn

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "workflow" / "data"
N8N = json.loads((SAMPLES / "n8n-workflow-1.json").read_text())["row"]
FLOWISE = json.loads((SAMPLES / "flowise-chat_flow-2.json").read_text())["row"]
DIRECTUS = json.loads((HERE / "data" / "directus-flow-1.json").read_text())
SECRET = "hush-hush"
USER = "9d976842-19ce-48ea-811b-13532704908f"

# Facts about the products' columns, without what their presets do not depend on.
N8N_TABLES = """
create table workflow_entity (
    id varchar(36) primary key, name varchar(128) not null, description text,
    active boolean not null,
    nodes json not null, connections json not null, settings json, "staticData" json,
    "pinData" json, meta json, "nodeGroups" json, "versionId" char(36), "activeVersionId" char(36),
    "versionCounter" int, "triggerCount" int, "isArchived" boolean, "parentFolderId" text,
    "sourceWorkflowId" text, "createdAt" timestamptz, "updatedAt" timestamptz
);
create table "user" (
    id uuid primary key, email varchar(255), "firstName" varchar(32), "lastName" varchar(32),
    password varchar(255), "personalizationAnswers" json, settings json, disabled boolean not null,
    "mfaEnabled" boolean not null, "mfaSecret" text, "mfaRecoveryCodes" text, "lastActiveAt" date,
    "roleSlug" varchar(128) not null
);
create table credentials_entity (
    id varchar(36) primary key, name varchar(128), data text, type varchar(128),
    "isManaged" boolean, "updatedAt" timestamptz
);
create table user_api_keys (
    id varchar(36) primary key, "userId" uuid, label varchar(100), "apiKey" varchar(255),
    scopes json
);
create table project_relation (
    "projectId" varchar(36), "userId" uuid, role varchar, primary key ("projectId", "userId")
);
create table execution_entity (id int primary key);
create table of_the_site (id int primary key);
"""
FLOWISE_TABLES = """
create table chat_flow (
    id uuid primary key, name varchar, "flowData" text, deployed boolean, "isPublic" boolean,
    apikeyid varchar, "chatbotConfig" text, "createdDate" timestamp, "updatedDate" timestamp,
    "apiConfig" text, analytic text, category text, "speechToText" text, type text,
    "workspaceId" varchar, "followUpPrompts" text, "textToSpeech" text, "mcpServerConfig" text,
    "webhookSecret" text, "webhookSecretConfigured" boolean
);
create table "user" (
    id uuid primary key, name varchar(100), email varchar(255), credential text, "tempToken" text,
    "tokenExpiry" timestamp, status varchar(20)
);
create table role (id uuid primary key, name varchar);
create table workspace (id uuid primary key, name varchar, "organizationId" uuid);
create table organization_user (
    "organizationId" uuid, "userId" uuid, "roleId" uuid, status varchar(20),
    primary key ("organizationId", "userId")
);
create table credential (
    id uuid primary key, name varchar, "credentialName" varchar, "encryptedData" text,
    "workspaceId" text
);
create table apikey (
    id varchar(20) primary key, "apiKey" text, "apiSecret" text, "keyName" text, "workspaceId" text
);
"""
DIRECTUS_TABLES = """
create table directus_users (
    id uuid primary key, first_name varchar(50), last_name varchar(50), email varchar(128),
    password varchar(255), tfa_secret varchar(255), status varchar(16), role uuid,
    token varchar(255), last_access timestamptz, auth_data json
);
create table directus_policies (id uuid primary key, name varchar(100), admin_access boolean);
create table directus_access (id uuid primary key, role uuid, "user" uuid, policy uuid, sort int);
create table directus_flows (
    id uuid primary key, name varchar(255), icon varchar(30), color varchar(255), description text,
    status varchar(255), trigger varchar(255), accountability varchar(255), options json,
    operation uuid, date_created timestamptz, user_created uuid
);
create table directus_operations (
    id uuid primary key, name varchar(255), key varchar(255), type varchar(255), position_x int,
    position_y int, options json, resolve uuid, reject uuid, flow uuid, date_created timestamptz,
    user_created uuid
);
create table directus_sessions (token varchar(64) primary key, "user" uuid);
create table article (id int primary key, title text);
"""
DJANGO_TABLES = """
create table auth_user (
    id int primary key, password varchar(128) not null, last_login timestamptz,
    is_superuser boolean not null, username varchar(150) not null, first_name varchar(150) not null,
    last_name varchar(150) not null, email varchar(254) not null, is_staff boolean not null,
    is_active boolean not null, date_joined timestamptz not null
);
create table auth_group (id int primary key, name varchar(150) not null);
create table auth_user_groups (id bigint primary key, user_id int, group_id int);
create table django_admin_log (id int primary key, object_repr varchar(200), user_id int);
create table django_session (session_key varchar(40) primary key, session_data text);
"""
SUPABASE_TABLES = """
create schema auth;
create type auth.factor_status as enum ('unverified', 'verified');
create table auth.users (
    id uuid primary key, email varchar(255), phone text, encrypted_password varchar(255),
    confirmation_token varchar(255), recovery_token varchar(255), last_sign_in_at timestamptz,
    email_change_token_new varchar(255), email_change_token_current varchar(255),
    phone_change_token varchar(255), reauthentication_token varchar(255),
    raw_app_meta_data jsonb, raw_user_meta_data jsonb, email_confirmed_at timestamptz,
    banned_until timestamptz, deleted_at timestamptz, updated_at timestamptz
);
create table auth.identities (
    provider_id text, user_id uuid, identity_data jsonb, provider text, last_sign_in_at timestamptz,
    email text generated always as (lower(identity_data ->> 'email')) stored, id uuid primary key
);
create table auth.mfa_factors (
    id uuid primary key, user_id uuid, friendly_name text, status auth.factor_status, secret text,
    last_challenged_at timestamptz, web_authn_credential jsonb
);
create table auth.refresh_tokens (id bigint primary key, token varchar(255));
create table auth.sessions (id uuid primary key, user_id uuid);
"""


def put(conn: Conn, table: str, row: dict[str, Any]) -> None:
    conn.execute(
        f"insert into {table} select * from json_populate_record(null::{table}, %s)".encode(),
        [json.dumps(row)],
    )


def attach(capsys: pytest.CaptureFixture[str], dsn: str, name: str, *more: str) -> Any:  # noqa: ANN401
    done = command(capsys, "attach", "--preset", name, "-d", dsn, "--yes", "--json", *more)
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert told["failed"] == []
    return told


def actions(conn: Conn) -> list[str]:
    rows = conn.execute(
        "select action from pgaudit_wf.security_audit_log where action !~ '^audit[.]' order by id"
    ).fetchall()
    return [action for (action,) in rows]


def check_that_nothing_leaked(conn: Conn) -> None:
    for table in ("security_audit_log", "workflow_history"):
        assert conn.execute(
            f"select count(*) from pgaudit_wf.{table} as t where t::text ~ %s".encode(), [SECRET]
        ).fetchone() == (0,)
    assert (
        conn.execute(
            "select subject, problem from pgaudit_wf.doctor() where severity = 'error'"
        ).fetchall()
        == []
    )


def uncovered(conn: Conn) -> list[str]:
    return [
        subject
        for (subject,) in conn.execute(
            "select subject from pgaudit_wf._coverage('0') where kind <> 'login'"
        )
    ]


def test_n8n(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    conn.execute(N8N_TABLES)
    put(conn, "workflow_entity", N8N)
    told = attach(capsys, dsn, "n8n")
    left_out = {step["name"] for step in told["steps"] if step["left_out"]}
    assert {"project", "variables"} <= left_out
    assert uncovered(conn) == ["public.of_the_site"]
    conn.execute("select * from pgaudit_wf.backfill_workflows('workflow_entity')")
    # A setting of a node; a drag; the published state; a secret.
    nodes = [dict(node) for node in N8N["nodes"]]
    nodes[1] |= {"parameters": {"url": "https://other.example"}}
    conn.execute("update workflow_entity set nodes = %s", [json.dumps(nodes)])
    nodes[1] |= {"position": [7, 7]}
    conn.execute("""update workflow_entity set nodes = %s, "versionCounter" = 2""",
                 [json.dumps(nodes)])  # fmt: skip
    conn.execute("update workflow_entity set active = true")
    conn.execute("""update workflow_entity set "pinData" = %s""", [json.dumps({"x": SECRET})])
    assert conn.execute(
        "select version, source from pgaudit_wf.workflow_history order by version"
    ).fetchall() == [(1, "backfill"), (2, "update"), (3, "update")]
    conn.execute(
        """insert into "user" values (%s, 'ana@x.example', 'Ana', 'F', %s, null, null, false,"""
        " false, %s, %s, null, 'global:admin')",
        [USER, SECRET, SECRET, SECRET],
    )
    conn.execute("""update "user" set password = %s""", [SECRET + "2"])
    conn.execute("""update "user" set "lastActiveAt" = now()""")
    conn.execute("""update "user" set "roleSlug" = 'global:owner'""")
    conn.execute("insert into credentials_entity values ('c', 'Stock', %s, 'httpHeaderAuth')",
                 [SECRET])  # fmt: skip
    conn.execute("update credentials_entity set data = %s", [SECRET + "2"])
    conn.execute("insert into user_api_keys values ('k', %s, 'ci', %s, '[]')", [USER, SECRET])
    conn.execute("delete from user_api_keys")
    assert actions(conn) == [
        "workflow.created", "workflow.updated", "workflow.activated", "workflow.updated",
        "user.created", "user.password_changed", "user.role_changed", "credential.created",
        "credential.secret_changed", "api_key.created", "api_key.revoked",
    ]  # fmt: skip
    check_that_nothing_leaked(conn)
    assert conn.execute("select * from pgaudit_wf.actor_directory").fetchall() == [
        (USER, "Ana F", "ana@x.example")
    ]
    assert conn.execute("select * from pgaudit_wf.org_member").fetchall() == [
        ("n8n", USER, "owner")
    ]
    # Again, it changes nothing: the directories are in use, and the rules are there.
    rules = "select count(*) from pgaudit_wf.action_rule"
    before = conn.execute(rules).fetchone()
    conn.execute("""select pgaudit_wf.attach('"user"', redact => '{password,settings}')""")
    told = attach(capsys, dsn, "n8n")
    [user] = [step for step in told["steps"] if step["name"] == 'public."user"']
    assert user["notes"][-1] == "is attached already, and gets these settings"
    assert set(user["settings"]["redact"]) == {
        "password", "settings", "mfaSecret", "mfaRecoveryCodes",
    }  # fmt: skip
    assert {step["left_out"] for step in told["steps"] if step["kind"] == "directory"} == {
        "it is in use already, and stays as it is"
    }
    assert conn.execute(rules).fetchone() == before


def test_flowise(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    conn.execute(FLOWISE_TABLES)
    put(conn, "chat_flow", FLOWISE | {"webhookSecret": SECRET})
    workspace = FLOWISE["workspaceId"]
    conn.execute("insert into workspace values (%s, 'W', %s)", [workspace, USER])
    conn.execute("insert into role values (%s, 'owner')", [USER])
    conn.execute("insert into organization_user values (%s, %s, %s, 'active')", [USER] * 3)
    attach(capsys, dsn, "flowise")
    assert uncovered(conn) == []
    conn.execute("select * from pgaudit_wf.backfill_workflows('chat_flow')")
    flow = json.loads(FLOWISE["flowData"])
    flow["nodes"][0]["position"] = {"x": 1, "y": 1}
    conn.execute("""update chat_flow set "flowData" = %s""", [json.dumps(flow)])
    flow["nodes"][0]["data"]["inputs"]["more"] = "1"
    conn.execute("""update chat_flow set "flowData" = %s""", [json.dumps(flow)])
    conn.execute("""update chat_flow set "webhookSecret" = %s""", [SECRET + "2"])
    conn.execute("update chat_flow set deployed = true")
    conn.execute("insert into credential values (%s, 'OpenAI', 'openAIApi', %s)", [USER, SECRET])
    conn.execute("insert into apikey values ('k', %s, %s, 'ci')", [SECRET, SECRET])
    conn.execute("""insert into "user" values (%s, 'Ana', 'ana@x.example', %s, %s)""",
                 [USER, SECRET, SECRET])  # fmt: skip
    conn.execute("""update "user" set credential = %s""", [SECRET + "2"])
    assert actions(conn) == [
        "chat_flow.created", "chat_flow.updated", "chat_flow.updated", "chat_flow.deployed",
        "credential.created", "api_key.created", "user.created", "user.password_changed",
    ]  # fmt: skip
    assert conn.execute(
        "select count(*), min(org_id) from pgaudit_wf.workflow_history"
    ).fetchone() == (2, workspace)
    # What kind of credential it is, is no secret.
    assert conn.execute(
        "select diff #>> '{0,value,credentialName}' from pgaudit_wf.security_audit_log"
        " where action = 'credential.created'"
    ).fetchone() == ("openAIApi",)
    check_that_nothing_leaked(conn)
    assert conn.execute("select * from pgaudit_wf.org_member").fetchall() == [
        (workspace, USER, "owner")
    ]
    assert conn.execute("select * from pgaudit_wf.credential_directory").fetchall() == [
        ("k", "org_api_key", "ci")
    ]


def test_directus(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    conn.execute(DIRECTUS_TABLES)
    put(conn, "directus_flows", DIRECTUS["flow"])
    for operation in DIRECTUS["operations"]:
        put(conn, "directus_operations", operation)
    attach(capsys, dsn, "directus")
    assert uncovered(conn) == ["public.article"]
    headers = [{"header": "Authorization", "value": f"Bearer {SECRET}"}]
    key = DIRECTUS["operations"][0]["id"]
    conn.execute("update directus_operations set options = %s where id = %s",
                 [json.dumps({"url": "https://x.example", "headers": headers}), key])  # fmt: skip
    conn.execute("update directus_operations set position_x = 99")
    conn.execute("update directus_operations set resolve = null where id = %s", [key])
    conn.execute("update directus_flows set status = 'inactive'")
    conn.execute("insert into directus_users values (%s, 'Ana', null, 'ana@x.example', %s, %s,"
                 " 'active', null, %s)", [USER, SECRET, SECRET, SECRET])  # fmt: skip
    conn.execute("update directus_users set token = %s", [SECRET + "2"])
    conn.execute("insert into directus_policies values (%s, 'Administrator', true)", [USER])
    conn.execute("""insert into directus_access values (%s, null, %s, %s)""", [USER] * 3)
    conn.execute("insert into directus_sessions values (%s)", [SECRET])
    assert actions(conn) == [
        "operation.updated", "operation.rewired", "flow.deactivated", "user.created",
        "user.token_changed", "policy.created", "access.granted",
    ]  # fmt: skip
    diff = conn.execute(
        "select diff::text from pgaudit_wf.security_audit_log where action = 'operation.updated'"
    ).fetchone()
    assert diff is not None
    assert "https://x.example" in diff[0]
    check_that_nothing_leaked(conn)
    assert conn.execute("select * from pgaudit_wf.org_member").fetchall() == [
        ("directus", USER, "admin")
    ]


def test_django(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    conn.execute(DJANGO_TABLES)
    attach(capsys, dsn, "django")
    assert uncovered(conn) == []
    conn.execute("insert into auth_user values (1, %s, null, false, 'ana', '', '', '', false, true,"
                 " now())", [SECRET])  # fmt: skip
    conn.execute("update auth_user set last_login = now()")
    conn.execute("update auth_user set is_superuser = true, is_staff = true")
    conn.execute("update auth_user set password = %s", [SECRET + "2"])
    conn.execute("insert into auth_user_groups values (1, 1, 1)")
    conn.execute("delete from auth_user_groups")
    conn.execute("insert into django_session values (%s)", [SECRET])
    assert actions(conn) == [
        "user.created", "user.superuser_granted", "user.password_changed", "group_member.added",
        "group_member.removed",
    ]  # fmt: skip
    check_that_nothing_leaked(conn)
    assert conn.execute("select * from pgaudit_wf.actor_directory").fetchall() == [
        ("1", "ana", None)
    ]
    assert conn.execute("select * from pgaudit_wf.org_member").fetchall() == [
        ("django", "1", "owner")
    ]


def test_supabase_auth(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    conn.execute(SUPABASE_TABLES)
    attach(capsys, dsn, "supabase-auth")
    assert uncovered(conn) == []
    conn.execute("insert into auth.users (id, email, encrypted_password, recovery_token,"
                 " raw_user_meta_data) values (%s, 'ana@x.example', %s, %s, %s)",
                 [USER, SECRET, SECRET, json.dumps({"full_name": "Ana"})])  # fmt: skip
    conn.execute("update auth.users set last_sign_in_at = now(), updated_at = now()")
    conn.execute("update auth.users set encrypted_password = %s", [SECRET + "2"])
    conn.execute("update auth.users set email_confirmed_at = now(), updated_at = now()")
    conn.execute("update auth.users set banned_until = now() + interval '1 day'")
    conn.execute("update auth.users set banned_until = null")
    conn.execute("insert into auth.mfa_factors values (%s, %s, 'phone', 'unverified', %s)",
                 [USER, USER, SECRET])  # fmt: skip
    conn.execute("update auth.mfa_factors set status = 'verified', last_challenged_at = now()")
    conn.execute("insert into auth.refresh_tokens values (1, %s)", [SECRET])
    assert actions(conn) == [
        "user.created", "user.password_changed", "user.confirmed", "user.banned", "user.unbanned",
        "mfa_factor.created", "mfa_factor.verified",
    ]  # fmt: skip
    check_that_nothing_leaked(conn)
    assert conn.execute("select name, email from pgaudit_wf.actor_directory").fetchall() == [
        ("Ana", "ana@x.example")
    ]
