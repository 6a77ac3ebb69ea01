"""Who is acting: the values that audit rows are attributed to, and the SQL that sets them.

Nothing here talks to a database. `pgaudit_wf.context.block` and the adapters in
`pgaudit_wf.integrations` send what this module writes.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeAlias, TypedDict, Unpack

from pgaudit_wf.errors import InvalidContextError

IDENTIFIER_LENGTH = 255
"""Longest identifier (of an actor, organization, client, API key or request), in characters."""

USER_AGENT_LENGTH = 1024
"""Longest user agent, in characters; clients choose its length, so the rest is cut off."""

_IDENTIFIERS = ("actor_id", "on_behalf_of", "client", "org_id", "api_key_id", "correlation_id")

ACTOR_TYPES = ("user", "service", "agent", "system")
"""What an actor can be."""

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """A secret with which the application proves that it set a context, not injected SQL.

    The database needs it too: `select pgaudit_wf.add_attestation_key(key_id, secret)`.

    Args:
        key_id: Its name in the database: 1 to 32 letters, digits, "_" or "-".
        secret: At least 32 bytes. Never shown.

    Raises:
        InvalidContextError: The name has other characters, or the secret is too short.
    """

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", self.key_id):
            raise InvalidContextError(
                'an attestation key\'s key_id must be 1 to 32 letters, digits, "_" or "-"'
            )
        if not isinstance(self.secret, bytes) or len(self.secret) < 32:
            raise InvalidContextError("an attestation key's secret must have at least 32 bytes")

    def sign(self, values: Iterable[str | None], bound_to: str) -> str:
        """Return `app.attestation` for a context: the key's name and an HMAC-SHA256 (RFC 2104).

        The signed message is "pgaudit_wf.attest.v3", followed for each of ATTESTED and for
        `bound_to` by its length in bytes, a colon and the value, or "-" if there is none, in UTF-8.

        Args:
            values: Those of the context that are named in ATTESTED, in that order.
            bound_to: What the signature is good for: the transaction, as READ_TRANSACTION reads
                it, so that another session of the same login cannot use it too.
        """
        message = b"pgaudit_wf.attest.v3"
        for value in (*values, bound_to):
            data = value.encode() if value else b""
            message += b"%d:%b" % (len(data), data) if data else b"-"
        return f"{self.key_id}:{hmac.new(self.secret, message, hashlib.sha256).hexdigest()}"


class ContextFields(TypedDict, total=False):
    """The fields of `RequestContext` as keyword arguments."""

    actor_id: str | None
    actor_label: str | None
    actor_type: str | None
    on_behalf_of: str | None
    client: str | None
    org_id: str | None
    org_label: str | None
    auth_method: str | None
    api_key_id: str | None
    ip: str | IpAddress | None
    country: str | None
    user_agent: str | None
    correlation_id: str | None
    reason: str | None
    attest: AttestationKey | None


def _check_key(key: object) -> None:
    if key is not None and not isinstance(key, AttestationKey):
        raise InvalidContextError(f"attest must be an AttestationKey, not {type(key).__name__}")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who acts, for which organization, and from where. Every field is optional.

    An empty string means the same as None: the database cannot distinguish them. Text that
    PostgreSQL cannot store (NUL, lone surrogates) is refused.

    Args:
        actor_id: Identifier of the user or integration that really acts; at most 255 characters.
        actor_label: Its name at this moment, kept in the log for later readers.
        actor_type: What it is: "user", "service", "agent" or "system".
        on_behalf_of: Identifier of the person or customer in whose name it acts, if in another's:
            a support engineer for a customer, an agent for a person; at most 255 characters.
        client: The program or agent that is used, with its version or run; at most 255 characters.
        org_id: Identifier of the organization acted for; at most 255 characters.
        org_label: Its name at this moment.
        auth_method: How the actor authenticated, for example "session" or "api_key".
        api_key_id: Identifier of the API key used, never the key; at most 255 characters.
        ip: The client's address, as text or from `ipaddress`. Kept in canonical form: without an
            IPv6 zone, which is meaningful on one machine only, and an IPv4-mapped address as the
            IPv4 address.
        country: The country of the address, for example as a two-letter code.
        user_agent: The client's own description; cut off after 1,024 characters.
        correlation_id: Ties everything that one request did together; at most 255 characters.
        reason: Why the change is made; rules may use it to choose an action.
        attest: Signs actor (with type, in whose name and client), organization and correlation
            id, so that events say `attested`.

    Raises:
        InvalidContextError: A value has the wrong type, is too long, or is not a valid address or
            text.
    """

    actor_id: str | None = None
    actor_label: str | None = None
    actor_type: str | None = None
    on_behalf_of: str | None = None
    client: str | None = None
    org_id: str | None = None
    org_label: str | None = None
    auth_method: str | None = None
    api_key_id: str | None = None
    ip: str | IpAddress | None = None
    country: str | None = None
    user_agent: str | None = None
    correlation_id: str | None = None
    reason: str | None = None
    attest: AttestationKey | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_key(self.attest)
        for name in FIELDS:
            value = getattr(self, name)
            if value is not None:
                # The only way to set an attribute of a frozen dataclass.
                object.__setattr__(self, name, _canonical(name, value))

    def merge(
        self, other: RequestContext | None = None, /, **changes: Unpack[ContextFields]
    ) -> RequestContext:
        """Return this context with another one laid over it, and single fields over both.

        Args:
            other: Its fields that are None leave this context's values as they are.
            **changes: Fields of `RequestContext`; here None clears the field.

        Raises:
            TypeError: A name is not a field, or `other` is not a context.
            InvalidContextError: As for the class.
        """
        check_names(changes)
        if other is not None and not isinstance(other, RequestContext):
            raise TypeError(
                f"a context must be a RequestContext, not {type(other).__name__}; "
                "pass single fields as keyword arguments"
            )
        if not changes and (other is None or self is EMPTY):
            return other or self
        if other is None and self is EMPTY:
            return RequestContext(**changes)
        # Every request passes here, so values that were checked before are not checked again.
        merged = object.__new__(RequestContext)
        for name in FIELDS:
            value: Any
            if name in changes:
                value = changes[name]  # type: ignore[literal-required]
                value = None if value is None else _canonical(name, value)
            else:
                value = getattr(other, name, None)
                if value is None:
                    value = getattr(self, name)
            object.__setattr__(merged, name, value)
        key = changes["attest"] if "attest" in changes else getattr(other, "attest", None)
        _check_key(key)
        object.__setattr__(merged, "attest", key if "attest" in changes else key or self.attest)
        return merged

    def setting(self, name: str, token: str | None = None) -> str | None:
        """Return the value of the setting `app.<name>` in this context; None if there is none.

        Args:
            name: The setting.
            token: Names the transaction; without it, there is no attestation.
        """
        if name == "context":
            return None
        if name != "attestation":
            value: str | None = getattr(self, name)
            return value
        if self.attest is None or token is None:
            return None
        return self.attest.sign((getattr(self, signed) for signed in ATTESTED), token)

    def as_dict(self) -> dict[str, str]:
        """Return the fields that have a value."""
        values = ((name, getattr(self, name)) for name in FIELDS)
        return {name: value for name, value in values if value is not None}


