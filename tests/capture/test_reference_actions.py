"""Each change of the reference application comes out as the one event that says what it meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb
from pytest_postgresql.executors import NoopExecutor

from pgaudit_wf.dev.server import DevServer
from support.server import Clone

# Every secret the tests store contains this, so that finding it anywhere is finding a leak.
SECRET = "never-to-be-logged"
WORKFLOW = "11111111-1111-4111-8111-111111111111"
AT = "2026-01-02 03:04:05+00"
AT_JSON = "2026-01-02T03:04:05+00:00"
HIDDEN = "[redacted]"

WORLD: LiteralString = """
insert into organization (id, name, slug) values ('o_acme', 'Acme', 'acme');
insert into app_user (id, email, name, password_hash) values
  ('u_ana', 'ana@example.com', 'Ana', 'never-to-be-logged-password-ana'),
  ('u_bo', 'bo@example.com', 'Bo', 'never-to-be-logged-password-bo'),
  ('u_cy', 'cy@example.com', 'Cy', 'never-to-be-logged-password-cy'),
  ('u_gone', 'gone@example.com', 'Gone', 'never-to-be-logged-password-gone');
update app_user set deactivated_at = '2026-01-01 00:00:00+00' where id = 'u_gone';
insert into member (org_id, user_id, role) values ('o_acme', 'u_ana', 'owner');
insert into member (org_id, user_id, role, status) values ('o_acme', 'u_bo', 'member', 'invited');
insert into session (id, user_id, token_hash) values
  ('s_live', 'u_ana', 'never-to-be-logged-token-live'),
  ('s_revoked', 'u_ana', 'never-to-be-logged-token-revoked');
insert into session (id, user_id, token_hash, created_at, expires_at)
  values ('s_expired', 'u_ana', 'never-to-be-logged-token-expired', '2020-01-01', '2020-01-02');
update session set revoked_at = '2026-01-01 00:00:00+00' where id = 's_revoked';
insert into two_factor (user_id, secret, backup_codes)
  values ('u_ana', 'never-to-be-logged-totp-ana',
    '{never-to-be-logged-code-1,never-to-be-logged-code-2}');
insert into two_factor (user_id, secret, enabled_at)
  values ('u_bo', 'never-to-be-logged-totp-bo', null);
insert into api_key (id, org_id, user_id, name, key_prefix, key_hash) values
  ('k_own', null, 'u_ana', 'laptop', 'wfb_51c…', 'never-to-be-logged-key-own'),
  ('k_own_revoked', null, 'u_ana', 'old laptop', 'wfb_77d…', 'never-to-be-logged-key-own-revoked'),
  ('k_org', 'o_acme', 'u_ana', 'ci', 'kh_9f2…', 'never-to-be-logged-key-org'),
  ('k_org_revoked', 'o_acme', 'u_ana', 'old ci', 'kh_0a1…', 'never-to-be-logged-key-org-revoked');
update api_key set revoked_at = '2026-01-01 00:00:00+00' where id like '%\\_revoked';
insert into workflow (id, org_id, user_id, name)
  values ('11111111-1111-4111-8111-111111111111', 'o_acme', 'u_ana', 'Payroll');
insert into subscription (org_id, plan, provider) values ('o_acme', 'pro', 'stripe');
insert into wallet (id, org_id, kind, address, hmac_secret) values
  ('w_org', 'o_acme', 'org', '0xaa', null),
  ('w_agent', 'o_acme', 'agentic', '0xbb', 'never-to-be-logged-hmac-1');
