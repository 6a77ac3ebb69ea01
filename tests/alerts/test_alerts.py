"""Alerts against real receivers: who is told, what a message says, and what failures do to it."""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
import standardwebhooks
import trustme
from psycopg.types.json import Jsonb

from pgaudit_wf import request_context
from pgaudit_wf.alerts import (
    Alert,
    Channel,
    LogChannel,
    SmtpChannel,
    SmtpSettings,
    Templates,
    WebhookChannel,
    Worker,
    channels_from,
)
from pgaudit_wf.alerts.message import SAMPLE
from pgaudit_wf.cli import app
from pgaudit_wf.errors import AlertSettingsError
from pgaudit_wf.jobs.service import Service
from support.alert_servers import MailServer, WebServer
from support.server import Conn

SENDER = "alerts@audit.example"
OWNER, OTHER_OWNER, ADMIN, PERSON = (
    "ana@acme.example",
    "bo@acme.example",
    "cy@acme.example",
    "dee@x.example",
)
WEBHOOK_SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
TEMPLATES = Templates()


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture
def hook() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def org(app_conn: Conn) -> Conn:
    """Org o_1 with two owners, an admin and a member; Dee is the member."""
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme'), ('o_2', 'Else')")
    for actor, address, role in (
        ("ana", OWNER, "owner"), ("bo", OTHER_OWNER.upper(), "owner"), ("cy", ADMIN, "admin"),
        ("dee", PERSON, "member"),
    ):  # fmt: skip
        app_conn.execute("insert into app_user (id, email) values (%s, %s)", [actor, address])
        app_conn.execute("insert into member values ('o_1', %s, %s)", [actor, role])
    return app_conn


@pytest.fixture
def add_key(org: Conn, secret: Callable[[], str]) -> Callable[..., None]:
    def add(key: str, org_id: str | None = None, user: str = "dee") -> None:
        org.execute(
            "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
            " values (%s, %s, %s, 'a key', %s, %s)",
            [key, org_id, user, f"{'wfb' if org_id is None else 'kh'}_{key}"[:16], secret()],
        )

    return add


def smtp(
    server: MailServer,
    timeout: float = 5.0,
    tls: Literal["starttls", "implicit", "none"] = "none",
    user: str | None = None,
    password: str | None = None,
    ca_file: Path | None = None,
) -> SmtpChannel:
    return SmtpChannel(
        SmtpSettings("127.0.0.1", SENDER, tls, server.port, user, password, ca_file, timeout),
        TEMPLATES,
    )


def work(dsn: str, **channels: Channel) -> Service:
    """Deliver what is due, as `alerts run --once` does."""
    service = Service("alerts")
    worker = Worker(lambda: psycopg.connect(dsn, autocommit=True), channels, service)
    try:
        service.run(worker.job, once=True)
    finally:
        worker.close()
    return service


def event(
    conn: Conn,
    action: str = "api_key.created",
    *,
    actor_id: str = "dee",
    actor_label: str | None = None,
    org_id: str = "o_1",
    label: str = "kh_1",
    outcome: str = "succeeded",
) -> None:
    """Record an event of org o_1, or of the one given."""
    with request_context(conn, actor_id=actor_id, org_id=org_id, actor_label=actor_label):
        conn.execute(
            "select pgaudit_wf.record_event(%s, 'api_key', 'k_1', metadata => %s, outcome => %s)",
            [action, Jsonb({"label": label}), outcome],
        )


def rule(
    conn: Conn,
    action: str,
    *,
    channel: str = "smtp",
    audience: str = "address",
    address: str | None = None,
    org_id: str | None = None,
    outcome: str | None = "succeeded",
    enabled: bool = True,
) -> None:
    conn.execute(
        "insert into pgaudit_wf.alert_rule"
        " (action_pattern, channel, audience, address, org_id, outcome, enabled)"
        " values (%s, %s, %s, %s, %s, %s, %s)",
        [action, channel, audience, address, org_id, outcome, enabled],
    )


def no_rules(conn: Conn) -> None:
    conn.execute("delete from pgaudit_wf.alert_rule")


def policy(conn: Conn, settings: str) -> None:
    conn.execute(f"update pgaudit_wf.alert_policy set {settings}".encode())


def states(conn: Conn) -> dict[str, int]:
    rows = conn.execute(
        "select state, count(*) from pgaudit_wf.alert_delivery group by 1"
    ).fetchall()
    return dict(rows)


def make_due(conn: Conn) -> None:
    conn.execute("update pgaudit_wf.alert_delivery set due_at = now() where state = 'pending'")


def recipients(server: MailServer) -> list[str]:
    return sorted(address for one in server.taken for address in one.recipients)


# who is told


def test_owners_are_told_of_their_orgs_keys_and_with_the_person_of_members_own(
    org: Conn, app_dsn: str, mail: MailServer, add_key: Callable[..., None]
) -> None:
    with request_context(org, actor_id="dee", actor_label="Dee", ip="203.0.113.9", country="PT",
                         auth_method="session", user_agent="Mozilla/5.0 (X11)"):  # fmt: skip
        add_key("org1", "o_1")
    work(app_dsn, smtp=smtp(mail))
    assert recipients(mail) == [OWNER, OTHER_OWNER]
    told = mail.taken[0]
    assert told.subject == "Security alert: org api key created (kh_org1)"
    for text in (told.text, told.html):
        for part in ("api_key kh_org1", f"Dee ({PERSON})", "o_1", "203.0.113.9 (PT)", "session",
                     "Mozilla/5.0 (X11)", "org_api_key.created"):  # fmt: skip
            assert part in text
    assert told.message["Auto-Submitted"] == "auto-generated"

    mail.taken.clear()
    with request_context(org, actor_id="ana", org_id="o_1"):
        add_key("own1")
        add_key("own2")
        org.execute("update api_key set revoked_at = now() where id = 'own1'")
        org.execute("delete from api_key where id = 'own2'")
        org.execute("update api_key set name = 'renamed' where id = 'org1'")
    work(app_dsn, smtp=smtp(mail))
    assert sorted(recipients(mail)) == sorted([PERSON, OWNER, OTHER_OWNER] * 4)
    subjects = Counter(one.subject for one in mail.taken)
    assert subjects == {
        "Security alert: api key created (wfb_own1)": 3,
        "Security alert: api key created (wfb_own2)": 3,
        "Security alert: api key revoked (wfb_own1)": 3,
        "Security alert: api key revoked (wfb_own2)": 3,
    }
    assert len({one.id for one in mail.taken}) == 12


