"""Django: who is asking, the log as models, an admin to read it, migration operations, the jobs.

In `settings.INSTALLED_APPS`, and the middleware as the first of `settings.MIDDLEWARE`, so that what
the others write is attributed too::

    "pgaudit_wf.integrations.django",
    "pgaudit_wf.integrations.django.AuditContextMiddleware",

The middleware works without the app. docs/how-to/django.md is the manual.

Settings, all optional:

PGAUDIT_WF_TRUSTED_PROXIES
    Networks in CIDR notation whose X-Forwarded-For is believed; "unix" for a Unix socket.
PGAUDIT_WF_COUNTRY_HEADER
    A header in which a trusted proxy says what country the client is in, as "CF-IPCountry".
PGAUDIT_WF_PRINCIPAL
    Dotted path of a function that takes the request and returns who is acting, as a RequestContext,
    a mapping of its fields, or None. Default: `principal`, which looks at `request.user`.
PGAUDIT_WF_ATTRIBUTE_SELECTS
    True if queries outside of `atomic` call functions that write, see `install`. Default: False.
PGAUDIT_WF_READER_ROLE
    The role that reads the log and the history for the models `Event` and `Version`, so that
    row-level security holds whatever the login may do. None reads with the login's own rights: for
    a site without organizations. Default: "pgaudit_wf_reader".
"""

from __future__ import annotations

from pgaudit_wf.integrations.django.context import AuditContextMiddleware, install, principal

__all__ = ["AuditContextMiddleware", "install", "principal"]
