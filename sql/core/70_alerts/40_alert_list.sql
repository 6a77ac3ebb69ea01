-- Alerts as people and the worker look at them: the rules, the deliveries, and how many of these are still open.

create view pgaudit_wf.alert_rule_list with (security_invoker = true) as
select
    r.id,
    r.action_pattern,
    r.outcome,
    r.org_id,
    r.channel,
    r.audience,
    r.address,
    r.enabled,
    r.created_at
from pgaudit_wf.alert_rule as r;
comment on view pgaudit_wf.alert_rule_list is 'The rules of alerts, as pgaudit-wf alerts rules shows them. Change them in alert_rule.';
comment on column pgaudit_wf.alert_rule_list.id is 'Number of the rule.';
comment on column pgaudit_wf.alert_rule_list.action_pattern is 'The action; * stands for any characters.';
comment on column pgaudit_wf.alert_rule_list.outcome is 'Only events with this outcome; null: any.';
comment on column pgaudit_wf.alert_rule_list.org_id is 'Only events of this organization; null: all.';
comment on column pgaudit_wf.alert_rule_list.channel is 'smtp, webhook or log.';
comment on column pgaudit_wf.alert_rule_list.audience is 'actor, owners, admins or address.';
comment on column pgaudit_wf.alert_rule_list.address is 'The address, for the audience "address".';
comment on column pgaudit_wf.alert_rule_list.enabled is 'Whether the rule is on.';
comment on column pgaudit_wf.alert_rule_list.created_at is 'Only events recorded after this time trigger the rule.';

create view pgaudit_wf.alert_delivery_list with (security_invoker = true) as
select
    d.id,
    d.state,
    d.channel,
    d.recipient,
    d.action,
    d.event_id,
    d.attempts,
    d.created_at,
    d.due_at,
    d.settled_at,
    d.message,
    d.last_error
from pgaudit_wf.alert_delivery as d;
comment on view pgaudit_wf.alert_delivery_list is 'Deliveries of alerts, as pgaudit-wf alerts list shows them.';
comment on column pgaudit_wf.alert_delivery_list.id is 'Number of the delivery, as requeue_alert() takes it.';
comment on column pgaudit_wf.alert_delivery_list.state is 'pending, sending, sent, dead (given up) or unaddressed (no recipient found).';
comment on column pgaudit_wf.alert_delivery_list.channel is 'smtp, webhook or log.';
comment on column pgaudit_wf.alert_delivery_list.recipient is 'E-mail address, URL or log stream; empty: no recipient was found.';
comment on column pgaudit_wf.alert_delivery_list.action is 'What happened.';
comment on column pgaudit_wf.alert_delivery_list.event_id is 'The event.';
comment on column pgaudit_wf.alert_delivery_list.attempts is 'How often sending was tried.';
comment on column pgaudit_wf.alert_delivery_list.created_at is 'When the worker read the event.';
comment on column pgaudit_wf.alert_delivery_list.due_at is 'When the next attempt is due.';
comment on column pgaudit_wf.alert_delivery_list.settled_at is 'When it was sent or given up.';
comment on column pgaudit_wf.alert_delivery_list.message is 'The message it is part of; several deliveries make a digest.';
comment on column pgaudit_wf.alert_delivery_list.last_error is 'Why the last attempt failed.';

create view pgaudit_wf.alert_backlog with (security_invoker = true) as
select
    d.channel,
    d.state,
    count(*) as deliveries
from pgaudit_wf.alert_delivery as d
where d.state <> 'sent'
group by d.channel, d.state;
comment on view pgaudit_wf.alert_backlog is 'How many deliveries of alerts were not sent, or not yet; for monitoring.';
comment on column pgaudit_wf.alert_backlog.channel is 'smtp, webhook or log.';
comment on column pgaudit_wf.alert_backlog.state is 'pending, sending, dead or unaddressed.';
comment on column pgaudit_wf.alert_backlog.deliveries is 'Number of deliveries.';

create function pgaudit_wf._alert_lease() returns interval
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select p.lease from pgaudit_wf.alert_policy as p $$;
comment on function pgaudit_wf._alert_lease() is 'How long a worker may take to send one message.';