"""


@dataclass(frozen=True)
class Case:
    """A statement, and the event that it must leave behind.

    `diff` holds all operations of an update by pointer; `row` some columns of the row that an
    insert adds or a delete removes.
    """

    action: str
    when: LiteralString
    resource: tuple[str, str]
    org: str | None = "o_acme"
    diff: dict[str, dict[str, object]] = field(default_factory=dict)
    row: dict[str, object] = field(default_factory=dict)
    given: LiteralString = ""
    reason: str = ""
    label: str | None = None

    def __str__(self) -> str:
        return self.action


def replaced(old: object, new: object) -> dict[str, object]:
    return {"op": "replace", "old": old, "value": new}


def set_at(path: str) -> dict[str, dict[str, object]]:
    return {path: replaced(None, AT_JSON)}


ORG = ("organization", "o_acme")
ANA = ("user", "u_ana")
BO = ("user", "u_bo")
FLOW = ("workflow", WORKFLOW)
OWN_KEY = ("api_key", "k_own")
ORG_KEY = ("api_key", "k_org")
TOTP = ("two_factor", "u_ana")
PLAN = ("subscription", "o_acme")
PASSWORD = {"/password_hash": replaced(HIDDEN, HIDDEN)}
BO_MEMBER = ("member", '["o_acme", "u_bo"]')
LISTED = (
    "update workflow set listed = true, listed_slug = 'payroll', listed_at = '2026-01-01 00:00+00'"
)

CASES = [
    Case(
        "org.created",
        "insert into organization (id, name) values ('o_new', 'New')",
        ("organization", "o_new"),
        org="o_new",
        row={"id": "o_new", "name": "New"},
        label="New",
    ),
    Case(
        "org.updated",
        "update organization set name = 'Acme Ltd'",
        ORG,
        diff={"/name": replaced("Acme", "Acme Ltd")},
        label="Acme Ltd",
    ),
    Case(
        "org.deactivated",
        f"update organization set deactivated_at = '{AT}'",
        ORG,
        diff=set_at("/deactivated_at"),
    ),
    Case(
        "org.reactivated",
        "update organization set deactivated_at = null",
        ORG,
        given=f"update organization set deactivated_at = '{AT}'",
        diff={"/deactivated_at": replaced(AT_JSON, None)},
    ),
    Case(
        "org.deleted",
        "delete from organization where id = 'o_empty'",
        ("organization", "o_empty"),
        org="o_empty",
        given="insert into organization (id, name) values ('o_empty', 'Empty')",
        row={"name": "Empty"},
        label="Empty",
    ),
    Case(
        "account.created",
        "insert into app_user (id, email, password_hash)"
        " values ('u_new', 'new@example.com', 'never-to-be-logged-new')",
        ("user", "u_new"),
        org=None,
        row={"email": "new@example.com", "password_hash": HIDDEN},
        label="new@example.com",
    ),
    Case(
        "account.updated",
        "update app_user set name = 'Ana B' where id = 'u_ana'",
        ANA,
        org=None,
        diff={"/name": replaced("Ana", "Ana B")},
    ),
    Case(
        "account.deactivated",
        f"update app_user set deactivated_at = '{AT}' where id = 'u_bo'",
        BO,
        org=None,
        diff=set_at("/deactivated_at"),
        label="bo@example.com",
    ),
    Case(
        "account.reactivated",
        "update app_user set deactivated_at = null where id = 'u_gone'",
        ("user", "u_gone"),
        org=None,
        diff={"/deactivated_at": replaced("2026-01-01T00:00:00+00:00", None)},
    ),
    Case(
        "account.deleted",
        "delete from app_user where id = 'u_cy'",
        ("user", "u_cy"),
        org=None,
        row={"email": "cy@example.com", "password_hash": HIDDEN},
    ),
    Case(
        "email.changed",
        "update app_user set email = 'ana@example.org' where id = 'u_ana'",
        ANA,
        org=None,
        diff={"/email": replaced("ana@example.com", "ana@example.org")},
    ),
    Case(
        "password.changed",
        "update app_user set password_hash = 'never-to-be-logged-2', updated_at = now()"
        " where id = 'u_ana'",
        ANA,
        org=None,
        diff=PASSWORD,
    ),
    Case(
        "password.reset",
        "update app_user set password_hash = 'never-to-be-logged-3' where id = 'u_ana'",
        ANA,
        org=None,
        diff=PASSWORD,
        reason="password_reset",
    ),
    Case(
        "member.invited",
        "insert into member (org_id, user_id, role, status)"
        " values ('o_acme', 'u_cy', 'admin', 'invited')",
        ("member", '["o_acme", "u_cy"]'),
        row={"role": "admin", "status": "invited"},
    ),
    Case(
        "member.joined",
        "update member set status = 'active' where user_id = 'u_bo'",
        BO_MEMBER,
        diff={"/status": replaced("invited", "active")},
    ),
    Case(
        "member.joined",
        "insert into member (org_id, user_id) values ('o_acme', 'u_cy')",
        ("member", '["o_acme", "u_cy"]'),
        row={"role": "member", "status": "active"},
    ),
    Case(
        "member.role_changed",
        "update member set role = 'admin' where user_id = 'u_bo'",
        BO_MEMBER,
        diff={"/role": replaced("member", "admin")},
    ),
    Case(
        "member.removed",
        "delete from member where user_id = 'u_bo'",
        BO_MEMBER,
        row={"user_id": "u_bo", "role": "member"},
    ),
    Case(
        "session.created",
        "insert into session (id, user_id, token_hash, ip)"
        " values ('s_new', 'u_bo', 'never-to-be-logged-token', '203.0.113.9')",
        ("session", "s_new"),
        org=None,
        row={"user_id": "u_bo", "token_hash": HIDDEN, "ip": "203.0.113.9"},
    ),
    Case(
        "session.updated",
        "update session set user_agent = 'curl' where id = 's_live'",
        ("session", "s_live"),
        org=None,
        diff={"/user_agent": replaced(None, "curl")},
    ),
    Case(
        "session.revoked",
        f"update session set revoked_at = '{AT}', last_seen_at = now() where id = 's_live'",
        ("session", "s_live"),
        org=None,
        diff=set_at("/revoked_at"),
    ),
    Case(
        "session.revoked",
        "delete from session where id = 's_live'",
        ("session", "s_live"),
        org=None,
        row={"user_id": "u_ana", "token_hash": HIDDEN},
    ),
    Case(
        "session.deleted",
        "delete from session where id = 's_revoked'",
        ("session", "s_revoked"),
        org=None,
        row={"token_hash": HIDDEN},
    ),
    Case(
        "session.expired",
        "delete from session where id = 's_expired'",
        ("session", "s_expired"),
        org=None,
        row={"token_hash": HIDDEN},
    ),
    Case(
        "totp.enrolled",
        "insert into two_factor (user_id, secret, backup_codes)"
        " values ('u_cy', 'never-to-be-logged-totp', '{never-to-be-logged-code}')",
        ("two_factor", "u_cy"),
        org=None,
        row={"user_id": "u_cy", "secret": HIDDEN, "backup_codes": HIDDEN},
    ),
    Case(
        "totp.enrolled",
        f"update two_factor set enabled_at = '{AT}' where user_id = 'u_bo'",
        ("two_factor", "u_bo"),
        org=None,
        diff=set_at("/enabled_at"),
    ),
    Case(
        "totp.enrolled",
        "update two_factor set secret = 'never-to-be-logged-totp-2',"
        " backup_codes = '{never-to-be-logged-code-3}'"
        " where user_id = 'u_ana'",
        TOTP,
        org=None,
        diff={
            "/secret": replaced(HIDDEN, HIDDEN),
            "/backup_codes": replaced(HIDDEN, HIDDEN),
        },
    ),
    Case(
        "totp.enrollment_started",
        "insert into two_factor (user_id, secret, enabled_at)"
        " values ('u_cy', 'never-to-be-logged-totp', null)",
        ("two_factor", "u_cy"),
        org=None,
        row={"enabled_at": None, "secret": HIDDEN},
    ),
    Case(
        "totp.updated",
        "update two_factor set secret = 'never-to-be-logged-totp-2' where user_id = 'u_bo'",
        ("two_factor", "u_bo"),
        org=None,
        diff={"/secret": replaced(HIDDEN, HIDDEN)},
    ),
    Case(
        "totp.disabled",
        "update two_factor set enabled_at = null where user_id = 'u_ana'",
        TOTP,
        org=None,
        given=f"update two_factor set enabled_at = '{AT}' where user_id = 'u_ana'",
        diff={"/enabled_at": replaced(AT_JSON, None)},
    ),
    Case(
        "totp.disabled",
        "delete from two_factor where user_id = 'u_ana'",
        TOTP,
        org=None,
        row={"secret": HIDDEN, "backup_codes": HIDDEN},
    ),
    Case(
        "totp.enrollment_canceled",
        "delete from two_factor where user_id = 'u_bo'",
        ("two_factor", "u_bo"),
        org=None,
        row={"secret": HIDDEN},
    ),
    Case(
        "backup_codes.regenerated",
        "update two_factor set backup_codes ="
        " '{never-to-be-logged-code-5,never-to-be-logged-code-6}'"
        " where user_id = 'u_ana'",
        TOTP,
        org=None,
        diff={"/backup_codes": replaced(HIDDEN, HIDDEN)},
    ),
    Case(
        "backup_codes.used",
        "update two_factor set backup_codes ="
        " array_remove(backup_codes, 'never-to-be-logged-code-1')"
        " where user_id = 'u_ana'",
        TOTP,
        org=None,
        diff={"/backup_codes": replaced(HIDDEN, HIDDEN)},
    ),
    Case(
        "api_key.created",
        "insert into api_key (id, user_id, name, key_prefix, key_hash)"
        " values ('k_new', 'u_ana', 'phone', 'wfb_3e8…', 'never-to-be-logged-key')",
        ("api_key", "k_new"),
        org=None,
        row={"name": "phone", "org_id": None, "key_hash": HIDDEN},
        label="wfb_3e8…",
    ),
    Case(
        "api_key.renamed",
        "update api_key set name = 'tablet', last_used_at = now() where id = 'k_own'",
        OWN_KEY,
        org=None,
        diff={"/name": replaced("laptop", "tablet")},
    ),
    Case(
        "api_key.rotated",
        "update api_key set key_hash = 'never-to-be-logged-key-2' where id = 'k_own'",
        OWN_KEY,
        org=None,
        diff={"/key_hash": replaced(HIDDEN, HIDDEN)},
    ),
    Case(
        "api_key.updated",
        "update api_key set scopes = '{read}' where id = 'k_own'",
        OWN_KEY,
        org=None,
        diff={"/scopes": replaced([], ["read"])},
    ),
    Case(
        "api_key.revoked",
        f"update api_key set revoked_at = '{AT}' where id = 'k_own'",
        OWN_KEY,
        org=None,
        diff=set_at("/revoked_at"),
        label="wfb_51c…",
    ),
    Case(
        "api_key.revoked",
        "delete from api_key where id = 'k_own'",
        OWN_KEY,
        org=None,
        row={"name": "laptop", "key_hash": HIDDEN},
        label="wfb_51c…",
    ),
    Case(
        "api_key.reinstated",
        "update api_key set revoked_at = null where id = 'k_own_revoked'",
        ("api_key", "k_own_revoked"),
        org=None,
        diff={"/revoked_at": replaced("2026-01-01T00:00:00+00:00", None)},
    ),
    Case(
        "api_key.deleted",
        "delete from api_key where id = 'k_own_revoked'",
        ("api_key", "k_own_revoked"),
        org=None,
        row={"name": "old laptop"},
    ),
    Case(
        "org_api_key.created",
        "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
        " values ('k_new', 'o_acme', 'u_ana', 'cd', 'kh_3e8…', 'never-to-be-logged-key')",
        ("api_key", "k_new"),
        row={"name": "cd", "org_id": "o_acme", "key_hash": HIDDEN},
        label="kh_3e8…",
    ),
    Case(
        "org_api_key.renamed",
        "update api_key set name = 'cd' where id = 'k_org'",
        ORG_KEY,
        diff={"/name": replaced("ci", "cd")},
    ),
    Case(
        "org_api_key.rotated",
        "update api_key set key_hash = 'never-to-be-logged-key-2' where id = 'k_org'",
        ORG_KEY,
        diff={"/key_hash": replaced(HIDDEN, HIDDEN)},
    ),
    Case(
        "org_api_key.updated",
        f"update api_key set expires_at = '{AT}' where id = 'k_org'",
        ORG_KEY,
        diff=set_at("/expires_at"),
    ),
    Case(
        "org_api_key.revoked",
        f"update api_key set revoked_at = '{AT}', name = 'dead' where id = 'k_org'",
        ORG_KEY,
        diff={**set_at("/revoked_at"), "/name": replaced("ci", "dead")},
        label="kh_9f2…",
    ),
    Case(
        "org_api_key.revoked",
        "delete from api_key where id = 'k_org'",
        ORG_KEY,
        row={"name": "ci", "key_hash": HIDDEN},
        label="kh_9f2…",
    ),
    Case(
        "org_api_key.reinstated",
        "update api_key set revoked_at = null where id = 'k_org_revoked'",
        ("api_key", "k_org_revoked"),
        diff={"/revoked_at": replaced("2026-01-01T00:00:00+00:00", None)},
    ),
    Case(
        "org_api_key.deleted",
        "delete from api_key where id = 'k_org_revoked'",
        ("api_key", "k_org_revoked"),
        row={"name": "old ci"},
    ),
    Case(
        "workflow.created",
        "insert into workflow (id, org_id, name)"
        " values ('22222222-2222-4222-8222-222222222222', 'o_acme', 'Refunds')",
        ("workflow", "22222222-2222-4222-8222-222222222222"),
        row={"name": "Refunds", "enabled": False, "listed": False},
        label="Refunds",
    ),
    Case(
        "workflow.updated",
        "update workflow set name = 'Wages', description = 'Monthly'",
        FLOW,
        diff={"/name": replaced("Payroll", "Wages"), "/description": replaced(None, "Monthly")},
        label="Wages",
    ),
    Case(
        "workflow.enabled",
        "update workflow set enabled = true",
        FLOW,
        diff={"/enabled": replaced(False, True)},
    ),
    Case(
        "workflow.disabled",
        "update workflow set enabled = false",
        FLOW,
        given="update workflow set enabled = true",
        diff={"/enabled": replaced(True, False)},
    ),
    Case(
        "workflow.listed",
        LISTED,
        FLOW,
        diff={
            "/listed": replaced(False, True),
            "/listed_slug": replaced(None, "payroll"),
            "/listed_at": replaced(None, "2026-01-01T00:00:00+00:00"),
        },
    ),
    Case(
        "workflow.unlisted",
        "update workflow set listed = false",
        FLOW,
        given=LISTED,
        diff={"/listed": replaced(True, False)},
    ),
    Case(
        "workflow.listing_updated",
        "update workflow set listing_price = 2.50, listing_category = 'finance'",
        FLOW,
        given=LISTED,
        diff={
            "/listing_price": replaced(None, 2.50),
            "/listing_category": replaced(None, "finance"),
        },
    ),
    Case("workflow.deleted", "delete from workflow", FLOW, row={"name": "Payroll"}),
    Case(
        "subscription.created",
        "insert into subscription (org_id) values ('o_two')",
        ("subscription", "o_two"),
        org="o_two",
        given="insert into organization (id, name) values ('o_two', 'Two')",
        row={"plan": "free", "status": "active"},
    ),
    Case(
        "subscription.plan_changed",
        "update subscription set plan = 'team', updated_at = now()",
        PLAN,
        diff={"/plan": replaced("pro", "team")},
    ),
    Case(
        "subscription.cancel_scheduled",
        "update subscription set cancel_at_period_end = true",
        PLAN,
        diff={"/cancel_at_period_end": replaced(False, True)},
    ),
    Case(
        "subscription.cancel_withdrawn",
        "update subscription set cancel_at_period_end = false",
        PLAN,
        given="update subscription set cancel_at_period_end = true",
        diff={"/cancel_at_period_end": replaced(True, False)},
    ),
    Case(
        "subscription.canceled",
        "update subscription set status = 'canceled', plan = 'free'",
        PLAN,
        diff={"/status": replaced("active", "canceled"), "/plan": replaced("pro", "free")},
    ),
    Case("subscription.canceled", "delete from subscription", PLAN, row={"plan": "pro"}),
    Case(
        "subscription.reactivated",
        "update subscription set status = 'active'",
        PLAN,
        given="update subscription set status = 'canceled'",
        diff={"/status": replaced("canceled", "active")},
    ),
    Case(
        "subscription.updated",
        "update subscription set status = 'past_due'",
        PLAN,
        diff={"/status": replaced("active", "past_due")},
    ),
    Case(
        "subscription.deleted",
        "delete from subscription",
        PLAN,
        given="update subscription set status = 'canceled'",
        row={"status": "canceled"},
    ),
    Case(
        "org_wallet.created",
        "insert into wallet (id, org_id, address) values ('w_new', 'o_acme', '0xcc')",
        ("wallet", "w_new"),
        row={"kind": "org", "address": "0xcc"},
        label="0xcc",
    ),
    Case(
        "org_wallet.updated",
        "update wallet set address = '0xdd' where id = 'w_org'",
        ("wallet", "w_org"),
        diff={"/address": replaced("0xaa", "0xdd")},
    ),
    Case("org_wallet.deleted", "delete from wallet where id = 'w_org'", ("wallet", "w_org")),
    Case(
        "agentic_wallet.created",
        "insert into wallet (id, org_id, kind, address, hmac_secret)"
        " values ('w_new', 'o_acme', 'agentic', '0xcc', 'never-to-be-logged-hmac')",
        ("wallet", "w_new"),
        row={"kind": "agentic", "hmac_secret": HIDDEN, "key_version": 1},
    ),
    Case(
        "agentic_wallet.hmac_rotated",
        "update wallet set hmac_secret = 'never-to-be-logged-hmac-2', key_version = key_version + 1"
        " where id = 'w_agent'",
        ("wallet", "w_agent"),
        diff={"/hmac_secret": replaced(HIDDEN, HIDDEN), "/key_version": replaced(1, 2)},
    ),
    Case(
        "agentic_wallet.updated",
        "update wallet set address = '0xdd' where id = 'w_agent'",
        ("wallet", "w_agent"),
        diff={"/address": replaced("0xbb", "0xdd")},
    ),
    Case(
        "agentic_wallet.deleted",
        "delete from wallet where id = 'w_agent'",
        ("wallet", "w_agent"),
        row={"hmac_secret": HIDDEN},
    ),
]


def context(conn: psycopg.Connection[Any], **settings: str) -> None:
    for name, value in settings.items():
        conn.execute("select set_config('app.' || %s, %s, true)", (name, value))


def log(conn: psycopg.Connection[Any]) -> list[DictRow]:
    with conn.cursor(row_factory=dict_row) as cur:
        cur.execute("select * from pgaudit_wf.security_audit_log order by id")
        return cur.fetchall()


def caused(conn: psycopg.Connection[Any], statement: LiteralString) -> list[DictRow]:
    """The events that one statement leaves behind, oldest first."""
    before = len(log(conn))
    conn.execute(statement)
    return log(conn)[before:]


@pytest.fixture(scope="module")
def filled(server: DevServer, app_template: NoopExecutor) -> Iterator[psycopg.Connection[Any]]:
    """One database for all tests here: cloning costs more than a test of one statement."""
    name = "reference_actions"
    with (
        Clone(app_template, name),
        psycopg.connect(server.dsn(name), autocommit=True) as conn,
    ):
        with conn.transaction():
            conn.execute(WORLD)
        yield conn


@pytest.fixture
def world(
    filled: psycopg.Connection[Any], find_secrets: Callable[[psycopg.Connection[Any]], list[str]]
) -> Iterator[psycopg.Connection[Any]]:
    """The reference application with a little of everything in it; put back afterwards."""
    with filled.transaction(force_rollback=True):
        yield filled
        assert find_secrets(filled) == []


def operations(event: DictRow) -> dict[str, dict[str, object]]:
    return {op.pop("path"): op for op in event["diff"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}:{case.when.split()[0]}")
def test_change_is_one_event_that_names_it(world: psycopg.Connection[Any], case: Case) -> None:
    context(world, actor_id="u_ana", actor_label="Ana", reason=case.reason)
    if case.given:
        world.execute(case.given)
    events = caused(world, case.when)

    assert [event["action"] for event in events] == [case.action]
    (event,) = events
    assert (event["resource_type"], event["resource_id"]) == case.resource
    assert event["org_id"] == case.org
    assert (event["actor_id"], event["outcome"]) == ("u_ana", "succeeded")
    if case.label is not None:
        assert event["metadata"]["label"] == case.label
    if case.reason:
        assert event["metadata"]["reason"] == case.reason
    if case.diff:
        assert operations(event) == case.diff
    else:
        (op,) = event["diff"]
        added = op["op"] == "add"
        assert (op["op"], op["path"]) == ("add" if added else "remove", "")
        row = op["value" if added else "old"]
        assert case.row.items() <= row.items()
    assert SECRET not in repr(event)


def test_every_rule_has_a_case(world: psycopg.Connection[Any]) -> None:
    named = {row[0] for row in world.execute("select action from pgaudit_wf.action_rule")}
    assert named <= {case.action for case in CASES}


def test_password_changed_for_another_reason_is_no_reset(world: psycopg.Connection[Any]) -> None:
    context(world, reason="yearly rotation")
    (event,) = caused(
        world, "update app_user set password_hash = 'never-to-be-logged-9' where id = 'u_ana'"
    )
    assert event["action"] == "password.changed"
    assert event["metadata"]["reason"] == "yearly rotation"


def test_billing_webhook_is_the_actor_of_what_it_changes(world: psycopg.Connection[Any]) -> None:
    context(
        world,
        actor_id="webhook:stripe",
        actor_label="Stripe billing webhook",
        org_id="o_acme",
        auth_method="webhook",
        correlation_id="evt_1",
    )
    (changed,) = caused(world, "update subscription set plan = 'team'")
    (canceled,) = caused(world, "update subscription set status = 'canceled'")
    for event, action in (
        (changed, "subscription.plan_changed"),
        (canceled, "subscription.canceled"),
    ):
        assert event["action"] == action
        assert event["actor_id"] == "webhook:stripe"
        assert event["actor_label"] == "Stripe billing webhook"
        assert event["auth_method"] == "webhook"
        assert event["correlation_id"] == "evt_1"


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("subscription.change_requested", {"plan": "pro"}, {"plan": "team"}),
        ("subscription.cancel_requested", {"status": "active"}, {"status": "canceled"}),
        ("subscription.checkout_started", None, {"plan": "team"}),
    ],
)
def test_what_is_only_asked_for_is_recorded_by_name(
    world: psycopg.Connection[Any],
    action: str,
    before: dict[str, str] | None,
    after: dict[str, str],
) -> None:
    context(world, actor_id="u_ana", org_id="o_acme", auth_method="session")
    earlier = len(log(world))
    world.execute(
        "select pgaudit_wf.record_event(action => %s, resource_type => 'subscription',"
        " resource_id => 'o_acme', before => %s, after => %s)",
        (action, before and Jsonb(before), Jsonb(after)),
    )
    (event,) = log(world)[earlier:]
    assert event["action"] == action
    assert (event["resource_type"], event["resource_id"]) == PLAN
    assert (event["org_id"], event["actor_id"]) == ("o_acme", "u_ana")
    assert world.execute("select plan, status from subscription").fetchone() == ("pro", "active")


@pytest.mark.parametrize(
    "touch",
    [
        "update organization set updated_at = now() + interval '1 hour'",
        "update app_user set updated_at = now() + interval '1 hour'",
        "update session set last_seen_at = now() + interval '1 hour'",
        "update api_key set last_used_at = now() + interval '1 hour'",
        "update workflow set updated_at = now() + interval '1 hour'",
        "update subscription set updated_at = now() + interval '1 hour'",
        "update wallet set updated_at = now() + interval '1 hour'",
        "update app_user set name = name, password_hash = password_hash",
        "update two_factor set secret = secret, backup_codes = backup_codes",
    ],
    ids=lambda touch: touch.split(" = ")[0],
)
def test_touch_is_no_event(world: psycopg.Connection[Any], touch: LiteralString) -> None:
    assert caused(world, touch) == []


def test_deleting_an_account_tells_what_went_with_it(world: psycopg.Connection[Any]) -> None:
    context(world, actor_id="u_ana")
    events = caused(world, "delete from app_user where id = 'u_ana'")
    assert sorted(event["action"] for event in events) == [
        "account.deleted",
        "api_key.deleted",
        "api_key.revoked",
        "member.removed",
        "org_api_key.deleted",
        "org_api_key.revoked",
        "session.deleted",
        "session.expired",
        "session.revoked",
        "totp.disabled",
        "workflow.updated",
    ]


def test_deleting_an_org_keeps_what_it_did(world: psycopg.Connection[Any]) -> None:
    earlier = log(world)
    world.execute("delete from organization where id = 'o_acme'")
    assert log(world)[: len(earlier)] == earlier
    assert {event["action"] for event in log(world)[len(earlier) :]} == {
        "org.deleted",
        "member.removed",
        "org_api_key.revoked",
        "org_api_key.deleted",
        "workflow.deleted",
        "subscription.canceled",
        "org_wallet.deleted",
        "agentic_wallet.deleted",
    }


def test_every_secret_column_is_redacted(world: psycopg.Connection[Any]) -> None:
    secret = world.execute(
        "select attrelid::regclass::text, attname::text from pg_attribute"
        " where col_description(attrelid, attnum) like '%Secret: never in the log.'"
    ).fetchall()
    redacted = world.execute(
        "select target::text, unnest(redact) from pgaudit_wf.attached"
    ).fetchall()
    assert sorted(redacted) == sorted(secret)
    assert len(secret) == 6


def test_directory_names_people_and_lets_in_active_members(
    world: psycopg.Connection[Any],
) -> None:
    people = world.execute("select * from pgaudit_wf.actor_directory order by 1").fetchall()
    assert people[:2] == [("u_ana", "Ana", "ana@example.com"), ("u_bo", "Bo", "bo@example.com")]
    members = "select * from pgaudit_wf.org_member order by 2"
    assert world.execute(members).fetchall() == [("o_acme", "u_ana", "owner")]
    world.execute("update member set status = 'active' where user_id = 'u_bo'")
    assert world.execute(members).fetchall()[1:] == [("o_acme", "u_bo", "member")]
    world.execute("update app_user set deactivated_at = now() where id = 'u_bo'")
    assert world.execute(members).fetchall() == [("o_acme", "u_ana", "owner")]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into api_key (user_id, name, key_prefix, key_hash)"
        " values ('u_ana', 'x', 'kh_123…', 'h')",
        "insert into api_key (org_id, user_id, name, key_prefix, key_hash)"
        " values ('o_acme', 'u_ana', 'x', 'wfb_123…', 'h')",
        "insert into api_key (user_id, name, key_prefix, key_hash)"
        " values ('u_ana', 'x', 'wfb_0123456789abcdef0123456789abcdef', 'h')",
        "insert into wallet (org_id, kind, address, hmac_secret)"
        " values ('o_acme', 'org', '0', 'h')",
        "update member set role = 'emperor' where user_id = 'u_ana'",
        "insert into app_user (email) values ('ANA@example.com')",
    ],
)
def test_inconsistent_rows_of_the_reference_schema_are_refused(
    world: psycopg.Connection[Any], statement: LiteralString
) -> None:
    world.execute("insert into workflow_execution (workflow_id) values (gen_random_uuid())")
    before = log(world)
    with pytest.raises(psycopg.errors.IntegrityError), world.transaction():
        world.execute(statement)
    assert log(world) == before


def test_run_outlives_all_it_points_at(world: psycopg.Connection[Any]) -> None:
    world.execute(
        "insert into workflow_execution (workflow_id, org_id, user_id, api_key_id)"
        " values ('11111111-1111-4111-8111-111111111111', 'o_acme', 'u_ana', 'k_org')"
    )
    world.execute("delete from organization")
    world.execute("delete from app_user")
    kept = world.execute(
        "select workflow_id::text, org_id, user_id, api_key_id from workflow_execution"
    ).fetchall()
    assert kept == [(WORKFLOW, "o_acme", "u_ana", "k_org")]


def test_rule_of_ones_own_is_a_row(world: psycopg.Connection[Any]) -> None:
    publish: LiteralString = "update workflow set visibility = 'public'"
    with world.transaction(force_rollback=True):
        assert [event["action"] for event in caused(world, publish)] == ["workflow.updated"]
    world.execute(
        "insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values"
        " ('workflow', 'update', 'old.visibility <> ''public'' and new.visibility = ''public''',"
        " 'workflow.published', 5)"
    )
    assert [event["action"] for event in caused(world, publish)] == ["workflow.published"]
