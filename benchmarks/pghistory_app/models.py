"""The measured tables as Django models; the other variants' tables are copies of these."""

import pghistory
from django.contrib.postgres.fields import ArrayField
from django.db import models


def trackers() -> tuple[pghistory.Tracker, ...]:
    """Return trackers for one model: they are changed by use."""
    return pghistory.InsertEvent(), pghistory.UpdateEvent(), pghistory.DeleteEvent()


@pghistory.track(*trackers(), exclude=["last_used_at", "updated_at"])
class Item(models.Model):
    """A small table of mixed columns, such as API keys or invoices."""

    org_id = models.TextField()
    name = models.TextField()
    kind = models.CharField(max_length=20)
    enabled = models.BooleanField(default=True)
    quota = models.IntegerField()
    tags = ArrayField(models.TextField())
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True)
    updated_at = models.DateTimeField()

    class Meta:
        db_table = "item_pghistory"


@pghistory.track(*trackers(), exclude=["updated_at"])
class Document(models.Model):
    """A table whose rows each hold 100 KiB of JSON, such as workflow definitions."""

    org_id = models.TextField()
    name = models.TextField()
    definition = models.JSONField()
    updated_at = models.DateTimeField()

    class Meta:
        db_table = "document_pghistory"
