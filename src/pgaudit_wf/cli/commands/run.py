"""`run`: all jobs in one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgaudit_wf.cli.base import (
    FAILED,
    USAGE,
    Connection,
    Failure,
    add,
    check_conninfo,
    choose_database,
    opener,
)
from pgaudit_wf.cli.options import (
    DatabaseArgument,
    DatabaseOption,
    HealthHostOption,
    HealthPortOption,
)
from pgaudit_wf.exact_json import loads

if TYPE_CHECKING:
    from pgaudit_wf.jobs.group import Member
    from pgaudit_wf.jobs.settings import RunSettings

# Notices within a minute and a half that the server's machine is gone.
_KEEPALIVES = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "90000",
}


class Job(StrEnum):
    """The jobs, as choices of an option."""

    ALERTS = "alerts"
    SEAL = "seal"
    MAINTAIN = "maintain"
    KEYS = "keys"
    STREAM = "stream"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, run)


def run(
    argument: DatabaseArgument = "",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="PGAUDIT_WF_CONFIG",
            metavar="FILE",
            show_default=False,
            help="Settings in TOML; environment variables go before it.",
        ),
    ] = None,
    job: Annotated[
        list[Job] | None,
        typer.Option("--job", show_default=False, help="Only this job; repeat for several."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Do what is due, then exit; for cron.")
    ] = False,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "",
    database: DatabaseOption = "",
) -> None:
    """Run jobs in one process: alerts, seal, maintain and keys, and stream where it is asked for.

    Logs JSON to standard error.

    A job that fails does not stop the others: it is tried again, and /readyz names it. Any number
    of these processes may run: alerts and keys share the work, and one of them leads the others in
    sealing and in maintenance. SIGTERM and Ctrl-C end all jobs after their current step. Exit code
    1: with --once, a job failed.

        pgaudit-wf run --config /etc/pgaudit-wf/run.toml
        pgaudit-wf run --job alerts --job maintain -d service=shop --health-port 9187

    Settings, rights and the ways to start it: docs/how-to/run-the-jobs.md
    """
    from pgaudit_wf.jobs.group import Group
    from pgaudit_wf.jobs.service import json_logs
    from pgaudit_wf.jobs.settings import read

    settings = read(config, os.environ)
    chosen = dict.fromkeys(job or settings.jobs)
    given = choose_database(argument, database) or settings.database or ""
    members = [_MEMBERS[name](settings, given) for name in chosen]
    port = settings.health_port if health_port is None else health_port
    with json_logs():
        try:
            failed = Group(members).run(
                once=once, health_port=port, health_host=health_host or settings.health_host
            )
        except OSError as error:
            raise Failure(
                f"the health check cannot be served on port {port}: {error.strerror}",
                "choose another --health-port; 0 picks one that is free",
                USAGE,
            ) from error
    if failed:
        raise typer.Exit(FAILED)


def _opener(name: str, own: str | None, shared: str) -> Callable[[], Connection]:
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.types.json import set_json_loads

    conninfo = conninfo_to_dict(check_conninfo(own or shared))
    open_ = opener(make_conninfo("", **{**_KEEPALIVES, **conninfo}), f"pgaudit-wf {name}")

    def connect() -> Connection:
        conn = open_()
        set_json_loads(loads, conn)
        return conn

    return connect


def _alerts(settings: RunSettings, database: str) -> Member:
    from pgaudit_wf.cli.commands.alerts import chosen_channels
    from pgaudit_wf.jobs.group import Member
    from pgaudit_wf.jobs.service import Service

    own = settings.alerts
    found = chosen_channels(
        settings.variables, own.templates, own.pages_url, own.send_timeout, own.channels
    )
    from pgaudit_wf.alerts import Worker

    service = Service("alerts")
    worker = Worker(_opener("alerts", own.database, database), found, service)
    return Member(service, worker.job, own.interval, worker.close)


def _seal(settings: RunSettings, database: str) -> Member:
    from pgaudit_wf.cli.commands.integrity import seal_job
    from pgaudit_wf.cli.keys import signer_of
    from pgaudit_wf.integrity.seal import Sealer

    own = settings.seal
    try:
        signer = signer_of(own.key_file, own.sign_command, own.public_key)
    except Failure as error:
        raise Failure(
            f"job seal: {error}",
            "set seal.key_file, or seal.sign_command and seal.public_key; or name the other jobs:"
            ' jobs = ["alerts", "maintain", "keys"]',
            USAGE,
        ) from error
    connect = _opener("seal", own.database, database)
    job = seal_job(
        Sealer(signer, state=own.state), connect, list(own.push), list(own.witness), list(own.tsa)
    )
    return _elected("seal", lambda _: job, connect, own.interval)


def _maintain(settings: RunSettings, database: str) -> Member:
    from pgaudit_wf.jobs.maintain import Maintenance
    from pgaudit_wf.jobs.service import Service

    own = settings.maintain
    connect: Callable[[], AbstractContextManager[Connection]] = _opener(
        "maintain", own.database, database
    )

    def job_of(service: Service) -> Callable[[Service], bool]:
        return Maintenance(
            service, connect, archive_url=own.archive, months_ahead=own.months_ahead
        ).job

    return _elected("maintain", job_of, connect, own.interval)


def _keys(settings: RunSettings, database: str) -> Member:
    from pgaudit_wf.jobs.group import Member
    from pgaudit_wf.jobs.keys import KeyWatch
    from pgaudit_wf.jobs.service import Service

    own = settings.keys
    service = Service("keys")
    job = KeyWatch(_opener("keys", own.database, database), service)
    return Member(service, job.job, own.interval, job.close)


def _stream(settings: RunSettings, database: str) -> Member:
    from pgaudit_wf.jobs.group import Member
    from pgaudit_wf.jobs.service import Service
    from pgaudit_wf.streams import StreamWorker

    own = settings.stream
    service = Service("stream")
    worker = StreamWorker(
        _opener("stream", own.database, database),
        settings.variables,
        service,
        timeout=own.send_timeout,
    )
    return Member(service, worker.job, own.interval, worker.close)


def _elected(
    name: str,
    job_of: Callable[[Any], Callable[[Any], bool]],
    connect: Callable[[], Any],
    interval: float,
) -> Member:
    from pgaudit_wf.jobs.group import Elected, Member
    from pgaudit_wf.jobs.service import Service

    service = Service(name)
    elected = Elected(service, job_of(service), connect)
    return Member(service, elected.job, interval, elected.close)


_MEMBERS: dict[str, Callable[[RunSettings, str], Member]] = {
    "alerts": _alerts,
    "seal": _seal,
    "maintain": _maintain,
    "keys": _keys,
    "stream": _stream,
}
