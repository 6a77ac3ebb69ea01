"""The Django middleware and database hook, with Django's own auth and sessions."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import django
import psycopg
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "pgaudit_wf.integrations.django",
        ],
        MIDDLEWARE=[
            "pgaudit_wf.integrations.django.AuditContextMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        SECRET_KEY="for tests only",
        USE_TZ=True,
    )
    django.setup()

from django.contrib.auth import alogin, login, logout
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import IntegrityError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client, override_settings
from django.test.client import AsyncRequestFactory, RequestFactory
from django.urls import path

from pgaudit_wf import RequestContext, bind, current_context, request_context
from pgaudit_wf.integrations.django import AuditContextMiddleware, install

ACTOR = "select nullif(current_setting('app.actor_id', true), '')"


def use(dsn: str) -> None:
    """Let Django's default connection be one to this database."""
    parts = conninfo_to_dict(dsn)
    connections.settings["default"].update(
        NAME=parts["dbname"],
        USER=parts["user"],
        HOST=parts["host"],
        PORT=str(parts.get("port", "")),
    )


@pytest.fixture
def db(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A migrated Django database with the hook installed; a connection to it beside Django's."""
    use(dsn)
    install()
    call_command("migrate", verbosity=0)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select pgaudit_wf.attach('auth_user', redact => '{password}')")
        conn.execute("select pgaudit_wf.attach('django_session', redact => '{session_data}')")
        conn.execute("select pgaudit_wf.attach('auth_group')")
        yield conn
    connections.close_all()


def log(conn: psycopg.Connection[Any], columns: str = "actor_id, action") -> list[tuple[Any, ...]]:
    return conn.execute(
        f"select {columns} from pgaudit_wf.security_audit_log"
        f" where action !~ '^audit[.]' order by id"
    ).fetchall()


def actor() -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(ACTOR)
        value: str | None = cursor.fetchone()[0]
    return value


def messages(act: Callable[[], object]) -> list[str]:
    """The first words of what is sent to the server meanwhile."""
    connection.ensure_connection()
    with tempfile.TemporaryFile("w+") as trace:
        connection.connection.pgconn.trace(trace.fileno())
        act()
        connection.connection.pgconn.untrace()
        trace.seek(0)
        lines = [line.split("\t") for line in trace.read().splitlines()]
    return [
        line[4].split('"')[1].split(" ")[0].strip(";").lower()
        for line in lines
        if line[1:2] == ["F"] and line[3] in ("Query", "Parse")
    ]


def test_a_single_statement_in_autocommit_mode_is_attributed(
    db: psycopg.Connection[Any],
) -> None:
    with bind(actor_id="u_1"):
        Group.objects.create(name="a")
        Group.objects.filter(name="a").update(name="b")
        with connection.cursor() as cursor:
            cursor.executemany("insert into auth_group (name) values (%s)", [("c",), ("d",)])
        Group.objects.filter(name="b").delete()
    Group.objects.create(name="e")
    assert log(db) == [
        ("u_1", "auth_group.created"),
        ("u_1", "auth_group.updated"),
        ("u_1", "auth_group.created"),
        ("u_1", "auth_group.created"),
        ("u_1", "auth_group.deleted"),
        (None, "auth_group.created"),
    ]
    assert actor() is None


def test_reads_in_autocommit_mode_cost_nothing_and_writes_a_transaction(
    db: psycopg.Connection[Any],
) -> None:
    def read() -> None:
        list(Group.objects.all())

    def write() -> None:
        Group.objects.create(name="a")

    with bind(actor_id="u_1"):
        assert messages(read) == ["select"]
        assert messages(write) == ["begin", "insert", "commit"]
        with override_settings(PGAUDIT_WF_ATTRIBUTE_SELECTS=True):
            assert messages(read) == ["begin", "select", "commit"]
    assert messages(lambda: Group.objects.create(name="b")) == ["insert"]
    assert [row[0] for row in log(db)] == ["u_1", None]


@pytest.mark.parametrize(
    "statement",
    [
        "/* why */ -- not\n insert into auth_group (name) values ('a')",
        "WITH x AS (insert into auth_group (name) values ('a')) select 1",
        "do $$ begin insert into auth_group (name) values ('a'); end $$",
        "select pgaudit_wf.record_event('report.exported')",
    ],
)
def test_bulk_and_raw_writes_are_attributed(db: psycopg.Connection[Any], statement: str) -> None:
    with bind(actor_id="u_1"), connection.cursor() as cursor:
        cursor.execute(statement)
    assert [row[0] for row in log(db)] == ["u_1"]


def test_vacuum_and_concurrent_indexes_still_run(db: psycopg.Connection[Any]) -> None:
    with bind(actor_id="u_1"), connection.cursor() as cursor:
        cursor.execute("vacuum auth_group")
        cursor.execute("create index concurrently on auth_group (name)")


def test_atomic_blocks_carry_what_is_bound_and_what_is_bound_since(
    db: psycopg.Connection[Any],
) -> None:
    with bind(actor_id="u_1"):
        with transaction.atomic():
            assert actor() == "u_1"
            Group.objects.create(name="a")
            with bind(actor_id="u_2"):
                Group.objects.create(name="b")
            with transaction.atomic(), bind(actor_id="u_3"):
                Group.objects.create(name="c")
                transaction.set_rollback(True)
            assert actor() == "u_1"
            Group.objects.create(name="d")
        with transaction.atomic():
            assert actor() == "u_1"
    with transaction.atomic():
        assert actor() is None
    assert [row[0] for row in log(db)] == ["u_1", "u_2", "u_1"]


def test_a_savepoint_rolled_back_brings_back_nothing_old(db: psycopg.Connection[Any]) -> None:
    with transaction.atomic(), bind(actor_id="u_1"):
        assert actor() == "u_1"
        savepoint = transaction.savepoint()
        with bind(actor_id="u_2"):
            assert actor() == "u_2"
            transaction.savepoint_rollback(savepoint)
            assert actor() == "u_2"
        assert actor() == "u_1"


def test_an_error_in_a_block_stays_the_error(db: psycopg.Connection[Any]) -> None:
    with bind(actor_id="u_1"):
        Group.objects.create(name="a")
        with pytest.raises(IntegrityError), transaction.atomic():
            Group.objects.create(name="a")
        with pytest.raises(IntegrityError):
            Group.objects.create(name="a")
        with pytest.raises(IntegrityError), connection.cursor() as cursor:
            # Django's foreign keys are checked at commit, which here is ours.
            cursor.execute("insert into auth_user_groups (user_id, group_id) values (7, 7)")
        Group.objects.create(name="b")
    # The two that failed outside of atomic had a block of their own, which says that they did.
    assert [row[0] for row in log(db)] == ["u_1"] * 4
    assert [
        outcome
        for (outcome,) in db.execute(
            "select outcome from pgaudit_wf.security_audit_log"
            " where action !~ '^audit[.]' order by id"
        ).fetchall()
    ] == ["succeeded", "failed", "failed", "succeeded"]


def test_each_statement_costs_nothing_more_once_the_transaction_has_its_context(
    db: psycopg.Connection[Any],
) -> None:
    def work() -> None:
        with transaction.atomic():
            list(Group.objects.all())
            list(Group.objects.all())

    with bind(actor_id="u_1"):
        assert messages(work) == ["begin", "set", "select", "select", "commit"]
    assert messages(work) == ["begin", "select", "select", "commit"]


def test_request_context_on_the_drivers_connection_has_its_own_say(
    db: psycopg.Connection[Any],
) -> None:
    connection.ensure_connection()
    with bind(actor_id="u_1"), request_context(connection.connection, reason="why"):
        Group.objects.create(name="a")
    assert log(db, "actor_id, metadata ->> 'reason'") == [("u_1", "why")]


def sign_in(request: HttpRequest) -> HttpResponse:
    Group.objects.create(name="before")
    login(request, User.objects.get(username=request.GET["user"]))
    Group.objects.create(name="after")
    return HttpResponse()


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    Group.objects.create(name="signed out")
    return HttpResponse()


def idle(_request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def show(_request: HttpRequest) -> HttpResponse:
    return JsonResponse(current_context().as_dict())


async def create_async(request: HttpRequest) -> HttpResponse:
    # The user has not been loaded here, and a coroutine cannot load it by itself.
    before = current_context().as_dict()
    await Group.objects.acreate(name=request.GET["name"])
    return JsonResponse({"before": before, "after": current_context().as_dict()})


async def sign_in_async(request: HttpRequest) -> HttpResponse:
    await alogin(request, await User.objects.aget(username=request.GET["user"]))
    return HttpResponse()


urlpatterns = [
    path("sign-in", sign_in),
    path("sign-out", sign_out),
    path("idle", idle),
    path("show", show),
    path("create-async", create_async),
    path("sign-in-async", sign_in_async),
]
in_project = override_settings(ROOT_URLCONF=tuple(urlpatterns))


@in_project
def test_a_request_that_signs_in_is_attributed_from_there_on(
    db: psycopg.Connection[Any],
) -> None:
    user = User.objects.create_user("ada")
    web = Client(headers={"User-Agent": "agent", "X-Request-ID": "r-1"})
    db.execute("select pgaudit_wf.detach('django_session')")
    response = web.get("/sign-in?user=ada")
    assert response["X-Request-ID"] == "r-1"
    web.get("/sign-out")
    ada = (str(user.pk), "ada", "session", "127.0.0.1", "agent", "r-1")
    nobody = (None, None, None, "127.0.0.1", "agent", "r-1")
    rows = log(
        db, "action, actor_id, actor_label, auth_method, host(ip), user_agent, correlation_id"
    )
    assert rows[1:] == [
        ("auth_group.created", *nobody),
        ("auth_user.updated", *ada),
        ("auth_group.created", *ada),
        ("auth_group.created", *nobody),
    ]
    assert current_context() == RequestContext()


@in_project
def test_what_other_middlewares_write_is_attributed_too(db: psycopg.Connection[Any]) -> None:
    user = User.objects.create_user("ada")
    web = Client()
    web.get("/sign-in?user=ada")
    web.get("/sign-out")
    sessions = [row for row in log(db) if row[1].startswith("django_session")]
    assert (str(user.pk), "django_session.deleted") in sessions
    assert sessions[-1][0] == str(user.pk)


@in_project
def test_a_request_that_does_not_write_queries_nothing_for_us(
    db: psycopg.Connection[Any],
) -> None:
    web = Client()
    web.force_login(User.objects.create_user("ada"))
    assert messages(lambda: web.get("/idle")) == []


@in_project
def test_the_signed_in_user_acts_and_headers_of_strangers_are_not_believed(
    db: psycopg.Connection[Any],
) -> None:
    user = User.objects.create_user("ada")
    web = Client(headers={"X-Forwarded-For": "203.0.113.9", "CF-IPCountry": "AT"})
    web.force_login(user)
    found = web.get("/show").json()
    assert found["actor_id"] == str(user.pk)
    assert found["ip"] == "127.0.0.1"
    assert len(found["correlation_id"]) == 32
    assert "country" not in found


@in_project
def test_settings_are_heeded(db: psycopg.Connection[Any]) -> None:
    with override_settings(
        PGAUDIT_WF_TRUSTED_PROXIES=["127.0.0.0/8"],
        PGAUDIT_WF_COUNTRY_HEADER="CF-IPCountry",
        PGAUDIT_WF_PRINCIPAL=f"{__name__}.robot",
    ):
        web = Client(headers={"X-Forwarded-For": "203.0.113.9", "CF-IPCountry": "AT"})
        found = web.get("/show").json()
    assert found.pop("correlation_id")
    assert found == {"actor_id": "robot", "ip": "203.0.113.9", "country": "AT"}


def robot(_request: HttpRequest) -> RequestContext:
    return RequestContext(actor_id="robot")


@in_project
def test_async_views_are_attributed_too(db: psycopg.Connection[Any]) -> None:
    user = User.objects.create_user("ada")

    async def main() -> dict[str, dict[str, str]]:
        web = AsyncClient()
        headers = {"X-Request-ID": "r-1"}
        await web.get("/create-async?name=a", headers=headers)
        await web.get("/sign-in-async?user=ada", headers=headers)
        response = await web.get("/create-async?name=b", headers=headers)
        assert response["X-Request-ID"] == "r-1"
        found: dict[str, dict[str, str]] = response.json()
        return found

    found = async_to_sync(main)()
    assert "actor_id" not in found["before"]
    assert found["after"]["actor_id"] == str(user.pk)
    groups = [row for row in log(db, "action, actor_id, correlation_id") if "group" in row[0]]
    assert groups == [
        ("auth_group.created", None, "r-1"),
        ("auth_group.created", str(user.pk), "r-1"),
    ]


def test_a_wrong_setting_is_refused_at_start() -> None:
    with (
        override_settings(PGAUDIT_WF_TRUSTED_PROXIES=["proxy.internal"]),
        pytest.raises(ImproperlyConfigured, match=r"PGAUDIT_WF_TRUSTED_PROXIES: 'proxy\.internal'"),
    ):
        AuditContextMiddleware(lambda _: HttpResponse())


def test_the_middleware_keeps_to_the_kind_of_what_it_wraps() -> None:
    async def answer(_: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"X-Request-ID": current_context().correlation_id or ""})

    middleware = AuditContextMiddleware(answer)
    assert iscoroutinefunction(middleware)
    request = AsyncRequestFactory().get("/", headers={"X-Request-ID": "r-1"})
    response = async_to_sync(middleware)(request)
    assert response["X-Request-ID"] == "r-1"
    plain = AuditContextMiddleware(lambda _: HttpResponse())(RequestFactory().get("/"))
    assert isinstance(plain, HttpResponse)
    assert len(plain["X-Request-ID"]) == 32
