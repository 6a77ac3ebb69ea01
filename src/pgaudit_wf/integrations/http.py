"""Shared by the web adapters: which header values can be trusted, and how far."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from uuid import uuid4

from pgaudit_wf.context.values import IpAddress

UNIX = "unix"
"""Stands for a peer without an address, as on a Unix socket, among trusted proxies."""

# Goes back into a response header and into logs, so only harmless characters are allowed.
_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class TrustedProxies:
    """The proxies whose statements about the client's address are trusted.

    Args:
        networks: Addresses and networks in CIDR notation, and "unix" for peers that connect through
            a Unix socket.

    Raises:
        ValueError: An entry is neither.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        if isinstance(networks, str):
            raise ValueError("trusted proxies must be a list of networks, not one string")
        entries = list(networks)
        self._unix = UNIX in entries
        self._networks = [ipaddress.ip_network(entry) for entry in entries if entry != UNIX]

    def trusts(self, address: IpAddress | None) -> bool:
        """Return whether a peer is one of the proxies; None is a peer without an address."""
        if address is None:
            return self._unix
        return any(
            address.version == network.version and address in network for network in self._networks
        )

    def trusts_peer(self, peer: str | None) -> bool:
        """Return whether a connection comes from one of the proxies."""
        return self.trusts(parse_address(peer))

    def client_ip(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """Return the client's address: the last one in the chain that no trusted proxy has.

        Args:
            peer: The address that the connection comes from, if it has one.
            forwarded_for: The values of all X-Forwarded-For headers, in order.
        """
        address = parse_address(peer)
        if not self.trusts(address):
            return str(address) if address else None
        for entry in reversed(",".join(forwarded_for).split(",")):
            hop = parse_address(entry)
            # No trusted proxy vouches for entries to the left of an unreadable one.
            if hop is None:
                break
            address = hop
            if not self.trusts(hop):
                break
        return str(address) if address else None


def parse_address(text: str | None) -> IpAddress | None:
    """Read an address as proxies write it: perhaps quoted, in brackets, or with a port."""
    candidate = (text or "").strip().strip('"')
    if candidate.startswith("["):
        candidate = candidate[1:].partition("]")[0]
    elif candidate.count(":") == 1:
        candidate = candidate.partition(":")[0]
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(address.packed)
    return address


def correlation_id(request_id: str | None, traceparent: str | None) -> str:
    """Return the X-Request-ID, else the trace id of a W3C traceparent, else a new identifier.

    An X-Request-ID is taken if it is made of 1 to 128 ASCII letters, digits and `._:/+=@-`.
    """
    if request_id and _CORRELATION_ID.fullmatch(request_id):
        return request_id
    trace = _TRACEPARENT.fullmatch(traceparent or "")
    if trace and trace[1].strip("0"):
        return trace[1]
    return uuid4().hex


def header_text(value: str | None) -> str | None:
    """Make a header value that the client chose fit for a context, instead of refusing it."""
    return value and value.replace("\0", "").encode(errors="replace").decode()
