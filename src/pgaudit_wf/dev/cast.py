"""The people of the demo, and the workflow they edit."""

from __future__ import annotations

from typing import Any

from pgaudit_wf.context.values import RequestContext

ANA = RequestContext(
    actor_id="u_ana",
    actor_label="Ana Ferreira",
    org_id="o_acme",
    org_label="Acme",
    auth_method="session",
    ip="203.0.113.9",
    country="PT",
    user_agent="Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Firefox/145.0",
)
BO = RequestContext(
    actor_id="u_bo",
    actor_label="Bo Lindqvist",
    org_id="o_acme",
    org_label="Acme",
    auth_method="session",
    ip="2001:db8:7::b0",
    country="SE",
    user_agent="Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/142.0",
)
CHIDI = RequestContext(
    actor_id="u_chidi",
    actor_label="Chidi Okafor",
    org_id="o_globex",
    org_label="Globex",
    auth_method="session",
    ip="198.51.100.24",
    country="NG",
    user_agent="Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0",
)
CI = RequestContext(
    actor_id="integration:ci",
    actor_label="CI pipeline",
    org_id="o_acme",
    org_label="Acme",
    auth_method="api_key",
    api_key_id="k_ci",
    ip="192.0.2.77",
    country="DE",
    user_agent="acme-ci/2.4",
)
BILLING = RequestContext(
    actor_id="webhook:stripe",
    actor_label="Billing webhook",
    org_id="o_acme",
    org_label="Acme",
    auth_method="webhook",
    ip="192.0.2.200",
    country="IE",
)


NODES = [
    {
        "id": "n1",
        "type": "trigger",
        "position": {"x": 0, "y": 0},
        "data": {
            "label": "Every morning",
            "config": {"triggerType": "Schedule", "scheduleCron": "0 7 * * *"},
        },
    },
    {
        "id": "n2",
        "type": "action",
        "position": {"x": 0, "y": 160},
        "data": {
            "label": "Fetch new invoices",
            "config": {
                "actionType": "HTTP Request",
                "endpoint": "https://mail.acme.example/invoices",
                "httpMethod": "GET",
            },
        },
    },
]
EDGES = [{"id": "e1", "source": "n1", "target": "n2"}]
LEDGER: dict[str, Any] = {
    "id": "n3",
    "type": "action",
    "position": {"x": 0, "y": 320},
    "data": {
        "label": "Enter in ledger",
        "config": {
            "actionType": "HTTP Request",
            "endpoint": "https://ledger.acme.example/entries",
            "httpMethod": "POST",
            "body": '{"total": "{{@n2:Fetch new invoices.total}}"}',
        },
    },
}
TO_LEDGER = {"id": "e2", "source": "n2", "target": "n3"}
