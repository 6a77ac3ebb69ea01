"""Who really acted, in whose name, and by which program, wherever an event is shown."""

from __future__ import annotations

import psycopg
import pytest

import pgaudit_wf
from pgaudit_wf.cli.printing.trail import who
from pgaudit_wf.errors import InvalidContextError
from pgaudit_wf.export.trail import CSV_COLUMNS, to_ocsf
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.reads import audit_trail


@pytest.fixture
def support(app_conn: psycopg.Connection) -> TrailEntry:
    """What a support engineer did for a customer, as the organization's owner reads it."""
    app_conn.execute("insert into organization (id, name) values ('o_1', 'Acme')")
    app_conn.execute(
        "insert into app_user (id, email, name) values"
        " ('u_ann', 'ann@acme.test', 'Ann'), ('u_sue', 'sue@vendor.test', 'Sue')"
    )
    app_conn.execute("insert into member (org_id, user_id, role) values ('o_1', 'u_ann', 'owner')")
    with pgaudit_wf.request_context(
        app_conn, actor_id="u_sue", actor_type="user", on_behalf_of="u_ann",
        client="console 4.2 run 7", org_id="o_1",
    ):  # fmt: skip
        app_conn.execute("update organization set name = 'Acme Ltd'")
    with pgaudit_wf.request_context(app_conn, actor_id="u_ann", org_id="o_1"):
        app_conn.execute("set local role pgaudit_wf_reader")
        page = audit_trail(app_conn, action="org.updated")
    return page.entries[0]


def test_readers_name_both(support: TrailEntry) -> None:
    assert (support.actor_name, support.actor_type) == ("Sue", "user")
    assert (support.on_behalf_of, support.on_behalf_of_name) == ("u_ann", "Ann")
    assert support.client == "console 4.2 run 7"
    assert support.acted_as() == "Sue for Ann"
    assert who(support).plain == "Sue for Ann"


def test_exports_name_both(support: TrailEntry) -> None:
    assert {"actor_type", "on_behalf_of", "on_behalf_of_name", "client"} <= set(CSV_COLUMNS)
    event = to_ocsf(support)
    assert str(event["message"]).endswith("by Sue for Ann")
    assert event["actor"]["app_name"] == "console 4.2 run 7"
    unmapped = event["unmapped"]
    assert isinstance(unmapped, dict)
    assert unmapped["on_behalf_of"] == {"uid": "u_ann", "name": "Ann"}
    assert unmapped["actor_type"] == "user"


def test_an_unknown_type_of_actor_is_refused() -> None:
    with pytest.raises(InvalidContextError, match="not one of user, service, agent, system"):
        pgaudit_wf.RequestContext(actor_type="robot")
