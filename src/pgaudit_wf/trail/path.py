"""Where an operation of a diff applies, for people."""

from __future__ import annotations


def describe_path(path: str) -> str:
    """Name what an operation of a diff changed.

    Args:
        path: The operation's `path`, a JSON pointer.

    Returns:
        The column; within a column, the pointer without its first slash: `settings/limits/max`,
        where a slash in a key reads ~1 and a tilde ~0. Empty for a whole row.
    """
    name = path[1:]
    return name if "/" in name else name.replace("~1", "/").replace("~0", "~")


def column_of(path: str) -> str:
    """Return the column that an operation of a diff changed, or changed something within.

    Args:
        path: The operation's `path`, a JSON pointer.
    """
    return path[1:].partition("/")[0].replace("~1", "/").replace("~0", "~")
