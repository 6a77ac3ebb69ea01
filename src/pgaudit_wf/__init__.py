"""Audit trail and workflow history inside PostgreSQL; the database does the work."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgaudit_wf.context.attempt import configure_attempts
    from pgaudit_wf.context.block import request_context
    from pgaudit_wf.context.record import record_denied, record_event, record_failed
    from pgaudit_wf.context.values import AttestationKey, RequestContext, bind, current_context
    from pgaudit_wf.trail.reads import (
        api_key_activity,
        attached,
        audit_trail,
        doctor,
        follow_trail,
        latest_trail,
        read_log,
        row_as_of,
    )
    from pgaudit_wf.trail.states import (
        changes_between,
        create_view_as_of,
        row_history,
        table_as_of,
    )
    from pgaudit_wf.trail.undo import undo, undo_plan, undone_by
    from pgaudit_wf.workflow.reads import (
        compare_versions,
        definition_usage,
        execution_attribution,
        restore_workflow,
        validate_definition,
        version_snapshot,
        workflow_versions,
    )

__all__ = [
    "AttestationKey",
    "RequestContext",
    "api_key_activity",
    "attached",
    "audit_trail",
    "bind",
    "changes_between",
    "compare_versions",
    "configure_attempts",
    "create_view_as_of",
    "current_context",
    "definition_usage",
    "doctor",
    "execution_attribution",
    "follow_trail",
    "latest_trail",
    "read_log",
    "record_denied",
    "record_event",
    "record_failed",
    "request_context",
    "restore_workflow",
    "row_as_of",
    "row_history",
    "table_as_of",
    "undo",
    "undo_plan",
    "undone_by",
    "validate_definition",
    "version_snapshot",
    "workflow_versions",
]

# Imported at the first use of a name: the help of the command line needs none of them.
_MODULES = (
    "pgaudit_wf.context.attempt",
    "pgaudit_wf.context.block",
    "pgaudit_wf.context.record",
    "pgaudit_wf.context.values",
    "pgaudit_wf.trail.reads",
    "pgaudit_wf.trail.states",
    "pgaudit_wf.trail.undo",
    "pgaudit_wf.workflow.reads",
)


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for module in map(import_module, _MODULES):
            if name in vars(module):
                globals()[name] = vars(module)[name]
                return globals()[name]
        raise AssertionError(f"{name} is in none of {_MODULES}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
