"""Operations for Django's migrations: install the schema, attach a model's table, detach it.

docs/how-to/django.md shows a migration with them.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

from django.db import router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from pgaudit_wf.integrations.django.connection import conninfo
from pgaudit_wf.schema.migrate import migrate


def _applies(schema_editor: BaseDatabaseSchemaEditor, app_label: str) -> bool:
    connection = schema_editor.connection
    return connection.vendor == "postgresql" and router.allow_migrate(connection.alias, app_label)


class Migrate(Operation):
    """Install the audit schema, or bring it to the version of this package: `pgaudit-wf migrate`.

    It has a connection and transaction of its own, and can be repeated: put it first in a
    migration of its own. Reversed, it does nothing, as an audit trail is not deleted by the way:
    `manage.py pgaudit_wf migrate --to 0` does that.
    """

    reversible = True
    reduces_to_sql = False
    elidable = False

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Change no model."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Install it.

        Raises:
            MigrationError: It could not be installed; the message says why.
        """
        if _applies(schema_editor, app_label) and not schema_editor.collect_sql:
            migrate(conninfo(schema_editor.connection.alias))

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Leave the audit trail where it is."""

    def describe(self) -> str:
        """Describe it for `migrate --plan`."""
        return "Install or upgrade the audit schema"

    @property
    def migration_name_fragment(self) -> str:
        """The name of a migration with it."""
        return "audit_schema"


class _Attachment(Operation):
    """What attaching and detaching share: a model, and the settings of `pgaudit_wf.attach`."""

    reversible = True
    reduces_to_sql = True

    def __init__(
        self,
        model: str,
        *,
        resource_type: str | None = None,
        id_fields: list[str] | None = None,
        org_field: str | None = None,
        label_field: str | None = None,
        ignore: list[str] | None = None,
        redact: list[str] | None = None,
        shallow: list[str] | None = None,
        max_value: int | None = None,
        on_failure: Literal["abort", "warn"] | None = None,
    ) -> None:
        self.model = model
        self.texts = {
            "resource_type": resource_type, "max_value": max_value, "on_failure": on_failure,
        }  # fmt: skip
        self.fields = {"org_column": org_field, "label_column": label_field}
        self.lists = {
            "id_columns": id_fields,
            "ignore": ignore,
            "redact": redact,
            "shallow": shallow,
        }

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Change no model."""

    def _attach(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> None:
        if not _applies(schema_editor, app_label):
            return
        model = state.apps.get_model(self.model)
        column = {field.name: field.column for field in model._meta.concrete_fields}
        column |= {name: name for name in column.values()}
        names = [*filter(None, self.fields.values()), *chain(*filter(None, self.lists.values()))]
        if unknown := sorted(set(names) - column.keys()):
            raise ValueError(f"{self.model} has no field {', '.join(unknown)}")
        settings: dict[str, Any] = dict(self.texts)
        settings |= {name: field and column[field] for name, field in self.fields.items()}
        settings |= {
            name: None if fields is None else [column[field] for field in fields]
            for name, fields in self.lists.items()
        }
        given = {name: value for name, value in settings.items() if value is not None}
        arguments = "".join(f", {name} => %s" for name in given)
        schema_editor.execute(
            f"select pgaudit_wf.attach(%s::regclass{arguments})",
            [schema_editor.quote_name(model._meta.db_table), *given.values()],
        )

    def _detach(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> None:
        if _applies(schema_editor, app_label):
            table = state.apps.get_model(self.model)._meta.db_table
            schema_editor.execute(
                "select pgaudit_wf.detach(%s::regclass)", [schema_editor.quote_name(table)]
            )


class Attach(_Attachment):
    """Record every change of a model's table from now on; reversed, stop recording it.

    Lists name fields of the model, or columns. What is not given takes the default of
    `pgaudit_wf.attach` (docs/reference/sql.md) or, for an attached table, keeps its value. The
    migration depends on the one that creates the model.

    Args:
        model: "app.Model"; the table behind a ManyToManyField is "app.Model_field".
        resource_type: The name of a row's type in the log; default: the table's name.
        id_fields: What identifies a row; default: the primary key.
        org_field: Holds the organization; default: column org_id or organization_id, if it exists.
        label_field: Names a row for people.
        ignore: Left out of the log; default: updated_at.
        redact: Secrets: the log shows that they changed, never their values.
        shallow: json and jsonb to record as a whole when they change.
        max_value: Longer values, in bytes, are recorded by digest and length only.
        on_failure: "abort": refuse changes that cannot be recorded; "warn": allow and count them.

    Raises:
        ValueError: When it is applied: the model has no such field.
        LookupError: When it is applied: there is no such model; a dependency may be missing.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Attach the table."""
        self._attach(app_label, schema_editor, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Detach the table."""
        self._detach(app_label, schema_editor, to_state)

    def describe(self) -> str:
        """Describe it for `migrate --plan`."""
        return f"Record every change of {self.model}"

    @property
    def migration_name_fragment(self) -> str:
        """The name of a migration with it."""
        return f"audit_{self.model.lower().replace('.', '_')}"


class Detach(_Attachment):
    """Stop recording a model's table; its events stay. Reversed, attach it as the arguments say.

    Args and errors are those of `Attach`.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Detach the table."""
        self._detach(app_label, schema_editor, from_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Attach the table."""
        self._attach(app_label, schema_editor, to_state)

    def describe(self) -> str:
        """Describe it for `migrate --plan`."""
        return f"Stop recording changes of {self.model}"

    @property
    def migration_name_fragment(self) -> str:
        """The name of a migration with it."""
        return f"stop_auditing_{self.model.lower().replace('.', '_')}"
