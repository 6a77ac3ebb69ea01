"""`maintain`: partitions, archives, retention."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from pgaudit_wf.cli.base import FAILED, INTERRUPTED, add, choose_database, connect
from pgaudit_wf.cli.commands.integrity import seal_hook
from pgaudit_wf.cli.options import (
    DatabaseArgument,
    DatabaseOption,
    HealthHostOption,
    HealthPortOption,
    JsonOption,
    watch_option,
)
from pgaudit_wf.cli.printing.output import console, print_json, printable, progress_bar

if TYPE_CHECKING:
    from pgaudit_wf.jobs.maintain import Step


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, maintain)


def maintain(
    argument: DatabaseArgument = "",
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            envvar="PGAUDIT_WF_ARCHIVE",
            metavar="PATH",
            show_default=False,
            help="Directory or fsspec URL (s3://…) to archive months to before they are pruned.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")
    ] = False,
    months_ahead: Annotated[
        int, typer.Option(min=1, max=120, help="How many future months get partitions.")
    ] = 3,
    watch: Annotated[float | None, watch_option(1)] = None,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "127.0.0.1",
    seal_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Also seal, before anything is archived, with this key of pgaudit-wf keygen.",
        ),
    ] = None,
    seal_state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="With --seal-key, as --state of seal."
        ),
    ] = None,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create future partitions, archive and prune events past their retention, prune versions.

    Run it daily: from cron, a systemd timer or a CronJob; or keep it running with --watch. It can
    be interrupted at any point and run again, and concurrent runs do no harm: the second one exits
    with 0 at once. It needs a session of its own, not one shared by a pooler. Exit code 1: a step
    failed, and the next run tries it again. An archive that is missing, was changed or belongs to
    another database ends the run, with 1 too, and nothing of that month is removed.

        pgaudit-wf maintain --dry-run
        pgaudit-wf maintain --archive /srv/audit-archive
        pgaudit-wf maintain --archive s3://bucket/audit --watch 3600 --health-port 9188
    """
    from pgaudit_wf.jobs.maintain import Maintenance, plan
    from pgaudit_wf.jobs.service import Service, json_logs

    conninfo = choose_database(argument, database)
    hooks = [seal_hook(seal_key, seal_state)] if seal_key else []
    if dry_run:
        with connect(conninfo) as conn:
            steps = plan(conn, archive_url=archive, months_ahead=months_ahead, hooks=hooks)
        _print(steps, as_json, to_do=True)
        return
    service = Service("maintain")
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(as_json or watch is not None))
        job = Maintenance(
            service,
            partial(connect, conninfo),
            archive_url=archive,
            months_ahead=months_ahead,
            hooks=hooks,
            progress=_shown(bar),
        )
        stack.enter_context(json_logs() if watch else nullcontext())
        service.run(
            job.job,
            once=watch is None,
            interval=watch or 1.0,
            health_port=health_port if watch else None,
            health_host=health_host,
        )
    if watch is not None:
        return
    if job.busy:
        console(stderr=True).print("Another maintenance run is in progress; nothing was done.")
        return
    _print(job.steps, as_json, to_do=False)
    if service.stopping:
        raise typer.Exit(INTERRUPTED)
    if any(step.problem for step in job.steps):
        raise typer.Exit(FAILED)


def _shown(bar: Progress) -> Callable[[Step, int, int], None]:
    tasks: dict[tuple[str, str], Any] = {}

    def show(step: Step, done: int, total: int) -> None:
        key = (step.kind, step.subject)
        if key not in tasks:
            tasks[key] = bar.add_task(printable(f"{step.kind} {step.subject}"), total=total)
        bar.update(tasks[key], completed=done, total=total)

    return show


def _print(steps: tuple[Step, ...] | list[Step], as_json: bool, *, to_do: bool) -> None:
    if as_json:
        print_json(list(steps))
        return
    out = console()
    if not steps:
        out.print("Nothing is due.")
    for step in steps:
        mark = ("would " if to_do else "") if step.problem is None else "cannot "
        problem = f": {step.problem}" if step.problem else ""
        done = "" if to_do or step.problem else "done: "
        out.print(printable(f"{done}{mark}{step}{problem}"), soft_wrap=True)
