-- What all rows of a table were at a moment: row_as_of() for sets of rows.

create function pgaudit_wf._alter_rows(record jsonb, details jsonb[], altered integer, wanted integer) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    for i in _alter_rows.altered + 1 .. _alter_rows.wanted loop
        record := pgaudit_wf._alter_row(record, details[i], false);
    end loop;
    for i in reverse _alter_rows.altered .. _alter_rows.wanted + 1 loop
        record := pgaudit_wf._alter_row(record, details[i], true);
    end loop;
    return record;
end
$$;
comment on function pgaudit_wf._alter_rows(jsonb, jsonb[], integer, integer) is
    'A row of when its table had been altered so many times ($3), as it would be after $4 times.';

create function pgaudit_wf._column_then(name text, details jsonb[], altered integer, wanted integer) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    before text;
begin
    for i in _column_then.altered + 1 .. _column_then.wanted loop
        if details[i] -> 'dropped' ? name then
            return null;
        end if;
        name := coalesce(details[i] -> 'renamed' ->> name, name);
    end loop;
    for i in reverse _column_then.altered .. _column_then.wanted + 1 loop
        if details[i] -> 'added' ? name then
            return null;
        end if;
        before := null;
        select key into before from jsonb_each_text(details[i] -> 'renamed') where value = name;
        name := coalesce(before, name);
    end loop;
    return name;
end
$$;
comment on function pgaudit_wf._column_then(text, jsonb[], integer, integer) is
    'What a column of when its table had been altered so many times ($3) is called after $4 times; null where there is none.';

create function pgaudit_wf._log_begins(target regclass) returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select greatest(
        (
            select min(h.occurred_at) from pgaudit_wf.attachment_history as h
            where h.resource_type = type and h.change = 'attached' and h.occurred_at > coalesce((
                select max(d.occurred_at) from pgaudit_wf.attachment_history as d
                where d.resource_type = type and d.change = 'dropped'), '-infinity')),
        -- Earlier months were pruned, or there were none.
        (select min(m.from_time) from pgaudit_wf.log_months() as m))
    from pgaudit_wf._recorded_type(_log_begins.target) as type
$$;
comment on function pgaudit_wf._log_begins(regclass) is
    'From when on the log has the changes of a table: since it was attached, and as far as months were not pruned.';

create function pgaudit_wf._unknown(state pgaudit_wf.row_state, at timestamptz, log_begins timestamptz) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
    select case
        when (state).rewritten_at is not null then format('DDL rewrote the table at %s', (state).rewritten_at)
        when (state).record is null then null
        when (state).backwards and at < log_begins then format('the log begins at %s: the row as it was then', log_begins)
        when (state).partial then 'only the columns that changed later are known'
    end
$$;
comment on function pgaudit_wf._unknown(pgaudit_wf.row_state, timestamptz, timestamptz) is
    'What the log cannot tell of a row at a moment, in words; null where it can.';

