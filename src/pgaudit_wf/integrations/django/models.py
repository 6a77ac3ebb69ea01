"""The log and the history of workflows as models that only read.

Their queries run as `settings.PGAUDIT_WF_READER_ROLE`, with the context that is bound: they find
what the current actor may see of the current organization.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from django.db import NotSupportedError, models
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast

from pgaudit_wf.exact_json import loads
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.trail.reads import well_formed
from pgaudit_wf.trail.sentences import sentence


class _ExactDecoder(json.JSONDecoder):
    """Keeps the digits of fractions, as all other reads of this package do."""

    def decode(self, s: str, *_: object) -> Any:  # noqa: ANN401 - any JSON
        return loads(s)


def _json(**options: Any) -> models.JSONField[Any, Any]:  # noqa: ANN401 - of a field
    return models.JSONField(decoder=_ExactDecoder, **options)


class ReadOnlyQuerySet(models.QuerySet[Any]):
    """Reads; what would write raises NotSupportedError before it reaches the database."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise NotSupportedError("the audit trail is written by the database alone")

    update = delete = bulk_create = bulk_update = _raw_delete = _refuse


class _ReadOnly(models.Model):
    objects = models.Manager.from_queryset(ReadOnlyQuerySet)()

    class Meta:
        abstract = True

    def save(self, *_: object, **__: object) -> NoReturn:
        """Refuse: raises NotSupportedError."""
        raise NotSupportedError("the audit trail is written by the database alone")

    def delete(self, *_: object, **__: object) -> NoReturn:
        """Refuse: raises NotSupportedError."""
        raise NotSupportedError("the audit trail is written by the database alone")


class Event(_ReadOnly):
    """An event of the log; docs/reference/sql.md describes the columns.

    Fractions in `diff` and `metadata` are Decimal.
    """

    id = models.BigIntegerField(primary_key=True)
    occurred_at = models.DateTimeField("when")
    tx_id = models.BigIntegerField("transaction")
    actor_id = models.TextField(null=True)
    actor_label = models.TextField(null=True)
    actor_type = models.TextField(null=True)
    on_behalf_of = models.TextField(null=True)
    client = models.TextField(null=True)
    org_id = models.TextField("organization", null=True)
    org_label = models.TextField("name of the organization", null=True)
    auth_method = models.TextField(null=True)
    api_key_id = models.TextField("API key", null=True)
    action = models.TextField()
    resource_type = models.TextField(null=True)
    resource_id = models.TextField(null=True)
    outcome = models.TextField(
        choices=[(name, name) for name in ("succeeded", "failed", "denied")],
    )
    captured = models.BooleanField("recorded by the database")
    attested = models.BooleanField("actor attested")
    diff = _json(null=True)
    metadata = _json()
    ip = models.GenericIPAddressField("from", null=True)
    country = models.TextField(null=True)
    user_agent = models.TextField("browser", null=True)
    correlation_id = models.TextField("request", null=True)
    db_user = models.TextField("database login")
    application_name = models.TextField(null=True)

    class Meta:
        managed = False
        # Quoted already, it is left as it is: the only way for a schema's name.
        db_table = '"pgaudit_wf"."security_audit_log"'
        default_permissions = ("view",)
        ordering = ("-occurred_at", "-id")

    def __str__(self) -> str:
        entry = self.entry()
        return f"{entry.acted_as()} {sentence(entry)}"

    def entry(self) -> TrailEntry:
        """Return the event as the pages and the API have it, with the names it was stored with."""
        deferred = self.get_deferred_fields()
        row = well_formed(
            {
                field.name: None if field.name in deferred else getattr(self, field.name)
                for field in self._meta.concrete_fields
                if field.name != "actor_label"
            }
        )
        label = row["metadata"].get("label")
        return TrailEntry(
            **row,
            actor_name=self.actor_label,
            actor_email=None,
            actor_role=None,
            on_behalf_of_name=None,
            resource_name=None if label is None else str(label),
            cursor="",
        )


class Version(_ReadOnly):
    """A version of a workflow; docs/reference/sql.md describes the columns."""

    pk = models.CompositePrimaryKey("workflow_id", "version")
    workflow_id = models.TextField()
    version = models.IntegerField()
    org_id = models.TextField("organization", null=True)
    source = models.TextField()
    snapshot = _json(null=True)
    change = _json()
    content_hash = models.TextField()
    previous_version = models.IntegerField(null=True)
    previous_hash = models.TextField(null=True)
    restored_from = models.IntegerField(null=True)
    actor_id = models.TextField(null=True)
    actor_label = models.TextField(null=True)
    auth_method = models.TextField(null=True)
    api_key_id = models.TextField("API key", null=True)
    correlation_id = models.TextField("request", null=True)
    created_at = models.DateTimeField()
    pruned_at = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = '"pgaudit_wf"."workflow_history"'
        default_permissions = ("view",)
        ordering = ("workflow_id", "-version")

    def __str__(self) -> str:
        return f"version {self.version} of {self.workflow_id}"


def events_of(row: models.Model, resource_type: str | None = None) -> models.QuerySet[Any]:
    """Return the events of a row, newest first.

    They are found by its primary key, of whatever type and number of columns, also when the row has
    been deleted.

    Args:
        row: An instance of an attached model.
        resource_type: The type it is attached as; by default the `audit_resource_type` of its
            class, else the name of its table.

    Raises:
        ValueError: It has no key yet.
    """
    if row.pk is None or (isinstance(row.pk, tuple) and None in row.pk):
        raise ValueError("a row that has not been saved has no events")
    meta = row._meta
    table = meta.db_table.rpartition('"."')[2].strip('"')
    keys = [_stored(row, field) for field in meta.pk_fields]
    whole = models.Func(*keys, function="jsonb_build_array", output_field=models.JSONField())
    key = keys[0] if len(keys) == 1 else whole
    text = Cast(key, models.TextField())
    return Event.objects.filter(
        resource_type=resource_type or getattr(row, "audit_resource_type", None) or table,
        resource_id=models.Func(text, function="pgaudit_wf._bounded_key"),
    )


def _stored(row: models.Model, field: Any) -> Combinable:  # noqa: ANN401 - a field of any type
    value = getattr(row, field.attname)
    while field.remote_field is not None:
        field = field.target_field
    return Cast(models.Value(value, output_field=field), field)


class Audited(models.Model):
    """Gives the rows of an attached model their events, as `row.audit_events`.

    `audit_resource_type` is the type that the model is attached as, if not its table's name.
    """

    audit_resource_type: str | None = None

    class Meta:
        abstract = True

    @property
    def audit_events(self) -> models.QuerySet[Any]:
        """The row's events, see `events_of`."""
        return events_of(self)
