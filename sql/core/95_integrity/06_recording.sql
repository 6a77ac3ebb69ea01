-- Recording that is switched off, and on again: events too. DDL says so as it happens, and the next seal what DDL did not.

create table pgaudit_wf.recording_gap (
    relation regclass primary key,
    ops text[] not null,
    since timestamptz not null default clock_timestamp()
);
comment on table pgaudit_wf.recording_gap is
    'Attached tables, and partitions of theirs, of which some changes are not being recorded, as far as is known; '
    'the events audit.recording_disabled and audit.recording_enabled say since when.';
comment on column pgaudit_wf.recording_gap.relation is 'The table or partition.';
comment on column pgaudit_wf.recording_gap.ops is 'What is not recorded of it: insert, update, delete, truncate.';
comment on column pgaudit_wf.recording_gap.since is 'When that was found.';

create function pgaudit_wf._unrecorded(relations regclass[], present boolean)
returns table (relation regclass, recorded_through regclass, ops text[])
-- Not SQL, which would be planned anew for each partition that attach() alters.
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- A table may have thousands of partitions, and the planner expects hundreds of rows of each function: it would compile the query, and
-- read catalogs from end to end for the one table that each statement of attach() alters.
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    with recursive asked as (
        select a.target, a.target as relation from pgaudit_wf.attachment as a where _unrecorded.relations is null
        union all
        select a.target, above.relation
        from (
            select r as relation, r as relid from unnest(_unrecorded.relations) as r
            union
            select r, parent.relid from unnest(_unrecorded.relations) as r, lateral pg_partition_ancestors(r) as parent
        ) as above
        join pgaudit_wf.attachment as a on a.target = above.relid
    ), part as (
        select asked.target, asked.relation as relid from asked
        union
        select part.target, i.inhrelid
        from part
        join pg_inherits as i on i.inhparent = part.relid
        join pg_class as c on c.oid = i.inhrelid and c.relispartition
    ), written as materialized (
        select a.target, array[
            to_regprocedure(format('pgaudit_wf.%I()', a.function_name)),
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._batch_function_name(a)))]::oid[] as functions
        from pgaudit_wf.attachment as a where a.target in (select asked.target from asked)
    ), leaf as (
        select part.target, part.relid, c.relkind, written.functions
        from part
        join pg_class as c on c.oid = part.relid and c.relkind <> 'p'
        join written on written.target = part.target
    )
    select leaf.relid, leaf.target, array_agg(op.name order by op.name)
    from leaf
    join (values ('insert', 4), ('delete', 8), ('update', 16), ('truncate', 32)) as op (name, bit)
        on leaf.relkind <> 'f' or op.name <> 'truncate',
    lateral (
        select count(*) as placed,
            -- After the change, whatever the row is; by either of the two triggers that can record, each in its own way.
            count(*) filter (where t.tgenabled in ('A', 'O') and t.tgqual is null and t.tgattr = '' and t.tgtype & 66 = 0
                and (t.tgtype & 1 = 1) = (t.tgfoid = leaf.functions[1] and op.name <> 'truncate')) as recording
        from pg_trigger as t
        where t.tgrelid = leaf.relid and t.tgfoid = any (leaf.functions) and t.tgtype & op.bit <> 0
    ) as trigger
    where trigger.recording = 0 and (trigger.placed > 0 or not _unrecorded.present)
    group by leaf.relid, leaf.target;
end
$$;
comment on function pgaudit_wf._unrecorded(regclass[], boolean) is
    'What the triggers of attached tables do not record: of those given, or their partitions (null: of all). '
    'present: only where a trigger is there and switched off, as while a table is being attached the others are still to come.';

create function pgaudit_wf._note_recording(relations regclass[] default null, present boolean default false) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    change record;
begin
    for change in
        with found as (
            select u.relation, u.ops from pgaudit_wf._unrecorded(_note_recording.relations, _note_recording.present) as u
        ), known as (
            select g.relation, g.ops, g.since from pgaudit_wf.recording_gap as g
            where _note_recording.relations is null or g.relation = any (_note_recording.relations)
                or exists (
                    select from unnest(_note_recording.relations) as asked
                    where asked in (select relid from pg_partition_ancestors(g.relation)))
        )
        select coalesce(found.relation, known.relation) as relation, found.ops as ops_now, known.ops as ops_before, known.since,
            through.target as recorded_through
        from found full join known on known.relation = found.relation
        left join lateral (
            select a.target from pgaudit_wf.attachment as a
            where a.target = coalesce(found.relation, known.relation)
                or a.target in (select relid from pg_partition_ancestors(coalesce(found.relation, known.relation)))
            limit 1
        ) as through on true
        where found.ops is distinct from known.ops
        order by 1
    loop
        delete from pgaudit_wf.recording_gap as g where g.relation = change.relation;
        if change.ops_now is not null then
            insert into pgaudit_wf.recording_gap (relation, ops, since)
            values (change.relation, change.ops_now, coalesce(change.since, clock_timestamp()))
            on conflict on constraint recording_gap_pkey do update set ops = excluded.ops;
        end if;
        -- Nothing of a table that was detached or dropped is to be recorded, which has its own event.
        continue when change.recorded_through is null;
        perform pgaudit_wf._record_audit(
            case when change.ops_now is null or change.ops_now <@ change.ops_before
                then 'audit.recording_enabled' else 'audit.recording_disabled' end,
            'pgaudit_wf.attachment', change.relation::text,
            pgaudit_wf._json_diff(
                jsonb_build_object('unrecorded', coalesce(change.ops_before, '{}')),
                jsonb_build_object('unrecorded', coalesce(change.ops_now, '{}'))),
            jsonb_strip_nulls(jsonb_build_object(
                'reason', pgaudit_wf._context_reason(),
                'since', change.since,
                'recorded_through', case when change.recorded_through <> change.relation then change.recorded_through::text end,
                'found_by', case when _note_recording.relations is null then 'seal' end)));
    end loop;
