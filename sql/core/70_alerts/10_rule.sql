-- Alerts: who is notified of which events, and what became of each message.
--
-- Nothing here touches the write path: a worker (pgaudit-wf alerts run) follows the log as the reader "alerts", records in one
-- transaction who is to be notified (enqueue_alerts), and then sends one message after the other (claim_alert, send, settle_alert).
-- A delivery is one event for one recipient over one channel, and there is only ever one. A message is one delivery or, in a burst,
-- a digest of many. It is composed when it is claimed and does not change after that, so that its id identifies a repeat.

create table pgaudit_wf.alert_rule (
    id bigint generated always as identity primary key,
    action_pattern text not null check (action_pattern <> ''),
    outcome pgaudit_wf.event_outcome default 'succeeded',
    org_id text,
    channel text not null default 'smtp' check (channel in ('smtp', 'webhook', 'log')),
    audience text not null default 'owners' check (audience in ('actor', 'owners', 'admins', 'address')),
    address text,
    person_column text not null default 'user_id',
    enabled boolean not null default true,
    created_at timestamptz not null default now(),
    constraint alert_rule_address_is_given check ((audience = 'address') = (address is not null)),
    constraint alert_rule_machine_has_an_address check (channel = 'smtp' or audience = 'address'),
    constraint alert_rule_address_fits_channel check (
        case channel
            when 'smtp' then length(address) <= 254
                and address ~ e'^[^[:space:][:cntrl:]@<>,;:"()\\[\\]\\\\]+@[^[:space:][:cntrl:]@<>,;:"()\\[\\]\\\\]+$'
            when 'webhook' then address ~ e'^(https://|http://(localhost|127\\.0\\.0\\.1|\\[::1\\])[:/])[^[:space:][:cntrl:]@]+$'
            else address ~ '^[a-z0-9_.-]+$'
        end),
    constraint alert_rule_once unique nulls not distinct (action_pattern, outcome, org_id, channel, audience, address)
);
comment on table pgaudit_wf.alert_rule is
    'Who is notified of which events. A rule is a row: insert one, switch it off with enabled. It applies to events from created_at on.';
comment on column pgaudit_wf.alert_rule.id is 'Number of the rule.';
comment on column pgaudit_wf.alert_rule.action_pattern is 'The action, such as api_key.created; * stands for anything: api_key.*.';
comment on column pgaudit_wf.alert_rule.outcome is 'Only events with this outcome; null: any.';
comment on column pgaudit_wf.alert_rule.org_id is 'Only events of this organization; null: all.';
comment on column pgaudit_wf.alert_rule.channel is 'smtp (e-mail), webhook or log (a line of the worker''s log).';
comment on column pgaudit_wf.alert_rule.audience is
    'actor (who did it), owners or admins (of the event''s organization; '
    'where it has none, "owners" is the person whom the row belongs to, by person_column, or else the actor) or address. '
    'Webhook and log only take an address.';
comment on column pgaudit_wf.alert_rule.address is
    'E-mail address, webhook URL (https, without user name or secret in it) or name of a log stream, for the audience "address".';
comment on column pgaudit_wf.alert_rule.person_column is
    'Column of the changed row that holds the id of the person it belongs to, for events without organization.';
comment on column pgaudit_wf.alert_rule.enabled is 'False disables the rule.';
comment on column pgaudit_wf.alert_rule.created_at is 'Only events recorded after this time trigger it.';

insert into pgaudit_wf.alert_rule (action_pattern) values
    ('api_key.created'), ('api_key.revoked'), ('org_api_key.created'), ('org_api_key.revoked'),
    -- What pgaudit-wf keys watch finds.
    ('api_key.expiring'), ('api_key.expired'), ('api_key.unused'), ('api_key.new_network'), ('api_key.leaked');

create table pgaudit_wf.alert_policy (
    is_only boolean primary key default true check (is_only),
    log_id uuid not null default gen_random_uuid(),
    burst_messages integer not null default 5 check (burst_messages >= 1),
    burst_window interval not null default '10 minutes' check (burst_window > '0 seconds'),
    max_attempts integer not null default 20 check (max_attempts >= 1),
    retry_base interval not null default '30 seconds' check (retry_base > '0 seconds'),
    retry_limit interval not null default '4 hours',
    lease interval not null default '5 minutes' check (lease > '0 seconds'),
    max_age interval not null default '7 days',
    keep interval not null default '90 days'
);
comment on table pgaudit_wf.alert_policy is 'How alerts are delivered: one row, for all workers alike.';
comment on column pgaudit_wf.alert_policy.is_only is 'Always true: there is one row.';
comment on column pgaudit_wf.alert_policy.log_id is 'Makes the ids of messages differ between two databases.';
comment on column pgaudit_wf.alert_policy.burst_messages is
    'How many e-mails a recipient gets within burst_window; what exceeds that comes as one digest, '
    'and the next digest when the window has passed.';
comment on column pgaudit_wf.alert_policy.burst_window is 'The window for burst_messages.';
comment on column pgaudit_wf.alert_policy.max_attempts is 'After this many attempts a delivery is dead.';
comment on column pgaudit_wf.alert_policy.retry_base is
    'Pause after the first failure; it doubles with each further one, shortened by up to a half at random.';
comment on column pgaudit_wf.alert_policy.retry_limit is 'The longest pause.';
comment on column pgaudit_wf.alert_policy.lease is
    'How long a worker may take for a message; then it is presumed dead, and another one sends the message. '
    'At least twice the worker''s send timeout.';
comment on column pgaudit_wf.alert_policy.max_age is
    'Events older than this when a worker reads them cause no alerts, as when the first worker starts late.';
