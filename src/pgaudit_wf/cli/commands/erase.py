"""`erase`: remove an actor's personal data from log, history and archives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgaudit_wf.cli.base import USAGE, Connection, Failure, add, confirm, connect
from pgaudit_wf.cli.options import DatabaseOption, JsonOption
from pgaudit_wf.cli.printing.output import console, print_json

if TYPE_CHECKING:
    from pgaudit_wf.archive.erase import PersonalValue
    from pgaudit_wf.archive.files import Archive


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, erase)


def erase(
    actor: Annotated[str, typer.Argument(metavar="ACTOR", help="Id as in app.actor_id.")],
    value: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            show_default=False,
            help="Another name or e-mail of the actor, besides the recorded ones; repeatable.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    skip_archives: Annotated[
        bool,
        typer.Option(
            "--skip-archives",
            help="Do not rewrite archives; the actor is masked when they are read.",
        ),
    ] = False,
    as_actor: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="ACTOR", show_default=False, help="The actor who performs the erasure."
        ),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", show_default=False, help="The reason, such as the request's number."
        ),
    ] = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Permanently replace an actor's name, e-mail, address and user agent by a pseudonym.

    This covers the log, the history of workflows, and the archives, whose files are rewritten. The
    actor's id and actions remain, with their times. It cannot be undone. Delete the account first,
    as that is recorded too. Run it again for later events, or if it was interrupted.

        pgaudit-wf erase u_42 --as u_dpo --reason 'request 2026-117'
        pgaudit-wf erase u_42 --value 'Ada King' --yes
    """
    from pgaudit_wf import request_context
    from pgaudit_wf.archive.erase import erase_from_archive
    from pgaudit_wf.errors import translated
    from pgaudit_wf.trail.statement import one

    if not yes:
        confirm(
            f"Permanently erase the personal data of {actor}?",
            Failure("this cannot be undone; confirm it with --yes when there is no terminal",
                    code=USAGE),
        )  # fmt: skip
    with connect(database) as conn:
        values, archives, pseudonym = _prepare(conn, actor, value or [], skip_archives)
        rewritten = 0
        for number, archive in archives:
            rewritten += erase_from_archive(conn, number, archive, actor, pseudonym, values)
        with translated(), request_context(conn, actor_id=as_actor, reason=reason):
            (changed,) = one(
                conn,
                "select to_jsonb(p) from pgaudit_wf.pseudonymise(%s, %s) as p",
                [actor, [known.value for known in values if known.kind in ("name", "email")]],
            )
    result = {"actor_id": actor, **changed, "archived_events": rewritten}
    if as_json:
        print_json(result)
        return
    console().print(
        f"{actor} is now {changed['pseudonym']}: {changed['events']:,} events,"
        f" {changed['versions']:,} versions and {rewritten:,} archived events changed."
    )
    if changed["archives"]:
        console(stderr=True).print(
            f"{changed['archives']} archives were not rewritten;"
            " they are masked when they are read."
        )


def _prepare(
    conn: Connection, actor: str, more: list[str], skip_archives: bool
) -> tuple[set[PersonalValue], list[tuple[int, Archive]], str]:
    """Collect the values that identify the actor before they are erased."""
    from pgaudit_wf.archive.erase import PersonalValue, archives_with, find_archived_values
    from pgaudit_wf.errors import translated
    from pgaudit_wf.trail.statement import one

    with translated():
        values = {
            PersonalValue(kind, found)
            for kind, found in conn.execute(
                "select * from pgaudit_wf._actor_values(%s)", [actor]
            ).fetchall()
        }
        for text in filter(None, more):
            values.add(PersonalValue("email" if "@" in text else "name", text))
        before = conn.execute(
            "select pseudonym from pgaudit_wf.pseudonyms(array[%s])", [actor]
        ).fetchone()
        archives = [] if skip_archives else archives_with(conn, before[0] if before else "")
        archived, found = find_archived_values(conn, [archive for _, archive in archives], actor)
        (pseudonym,) = one(conn, "select pgaudit_wf._begin_erasure(%s, %s)", [actor, archived > 0])
    return {known for known in values | found if known.value != pseudonym}, archives, pseudonym
