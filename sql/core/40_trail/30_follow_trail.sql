-- The trail as it grows: audit_trail() looks back, this continues from a cursor.

create function pgaudit_wf._log_end() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Before the oldest transaction that is still running: after everything that read_log() could have returned by now.
    select format('%s/%s/%s/0/%s', g.system_identifier, g.first_id, running.below_tx, extract(epoch from greatest(
        clock_timestamp(),
        -- The clock may have been set back.
        pgaudit_wf._last_time(g.first_id, running.below_tx))))
    from pgaudit_wf.log_generations() as g, (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as below_tx) as running
    where g.last_id is null
$$;
comment on function pgaudit_wf._log_end() is
    'Cursor for read_log() and follow_trail() after everything that they could return now: '
    'for following new events without reading old ones.';

create function pgaudit_wf.follow_trail(
    after text,
    org_id text default null,
    action text default null,
    resource_type text default null,
    resource_id text default null,
    actor_id text default null,
    correlation_id text default null,
    outcome text default null,
    since timestamptz default null,
    until timestamptz default null,
    search text default null,
    max_events integer default 200,
    actions text[] default null,
    not_actions text[] default null,
    resource_types text[] default null,
    not_resource_types text[] default null,
    actor_ids text[] default null,
    not_actor_ids text[] default null,
    api_key_id text default null,
    network inet default null,
    changed text default null,
    value text default null
) returns table (cursor text, entry pgaudit_wf.trail_entry)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    wanted pgaudit_wf.trail_filter := row(org_id, pgaudit_wf._values(action, actions), pgaudit_wf._values(resource_type, resource_types),
        resource_id, pgaudit_wf._values(actor_id, actor_ids), correlation_id, outcome, since, until, search, nullif(not_actions, '{}'),
        nullif(not_resource_types, '{}'), nullif(not_actor_ids, '{}'), api_key_id, network, changed, value);
    batch record;
    is_one_page boolean;
begin
    select
        array_agg(r.cursor order by r.position) as cursors, array_agg((r.event).id order by r.position) as ids,
        array_agg((r.event).occurred_at order by r.position) as times,
        min((r.event).occurred_at) as first, max((r.event).occurred_at) as last
    into batch
    from pgaudit_wf.read_log(follow_trail.after, follow_trail.max_events) with ordinality as r (cursor, event, position);
    if batch.ids is null then
        return;
    end if;
    -- Filters and names are those of audit_trail(). A batch usually is all that happened in its time, so one page has it. That of a
    -- long transaction is not: then each event is looked up by its position. Counted first, as an array of entries could not exceed 1 GB.
    wanted.since := greatest(follow_trail.since, batch.first);
    wanted.until := least(follow_trail.until, batch.last + interval '1 microsecond');
    is_one_page := 1000 > (select count(*) from pgaudit_wf._trail_page(wanted, null, 1000));
    if is_one_page then
        return query
            select item.cursor, e
            from unnest(batch.cursors, batch.ids) with ordinality as item (cursor, id, position)
            left join pgaudit_wf._trail_page(wanted, null, 1000) as e on e.id = item.id
            order by item.position;
        return;
    end if;
    for batch in
        select item.* from unnest(batch.cursors, batch.ids, batch.times) with ordinality as item (cursor, id, occurred_at, position)
        order by item.position
    loop
        wanted.since := greatest(follow_trail.since, batch.occurred_at);
        wanted.until := least(follow_trail.until, batch.occurred_at + interval '1 microsecond');
        return query
            select batch.cursor, e from (values (batch.id)) as item (id)
            left join pgaudit_wf._trail_page(wanted, pgaudit_wf._trail_cursor(batch.occurred_at, batch.id + 1), 1) as e on e.id = item.id;
    end loop;
end
$$;
comment on function pgaudit_wf.follow_trail(text, text, text, text, text, text, text, text, timestamptz, timestamptz, text, integer,
    text[], text[], text[], text[], text[], text[], text, inet, text, text) is
    'read_log() for people: up to max_events events after the cursor (as read_log() returns it), each as an entry of audit_trail(), '
    'or null where the filters, which are those of audit_trail(), leave it out. '
    'Keep the cursor of every row, even one without an entry: then nothing is skipped or repeated. '
    'Raises PA007 on a cursor of another log, PA012 where the log was set back, as read_log() does.';