comment on column pgaudit_wf.alert_policy.keep is 'How long sent and dead deliveries are kept.';
insert into pgaudit_wf.alert_policy default values;

create function pgaudit_wf._alert_rule_matches(rule pgaudit_wf.alert_rule, event pgaudit_wf.security_audit_log) returns boolean
language sql stable
as $$
    select (rule).enabled
        and ((rule).outcome is null or (rule).outcome = (event).outcome)
        and ((rule).org_id is null or (rule).org_id = (event).org_id)
        and (event).occurred_at >= (rule).created_at
        and pgaudit_wf._matches_pattern((event).action, (rule).action_pattern)
$$;
comment on function pgaudit_wf._alert_rule_matches(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is
    'Whether a rule applies to an event.';

create function pgaudit_wf._alert_person(event pgaudit_wf.security_audit_log, person_column text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    person text;
    target regclass;
begin
    select coalesce(op.value -> 'value' ->> _alert_person.person_column, op.value -> 'old' ->> _alert_person.person_column) into person
    from jsonb_array_elements(coalesce((_alert_person.event).diff, '[]')) as op where op.value ->> 'path' = '';
    -- An update only names what changed.
    if person is null and (_alert_person.event).captured and (_alert_person.event).resource_id is not null then
        for target in select a.target from pgaudit_wf.attachment as a where a.resource_type = (_alert_person.event).resource_type loop
            begin
                person := coalesce(person, pgaudit_wf.row_as_of(
                    target, (_alert_person.event).resource_id, (_alert_person.event).occurred_at) ->> _alert_person.person_column);
            exception
                -- One odd row must not hold up the alerts that come after it.
                when others then
                    raise warning 'cannot tell whom % % belongs to: %',
                        (_alert_person.event).resource_type, (_alert_person.event).resource_id, sqlstate;
            end;
        end loop;
    end if;
    -- What pgaudit-wf keys watch says of a key is no change of its row.
    if person is null and not (_alert_person.event).captured and (_alert_person.event).resource_type = 'api_key' then
        person := pgaudit_wf._key_owner((_alert_person.event).resource_id);
    end if;
    return coalesce(person, (_alert_person.event).actor_id);
end
$$;
comment on function pgaudit_wf._alert_person(pgaudit_wf.security_audit_log, text) is
    'Id of the person whom the changed row belongs to, by the given column of it; else the actor.';

create function pgaudit_wf._alert_recipients(rule pgaudit_wf.alert_rule, event pgaudit_wf.security_audit_log) returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    actor_ids text[];
    reachable text[];
begin
    if (_alert_recipients.rule).audience = 'address' then
        return next case (_alert_recipients.rule).channel
            when 'smtp' then lower((_alert_recipients.rule).address)
            else (_alert_recipients.rule).address
        end;
        return;
    end if;
    if (_alert_recipients.rule).audience = 'actor' then
        actor_ids := array[(_alert_recipients.event).actor_id];
    elsif (_alert_recipients.event).org_id is not null then
        select array_agg(m.actor_id) into actor_ids from pgaudit_wf.org_member as m
        where m.org_id = (_alert_recipients.event).org_id
            and m.role = case (_alert_recipients.rule).audience when 'owners' then 'owner' else 'admin' end;
    elsif (_alert_recipients.rule).audience = 'owners' then
        -- A personal key opens whatever the person's organizations allow, so the owners of those are notified too.
        select array_agg(whose.person) || array_agg(owner.actor_id) into actor_ids
        from (select pgaudit_wf._alert_person(_alert_recipients.event, (_alert_recipients.rule).person_column) as person) as whose
        left join pgaudit_wf.org_member as m on m.actor_id = whose.person
        left join pgaudit_wf.org_member as owner on owner.org_id = m.org_id and owner.role = 'owner';
    else
        return;
    end if;
    select array_agg(distinct lower(d.email)) into reachable from pgaudit_wf.actor_directory as d
    where d.actor_id = any (actor_ids)
        -- Anything but a plain address could smuggle in a header or a second recipient.
        and d.email ~ e'^[^[:space:][:cntrl:]@<>,;:"()\\[\\]\\\\]+@[^[:space:][:cntrl:]@<>,;:"()\\[\\]\\\\]+$' and length(d.email) <= 254;
    if reachable is null and (_alert_recipients.rule).audience <> 'admins' then
        return next '';
    end if;
    return query select unnest(reachable);
end
$$;
comment on function pgaudit_wf._alert_recipients(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is
    'Whom a rule notifies of an event; an empty text if it should notify somebody and finds no address.';

create function pgaudit_wf._is_general(state text) returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    -- Rollbacks, missing rights and objects, resources, locks, cancellation, system errors.
    select left(state, 2) in ('08', '40', '42', '53', '57', '58', 'XX') or state = '55P03'
$$;
comment on function pgaudit_wf._is_general(text) is
    'Whether an error of that SQLSTATE has nothing to do with the event at hand, and would come with any other.';

create function pgaudit_wf._try_recipients(rule pgaudit_wf.alert_rule, event pgaudit_wf.security_audit_log)
returns table (recipient text, problem text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_recipients text[];
begin
    found_recipients := array(select r from pgaudit_wf._alert_recipients(_try_recipients.rule, _try_recipients.event) as r);
    return query select r, null::text from unnest(found_recipients) as r;
exception
    -- The views that name people are the application's, and one event that they fail for must not hold up those after it.
    when others then
        if pgaudit_wf._is_general(sqlstate) then
            raise;
        end if;
        return query select '', format('its recipients cannot be found: SQLSTATE %s', sqlstate);
end
$$;
comment on function pgaudit_wf._try_recipients(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is
    'Whom a rule notifies of an event, as _alert_recipients() says; an empty text and the problem where that fails.';