def test_the_person_of_a_key_that_is_older_than_the_audit(
    org: Conn, app_dsn: str, mail: MailServer, add_key: Callable[..., None]
) -> None:
    org.execute("select pgaudit_wf.detach('api_key')")
    add_key("old")
    org.execute(
        "select pgaudit_wf.attach('public.api_key', org_column => 'org_id',"
        " label_column => 'key_prefix', ignore => '{last_used_at}', redact => '{key_hash}')"
    )
    with request_context(org, actor_id="cy"):
        org.execute("update api_key set revoked_at = now()")
    # The log does not say whose it is, and the table is not ours to read.
    work(app_dsn, smtp=smtp(mail))
    assert PERSON not in recipients(mail)
    mail.taken.clear()
    org.execute("grant select on api_key to pgaudit_wf_owner")
    with request_context(org, actor_id="cy"):
        org.execute("update api_key set revoked_at = null")
        org.execute("update api_key set revoked_at = now()")
    work(app_dsn, smtp=smtp(mail))
    assert sorted(recipients(mail)) == sorted([PERSON, OWNER, OTHER_OWNER])
    # Nor would we run its owner's policies to read it.
    mail.taken.clear()
    org.execute("alter table api_key enable row level security")
    with request_context(org, actor_id="cy"):
        org.execute("update api_key set revoked_at = null")
        org.execute("update api_key set revoked_at = now()")
    work(app_dsn, smtp=smtp(mail))
    assert PERSON not in recipients(mail)


def test_audiences(org: Conn, app_dsn: str, mail: MailServer) -> None:
    no_rules(org)
    rule(org, "invoice.*", audience="actor")
    rule(org, "invoice.paid", audience="admins")
    rule(org, "*.paid", address="Books@acme.example")
    rule(org, "invoice.paid", address="books@acme.example")
    rule(org, "invoice.paid", address="never@acme.example", enabled=False)
    rule(org, "invoice.paid", address="never@acme.example", org_id="o_2")
    rule(org, "invoice_paid", address="never@acme.example")
    rule(org, "invoice.paid", address="alarm@acme.example", outcome="denied")
    event(org, "invoice.paid")
    work(app_dsn, smtp=smtp(mail))
    assert recipients(mail) == ["books@acme.example", ADMIN, PERSON]
    mail.taken.clear()
    event(org, "invoice.paid", outcome="denied")
    work(app_dsn, smtp=smtp(mail))
    assert recipients(mail) == ["alarm@acme.example"]
    assert "invoice paid (denied)" in mail.taken[0].subject