create function pgaudit_wf._only(target regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
-- The rows of tables that inherit from it are not its own.
as $$ select case relkind when 'p' then '' else 'only ' end || _only.target from pg_class where oid = _only.target $$;
comment on function pgaudit_wf._only(regclass) is 'A table as FROM, UPDATE and DELETE name it in order to mean its own rows.';

create function pgaudit_wf._live_rows(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    large text;
begin
    if setting.target is null or not pgaudit_wf._may_read_rows(setting.target) then
        return 'select null::text as key, false as is_large, null::jsonb as record where false';
    end if;
    setting.max_value := null;
    large := coalesce((
        select string_agg(pgaudit_wf._large_test(c, 'pgaudit_wf_row'), ' or ') from pgaudit_wf._capture_columns(setting) as c), 'false');
    return array_to_string(pgaudit_wf._fill(
        'select {{key}} as key, ({{large}}) is true as is_large, case when ({{large}}) is not true then {{record}} end as record'
        ' from {{only}} as pgaudit_wf_row',
        jsonb_build_object('key', pgaudit_wf._key_expression(setting, 'pgaudit_wf_row'), 'large', large,
            'record', pgaudit_wf._row_expression(setting, 'pgaudit_wf_row'),
            'only', pgaudit_wf._only(setting.target))), e'\n');
end
$$;
comment on function pgaudit_wf._live_rows(pgaudit_wf.attachment) is
    'Query for the rows of an attached table as they are now (key, record), none without the right to read them; '
    'is_large: without the record, as it may be too large to be made with others.';

create function pgaudit_wf._rows_as_of(target regclass, at timestamptz, keys text[] default null)
returns table (resource_id text, record jsonb, unknown text)
language plpgsql stable
-- As the triggers write it, whatever the session's settings.
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set lc_monetary = 'C'
set extra_float_digits = 1
set quote_all_identifiers = off
set jit = off
-- Sorted and grouped: in flat memory, and in the order of the sort.
set enable_hashagg = off
set work_mem = '64MB'
as $$
#variable_conflict use_column
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = _rows_as_of.target);
    type constant text := pgaudit_wf._recorded_type(_rows_as_of.target);
    alters timestamptz[];
    details jsonb[];
    rewritten_before timestamptz;
    rewritten_after timestamptz;
    truncation record;
    wanted integer;
begin
    if exists (select from pgaudit_wf.attachment as a where a.resource_type = type and a.target <> _rows_as_of.target) then
        raise exception 'another table is recorded as "%", too, and the log does not tell their rows apart', type
            using errcode = 'PA010', hint = 'Attach each table under a resource_type of its own.';
    end if;
    select coalesce(array_agg(h.occurred_at order by h.occurred_at, h.id) filter (where not h.detail ? 'rewritten'), '{}'),
        coalesce(array_agg(h.detail order by h.occurred_at, h.id) filter (where not h.detail ? 'rewritten'), '{}'),
        max(h.occurred_at) filter (where h.detail ? 'rewritten' and h.occurred_at <= _rows_as_of.at),
        min(h.occurred_at) filter (where h.detail ->> 'rewritten' = 'changed' and h.occurred_at > _rows_as_of.at)
    into alters, details, rewritten_before, rewritten_after
    from pgaudit_wf.attachment_history as h
    where h.resource_type = type and h.change = 'altered' and h.detail ?| array['added', 'dropped', 'renamed', 'rewritten'];
    -- Differences of times are finite.
    at := greatest(least(at, clock_timestamp() + interval '1 year'), timestamptz '0001-01-01');
    wanted := (select count(*) from unnest(alters) as altered where altered <= _rows_as_of.at);
    select l.id, l.occurred_at into truncation from pgaudit_wf.security_audit_log as l
    where l.action = type || '.truncated' and l.captured and l.occurred_at <= _rows_as_of.at
        and (select relkind <> 'p' from pg_class where oid = _rows_as_of.target)
    order by l.occurred_at desc, l.id desc limit 1;

    return query execute array_to_string(pgaudit_wf._fill($query$
        with step as (
            select l.resource_id collate "C" as key, (l.occurred_at > $2)::integer as kind,
                case when l.occurred_at > $2 then $2 - l.occurred_at else l.occurred_at - $2 end as distance,
                case when l.occurred_at > $2 then -l.id else l.id end as number, l.occurred_at,
                l.metadata ? 'previous_resource_id' as is_hard,
                jsonb_array_elements(case when jsonb_typeof(l.diff) = 'array' then l.diff end) as op
            from pgaudit_wf.security_audit_log as l
            where l.resource_type = $1 and l.captured and l.resource_id is not null {{of_keys}}
        ), part as (
            -- What happened up to the moment (kind 0, oldest first), what happened later (1, newest first), the row as it is now (2).
            select key, kind, distance, number, occurred_at, {{name}} as name,
                is_hard or op ? 'digest' or strpos(substr(op ->> 'path', 2), '/') > 0 as is_hard,
                case when op ->> 'path' = '' then op when kind = 0 then op -> 'value' else op -> 'old' end as side
            from step
            union all
            select key collate "C", 2, null, null, null, '', is_large, record from ({{live}}) as r where key is not null {{listed}}
            union all
            select key, 3, null, null, null, '', true, null
            from pgaudit_wf.key_change as k, lateral (values (k.old_id collate "C"), (k.new_id)) as id (key)
            where k.resource_type = $1 {{listed}}
        ), gathered as (
            -- Of a column, the last part counts; the row as a whole is the column without a name.
            select key,
                jsonb_object_agg(name, side) filter (where kind = 0) as ops,
                count(*) filter (where kind = 0 and name = '') as bases,
                max(occurred_at) filter (where kind = 0 and name = '') as base_at,
                max(number) filter (where kind = 0 and name = '') as base_id,
                min(number) filter (where kind = 0) as first_id,
                jsonb_object_agg(name, side) filter (where kind = 1) as later,
                count(*) filter (where kind = 1 and name = '') as ends,
                min(occurred_at) filter (where kind = 1 and name = '') as ends_at,
                (array_agg(side) filter (where kind = 2))[1] as present,
                bool_or(kind = 2) as is_live,
                array_agg(kind) filter (where is_hard) as hard
            from (select * from part where name is not null order by key, kind, distance, number) as part
            group by key
        ), inserted as (
            select *,
                case when ops -> '' ? 'value' and ((base_id, base_at) < ($8, $9)) is not true then {{inserted}} || (ops - '') end as record
            from gathered
            offset 0
        ), replayed as (
            select *, bases > 0 and (record is not null and base_at < $10) is not true as is_known
            from inserted
            offset 0
        ), found as (
            select key, record, is_known, ends_at, ends,
                3 = any (hard) or bases > 0 and 0 = any (hard) or first_id < base_id and ops -> '' ? 'value'
                    or not is_known and (1 = any (hard) or 2 = any (hard) and ends = 0 or ends > 1 and later -> '' ? 'old') as is_hard,
                later is not null and not is_live and ends = 0 as is_partial,
                case
                    when is_known or ends > 0 and not later -> '' ? 'old' then null
                    when ends > 0 then {{deleted}} || (later - '')
                    when is_live then {{present}} || coalesce(later, '{}')
                    else later
                end as reverted
            from replayed
            offset 0
        )
        select key, (state).record,
            case when (state).rewritten_at is not null or (state).backwards then pgaudit_wf._unknown(state, $2, $4) end
        from (
            select key, case
                    when is_hard then pgaudit_wf._row_at($3, $1, key, $2)
                    when is_known then row(record, null, false, false)::pgaudit_wf.row_state
                    when reverted is not null and (ends = 0 or ends_at >= $11) and $11 is not null
                        or reverted is null and record is not null
                        then row(null, coalesce($11, $10), true, false)::pgaudit_wf.row_state
                    else row(reverted, null, true, is_partial)::pgaudit_wf.row_state
                end as state
            from found
            offset 0
        ) as known
        where (state).record is not null or (state).rewritten_at is not null
        $query$,
        jsonb_build_object(
            'of_keys', case when keys is not null then 'and l.resource_id = any ($5)' else '' end,
            'name', case when alters = '{}' then 'pgaudit_wf._unpointer(op ->> ''path'')'
                else 'pgaudit_wf._column_then(pgaudit_wf._unpointer(op ->> ''path''), $6, width_bucket(occurred_at, $7), $12)' end,
            'live', pgaudit_wf._live_rows(setting),
            'listed', case when keys is not null then 'and key = any ($5)' else '' end,
            'inserted', case when alters = '{}' then '(ops #> ''{"",value}'')'
                else 'pgaudit_wf._alter_rows(ops #> ''{"",value}'', $6, width_bucket(base_at, $7), $12)' end,
            'deleted', case when alters = '{}' then '(later #> ''{"",old}'')'
                else 'pgaudit_wf._alter_rows(later #> ''{"",old}'', $6, width_bucket(ends_at, $7), $12)' end,
            'present', case when alters = '{}' then 'present' else 'pgaudit_wf._alter_rows(present, $6, cardinality($6), $12)' end)), e'\n')
        using type, _rows_as_of.at, _rows_as_of.target, pgaudit_wf._log_begins(_rows_as_of.target), keys, details, alters,
            truncation.id, truncation.occurred_at, rewritten_before, rewritten_after, wanted;
end
$$;
comment on function pgaudit_wf._rows_as_of(regclass, timestamptz, text[]) is
    'table_as_of(), or the rows of some keys only. The changes before the moment on top of the row as it was inserted, or the old values '
    'of those after it on top of the row as it is now or was deleted; row by row where that is not enough: changes within a value, '
    'digests, keys that changed or were used again.';

create function pgaudit_wf.table_as_of(target regclass, at timestamptz)
returns table (resource_id text, record jsonb, unknown text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if table_as_of.at is null then
        raise exception 'table_as_of() needs a moment' using errcode = 'PA008';
    end if;
    return query select r.* from pgaudit_wf._rows_as_of(table_as_of.target, table_as_of.at) as r;
end
$$;
comment on function pgaudit_wf.table_as_of(regclass, timestamptz) is
    'All rows of an attached table as they were at a moment, each as row_as_of() shows it, in one pass over the log. '
    'unknown says why the log cannot tell a row: DDL rewrote the table (record is null), the moment is before the attachment or in '
    'a month that was pruned (record is the oldest state known), or only the columns that changed later are known. '
    'What happened while the table was detached, and rows that were there before the attachment and are gone without an event (TRUNCATE), '
    'are in no event. '
    'Raises PA005 for a table that was never attached, PA008 without a moment, PA010 where the log does not tell it from another table.';

create function pgaudit_wf.changes_between(target regclass, a timestamptz, b timestamptz)
returns table (
    resource_id text, change text, before jsonb, after jsonb, events bigint, first_at timestamptz, last_at timestamptz,
    actor_ids text[], unknown text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
    type constant text := pgaudit_wf._recorded_type(changes_between.target);
    truncated constant boolean := exists (
        select from pgaudit_wf.security_audit_log as l
        where l.action = type || '.truncated' and l.captured
            and l.occurred_at > changes_between.a and l.occurred_at <= changes_between.b);
    -- Of more rows, all are looked at.
    most constant integer := 20000;
    keys text[];
begin
    if changes_between.a is null or changes_between.b is null or changes_between.a > changes_between.b then
        raise exception 'changes_between() needs two moments, the earlier one first' using errcode = 'PA008';
    end if;
    keys := array(
        select distinct named.id
        from pgaudit_wf.security_audit_log as l, lateral (values (l.resource_id), (l.metadata ->> 'previous_resource_id')) as named (id)
        where l.resource_type = type and l.captured and named.id is not null
            and l.occurred_at > changes_between.a and l.occurred_at <= changes_between.b
        limit most + 1);
    if truncated or cardinality(keys) > most then
        keys := null;
    end if;
    return query
        with touched as (
            select named.id as key, count(*) as events, min(l.occurred_at) as first_at, max(l.occurred_at) as last_at,
                array_agg(distinct l.actor_id) filter (where l.actor_id is not null) as actor_ids
            from pgaudit_wf.security_audit_log as l, lateral (values (l.resource_id), (l.metadata ->> 'previous_resource_id')) as named (id)
            where l.resource_type = type and l.captured and named.id is not null
                and l.occurred_at > changes_between.a and l.occurred_at <= changes_between.b
            group by named.id
        )
        select
            coalesce(was.resource_id, now.resource_id),
            case
                when was.unknown is not null and was.record is null or now.unknown is not null and now.record is null then 'unknown'
                when was.record is null then 'inserted'
                when now.record is null then 'deleted'
                else 'updated'
            end,
            was.record, now.record, coalesce(t.events, 0), t.first_at, t.last_at, t.actor_ids,
            coalesce(was.unknown, now.unknown)
        from pgaudit_wf._rows_as_of(changes_between.target, changes_between.a, keys) as was
        full join pgaudit_wf._rows_as_of(changes_between.target, changes_between.b, keys) as now using (resource_id)
        left join touched as t on t.key = coalesce(was.resource_id, now.resource_id)
        -- Columns that DDL added or dropped are not changes of rows.
        where (t.key is not null or now.resource_id is null)
            and (was.record is distinct from now.record or was.record is null);
    return query
        select null::text, 'rewritten', null::jsonb, null::jsonb, 0::bigint, h.occurred_at, h.occurred_at, null::text[],
            'DDL gave the rows values that no event has'
        from pgaudit_wf.attachment_history as h
        where h.resource_type = type and h.change = 'altered' and h.detail ? 'rewritten'
            and h.occurred_at > changes_between.a and h.occurred_at <= changes_between.b;
end
$$;
comment on function pgaudit_wf.changes_between(regclass, timestamptz, timestamptz) is
    'The rows of an attached table that differ between two moments, each with its state at both: change is inserted, updated or deleted, '
    'or unknown where the log cannot tell one of the states (why: unknown, as in table_as_of()), and rewritten, without a row, where DDL '
    'gave the rows values that no event has. events, first_at, last_at and actor_ids sum up what led there. '
    'A row that is as it was, or came and went, is not listed; a row whose key changed is one deleted and one inserted. '
    'Raises PA005 for a table that was never attached, PA008 on moments out of order, PA010 as table_as_of() does.';

create function pgaudit_wf.create_view_as_of(name text, target regclass, at timestamptz) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[];
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = create_view_as_of.target);
    view_name text;
begin
    begin
        parts := parse_ident(create_view_as_of.name);
    exception
        when invalid_parameter_value then
            -- Said below.
            null;
    end;
    if create_view_as_of.at is null or coalesce(cardinality(parts), 0) not between 1 and 2 then
        raise exception 'create_view_as_of() needs a name, at most with a schema, a table and a moment' using errcode = 'PA008';
    end if;
    if setting.target is null then
        raise exception '% is not attached', create_view_as_of.target
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists the attached tables.';
    end if;
    view_name := case cardinality(parts)
        when 2 then format('%I.%I', parts[1], parts[2])
        else (
            select format('%I.%I', n.nspname, parts[1])
            from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = create_view_as_of.target) end;
    -- Nothing in it depends on the table, whose columns stay free to change.
    execute format('create view %s with (security_invoker = true) as select row_then.*, listed.unknown as pgaudit_wf_unknown'
        ' from pgaudit_wf.table_as_of(%L::text::regclass, %L) as listed cross join lateral jsonb_to_record(listed.record) as row_then (%s)',
        view_name, create_view_as_of.target::text, create_view_as_of.at::text, (
            select string_agg(format('%I %s', attname, case
                    when (captured).redacted then 'text'
                    when atttypid = pgaudit_wf._base_type(atttypid) then format_type(atttypid, atttypmod)
                    else format_type(pgaudit_wf._base_type(atttypid), -1)
                end), ', ' order by attnum)
            from pg_attribute
            left join pgaudit_wf._capture_columns(setting) as captured on captured.name = attname
            where attrelid = create_view_as_of.target and attnum > 0 and not attisdropped));
    execute format('comment on view %s is %L', view_name,
        format('%s as of %s, from the log; ignored columns are null, redacted ones text. pgaudit_wf_unknown: what the log cannot tell.',
            create_view_as_of.target, create_view_as_of.at));
    return view_name;
end
$$;
comment on function pgaudit_wf.create_view_as_of(text, regclass, timestamptz) is
    'Creates a view of an attached table as it was at a moment, with the columns that it has now, and returns its name. '
    'Without a schema, the view is put beside the table; pg_temp.<name> is gone with the session. '
    'It reads with the rights of whoever queries it, and nothing in it depends on the table. '
    'Ignored columns are null, redacted ones text; the column pgaudit_wf_unknown is unknown of table_as_of(). '
    'Raises PA005 for a table that is not attached, PA008 without a moment or on a name that is none.';
