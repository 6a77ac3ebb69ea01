"""`keygen`, `seal`, `verify`, `prove`, `check`, `consistency`, `checkpoint`: tamper evidence."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgaudit_wf.cli.base import FAILED, Connection, Failure, add, connect, help_text
from pgaudit_wf.cli.commands.bundle import bundle
from pgaudit_wf.cli.commands.proof import check, consistency, prove
from pgaudit_wf.cli.keys import authorities, read_text, signer_of, verifier_keys
from pgaudit_wf.cli.options import (
    DatabaseOption,
    HealthHostOption,
    HealthPortOption,
    JsonOption,
    KeysOption,
    TsaOption,
    WitnessOption,
    watch_option,
)
from pgaudit_wf.cli.printing.output import console, print_json, printable, progress_bar

if TYPE_CHECKING:
    from pgaudit_wf.errors import PgauditError
    from pgaudit_wf.integrity.report import Report
    from pgaudit_wf.integrity.seal import Sealer
    from pgaudit_wf.jobs.maintain import Hook
    from pgaudit_wf.jobs.service import Service

PushOption = Annotated[
    list[str] | None,
    typer.Option(
        "--push",
        metavar="TARGET",
        show_default=False,
        help="Copy the checkpoint there: a file or directory, git+PATH, witness+URL, tsa+URL, an"
        " HTTP URL, or -.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (keygen, seal, verify, prove, check, consistency, bundle):
        add(app, command)
    group = typer.Typer(
        name="checkpoint", help="Show, push and co-sign checkpoints.", no_args_is_help=True
    )
    subcommands: dict[str, Callable[..., None]] = {
        "show": checkpoint_show,
        "push": checkpoint_push,
        "cosign": checkpoint_cosign,
    }
    for name, function in subcommands.items():
        group.command(name, help=help_text(function))(function)
    app.add_typer(group)


def seal_hook(key: Path | None, state: Path | None) -> Hook:
    """Return sealing as a part of maintenance; the key is read as for `seal`.

    Raises:
        Failure: No key is given.
        SigningKeyError: It is not a private key.
    """
    from pgaudit_wf.integrity.seal import Sealer
    from pgaudit_wf.jobs.maintain import Hook
    from pgaudit_wf.trail.statement import one

    sealer = Sealer(signer_of(key, None, None), state=state)

    def run(conn: Connection, dry_run: bool) -> int:
        if dry_run:
            return int(one(conn, "select pgaudit_wf.reader_lag('seal')")[0])
        done = sealer.run(conn)
        return done.events + done.versions

    return Hook("seal", run)


def seal_job(
    sealer: Sealer,
    connect: Callable[[], AbstractContextManager[Connection]],
    targets: list[str],
    witness: list[str] | None,
    tsa: list[str] | None,
) -> Callable[[Service], bool]:
    """Return sealing, and delivering checkpoints, as a job of a `Service`."""
    undelivered = False

    def job(service: Service) -> bool:
        nonlocal undelivered
        with connect() as conn:
            done = sealer.run(conn, lambda: service.stopping)
            undelivered = undelivered or bool(done.events or done.versions)
            if undelivered:
                _deliver(conn, targets, witness, tsa)
                undelivered = False
            if done.events or done.versions:
                service.log("sealed", events=done.events, versions=done.versions, size=done.size)
        return done.more

    return job


def keygen(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the log, such as example.com/audit.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The file to write the private key to."),
    ] = Path("seal.key"),
) -> None:
    """Create the key that signs checkpoints, and print the public key.

    The private key is written to a file that only you can read. Keep it out of the database
    owner's reach, and give the public key to everyone who checks.

        pgaudit-wf keygen example.com/audit --out /etc/pgaudit-wf/seal.key > seal.pub
    """
    from pgaudit_wf.integrity.note import SigningKey

    key = SigningKey.generate(name)
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failure(f"{out} already exists", "a key is never overwritten") from None
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{key}\n")
    typer.echo(str(key.verifier))


def _deliver(
    conn: Connection, targets: list[str], witness: list[str] | None, tsa: list[str] | None
) -> None:
    from pgaudit_wf.errors import PgauditError
    from pgaudit_wf.integrity.proof import add_cosignatures, newest_checkpoint
    from pgaudit_wf.integrity.push import push as push_checkpoint

    note = newest_checkpoint(conn)
    keys = verifier_keys(witness) if witness else []
    trusted = authorities(tsa)
    failed: PgauditError | None = None
    for target in targets:
        try:
            lines = push_checkpoint(conn, note, target, keys, trusted)
        except PgauditError as error:
            # A witness that is down must not keep the others from being told.
            failed = failed or error
            continue
        if lines and keys:
            add_cosignatures(conn, note + lines, keys)
        elif lines:
            typer.echo(
                f"{printable(target)} answered with a signature, which is only kept if --witness"
                " gives its key",
                err=True,
            )
    if failed is not None:
        raise failed


def seal(
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            "-k",
            metavar="FILE",
            show_default=False,
            help="Private key; default: PGAUDIT_WF_SEAL_KEY.",
        ),
    ] = None,
    sign_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            show_default=False,
            help="Command that holds the key: reads the text, prints the signature in base64.",
        ),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", show_default=False, help="The key of --sign-command."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="File for the last checkpoint; a log that does not continue it is not signed.",
        ),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Continue with a new key of the same name.")
    ] = False,
    push: PushOption = None,
    witness: WitnessOption = None,
    tsa: TsaOption = None,
    watch: Annotated[float | None, watch_option(0.1)] = None,
    health_port: HealthPortOption = None,
    health_host: HealthHostOption = "127.0.0.1",
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Append new events and versions to the tree, and sign a checkpoint.

    Writers are not affected. It can be interrupted at any point and run again, and concurrent runs
    take turns. Events are safe from silent change once they are sealed and a copy of the
    checkpoint is kept out of the database owner's reach.

        pgaudit-wf seal --key seal.key --push /mnt/auditor/
        pgaudit-wf seal --key seal.key --watch 5 --state /var/lib/pgaudit-wf/checkpoint
        pgaudit-wf seal --sign-command 'ssh signer sign' --public-key seal.pub
    """
    from pgaudit_wf.integrity.seal import Sealer
    from pgaudit_wf.jobs.service import Service, json_logs

    sealer = Sealer(signer_of(key, sign_command, public_key), state=state, rotate=rotate)
    targets = push or []
    if watch is not None:
        with json_logs():
            Service("seal").run(
                seal_job(sealer, partial(connect, database), targets, witness, tsa),
                interval=watch,
                health_port=health_port,
                health_host=health_host,
            )
        return
    with connect(database) as conn:
        done = sealer.run(conn)
        if targets and done.size:
            _deliver(conn, targets, witness, tsa)
    if as_json:
        print_json({"events": done.events, "versions": done.versions, "size": done.size})
    elif "-" not in targets:
        typer.echo(
            f"Sealed {done.events} events and {done.versions} versions; the tree has {done.size}"
            " leaves."
        )


