"""Audit trail and workflow history inside PostgreSQL; the database does the work."""

from pgaudit_wf.context import RequestContext, bind, current_context
from pgaudit_wf.request import record_event, request_context

__all__ = ["RequestContext", "bind", "current_context", "record_event", "request_context"]
