-- The reader's cursor: following the log without skipping or repeating an event.
--
-- Ids are given before commit, so they say nothing about what a reader can see. The rule, kept here and nowhere else: take events
-- whose transaction is below the oldest one still running, in the order (tx_id, id), and keep the last (tx_id, id) as the cursor.
--
-- A database that was set back, by point-in-time recovery or failover to a server without the last commits, gives the same ids to other
-- events. So a cursor also has the time of its event, and is refused where that event isn't in the log any more. Where reading begins
-- at the end of the log, whose last event need not be the reader's to know, the cursor stands before a transaction instead (its id is 0),
-- at a time, and is refused where an event that it leaves behind was written later than that.
--
-- Transaction ids start over in a cluster restored from a dump, so the log has generations: the events that came with the dump,
-- then those written since. A materialized view is what a restore runs by itself: it notes, in the new cluster and before the
-- first write, which cluster this is and the last id that came along.
--
-- A subscription that brings events along mixes the transaction ids of two clusters as well, also where the schema came as a copy of
-- the files, which nothing in the database tells from its original. A trigger that fires for no one else notes that events arrived.

create table pgaudit_wf.log_generation (
    inherited_id bigint primary key,
    system_identifier bigint not null,
    noted_at timestamptz not null default now()
);
comment on table pgaudit_wf.log_generation is
    'The clusters that the log has been in, oldest first: transaction ids can only be compared within one of them.';
comment on column pgaudit_wf.log_generation.inherited_id is 'Last event id from before this cluster.';
comment on column pgaudit_wf.log_generation.system_identifier is 'The cluster.';
comment on column pgaudit_wf.log_generation.noted_at is 'When it was noted: by the restore, or by a reader that saw it first.';

