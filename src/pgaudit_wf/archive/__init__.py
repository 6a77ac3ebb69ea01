"""Months of the log as Parquet files."""

from pgaudit_wf.archive.erase import (
    PersonalValue,
    archives_with,
    erase_from_archive,
    find_archived_values,
)
from pgaudit_wf.archive.files import Archive, list_archives, verify_archive
from pgaudit_wf.archive.read import archived_trail, whole_trail
from pgaudit_wf.archive.write import Progress, archive_partition, confirm_archive

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
