"""Creates the Django models' tables and django-pghistory's triggers, by Django's own migrations.

Run as `python -m benchmarks.django_project DSN`: Django is configured once a process, and each
scenario has a database of its own.
"""

import sys
import tempfile
from pathlib import Path

import django
import psycopg
from django.conf import settings
from django.core.management import call_command

APP = "pghistory_app"


def install(dsn: str) -> None:
    """Write the app's migrations into a scratch folder, then migrate the database at `dsn`."""
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "pghistory_app_migrations")
        package.mkdir()
        (package / "__init__.py").touch()
        sys.path.insert(0, scratch)
        settings.configure(
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "NAME": info["dbname"],
                    "USER": info["user"],
                    "HOST": info["host"],
                    "PORT": info["port"],
                }
            },
            INSTALLED_APPS=[
                "django.contrib.contenttypes",
                "django.contrib.auth",
                "pgtrigger",
                "pghistory",
                f"benchmarks.{APP}",
            ],
            MIGRATION_MODULES={APP: package.name},
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            USE_TZ=True,
        )
        django.setup()
        call_command("makemigrations", APP, verbosity=0)
        call_command("migrate", verbosity=0)


if __name__ == "__main__":
    install(sys.argv[1])
