"""Who is acting: the values, the block that sends them, attempts and their spool."""

from pgaudit_wf.context.attempt import Attempt, configure_attempts
from pgaudit_wf.context.block import request_context
from pgaudit_wf.context.record import record_denied, record_event, record_failed
from pgaudit_wf.context.spool import SpoolReading, read_spool, spool_path, spooled
from pgaudit_wf.context.values import (
    AttestationKey,
    RequestContext,
    bind,
    current_context,
)

__all__ = [
    "Attempt",
    "AttestationKey",
    "RequestContext",
    "SpoolReading",
    "bind",
    "configure_attempts",
    "current_context",
    "read_spool",
    "record_denied",
    "record_event",
    "record_failed",
    "request_context",
    "spool_path",
    "spooled",
]
