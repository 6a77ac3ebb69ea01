"""Paths and links, relative to where the host has mounted the app."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from starlette.requests import HTTPConnection

_FOR_PROGRAMS = ("/api/", "/healthz", "/openapi.json", "/checkpoint", "/tile/")


def base(request: HTTPConnection) -> str:
    """Return the prefix that the app is mounted under, without a trailing slash."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def local_path(request: HTTPConnection) -> str:
    """Return the request's path inside the app."""
    path = str(request.scope["path"])
    prefix = base(request)
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def is_for_programs(request: HTTPConnection) -> bool:
    """Return whether a path belongs to the API rather than to the pages."""
    return local_path(request).startswith(_FOR_PROGRAMS)


def link(request: HTTPConnection, path: str, **query: object) -> str:
    """Return a link to a path of the app; query parameters that are None or "" are omitted."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{base(request)}{path}{'?' + urlencode(given, doseq=True) if given else ''}"


def segment(text: str) -> str:
    """Return a text as one segment of a path."""
    return quote(text, safe="")
