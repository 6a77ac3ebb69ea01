"""Templates, and the filters that all pages share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pgaudit_wf.trail.changes import pretty
from pgaudit_wf.trail.sentences import sentence, subject, tone
from pgaudit_wf.web.paths import link, local_path, segment


@dataclass(frozen=True, slots=True)
class Settings:
    """The host's settings for the pages."""

    title: str
    sign_in_url: str | None


def relative(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago a moment was, in words."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 45:
        return "just now"
    for name, size, limit in (
        ("minute", 60, 60), ("hour", 3600, 24), ("day", 86400, 30), ("month", 2_629_746, 12),
        ("year", 31_556_952, 10_000),
    ):  # fmt: skip
        count = max(round(seconds / size), 1)
        if count < limit:
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return f"{moment:%Y}"


def moment(value: datetime) -> str:
    """Return a moment to the second, in UTC."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine_time(value: datetime) -> str:
    """Return a moment in the format of the datetime attribute."""
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


_NAME = 255


def brief(text: str) -> str:
    """Return a name up to the length that the trail has for one."""
    return text if len(text) <= _NAME else f"{text[:_NAME]}…"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    brief=brief,
    combine=lambda values, **more: {**values, **more},
    relative=relative,
    moment=moment,
    machine_time=machine_time,
    pretty=pretty,
    segment=segment,
)
_ENVIRONMENT.globals.update(sentence=sentence, subject=subject, tone=tone)


def render(
    request: Request,
    template: str,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,  # noqa: ANN401 - any value for the template
) -> HTMLResponse:
    """Render a page."""
    text = _ENVIRONMENT.get_template(template).render(
        values,
        link=partial(link, request),
        here=local_path(request),
        settings=request.scope["pgaudit_wf.settings"],
        principal=request.scope.get("pgaudit_wf.principal"),
        history_only=request.scope.get("pgaudit_wf.history_only", False),
    )
    return HTMLResponse(text, status_code, headers)


def error_page(
    request: Request, status: int, title: str, detail: str, headers: Mapping[str, str] | None
) -> Response:
    """Return the error page."""
    return render(request, "error.html", status, headers, title=title, detail=detail, status=status)
