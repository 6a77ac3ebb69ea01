"""Keys given on the command line: to sign with, and to verify by."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from pgaudit_wf.cli.base import USAGE, Failure
from pgaudit_wf.integrity.note import CommandSigner, Signer, SigningKey, VerifierKey


def read_text(path: str, what: str) -> str:
    """Read a file that was named on the command line; `-` is the standard input."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"the {what} {path} cannot be read: {error}", code=USAGE) from error


def verifier_keys(given: list[str] | None) -> list[VerifierKey]:
    """Return the public keys that are given as text, or as files with one a line.

    Raises:
        Failure: None is given, or a file cannot be read.
        VerifierKeyError: It is not a key.
    """
    if not given:
        raise Failure(
            "which key signed is what the check hangs on, and none was named",
            "pass --key with the public key (a line of text) or a file with it",
            USAGE,
        )
    keys = []
    for text in given:
        source = read_text(text, "key") if Path(text).is_file() else text
        keys += [VerifierKey.parse(line) for line in source.splitlines() if line.strip()]
    return keys


def signer_of(key: Path | None, command: str | None, public_key: str | None) -> Signer:
    """Return what signs: a key in a file, or a command that has the key."""
    if command:
        if not public_key:
            raise Failure("--sign-command needs the --public-key that belongs to it", code=USAGE)
        return CommandSigner(shlex.split(command), verifier_keys([public_key])[0])
    text = os.environ.get("PGAUDIT_WF_SEAL_KEY", "")
    if key is not None:
        text = read_text(str(key), "key")
    if not text:
        raise Failure(
            "there is no key to sign with",
            "pass --key FILE or --sign-command, or set PGAUDIT_WF_SEAL_KEY; pgaudit-wf keygen"
            " makes a key",
            USAGE,
        )
    return SigningKey.parse(text)
