"""The log in the admin: the same sentences and differences as the pages have, for reading only."""

from __future__ import annotations

from typing import Any, cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from pgaudit_wf.integrations.django.models import Event
from pgaudit_wf.trail.changes import changed_fields, pretty
from pgaudit_wf.trail.sentences import subject

_COUNTED = 10_000


class _BoundedPaginator(Paginator):  # type: ignore[type-arg]  # of stubs only
    """Counts no further than people turn pages: a log has millions of events."""

    @cached_property
    def count(self) -> int:
        events: QuerySet[Event] = cast("Any", self.object_list)
        return events[:_COUNTED].count()


@admin.register(Event)
class EventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # of stubs only
    """Lists events and shows one."""

    actions = None
    list_display = ("occurred_at", "what_happened", "concerning", "outcome", "ip")
    list_filter = ("outcome",)
    paginator = _BoundedPaginator
    # Each exact, and with an index of its own.
    search_fields = ("action__exact", "actor_id__exact", "correlation_id__exact")
    search_help_text = "An action (account.created), the id of an actor, or of a request"
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Event]:
        """Return what the reader role may see; a list does not load what was changed."""
        events = super().get_queryset(request)
        match = request.resolver_match
        return events.defer("diff") if match and "object_id" not in match.kwargs else events

    def get_fields(self, request: HttpRequest, obj: Event | None = None) -> Any:  # noqa: ANN401 - wide in Django
        """Return what is shown of an event."""
        return [
            "what_happened", "occurred_at", "concerning", "its_history", "changes", "action",
            "outcome", "captured", "attested", "actor_id", "actor_type", "on_behalf_of",
            "org_id", "org_label", "auth_method", "api_key_id", "client", "ip", "country",
            "user_agent", "correlation_id", "db_user", "application_name", "more",
        ]  # fmt: skip

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        """Refuse."""
        return False

    @admin.display(description="what happened", ordering="action")
    def what_happened(self, event: Event) -> str:
        """Return the event as a sentence."""
        entry = event.entry()
        return " ".join(filter(None, [str(event), subject(entry, {})]))

    @admin.display(description="concerning")
    def concerning(self, event: Event) -> str:
        """Return type and id of the resource."""
        return f"{event.resource_type or ''} {event.resource_id or ''}".strip()

    @admin.display(description="its history")
    def its_history(self, event: Event) -> str | SafeString:
        """Return a link to all events of the resource."""
        if event.resource_type is None or event.resource_id is None:
            return self.get_empty_value_display()
        same = {"resource_type": event.resource_type, "resource_id": event.resource_id}
        here = reverse(f"{self.admin_site.name}:pgaudit_wf_event_changelist")
        return format_html('<a href="{}?{}">all of its events</a>', here, urlencode(same))

    @admin.display(description="what changed")
    def changes(self, event: Event) -> str | SafeString:
        """Return field, before and after, as a table."""
        page = changed_fields(event.entry().diff)
        if not page.rows:
            return self.get_empty_value_display()
        rows = format_html_join(
            "",
            '<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>',
            (
                (
                    row.name,
                    "" if row.before is None else format_html("<del>{}</del>", row.before),
                    "" if row.after is None else format_html("<ins>{}</ins>", row.after),
                )
                for row in page.rows
            ),
        )
        cut = (
            f"{page.last} of {page.total} rows; the export has all"
            if page.last < page.total
            else ""
        )
        return format_html(
            '<table><thead><tr><th scope="col">Field</th><th scope="col">Before</th>'
            '<th scope="col">After</th></tr></thead><tbody>{}</tbody></table>{}',
            rows,
            cut,
        )

    @admin.display(description="metadata")
    def more(self, event: Event) -> str:
        """Return what else was recorded."""
        return pretty(event.entry().metadata)
