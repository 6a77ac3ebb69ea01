"""Months of the log as Parquet files."""

from pgaudit_wf.archive.read import (
    PersonalValue,
    archived_trail,
    archives_with,
    erase_from_archive,
    find_archived_values,
    whole_trail,
)
from pgaudit_wf.archive.write import (
    Archive,
    Progress,
    archive_partition,
    confirm_archive,
    list_archives,
    verify_archive,
)

__all__ = [
    "Archive",
    "PersonalValue",
    "Progress",
    "archive_partition",
    "archived_trail",
    "archives_with",
    "confirm_archive",
    "erase_from_archive",
    "find_archived_values",
    "list_archives",
    "verify_archive",
    "whole_trail",
]