FIELDS: tuple[str, ...] = tuple(
    item.name for item in fields(RequestContext) if item.name != "attest"
)
"""The fields of a context that are settings in the database, `app.<name>`."""

SETTINGS: tuple[str, ...] = (*FIELDS, "attestation", "context")
"""The settings of a transaction, each `app.<name>`. `context`, which could hold all of the others,
is kept empty: sent instead of them, it saves less than it costs the first event to unpack it."""

ATTESTED = ("actor_id", "actor_type", "on_behalf_of", "client", "org_id", "correlation_id")
"""The fields that an attestation signs."""

# In full: by functions of the same names and a search_path that it left in a pooled session,
# injected SQL would otherwise have any other transaction signed for.
READ_TRANSACTION = (
    "select pg_catalog.concat(pg_catalog.pg_backend_pid(), '.', (extract(epoch from"
    " pg_catalog.now()) operator(pg_catalog.*) 1000000)::pg_catalog.int8)"
)
"""Reads what an attestation is bound to: the backend, and when its transaction began (µs)."""

_NAMES = frozenset((*FIELDS, "attest"))

EMPTY = RequestContext()


def check_names(names: Mapping[str, Any]) -> None:
    """Refuse names that are not fields of a context.

    Raises:
        TypeError: Says which names are wrong and which are valid.
    """
    if not names.keys() <= _NAMES:
        unknown = sorted(names.keys() - _NAMES)
        raise TypeError(
            f"unknown context field: {', '.join(unknown)};"
            f" valid fields are {', '.join(FIELDS)}, attest"
        )


