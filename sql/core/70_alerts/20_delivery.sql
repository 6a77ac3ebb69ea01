-- Deliveries: one event for one recipient over one channel, and what became of it.

create table pgaudit_wf.alert_delivery (
    id bigint generated always as identity primary key,
    event_tx_id bigint not null,
    event_id bigint not null,
    event_occurred_at timestamptz not null,
    action text not null,
    rule_id bigint references pgaudit_wf.alert_rule on delete set null,
    channel text not null,
    recipient text not null,
    state text not null default 'pending' check (state in ('pending', 'sending', 'sent', 'dead', 'unaddressed')),
    attempts integer not null default 0,
    created_at timestamptz not null default now(),
    due_at timestamptz not null default now(),
    message bigint,
    started_at timestamptz,
    lease_until timestamptz,
    settled_at timestamptz,
    last_error text,
    constraint alert_delivery_once unique (event_tx_id, event_id, channel, recipient)
);
comment on table pgaudit_wf.alert_delivery is 'One event for one recipient over one channel, and what became of it.';
comment on column pgaudit_wf.alert_delivery.id is 'Number of the delivery.';
comment on column pgaudit_wf.alert_delivery.event_tx_id is 'Transaction of the event, by which it is found in the log.';
comment on column pgaudit_wf.alert_delivery.event_id is 'The event.';
comment on column pgaudit_wf.alert_delivery.event_occurred_at is
    'When it happened: after a restore to an earlier time, other events get the same numbers.';
comment on column pgaudit_wf.alert_delivery.action is 'What happened.';
comment on column pgaudit_wf.alert_delivery.rule_id is 'The rule that caused it; null when that was deleted.';
comment on column pgaudit_wf.alert_delivery.channel is 'smtp, webhook or log.';
comment on column pgaudit_wf.alert_delivery.recipient is
    'E-mail address in lower case, URL or log stream; empty when the rule found nobody or could not look.';
comment on column pgaudit_wf.alert_delivery.state is
    'pending (waits until due_at), sending (a worker has it until lease_until), sent, dead (given up; '
    'requeue_alert() revives it) or unaddressed (the rule found nobody with an e-mail address).';
comment on column pgaudit_wf.alert_delivery.attempts is 'How many attempts to send it were started.';
comment on column pgaudit_wf.alert_delivery.created_at is 'When a worker read the event.';
comment on column pgaudit_wf.alert_delivery.due_at is 'When it is to be sent, at the earliest.';
comment on column pgaudit_wf.alert_delivery.message is
    'The message it is in: id of the message''s first delivery. Null until it is claimed.';
comment on column pgaudit_wf.alert_delivery.started_at is 'When its message was composed.';
comment on column pgaudit_wf.alert_delivery.lease_until is 'When the lease of the worker that sends it ends.';
comment on column pgaudit_wf.alert_delivery.settled_at is 'When it was sent or given up.';
comment on column pgaudit_wf.alert_delivery.last_error is 'Why the last attempt failed: kind and code, never what the server quoted.';

create index alert_delivery_new on pgaudit_wf.alert_delivery (due_at, id) where state = 'pending' and message is null;
create index alert_delivery_new_recipient on pgaudit_wf.alert_delivery (recipient, channel, id) where state = 'pending' and message is null;
create index alert_delivery_retry on pgaudit_wf.alert_delivery (due_at) where state = 'pending' and message is not null;
create index alert_delivery_sending on pgaudit_wf.alert_delivery (lease_until) where state = 'sending';
create index alert_delivery_message on pgaudit_wf.alert_delivery (message) where message is not null;
create index alert_delivery_started on pgaudit_wf.alert_delivery (recipient, channel, started_at) where started_at is not null;
create index alert_delivery_settled on pgaudit_wf.alert_delivery (settled_at) where settled_at is not null;
