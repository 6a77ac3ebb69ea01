"""Exceptions of this package; each says what was wrong and what to do about it."""


class PgauditError(Exception):
    """Base of every error that this package raises by itself."""


class MigrationError(PgauditError):
    """A migration run could not start or finish; the message says what stands in the database."""


class MigrationLockedError(MigrationError):
    """Another migrator held the lock for longer than this one was willing to wait."""


class MigrationChangedError(MigrationError):
    """A migration was applied with another text than the one installed here, or is unknown here."""


class ContextError(PgauditError):
    """A request's context could not be set, or its transaction was not what it has to be."""


class InvalidContextError(ContextError, ValueError):
    """A value cannot be part of a request's context; nothing has been sent to the database."""


class ConnectionUnusableError(ContextError):
    """The connection is closed, broken or in pipeline mode, so no context can be set on it."""


class TransactionInProgressError(ContextError):
    """The connection is in a transaction that the block did not open and could not commit."""


class FailedTransactionError(ContextError):
    """A statement of the transaction failed and the error was swallowed: all is rolled back."""


class TransactionEndedError(ContextError):
    """The transaction was ended inside the block, behind its back."""


class AutocommitError(ContextError):
    """A context is bound, but the connection commits each statement by itself."""


class DefinitionError(PgauditError, ValueError):
    """A workflow definition, or another JSON value, has no canonical form."""
