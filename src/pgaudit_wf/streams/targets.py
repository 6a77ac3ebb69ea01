"""Where events go: HTTPS collectors, syslog over TLS, files and object storage."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from urllib.parse import urlsplit

from pgaudit_wf.archive.files import is_local, open_filesystem
from pgaudit_wf.errors import ArchiveError, MissingExtraError, StreamSettingsError
from pgaudit_wf.exact_json import dumps
from pgaudit_wf.export.trail import CSV_COLUMNS
from pgaudit_wf.jobs.delivery import Deadline, DeliveryError, post, sign, signing_key
from pgaudit_wf.streams.formats import Item, syslog_message

_PREFIX = "PGAUDIT_WF_STREAM_"
# Of a body: Datadog takes 5 MB and 1,000 events, others more.
_MOST_BYTES, _MOST_ITEMS = 2_000_000, 500
# Answers that are about what was sent, not about who sent it or whether the receiver is well.
_REFUSALS = (400, 413, 415, 422)
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")


@dataclass(frozen=True, slots=True)
class Destination:
    """What a target has to know of a row of `pgaudit_wf.stream_destination`."""

    name: str
    kind: str
    url: str
    format: str
    secret: str | None
    settings: Mapping[str, Any]

    def number(self, name: str, default: float) -> float:
        """Return a setting that is a number of at least 0.

        Raises:
            StreamSettingsError: It is not.
        """
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400:
            raise StreamSettingsError(f"setting {name} of {self.name} is not from 0 to 86400")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """Return a setting that is a text."""
        return str(self.settings.get(name, default))


class Target(Protocol):
    """A receiver; used by one thread at a time."""

    pause: float
    """Seconds to wait for more events once there are no more."""

    def chunks(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Divide events into what is sent, and accepted, as one."""

    def send(self, items: Sequence[Item]) -> None:
        """Send events; raise `DeliveryError` unless all were accepted.

        It is `final` if the receiver refused what the events are, and would again.
        """


def target_for(
    destination: Destination, environment: Mapping[str, str], timeout: float = 30.0
) -> Target:
    """Return the target of a destination, set up from the environment.

    Args:
        destination: The destination.
        environment: Variables as docs/how-to/stream.md lists them, such as `os.environ`.
        timeout: Seconds that a request or a connection may take.

    Raises:
        StreamSettingsError: The environment does not allow it, or lacks the secret.
    """
    _check_host(destination, environment)
    if destination.kind == "files":
        return _Files(destination, environment)
    context = _tls_context(environment)
    if destination.kind == "syslog":
        return _Syslog(destination, environment, context, timeout)
    return _Http(destination, _secret(destination, environment), context, timeout)


def _check_host(destination: Destination, environment: Mapping[str, str]) -> None:
    # Whoever owns the schema names URLs, and need not be who runs the worker and has the secrets.
    allowed = environment.get(f"{_PREFIX}HOSTS", "").split()
    try:
        host = urlsplit(destination.url).hostname or ""
    except ValueError:
        raise StreamSettingsError(f"the URL of {destination.name} cannot be read") from None
    if allowed and host not in allowed and destination.url.partition(":")[0] != "file":
        raise StreamSettingsError(
            f"{_PREFIX}HOSTS does not list the host of destination {destination.name}"
        )


def _variable(destination: Destination) -> str:
    return f"{_PREFIX}SECRET_{(destination.secret or '').upper()}"


def _secret(destination: Destination, environment: Mapping[str, str]) -> str | None:
    if destination.secret is None:
        return None
    name = _variable(destination)
    if path := environment.get(f"{name}_FILE"):
        try:
            secret = Path(path).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise StreamSettingsError(
                f"the file that {name}_FILE names cannot be read: {type(error).__name__}"
            ) from error
    else:
        secret = environment.get(name, "")
    if not re.fullmatch(r"[!-~]+( [!-~]+)*", secret):
        raise StreamSettingsError(f"set {name} or {name}_FILE to the secret, one line of ASCII")
    return secret


def _tls_context(environment: Mapping[str, str]) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=environment.get(f"{_PREFIX}CA_FILE"))
    except OSError as error:
        raise StreamSettingsError(f"{_PREFIX}CA_FILE names no file of certificates") from error


