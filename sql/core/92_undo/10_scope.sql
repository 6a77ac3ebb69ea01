-- What is to be undone: the events that are meant, gathered by the rows that they changed.

create function pgaudit_wf._find_undone(type text, resource_id text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lines constant text := current_setting('pgaudit_wf.undoing', true);
    wanted constant text := concat(e'\n', to_json(_find_undone.type), to_json(_find_undone.resource_id), ':');
    start constant integer := strpos(lines, wanted);
begin
    -- Anybody can write the setting, and no write may fail for what it holds.
    return case when start > 0 then to_jsonb(string_to_array(substring(
        split_part(substr(lines, start + length(wanted), 20000), e'\n', 1) from e'^\\d{1,18}(?:,\\d{1,18})*$'), ',')::bigint[]) end;
end
$$;
comment on function pgaudit_wf._find_undone(text, text) is
    'The events that undo() is undoing by changing a row, from pgaudit_wf.undoing: a line "<type>""<id>":<event>,<event>… for each row.';

create function pgaudit_wf._undoes(type text, resource_id text) returns jsonb
language sql stable
-- Inlined, as every change asks.
as $$ select case when current_setting('pgaudit_wf.undoing', true) <> '' then pgaudit_wf._find_undone(type, resource_id) end $$;
comment on function pgaudit_wf._undoes(text, text) is
    'metadata.undoes of an event: the events that it undoes, as its writer claims; null for others.';

create type pgaudit_wf.undo_group as (
    target regclass,
    resource_type text,
    resource_id text,
    op text,
    problem text,
    ids bigint[],
    tx_ids bigint[],
    times timestamptz[]
);
comment on type pgaudit_wf.undo_group is
    'Events to be undone that concern the same row, newest first, and what that takes: insert, update or delete. '
    'resource_id is the key that the row has now; problem says why no row can be found.';

create function pgaudit_wf._undo_targets(tables regclass[])
returns table (resource_type text, target regclass, problem text, has_moved boolean)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select known.resource_type, case when cardinality(found.targets) = 1 then found.targets[1] end,
        case cardinality(found.targets) when 0 then 'detached' when 1 then null else 'ambiguous' end,
        exists (select from pgaudit_wf.key_change as k where k.resource_type = known.resource_type)
    from (
        select h.resource_type from pgaudit_wf.attachment_history as h
        union
        select a.resource_type from pgaudit_wf.attachment as a
    ) as known,
    lateral (
        select array(
            select a.target from pgaudit_wf.attachment as a
            where exists (select from pg_class where oid = a.target)
                and (_undo_targets.tables is null or a.target = any (_undo_targets.tables))
                and (a.resource_type = known.resource_type
                    -- A type that was renamed since.
                    or not exists (select from pgaudit_wf.attachment as b where b.resource_type = known.resource_type)
                    and a.target::text in (
                        select h.target from pgaudit_wf.attachment_history as h where h.resource_type = known.resource_type))
            order by a.target) as targets
    ) as found
    where _undo_targets.tables is null or cardinality(found.targets) > 0
$$;
comment on function pgaudit_wf._undo_targets(regclass[]) is
    'The resource types ever recorded (of the given tables), each with the table that has its rows now, or why there is none.';

create function pgaudit_wf._present_key(type text, resource_id text, after_id bigint) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    departure record;
begin
    loop
        select d.id, d.new_id into departure
        from pgaudit_wf._row_departure(_present_key.type, _present_key.resource_id, _present_key.after_id, 9223372036854775807, false) as d;
        exit when not found or exists (
            select from pgaudit_wf.security_audit_log as l
            where l.resource_type = _present_key.type and l.resource_id = _present_key.resource_id and l.captured
                and l.id > _present_key.after_id and l.id < departure.id and l.diff @> '[{"op": "remove", "path": ""}]');
        resource_id := departure.new_id;
        after_id := departure.id;
    end loop;
    return _present_key.resource_id;
end
$$;
comment on function pgaudit_wf._present_key(text, text, bigint) is
    'The key that a row has now, or had when it was deleted, by its key after an event.';

create function pgaudit_wf._undo_groups(
    event_id bigint, correlation_id text, tx_id bigint, actor_id text, api_key_id text, tables regclass[],
    since timestamptz, until timestamptz, org_id text
) returns setof pgaudit_wf.undo_group
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    -- Only the conditions in use, so that each combination gets the index that serves it. What record_event() reports changed no row.
    return query execute 'with target as materialized (select t.* from pgaudit_wf._undo_targets($6) as t), event as (
            select t.target, l.resource_type, l.id, l.tx_id, l.occurred_at,
                case when t.has_moved then pgaudit_wf._present_key(l.resource_type, l.resource_id, l.id) else l.resource_id end as key,
                case when t.problem is not null then t.problem when l.resource_id is not null then null
                    when l.action = l.resource_type || ''.truncated'' then ''truncated''
                    when l.action = l.resource_type || ''.rewritten'' then ''rewritten'' else ''keyless'' end as problem,
                case when l.diff -> 0 ->> ''path'' = '''' then l.diff -> 0 ->> ''op'' else ''replace'' end as op
            from pgaudit_wf.security_audit_log as l join target as t on t.resource_type = l.resource_type
            where l.captured'
        || concat(
            case when _undo_groups.event_id is not null then ' and l.id = $1' end,
            case when _undo_groups.correlation_id is not null then ' and l.correlation_id = $2' end,
            case when _undo_groups.tx_id is not null then ' and l.tx_id = $3' end,
            case when _undo_groups.actor_id is not null then ' and l.actor_id = $4' end,
            case when _undo_groups.api_key_id is not null then ' and l.api_key_id = $5' end,
            case when _undo_groups.since is not null then ' and l.occurred_at >= $7' end,
            case when _undo_groups.until is not null then ' and l.occurred_at < $8' end,
            case when _undo_groups.org_id is not null then ' and l.org_id = $9' end)
        || '), row_events as (
            select e.target, e.resource_type, e.key, e.problem, array_agg(e.id) as ids, array_agg(e.tx_id) as tx_ids,
                array_agg(e.occurred_at) as times, array_agg(e.op) as ops,
                max(e.id) as newest_id, max(e.id) filter (where e.op = ''add'') as insert_id,
                max(e.id) filter (where e.op = ''remove'') as delete_id
            from (select event.* from event order by event.id desc) as e
            group by e.target, e.resource_type, e.key, e.problem
        )
        select r.target, r.resource_type, r.key,
            case when existed_before and existed_after then ''update'' when existed_before then ''insert'' else ''delete'' end,
            r.problem, r.ids, r.tx_ids, r.times
        from row_events as r,
        lateral (select r.ops[1] <> ''remove'' as existed_after, r.ops[cardinality(r.ops)] <> ''add'' as existed_before) as existence
        where existed_before or existed_after or r.problem is not null
        -- Where rows depend on each other: back in the order in which they came and went.
        order by case when r.problem is not null then r.newest_id when not existed_before then r.insert_id
            when not existed_after then r.delete_id else r.newest_id end desc'
        using _undo_groups.event_id, _undo_groups.correlation_id, _undo_groups.tx_id, _undo_groups.actor_id, _undo_groups.api_key_id,
            _undo_groups.tables, _undo_groups.since, _undo_groups.until, _undo_groups.org_id;
end
$$;
comment on function pgaudit_wf._undo_groups(bigint, text, bigint, text, text, regclass[], timestamptz, timestamptz, text) is
    'The captured events that are meant (null: any), gathered by row, newest first; without rows that both came and went by them.';

create function pgaudit_wf._undo_runs(groups pgaudit_wf.undo_group[], one_by_one boolean)
returns table (run pgaudit_wf.undo_group[], positions integer[])
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    -- As few as the planner looks up by an index, rather than read the table for them.
    select array_agg(numbered.item order by numbered.position), array_agg(numbered.position::integer order by numbered.position)
    from (
        select item.position, _undo_runs.groups[item.position] as item, item.target, item.op,
            case when _undo_runs.one_by_one then item.position
                else item.position - row_number() over (partition by item.target, item.op order by item.position) end as island,
            sum(cardinality(item.ids)) over (order by item.position) / 100 as part
        from unnest(_undo_runs.groups) with ordinality
            as item (target, resource_type, resource_id, op, problem, ids, tx_ids, times, position)
    ) as numbered
    group by numbered.target, numbered.op, numbered.island, numbered.part
    order by min(numbered.position)
$$;
comment on function pgaudit_wf._undo_runs(pgaudit_wf.undo_group[], boolean) is
    'Parts of a list of rows that one statement can change: successive ones of the same table and operation.';

create function pgaudit_wf._undo_events(run pgaudit_wf.undo_group[])
returns table (place integer, id bigint, occurred_at timestamptz, diff jsonb, version integer)
language sql stable
set search_path = pg_catalog, pg_temp
-- By the primary key, whatever the planner makes of a fresh partition.
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set jit = off
as $$
    select item.place::integer, l.id, l.occurred_at, l.diff, (l.metadata ->> 'version')::integer
    from unnest(run) with ordinality as item (target, resource_type, resource_id, op, problem, ids, tx_ids, times, place),
    lateral unnest(item.ids, item.tx_ids, item.times) as listed (id, tx_id, occurred_at)
    join pgaudit_wf.security_audit_log as l
        on l.tx_id = listed.tx_id and l.id = listed.id and l.occurred_at = listed.occurred_at
    order by item.place, l.id desc
$$;
comment on function pgaudit_wf._undo_events(pgaudit_wf.undo_group[]) is 'The events of rows to be undone, row by row, newest first.';
