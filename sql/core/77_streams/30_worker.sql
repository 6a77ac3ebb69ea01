-- What the worker does: claim a batch, settle it.

create function pgaudit_wf._try_actors(actor_ids text[], org_ids text[])
returns table (actor_id text, org_id text, name text, email text, role text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select distinct on (p.actor_id, p.org_id) p.actor_id, p.org_id, p.name, p.email, p.role
        from pgaudit_wf._present_actors(_try_actors.actor_ids, _try_actors.org_ids, false) as p
        order by p.actor_id, p.org_id, p.name;
exception
    -- The view is the application's. Where it fails, an event with the name that it was recorded with is better than none.
    when others then
        if pgaudit_wf._is_general(sqlstate) then
            raise;
        end if;
end
$$;
comment on function pgaudit_wf._try_actors(text[], text[]) is
    '_present_actors() for all organizations; nobody where the application''s view fails for one of them.';

create function pgaudit_wf._claim_stream(destination text, max_events integer, lease interval)
returns table (claim bigint, cursor text, uid text, entry pgaudit_wf.trail_entry)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
    wanted pgaudit_wf.stream_destination;
    log_id constant uuid := (select p.log_id from pgaudit_wf.alert_policy as p);
    right_now constant timestamptz := clock_timestamp();
    new_claim bigint;
begin
    select s.claim + 1 into new_claim from pgaudit_wf.stream_state as s
    where s.destination = _claim_stream.destination and s.due_at <= right_now and coalesce(s.lease_until < right_now, true)
    for update skip locked;
    select d.* into wanted from pgaudit_wf.stream_destination as d where d.name = _claim_stream.destination and not d.paused;
    if new_claim is null or wanted.name is null then
        return;
    end if;
    update pgaudit_wf.stream_state as s set claim = new_claim, lease_until = right_now + _claim_stream.lease
    where s.destination = wanted.name;
    return query
        with batch as materialized (
            select row_number() over () as number, r.cursor, r.event
            from pgaudit_wf.read_as('stream.' || wanted.name, _claim_stream.max_events) as r
        ),
        matched as materialized (
            select b.number, b.cursor, b.event, pgaudit_wf._readable_json((b.event).diff, wanted.max_value) as diff,
                pgaudit_wf._readable_json((b.event).metadata, wanted.max_value) as metadata
            from batch as b
            where (wanted.org_id is null or (b.event).org_id = wanted.org_id)
                and exists (
                    select from unnest(wanted.action_patterns) as p (pattern)
                    where pgaudit_wf._matches_pattern((b.event).action, p.pattern))
        ),
        sized as materialized (
            select m.*, sum(coalesce(pg_column_size(m.diff), 0) + pg_column_size(m.metadata)) over (order by m.number) as size,
                row_number() over (order by m.number) as rank
            from matched as m
        ),
        -- A worker holds a batch in memory.
        kept as materialized (select s.* from sized as s where s.size <= 8388608 or s.rank = 1),
        asked as materialized (
            select array_agg(who.id) as ids, array_agg((k.event).org_id) as orgs
            from kept as k, unnest(array[(k.event).actor_id, (k.event).on_behalf_of]) as who (id)
        ),
        actor as materialized (
            select a.* from asked, pgaudit_wf._try_actors(asked.ids, asked.orgs) as a
            -- One organization may see its members; who else an event names, it knows by what the event says.
            where wanted.org_id is null or a.role is not null
        ),
        resource as materialized (
            select n.* from pgaudit_wf.resource_names(
                array(select (k.event).resource_type from kept as k order by k.number),
                array(select (k.event).resource_id from kept as k order by k.number), wanted.org_id) as n
        ),
        shown as (
            select k.number, k.cursor,
                left(encode(sha256(convert_to(concat_ws('/', log_id, (k.event).tx_id, (k.event).id,
                    extract(epoch from (k.event).occurred_at)), 'UTF8')), 'hex'), 32) as uid,
                row (
                    (k.event).id, (k.event).tx_id, (k.event).occurred_at, (k.event).org_id, (k.event).org_label,
                    (k.event).actor_id, left(coalesce(actor.name, (k.event).actor_label), 255), left(actor.email, 255),
                    left(actor.role, 255), (k.event).actor_type,
                    (k.event).on_behalf_of, left(coalesce(principal.name, principal.email), 255), (k.event).client,
                    (k.event).auth_method, (k.event).api_key_id, (k.event).action,
                    (k.event).resource_type, (k.event).resource_id, left(coalesce(resource.name, (k.event).metadata ->> 'label'), 255),
                    (k.event).outcome::text, (k.event).captured, (k.event).attested, k.diff, k.metadata,
                    (k.event).ip, (k.event).country, (k.event).user_agent, (k.event).correlation_id,
                    (k.event).db_user, (k.event).application_name, k.cursor)::pgaudit_wf.trail_entry as entry
            from kept as k
            left join actor on actor.actor_id = (k.event).actor_id and actor.org_id is not distinct from (k.event).org_id
            left join actor as principal
                on principal.actor_id = (k.event).on_behalf_of and principal.org_id is not distinct from (k.event).org_id
            left join resource
                on resource.resource_type = (k.event).resource_type and resource.resource_id = (k.event).resource_id
            union all
            -- Where the filter leaves out the end, the reader has to get past it all the same.
            select b.number, b.cursor, null, null::pgaudit_wf.trail_entry
            from batch as b
            where b.number = (select max(l.number) from batch as l) and b.number not in (select m.number from matched as m)
                and (select count(*) from kept) = (select count(*) from matched)
        )
        select new_claim, s.cursor, s.uid, s.entry from shown as s order by s.number;
    if not found then
        update pgaudit_wf.stream_state as s set lease_until = null where s.destination = wanted.name;
    end if;
end
$$;
comment on function pgaudit_wf._claim_stream(text, integer, interval) is
    'The next events for a destination, in the order of the log, which nobody else gets until the lease ends; no row: nothing to do. '
    'The last row may have no event, only the cursor after what the filter leaves out. uid is an id that a repeat shares. '
    'Report back with _settle_stream().';

create function pgaudit_wf._settle_stream(
    destination text, claim bigint, cursor text, events bigint, lease interval,
    dead jsonb default '[]', problem text default null, pause interval default null
) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    right_now constant timestamptz := clock_timestamp();
    state pgaudit_wf.stream_state;
begin
    select s.* into state from pgaudit_wf.stream_state as s
    where s.destination = _settle_stream.destination
        and (s.claim = _settle_stream.claim or _settle_stream.claim is null and coalesce(s.lease_until < right_now, true))
    for update;
    if not found then
        return false;
    end if;
    if _settle_stream.claim is not null and _settle_stream.cursor is not null then
        perform pgaudit_wf.advance_reader('stream.' || state.destination, _settle_stream.cursor, _settle_stream.events);
    end if;
    insert into pgaudit_wf.stream_dead_letter (destination, event_tx_id, event_id, event_occurred_at, action, problem)
    select state.destination, d.tx_id, d.id, d.occurred_at, d.action, left(d.problem, 200)
    from jsonb_to_recordset(_settle_stream.dead) as d (tx_id bigint, id bigint, occurred_at timestamptz, action text, problem text)
    on conflict on constraint stream_dead_letter_pkey do update set problem = excluded.problem, put_aside_at = excluded.put_aside_at;
    update pgaudit_wf.stream_state as s
    set lease_until = case when _settle_stream.problem is null then right_now + _settle_stream.lease end,
        sent = s.sent + _settle_stream.events,
        last_sent_at = case when _settle_stream.events > 0 then right_now else s.last_sent_at end,
        attempts = case when _settle_stream.problem is not null then s.attempts + 1
            when _settle_stream.cursor is not null then 0 else s.attempts end,
        last_error = case when _settle_stream.problem is not null then left(_settle_stream.problem, 200)
            when _settle_stream.cursor is null then s.last_error end,
        due_at = right_now + greatest(
            least(coalesce(_settle_stream.pause, '0 seconds'), interval '1 day'),
            case when _settle_stream.problem is not null
                then (0.5 + random() / 2) * least(interval '10 minutes', interval '5 seconds' * power(2, least(s.attempts, 20)))
                else interval '0 seconds' end)
    where s.destination = state.destination;
    return true;
end
$$;
comment on function pgaudit_wf._settle_stream(text, bigint, text, bigint, interval, jsonb, text, interval) is
    'Reports on a claim: the reader moves to the cursor, if one is given; dead are events that the destination refused. Without a problem '
    'the claim goes on for the lease (null: it ends); with one it ends, and the next attempt comes after a growing pause, at least pause. '
    'False: the claim was overtaken, and nothing is changed. Without a claim only the problem is noted, unless a worker is at it.';

create function pgaudit_wf._stream_lag(destination text) returns table (events bigint, seconds double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    reached text := (select r.cursor from pgaudit_wf.reader as r where r.name = 'stream.' || _stream_lag.destination);
begin
    return query
        select count(*), coalesce(extract(epoch from clock_timestamp() - min((l.event).occurred_at))::double precision, 0)
        from pgaudit_wf.read_log(reached, 10000) as l;
end
$$;
comment on function pgaudit_wf._stream_lag(text) is
    'How many events a destination is behind the log, whether its filter takes them or not, up to 10,000, and the age of the oldest.';

create function pgaudit_wf._grant_streams(worker regrole) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('grant usage on schema pgaudit_wf to %s', _grant_streams.worker);
    execute format('grant select on pgaudit_wf.stream_destination, pgaudit_wf.stream_state, pgaudit_wf.stream_dead_letter,'
        ' pgaudit_wf.stream_list to %s', _grant_streams.worker);
    execute format('grant execute on function pgaudit_wf._claim_stream(text, integer, interval),'
        ' pgaudit_wf._settle_stream(text, bigint, text, bigint, interval, jsonb, text, interval),'
        ' pgaudit_wf._stream_lag(text) to %s', _grant_streams.worker);
end
$$;
comment on function pgaudit_wf._grant_streams(regrole) is
    'Lets a login run pgaudit-wf stream and nothing else: of the log it gets what the destinations are to get.';
