"""The app: in `settings.INSTALLED_APPS` as "pgaudit_wf.integrations.django"."""

from __future__ import annotations

from django.apps import AppConfig

from pgaudit_wf.integrations.django.context import install


class AuditConfig(AppConfig):
    """Models, admin and command; its label is "pgaudit_wf"."""

    name = "pgaudit_wf.integrations.django"
    label = "pgaudit_wf"
    verbose_name = "Audit trail"

    def ready(self) -> None:
        """Give every connection the context that is bound."""
        install()