class _Http:
    """Posts to Splunk's HTTP Event Collector, Datadog's log intake, or a webhook."""

    pause = 0.0

    def __init__(
        self, destination: Destination, secret: str | None, context: ssl.SSLContext, timeout: float
    ) -> None:
        self._to = destination
        self._secret = secret
        self._context = context
        self._timeout = timeout
        self._url = destination.url
        if destination.kind != "webhook" and secret is None:
            raise StreamSettingsError(f"destination {destination.name} needs a secret")
        if urlsplit(destination.url).path in ("", "/"):
            default = {"splunk": "/services/collector/event", "datadog": "/api/v2/logs"}
            self._url = self._url.rstrip("/") + default.get(destination.kind, "/")
        self._keys: tuple[bytes, ...] = ()
        if secret is not None and secret.startswith("whsec_"):
            try:
                self._keys = tuple(map(signing_key, secret.split()))
            except ValueError as error:
                raise StreamSettingsError(f"{_variable(destination)}: {error}") from None

    def chunks(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Divide events into bodies of bounded size."""
        chunk: list[Item] = []
        size = 0
        for item in items:
            length = len(item.text)
            if chunk and (size + length > _MOST_BYTES or len(chunk) == _MOST_ITEMS):
                yield chunk
                chunk, size = [], 0
            chunk.append(item)
            size += length
        if chunk:
            yield chunk

    def send(self, items: Sequence[Item]) -> None:
        """Post events as one request."""
        body, headers = getattr(self, f"_{self._to.kind}")(items)
        headers["user-agent"] = "pgaudit-wf"
        status, retry_after = post(self._url, body, headers, self._timeout, self._context)
        if not 200 <= status < 300:
            raise DeliveryError(
                f"receiver answered {status}", final=status in _REFUSALS, retry_after=retry_after
            )

    def _event(self, item: Item) -> str:
        return json.dumps(item.text) if self._to.format == "cef" else item.text

    def _splunk(self, items: Sequence[Item]) -> tuple[bytes, dict[str, str]]:
        about = {
            "source": self._to.text("source", "pgaudit_wf"),
            "sourcetype": self._to.text("sourcetype", f"pgaudit_wf:{self._to.format}"),
            **({"index": self._to.text("index", "")} if "index" in self._to.settings else {}),
        }
        lines = []
        for item in items:
            fields = {"event_uid": item.uid}
            time_ = round(item.entry.occurred_at.timestamp(), 6)
            # The event is text already, and would lose digits if it were parsed again.
            head = dumps({**about, "time": time_, "fields": fields})[:-1]
            lines.append(f'{head}, "event": {self._event(item)}}}\n')
        return "".join(lines).encode("utf-8", "replace"), {
            "authorization": f"Splunk {self._secret}",
            "content-type": "application/json",
        }

    def _datadog(self, items: Sequence[Item]) -> tuple[bytes, dict[str, str]]:
        body = [
            {
                "ddsource": self._to.text("source", "pgaudit_wf"),
                "service": self._to.text("service", "pgaudit_wf"),
                "ddtags": self._to.text("tags", ""),
                "timestamp": item.entry.occurred_at.astimezone(UTC).isoformat(),
                "event_uid": item.uid,
                "message": item.text,
            }
            for item in items
        ]
        return json.dumps(body).encode(), {
            "dd-api-key": self._secret or "",
            "content-type": "application/json",
        }

    def _webhook(self, items: Sequence[Item]) -> tuple[bytes, dict[str, str]]:
        body = "".join(f"{item.text}\n" for item in items).encode("utf-8", "replace")
        kind = "text/plain; charset=utf-8" if self._to.format == "cef" else "application/x-ndjson"
        headers = {}
        if self._keys:
            number = hashlib.sha256("".join(item.uid for item in items).encode()).hexdigest()[:32]
            headers = sign(self._keys, f"stream_{number}", int(time.time()), body)
        elif self._secret:
            headers["authorization"] = f"Bearer {self._secret}"
        return body, {**headers, "content-type": kind}


class _Syslog:
    """Sends syslog messages over TLS (RFC 5424, RFC 5425), a connection for each chunk.

    The protocol has no acknowledgment. What comes closest: we close our side and wait for the
    receiver to close its own, which it does once it has read everything before (RFC 5425, 4.4).
    """

    pause = 0.0

    def __init__(
        self,
        destination: Destination,
        environment: Mapping[str, str],
        context: ssl.SSLContext,
        timeout: float,
    ) -> None:
        parts = urlsplit(destination.url)
        try:
            self._address = (parts.hostname or "", parts.port or 6514)
        except ValueError:
            raise StreamSettingsError(f"the port of {destination.name} is out of range") from None
        self._context = context
        self._timeout = timeout
        self._lenient = destination.settings.get("close_notify", True) is False
        host = re.sub(r"[^!-~]", "-", destination.text("hostname", socket.gethostname()))
        self._host = host[:255] or "-"
        if destination.secret is not None:
            name = f"{_variable(destination)}_FILE"
            try:
                context.load_cert_chain(environment.get(name, ""))
            except OSError as error:
                raise StreamSettingsError(
                    f"{name} must name a file with our certificate and its key"
                ) from error

    chunks = _Http.chunks

    def send(self, items: Sequence[Item]) -> None:
        """Send events, each in a frame, and wait until the receiver has read them."""
        messages = (syslog_message(item, self._host) for item in items)
        frames = b"".join(b"%d %s" % (len(message), message) for message in messages)
        deadline = Deadline(self._timeout)
        try:
            with (
                socket.create_connection(self._address, deadline.left()) as plain,
                deadline.over(SimpleNamespace(sock=plain)),
                self._context.wrap_socket(plain, server_hostname=self._address[0]) as secure,
                deadline.over(SimpleNamespace(sock=secure)),
            ):
                secure.sendall(frames)
                self._close(secure)
        except (OSError, UnicodeError) as error:
            late = deadline.passed or isinstance(error, TimeoutError)
            kind = "took too long" if late else type(error).__name__
            raise DeliveryError(f"receiver: {kind}") from error

    def _close(self, secure: ssl.SSLSocket) -> None:
        try:
            secure.unwrap()
        except ssl.SSLEOFError:
            if not self._lenient:
                raise


class _Files:
    """Writes files of a time slice each, in directories by date and hour of their events.

    A file is named after its first event, so that a repeat replaces it, with at least as much.
    """

    def __init__(self, destination: Destination, environment: Mapping[str, str]) -> None:
        self.pause = destination.number("slice_seconds", 60)
        self._to = destination
        scheme = destination.url.partition(":")[0]
        if scheme != "file" and scheme not in _STORES:
            raise StreamSettingsError(
                f"destination {destination.name} is neither a file:// URL nor one of"
                f" {', '.join(_STORES)}"
            )
        try:
            self._filesystem, self._root = open_filesystem(destination.url)
        except (ArchiveError, MissingExtraError) as error:
            raise StreamSettingsError(str(error)) from error
        allowed = environment.get(f"{_PREFIX}DIRECTORY")
        # The path as it will be used, whatever the URL looks like.
        if scheme == "file" and not (
            allowed and Path(self._root).resolve().is_relative_to(Path(allowed).resolve())
        ):
            raise StreamSettingsError(
                f"destination {destination.name} is not under {_PREFIX}DIRECTORY"
            )

    def chunks(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Leave a batch as it is: it has a bounded size."""
        if items:
            yield items

    def send(self, items: Sequence[Item]) -> None:
        """Write events to the files of their hours."""
        try:
            for hour, group in groupby(items, self._hour):
                self._write(hour, list(group))
        except Exception as error:  # A store's own package has errors of its own.
            raise DeliveryError(f"storage: {type(error).__name__}") from error

    @staticmethod
    def _hour(item: Item) -> str:
        return item.entry.occurred_at.astimezone(UTC).strftime("date=%Y-%m-%d/hour=%H")

    def _write(self, hour: str, items: Sequence[Item]) -> None:
        first = items[0]
        stamp = first.entry.occurred_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        suffix = {"parquet": "parquet", "cef": "cef"}.get(self._to.format, "ndjson")
        folder = f"{self._root.rstrip('/')}/{hour}"
        path = f"{folder}/{self._to.name}-{stamp}-{first.uid}.{suffix}"
        local = is_local(self._filesystem)
        if local:
            self._filesystem.makedirs(folder, exist_ok=True)
        written = f"{folder}/.{path.rpartition('/')[2]}.tmp" if local else path
        with self._filesystem.open(written, "wb") as file:
            if self._to.format == "parquet":
                _write_parquet(file, items)
            else:
                file.write("".join(f"{item.text}\n" for item in items).encode("utf-8", "replace"))
            if local:
                file.flush()
                os.fsync(file.fileno())
        if local:
            Path(written).replace(path)


def _write_parquet(file: Any, items: Sequence[Item]) -> None:  # noqa: ANN401 - fsspec's
    import pyarrow as pa
    import pyarrow.parquet

    kinds = {"id": pa.int64(), "tx_id": pa.int64(), "captured": pa.bool_(), "attested": pa.bool_(),
             "occurred_at": pa.timestamp("us", "UTC")}  # fmt: skip
    schema = pa.schema(
        [("event_uid", pa.string())]
        + [(name, kinds.get(name, pa.string())) for name in CSV_COLUMNS]
    )
    columns = [[item.uid for item in items]]
    for name in CSV_COLUMNS:
        values = [getattr(item.entry, name) for item in items]
        if name in ("diff", "metadata"):
            values = [None if value is None else dumps(value) for value in values]
        columns.append(values)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    pa.parquet.write_table(pa.table(arrays, schema=schema), file, compression="zstd")
