"""The demo, as a newcomer runs it: from a shell, as root or not, and again."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).with_name("pgaudit-wf")

EXPECTED = {
    "account.created": 3,
    "org.created": 2,
    "member.joined": 3,
    "member.invited": 1,
    "member.role_changed": 1,
    "session.created": 4,
    "session.revoked": 1,
    "password.reset": 1,
    "email.changed": 1,
    "totp.enrolled": 1,
    "backup_codes.regenerated": 1,
    "api_key.created": 1,
    "api_key.revoked": 1,
    "org_api_key.created": 2,
    "org_api_key.revoked": 1,
    "workflow.created": 2,
    "workflow.updated": 5,
    "workflow.restored": 1,
    "workflow.enabled": 1,
    "workflow.listed": 1,
    "workflow.listing_updated": 1,
    "workflow.deleted": 1,
    "subscription.created": 2,
    "subscription.checkout_started": 1,
    "subscription.plan_changed": 1,
    "org_wallet.created": 1,
    "agentic_wallet.created": 1,
    "agentic_wallet.hmac_rotated": 1,
    "request.failed": 1,
}


@pytest.fixture(scope="module")
def trail() -> list[dict[str, Any]]:
    done = subprocess.run([PROGRAM, "demo", "--json"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_the_day_has_all_that_was_promised(trail: list[dict[str, Any]]) -> None:
    assert Counter(entry["action"] for entry in trail) == EXPECTED
    assert [entry["id"] for entry in trail] == sorted(entry["id"] for entry in trail)
    actors = {entry["actor_id"] for entry in trail}
    assert actors == {"u_ana", "u_bo", "u_chidi", "integration:ci", "webhook:stripe", None}
    assert {"o_acme", "o_globex"} <= {entry["org_id"] for entry in trail}


def test_who_did_what_from_where(trail: list[dict[str, Any]]) -> None:
    by_action = {entry["action"]: entry for entry in trail}
    plan = by_action["subscription.plan_changed"]
    assert (plan["actor_name"], plan["auth_method"]) == ("Billing webhook", "webhook")
    checkout = by_action["subscription.checkout_started"]
    assert (checkout["captured"], plan["captured"]) == (False, True)
    (by_key,) = [entry for entry in trail if entry["actor_id"] == "integration:ci"]
    assert (by_key["action"], by_key["api_key_id"]) == ("workflow.updated", "k_ci")
    (denied,) = [entry for entry in trail if entry["outcome"] == "denied"]
    assert denied["action"] == "session.created"
    email = by_action["email.changed"]
    assert email["diff"] == [
        {
            "op": "replace",
            "path": "/email",
            "old": "ana@acme.example",
            "value": "ana.ferreira@acme.example",
        }
    ]
    assert all(entry["correlation_id"] for entry in trail[:-1])


def test_the_administrator_is_seen_without_a_context(trail: list[dict[str, Any]]) -> None:
    repair = trail[-1]
    assert (repair["actor_id"], repair["ip"], repair["correlation_id"]) == (None, None, None)
    assert (repair["db_user"], repair["application_name"]) == ("postgres", "psql")
    assert repair["diff"][0]["path"] == "/description"
    assert {entry["db_user"] for entry in trail[:-1]} == {"workflow_app"}


def test_the_trail_holds_neither_failed_changes_nor_secrets(trail: list[dict[str, Any]]) -> None:
    text = json.dumps(trail)
    assert "Free money" not in text
    assert "demo-secret" not in text
    assert text.count("[redacted]") > 10


def test_the_demo_runs_in_seconds_and_runs_again() -> None:
    for _ in range(2):
        started = time.monotonic()
        done = subprocess.run(
            [PROGRAM, "demo"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert time.monotonic() - started < 20
        assert done.stderr == ""
        assert re.search(
            r"Bo Lindqvist +\d+, \d+ +org_api_key.revoked +api_key kh_9f2a…", done.stdout
        )
        assert re.search(
            r"postgres in psql +\d+, \d+ +workflow.updated +workflow Invoice intake", done.stdout
        )
        assert re.search(r"kh_9f2a… +k_ci +o_acme +revoked", done.stdout)
        assert re.search(r'visibility +"private" +"org"', done.stdout)
        assert re.search(r"Ana Ferreira  session  restore\n +version \d+ put back", done.stdout)
        assert "ledger-test.acme.example/entries → https://ledger.acme.example" in done.stdout
        assert re.search(r"version \d+, started with org_api_key kh_9f2a…", done.stdout)
        assert "only owners and admins of an organization may read its trail" in done.stdout
        assert "Next: " in done.stdout


def test_keep_leaves_the_server_until_it_is_interrupted() -> None:
    with subprocess.Popen(
        [PROGRAM, "demo", "--keep", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        lines = [running.stderr.readline() for _ in range(5)]
        offered = re.search(r"pgaudit-wf doctor (\S+)", "".join(lines))
        assert offered, lines
        dsn = offered[1].strip("'")
        with psycopg.connect(dsn) as conn:
            row = conn.execute(
                "select count(*) from pgaudit_wf.security_audit_log where action !~ '^audit[.]'"
            ).fetchone()
            assert row == (sum(EXPECTED.values()),)
            directory = Path(conn.info.host)
        assert directory.exists()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
        assert (running.returncode, err) == (0, "")
        assert len(json.loads(out)) == sum(EXPECTED.values())
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_runs_it_too() -> None:
    user = pwd.getpwnam("nobody")

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/usr/bin/env", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name != "HOME"},
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        )

    if run(sys.executable, "-c", "import pgaudit_wf").returncode != 0:
        pytest.skip("this Python is out of other users' reach")
    done = run(PROGRAM, "demo", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert Counter(entry["action"] for entry in json.loads(done.stdout)) == EXPECTED
