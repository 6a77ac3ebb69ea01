"""Values of which an event has the digest only."""

from __future__ import annotations

from collections.abc import Mapping


def describe_digest(operation: Mapping[str, object], name: str, value: object) -> str | None:
    """Say what an operation of a diff has in place of a value that was too large to record.

    Args:
        operation: The operation.
        name: `value` or `old` or, where the operation is of a whole row, the column.
        value: What is there.

    Returns:
        The size and the digest in words; None if the value is there as it is.
    """
    named = operation.get("digest")
    if not isinstance(named, list) or name not in named or not isinstance(value, Mapping):
        return None
    size = value.get("bytes")
    length = f"{size:,} bytes" if isinstance(size, int) else size
    known = f", SHA-256 {value['sha256']}" if "sha256" in value else ""
    return f"(not recorded: {length}{known})"