def verify(
    key: KeysOption = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="FILE",
            show_default=False,
            help="A checkpoint kept elsewhere, which the log must continue; repeatable.",
        ),
    ] = None,
    archive: Annotated[
        list[str] | None,
        typer.Option(
            "--archive",
            metavar="URL",
            show_default=False,
            help="Also check the archived events of this directory or URL; repeatable.",
        ),
    ] = None,
    tsa: TsaOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of problems to show.")] = 20,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Check that nothing sealed was altered, removed, inserted or reordered.

    Every event and version is hashed again and compared with the tree, the tree with each
    checkpoint, and each checkpoint with the given key. With the keys of witnesses and time-stamp
    authorities, it says up to when these vouch for it. Exit code 0: the log is intact; 1: it is
    not.

        pgaudit-wf verify --key seal.pub
        pgaudit-wf verify --key seal.pub --checkpoint /mnt/auditor/checkpoint
    """
    from pgaudit_wf.integrity.archives import verify_archives
    from pgaudit_wf.integrity.verify import verify as verify_log
    from pgaudit_wf.integrity.vouching import verify_vouchers

    keys = verifier_keys(key)
    notes = {path: read_text(path, "checkpoint") for path in checkpoint or []}
    with connect(database) as conn, progress_bar(as_json) as bar:
        task = bar.add_task("Verifying", total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        report = verify_log(conn, keys, notes=notes, progress=update, limit=max(limit, 100))
        for url in archive or []:
            verify_archives(conn, url, report)
        verify_vouchers(conn, report, keys, authorities(tsa), notes)
    if as_json:
        print_json(
            {
                "holds": report.holds,
                **{name: getattr(report, name) for name in _COUNTS},
                "untold": [found._asdict() for found in report.untold[:limit]],
                "vouched_until": report.vouched_until,
                "vouched": report.vouched,
                "found": report.found,
                "problems": [_as_dict(problem) for problem in report.problems[:limit]],
            }
        )
    else:
        _print_report(report, limit)
    if not report.holds:
        raise typer.Exit(FAILED)


_COUNTS = (
    "leaves", "events", "versions", "erased", "pruned", "archived", "unsealed",
    "unsealed_versions", "checkpoints", "unsigned",
)  # fmt: skip


def _as_dict(problem: Any) -> dict[str, object]:  # noqa: ANN401 - a dataclass
    return {
        name: getattr(problem, name)
        for name in ("kind", "message", "leaf_index", "event_id", "workflow_id", "version",
                     "intact_at")
    }  # fmt: skip


def _print_report(report: Report, limit: int) -> None:
    out = console()
    for problem in report.problems[:limit]:
        when = f", after {problem.intact_at:%Y-%m-%d %H:%M:%S %z}" if problem.intact_at else ""
        out.print(printable(f"{problem.kind.upper()}: {problem.message}{when}"), style="red")
    if report.found > limit:
        out.print(f"… and {report.found - limit} more.", style="red")
    out.print(
        f"{report.events} events and {report.versions} versions match what was sealed, under"
        f" {report.checkpoints} valid checkpoints."
    )
    for count, text in (
        (report.erased, "were partly erased by a recorded erasure; their other parts match."),
        (report.pruned, f"were pruned by retention; {report.archived} checked in archives."),
        (report.unsealed, "events are not sealed yet."),
        (report.unsealed_versions, "versions are not sealed yet."),
        (report.unsigned, "checkpoints are not signed yet: run pgaudit-wf seal."),
    ):
        if count:
            out.print(f"{count} {text}")
    for found in report.untold[:limit]:
        text = f"{found.action} {found.subject} (event {found.event_id}, {found.occurred_at})"
        out.print(printable(f"Found by a seal, untold before: {text}"), style="yellow")
    for voucher in report.vouched:
        out.print(
            printable(
                f"At {voucher.at:%Y-%m-%d %H:%M:%S %z}, {voucher.by} vouched for {voucher.size} of"
                f" {report.leaves} leaves."
            ),
            soft_wrap=True,
        )
    if not report.vouched:
        out.print("No outside party whose key was given vouches for a time.")
    if report.holds:
        out.print("Nothing was altered, removed, inserted or reordered.", style="green")
    else:
        out.print("The log is NOT intact.", style="bold red")


def checkpoint_show(
    size: Annotated[
        int | None, typer.Argument(metavar="SIZE", show_default=False, help="Number of leaves.")
    ] = None,
    database: DatabaseOption = "",
) -> None:
    """Print the newest signed checkpoint, or that of a size, with its witnesses' signatures.

    An auditor keeps it: from then on, the log can only be a continuation of it.

        pgaudit-wf checkpoint show > checkpoint
    """
    from pgaudit_wf.integrity.proof import newest_checkpoint

    with connect(database) as conn:
        typer.echo(newest_checkpoint(conn, size), nl=False)


def checkpoint_push(
    targets: Annotated[list[str], typer.Argument(metavar="TARGET...", help="Where to copy it.")],
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Write the whole tree too, as static files for a web server."),
    ] = False,
    witness: WitnessOption = None,
    tsa: TsaOption = None,
    database: DatabaseOption = "",
) -> None:
    """Copy the newest checkpoint out of the database owner's reach.

    A target is a file or directory, git+PATH of a clone (committed, and pushed if it has a remote),
    witness+URL of a witness (C2SP tlog-witness), tsa+URL of a time-stamp authority (RFC 3161), an
    HTTP URL (POST), or - for standard output. A file with a checkpoint that this log does not
    continue is never overwritten: it may be the only evidence left. Signatures of witnesses and
    time-stamps are checked and stored.

        pgaudit-wf checkpoint push /mnt/auditor/ git+/srv/checkpoints
        pgaudit-wf checkpoint push --witness witness.pub witness+https://witness.example.com
        pgaudit-wf checkpoint push --tsa tsa.pem tsa+https://tsa.example.com
    """
    from pgaudit_wf.integrity.proof import newest_checkpoint
    from pgaudit_wf.integrity.push import export_tiles

    with connect(database) as conn:
        if not tiles:
            _deliver(conn, targets, witness, tsa)
            return
        note = newest_checkpoint(conn)
        for target in targets:
            export_tiles(conn, Path(target), note)


def checkpoint_cosign(
    note: Annotated[
        str, typer.Argument(metavar="FILE", help="Checkpoint with the witness's line, or -.")
    ],
    witness: Annotated[
        list[str], typer.Option("--witness", "-w", metavar="KEY", help="Key of the witness.")
    ],
    database: DatabaseOption = "",
) -> None:
    """Store a witness's signature on a checkpoint of this log.

    The witness attests that it saw this checkpoint, and none that contradicts it.

        pgaudit-wf checkpoint cosign cosigned.txt --witness witness.pub
    """
    from pgaudit_wf.integrity.proof import add_cosignatures

    keys = verifier_keys(witness)
    text = read_text(note, "checkpoint")
    with connect(database) as conn:
        added = add_cosignatures(conn, text, keys)
    typer.echo(f"{added} new witness signatures.")
