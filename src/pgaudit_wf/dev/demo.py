"""A working day of a small company, played on the reference application to fill an audit trail.

Three people and an integration in two organizations work through an application that knows nothing
of auditing but `request_context` and `record_event`; its tables are attached, and it logs in as a
role without special rights. Towards evening an administrator repairs a row by hand.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, cast

import psycopg
from psycopg.types.json import Jsonb

from pgaudit_wf.context.block import request_context
from pgaudit_wf.context.record import record_event
from pgaudit_wf.context.values import RequestContext
from pgaudit_wf.dev.cast import ANA, BILLING, BO, CHIDI, CI, EDGES, LEDGER, NODES, TO_LEDGER
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import AccessDeniedError
from pgaudit_wf.schema.migrate import migrate
from pgaudit_wf.trail.reads import (
    ApiKeyActivity,
    TrailEntry,
    api_key_activity,
    audit_trail,
    row_as_of,
)
from pgaudit_wf.workflow.model import RunAttribution, Version, VersionDiff
from pgaudit_wf.workflow.reads import execution_attribution, restore_workflow, workflow_versions

DATABASE = "workflow_product"
APP_ROLE = "workflow_app"
AUDITOR_ROLE = "workflow_auditor"

_ROLES = f"""
create role {APP_ROLE} login in role pgaudit_wf_app;
create role {AUDITOR_ROLE} login in role pgaudit_wf_reader;
grant usage on schema public to {APP_ROLE};
grant select, insert, update, delete on all tables in schema public to {APP_ROLE};
grant select on workflow_execution to pgaudit_wf_reader;
"""

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Day:
    """The results of the day.

    `trail` is oldest first. `workflow_before` is how the workflow `workflow_id` was at
    `before`, rebuilt from the log, and `workflow_now` how it is. `versions` are the workflow's,
    newest first; `run` is one of its runs, and `restored` what the restore in between restored.
    `seen_by_owner` counts the entries that Ana may read; `refusal` is the message Bo gets before
    becoming an admin.
    """

    dsn: str
    trail: tuple[TrailEntry, ...]
    keys: tuple[ApiKeyActivity, ...]
    workflow_id: str
    before: datetime
    workflow_before: dict[str, Any]
    workflow_now: dict[str, Any]
    versions: tuple[Version, ...]
    run: RunAttribution
    restored: VersionDiff
    seen_by_owner: int
    refusal: str


def play(server: DevServer) -> Day:
    """Set up the application on a fresh server and play the day.

    Args:
        server: A server that runs and on which the day was not played before.

    Raises:
        PgauditError: The server or the schema could not be set up.
        psycopg.Error: A statement failed that should not.
    """
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"create database {DATABASE}".encode())
    dsn = server.dsn(DATABASE)
    migrate(dsn, with_app_schema=True)
    with psycopg.connect(dsn) as admin:
        admin.execute(_ROLES.encode())
        (opened,) = admin.execute("select clock_timestamp()").fetchone() or (None,)
    with psycopg.connect(
        server.dsn(DATABASE, APP_ROLE), application_name="workflow-product"
    ) as conn:
        app = _Application(conn)
        app.morning()
        refusal = _refusal(server)
        workflow_id, before = app.noon()
        run = app.afternoon(workflow_id)
    _repair_by_hand(server, workflow_id)
    with psycopg.connect(dsn, autocommit=True) as admin:
        trail = audit_trail(admin, since=opened, page_size=1000).entries[::-1]
        versions = workflow_versions(admin, workflow_id).versions
        attribution = execution_attribution(admin, "public.workflow_execution", run)
        if attribution is None:
            raise AssertionError("the run that was started is gone")
        return Day(
            dsn=dsn,
            trail=trail,
            keys=api_key_activity(admin),
            workflow_id=workflow_id,
            before=before,
            workflow_before=row_as_of(admin, "public.workflow", workflow_id, before) or {},
            workflow_now=row_as_of(admin, "public.workflow", workflow_id) or {},
            versions=versions,
            run=attribution,
            restored=next(v.change for v in versions if v.source == "restore"),
            seen_by_owner=_seen_by(server, ANA),
            refusal=refusal,
        )


def _seen_by(server: DevServer, reader: RequestContext) -> int:
    with (
        psycopg.connect(server.dsn(DATABASE, AUDITOR_ROLE)) as conn,
        # The auditor's login may read only, so it cannot record that it was refused.
        request_context(conn, actor_id=reader.actor_id, org_id=reader.org_id, record_failure=False),
    ):
        page = audit_trail(conn, page_size=1000)
    return len(page.entries)


def _refusal(server: DevServer) -> str:
    try:
        seen = _seen_by(server, BO)
    except AccessDeniedError as error:
        return str(error)
    raise AssertionError(f"row-level security let a plain member read {seen} entries")


def _repair_by_hand(server: DevServer, workflow_id: str) -> None:
    repair = "update workflow set description = 'Reads invoices, files them' where id = :'id';"
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    subprocess.run(
        [server.bin("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", f"id={workflow_id}",
         server.dsn(DATABASE)],
        input=repair, text=True, check=True, capture_output=True, cwd="/", env=settings,
    )  # fmt: skip


class _Application:
    """The workflow product: each method is what its pages and its API would do for a request."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._requests = count(1)
        self._sessions: dict[str, str] = {}

    @contextmanager
    def _request(self, person: RequestContext, reason: str | None = None) -> Iterator[Connection]:
        request = f"req_{next(self._requests):03}"
        with request_context(self._conn, person, correlation_id=request, reason=reason) as conn:
            yield conn

    def morning(self) -> None:
        self._sign_up(ANA, "ana@acme.example")
        self._sign_up(CHIDI, "chidi@globex.example")
        self._invite(ANA, BO, "bo@acme.example")
        self._refuse_sign_in(BO, "bo@acme.example")
        self._reset_password(BO)
        self._sign_in(BO)

    def noon(self) -> tuple[str, datetime]:
        with self._request(ANA) as conn:
            conn.execute("update member set role = 'admin' where user_id = %s", [BO.actor_id])
        workflow = self._create_workflow(ANA, "Invoice intake")
        before = cast("datetime", self._one("select clock_timestamp()"))
        with self._request(ANA) as conn:
            conn.execute(
                "update workflow set nodes = %s, edges = %s, description = 'Reads invoises'"
                " where id = %s",
                [
                    Jsonb(NODES),
                    Jsonb(EDGES),
                    workflow,
                ],
            )
            conn.execute("update workflow set enabled = true where id = %s", [workflow])
        self._mint_keys()
        self._use_key(workflow)
        self._fail_to_list(workflow)
        with self._request(ANA) as conn:
            conn.execute(
                "update workflow set listed = true, listed_slug = 'invoice-intake',"
                " listed_at = now(), listing_category = 'finance', listing_price = 0.10"
                " where id = %s",
                [workflow],
            )
        with self._request(ANA) as conn:
            conn.execute("update workflow set listing_price = 0.12 where id = %s", [workflow])
        return workflow, before

    def afternoon(self, workflow: str) -> str:
        with self._request(ANA) as conn:
            conn.execute(
                "update app_user set email = 'ana.ferreira@acme.example' where id = %s",
                [ANA.actor_id],
            )
        self._change_plan()
        run = self._break_and_mend(workflow)
        self._protect_account(CHIDI)
        self._open_wallets(CHIDI)
        draft = self._create_workflow(CHIDI, "Price watch")
        with self._request(CHIDI) as conn:
            conn.execute("delete from workflow where id = %s", [draft])
        with self._request(BO, reason="the pipeline moved to another vendor") as conn:
            conn.execute("update api_key set revoked_at = now() where id = 'k_ci'")
        with self._request(ANA) as conn:
            conn.execute("delete from api_key where id = 'k_laptop'")
        self._sign_out(ANA)
        return run

    def _break_and_mend(self, workflow: str) -> str:
        ledger, graph = LEDGER["data"], [*NODES, LEDGER]
        with self._request(BO) as conn:
            conn.execute(
                "update workflow set nodes = %s, edges = %s where id = %s",
                [Jsonb(graph), Jsonb([*EDGES, TO_LEDGER]), workflow],
            )
            row = conn.execute("select pgaudit_wf._newest_version(%s)", [workflow]).fetchone()
        good = row[0] if row else 0
        wrong = {**ledger["config"], "endpoint": "https://ledger-test.acme.example/entries"}
        graph[-1] = {**LEDGER, "data": {**ledger, "config": wrong}}
        with self._request(BO) as conn:
            conn.execute("update workflow set nodes = %s where id = %s", [Jsonb(graph), workflow])
        # To drag a node makes no version and no event.
        graph[0] = {**graph[0], "position": {"x": 40, "y": 8}}
        with self._request(BO) as conn:
            conn.execute("update workflow set nodes = %s where id = %s", [Jsonb(graph), workflow])
        with self._request(CI) as conn:
            conn.execute("update api_key set last_used_at = now() where id = 'k_ci'")
            row = conn.execute(
                "insert into workflow_execution (workflow_id, org_id) values (%s, %s)"
                " returning id::text",
                [workflow, CI.org_id],
            ).fetchone()
        with self._request(ANA, reason="it wrote to the test ledger") as conn:
            restore_workflow(conn, workflow, good)
        return cast("str", row[0]) if row else ""

    def _one(self, query: str) -> object:
        with self._conn.transaction():
            row = self._conn.execute(query.encode()).fetchone()
        return row[0] if row else None

    def _sign_up(self, person: RequestContext, email: str) -> None:
        org = person.org_id
        with self._request(person) as conn:
            self._add_account(conn, person, email)
            conn.execute(
                "insert into organization (id, name) values (%s, %s)", [org, person.org_label]
            )
            conn.execute(
                "insert into member (org_id, user_id, role) values (%s, %s, 'owner')",
                [org, person.actor_id],
            )
            conn.execute("insert into subscription (org_id, plan) values (%s, 'free')", [org])
        self._sign_in(person)

    def _add_account(self, conn: Connection, person: RequestContext, email: str) -> None:
        conn.execute(
            "insert into app_user (id, email, name, password_hash) values (%s, %s, %s, %s)",
            [person.actor_id, email, person.actor_label, _secret()],
        )

    def _sign_in(self, person: RequestContext) -> None:
        with self._request(person) as conn:
            row = conn.execute(
                "insert into session (user_id, token_hash, ip, user_agent)"
                " values (%s, %s, %s, %s) returning id",
                [person.actor_id, _secret(), person.ip, person.user_agent],
            ).fetchone()
        self._sessions[cast("str", person.actor_id)] = row[0] if row else ""

    def _sign_out(self, person: RequestContext) -> None:
        with self._request(person) as conn:
            conn.execute(
                "update session set revoked_at = now() where id = %s",
                [self._sessions[cast("str", person.actor_id)]],
            )

    def _refuse_sign_in(self, person: RequestContext, email: str) -> None:
        with self._request(person.merge(actor_id=None, actor_label=email, auth_method=None)):
            record_event(
                self._conn,
                "session.created",
                resource_type="session",
                outcome="denied",
                metadata={"why": "wrong password"},
            )

    def _reset_password(self, person: RequestContext) -> None:
        with self._request(person, reason="password_reset by e-mail link") as conn:
            conn.execute(
                "update app_user set password_hash = %s where id = %s",
                [_secret(), person.actor_id],
            )

    def _invite(self, host: RequestContext, guest: RequestContext, email: str) -> None:
        with self._request(host) as conn:
            self._add_account(conn, guest, email)
            conn.execute(
                "insert into member (org_id, user_id, role, status)"
                " values (%s, %s, 'member', 'invited')",
                [host.org_id, guest.actor_id],
            )
        with self._request(guest) as conn:
            conn.execute("update member set status = 'active' where user_id = %s", [guest.actor_id])

    def _create_workflow(self, person: RequestContext, name: str) -> str:
        with self._request(person) as conn:
            row = conn.execute(
                "insert into workflow (org_id, user_id, name) values (%s, %s, %s)"
                " returning id::text",
                [person.org_id, person.actor_id, name],
            ).fetchone()
        return cast("str", row[0]) if row else ""

    def _mint_keys(self) -> None:
        for person, key, org, name, prefix in (
            (ANA, "k_laptop", None, "laptop", "wfb_51c0…"),
            (BO, "k_ci", "o_acme", "CI pipeline", "kh_9f2a…"),
            (BO, "k_reports", "o_acme", "reports", "kh_77be…"),
        ):
            with self._request(person) as conn:
                conn.execute(
                    "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
                    " values (%s, %s, %s, %s, %s, %s)",
                    [key, org, person.actor_id, name, prefix, _secret()],
                )

    def _use_key(self, workflow: str) -> None:
        # Each call of the API touches the key, which is not an event; what the call does is one.
        for _ in range(5):
            with self._request(CI) as conn:
                conn.execute("update api_key set last_used_at = now() where id = 'k_ci'")
        with self._request(CI) as conn:
            conn.execute("update api_key set last_used_at = now() where id = 'k_ci'")
            conn.execute("update workflow set visibility = 'org' where id = %s", [workflow])

    def _fail_to_list(self, workflow: str) -> None:
        # A price below zero is refused, and with it all that the request had done before.
        try:
            with self._request(BO) as conn:
                conn.execute("update workflow set name = 'Free money' where id = %s", [workflow])
                conn.execute("update workflow set listing_price = -1 where id = %s", [workflow])
        except psycopg.errors.CheckViolation:
            pass
        else:
            raise AssertionError("the reference application took a price below zero")

    def _change_plan(self) -> None:
        with self._request(ANA) as conn:
            record_event(
                conn,
                "subscription.checkout_started",
                resource_type="subscription",
                resource_id=ANA.org_id,
                before={"plan": "free"},
                after={"plan": "team"},
            )
        with self._request(BILLING) as conn:
            conn.execute(
                "update subscription set plan = 'team', provider = 'stripe',"
                " provider_customer_id = 'cus_4711' where org_id = %s",
                [BILLING.org_id],
            )

    def _protect_account(self, person: RequestContext) -> None:
        with self._request(person) as conn:
            conn.execute(
                "insert into two_factor (user_id, secret, backup_codes) values (%s, %s, %s)",
                [person.actor_id, _secret(), [_secret() for _ in range(8)]],
            )
        with self._request(person) as conn:
            conn.execute(
                "update two_factor set backup_codes = %s where user_id = %s",
                [[_secret() for _ in range(8)], person.actor_id],
            )

    def _open_wallets(self, person: RequestContext) -> None:
        with self._request(person) as conn:
            conn.execute(
                "insert into wallet (org_id, address) values (%s, '0x5aAe…6053')", [person.org_id]
            )
            conn.execute(
                "insert into wallet (id, org_id, kind, address, hmac_secret)"
                " values ('w_agent', %s, 'agentic', '0xfB69…5d35', %s)",
                [person.org_id, _secret()],
            )
        with self._request(person, reason="quarterly rotation") as conn:
            conn.execute(
                "update wallet set hmac_secret = %s, key_version = key_version + 1"
                " where id = 'w_agent'",
                [_secret()],
            )


def _secret() -> str:
    return f"demo-secret-{secrets.token_hex(16)}"
