"""Audit trail and workflow history inside PostgreSQL; the database does the work."""

from pgaudit_wf.context import RequestContext, bind, current_context
from pgaudit_wf.read import (
    api_key_activity,
    attached,
    audit_trail,
    doctor,
    follow_trail,
    latest_trail,
    read_log,
    row_as_of,
)
from pgaudit_wf.request import record_event, request_context

__all__ = [
    "RequestContext",
    "api_key_activity",
    "attached",
    "audit_trail",
    "bind",
    "current_context",
    "doctor",
    "follow_trail",
    "latest_trail",
    "read_log",
    "record_event",
    "request_context",
    "row_as_of",
]
