"""Pages and JSON API for the owners and admins of an organization: an ASGI app to mount.

    from pgaudit_wf.web import Principal, create_app

    def principal(request):
        return Principal(request.user.id, request.user.org_id, request.user.role)

    app.mount("/audit", create_app(pool, principal))

The package's extra "web" brings what it needs; docs/how-to/web.md is the manual.
"""

from __future__ import annotations

from pgaudit_wf.errors import MissingExtraError

try:
    from pgaudit_wf.web.app import CONTENT_SECURITY_POLICY, create_app
    from pgaudit_wf.web.leaks import create_leak_intake
    from pgaudit_wf.web.principal import Principal
except ImportError as error:
    raise MissingExtraError(
        f"the pages need a package that is not installed: {error.name};"
        ' install pgaudit-wf with its extra: pip install "pgaudit-wf[web]"'
    ) from error

__all__ = ["CONTENT_SECURITY_POLICY", "Principal", "create_app", "create_leak_intake"]
