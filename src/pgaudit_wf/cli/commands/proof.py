"""Commands that prove an event to others, and check such a proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgaudit_wf.cli.base import USAGE, Failure, connect
from pgaudit_wf.cli.commands.bundle import check_zip
from pgaudit_wf.cli.keys import authorities, read_text, verifier_keys
from pgaudit_wf.cli.options import (
    DatabaseOption,
    JsonOption,
    KeysOption,
    TsaOption,
)
from pgaudit_wf.cli.printing.output import print_json, printable
from pgaudit_wf.exact_json import dumps, loads

if TYPE_CHECKING:
    from pgaudit_wf.integrity.proof import Checked


def prove(
    event_id: Annotated[
        int | None, typer.Argument(metavar="EVENT_ID", show_default=False, help="The event.")
    ] = None,
    workflow: Annotated[
        str | None,
        typer.Option(metavar="ID", show_default=False, help="Prove a version of this workflow."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default=False, help="That version.")
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="Location of the archive, if the event was archived.",
        ),
    ] = None,
    database: DatabaseOption = "",
) -> None:
    """Print a proof that an event is in the log; `check` verifies it without a database.

    The proof shows the event in full, names and addresses included.

        pgaudit-wf prove 4711 > proof.json
        pgaudit-wf prove --workflow 3f0c… --version 7 > proof.json
    """
    from pgaudit_wf.integrity.archives import archived_row
    from pgaudit_wf.integrity.proof import prove_event, prove_version

    if (event_id is None) == (workflow is None) or (workflow is None) != (version is None):
        raise Failure("give an event id, or --workflow with --version", code=USAGE)
    with connect(database) as conn:
        if workflow is not None and version is not None:
            proof = prove_version(conn, workflow, version)
        else:
            assert event_id is not None  # noqa: S101
            row = archived_row(conn, archive, event_id) if archive else None
            proof = prove_event(conn, event_id, row)
    typer.echo(dumps(proof, 2))


def check(
    proof: Annotated[
        str, typer.Argument(metavar="PROOF", help="File with the proof or bundle; - for a proof.")
    ],
    key: KeysOption = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Of a bundle: the checkpoint kept from last time, which it must continue.",
        ),
    ] = None,
    tsa: TsaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a proof, of an event or of consistency, or a bundle, without a database.

    Exit code 0: it is valid, and its content is printed; 1: it is not; 4: nothing is wrong with
    the bundle, but it does not show everything, such as where the period ends.

        pgaudit-wf check proof.json --key seal.pub
        pgaudit-wf check period.zip --key seal.pub --checkpoint kept --tsa tsa.pem
    """
    from pgaudit_wf.integrity.proof import check as check_proof

    keys = verifier_keys(key)
    kept = read_text(checkpoint, "checkpoint") if checkpoint else ""
    if _is_zip(proof):
        check_zip(proof, keys, kept, authorities(tsa), as_json)
    try:
        loaded = loads(read_text(proof, "proof"))
    except ValueError as error:
        raise Failure(f"{proof} is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise Failure(f"{proof} is not a proof")
    checked = check_proof(loaded, keys)
    if as_json:
        print_json(
            {
                "origin": checked.checkpoint.origin,
                "size": checked.checkpoint.size,
                "witnesses": list(checked.witnesses),
                "event": checked.event if checked.leaf else None,
                "old_size": checked.old.size if checked.old else None,
            }
        )
        return
    _print_checked(checked)


def _is_zip(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


def _print_checked(checked: Checked) -> None:
    origin, size = printable(checked.checkpoint.origin), checked.checkpoint.size
    if checked.old is not None:
        typer.echo(f"PROVED: the log {origin} of {size} leaves continues that of"
                   f" {checked.old.size}.")  # fmt: skip
    else:
        typer.echo(f"PROVED: this is in the log {origin}, under its checkpoint of {size} leaves.")
        for name, value in sorted(checked.event.items()):
            if value is not None:
                text = value if isinstance(value, str) else dumps(value)
                typer.echo(f"  {name}: {printable(text)}")
    for witness in checked.witnesses:
        typer.echo(f"Seen by the witness {printable(witness)}.")


def consistency(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="File with the older checkpoint, or its size.")
    ],
    new: Annotated[
        str,
        typer.Argument(
            metavar="[NEW]", show_default=False, help="The newer one; default: the newest."
        ),
    ] = "",
    database: DatabaseOption = "",
) -> None:
    """Print a proof that the log of one checkpoint continues that of an older one.

    The proof contains both checkpoints; `check` verifies it without a database.

        pgaudit-wf consistency /mnt/auditor/checkpoint > grown.json
        pgaudit-wf check grown.json --key seal.pub
    """
    from pgaudit_wf.integrity.proof import newest_checkpoint, prove_consistency

    with connect(database) as conn:
        notes = [
            newest_checkpoint(conn, int(name)) if name.isascii() and name.isdigit()
            else read_text(name, "checkpoint")
            for name in (old, new) if name
        ]  # fmt: skip
        proof = prove_consistency(conn, *notes)
    typer.echo(dumps(proof, 2))
