"""Alerts: a worker that follows the log and notifies people and programs of events.

The rules are rows of `pgaudit_wf.alert_rule`; the state of each delivery is in
`pgaudit_wf.alert_delivery`. Needs the extra `pgaudit-wf[alerts]`.
"""

from pgaudit_wf.alerts.channels import (
    Channel,
    LogChannel,
    SmtpChannel,
    WebhookChannel,
)
from pgaudit_wf.alerts.message import Alert, Templates
from pgaudit_wf.alerts.settings import SmtpSettings, WebhookSettings, channels_from
from pgaudit_wf.alerts.worker import Worker
from pgaudit_wf.jobs.delivery import DeliveryError

__all__ = [
    "Alert",
    "Channel",
    "DeliveryError",
    "LogChannel",
    "SmtpChannel",
    "SmtpSettings",
    "Templates",
    "WebhookChannel",
    "WebhookSettings",
    "Worker",
    "channels_from",
]
