"""Attached tables as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from pgaudit_wf.cli.printing.output import print_table

if TYPE_CHECKING:
    from pgaudit_wf.trail.reads import Attachment


def print_attachments(attachments: Sequence[Attachment], events: dict[str, int] | None) -> None:
    """Print audited tables and their settings."""
    print_table(
        ["Table", "Resource type", "Key", "Org", "Label", "Ignored", "Redacted", "Rules",
         *(["Events"] if events is not None else []), "Unrecorded"],
        [
            [
                a.table, a.resource_type, ", ".join(a.id_columns), a.org_column or "-",
                a.label_column or "-", ", ".join(a.ignore) or "-", ", ".join(a.redact) or "-",
                str(a.rules),
                *([f"{events.get(a.resource_type, 0):,}"] if events is not None else []),
                Text(str(a.failures), style="bold red") if a.failures
                else "0" if a.on_failure == "warn" else "-",
            ]
            for a in attachments
        ],
    )  # fmt: skip
