-- What a row was at a moment, from the log.

create function pgaudit_wf._unpointer(pointer text) returns text
language sql immutable strict parallel safe
as $$ select replace(replace(substr(pointer, 2), '~1', '/'), '~0', '~') $$;
comment on function pgaudit_wf._unpointer(text) is 'The member that a JSON pointer of one step names (RFC 6901, section 4).';

create function pgaudit_wf._pointer_steps(pointer text) returns text[]
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select pgaudit_wf._unpointer('/' || step) from string_to_table(substr(pointer, 2), '/') with ordinality as s (step, position)
        order by position)
$$;
comment on function pgaudit_wf._pointer_steps(text) is
    'The members that a JSON pointer names one within the other; in a captured diff, the first is the column.';

create function pgaudit_wf._put_nested(record jsonb, op jsonb, side text) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    steps constant text[] := pgaudit_wf._pointer_steps(op ->> 'path');
begin
    return case
        when coalesce(jsonb_typeof(record #> steps[:cardinality(steps) - 1]), '') not in ('object', 'array') then record - steps[1]
        when op ? side then jsonb_set(record, steps, op -> side)
        else record #- steps
    end;
end
$$;
comment on function pgaudit_wf._put_nested(jsonb, jsonb, text) is
    '_put_side() for an operation within a column''s value. Where the row does not have what it starts from '
    '(the column was ignored, redacted, or recorded by its digest until then), the column is left out of it.';

create function pgaudit_wf._put_side(record jsonb, op jsonb, side text) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- What is known by its digest only is left out: the digest would be taken for the value.
    select case
        when op is null then record
        when op ->> 'path' = '' then (op -> side) - case when op ? 'digest'
            then array(select jsonb_array_elements_text(op -> 'digest')) else '{}' end
        when strpos(substr(op ->> 'path', 2), '/') > 0 then pgaudit_wf._put_nested(coalesce(record, '{}'), op, side)
        when op -> 'digest' ? side then coalesce(record, '{}') - pgaudit_wf._unpointer(op ->> 'path')
        else coalesce(record, '{}') || jsonb_build_object(pgaudit_wf._unpointer(op ->> 'path'), op -> side)
    end
$$;
comment on function pgaudit_wf._put_side(jsonb, jsonb, text) is
    'A row with one side (value or old) of an operation of a captured diff in it. RFC 6902, but that a column added to the table '
    'meanwhile may be missing from the row.';

create function pgaudit_wf._apply_diff(record jsonb, diff jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    op jsonb;
begin
    for op in select jsonb_array_elements(_apply_diff.diff) loop
        record := pgaudit_wf._put_side(record, op, 'value');
    end loop;
    return record;
end
$$;
comment on function pgaudit_wf._apply_diff(jsonb, jsonb) is 'A row after a captured diff; null after a delete.';

create function pgaudit_wf._revert_diff(record jsonb, diff jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    op jsonb;
begin
    for op in select value from jsonb_array_elements(_revert_diff.diff) with ordinality order by ordinality desc loop
        record := pgaudit_wf._put_side(record, op, 'old');
    end loop;
    return record;
end
$$;
comment on function pgaudit_wf._revert_diff(jsonb, jsonb) is 'A row before a captured diff, by its "old" values; null before an insert.';

create function pgaudit_wf._lacks(record jsonb, diff jsonb) returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from jsonb_array_elements(_lacks.diff) as op
        where op ->> 'path' ~ '^/[^/]*/' and not record ? (pgaudit_wf._pointer_steps(op ->> 'path'))[1])
$$;
comment on function pgaudit_wf._lacks(jsonb, jsonb) is
    'Whether a row is without a column after a captured diff that changed something within the column''s value.';

create function pgaudit_wf._alter_row(record jsonb, altered jsonb, backwards boolean) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- A dropped column is lost; an added one starts with its default.
    select case when record is null then null when backwards then
        coalesce((
            select jsonb_object_agg(coalesce(rename.key, member.key), member.value)
            from jsonb_each(record) as member
            left join jsonb_each_text(altered -> 'renamed') as rename on rename.value = member.key
            where altered -> 'added' is null or not altered -> 'added' ? member.key), '{}')
    else
        coalesce(altered -> 'added', '{}') || coalesce((
            select jsonb_object_agg(coalesce(altered -> 'renamed' ->> member.key, member.key), member.value)
            from jsonb_each(record) as member
            where altered -> 'dropped' is null or not altered -> 'dropped' ? member.key), '{}')
    end
$$;
comment on function pgaudit_wf._alter_row(jsonb, jsonb, boolean) is
    'A row after (or, backwards, before) its table was altered, by attachment_history.detail.';

create type pgaudit_wf.row_step as (
    occurred_at timestamptz,
    id bigint,
    diff jsonb,
    altered jsonb,
    previous_id text
);
comment on type pgaudit_wf.row_step is 'What happened to a row: an event, or its table being altered.';

create function pgaudit_wf._row_steps(
    resource_type text, resource_id text, since timestamptz, until timestamptz, after_id bigint, before_id bigint
) returns setof pgaudit_wf.row_step
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select occurred_at, id, diff, altered, previous_id from (
        select l.occurred_at, l.id, l.diff, null::jsonb as altered, l.metadata ->> 'previous_resource_id' as previous_id
        from pgaudit_wf.security_audit_log as l
        where l.resource_type = _row_steps.resource_type and l.resource_id = _row_steps.resource_id and l.captured
            and l.occurred_at >= _row_steps.since and l.occurred_at <= _row_steps.until
            and l.id > _row_steps.after_id and l.id < _row_steps.before_id
        union all
        select h.occurred_at, null, null, h.detail, null
        from pgaudit_wf.attachment_history as h
        where h.resource_type = _row_steps.resource_type and h.change = 'altered'
            and h.occurred_at > _row_steps.since and h.occurred_at <= _row_steps.until
    ) as step
    order by occurred_at, id
$$;
comment on function pgaudit_wf._row_steps(text, text, timestamptz, timestamptz, bigint, bigint) is
    'What happened to a row between two moments and two event ids, oldest first.';

create function pgaudit_wf._row_departure(resource_type text, resource_id text, after_id bigint, before_id bigint, latest boolean)
returns table (id bigint, occurred_at timestamptz, new_id text, diff jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select l.id, l.occurred_at, k.new_id, l.diff
    from pgaudit_wf.key_change as k
    join pgaudit_wf.security_audit_log as l
        on l.resource_type = k.resource_type and l.resource_id = k.new_id and l.metadata ->> 'previous_resource_id' = k.old_id
    where k.resource_type = _row_departure.resource_type and k.old_id = _row_departure.resource_id
        and l.id > _row_departure.after_id and l.id < _row_departure.before_id
    order by case when _row_departure.latest then -l.id else l.id end
    limit 1
$$;
comment on function pgaudit_wf._row_departure(text, text, bigint, bigint, boolean) is
    'The first (or latest) event by which a row left this key for another.';

create function pgaudit_wf._row_forwards(resource_type text, resource_id text, at timestamptz, before_id bigint, truncates boolean,
    out reached boolean, out rewritten_at timestamptz, out record jsonb, out incomplete boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    base record;
    step pgaudit_wf.row_step;
    earlier record;
begin
    reached := false;
    incomplete := false;
    select l.id, l.occurred_at, l.diff, l.metadata ->> 'previous_resource_id' as previous_id into base
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = _row_forwards.resource_type and l.resource_id = _row_forwards.resource_id and l.captured
        and l.occurred_at <= at and l.id < before_id
        and (l.diff -> 0 ->> 'path' = '' or l.metadata ? 'previous_resource_id')
    order by l.occurred_at desc, l.id desc limit 1;
    if base.id is null then
        return;
    end if;
    if base.previous_id is null then
        reached := true;
        record := pgaudit_wf._apply_diff(null, base.diff);
    else
        select * into earlier from pgaudit_wf._row_forwards(resource_type, base.previous_id, base.occurred_at, base.id, truncates);
        if not earlier.reached then
            return;
        end if;
        reached := true;
        rewritten_at := earlier.rewritten_at;
        record := pgaudit_wf._apply_diff(earlier.record, base.diff);
        incomplete := earlier.incomplete or pgaudit_wf._lacks(record, base.diff);
    end if;
    if truncates and exists (
        select from pgaudit_wf.security_audit_log as l
        where l.action = resource_type || '.truncated' and l.captured
            and l.id > base.id and l.id < before_id and l.occurred_at between base.occurred_at and at)
        or exists (
            select from pgaudit_wf._row_departure(resource_type, resource_id, base.id, before_id, true) as d where d.occurred_at <= at)
    then
        record := null;
        rewritten_at := null;
        incomplete := false;
        return;
    end if;
    for step in select s.* from pgaudit_wf._row_steps(resource_type, resource_id, base.occurred_at, at, base.id, before_id) as s loop
        if record is not null and step.altered ? 'rewritten' then
            rewritten_at := step.occurred_at;
        end if;
        record := case
            when step.altered is null then pgaudit_wf._apply_diff(record, step.diff)
            else pgaudit_wf._alter_row(record, step.altered, false)
        end;
        incomplete := incomplete or (record is not null and step.altered is null and pgaudit_wf._lacks(record, step.diff));
    end loop;
end
$$;
comment on function pgaudit_wf._row_forwards(text, text, timestamptz, bigint, boolean) is
    'A row at a moment, replayed from its insert; not reached if the log does not go back to it. '
    'Where DDL gave it values that the log does not have, rewritten_at says when; '
    'incomplete: operations within a column had nothing to start from.';

create function pgaudit_wf._row_backwards(target regclass, resource_type text, resource_id text, at timestamptz, after_id bigint,
    out rewritten_at timestamptz, out record jsonb, out partial boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    ending record;
    departure record;
    later record;
    step pgaudit_wf.row_step;
begin
    select l.id, l.occurred_at, l.diff into ending
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = _row_backwards.resource_type and l.resource_id = _row_backwards.resource_id and l.captured
        and l.occurred_at > at and l.id > after_id
        and (l.diff -> 0 ->> 'path' = '' or l.metadata ? 'previous_resource_id')
    order by l.occurred_at, l.id limit 1;
    select d.* into departure
    from pgaudit_wf._row_departure(resource_type, resource_id, after_id, coalesce(ending.id, 9223372036854775807), false) as d
    where d.occurred_at > at;
    if departure.id is not null then
        ending.id := departure.id;
        ending.occurred_at := departure.occurred_at;
        select * into later from pgaudit_wf._row_backwards(target, resource_type, departure.new_id, departure.occurred_at, departure.id);
        rewritten_at := later.rewritten_at;
        partial := later.partial;
        record := pgaudit_wf._revert_diff(later.record, departure.diff);
    elsif ending.id is null then
        record := pgaudit_wf._present_row(target, resource_id);
        partial := record is null;
    elsif ending.diff -> 0 ->> 'op' = 'remove' then
        record := pgaudit_wf._revert_diff(null, ending.diff);
    else
        return;
    end if;
    for step in
        select s.* from pgaudit_wf._row_steps(resource_type, resource_id, at, coalesce(ending.occurred_at, 'infinity'), after_id,
            coalesce(ending.id, 9223372036854775807)) as s
        where s.occurred_at > at order by s.occurred_at desc, s.id desc
    loop
        if (record is not null or partial) and step.altered ->> 'rewritten' = 'changed' then
            rewritten_at := step.occurred_at;
        end if;
        record := case
            when step.altered is null then pgaudit_wf._revert_diff(record, step.diff)
            else pgaudit_wf._alter_row(record, step.altered, true)
        end;
    end loop;
    partial := coalesce(partial and record is not null, false);
    rewritten_at := case when record is not null then rewritten_at end;
end
$$;
comment on function pgaudit_wf._row_backwards(regclass, text, text, timestamptz, bigint) is
    'A row at a moment, wound back from its deletion or from what it is now: '
    'for rows older than their table''s attachment, and for those that DDL gave other values since their insert. '
    'rewritten_at as in _row_forwards(); partial: only the columns that changed since are known, as the row is gone without an event, '
    'or the caller may not read the table.';

create function pgaudit_wf._stored_row(setting pgaudit_wf.attachment, resource_id text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- An alias that no column has, or the column would be taken for the row.
    source constant text := format('from %s as pgaudit_wf_row where %s', (setting).target,
        pgaudit_wf._key_condition(setting, 'pgaudit_wf_row'));
    columns constant pgaudit_wf.capture_column[] := array(select pgaudit_wf._capture_columns(setting));
    col pgaudit_wf.capture_column;
    op jsonb;
begin
    if (setting).max_value is null then
        begin
            execute format('select jsonb_build_object(''value'', %s) %s', pgaudit_wf._row_expression(setting, 'pgaudit_wf_row'), source)
                into op using _stored_row.resource_id;
            return op;
        exception
            -- Too large for jsonb as a whole.
            when program_limit_exceeded or internal_error or out_of_memory then
                null;
        end;
    end if;
    execute format('select jsonb_build_object(''value'', %s) %s', pgaudit_wf._row_object(
        array(select c from unnest(columns) as c where c.large_from is null), 'pgaudit_wf_row'), source)
        into op using _stored_row.resource_id;
    foreach col in array columns loop
        continue when op is null or col.large_from is null;
        execute format('select %s %s', pgaudit_wf._put_expression(col, 'pgaudit_wf_row', '$2', array['value', col.name]), source)
            into op using _stored_row.resource_id, op;
    end loop;
    return op;
end
$$;
comment on function pgaudit_wf._stored_row(pgaudit_wf.attachment, text) is
    'An attached table''s row as an event would show it: {"value": row, "digest": columns that are too large}; null if there is none.';

create function pgaudit_wf._may_read_rows(target regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select has_table_privilege(c.oid, 'select') and has_schema_privilege(c.relnamespace, 'usage') and c.relkind in ('r', 'p')
        -- Callers run the table's policies with their own rights; we do not run them with ours.
        and not (current_user = pgaudit_wf._schema_owner() and row_security_active(c.oid))
    from pg_class as c where c.oid = _may_read_rows.target
$$;
comment on function pgaudit_wf._may_read_rows(regclass) is 'Whether the rows of a table, as they are now, are for the caller to read.';

create function pgaudit_wf._present_row(target regclass, resource_id text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write it, whatever the session's settings.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set lc_monetary = 'C'
set extra_float_digits = 1
set quote_all_identifiers = off
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = _present_row.target);
begin
    if setting.target is null or not pgaudit_wf._may_read_rows(_present_row.target) then
        return null;
    end if;
    setting.max_value := null;
    return pgaudit_wf._put_side(null, pgaudit_wf._stored_row(setting, _present_row.resource_id) || '{"path": ""}', 'value');
end
$$;
comment on function pgaudit_wf._present_row(regclass, text) is
    'An attached table''s row as it is now, less ignored and redacted columns; null without the right to read the table.';

create function pgaudit_wf._recorded_type(target regclass) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    type constant text := coalesce(
        (select a.resource_type from pgaudit_wf.attachment as a where a.target = _recorded_type.target),
        (select h.resource_type from pgaudit_wf.attachment_history as h
            where h.target = _recorded_type.target::text order by h.id desc limit 1));
begin
    if type is null then
        raise exception '% was never attached', _recorded_type.target
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists the attached tables.';
    end if;
    return type;
end
$$;
comment on function pgaudit_wf._recorded_type(regclass) is
    'The resource_type of a table that is or was attached; raises PA005 for one that never was.';

create function pgaudit_wf._given_key(target regclass, id text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write keys, whatever the session's settings.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set extra_float_digits = 1
as $$
declare
    columns constant text[] := (select pgaudit_wf._key_columns(a) from pgaudit_wf.attachment as a where a.target = _given_key.target);
    is_json constant boolean := left(ltrim(_given_key.id), 1) = '[';
    parts text[];
    typed jsonb;
begin
    if coalesce(cardinality(columns), 0) < 2 then
        return pgaudit_wf._bounded_key(_given_key.id);
    end if;
    parts := case when is_json
        then array(select value from jsonb_array_elements_text(_given_key.id::jsonb) with ordinality order by ordinality)
        else string_to_array(_given_key.id, ',') end;
    if cardinality(parts) = cardinality(columns) then
        begin
            -- Nobody else's type is asked to read it.
            execute (
                select format('select jsonb_build_array(%s)', string_agg(
                    case when pgaudit_wf._is_built_in(atttypid)
                        then format('%L::%s', parts[position], format_type(pgaudit_wf._base_type(atttypid), atttypmod))
                        else quote_literal(parts[position]) || '::text' end, ', ' order by position))
                from unnest(columns) with ordinality as k (name, position)
                join pg_attribute on attrelid = _given_key.target and attname = name)
                into typed;
            return pgaudit_wf._bounded_key(typed::text);
        exception
            -- A key from when its columns were others.
            when data_exception then
                null;
        end;
    end if;
    if not is_json then
        raise exception '"%" is not a key of %, which has the columns %',
            left(_given_key.id, 100), _given_key.target, array_to_string(columns, ', ')
            using errcode = 'PA008', hint = 'Write the values with commas between them, or as a JSON array.';
    end if;
    return pgaudit_wf._bounded_key(_given_key.id::jsonb::text);
end
$$;
comment on function pgaudit_wf._given_key(regclass, text) is
    'The resource_id of a key as people give it: that of several columns as 5,1 or as a JSON array. '
    'Raises PA008 on what cannot be the key of several columns.';

create type pgaudit_wf.row_state as (
    record jsonb,
    rewritten_at timestamptz,
    backwards boolean,
    partial boolean
);
comment on type pgaudit_wf.row_state is
    'A row at a moment. rewritten_at: DDL gave it values that the log does not have, so that it is unknown. '
    'backwards: it was wound back from what it is now; partial: only the columns that changed since are known.';

create function pgaudit_wf._row_at(target regclass, resource_type text, resource_id text, at timestamptz) returns pgaudit_wf.row_state
language plpgsql stable parallel restricted
set search_path = pg_catalog, pg_temp
as $$
declare
    forwards record;
    backwards record;
begin
    select * into forwards from pgaudit_wf._row_forwards(_row_at.resource_type, _row_at.resource_id, _row_at.at, 9223372036854775807,
        (select relkind <> 'p' from pg_class where oid = _row_at.target));
    if forwards.reached and forwards.rewritten_at is null and not forwards.incomplete then
        return row(forwards.record, null, false, false)::pgaudit_wf.row_state;
    end if;
    select * into backwards
    from pgaudit_wf._row_backwards(_row_at.target, _row_at.resource_type, _row_at.resource_id, _row_at.at, -1);
    if forwards.incomplete and forwards.rewritten_at is null and (backwards.rewritten_at is not null or backwards.record is null) then
        return row(forwards.record, null, false, false)::pgaudit_wf.row_state;
    end if;
    if backwards.rewritten_at is not null or (backwards.record is null and forwards.record is not null) then
        return row(null, coalesce(backwards.rewritten_at, forwards.rewritten_at), true, false)::pgaudit_wf.row_state;
    end if;
    return row(backwards.record, null, true, backwards.partial)::pgaudit_wf.row_state;
end
$$;
comment on function pgaudit_wf._row_at(regclass, text, text, timestamptz) is
    'What a row was at a moment: forwards from its insert, or else backwards from its deletion or from what it is now.';

create function pgaudit_wf.row_as_of(target regclass, id text, at timestamptz default clock_timestamp()) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    state pgaudit_wf.row_state;
begin
    state := pgaudit_wf._row_at(row_as_of.target, pgaudit_wf._recorded_type(row_as_of.target),
        pgaudit_wf._given_key(row_as_of.target, row_as_of.id), row_as_of.at);
    if state.rewritten_at is not null then
        raise exception 'row % of % at % is unknown: DDL rewrote the table at %',
            row_as_of.id, row_as_of.target, row_as_of.at, state.rewritten_at
            using errcode = 'PA010',
                hint = 'Values that DDL computes fire no trigger: '
                    'the log covers the row up to then, and the current row only leads back to then.';
    end if;
    return state.record;
end
$$;
comment on function pgaudit_wf.row_as_of(regclass, text, timestamptz) is
    'The row of an attached table as it was at a moment, as jsonb; null if there was none. '
    'id is the key''s text; several key columns have commas between them (5,1) or are a JSON array. '
    'Rebuilt from the log: forwards from the row''s insert, or, for a row older than the attachment, '
    'backwards from its deletion or from the current row. '
    'Ignored columns are absent, and so is one whose value was recorded by its digest; redacted ones read "[redacted]"; '
    'a TRUNCATE of a single partition goes unnoticed. '
    'Raises PA005 for a table that was never attached, PA010 where DDL rewrote the table and the log cannot tell.';
