"""Pages with a form that changes something, and what such a form has to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pgaudit_wf.web import csrf
from pgaudit_wf.web.problems import ProblemError
from pgaudit_wf.web.rendering import render

__all__ = ["reason_of", "render_form"]


def render_form(request: Request, template: str, **values: Any) -> Response:  # noqa: ANN401
    """Render a page whose form `csrf.check_form` recognizes as ours."""
    token = csrf.token_of(request)
    answer = render(request, template, field=csrf.FIELD, token=token, **values)
    csrf.keep_token(request, answer, token)
    return answer


def reason_of(sent: Mapping[str, str], doing: str) -> str:
    """Return why something is done, as a form says it.

    Raises:
        ProblemError: It does not say; `doing` completes the sentence "Say why …".
    """
    reason = sent.get("reason", "").strip()
    if not reason:
        raise ProblemError(422, f"Say why {doing}.")
    return reason
