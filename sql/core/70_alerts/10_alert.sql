-- Alerts: who is told of which events, and what became of each message.
--
-- Nothing here touches the write path: a worker (pgaudit-wf alerts run) follows the log as the reader "alerts", writes down in one
-- transaction who is to be told (enqueue_alerts), and then sends one message after the other (claim_alert, send, settle_alert).
-- A delivery is one event for one recipient over one channel, and there is only ever one. A message is one delivery or, in a burst,
-- a digest of many. It is put together when it is claimed and stays as it is from then on, so that a repeat can be told by its id.

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
            when 'smtp' then address ~ '^[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+@[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+$' and length(address) <= 254
            when 'webhook' then address ~ '^(https://|http://(localhost|127\.0\.0\.1|\[::1\])[:/])[^[:space:][:cntrl:]@]+$'
            else address ~ '^[a-z0-9_.-]+$'
        end),
    constraint alert_rule_once unique nulls not distinct (action_pattern, outcome, org_id, channel, audience, address)
);
comment on table pgaudit_wf.alert_rule is
    'Who is told of which events. A rule is a row: insert one, switch it off with enabled. It speaks of events from created_at on.';
comment on column pgaudit_wf.alert_rule.id is 'Number of the rule.';
comment on column pgaudit_wf.alert_rule.action_pattern is 'The action, such as api_key.created; * stands for anything: api_key.*.';
comment on column pgaudit_wf.alert_rule.outcome is 'Only events with this outcome; null: any.';
comment on column pgaudit_wf.alert_rule.org_id is 'Only events of this organization; null: all.';
comment on column pgaudit_wf.alert_rule.channel is 'smtp (e-mail), webhook or log (a line of the worker''s log).';
comment on column pgaudit_wf.alert_rule.audience is
    'actor (who did it), owners or admins (of the event''s organization; where it has none, "owners" is the person whom the row belongs to, by person_column, or else the actor) or address. Webhook and log have an address only.';
comment on column pgaudit_wf.alert_rule.address is
    'E-mail address, webhook URL (https, without user name or secret in it) or name of a log stream, for the audience "address".';
comment on column pgaudit_wf.alert_rule.person_column is 'Column of the changed row that holds the id of the person it belongs to, for events without organization.';
comment on column pgaudit_wf.alert_rule.enabled is 'False: the rule rests.';
comment on column pgaudit_wf.alert_rule.created_at is 'Events from before are not told of.';

insert into pgaudit_wf.alert_rule (action_pattern) values
    ('api_key.created'), ('api_key.revoked'), ('org_api_key.created'), ('org_api_key.revoked');

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
    'So many e-mails a recipient gets within burst_window; what exceeds that comes as one digest, and the next digest when the window has passed.';
comment on column pgaudit_wf.alert_policy.burst_window is 'The window for burst_messages.';
comment on column pgaudit_wf.alert_policy.max_attempts is 'After so many attempts a delivery is dead.';
comment on column pgaudit_wf.alert_policy.retry_base is 'Pause after the first failure; it doubles with each further one, less up to a half at random.';
comment on column pgaudit_wf.alert_policy.retry_limit is 'The longest pause.';
comment on column pgaudit_wf.alert_policy.lease is
    'How long a worker may take for a message; then it is taken for gone, and another one sends the message. At least twice the worker''s send timeout.';
comment on column pgaudit_wf.alert_policy.max_age is 'Events that are older when a worker comes to them are not told of, as when the first worker starts late.';
comment on column pgaudit_wf.alert_policy.keep is 'How long sent and dead deliveries are kept.';
insert into pgaudit_wf.alert_policy default values;

