"""Functions that run with the rights of the schema's owner: why, and who may call them."""

from __future__ import annotations

from support.server import Conn

OWNER, APP, READER = "nobody else", "pgaudit_wf_app", "pgaudit_wf_reader"

DDL = "whoever runs DDL has no right in our schema, and what the DDL concerns must be followed"
MAKES = "what it creates has to belong to the schema's owner, whichever administrator calls it"
GUARDED = (
    "the rows are behind append-only guards that only the owner passes, and which look for its role"
)
QUEUE = (
    "can be granted to a job that may read neither the log nor other tables, which hold addresses"
)
CALLED = "called by functions that run with a user's rights, who may not write this table"
ONE_ORG = "checks that the caller may read the organization, and reads tables that hold all of them"

# Name: who may call it besides the schema's owner, and the reason.
DEFINERS = {
    "_before_ddl": (OWNER, DDL),
    "_after_ddl": (OWNER, DDL),
    "_after_other_ddl": (OWNER, DDL),
    "_after_drop": (OWNER, DDL),
    "_note_rewrite": (OWNER, DDL),
    "_refuse_detach": (OWNER, DDL),
    "_refuse_drop": (OWNER, DDL),
    "recompile": (OWNER, DDL),
    "_write_functions": (OWNER, DDL),
    "_replace_function": (OWNER, MAKES),
    "_try_log_partitions": (OWNER, MAKES),
    "add_log_partition": (OWNER, MAKES),
    "ensure_log_partitions": (OWNER, MAKES),
    "_begin_erasure": (OWNER, GUARDED),
    "pseudonymise": (OWNER, GUARDED),
    "prune": (OWNER, GUARDED),
    "prune_history": (OWNER, GUARDED),
    "label_version": (APP, ONE_ORG),
    "publish_version": (APP, ONE_ORG),
    "_prune_alerts": (OWNER, GUARDED),
    "_confirm_archive": (OWNER, GUARDED),
    "_replace_archive": (OWNER, GUARDED),
    "record_archive": (OWNER, GUARDED),
    "_renumber_events": (OWNER, GUARDED),
    "_restart_generation": (OWNER, GUARDED),
    "claim_alert": (OWNER, QUEUE),
    "enqueue_alerts": (OWNER, QUEUE),
    "settle_alert": (OWNER, QUEUE),
    "requeue_alert": (OWNER, QUEUE),
    "alert_lag": (OWNER, QUEUE),
    "_claim_stream": (OWNER, QUEUE),
    "_settle_stream": (OWNER, QUEUE),
    "_stream_lag": (OWNER, QUEUE),
    "_follow_api_keys": (OWNER, QUEUE),
    "_check_api_keys": (OWNER, QUEUE),
    "_report_leaked_key": (OWNER, QUEUE),
    "_describe_api_key": (READER, ONE_ORG),
    "_count_failure": (OWNER, CALLED),
    "_note_generation": (OWNER, CALLED),
    "_take_turn": (OWNER, CALLED),
    "_record_org_limit": (OWNER, CALLED),
    "_write_org_limit": (OWNER, CALLED),
    "_record_configuration": (OWNER, CALLED),
    "_note_altered": (OWNER, DDL),
    "_note_recording": (OWNER, DDL),
    "_note_arrival": (OWNER, "writes what the owner of a subscription may not"),
    "_is_moved": (OWNER, "reads of the cluster what a trigger's caller may not"),
    "_current_credential": (
        OWNER,
        "looks the session's key up in tables that its user may not read",
    ),
    "_find_workflow": (APP, "names the table of a workflow; attachments are not the application's"),
    "_newest_version": (APP, "tells a number of the history, which the application may not read"),
    "_org_version_snapshot": (APP, ONE_ORG),
    "_workflow_source": (APP, ONE_ORG),
    "_deleted_at": (READER, ONE_ORG),
    "record_attempt": (APP, "appends to the log, which nobody else may write"),
    "record_event": (APP, "appends to the log, which nobody else may write"),
    "_org_pseudonyms": (READER, ONE_ORG),
    "_readable_org": (READER, ONE_ORG),
    "_readable_history_org": (READER, ONE_ORG),
    "_record_org_export": (READER, ONE_ORG),
    "describe_actors": (READER, ONE_ORG),
    "_has_event": (READER, "tells whether there is an event whose ids and time the caller knows"),
    "log_generations": (READER, "tells the ranges of ids, and nothing of what is in them"),
}


def test_every_security_definer_has_its_reason_and_its_callers(app_conn: Conn) -> None:
    found = app_conn.execute(
        "select p.proname, coalesce(("
        "   select string_agg(distinct case acl.grantee when 0 then 'public'"
        "       else acl.grantee::regrole::text end, ', ')"
        "   from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as acl"
        "   where acl.grantee <> p.proowner), %s)"
        " from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace and p.prosecdef"
        # Those that attach() writes are the next test's.
        " and p.proname not in (select split_part(split_part(object, '(', 1), '.', 2)"
        "   from pgaudit_wf.blueprint where is_generated)",
        [OWNER],
    ).fetchall()
    assert sorted(found) == sorted((name, callers) for name, (callers, _) in DEFINERS.items())


def test_what_attach_writes_can_be_called_by_no_one(app_conn: Conn) -> None:
    app_conn.execute("create table part (id int primary key) partition by range (id)")
    app_conn.execute("create role part_owner")
    app_conn.execute("alter table part owner to part_owner")
    app_conn.execute(
        "select pgaudit_wf.attach('part'), pgaudit_wf.set_org_limit(null, 'member', 9)"
    )
    written = app_conn.execute(
        "select p.proname, p.prorettype::regtype::text, p.prosecdef, p.proconfig,"
        " array(select acl.grantee::regrole::text from aclexplode(p.proacl) as acl"
        "   where acl.grantee <> p.proowner)"
        " from pgaudit_wf.blueprint as b"
        " join pg_proc as p on p.oid = to_regprocedure(substr(b.object, length('function ') + 1))"
        " where b.is_generated"
    ).fetchall()
    assert len(written) > 10
    for name, returns, definer, settings, callers in written:
        assert (returns, definer) == ("trigger", True)
        assert "search_path=pg_catalog, pg_temp" in settings
        # A trigger function cannot be called, only put on a table: by who creates partitions.
        assert callers == (["part_owner"] if name == "capture_part" else [])


def test_no_security_definer_belongs_to_a_superuser(app_conn: Conn) -> None:
    assert not app_conn.execute(
        "select p.oid::regprocedure from pg_proc as p join pg_roles as r on r.oid = p.proowner"
        " where p.pronamespace = 'pgaudit_wf'::regnamespace and p.prosecdef and r.rolsuper"
    ).fetchall()
    assert app_conn.execute(
        "select distinct p.proowner::regrole::text from pg_proc as p"
        " where p.pronamespace = 'pgaudit_wf'::regnamespace"
    ).fetchall() == [("pgaudit_wf_owner",)]
