"""A Django project as it runs: its auth tables attached by name, its own views at work."""

import http.cookiejar
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from support.server import Conn

SETTINGS = """
import os

ALLOWED_HOSTS = ["127.0.0.1"]
AUTH_PASSWORD_VALIDATORS = []
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["SHOP_NAME"], "USER": os.environ["SHOP_USER"],
    "HOST": os.environ["SHOP_HOST"], "PORT": os.environ["SHOP_PORT"],
}}
INSTALLED_APPS = [
    f"django.contrib.{app}" for app in ("admin", "auth", "contenttypes", "messages", "sessions")
]
LOGIN_REDIRECT_URL = "/done/"
MIDDLEWARE = [
    "pgaudit_wf.integrations.django.AuditContextMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "urls"
SECRET_KEY = "for tests only"
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "OPTIONS": {
        "context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ],
        "loaders": [
            ("django.template.loaders.locmem.Loader", {"form.html": "{% csrf_token %}{{ form }}"}),
            "django.template.loaders.app_directories.Loader",
        ],
    },
}]
USE_TZ = True
"""

URLS = """
from django.contrib import admin
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.http import HttpResponse
from django.urls import path
from django.views.generic import CreateView

form = {"template_name": "form.html"}
urlpatterns = [
    path("admin/", admin.site.urls),
    path("done/", lambda request: HttpResponse("done")),
    path("sign-up/", CreateView.as_view(form_class=UserCreationForm, success_url="/done/", **form)),
    path("login/", LoginView.as_view(**form)),
    path("logout/", LogoutView.as_view(next_page="/done/")),
    path("password/", PasswordChangeView.as_view(success_url="/done/", **form)),
]
"""

SERVE = """
from wsgiref.simple_server import make_server
from django.core.wsgi import get_wsgi_application

with make_server("127.0.0.1", 0, get_wsgi_application()) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""

RULES = """
insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values
    ('account', 'update', 'old.is_active and not new.is_active', 'account.deactivated', 10),
    ('account', 'update', 'not old.is_active and new.is_active', 'account.reactivated', 20),
    ('account', 'update', 'old.password is distinct from new.password', 'password.changed', 30),
    ('account', 'update', 'old.email is distinct from new.email', 'email.changed', 40),
    ('session', 'delete', null, 'session.revoked', 10)
"""


@pytest.fixture
def project(tmp_path: Path, dsn: str) -> Iterator[str]:
    """The address of a running project whose auth tables are attached."""
    for name, text in (("settings", SETTINGS), ("urls", URLS), ("serve", SERVE)):
        (tmp_path / f"{name}.py").write_text(text)
    parts = conninfo_to_dict(dsn)
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "SHOP_NAME": str(parts["dbname"]),
        "SHOP_USER": str(parts["user"]),
        "SHOP_HOST": str(parts["host"]),
        "SHOP_PORT": str(parts.get("port", "")),
    }
    run: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True}
    django = [sys.executable, "-m", "django"]
    subprocess.run([*django, "migrate", "-v", "0"], check=True, **run)
    subprocess.run(
        [*django, "createsuperuser", "--noinput", "--username=root", "--email=root@example.com"],
        check=True, **(run | {"env": environment | {"DJANGO_SUPERUSER_PASSWORD": "a root pass"}}),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with psycopg.connect(dsn) as conn:
        conn.execute(RULES)
        conn.execute(
            "select pgaudit_wf.attach('auth_user', 'account', label_column => 'username', "
            "ignore => '{last_login}', redact => '{password}')"
        )
        conn.execute(
            "select pgaudit_wf.attach('django_session', 'session', redact => '{session_data}')"
        )
        conn.execute("select pgaudit_wf.attach('auth_group')")
        conn.execute("select pgaudit_wf.attach('auth_user_groups')")
    with subprocess.Popen(
        [sys.executable, "serve.py"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **run
    ) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


class Browser:
    """Keeps cookies, and sends back the token that a form came with."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cookies = http.cookiejar.CookieJar()
        self.open = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.cookies)
        ).open

    def submit(self, path: str, form_path: str | None = None, **fields: str) -> None:
        with self.open(self.address + (form_path or path), timeout=60) as page:
            page.read()
        [token] = [cookie.value for cookie in self.cookies if cookie.name == "csrftoken"]
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        with self.open(self.address + path, data, timeout=60) as page:
            text = page.read().decode()
            assert page.geturl() != self.address + path, text


@pytest.mark.slow
def test_accounts_of_a_running_project(project: str, conn: Conn) -> None:
    ann, root = Browser(project), Browser(project)
    first, second = "correct horse 1", "battery staple 2"
    ann.submit("/sign-up/", username="ann", password1=first, password2=first)
    ann.submit("/login/", username="ann", password=first)
    ann.submit("/password/", old_password=first, new_password1=second, new_password2=second)
    ann.submit("/logout/", "/password/")

    root.submit("/login/", username="root", password="a root pass")
    [(ann_id, root_id)] = conn.execute(
        "select max(id) filter (where username = 'ann'), max(id) filter (where username = 'root') "
        "from auth_user"
    ).fetchall()
    form = {
        "username": "ann", "first_name": "", "last_name": "", "email": "",
        "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00",
    }  # fmt: skip
    page = f"/admin/auth/user/{ann_id}/change/"
    root.submit(page, **form)
    root.submit(page, **form, is_active="on")
    root.submit(page, **(form | {"email": "ann@example.com"}), is_active="on")
    root.submit("/admin/auth/group/add/", name="staff")

    events = conn.execute(
        "select action, actor_id, metadata ->> 'label', ip::text is not null, auth_method "
        "from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and resource_type <> 'session' order by id"
    ).fetchall()
    ann_is, root_is = str(ann_id), str(root_id)
    assert events == [
        ("account.created", None, "ann", True, None),
        ("password.changed", ann_is, "ann", True, "session"),
        ("account.deactivated", root_is, "ann", True, "session"),
        ("account.reactivated", root_is, "ann", True, "session"),
        ("email.changed", root_is, "ann", True, "session"),
        ("auth_group.created", root_is, None, True, "session"),
    ]
    sessions = [
        action
        for (action,) in conn.execute(
            "select action from pgaudit_wf.security_audit_log "
            "where resource_type = 'session' order by id"
        ).fetchall()
    ]
    assert sessions.count("session.created") >= 2
    assert "session.revoked" in sessions
    [(changed,)] = conn.execute(
        "select diff from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and action = 'email.changed'"
    ).fetchall()
    assert changed == [{"op": "replace", "path": "/email", "old": "", "value": "ann@example.com"}]
    # No hash of a password, and no content of a session.
    assert_hidden(conn)


def assert_hidden(conn: Conn) -> None:
    values = [
        value
        for (value,) in conn.execute(
            "select password from auth_user union all select session_data from django_session"
        ).fetchall()
    ]
    assert len(values) >= 3
    for value in values:
        assert conn.execute(
            "select count(*) from pgaudit_wf.security_audit_log as l"
            " where l.action !~ '^audit[.]' and strpos(l::text, %s) > 0",
            [value],
        ).fetchone() == (0,)
    assert conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log as l"
        " where l.action !~ '^audit[.]' and strpos(l::text, "
        "'pbkdf2') > 0"
    ).fetchone() == (0,)
