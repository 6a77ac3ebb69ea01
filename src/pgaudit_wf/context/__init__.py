"""Who is asking: the values, the block that sends them, attempts and their spool."""

from pgaudit_wf.context.attempt import (
    Attempt,
    SpoolReading,
    configure_attempts,
    read_spool,
    spool_path,
    spooled,
)
from pgaudit_wf.context.block import (
    record_denied,
    record_event,
    record_failed,
    request_context,
)
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