def _canonical(name: str, value: object) -> str | None:
    if name == "ip" and isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return _canonical_ip(value)
    if not isinstance(value, str):
        raise InvalidContextError(
            f"{name} must be a str or None, not {type(value).__name__}; convert it, "
            f"for example with str(...)"
        )
    if value == "":
        return None
    if "\0" in value:
        raise InvalidContextError(f"{name} contains a NUL character, which PostgreSQL cannot store")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidContextError(
                f"{name} contains a lone surrogate at position {error.start}; it is not valid text"
            ) from None
    if name == "ip":
        return _canonical_ip(value)
    if name == "user_agent":
        return value[:USER_AGENT_LENGTH]
    if name == "actor_type" and value not in ACTOR_TYPES:
        raise InvalidContextError(f"actor_type {value!r} is not one of {', '.join(ACTOR_TYPES)}")
    if name in _IDENTIFIERS and len(value) > IDENTIFIER_LENGTH:
        raise InvalidContextError(
            f"{name} has {len(value)} characters; at most {IDENTIFIER_LENGTH} are allowed"
        )
    return value


@lru_cache(maxsize=4096)
def _canonical_ip(value: str | IpAddress) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise InvalidContextError(
            f"ip {value!r} is not an IPv4 or IPv6 address; pass the address alone, "
            f"without a port, network length or host name"
        ) from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        # PostgreSQL's inet type has no zones.
        return str(ipaddress.IPv6Address(address.packed))
    return str(address)


def set_local(
    context: RequestContext, quote: Callable[[str], str], token: str | None = None
) -> list[str]:
    """Write the statements that make a context the transaction's own.

    All fields are set, those without a value to the empty string, so that nothing an earlier user
    of the session left behind can be taken for this request's.

    Args:
        context: The context to set.
        quote: Turns a text into a SQL literal for the connection at hand.
        token: The transaction, as READ_TRANSACTION reads it, where the context is to be attested.
    """
    return _set_local(SETTINGS, context, quote, token)


def set_local_changes(
    before: RequestContext,
    after: RequestContext,
    quote: Callable[[str], str],
    token: str | None = None,
) -> list[str]:
    """Write the statements that lead from one context of a transaction to another."""
    changed = [
        name for name in SETTINGS if before.setting(name, token) != after.setting(name, token)
    ]
    return _set_local(changed, after, quote, token)


def _set_local(
    names: tuple[str, ...] | list[str],
    context: RequestContext,
    quote: Callable[[str], str],
    token: str | None,
) -> list[str]:
    # set_config() takes parameters, but on Citus only SET LOCAL reaches the workers, and it is
    # cheaper too.
    values = ((name, context.setting(name, token)) for name in names)
    return [
        f"set local app.{name} = {quote(value)}" if value else f"set local app.{name} = ''"
        for name, value in values
    ]


_Source: TypeAlias = RequestContext | Callable[[], RequestContext]

_bound: ContextVar[_Source] = ContextVar("pgaudit_wf_context", default=EMPTY)


def current_context() -> RequestContext:
    """Return the context bound by the innermost `bind` of this thread or task; empty if none."""
    source = _bound.get()
    return source if isinstance(source, RequestContext) else source()


@contextmanager
def bind(ctx: _Source | None = None, /, **changes: Unpack[ContextFields]) -> Iterator[None]:
    """Bind a context to this thread or asyncio task, for `request_context` and the adapters.

    A context bound inside another `bind` is merged over it, see `RequestContext.merge`. Tasks
    started inside inherit it; other tasks and threads do not see it.

    Args:
        ctx: A context, or a function that returns one whenever the context is needed, for values
            that are not known yet when the block begins.
        **changes: Fields of `RequestContext`; None clears the value that an outer block bound.

    Raises:
        TypeError: A name is not a field, or `ctx` is neither a context nor a function.
        InvalidContextError: As for `RequestContext`.
    """
    outer = _bound.get()
    # A function's result can only be checked later; the rest is checked here.
    EMPTY.merge(None if callable(ctx) else ctx, **changes)
    source: _Source
    if isinstance(outer, RequestContext) and (ctx is None or isinstance(ctx, RequestContext)):
        source = outer.merge(ctx, **changes)
    else:

        def source() -> RequestContext:
            base = outer if isinstance(outer, RequestContext) else outer()
            over = ctx() if callable(ctx) else ctx
            return base.merge(over, **changes)

    token = _bound.set(source)
    try:
        yield
    finally:
        _bound.reset(token)
