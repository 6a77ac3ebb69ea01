-- What a worker does: enqueue deliveries, claim a message, settle it.

create function pgaudit_wf.enqueue_alerts(max_events integer default 1000)
returns table (events bigint, deliveries bigint, unaddressed bigint, dead bigint, outdated bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    oldest constant timestamptz := now() - (select p.max_age from pgaudit_wf.alert_policy as p);
    reached text;
begin
    with batch as materialized (
        select row_number() over () as number, r.cursor, r.event from pgaudit_wf.read_as('alerts', enqueue_alerts.max_events) as r
    ),
    matched as materialized (
        select b.event, rule from batch as b join pgaudit_wf.alert_rule as rule on pgaudit_wf._alert_rule_matches(rule, b.event)
    ),
    added as (
        insert into pgaudit_wf.alert_delivery (
            event_tx_id, event_id, event_occurred_at, action, rule_id, channel, recipient, state, settled_at, last_error)
        select (m.event).tx_id, (m.event).id, (m.event).occurred_at, (m.event).action, (m.rule).id, (m.rule).channel,
            found.recipient,
            case when found.problem is not null then 'dead' when found.recipient = '' then 'unaddressed' else 'pending' end,
            case when found.problem is not null then now() end, found.problem
        from matched as m, pgaudit_wf._try_recipients(m.rule, m.event) as found
        where (m.event).occurred_at >= oldest
        order by (m.event).tx_id, (m.event).id, (m.rule).id
        on conflict on constraint alert_delivery_once do nothing
        returning state
    )
    select
        (select count(*) from batch), (select b.cursor from batch as b order by b.number desc limit 1),
        (select count(*) from added as a where a.state = 'pending'), (select count(*) from added as a where a.state = 'unaddressed'),
        (select count(*) from added as a where a.state = 'dead'),
        (select count(distinct (m.event).id) from matched as m where (m.event).occurred_at < oldest)
    into events, reached, deliveries, unaddressed, dead, outdated;
    if events > 0 then
        perform pgaudit_wf.advance_reader('alerts', reached, events);
    end if;
    return next;
exception
    -- The only cause left: the sequence of the deliveries lags behind the table.
    when unique_violation then
        raise exception 'no alert can be enqueued: %', sqlerrm
            using errcode = 'PA402',
                hint = 'The sequence of pgaudit_wf.alert_delivery lags behind, as after logical replication: '
                    'select setval(pg_get_serial_sequence(''pgaudit_wf.alert_delivery'', ''id''), '
                    '(select max(id) from pgaudit_wf.alert_delivery));';
end
$$;
comment on function pgaudit_wf.enqueue_alerts(integer) is
    'Follows the log as the reader "alerts" and enqueues deliveries for the next events, at most max_events. '
    'Returns how many events it read, how many deliveries it enqueued, for how many a rule found nobody, '
    'how many it put aside as dead because its recipients could not be looked up, and how many matching events were older than max_age. '
    'Raises PA402, and does not advance, when the sequence of the deliveries lags behind the table.';

create function pgaudit_wf._alert_event(event pgaudit_wf.security_audit_log) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    actor record;
begin
    begin
        select a.name, a.email into actor from pgaudit_wf.actor_directory as a where a.actor_id = (_alert_event.event).actor_id limit 1;
    exception
        -- The view is the application's. Where it fails, a message with the name from the event is better than none.
        when others then
            if pgaudit_wf._is_general(sqlstate) then
                raise;
            end if;
            select null::text as name, null::text as email into actor;
    end;
    -- Never the diff, nor the rest of the metadata: values do not belong in a mailbox. Names are cut, as one message has up to 100 events.
    return jsonb_build_object(
        'id', (event).id,
        'occurred_at', to_char((event).occurred_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'action', (event).action, 'outcome', (event).outcome,
        'actor_id', (event).actor_id, 'actor_name', left(coalesce(actor.name, (event).actor_label), 255),
        'actor_email', left(actor.email, 255),
        'actor_type', (event).actor_type, 'on_behalf_of', (event).on_behalf_of, 'client', (event).client,
        'db_user', (event).db_user, 'application_name', (event).application_name,
        'org_id', (event).org_id, 'org_label', (event).org_label,
        'resource_type', (event).resource_type, 'resource_id', (event).resource_id,
        'resource_label', left((event).metadata ->> 'label', 255),
        'auth_method', (event).auth_method, 'ip', host((event).ip), 'country', (event).country,
        'user_agent', (event).user_agent, 'correlation_id', (event).correlation_id, 'attested', (event).attested);
end
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
        -- Programs want one event at a time; people do not read fifty mails.
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
    'Composes the next message and returns its number; null if nothing is due. Part of claim_alert().';

create function pgaudit_wf.claim_alert(channels text[] default '{smtp,webhook,log}')
returns table (
    message bigint, attempt integer, channel text, recipient text, message_key text, events jsonb, deliveries bigint,
    lease_seconds double precision
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    policy pgaudit_wf.alert_policy;
    chosen bigint;
    right_now timestamptz;
begin
    -- The row lock serializes claims: they take a millisecond each, and the counts of a burst are exact.
    select p.* into policy from pgaudit_wf.alert_policy as p for update;
    right_now := clock_timestamp();
    update pgaudit_wf.alert_delivery as d
    set state = 'dead', settled_at = right_now, lease_until = null, last_error = 'the worker ended during the last attempt'
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
            left(encode(sha256(convert_to(concat_ws('/', policy.log_id, min(d.channel), min(d.recipient),
                string_agg(
                    concat_ws(':', d.event_tx_id, d.event_id, extract(epoch from d.event_occurred_at)),
                    ',' order by d.event_tx_id, d.event_id)), 'UTF8')), 'hex'), 32),
            (select coalesce(jsonb_agg(shown.event order by shown.id), '[]') from (
                select s.id, pgaudit_wf._alert_event(l) as event
                from pgaudit_wf.alert_delivery as s
                join pgaudit_wf.security_audit_log as l
                    on l.tx_id = s.event_tx_id and l.id = s.event_id and l.occurred_at = s.event_occurred_at
                where s.message = chosen and s.state = 'sending' order by s.id limit 100) as shown),
            count(*), extract(epoch from policy.lease)::double precision
        from pgaudit_wf.alert_delivery as d where d.message = chosen and d.state = 'sending';
end
$$;
comment on function pgaudit_wf.claim_alert(text[]) is
    'Claims the next message that is due, for the duration of the policy''s lease; no row: nothing is due. '
    'events are what it may say (the first 100 of a digest of deliveries), message_key an id that a repeat shares. '
    'Report back with settle_alert(message, attempt, …).';

create function pgaudit_wf.settle_alert(
    message bigint, attempt integer, problem text default null, is_final boolean default false, retry_after interval default null
) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    policy constant pgaudit_wf.alert_policy := (select p from pgaudit_wf.alert_policy as p);
    right_now constant timestamptz := clock_timestamp();
    pause constant interval := (0.5 + random() / 2)
        * least(policy.retry_limit, policy.retry_base * power(2, least(settle_alert.attempt - 1, 30)));
    outcome text := case
        when settle_alert.problem is null then 'sent'
        when settle_alert.is_final or settle_alert.attempt >= policy.max_attempts then 'dead'
        else 'pending'
    end;
begin
    update pgaudit_wf.alert_delivery as d
    set state = outcome, lease_until = null, last_error = left(settle_alert.problem, 200),
        settled_at = case when outcome <> 'pending' then right_now end,
        due_at = case
            when outcome = 'pending' then right_now + greatest(pause,
                case when settle_alert.retry_after is not null then least(settle_alert.retry_after, interval '1 day') end)
            else d.due_at
        end
    where d.message = settle_alert.message and d.state = 'sending' and d.attempts = settle_alert.attempt;
    return case when found then outcome end;
end
$$;
comment on function pgaudit_wf.settle_alert(bigint, integer, text, boolean, interval) is
    'Reports how the attempt to send a claimed message ended: with success, or with a problem; '
    'then it is retried after a growing pause (at least retry_after), or is dead if the problem is final or it was the last attempt. '
    'Returns the new state; null if the lease had expired and another worker has claimed the message.';

create function pgaudit_wf.requeue_alert(delivery_id bigint default null) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    delivery pgaudit_wf.alert_delivery;
    requeued bigint := 0;
    is_settled boolean;
begin
    for delivery in
        select d.* from pgaudit_wf.alert_delivery as d
        where d.state in ('dead', 'unaddressed') and (requeue_alert.delivery_id is null or d.id = requeue_alert.delivery_id)
        order by d.id for update
    loop
        if delivery.recipient <> '' then
            update pgaudit_wf.alert_delivery as d
            set state = 'pending', attempts = 0, due_at = clock_timestamp(), message = null, started_at = null, settled_at = null
            where d.id = delivery.id;
        else
            -- Somebody may be there by now, and what failed may be mended.
            with found as materialized (
                select rule.id as rule_id, f.recipient, f.problem
                from pgaudit_wf.security_audit_log as l, pgaudit_wf.alert_rule as rule, pgaudit_wf._try_recipients(rule, l) as f
                where l.tx_id = delivery.event_tx_id and l.id = delivery.event_id and l.occurred_at = delivery.event_occurred_at
                    and (rule.id = delivery.rule_id or rule.channel = delivery.channel and pgaudit_wf._alert_rule_matches(rule, l))
            ),
            added as (
                insert into pgaudit_wf.alert_delivery (
                    event_tx_id, event_id, event_occurred_at, action, rule_id, channel, recipient)
                select delivery.event_tx_id, delivery.event_id, delivery.event_occurred_at, delivery.action, f.rule_id, delivery.channel,
                    f.recipient
                from found as f where f.recipient <> '' order by f.rule_id
                on conflict on constraint alert_delivery_once do nothing
            )
            select bool_or(f.recipient <> '') and not bool_or(f.problem is not null) into is_settled from found as f;
            continue when is_settled is not true;
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
    'Queues a dead delivery again, or an unaddressed one if its rule finds somebody now; null: all of them. '
    'Several for one recipient come as a digest. Returns how many were queued; raises PA401 if the one that was named cannot be.';

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
comment on function pgaudit_wf._prune_alerts() is
    'Removes deliveries that were sent or given up longer ago than the policy keeps them; returns how many.';

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