create function pgaudit_wf._note_origin(out system_identifier bigint, out inherited_id bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    select c.system_identifier into _note_origin.system_identifier from pg_control_system() as c;
    select case when s.is_called then s.last_value else 0 end into _note_origin.inherited_id
    from pgaudit_wf.security_audit_log_id_seq as s;
    -- At once, as the next restore may be into the cluster before this one, and before anybody has read here.
    insert into pgaudit_wf.log_generation (inherited_id, system_identifier)
    select _note_origin.inherited_id, _note_origin.system_identifier
    where _note_origin.system_identifier is distinct from (
        select g.system_identifier from pgaudit_wf.log_generation as g order by g.inherited_id desc limit 1)
    on conflict on constraint log_generation_pkey do update set system_identifier = excluded.system_identifier;
end
$$;
comment on function pgaudit_wf._note_origin() is
    'The cluster, and the last event id given, which it notes as a generation of the log: what log_origin is refreshed from.';

create materialized view pgaudit_wf.log_origin as
select o.system_identifier, o.inherited_id from pgaudit_wf._note_origin() as o;
comment on materialized view pgaudit_wf.log_origin is
    'The cluster that the log is in, and the last event id that was restored into it. '
    'Refreshed by pg_restore; never refresh it by hand.';
comment on column pgaudit_wf.log_origin.system_identifier is 'pg_control_system().system_identifier of the cluster.';
comment on column pgaudit_wf.log_origin.inherited_id is 'Last id given before the log was restored here; 0 in its first cluster.';

create sequence pgaudit_wf.log_arrival_seq;
comment on sequence pgaudit_wf.log_arrival_seq is
    'Called once a subscription has brought events here, until finish_switchover(): the first event id that could be given here since.';

create function pgaudit_wf._note_arrival() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A sequence, as replication leaves it alone, and a dump does not.
    -- On a hub they get transaction ids of this cluster, and what comes another way is refused.
    if not (select s.is_called from pgaudit_wf.log_arrival_seq as s) and not exists (select from pgaudit_wf.hub_node)
        and pgaudit_wf._is_applied()
    then
        perform setval('pgaudit_wf.log_arrival_seq', (
            select case when s.is_called then s.last_value + 1 else 1 end from pgaudit_wf.security_audit_log_id_seq as s));
    end if;
    return null;
end
$$;
comment on function pgaudit_wf._note_arrival() is 'Trigger on the log for what a subscription applies: notes that it was brought along.';

create trigger note_arrival after insert on pgaudit_wf.security_audit_log
    for each row execute function pgaudit_wf._note_arrival();
alter table pgaudit_wf.security_audit_log enable replica trigger note_arrival;

create function pgaudit_wf._is_moved() returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    origin record;
    newest record;
begin
    if (select s.is_called from pgaudit_wf.log_arrival_seq as s) then
        return true;
    end if;
    -- Restored without data: a subscription will fill the log.
    if not (select relispopulated from pg_class where oid = 'pgaudit_wf.log_origin'::regclass) then
        return true;
    end if;
    select o.system_identifier, o.inherited_id into origin from pgaudit_wf.log_origin as o;
    select g.system_identifier, g.inherited_id into newest from pgaudit_wf.log_generation as g order by g.inherited_id desc limit 1;
    return newest.system_identifier <> origin.system_identifier and origin.inherited_id <= newest.inherited_id;
end
$$;
comment on function pgaudit_wf._is_moved() is
    'Whether the log was brought here by replication and finish_switchover() has not been called: '
    'transaction ids of two clusters are mixed, and no reader could tell what it has seen.';

create function pgaudit_wf.log_generations() returns table (first_id bigint, last_id bigint, system_identifier bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if pgaudit_wf._is_moved() then
        raise exception 'this log was replicated from another cluster, and readers cannot go on in it yet'
            using errcode = 'PA011', hint = 'Once writes come here and the subscription is dropped: select pgaudit_wf.finish_switchover();';
    end if;
    if exists (select from pgaudit_wf.hub_node as n, pgaudit_wf.log_origin as o where n.hub_cluster <> o.system_identifier) then
        raise exception 'this hub was restored into another cluster, where its order of arrival means nothing'
            using errcode = 'PA013', hint = 'Make a new one: pgaudit-wf migrate, then hub add for each node.';
    end if;
    return query
    with known as (
        select g.inherited_id, g.system_identifier from pgaudit_wf.log_generation as g
        union all
        -- Restored since a reader last read. The same cluster again is a copy within it, where transaction ids go on.
        select o.inherited_id, o.system_identifier from pgaudit_wf.log_origin as o
        where o.system_identifier <> (select g.system_identifier from pgaudit_wf.log_generation as g order by g.inherited_id desc limit 1)
    )
    select inherited_id + 1, lead(inherited_id) over (order by inherited_id), known.system_identifier
    from known
    order by inherited_id;
end
$$;
comment on function pgaudit_wf.log_generations() is
    'The ranges of event ids written in one cluster each, oldest first; last_id is null for the current one. '
    'Raises PA011 where the log was replicated from another cluster and finish_switchover() is still to be called, '
    'PA013 in a hub that was restored into another cluster.';

create function pgaudit_wf._note_generation() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgaudit_wf._is_moved() then
        -- Where an empty log was restored, no event is of the cluster that it came from.
        update pgaudit_wf.log_generation as known set system_identifier = g.system_identifier
        from pgaudit_wf.log_generations() as g
        where known.inherited_id = g.first_id - 1 and known.system_identifier <> g.system_identifier;
        insert into pgaudit_wf.log_generation (inherited_id, system_identifier)
        select g.first_id - 1, g.system_identifier from pgaudit_wf.log_generations() as g
        on conflict on constraint log_generation_pkey do nothing;
    end if;
end
$$;
comment on function pgaudit_wf._note_generation() is
    'Remembers the current cluster as a generation of the log. '
    'A reader that keeps its cursor calls it whenever it saves it; ensure_log_partitions() does too.';

select pgaudit_wf.ensure_log_partitions();

create function pgaudit_wf._last_cursor(first_id bigint, tx_id bigint, id bigint, until timestamptz) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Backwards along the primary keys, as read_log() goes forwards.
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    generation record;
    newest record;
begin
    select g.* into generation from pgaudit_wf.log_generations() as g where g.first_id = _last_cursor.first_id;
    select l.tx_id, l.id, l.occurred_at into newest
    from pgaudit_wf.security_audit_log as l
    where (l.tx_id, l.id) <= (_last_cursor.tx_id, _last_cursor.id) and l.occurred_at <= _last_cursor.until
        and l.id >= generation.first_id and l.id <= coalesce(generation.last_id, 9223372036854775807)
    order by l.tx_id desc, l.id desc
    limit 1;
    return format('%s/%s/%s/%s/%s', generation.system_identifier, generation.first_id,
        coalesce(newest.tx_id, 0), coalesce(newest.id, 0), coalesce(extract(epoch from newest.occurred_at), 0.000000));
end
$$;
comment on function pgaudit_wf._last_cursor(bigint, bigint, bigint, timestamptz) is
    'Cursor of the last event of a generation, of those that the caller may read, up to a transaction, id and time; '
    'where there is none, of the generation''s beginning.';

create function pgaudit_wf._last_time(first_id bigint, below_tx bigint) returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    newest_id constant bigint := coalesce(
        (select g.last_id from pgaudit_wf.log_generations() as g where g.first_id = _last_time.first_id), 9223372036854775807);
begin
    -- What was written after the log was set back has the highest transactions and the latest times: either tells, and each reader has
    -- an index that finds one of them at once.
    if row_security_active('pgaudit_wf.security_audit_log') then
        return (
            select l.occurred_at from pgaudit_wf.security_audit_log as l
            where l.tx_id < _last_time.below_tx and l.id between _last_time.first_id and newest_id
            order by l.occurred_at desc, l.id desc limit 1);
    end if;
    return (
        select l.occurred_at from pgaudit_wf.security_audit_log as l
        where l.tx_id < _last_time.below_tx and l.id between _last_time.first_id and newest_id
        order by l.tx_id desc, l.id desc limit 1);
end
$$;
comment on function pgaudit_wf._last_time(bigint, bigint) is
    'Time of the last event of a generation, of those that the caller may read, that is of a transaction below the given one.';

create function pgaudit_wf._has_event(cursor text, tx_id bigint, id bigint, occurred_at timestamptz) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
            select from pgaudit_wf.security_audit_log as l
            where l.tx_id = _has_event.tx_id and l.id = _has_event.id and l.occurred_at = _has_event.occurred_at)
        or exists (
            select from pgaudit_wf.archive as a
            where a.from_time <= _has_event.occurred_at and a.to_time > _has_event.occurred_at and a.pruned_at is not null)
        -- What the database keeps was set back with it. If only the event is gone, somebody removed it, which verify tells; sealing
        -- and alerts must not stop for that.
        or exists (select from pgaudit_wf.reader as r where r.cursor = _has_event.cursor);
end
$$;
comment on function pgaudit_wf._has_event(text, bigint, bigint, timestamptz) is
    'Whether a cursor''s event is in the log, or its time in a month that was pruned, or a reader in the database stands there, too.';

create function pgaudit_wf.read_log(after text default null, max_events integer default 1000)
returns table (cursor text, event pgaudit_wf.security_audit_log)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- The primary keys of the partitions give the order. A planner that guesses wrong, as it does on a fresh partition, would sort the
-- whole rest of the log for each batch.
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    generation record;
    part constant text[] := regexp_match(read_log.after,
        e'^(\\d+)/(\\d+)/(\\d{1,18})/(\\d{1,18})/(-?(?:\\d{1,12}\\.\\d{6}|Infinity))$');
    after_tx bigint := coalesce(part[3]::bigint, -1);
    after_id bigint := coalesce(part[4]::bigint, -1);
    reached_at constant timestamptz := to_timestamp(part[5]::double precision);
    below_tx constant bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    remaining integer := read_log.max_events;
    is_set_back boolean;
    found_events integer;
begin
    if coalesce(read_log.max_events, 0) < 1 then
        raise exception 'max_events must be at least 1' using errcode = 'PA008';
    end if;
    if read_log.after is not null and not exists (
        select from pgaudit_wf.log_generations() as g where g.system_identifier::text = part[1] and g.first_id::text = part[2]) then
        raise exception 'the cursor "%" does not belong to this log', read_log.after
            using errcode = 'PA007', hint = 'Pass a cursor that read_log() returned, or null to start at the beginning.';
    end if;
    is_set_back := case
        when after_tx <= 0 then false
        when after_id > 0 then not pgaudit_wf._has_event(read_log.after, after_tx, after_id, reached_at)
        else coalesce(pgaudit_wf._last_time(part[2]::bigint, after_tx) > reached_at, false) or (after_tx > below_tx and exists (
            select from pgaudit_wf.log_generations() as g where g.first_id::text = part[2] and g.last_id is null)) end;
    if is_set_back then
        -- A standby, or an old snapshot, may be behind what the cursor is from.
        if after_tx >= below_tx and (pg_is_in_recovery() or current_setting('transaction_isolation') <> 'read committed') then
            return;
        end if;
        raise exception '% of %, which the cursor "%" stands at, is no longer in the log',
                case when after_id > 0 then format('event %s', after_id) else 'the end' end, reached_at at time zone 'UTC', read_log.after
            using errcode = 'PA012',
                detail = 'The database was restored to an earlier time, or failed over to a server without its last commits '
                    '(or somebody removed the event: pgaudit-wf verify tells). What was recorded since may have the same ids.',
                hint = format('Go on after "%s", and drop what was read after it: it may come again, or never happened.',
                    pgaudit_wf._last_cursor(part[2]::bigint, after_tx, after_id, reached_at));
    end if;
    for generation in
        select g.* from pgaudit_wf.log_generations() as g
        where part is null or g.first_id >= part[2]::bigint order by g.first_id
    loop
        -- Only the current cluster can have transactions under way.
        return query
            select format('%s/%s/%s/%s/%s',
                generation.system_identifier, generation.first_id, l.tx_id, l.id, extract(epoch from l.occurred_at)), l
            from pgaudit_wf.security_audit_log as l
            where (l.tx_id, l.id) > (after_tx, after_id)
                and l.id >= generation.first_id and l.id <= coalesce(generation.last_id, 9223372036854775807)
                and (generation.last_id is not null or l.tx_id < below_tx)
            order by l.tx_id, l.id
            limit remaining;
        get diagnostics found_events = row_count;
        remaining := remaining - found_events;
        exit when remaining = 0;
        after_tx := -1;
        after_id := -1;
    end loop;
end
$$;
comment on function pgaudit_wf.read_log(text, integer) is
    'The events after a cursor (null: from the beginning), at most max_events, in an order in which none is ever skipped or repeated: '
    'only those of transactions older than every running one. Each comes with the cursor to pass next time. '
    'A cursor survives dump and restore. Raises PA007 on a cursor of another log, '
    'PA012 where the log was set back to before the cursor''s event; the hint has the cursor to go on from.';
