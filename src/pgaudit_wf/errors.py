"""Exceptions of this package; each says what was wrong and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgaudit_wf.exact_json import loads


class PgauditError(Exception):
    """Base of every error that this package raises itself."""


class MigrationError(PgauditError):
    """A migration run could not start or finish; the message says what state the database is in."""


class MigrationLockedError(MigrationError):
    """Another migrator held the lock for longer than this one was willing to wait."""


class MigrationChangedError(MigrationError):
    """A migration was applied with a different text than the one installed here, or is unknown."""


class ContextError(PgauditError):
    """A request's context could not be set, or its transaction is not in the required state."""


class InvalidContextError(ContextError, ValueError):
    """A value is not valid in a request's context; nothing has been sent to the database."""


class ConnectionUnusableError(ContextError):
    """The connection is closed, broken or in pipeline mode, so no context can be set on it."""


class TransactionInProgressError(ContextError):
    """The connection is in a transaction that the block did not open and could not commit."""


class FailedTransactionError(ContextError):
    """A statement of the transaction failed and the error was swallowed; it was rolled back."""


class TransactionEndedError(ContextError):
    """The transaction was ended inside the block by other means than the block."""


class AutocommitError(ContextError):
    """A context is bound, but the connection commits each statement by itself."""


class DefinitionError(PgauditError, ValueError):
    """A workflow definition, or another JSON value, has no canonical form."""


class AlertSettingsError(PgauditError):
    """A setting of the alerts worker is missing or wrong; its value is not in the message."""


class JobSettingsError(PgauditError):
    """A setting of `pgaudit-wf run` is missing or wrong; the message names it, not its value."""


class PresetError(PgauditError):
    """A preset is not there, or says something that cannot be understood."""


class StreamSettingsError(PgauditError):
    """A destination of a stream cannot be served with this worker's settings; no value is named."""


class ArchiveError(PgauditError):
    """An archive could not be written, or is not what its manifest says; nothing was removed."""


class ArchiveConflictError(ArchiveError):
    """The files at the archive location are not those that this database has recorded.

    A file or manifest belongs to another database, was changed, or is missing. Nothing was
    overwritten or removed.
    """


class MissingExtraError(PgauditError):
    """A feature needs packages that are not installed; the message names the extra."""


class MaintenanceRunningError(PgauditError):
    """Another maintenance run is in progress on this database."""


class SigningKeyError(PgauditError):
    """A key for signing or checking checkpoints cannot be used."""


class NoteError(PgauditError, ValueError):
    """A signed note or checkpoint is malformed, or its signature is not valid."""


class SealError(PgauditError):
    """Sealing stopped because the tree in the database is not the one that was sealed before."""


class PushError(PgauditError):
    """A checkpoint could not be stored at its destination."""


class WitnessError(PushError):
    """A witness did not co-sign a checkpoint.

    Attributes:
        status: The HTTP status by which it refused; None if its answer is not valid.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ReconcileError(PgauditError):
    """A table cannot be compared with the log, or a file is not the state of such a run."""


class ProofError(PgauditError, ValueError):
    """No proof could be made, or a proof is not valid."""


class DatabaseError(PgauditError):
    """The audit schema refused something, with a SQLSTATE of class PA.

    Attributes:
        sqlstate: The code, as listed in docs/reference/errors.md.
        detail: Details from the database, or None.
        hint: What to do about it, or None.
    """

    sqlstate = "PA000"

    def __init__(
        self,
        message: str,
        detail: str | None = None,
        hint: str | None = None,
        sqlstate: str | None = None,
    ) -> None:
        super().__init__(message)
        self.detail = detail
        self.hint = hint
        if sqlstate is not None:
            self.sqlstate = sqlstate


class AppendOnlyError(DatabaseError):
    """An attempt to change or remove events was refused."""

    sqlstate = "PA001"


class ColumnError(DatabaseError):
    """A setting of `attach` names a column that does not exist or is not suitable."""

    sqlstate = "PA002"


class RuleError(DatabaseError):
    """An action rule does not compile for a table that is attached."""

    sqlstate = "PA003"


class NotAttachableError(DatabaseError):
    """The relation cannot be attached."""

    sqlstate = "PA004"


class NotAttachedError(DatabaseError):
    """The table is not attached, or never was."""

    sqlstate = "PA005"


class AccessDeniedError(DatabaseError):
    """The actor is neither an owner nor an admin of the organization whose trail was requested."""

    sqlstate = "PA006"


class CursorError(DatabaseError):
    """The cursor was issued by another function or for another database's log."""

    sqlstate = "PA007"


