"""The log as Django's models, and what puts it there: operations of migrations, and the command."""

import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import (
    NotSupportedError,
    ProgrammingError,
    connection,
    connections,
    models,
    transaction,
)
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState, ProjectState
from django.test import override_settings

from integrations.test_integration_django import use
from pgaudit_wf import RequestContext, bind
from pgaudit_wf.integrations.django.models import Audited, Event, Version, events_of
from pgaudit_wf.integrations.django.operations import Attach, Detach, Migrate


class Number(Audited):
    class Meta:
        app_label = "edge"
        db_table = "Odd Number"


class Text(Audited):
    audit_resource_type = "a text"
    key = models.CharField(primary_key=True, db_column="The Key")
    secret = models.TextField(db_column="Se cret", default="")

    class Meta:
        app_label = "edge"


class Unique(Audited):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)

    class Meta:
        app_label = "edge"


class Price(Audited):
    id = models.DecimalField(primary_key=True, max_digits=10, decimal_places=2)

    class Meta:
        app_label = "edge"


class Extra(Audited):
    number = models.OneToOneField(Number, models.CASCADE, primary_key=True)

    class Meta:
        app_label = "edge"


class Pair(Audited):
    pk = models.CompositePrimaryKey("number", "name")
    number = models.ForeignKey(Number, models.CASCADE)
    name = models.TextField()

    class Meta:
        app_label = "edge"


EDGE: list[type[Audited]] = [Number, Text, Unique, Price, Extra, Pair]


def state() -> ProjectState:
    found = ProjectState()
    for model in EDGE:
        found.add_model(ModelState.from_model(model))
    return found


def apply(operation: Operation, backwards: bool = False) -> None:
    with connection.schema_editor() as editor:
        run = operation.database_backwards if backwards else operation.database_forwards
        run("edge", editor, state(), state())


def attached(conn: psycopg.Connection[Any]) -> set[str]:
    return {
        name
        for (name,) in conn.execute("select target::text from pgaudit_wf.attachment").fetchall()
    }


@pytest.fixture
def edge(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """Tables with all kinds of keys, attached; ann owns organization o, bob organization p."""
    use(dsn)
    with connection.schema_editor() as editor:
        for model in EDGE:
            editor.create_model(model)
    for model in EDGE:
        apply(Attach(f"edge.{model.__name__}", resource_type=model.audit_resource_type))
    conn.execute(
        "create or replace view pgaudit_wf.org_member as select org as org_id, actor as actor_id,"
        " 'owner' as role from (values ('o', 'ann'), ('p', 'bob')) as m (org, actor)"
    )
    yield conn
    connections.close_all()


def test_rows_of_every_key_have_their_events(edge: psycopg.Connection[Any]) -> None:
    with bind(actor_id="ann", org_id="o"):
        number = Number.objects.create()
        texts = ["", "it's", 'a "b"\n\\', "ÄÖ 💡", "%", "x" * 5000]
        rows: list[Any] = [
            number, Unique.objects.create(), Price.objects.create(id=Decimal("1.5")),
            Extra.objects.create(number=number), Pair.objects.create(number=number, name='a "b"'),
            *(Text.objects.create(key=key) for key in texts),
        ]  # fmt: skip
        for row in rows:
            assert [e.action.rpartition(".")[2] for e in row.audit_events] == ["created"], row.pk
        Pair.objects.all().delete()
        assert rows[4].audit_events.count() == 2
        with pytest.raises(ValueError, match="not been saved"):
            _ = Number().audit_events
        assert events_of(number, "Odd Number").get().entry().resource_name is None
        price = rows[2].audit_events.get()
        assert str(price.diff[0]["value"]["id"]) == "1.50"
        assert str(price) == "ann created edge price"
        event = Event.objects.first()
        assert event is not None
        for write in (
            event.save, event.delete, Event.objects.all().delete,
            lambda: Event.objects.update(actor_id="bob"), lambda: Event.objects.create(action="x"),
            lambda: Event.objects.bulk_create([Event(action="x")]), Version(version=1).save,
        ):  # fmt: skip
            with pytest.raises(NotSupportedError):
                write()
        with pytest.raises(ProgrammingError), connection.cursor() as cursor:
            cursor.execute('insert into "pgaudit_wf"."security_audit_log" (action) values (\'x\')')


def test_only_what_the_actor_may_see_is_read(edge: psycopg.Connection[Any]) -> None:
    with bind(actor_id="ann", org_id="o"):
        Number.objects.create()
        assert Event.objects.count() == 1
        # Streamed by a cursor of the server, in a transaction and without one.
        assert [e.actor_id for e in Event.objects.iterator(1)] == ["ann"]
        with transaction.atomic():
            stream = Event.objects.iterator(1)
            assert next(stream).actor_id == "ann"
            with connection.cursor() as cursor:
                cursor.execute("select current_user = session_user")
                assert cursor.fetchone() == (True,)
            Number.objects.create()
        assert list(Version.objects.all()) == []
    for who in (None, RequestContext("bob", org_id="o"), RequestContext("bob", org_id="p")):
        with bind(who):
            assert not Event.objects.exists()
            with transaction.atomic():
                assert not Event.objects.exists()
    with override_settings(PGAUDIT_WF_READER_ROLE=None):
        assert Event.objects.filter(actor_id="ann").count() == 2
    # A role that was taken on comes back.
    edge.execute("drop role if exists django_edge; create role django_edge")
    edge.execute("grant select, insert on edge_text to django_edge")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("set local role django_edge")
        # The login may take on what its current role may not.
        assert not Event.objects.exists()
        with pytest.raises(ProgrammingError), transaction.atomic():
            list(Event.objects.annotate(n=models.Exists(Number.objects.all())))
        cursor.execute("select current_user")
        assert cursor.fetchone() == ("django_edge",)
    edge.execute("set role none; revoke all on edge_text from django_edge; drop role django_edge")


def test_operations_go_both_ways_and_the_command_finds_the_database(
    edge: psycopg.Connection[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    operation = Attach("edge.Text", resource_type="a text", redact=["secret"], id_fields=["key"])
    apply(operation)
    redacted = "select redact, id_columns from pgaudit_wf.attachment where resource_type = 'a text'"
    assert edge.execute(redacted).fetchone() == (["Se cret"], ["The Key"])
    apply(operation, backwards=True)
    assert "edge_text" not in attached(edge)
    apply(Detach("edge.Text", redact=["secret"]), backwards=True)
    assert "edge_text" in attached(edge)
    apply(Detach("edge.Text"))
    assert "edge_text" not in attached(edge)
    with pytest.raises(ValueError, match="no field nothing"):
        apply(Attach("edge.Text", ignore=["nothing"]))
    with pytest.raises(LookupError):
        apply(Attach("edge.Nothing"))
    apply(Migrate())
    apply(Migrate(), backwards=True)
    with connection.schema_editor(collect_sql=True) as editor:
        Migrate().database_forwards("edge", editor, state(), state())
        operation.database_forwards("edge", editor, state(), state())
    [shown] = editor.collected_sql
    assert shown.startswith("select pgaudit_wf.attach(")
    assert "edge_text" not in attached(edge)
    assert operation.deconstruct()[0] == "Attach"
    call_command("pgaudit_wf", "status", "--json")
    assert "edge_pair" in capfd.readouterr().out
    with pytest.raises(SystemExit) as end:
        call_command("pgaudit_wf", "detach", "public.nothing")
    assert end.value.code == 1
