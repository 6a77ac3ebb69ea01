"""Keys given on the command line: to sign with, and to verify by."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pgaudit_wf.cli.base import USAGE, Failure

if TYPE_CHECKING:
    from pgaudit_wf.integrity.note import Signer, VerifierKey
    from pgaudit_wf.integrity.timestamp import Authority


def read_text(path: str, what: str) -> str:
    """Read a file named on the command line; `-` is the standard input."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"the {what} {path} cannot be read: {error}", code=USAGE) from error


def verifier_keys(given: list[str] | None) -> list[VerifierKey]:
    """Return the public keys given as text, or as files with one per line.

    Raises:
        Failure: No key is given, or a file cannot be read.
        SigningKeyError: A text is not a public key.
    """
    from pgaudit_wf.integrity.note import VerifierKey

    if not given:
        raise Failure(
            "no verification key given",
            "pass --key with the public key (a line of text), or with a file that contains it",
            USAGE,
        )
    keys = []
    for text in given:
        source = read_text(text, "key") if Path(text).is_file() else text
        keys += [VerifierKey.parse(line) for line in source.splitlines() if line.strip()]
    return keys


def signer_of(key: Path | None, command: str | None, public_key: str | None) -> Signer:
    """Return the signer: a key in a file, or a command that holds the key."""
    from pgaudit_wf.integrity.note import CommandSigner, SigningKey

    if command:
        if not public_key:
            raise Failure("--sign-command requires the matching --public-key", code=USAGE)
        return CommandSigner(shlex.split(command), verifier_keys([public_key])[0])
    text = os.environ.get("PGAUDIT_WF_SEAL_KEY", "")
    if key is not None:
        text = read_text(str(key), "key")
    if not text:
        raise Failure(
            "no signing key given",
            "pass --key FILE or --sign-command, or set PGAUDIT_WF_SEAL_KEY; pgaudit-wf keygen"
            " creates a key",
            USAGE,
        )
    return SigningKey.parse(text)


def authorities(given: list[str] | None) -> list[Authority]:
    """Return the time-stamp authorities whose certificates are in the given files.

    Raises:
        Failure: A file cannot be read.
        NoteError: It has no certificate.
    """
    from pgaudit_wf.integrity.timestamp import Authority

    return [Authority.parse(read_text(path, "certificate")) for path in given or []]