class ArgumentError(DatabaseError):
    """An argument is out of range."""

    sqlstate = "PA008"


class UnknownStateError(DatabaseError):
    """The log cannot tell what a row was: DDL rewrote the table, or two tables have one type."""

    sqlstate = "PA010"


class SwitchoverPendingError(DatabaseError):
    """The log was replicated from another cluster, and nobody has finished the switch-over."""

    sqlstate = "PA011"


class LogSetBackError(DatabaseError):
    """The log was set back, by a restore or failover, to before the event of the cursor."""

    sqlstate = "PA012"


class HubError(DatabaseError):
    """A node cannot be added to a hub or removed, or what it sends belongs to another."""

    sqlstate = "PA013"


class StoredDefinitionError(DatabaseError, DefinitionError):
    """A definition in the database is malformed or has no canonical form (PA201, PA202, PA203)."""

    sqlstate = "PA203"


class InvalidWorkflowError(DatabaseError):
    """An invalid workflow cannot be enabled, listed or run."""

    sqlstate = "PA301"

    @property
    def problems(self) -> list[dict[str, str | None]]:
        """The problems as `validate_definition` returns them: node_id, field, code, message."""
        return list(loads(self.detail)) if self.detail else []


class VersionNotFoundError(DatabaseError):
    """The workflow or version does not exist, or the caller may not see it."""

    sqlstate = "PA302"


class StampError(DatabaseError):
    """The stamp of a run cannot be altered."""

    sqlstate = "PA303"


class RestoreError(DatabaseError):
    """A version cannot be put back: its shape leads to no row, or a value was not recorded."""

    sqlstate = "PA304"


class StaleSaveError(DatabaseError):
    """A workflow was saved on an older version than its newest."""

    sqlstate = "PA305"

    @property
    def differences(self) -> dict[str, Any]:
        """The numbers `base` and `current`, and the diffs from the base: `theirs` and `yours`.

        `base` and the diffs are None where the base is unknown or was pruned.
        """
        return dict(loads(self.detail)) if self.detail else {}


class RequeueError(DatabaseError):
    """The delivery of an alert cannot be queued again."""

    sqlstate = "PA401"


class RetentionError(DatabaseError):
    """Events are inside the retention window and cannot be removed."""

    sqlstate = "PA341"


class NotArchivedError(DatabaseError):
    """Events are past the retention window but not archived."""

    sqlstate = "PA342"


class TrailDropError(DatabaseError):
    """A part of the audit trail cannot be dropped, detached or renamed."""

    sqlstate = "PA343"


class VersionPrunedError(DatabaseError):
    """The snapshot of a version was pruned; the version itself is still in the history."""

    sqlstate = "PA344"


class NotSealedError(DatabaseError):
    """Events or an archive have yet to be sealed before anything may be removed."""

    sqlstate = "PA345"


class UnknownActorError(DatabaseError):
    """Unknown actor: the actor to erase appears nowhere."""

    sqlstate = "PA360"


class LimitRightsError(DatabaseError):
    """The first limit of a resource type must be set by the owner of its tables."""

    sqlstate = "PA331"


class LimitReachedError(DatabaseError):
    """An organization has reached its limit for a resource type."""

    sqlstate = "PA330"


class UndoConflictError(DatabaseError):
    """Rows that were to be put back have conflicts, such as a later change; nothing was undone."""

    sqlstate = "PA510"


class NothingToUndoError(DatabaseError):
    """No captured change matches that could be undone, or none that the caller may read."""

    sqlstate = "PA511"


_BY_SQLSTATE = {error.sqlstate: error for error in DatabaseError.__subclasses__()} | {
    "PA201": StoredDefinitionError,
    "PA202": StoredDefinitionError,
}


def from_database(error: psycopg.Error) -> DatabaseError | None:
    """Return this package's error for a driver's error; None if it is not one of ours."""
    state = error.sqlstate or ""
    if not state.startswith("PA"):
        return None
    kind = _BY_SQLSTATE.get(state, DatabaseError)
    diag = error.diag
    message = diag.message_primary or str(error)
    return kind(message, diag.message_detail, diag.message_hint, state)


@contextmanager
def translated() -> Iterator[None]:
    """Raise the database's own errors as `DatabaseError`, with the driver's error as the cause."""
    try:
        yield
    except psycopg.Error as error:
        ours = from_database(error)
        if ours is None:
            raise
        raise ours from error
