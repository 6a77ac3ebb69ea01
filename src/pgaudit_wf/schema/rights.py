"""What an installation lacks because the role that made it lacked rights.

Roles and event triggers are made by the migration where its role may. What it could not make is
made by a later run of a role that may, and named until then.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg import sql

from pgaudit_wf.schema.ledger import SCHEMA, SEARCH_PATH, Backend

__all__ = ["complete"]

_EVENT_TRIGGERS = Path("sql", "core", "99_install", "20_event_triggers.sql")
_ROLES = {
    "pgaudit_wf_app": "no login can be given what applications need, by granting it",
    "pgaudit_wf_reader": "no login but the owner's and superusers can read the trail",
}
_GIVE_AWAY = "select pgaudit_wf._give_to_owner()"
_FOLLOWED = "select exists (select from pg_event_trigger where evtname ~ '^pgaudit_wf_')"
_SITUATION = """
select current_user, me.rolsuper, me.rolsuper or me.rolcreaterole, pg_get_userbyid(n.nspowner),
    -- Who can replace the functions of the event triggers, which run as whoever alters a table.
    (select string_agg(quote_ident(r.rolname), ', ' order by r.rolname) from pg_roles as r
     where r.rolcanlogin and not r.rolsuper and r.rolname <> current_user
        and pg_has_role(r.oid, n.nspowner, 'usage'))
from pg_namespace as n, pg_roles as me
where n.nspname = 'pgaudit_wf' and me.rolname = current_user
    and to_regprocedure('pgaudit_wf._can_follow_ddl()') is not null
"""
_NOTE_EVENT_TRIGGERS = "select pgaudit_wf._note_installed('event trigger ')"


def complete(backend: Backend, root: Path) -> tuple[list[str], list[str]]:
    """Make what is missing, where this role may; return what was made, and what is still missing.

    Each thing that is missing is a sentence that says what follows from that, and what to do.
    """
    conn: psycopg.Connection[tuple[object, ...]] = backend.connection
    found = conn.execute(_SITUATION).fetchone()
    if found is None:
        return [], []
    user, superuser, may_create_roles, owner, others = found
    made: list[str] = []
    missing: list[str] = []
    for role, consequence in _ROLES.items():
        if conn.execute("select to_regrole(%s)", [role]).fetchone() != (None,):
            continue
        if may_create_roles:
            conn.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))
            made.append(f"role {role}")
        else:
            missing.append(
                f"there is no role {role}, and {user} may not create it, so {consequence}: have an"
                f' administrator run "create role {role} nologin", then run this again'
            )
    if made:
        conn.execute("select pgaudit_wf.grant_roles()")
    if owner != "pgaudit_wf_owner":
        missing.append(
            f"schema {SCHEMA} belongs to {owner} and not to a role that can do nothing else, so a"
            f" bug in one of its functions could affect all that {owner} may do: a superuser can"
            f' move it by "{_GIVE_AWAY}", and has to migrate from then on'
        )
    if conn.execute(_FOLLOWED).fetchone() == (True,):
        return made, missing
    if superuser and others:
        missing.append(
            f"there are no event triggers, and none were made, as {others} could replace their"
            f" functions and so act as any superuser who alters a table: {_without_triggers()}:"
            f' run "{_GIVE_AWAY}" or revoke {owner} from such logins, then'
            " run this again"
        )
        return made, missing
    # Not only superusers may, on some managed services.
    conn.execute((root / _EVENT_TRIGGERS).read_text(encoding="utf-8").encode())
    backend.execute(SEARCH_PATH)
    if conn.execute(_FOLLOWED).fetchone() == (True,):
        conn.execute(_NOTE_EVENT_TRIGGERS)
        made.append("event triggers")
    else:
        missing.append(
            f"{user} may not create event triggers: {_without_triggers()}: have a superuser run"
            " this again"
        )
    return made, missing


def _without_triggers() -> str:
    return (
        "tables are recorded by triggers of the generic form, which are slower; DDL that computes"
        " new values is not noted in the trail; and nothing keeps the owner from dropping a"
        " partition of the log"
    )