end
$$;
comment on function pgaudit_wf._note_recording(regclass[], boolean) is
    'Records as audit.recording_disabled and audit.recording_enabled what changed in what is recorded of attached tables: '
    'of those given, as _unrecorded() has it, or of all.';

create function pgaudit_wf._record_replaced(object text, was text, becomes text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._record_audit('audit.function_replaced', 'pgaudit_wf.function', regexp_replace(object, '^function ', ''),
        pgaudit_wf._json_diff(jsonb_build_object('sha256', was), jsonb_build_object('sha256', becomes)),
        jsonb_strip_nulls(jsonb_build_object(
            'reason', pgaudit_wf._context_reason(), 'configuration', 'object/' || object, 'state', becomes)));
end
$$;
comment on function pgaudit_wf._record_replaced(text, text, text) is
    'Records that a function of this schema is not the one that was installed.';

create function pgaudit_wf._note_altered() returns event_trigger
-- As the owner of our schema: the author of the DDL need not be allowed to write the log.
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    altered regclass[];
    replaced record;
begin
    if tg_tag in ('CREATE FUNCTION', 'ALTER FUNCTION') then
        for replaced in
            select b.object, b.digest as was, now_there.digest as becomes
            from pg_event_trigger_ddl_commands() as command
            cross join lateral pgaudit_wf._describe_function(command.objid) as now_there
            -- Those that attach() writes are replaced with the settings, which have events; the next seal compares them.
            join pgaudit_wf.blueprint as b on b.object = now_there.object and not b.is_generated and b.digest <> now_there.digest
            where command.classid = 'pg_proc'::regclass and command.schema_name = 'pgaudit_wf'
        loop
            perform pgaudit_wf._record_replaced(replaced.object, replaced.was, replaced.becomes);
        end loop;
        return;
    end if;
    altered := array(
        select command.objid from pg_event_trigger_ddl_commands() as command where command.classid = 'pg_class'::regclass
        union
        select t.tgrelid from pg_event_trigger_ddl_commands() as command join pg_trigger as t on t.oid = command.objid
        where command.classid = 'pg_trigger'::regclass);
    if exists (
            select from (
                select unnest(altered) as relid
                union
                select above.relid from unnest(altered) as part, lateral pg_partition_ancestors(part) as above
            ) as concerned
            join pgaudit_wf.attachment as a on a.target = concerned.relid)
    then
        perform pgaudit_wf._note_recording(altered, true);
    end if;
exception
    -- The next seal finds it, and nobody's DDL is to fail for it.
    when others then
        raise warning 'whether attached tables are still recorded could not be noted: %', sqlerrm;
end
$$;
comment on function pgaudit_wf._note_altered() is
    'Event trigger after ALTER TABLE, CREATE TRIGGER, ALTER TRIGGER, CREATE FUNCTION and ALTER FUNCTION: '
    'records that an attached table is no longer recorded, or again, and that a function of ours was replaced.';

create function pgaudit_wf._note_dropped_triggers() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._note_recording(array_agg(c.oid::regclass))
    from pg_event_trigger_dropped_objects() as dropped
    join pg_namespace as n on n.nspname = dropped.address_names[1]
    join pg_class as c on c.relnamespace = n.oid and c.relname = dropped.address_names[2]
    where dropped.object_type = 'trigger' and dropped.address_names[3] ~ '^!?pgaudit_wf_'
    having count(*) > 0;
exception
    when others then
        raise warning 'whether attached tables are still recorded could not be noted: %', sqlerrm;
end
$$;
comment on function pgaudit_wf._note_dropped_triggers() is
    'Within an event trigger after a drop: records that an attached table whose trigger was dropped is no longer recorded.';