def test_events_from_before_a_rule_and_old_ones_are_not_told_of(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    event(org, "invoice.paid")
    no_rules(org)
    rule(org, "invoice.*", address="late@acme.example")
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {}
    policy(org, "max_age = '0 seconds'")
    event(org, "invoice.paid")
    row = org.execute("select * from pgaudit_wf.enqueue_alerts()").fetchone()
    # The change of the policy is an event, too.
    assert row == (2, 0, 0, 0, 1)


def test_a_rule_that_finds_nobody_is_seen_and_can_be_queued_again(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    org.execute(
        "insert into app_user (id, email) values ('eve', %s)", ["eve@x.example\r\nBcc: all@x"]
    )
    org.execute("insert into member values ('o_2', 'eve', 'owner')")
    event(org, org_id="o_2")
    service = work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"unaddressed": 1}
    assert b"pgaudit_wf_alerts_unaddressed_total 1.0" in service.answer("/metrics")[2]
    with pytest.raises(psycopg.Error) as caught:
        org.execute("select pgaudit_wf.requeue_alert(id) from pgaudit_wf.alert_delivery")
    assert caught.value.sqlstate == "PA401"
    org.execute("update app_user set email = 'eve@x.example' where id = 'eve'")
    assert org.execute("select pgaudit_wf.requeue_alert()").fetchone() == (1,)
    work(app_dsn, smtp=smtp(mail))
    assert recipients(mail) == ["eve@x.example"]
    assert states(org) == {"sent": 1}


def test_an_event_that_cannot_be_handled_holds_nothing_up(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    org.execute("insert into app_user (id, email) values ('eve', 'eve@x.example')")
    org.execute("insert into member values ('o_2', 'eve', 'owner')")
    # Views of the application, which fail for one organization and one person.
    members, people = (
        org.execute("select pg_get_viewdef(%s::regclass)", [view]).fetchone() or ("",)
        for view in ("pgaudit_wf.org_member", "pgaudit_wf.actor_directory")
    )
    org.execute(
        "create or replace view pgaudit_wf.org_member as select org_id, actor_id,"
        " case org_id when 'o_2' then (1 / (length(role) - 5))::text else role end as role"
        f" from ({members[0].rstrip(';')}) as m".encode()
    )
    org.execute(
        "create or replace view pgaudit_wf.actor_directory as select actor_id, name,"
        " case actor_id when 'cy' then (1 / (length(email) - length(email)))::text"
        f" else email end as email from ({people[0].rstrip(';')}) as m".encode()
    )
    rule(org, "api_key.created", address="books@acme.example")
    for org_id, actor in (("o_1", "dee"), ("o_2", "dee"), ("o_1", "cy")):
        event(org, org_id=org_id, actor_id=actor, actor_label="Cy")
    service = work(app_dsn, smtp=smtp(mail))
    assert Counter(recipients(mail)) == {"books@acme.example": 3, OWNER: 2, OTHER_OWNER: 2}
    assert states(org) == {"sent": 7, "dead": 1}
    assert b'deliveries{channel="smtp",state="dead"} 1.0' in service.answer("/metrics")[2]
    [(problem, remedy)] = org.execute(
        "select problem, remedy from pgaudit_wf.doctor() where subject like '%alert_delivery'"
    ).fetchall()
    assert "1 alerts were given up" in problem
    assert "SQLSTATE 22012" in problem
    # It stays as long as it fails.
    assert org.execute(remedy).fetchone() == (0,)
    org.execute(f"create or replace view pgaudit_wf.org_member as {members[0]}".encode())
    assert org.execute(remedy).fetchone() == (1,)
    mail.taken.clear()
    work(app_dsn, smtp=smtp(mail))
    assert recipients(mail) == ["eve@x.example"]
    assert not org.execute("select from pgaudit_wf.doctor()").fetchall()


def test_a_template_that_fails_for_one_event_sends_the_others(
    org: Conn, app_dsn: str, mail: MailServer, tmp_path: Path
) -> None:
    (tmp_path / "alert.body.txt").write_text("{{ 1 // (event.actor | length - 3) }}")
    settings = SmtpSettings("127.0.0.1", SENDER, "none", mail.port, None, None, None, 5.0)
    no_rules(org)
    rule(org, "api_key.*", address="books@acme.example")
    for label in ("Anna", "Bob", "Clara"):
        event(org, actor_id=label, actor_label=label)
    work(app_dsn, smtp=SmtpChannel(settings, Templates(tmp_path)))
    assert len(recipients(mail)) == 2
    assert org.execute(
        "select last_error from pgaudit_wf.alert_delivery where state = 'pending'"
    ).fetchall() == [("the channel failed for this event: ZeroDivisionError",)]


ENQUEUE = "select deliveries from pgaudit_wf.enqueue_alerts()"
PLACE = "select cursor, events from pgaudit_wf.reader where name = 'alerts'"


def test_no_alert_is_lost_when_numbers_lag_behind(org: Conn) -> None:
    """As where logical replication brought the rows and not the sequences."""
    sequence = "pg_get_serial_sequence('pgaudit_wf.alert_delivery', 'id')"
    no_rules(org)
    rule(org, "api_key.*", address="a@b.example")
    for label in ("kh_1", "kh_2"):
        event(org, label=label)
    assert org.execute(ENQUEUE).fetchone() == (2,)
    place = org.execute(PLACE).fetchone()
    event(org, label="kh_3")
    org.execute(f"select setval({sequence}, 1, false)".encode())
    for _ in range(2):
        with pytest.raises(psycopg.Error, match="alert_delivery_pkey") as caught:
            org.execute(ENQUEUE)
        assert caught.value.sqlstate == "PA402"
        assert "setval" in str(caught.value.diag.message_hint)
        assert org.execute(PLACE).fetchone() == place
        assert states(org) == {"pending": 2}
    remedy = f"select setval({sequence}, (select max(id) from pgaudit_wf.alert_delivery))"
    org.execute(remedy.encode())
    assert org.execute(ENQUEUE).fetchone() == (1,)
    assert states(org) == {"pending": 3}


def test_requeueing_does_not_swallow_a_number_in_use(org: Conn) -> None:
    event(org, org_id="o_2")
    org.execute(ENQUEUE)
    assert states(org) == {"unaddressed": 1}
    org.execute("insert into app_user (id, email) values ('eve', 'eve@x.example')")
    org.execute("insert into member values ('o_2', 'eve', 'owner')")
    org.execute(
        "select setval(pg_get_serial_sequence('pgaudit_wf.alert_delivery', 'id'), 1, false)"
    )
    with pytest.raises(psycopg.errors.UniqueViolation, match="alert_delivery_pkey"):
        org.execute("select pgaudit_wf.requeue_alert()")
    assert states(org) == {"unaddressed": 1}
    assert org.execute("select pgaudit_wf.requeue_alert()").fetchone() == (1,)


def test_an_event_whose_number_was_given_before_is_told_of_too(org: Conn) -> None:
    no_rules(org)
    rule(org, "api_key.*", address="a@b.example")
    event(org)
    assert org.execute(ENQUEUE).fetchone() == (1,)
    org.execute(
        "select setval(pg_get_serial_sequence('pgaudit_wf.security_audit_log', 'id'), max(id),"
        " false) from pgaudit_wf.security_audit_log"
    )
    event(org)
    assert org.execute(ENQUEUE).fetchone() == (1,)
    keys = [org.execute("select message_key from pgaudit_wf.claim_alert()").fetchone()
            for _ in range(2)]  # fmt: skip
    assert len(set(keys)) == 2
    counted = org.execute(
        "select count(*), count(distinct event_id) from pgaudit_wf.alert_delivery"
    ).fetchone()
    assert counted == (2, 1)


@pytest.mark.parametrize(
    ("channel", "audience", "address"),
    [
        ("smtp", "address", None),
        ("smtp", "owners", "a@b.example"),
        ("smtp", "address", "a@b.example, c@d.example"),
        ("smtp", "address", "a@b.example\nBcc: c@d.example"),
        ("smtp", "address", "nobody"),
        ("smtp", "address", "a" * 250 + "@b.example"),
        ("webhook", "owners", None),
        ("webhook", "address", "http://example.com/hook"),
        ("webhook", "address", "https://user:pass@example.com/hook"),
        ("webhook", "address", "file:///etc/passwd"),
        ("webhook", "address", "http://localhost.example.com/"),
        ("log", "address", "A stream"),
        ("pigeon", "address", "x"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(
    app_conn: Conn, channel: str, audience: str, address: str | None
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        rule(app_conn, "x", channel=channel, audience=audience, address=address)


def test_alerts_add_no_trigger_and_nothing_to_a_write(
    org: Conn, add_key: Callable[..., None]
) -> None:
    triggers = org.execute(
        "select tgrelid::regclass::text, tgfoid::regprocedure::text from pg_trigger"
        " where not tgisinternal and tgname <> 'record_configuration'"
        " and (tgrelid::regclass::text like '%alert%'"
        " or pg_get_functiondef(tgfoid) like '%alert%')"
    ).fetchall()
    assert triggers == []
    add_key("k1", "o_1")
    assert states(org) == {}
    assert org.execute(
        "select count(*) from pgaudit_wf.reader where name = 'alerts'"
    ).fetchone() == (0,)


def test_with_no_rule_that_matches_only_the_place_moves(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    org.execute("update pgaudit_wf.alert_rule set enabled = false")
    event(org)
    work(app_dsn, smtp=smtp(mail))
    assert (states(org), mail.taken) == ({}, [])
    assert org.execute("select pgaudit_wf.alert_lag()").fetchone() == (0,)


# what a message says

HOSTILE = [
    "<script>alert(1)</script>",
    '=HYPERLINK("http://evil.example","x")',
    "x\r\nBcc: victim@x.example\r\n\r\nbody",
    "=?utf-8?q?Bcc=3A_victim=40x=2Eexample?=",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u2028next\x1b[31m",
    '"><img src=x onerror=alert(1)>',
    "é" * 400,
]


@pytest.mark.parametrize("label", HOSTILE)
def test_names_can_do_nothing(org: Conn, app_dsn: str, mail: MailServer, label: str) -> None:
    no_rules(org)
    rule(org, "api_key.created", address="a@x.example")
    event(org, label=label, actor_id="mallory", actor_label=label)
    work(app_dsn, smtp=smtp(mail))
    (one,) = mail.taken
    assert one.recipients == ("a@x.example",)
    assert one.message.keys().count("Subject") == 1
    assert not {"Bcc", "Cc"} & set(one.message.keys())
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", one.subject + one.text + one.html
    )
    assert len(one.subject) <= 200
    assert "<script" not in one.html
    assert "<img" not in one.html
    for text in (one.subject, one.text, one.html):
        assert "http://" not in text
    if label.startswith("{{"):
        assert "49" not in one.subject
        assert "{{ 7 * 7 }}" in one.subject


def test_no_secret_and_no_value_in_a_message(
    org: Conn, app_dsn: str, mail: MailServer, hook: WebServer, add_key: Callable[..., None]
) -> None:
    rule(org, "*", address="all@x.example", outcome=None)
    rule(org, "*", channel="webhook", address=hook.url)
    with request_context(org, actor_id="ana", reason="what-a-reason"):
        add_key("k1", "o_1")
        org.execute("update app_user set email = 'changed-value@x.example' where id = 'cy'")
    webhook = channels_from({"PGAUDIT_WF_WEBHOOK_SECRET": WEBHOOK_SECRET}, TEMPLATES)["webhook"]
    work(app_dsn, smtp=smtp(mail), webhook=webhook)
    assert len(hook.requests) >= 2
    said = "".join(one.subject + one.text + one.html for one in mail.taken)
    said += "".join(one.body.decode() for one in hook.requests)
    assert "org_api_key.created" in said
    for never in ("never-to-be-logged", "what-a-reason", "[redacted]", "key_hash", '"diff"'):
        assert never not in said
    stored = org.execute(
        "select string_agg(d::text, '') from pgaudit_wf.alert_delivery d"
    ).fetchone()
    assert stored is not None
    assert WEBHOOK_SECRET not in stored[0]


def test_own_templates_and_broken_ones(
    org: Conn, app_dsn: str, mail: MailServer, tmp_path: Path
) -> None:
    (tmp_path / "alert.subject.txt").write_text("[{{ event.org }}] {{ event.action }}")
    channel = SmtpChannel(SmtpSettings("127.0.0.1", SENDER, "none", mail.port), Templates(tmp_path))
    event(org)
    work(app_dsn, smtp=channel)
    assert mail.taken[0].subject == "[o_1] api_key.created"
    assert "If you do not recognize this" in mail.taken[0].text
    for broken in ("{{ event.nonsense }}", "{% if %}", "{{ event.diff }}"):
        (tmp_path / "digest.body.html").write_text(broken)
        with pytest.raises(AlertSettingsError, match="digest"):
            Templates(tmp_path)
    with pytest.raises(AlertSettingsError, match="not a directory"):
        Templates(tmp_path / "nowhere")


def test_a_mail_links_to_the_page_of_the_event(org: Conn, app_dsn: str, mail: MailServer) -> None:
    settings = SmtpSettings("127.0.0.1", SENDER, "none", mail.port)
    event(org)
    pages = "https://x.example/audit/"
    work(app_dsn, smtp=SmtpChannel(settings, Templates(pages=pages)))
    [(cursor,)] = org.execute(
        "select pgaudit_wf._trail_cursor(occurred_at, id) from pgaudit_wf.security_audit_log"
        " where action = 'api_key.created'"
    ).fetchall()
    address = f"https://x.example/audit/activity/{cursor}"
    assert f"\n{address}\n" in mail.taken[0].text
    assert f'href="{address}"' in mail.taken[0].html
    sample = Alert("smtp", "a@b.example", "k", [SAMPLE], 1)
    email = Templates(pages=pages).email(sample, SENDER)
    assert "/activity/" not in email.as_string()
    for wrong in ("x.example/audit", "javascript://x", "https://x.example/?a=b", "https:///x"):
        with pytest.raises(AlertSettingsError, match="must be a URL"):
            Templates(pages=wrong)


# failures


def test_three_workers_send_each_message_once(org: Conn, app_dsn: str, mail: MailServer) -> None:
    no_rules(org)
    rule(org, "x.*", audience="actor")
    policy(org, "burst_messages = 100000")
    org.execute(
        "insert into app_user (id, email) select 'u' || i, 'u' || i || '@x.example'"
        " from generate_series(1, 20) as i"
    )
    for number in range(200):
        event(org, f"x.{number}", actor_id=f"u{number % 20 + 1}")
    failures: list[BaseException] = []

    def one() -> None:
        try:
            work(app_dsn, smtp=smtp(mail))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=one) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert states(org) == {"sent": 200}
    told = Counter((one.recipients, one.id) for one in mail.taken)
    assert len(told) == 200
    assert set(told.values()) == {1}


def test_a_recipient_that_is_refused_is_dead_until_requeued(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    no_rules(org)
    rule(org, "api_key.*", address="gone@x.example")
    mail.mode = "refuse"
    event(org)
    work(app_dsn, smtp=smtp(mail))
    problem = org.execute("select state, last_error from pgaudit_wf.alert_delivery").fetchone()
    assert problem == ("dead", "recipient refused: 550 5.1.1")
    mail.mode = "take"
    work(app_dsn, smtp=smtp(mail))
    assert mail.taken == []
    org.execute("select pgaudit_wf.requeue_alert(id) from pgaudit_wf.alert_delivery")
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"sent": 1}
    assert recipients(mail) == ["gone@x.example"]
    with pytest.raises(psycopg.Error) as caught:
        org.execute("select pgaudit_wf.requeue_alert(4711)")
    assert caught.value.sqlstate == "PA401"


def test_pauses_grow_and_the_last_attempt_is_the_last(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    no_rules(org)
    rule(org, "api_key.*", address="a@x.example")
    policy(org, "max_attempts = 4, retry_base = '10 seconds', retry_limit = '15 seconds'")
    mail.mode = "busy"
    event(org)
    waits = []
    for _ in range(4):
        make_due(org)
        work(app_dsn, smtp=smtp(mail))
        row = org.execute(
            "select extract(epoch from due_at - now())::float, state, attempts"
            " from pgaudit_wf.alert_delivery"
        ).fetchone()
        assert row is not None
        waits.append(row)
    assert [(state, attempts) for _, state, attempts in waits] == [
        ("pending", 1), ("pending", 2), ("pending", 3), ("dead", 4)
    ]  # fmt: skip
    assert 4 < waits[0][0] <= 10
    assert 6.5 < waits[1][0] <= 15
    assert 6.5 < waits[2][0] <= 15
    assert mail.taken == []


@pytest.mark.parametrize("mode", ["stall", "drop", "down", "busy"])
def test_a_server_that_fails_and_comes_back(
    org: Conn, app_dsn: str, mail: MailServer, mode: str
) -> None:
    no_rules(org)
    rule(org, "api_key.*", address="a@x.example")
    event(org)
    if mode == "down":
        mail.stop()
    else:
        mail.mode = mode
    began = time.monotonic()
    work(app_dsn, smtp=smtp(mail, 1.5))
    assert time.monotonic() - began < 6
    assert states(org) == {"pending": 1}
    if mode == "down":
        mail.start()
    else:
        mail.stop()
        mail.start()
    mail.mode = "take"
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"pending": 1}, "not before the pause is over"
    make_due(org)
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"sent": 1}
    # What was taken before the line went dead comes again; its id tells.
    assert len(mail.taken) == (2 if mode == "drop" else 1)
    assert len({one.id for one in mail.taken}) == 1


def test_a_channel_that_is_down_does_not_use_up_every_messages_attempts(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    no_rules(org)
    rule(org, "x", audience="owners")
    mail.stop()
    event(org, "x")
    event(org, "x")
    work(app_dsn, smtp=smtp(mail))
    tried = org.execute("select sum(attempts) from pgaudit_wf.alert_delivery").fetchone()
    assert tried == (1,)
    mail.start()
    make_due(org)
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"sent": 4}


def test_a_lease_that_has_run_out_is_somebody_elses(org: Conn, app_dsn: str) -> None:
    no_rules(org)
    rule(org, "api_key.*", address="a@x.example")
    event(org)
    org.execute("select pgaudit_wf.enqueue_alerts()")
    ((message, first),) = org.execute(
        "select message, attempt from pgaudit_wf.claim_alert()"
    ).fetchall()
    assert org.execute("select count(*) from pgaudit_wf.claim_alert()").fetchone() == (0,)
    org.execute("update pgaudit_wf.alert_delivery set lease_until = now() - interval '1 s'")
    ((again, second),) = org.execute(
        "select message, attempt from pgaudit_wf.claim_alert()"
    ).fetchall()
    assert (again, second) == (message, first + 1)
    late = org.execute(
        "select pgaudit_wf.settle_alert(%s, %s, 'late')", [message, first]
    ).fetchone()
    assert late == (None,)
    done = org.execute("select pgaudit_wf.settle_alert(%s, %s)", [message, second]).fetchone()
    assert done == ("sent",)


def test_a_worker_that_dies_at_each_attempt_leaves_a_dead_letter(org: Conn) -> None:
    no_rules(org)
    rule(org, "api_key.*", address="a@x.example")
    policy(org, "max_attempts = 1")
    event(org)
    org.execute("select pgaudit_wf.enqueue_alerts()")
    org.execute("select from pgaudit_wf.claim_alert()")
    org.execute("update pgaudit_wf.alert_delivery set lease_until = now() - interval '1 s'")
    assert org.execute("select from pgaudit_wf.claim_alert()").fetchall() == []
    assert states(org) == {"dead": 1}


def test_a_lease_shorter_than_sending_is_refused(org: Conn, app_dsn: str, mail: MailServer) -> None:
    policy(org, "lease = '5 seconds'")
    with pytest.raises(AlertSettingsError, match="lease"):
        work(app_dsn, smtp=smtp(mail, 3))


def test_what_was_settled_long_ago_is_removed(org: Conn, app_dsn: str, mail: MailServer) -> None:
    event(org)
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"sent": 2}
    assert org.execute("select pgaudit_wf._prune_alerts()").fetchone() == (0,)
    policy(org, "keep = '0 seconds'")
    assert org.execute("select pgaudit_wf._prune_alerts()").fetchone() == (2,)
    work(app_dsn, smtp=smtp(mail))
    assert len(mail.taken) == 2


# bursts


def test_a_burst_comes_as_a_digest_and_the_rate_is_capped(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    no_rules(org)
    rule(org, "x.*", address="a@x.example")
    policy(org, "burst_messages = 3")

    def play(events: int) -> int:
        before = len(mail.taken)
        for _ in range(events):
            event(org, "x.happened", label="<b>thing</b>")
        work(app_dsn, smtp=smtp(mail))
        return len(mail.taken) - before

    assert play(2) == 2
    assert play(60) == 1
    digest = mail.taken[-1]
    assert digest.subject.startswith("Security alert: 60 events")
    assert digest.text.count("x happened:") == digest.html.count("<td>x happened</td>") == 50
    assert "and 10 more." in digest.text
    assert "&lt;b&gt;thing" in digest.html
    assert "<b>" not in digest.html
    assert play(4) == 1
    assert [play(1), play(9)] == [0, 0]
    assert len(mail.taken) == 4, "one more than burst_messages in a window"
    assert states(org) == {"sent": 66, "pending": 10}
    org.execute(
        "update pgaudit_wf.alert_delivery set started_at = started_at - interval '1 h',"
        " due_at = due_at - interval '1 h'"
    )
    assert play(0) == 1
    assert "10 events" in mail.taken[-1].subject
    assert states(org) == {"sent": 76}


def test_a_digest_stays_the_same_when_it_is_repeated(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    no_rules(org)
    rule(org, "x.*", address="a@x.example")
    policy(org, "burst_messages = 3")
    mail.mode = "drop"
    for _ in range(10):
        event(org, "x.first")
    work(app_dsn, smtp=smtp(mail))
    mail.mode = "take"
    event(org, "x.second")
    make_due(org)
    work(app_dsn, smtp=smtp(mail))
    first, repeated, second = mail.taken
    assert first.id == repeated.id != second.id
    assert first.text == repeated.text
    assert states(org) == {"sent": 11}


def test_the_window_of_a_burst_is_the_policys(org: Conn, app_dsn: str, mail: MailServer) -> None:
    no_rules(org)
    rule(org, "x.*", address="a@x.example")

    def held_back(window: str) -> bool:
        policy(org, f"burst_messages = 1, burst_window = '{window}'")
        for _ in range(3):
            event(org, "x.happened")
            work(app_dsn, smtp=smtp(mail))
        waiting = states(org).get("pending", 0)
        org.execute("delete from pgaudit_wf.alert_delivery")
        return waiting > 0

    assert held_back("10 minutes")
    assert not held_back("1 microsecond")


def test_an_event_without_organization_goes_to_the_person_that_the_rule_says(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    no_rules(org)
    for person in ("eve", "fay"):
        org.execute(
            "insert into app_user (id, email) values (%s, %s)", [person, f"{person}@x.example"]
        )
    org.execute("create table device (id int primary key, user_id text, holder text)")
    org.execute("select pgaudit_wf.attach('device')")
    rule(org, "device.created", audience="owners")
    org.execute("insert into device values (1, 'eve', 'fay')")
    work(app_dsn, smtp=smtp(mail))
    org.execute("update pgaudit_wf.alert_rule set person_column = 'holder'")
    org.execute("insert into device values (2, 'eve', 'fay')")
    work(app_dsn, smtp=smtp(mail))
    assert [one.recipients for one in mail.taken] == [("eve@x.example",), ("fay@x.example",)]


# TLS and signing in


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, path


def tls_server(ca: trustme.CA, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, dict[str, Any]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name).configure_cert(context)
    return context, {"tls_context": context, "require_starttls": True, "auth_required": True}


def test_starttls_and_signing_in(
    org: Conn, app_dsn: str, authority: tuple[trustme.CA, Path], caplog: pytest.LogCaptureFixture
) -> None:
    ca, ca_file = authority
    caplog.set_level(logging.DEBUG)
    no_rules(org)
    rule(org, "api_key.*", address="a@x.example")
    server = MailServer(**tls_server(ca)[1])
    server._options["authenticator"] = server.authenticate
    with server:
        event(org)
        for channel in (
            smtp(server, 5, "starttls", "audit", "open sesame"),
            smtp(server, 5, "starttls", "audit", "hunter2", ca_file),
            smtp(server, 5, "starttls", ca_file=ca_file),
        ):
            make_due(org)
            work(app_dsn, smtp=channel)
            assert states(org) == {"pending": 1}
        problems = org.execute("select last_error from pgaudit_wf.alert_delivery").fetchall()
        assert problems[0][0].startswith("SMTPSenderRefused: 530")
        make_due(org)
        work(app_dsn, smtp=smtp(server, 5, "starttls", "audit", "open sesame", ca_file))
    assert states(org) == {"sent": 1}
    assert server.logins == [(b"audit", b"hunter2"), (b"audit", b"open sesame")]
    assert "hunter2" not in caplog.text + repr(
        SmtpSettings("h", SENDER, user="u", password="hunter2")
    )


def test_a_certificate_for_another_name_is_refused(
    org: Conn, app_dsn: str, authority: tuple[trustme.CA, Path]
) -> None:
    ca, ca_file = authority
    options = {"tls_context": tls_server(ca, "other.example")[0]}
    with MailServer(**options) as server:
        event(org)
        work(app_dsn, smtp=smtp(server, tls="starttls", ca_file=ca_file))
        assert server.attempts == 0
    problem = org.execute(
        "select last_error from pgaudit_wf.alert_delivery where attempts > 0"
    ).fetchone()
    assert problem == (
        "mail server: SSLCertVerificationError;"
        " check PGAUDIT_WF_SMTP_HOST and PGAUDIT_WF_SMTP_CA_FILE",
    )


def test_mail_never_goes_without_the_tls_that_was_asked_for(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    event(org)
    work(app_dsn, smtp=smtp(mail, tls="starttls"))
    assert mail.attempts == 0
    work(app_dsn, smtp=smtp(mail, tls="implicit", timeout=2))
    assert mail.attempts == 0


def test_implicit_tls(org: Conn, app_dsn: str, authority: tuple[trustme.CA, Path]) -> None:
    ca, ca_file = authority
    no_rules(org)
    rule(org, "api_key.*", address="a@x.example")
    with MailServer(ssl_context=tls_server(ca)[0]) as server:
        event(org)
        work(app_dsn, smtp=smtp(server, tls="implicit", ca_file=ca_file))
        assert recipients(server) == ["a@x.example"]


# settings


SMTP_ENV = {"PGAUDIT_WF_SMTP_HOST": "mail.example", "PGAUDIT_WF_SMTP_FROM": SENDER}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PGAUDIT_WF_SMTP_HOST": "mail.example"}, "PGAUDIT_WF_SMTP_FROM"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_FROM": "a@b\nBcc: c@d"}, "sender"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_PORT": "many"}, "not a port"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_TLS": "maybe"}, "TLS mode"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_USER": "u"}, "no password"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_USER": "u", "PGAUDIT_WF_SMTP_PASSWORD": "hunter2",
          "PGAUDIT_WF_SMTP_TLS": "none"}, "requires TLS"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_PASSWORD_FILE": "/nowhere/hunter2"}, "cannot be read"),
        ({**SMTP_ENV, "PGAUDIT_WF_SMTP_CA_FILE": "/nowhere/ca.pem"}, "no certificates"),
        ({"PGAUDIT_WF_WEBHOOK_SECRET": "whsec_aHVudGVyMg=="}, "24 to 64"),
        ({"PGAUDIT_WF_WEBHOOK_SECRET": "hunter2" * 6}, "whsec_"),
        ({"PGAUDIT_WF_WEBHOOK_SECRETS_FILE": "/etc/hostname"}, "JSON object"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named_without_their_values(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(AlertSettingsError, match=message) as caught:
        channels_from(environment, TEMPLATES)
    assert "hunter2" not in str(caught.value)


def test_passwords_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    (tmp_path / "hooks").write_text(json.dumps({"https://x.example/": WEBHOOK_SECRET}))
    channels = channels_from(
        {**SMTP_ENV, "PGAUDIT_WF_SMTP_USER": "u",
         "PGAUDIT_WF_SMTP_PASSWORD_FILE": str(tmp_path / "password"),
         "PGAUDIT_WF_WEBHOOK_SECRETS_FILE": str(tmp_path / "hooks")},
        TEMPLATES,
    )  # fmt: skip
    assert set(channels) == {"log", "smtp", "webhook"}
    assert isinstance(channels["smtp"], SmtpChannel)
    assert channels["smtp"]._settings.password == "open sesame"


# webhooks and the log


def webhook(secret: str = WEBHOOK_SECRET, timeout: float = 5.0) -> WebhookChannel:
    found = channels_from({"PGAUDIT_WF_WEBHOOK_SECRET": secret}, TEMPLATES, timeout)["webhook"]
    assert isinstance(found, WebhookChannel)
    return found


def test_a_webhook_is_signed_as_the_standard_says(org: Conn, app_dsn: str, hook: WebServer) -> None:
    no_rules(org)
    rule(org, "api_key.*", channel="webhook", address=hook.url + "?a=b")
    for _ in range(8):
        event(org, label="<script>")
    work(app_dsn, webhook=webhook(f"{WEBHOOK_SECRET} {OTHER_SECRET}"))
    assert len(hook.requests) == 8, "programs get events one by one"
    for secret in (WEBHOOK_SECRET, OTHER_SECRET):
        for request in hook.requests:
            said = standardwebhooks.Webhook(secret).verify(request.body, request.headers)
            assert said["type"] == "api_key.created"
            assert said["data"]["resource"] == {"type": "api_key", "id": "k_1", "name": "<script>"}
            assert said["data"]["actor"]["id"] == "dee"
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", said["timestamp"])
    assert len({request.headers["webhook-id"] for request in hook.requests}) == 8
    assert hook.requests[0].path == "/hook?a=b"
    with pytest.raises(standardwebhooks.webhooks.WebhookVerificationError):
        standardwebhooks.Webhook(WEBHOOK_SECRET).verify(
            hook.requests[0].body + b" ", hook.requests[0].headers
        )


@pytest.mark.parametrize(
    ("status", "headers", "state"),
    [
        (500, {}, "pending"),
        (302, {"Location": "http://127.0.0.1:1/"}, "pending"),
        (410, {}, "dead"),
        (429, {"Retry-After": "7200"}, "pending"),
        (503, {"Retry-After": "Wed, 01 Jan 2200 00:00:00 GMT"}, "pending"),
        (503, {"Retry-After": "soon"}, "pending"),
    ],
)
def test_what_a_receivers_answer_does(
    org: Conn, app_dsn: str, hook: WebServer, status: int, headers: dict[str, str], state: str
) -> None:
    no_rules(org)
    rule(org, "api_key.*", channel="webhook", address=hook.url)
    hook.status, hook.headers = status, headers
    event(org)
    work(app_dsn, webhook=webhook())
    row = org.execute(
        "select state, last_error, extract(epoch from due_at - now())::float"
        " from pgaudit_wf.alert_delivery"
    ).fetchone()
    assert row is not None
    assert row[:2] == (state, f"receiver answered {status}")
    if status == 429:
        assert 7000 < row[2] <= 7200
    elif headers.get("Retry-After", "").startswith("Wed"):
        assert 86000 < row[2] <= 86400, "no longer than a day"
    else:
        assert row[2] < 31
    if state == "pending":
        hook.status, hook.headers = 204, {}
        make_due(org)
        work(app_dsn, webhook=webhook())
        assert states(org) == {"sent": 1}
        assert len({request.headers["webhook-id"] for request in hook.requests}) == 1


def test_a_receiver_that_stalls_or_has_no_secret(
    org: Conn, app_dsn: str, hook: WebServer, tmp_path: Path
) -> None:
    no_rules(org)
    rule(org, "api_key.*", channel="webhook", address=hook.url)
    hook.stalls = True
    event(org)
    began = time.monotonic()
    work(app_dsn, webhook=webhook(timeout=1.0))
    assert time.monotonic() - began < 5
    (tmp_path / "hooks").write_text(json.dumps({"https://x.example/": WEBHOOK_SECRET}))
    other = channels_from({"PGAUDIT_WF_WEBHOOK_SECRETS_FILE": str(tmp_path / "hooks")}, TEMPLATES)
    make_due(org)
    work(app_dsn, webhook=other["webhook"])
    problem = org.execute("select state, last_error from pgaudit_wf.alert_delivery").fetchone()
    assert problem == ("pending", "no signing secret is configured for this URL")
    assert len(hook.requests) == 1


def test_the_log_channel_writes_a_line(
    org: Conn, app_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    no_rules(org)
    rule(org, "api_key.*", channel="log", address="siem")
    event(org, label="a\nb")
    work(app_dsn, log=LogChannel())
    (record,) = [record for record in caplog.records if record.message == "alert"]
    fields: dict[str, Any] = record.__dict__["fields"]
    assert (fields["stream"], fields["type"]) == ("siem", "api_key.created")
    assert fields["data"]["resource"]["name"] == "a\nb"


def test_messages_of_channels_that_are_not_served_wait(
    org: Conn, app_dsn: str, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    event(org)
    work(app_dsn, log=LogChannel())
    assert states(org) == {"pending": 2}
    assert "rules name channels that are not configured here" in caplog.text
    work(app_dsn, smtp=smtp(mail))
    assert states(org) == {"sent": 2}


# rights


def test_a_login_of_its_own_is_enough_and_sees_no_log(
    org: Conn, app_dsn: str, mail: MailServer
) -> None:
    role = f"alerts_{org.info.dbname}"
    org.execute(f"create role {role} login".encode())
    try:
        org.execute("select pgaudit_wf.grant_alerts(%s::regrole)", [role])
        event(org)
        own = psycopg.conninfo.make_conninfo(app_dsn, user=role)
        work(own, smtp=smtp(mail))
        assert len(mail.taken) == 2
        with psycopg.connect(own, autocommit=True) as conn:
            for statement in (
                "select from pgaudit_wf.security_audit_log",
                "select from pgaudit_wf.actor_directory",
                "update pgaudit_wf.alert_delivery set state = 'sent'",
                "insert into pgaudit_wf.alert_rule (action_pattern) values ('*')",
                "select pgaudit_wf.record_event('x')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement.encode())
    finally:
        org.execute(f"drop owned by {role}; drop role {role}".encode())


def test_a_role_without_rights_may_not_run_the_alert_functions(org: Conn) -> None:
    org.execute("create role nobody_alerts")
    try:
        may = org.execute(
            "select p.oid::regprocedure::text from pg_proc p"
            " where pronamespace = 'pgaudit_wf'::regnamespace and proname like '%alert%'"
            " and has_function_privilege('nobody_alerts', oid, 'execute')"
        ).fetchall()
        assert may == []
    finally:
        org.execute("drop role nobody_alerts")


# the command line


@pytest.fixture
def cli(
    app_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("PGAUDIT_WF_DATABASE", app_dsn)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app(["alerts", *arguments])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return run


def test_the_command_line(
    org: Conn,
    mail: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., tuple[int, str, str]],
) -> None:
    for name, value in (
        ("HOST", "127.0.0.1"),
        ("PORT", str(mail.port)),
        ("TLS", "none"),
        ("FROM", SENDER),
    ):
        monkeypatch.setenv(f"PGAUDIT_WF_SMTP_{name}", value)
    assert "pgaudit-wf alerts run" in cli()[1]
    assert cli("list")[1] == "No deliveries yet.\n"
    assert [row["action_pattern"] for row in json.loads(cli("rules", "--json")[1])] == [
        "api_key.created", "api_key.revoked", "org_api_key.created", "org_api_key.revoked",
        "api_key.expiring", "api_key.expired", "api_key.unused", "api_key.new_network",
        "api_key.leaked",
    ]  # fmt: skip
    assert re.search(r"api_key.created +succeeded +all +smtp +owners +yes", cli("rules")[1])

    mail.mode = "refuse"
    event(org)
    code, out, err = cli("run", "--once")
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["message"] for line in lines] == [
        "started",
        "enqueued",
        "not sent",
        "not sent",
        "stopped",
    ]
    assert {line["job"] for line in lines} == {"alerts"}
    dead = json.loads(cli("list", "--state", "dead", "--json")[1])
    assert [(row["recipient"], row["last_error"]) for row in dead] == [
        (OTHER_OWNER, "recipient refused: 550 5.1.1"), (OWNER, "recipient refused: 550 5.1.1")
    ]  # fmt: skip
    assert OWNER not in err
    assert re.search(rf"dead +smtp +{OWNER} +api_key.created", cli("list")[1])

    mail.mode = "take"
    assert cli("requeue", str(dead[0]["id"]))[1] == "Queued again: 1.\n"
    assert json.loads(cli("requeue", "--all-dead", "--json")[1]) == {"requeued": 1}
    assert cli("requeue")[0] == 2
    code, _, err = cli("requeue", str(dead[0]["id"]))
    assert code == 1
    assert "cannot be queued again" in err
    assert cli("run", "--once", "--channel", "smtp")[0] == 0
    assert recipients(mail) == [OWNER, OTHER_OWNER]
    assert cli("list", "--state", "dead")[1] == "No delivery matches.\n"
    assert cli("run", "--once", "--channel", "webhook")[0] == 2


def test_a_sample_is_sent_to_try_the_settings(
    mail: MailServer, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., tuple[int, str, str]]
) -> None:
    assert cli("test", "smtp", "a@x.example")[0] == 2
    for name, value in (
        ("HOST", "127.0.0.1"),
        ("PORT", str(mail.port)),
        ("TLS", "none"),
        ("FROM", SENDER),
    ):
        monkeypatch.setenv(f"PGAUDIT_WF_SMTP_{name}", value)
    assert cli("test", "smtp", "a@x.example")[:2] == (0, "Sent to a@x.example.\n")
    assert mail.taken[0].subject == "Security alert: this is a test, nothing happened (kh_1a2b)"
    assert "investigated now" not in mail.taken[0].text
    mail.mode = "busy"
    code, _, err = cli("test", "smtp", "a@x.example")
    assert (code, "451 4.3.2" in err) == (1, True)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PGAUDIT_WF_SMTP_PORT", "1")
        _, _, err = cli("test", "smtp", "a@x.example")
        assert "check PGAUDIT_WF_SMTP_HOST, PGAUDIT_WF_SMTP_PORT" in err
        elsewhere.setenv("PGAUDIT_WF_SMTP_PORT", str(mail.port))
        elsewhere.setenv("PGAUDIT_WF_SMTP_TLS", "starttls")
        assert "check PGAUDIT_WF_SMTP_TLS" in cli("test", "smtp", "a@x.example")[2]
    code, _, err = cli("test", "smtp", "no address")
    assert (code, "not a valid e-mail address" in err) == (1, True)
