"""`bundle`: an organization's events in a period, for its auditor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pgaudit_wf.cli.base import USAGE, Failure, connect
from pgaudit_wf.cli.keys import read_text
from pgaudit_wf.cli.options import (
    ArchivesOption,
    AsOption,
    DatabaseOption,
    ReasonOption,
    time_option,
)
from pgaudit_wf.cli.printing.output import console, print_json, printable, progress_bar
from pgaudit_wf.exact_json import dumps

if TYPE_CHECKING:
    from pgaudit_wf.integrity.note import VerifierKey
    from pgaudit_wf.integrity.timestamp import Authority


def bundle(
    org: Annotated[str, typer.Option("--org", metavar="ID", help="The organization.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The zip file to write.")
    ],
    since: Annotated[
        datetime | None,
        time_option(
            "From this time on; default: from --since-checkpoint on, or from the beginning."
        ),
    ] = None,
    until: Annotated[datetime | None, time_option("Before this time; default: now.")] = None,
    since_checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The checkpoint that the auditor kept from last time.",
        ),
    ] = None,
    archive: ArchivesOption = None,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait for the sealer, at most."),
    ] = 60,
    as_actor: AsOption = None,
    reason: ReasonOption = None,
    database: DatabaseOption = "",
) -> None:
    """Write a zip file by which an auditor can tell that nothing of an organization was left out.

    It has the events as JSON and CSV, their proofs, the checkpoint, what was recorded and how, and
    a program that checks all of it. It shows nothing of other organizations. That it is made is an
    event too; once that is sealed, it shows where the period ends: leave the sealer running.

        pgaudit-wf bundle --org o_acme --since 2026-01-01 --until 2026-04-01 -o period.zip
        pgaudit-wf bundle --org o_acme --since-checkpoint kept -o period.zip
        pgaudit-wf check period.zip --key seal.pub --checkpoint kept
    """
    from pgaudit_wf import request_context
    from pgaudit_wf.integrity.note import Note
    from pgaudit_wf.trail.statement import one

    with _checking():
        from pgaudit_wf.integrity.bundle import (
            await_seal,
            has_events,
            mark_configuration,
            write_bundle,
        )

    end = until or datetime.now(UTC)
    old = read_text(since_checkpoint, "checkpoint") if since_checkpoint else None
    if old:
        Note.parse(old)
    filters = {name: at.isoformat() for name, at in (("since", since), ("until", end)) if at}

    def record(events: int | None, outcome: str) -> int:
        statement = "select pgaudit_wf.record_export('bundle', %s, %s, %s)"
        with request_context(conn, actor_id=as_actor, org_id=org, reason=reason):
            (event_id,) = one(conn, statement, [dumps(filters), events, outcome])
        return int(event_id)

    with connect(database) as conn:
        if not has_events(conn, org) and not archive:
            # A typo must not pass for an organization in which nothing happened.
            raise Failure(f"there is no event of organization {org!r}", "check its id", USAGE)
        marks = [record(None, "succeeded"), mark_configuration(conn)]
        if not await_seal(conn, marks, wait):
            console(stderr=True).print(
                f"Not sealed within {wait:g} s: unless there is a later event, the bundle cannot"
                " show where the period ends. Run pgaudit-wf seal, and make it again."
            )
        written: int | None = None
        try:
            with _destination(output) as file, progress_bar(False) as bar:
                task = bar.add_task("Writing", total=None)
                done = write_bundle(
                    conn, file, org, since=since, until=end, old=old, archives=archive,
                    progress=lambda count: bar.update(task, completed=count),
                )  # fmt: skip
            written = done.leaves
        finally:
            if not conn.closed:
                record(written or 0, "failed" if written is None else "succeeded")
    console(stderr=True).print(
        f"{done.leaves:,} events and versions in {output}"
        + (f", numbers {done.first} to {done.last}" if done.leaves else "")
    )


@contextmanager
def _destination(output: Path) -> Iterator[IO[bytes]]:
    # It gets its name only when it is complete.
    temporary = output.with_name(f".{output.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(output)
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _checking() -> Iterator[None]:
    from pgaudit_wf.errors import MissingExtraError

    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            "signatures need one more package: pip install 'pgaudit-wf[integrity]'"
        ) from error


def check_zip(
    path: str, keys: list[VerifierKey], kept: str, trusted: list[Authority], as_json: bool
) -> None:
    """Check a bundle, print what it shows, and end the command with the exit code that says so.

    Args:
        path: The bundle.
        keys: The keys of the log and of witnesses.
        kept: The checkpoint kept from last time, or "".
        trusted: Time-stamp authorities; with any, the time-stamps in the bundle are checked too.
        as_json: Whether to print JSON.
    """
    from pgaudit_wf.errors import NoteError, ProofError
    from pgaudit_wf.integrity.vouching import bundle_vouchers

    with _checking():
        from pgaudit_wf.integrity.check import check_bundle, read_keys

    report = check_bundle(path, [key for text in keys for key in read_keys(str(text))], kept)
    if trusted and report["exit_code"] != 1:
        try:
            report["vouched"] = [
                {"by": voucher.by, "at": voucher.at.isoformat(), "size": voucher.size}
                for voucher in bundle_vouchers(path, keys, trusted)
            ]
        except (ProofError, NoteError, OSError) as error:
            report["problems"].append(str(error))
            report["exit_code"] = 1
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    raise typer.Exit(report["exit_code"])


def _overlaps(gap: dict[str, str | None], period: dict[str, Any]) -> bool:
    """Return whether something was off within the period of a bundle."""
    at = {
        name: datetime.fromisoformat(time) for name, time in gap.items() if name != "table" and time
    }
    is_over = (
        "until" in at and period["since"] and at["until"] <= datetime.fromisoformat(period["since"])
    )
    return not is_over and at["from"] < datetime.fromisoformat(period["until"])


def _print_report(report: dict[str, Any]) -> None:
    out = console()
    for problem in report["problems"]:
        out.print(printable(f"WRONG: {problem}"), style="red")
    if "numbers" in report:
        numbers = " to ".join(map(str, report["numbers"])) or "none"
        since = f"from {report['since']} " if report["since"] else ""
        out.print(printable(
            f"Organization {report['org_id']}, {since}until {report['until']}: numbers {numbers},"
            f" under the checkpoint of {report['size']} leaves of {report['origin']}."
        ))  # fmt: skip
        if report["old_size"]:
            out.print(f"The log continues the checkpoint of {report['old_size']} leaves.")
        for witness in report["witnesses"]:
            out.print(printable(f"Seen by the witness {witness}."))
        for voucher in report.get("vouched", []):
            out.print(printable(
                f"The {voucher['by']} saw {voucher['size']} leaves at {voucher['at']}."
            ))  # fmt: skip
        for what, found in report["gone"].items():
            listed = ", ".join(map(str, found[:10])) + (", …" if len(found) > 10 else "")
            out.print(f"Number {listed}: {what}.")
        gaps = [gap for gap in report["off"] if _overlaps(gap, report)]
        for gap in gaps:
            until = f"until {gap['until']}" if gap["until"] else "and is not yet again"
            out.print(printable(f"{gap['table']} was not recorded from {gap['from']} {until}."))
        if not gaps:
            is_open = "the configuration until the end" in report["not_shown"]
            out.print(f"Recording was on throughout{', as far as is shown' if is_open else ''}.")
        for what in report["not_shown"]:
            out.print(f"NOT SHOWN: {what}.", style="yellow")
    if report["problems"]:
        out.print("This is NOT a complete and unaltered trail.", style="bold red")
    elif report["not_shown"]:
        out.print("Nothing is wrong with what is there, but not everything is shown.")
    elif report["numbers"]:
        out.print(f"Complete from number {numbers}, and unaltered.", style="green")
    else:
        out.print("Complete and unaltered: nothing happened in the period.", style="green")