create table pgaudit_wf.alert_delivery (
    id bigint generated always as identity primary key,
    event_tx_id bigint not null,
    event_id bigint not null,
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
comment on column pgaudit_wf.alert_delivery.action is 'What happened.';
comment on column pgaudit_wf.alert_delivery.rule_id is 'The rule because of which it is delivered; null when that is gone.';
comment on column pgaudit_wf.alert_delivery.channel is 'smtp, webhook or log.';
comment on column pgaudit_wf.alert_delivery.recipient is 'E-mail address in lower case, URL or log stream; empty when the rule found nobody.';
comment on column pgaudit_wf.alert_delivery.state is
    'pending (waits until due_at), sending (a worker has it until lease_until), sent, dead (given up; requeue_alert() revives it) or unaddressed (the rule found nobody with an e-mail address).';
comment on column pgaudit_wf.alert_delivery.attempts is 'How often sending was begun.';
comment on column pgaudit_wf.alert_delivery.created_at is 'When a worker came to the event.';
comment on column pgaudit_wf.alert_delivery.due_at is 'When it is to be sent, next or at the earliest.';
comment on column pgaudit_wf.alert_delivery.message is 'The message it is in: id of the message''s first delivery. Null until it is claimed.';
comment on column pgaudit_wf.alert_delivery.started_at is 'When its message was put together.';
comment on column pgaudit_wf.alert_delivery.lease_until is 'Until when the worker that sends it has it for itself.';
comment on column pgaudit_wf.alert_delivery.settled_at is 'When it was sent or given up.';
comment on column pgaudit_wf.alert_delivery.last_error is 'Why the last attempt failed: kind and code, never what the server quoted.';

create index alert_delivery_new on pgaudit_wf.alert_delivery (due_at, id) where state = 'pending' and message is null;
create index alert_delivery_new_recipient on pgaudit_wf.alert_delivery (recipient, channel, id) where state = 'pending' and message is null;
create index alert_delivery_retry on pgaudit_wf.alert_delivery (due_at) where state = 'pending' and message is not null;
create index alert_delivery_sending on pgaudit_wf.alert_delivery (lease_until) where state = 'sending';
create index alert_delivery_message on pgaudit_wf.alert_delivery (message) where message is not null;
create index alert_delivery_started on pgaudit_wf.alert_delivery (recipient, channel, started_at) where started_at is not null;
create index alert_delivery_settled on pgaudit_wf.alert_delivery (settled_at) where settled_at is not null;

create function pgaudit_wf._alert_rule_matches(rule pgaudit_wf.alert_rule, event pgaudit_wf.security_audit_log) returns boolean
language sql stable
as $$
    select (rule).enabled
        and ((rule).outcome is null or (rule).outcome = (event).outcome)
        and ((rule).org_id is null or (rule).org_id = (event).org_id)
        and (event).occurred_at >= (rule).created_at
        and (event).action like replace(replace(replace(replace((rule).action_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')
$$;
comment on function pgaudit_wf._alert_rule_matches(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is 'Whether a rule speaks of an event.';

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
                person := coalesce(person, pgaudit_wf.row_as_of(target, (_alert_person.event).resource_id, (_alert_person.event).occurred_at) ->> _alert_person.person_column);
            exception
                -- One odd row must not hold up the alerts that come after it.
                when others then
                    raise warning 'cannot tell whom % % belongs to: %', (_alert_person.event).resource_type, (_alert_person.event).resource_id, sqlstate;
            end;
        end loop;
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
        return next case (_alert_recipients.rule).channel when 'smtp' then lower((_alert_recipients.rule).address) else (_alert_recipients.rule).address end;
        return;
    end if;
    if (_alert_recipients.rule).audience = 'actor' then
        actor_ids := array[(_alert_recipients.event).actor_id];
    elsif (_alert_recipients.event).org_id is not null then
        select array_agg(m.actor_id) into actor_ids from pgaudit_wf.org_member as m
        where m.org_id = (_alert_recipients.event).org_id
            and m.role = case (_alert_recipients.rule).audience when 'owners' then 'owner' else 'admin' end;
    elsif (_alert_recipients.rule).audience = 'owners' then
        -- A person's own key opens what his organizations let him do, so their owners hear of it too.
        select array_agg(whose.person) || array_agg(owner.actor_id) into actor_ids
        from (select pgaudit_wf._alert_person(_alert_recipients.event, (_alert_recipients.rule).person_column) as person) as whose
        left join pgaudit_wf.org_member as m on m.actor_id = whose.person
        left join pgaudit_wf.org_member as owner on owner.org_id = m.org_id and owner.role = 'owner';
    else
        return;
    end if;
    select array_agg(distinct lower(d.email)) into reachable from pgaudit_wf.actor_directory as d
    where d.actor_id = any (actor_ids)
        -- What is no plain address could smuggle in a header or a second recipient.
        and d.email ~ '^[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+@[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+$' and length(d.email) <= 254;
    if reachable is null and (_alert_recipients.rule).audience <> 'admins' then
        return next '';
    end if;
    return query select unnest(reachable);
end
$$;
comment on function pgaudit_wf._alert_recipients(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is
    'Whom a rule tells of an event; an empty text if it should tell somebody and finds no address.';

create function pgaudit_wf.enqueue_alerts(max_events integer default 1000)
returns table (events bigint, deliveries bigint, unaddressed bigint, outdated bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    oldest constant timestamptz := now() - (select p.max_age from pgaudit_wf.alert_policy as p);
    place text;
begin
    with batch as materialized (
        select row_number() over () as number, r.cursor, r.event from pgaudit_wf.read_as('alerts', enqueue_alerts.max_events) as r
    ),
    matched as materialized (
        select b.event, rule from batch as b join pgaudit_wf.alert_rule as rule on pgaudit_wf._alert_rule_matches(rule, b.event)
    ),
    added as (
        insert into pgaudit_wf.alert_delivery (event_tx_id, event_id, action, rule_id, channel, recipient, state)
        select (m.event).tx_id, (m.event).id, (m.event).action, (m.rule).id, (m.rule).channel, told.recipient, case told.recipient when '' then 'unaddressed' else 'pending' end
        from matched as m, pgaudit_wf._alert_recipients(m.rule, m.event) as told (recipient)
        where (m.event).occurred_at >= oldest
        order by (m.event).tx_id, (m.event).id, (m.rule).id
        on conflict on constraint alert_delivery_once do nothing
        returning state
    )
    select
        (select count(*) from batch), (select b.cursor from batch as b order by b.number desc limit 1),
        (select count(*) from added as a where a.state = 'pending'), (select count(*) from added as a where a.state = 'unaddressed'),
        (select count(distinct (m.event).id) from matched as m where (m.event).occurred_at < oldest)
    into events, place, deliveries, unaddressed, outdated;
    if events > 0 then
        perform pgaudit_wf.advance_reader('alerts', place, events);
    end if;
    return next;
exception
    -- The only one that is left: the sequence of the deliveries lags behind the table.
    when unique_violation then
        raise exception 'no alert can be written down: %', sqlerrm
            using errcode = 'PA402',
                hint = 'The numbers of pgaudit_wf.alert_delivery lag behind, as after logical replication: '
                    'select setval(pg_get_serial_sequence(''pgaudit_wf.alert_delivery'', ''id''), (select max(id) from pgaudit_wf.alert_delivery));';
end
$$;
comment on function pgaudit_wf.enqueue_alerts(integer) is
    'Follows the log as the reader "alerts" and writes down who is to be told of the next events, at most max_events. Returns how many events it went through, how many deliveries came of them, for how many a rule found nobody, and how many matching events were older than max_age. '
    'Raises PA402, and moves on by no event, when the numbers of deliveries lag behind those in use.';

create function pgaudit_wf._alert_event(event pgaudit_wf.security_audit_log) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    -- Never the diff, nor the rest of the metadata: a mailbox is no place for values. Names are cut, as a hundred events are one message.
    select jsonb_build_object(
        'id', (event).id,
        'occurred_at', to_char((event).occurred_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'action', (event).action, 'outcome', (event).outcome,
        'actor_id', (event).actor_id, 'actor_name', left(coalesce(d.name, (event).actor_label), 255), 'actor_email', left(d.email, 255),
        'db_user', (event).db_user, 'application_name', (event).application_name,
        'org_id', (event).org_id, 'org_label', (event).org_label,
        'resource_type', (event).resource_type, 'resource_id', (event).resource_id, 'resource_label', left((event).metadata ->> 'label', 255),
        'auth_method', (event).auth_method, 'ip', host((event).ip), 'country', (event).country,
        'user_agent', (event).user_agent, 'correlation_id', (event).correlation_id, 'attested', (event).attested)
    from (values (1)) as one
    left join lateral (
        select a.name, a.email from pgaudit_wf.actor_directory as a where a.actor_id = (event).actor_id limit 1
    ) as d on true
$$;
comment on function pgaudit_wf._alert_event(pgaudit_wf.security_audit_log) is 'What a message may say of an event.';

create function pgaudit_wf._compose_alert(channels text[], policy pgaudit_wf.alert_policy) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    right_now constant timestamptz := clock_timestamp();
    next_one record;
    due bigint;
    recent record;
    is_digest boolean;
    part bigint[];
    new_message bigint;
begin
    loop
        select d.id, d.channel, d.recipient into next_one from pgaudit_wf.alert_delivery as d
        where d.state = 'pending' and d.message is null and d.due_at <= right_now and d.channel = any (_compose_alert.channels)
        order by d.due_at, d.id limit 1;
        if next_one is null then
            return null;
        end if;
        is_digest := false;
        -- Programs take events one by one; people do not read fifty mails.
        if next_one.channel = 'smtp' then
            select count(distinct d.message) as messages, min(d.started_at) as first_at into recent from pgaudit_wf.alert_delivery as d
            where d.recipient = next_one.recipient and d.channel = next_one.channel and d.started_at > right_now - policy.burst_window;
            select count(*) into due from (
                select from pgaudit_wf.alert_delivery as d
                where d.recipient = next_one.recipient and d.channel = next_one.channel and d.state = 'pending' and d.message is null
                limit policy.burst_messages + 1) as waiting;
            if recent.messages > policy.burst_messages then
                update pgaudit_wf.alert_delivery as d set due_at = recent.first_at + policy.burst_window
                where d.recipient = next_one.recipient and d.channel = next_one.channel and d.state = 'pending' and d.message is null;
                continue;
            end if;
            is_digest := recent.messages + due > policy.burst_messages and due > 1;
        end if;
        if not is_digest then
            update pgaudit_wf.alert_delivery as d set message = d.id, started_at = right_now where d.id = next_one.id;
            return next_one.id;
        end if;
        select array_agg(p.id), min(p.id) into part, new_message from (
            select d.id from pgaudit_wf.alert_delivery as d
            where d.recipient = next_one.recipient and d.channel = next_one.channel and d.state = 'pending' and d.message is null
            order by d.id limit 1000) as p;
        update pgaudit_wf.alert_delivery as d set message = new_message, started_at = right_now where d.id = any (part);
        return new_message;
    end loop;
end
$$;
comment on function pgaudit_wf._compose_alert(text[], pgaudit_wf.alert_policy) is
    'Puts the next message together and returns its number; null if nothing is due. Part of claim_alert().';

create function pgaudit_wf.claim_alert(channels text[] default '{smtp,webhook,log}')
returns table (message bigint, attempt integer, channel text, recipient text, message_key text, events jsonb, deliveries bigint, lease_seconds double precision)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    policy pgaudit_wf.alert_policy;
    chosen bigint;
    right_now timestamptz;
begin
    -- Whoever holds the policy has the turn: it takes a millisecond, and makes the counts of a burst exact.
    select p.* into policy from pgaudit_wf.alert_policy as p for update;
    right_now := clock_timestamp();
    update pgaudit_wf.alert_delivery as d set state = 'dead', settled_at = right_now, lease_until = null, last_error = 'the worker ended during the last attempt'
    where d.state = 'sending' and d.lease_until < right_now and d.attempts >= policy.max_attempts;
    select d.message into chosen from pgaudit_wf.alert_delivery as d
    where d.state = 'sending' and d.lease_until < right_now and d.channel = any (claim_alert.channels)
    order by d.lease_until limit 1;
    if chosen is null then
        select d.message into chosen from pgaudit_wf.alert_delivery as d
        where d.state = 'pending' and d.message is not null and d.due_at <= right_now and d.channel = any (claim_alert.channels)
        order by d.due_at limit 1;
    end if;
    chosen := coalesce(chosen, pgaudit_wf._compose_alert(claim_alert.channels, policy));
    if chosen is null then
        return;
    end if;
    update pgaudit_wf.alert_delivery as d set state = 'sending', attempts = d.attempts + 1, lease_until = right_now + policy.lease
    where d.message = chosen and d.state in ('pending', 'sending');
    return query
        select chosen, max(d.attempts), min(d.channel), min(d.recipient),
            left(encode(sha256(convert_to(concat_ws('/', policy.log_id, min(d.channel), min(d.recipient), string_agg(concat_ws(':', d.event_tx_id, d.event_id), ',' order by d.event_tx_id, d.event_id)), 'UTF8')), 'hex'), 32),
            (select coalesce(jsonb_agg(shown.event order by shown.id), '[]') from (
                select s.id, pgaudit_wf._alert_event(l) as event
                from pgaudit_wf.alert_delivery as s
                join pgaudit_wf.security_audit_log as l on l.tx_id = s.event_tx_id and l.id = s.event_id
                where s.message = chosen and s.state = 'sending' order by s.id limit 100) as shown),
            count(*), extract(epoch from policy.lease)::double precision
        from pgaudit_wf.alert_delivery as d where d.message = chosen and d.state = 'sending';
end
$$;
comment on function pgaudit_wf.claim_alert(text[]) is
    'Takes the next message that is due for sending, for the time of the policy''s lease; no row: nothing is due. events are what it may tell (the first 100 of a digest of deliveries), message_key an id that a repeat has again. Report back with settle_alert(message, attempt, …).';

create function pgaudit_wf.settle_alert(message bigint, attempt integer, problem text default null, is_final boolean default false, retry_after interval default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    policy constant pgaudit_wf.alert_policy := (select p from pgaudit_wf.alert_policy as p);
    right_now constant timestamptz := clock_timestamp();
    pause constant interval := least(policy.retry_limit, policy.retry_base * power(2, least(settle_alert.attempt - 1, 30))) * (0.5 + random() / 2);
    outcome text := case
        when settle_alert.problem is null then 'sent'
        when settle_alert.is_final or settle_alert.attempt >= policy.max_attempts then 'dead'
        else 'pending'
    end;
begin
    update pgaudit_wf.alert_delivery as d
    set state = outcome, lease_until = null, last_error = left(settle_alert.problem, 200),
        settled_at = case when outcome <> 'pending' then right_now end,
        due_at = case when outcome = 'pending' then right_now + greatest(pause, case when settle_alert.retry_after > '1 day' then interval '1 day' else settle_alert.retry_after end) else d.due_at end
    where d.message = settle_alert.message and d.state = 'sending' and d.attempts = settle_alert.attempt;
    return case when found then outcome end;
end
$$;
comment on function pgaudit_wf.settle_alert(bigint, integer, text, boolean, interval) is
    'Says how the attempt to send a claimed message ended: well, or with a problem; then it is tried again after a pause that grows (at least retry_after), or is dead when that is final or was the last attempt. Returns the new state; null if the lease had run out and another worker has taken the message.';

create function pgaudit_wf.requeue_alert(delivery_id bigint default null) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    delivery pgaudit_wf.alert_delivery;
    requeued bigint := 0;
begin
    for delivery in
        select d.* from pgaudit_wf.alert_delivery as d
        where d.state in ('dead', 'unaddressed') and (requeue_alert.delivery_id is null or d.id = requeue_alert.delivery_id)
        order by d.id for update
    loop
        if delivery.state = 'dead' then
            update pgaudit_wf.alert_delivery as d
            set state = 'pending', attempts = 0, due_at = clock_timestamp(), message = null, started_at = null, settled_at = null
            where d.id = delivery.id;
        else
            -- Somebody may be there by now.
            insert into pgaudit_wf.alert_delivery (event_tx_id, event_id, action, rule_id, channel, recipient)
            select delivery.event_tx_id, delivery.event_id, delivery.action, delivery.rule_id, delivery.channel, told.recipient
            from pgaudit_wf.security_audit_log as l, pgaudit_wf.alert_rule as rule, pgaudit_wf._alert_recipients(rule, l) as told (recipient)
            where l.tx_id = delivery.event_tx_id and l.id = delivery.event_id and rule.id = delivery.rule_id and told.recipient <> ''
            on conflict on constraint alert_delivery_once do nothing;
            continue when not found;
            delete from pgaudit_wf.alert_delivery as d where d.id = delivery.id;
        end if;
        requeued := requeued + 1;
    end loop;
    if requeue_alert.delivery_id is not null and requeued = 0 then
        raise exception 'delivery % cannot be queued again', requeue_alert.delivery_id
            using errcode = 'PA401',
                hint = 'Only a dead delivery can, or an unaddressed one whose rule now finds an address: see pgaudit-wf alerts list.';
    end if;
    return requeued;
end
$$;
comment on function pgaudit_wf.requeue_alert(bigint) is
    'Queues a dead delivery again, or an unaddressed one if its rule finds somebody now; null: all of them. Several for one recipient come as a digest. Returns how many; raises PA401 if the one that was named cannot be.';

create function pgaudit_wf._prune_alerts() returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        delete from pgaudit_wf.alert_delivery as d
        using pgaudit_wf.alert_policy as p
        where d.settled_at < now() - p.keep or (d.state = 'unaddressed' and d.created_at < now() - p.keep)
        returning d.id
    )
    select count(*) from gone
$$;
comment on function pgaudit_wf._prune_alerts() is 'Removes deliveries that were sent or given up longer ago than the policy keeps them; returns how many.';

create function pgaudit_wf.alert_lag() returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select count(*) from pgaudit_wf.read_log((select r.cursor from pgaudit_wf.reader as r where r.name = 'alerts'), 10000)
$$;
comment on function pgaudit_wf.alert_lag() is 'How many events the alerts are behind the log, counted up to 10,000.';

create function pgaudit_wf.grant_alerts(worker regrole) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('grant usage on schema pgaudit_wf to %s', grant_alerts.worker);
    execute format('grant select on pgaudit_wf.alert_rule, pgaudit_wf.alert_policy, pgaudit_wf.alert_delivery,'
        ' pgaudit_wf.alert_rule_list, pgaudit_wf.alert_delivery_list, pgaudit_wf.alert_backlog to %s', grant_alerts.worker);
    execute format('grant execute on function pgaudit_wf.enqueue_alerts(integer), pgaudit_wf.claim_alert(text[]),'
        ' pgaudit_wf.settle_alert(bigint, integer, text, boolean, interval), pgaudit_wf.requeue_alert(bigint),'
        ' pgaudit_wf._prune_alerts(), pgaudit_wf._alert_lease(), pgaudit_wf.alert_lag() to %s', grant_alerts.worker);
end
$$;
comment on function pgaudit_wf.grant_alerts(regrole) is
    'Lets a login run pgaudit-wf alerts and nothing else: it sees what messages may say, not the log.';
