"""The trail as files for other programs."""

from pgaudit_wf.export.trail import (
    CSV_COLUMNS,
    OCSF_VERSION,
    Format,
    csv_cell,
    event_writer,
    export_trail,
    to_ocsf,
)

__all__ = [
    "CSV_COLUMNS",
    "OCSF_VERSION",
    "Format",
    "csv_cell",
    "event_writer",
    "export_trail",
    "to_ocsf",
]
