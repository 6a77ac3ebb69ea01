-- What a row would become: its events run backwards, one after the other, over what it is now.

create type pgaudit_wf.undo_columns as (
    restorable text[],
    generated text[],
    redacted text[],
    ignored text[],
    forgotten text[]
);
comment on type pgaudit_wf.undo_columns is
    'The columns of a table: those that can be put back; those that PostgreSQL computes; those whose values the log does not show; those '
    'that it leaves out, of these the ones without a default, which come back null.';

create function pgaudit_wf._undo_columns(setting pgaudit_wf.attachment) returns pgaudit_wf.undo_columns
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select row(
        coalesce(array_agg(attname::text) filter (
            where attgenerated = '' and attname <> all ((setting).ignore || secret || graph)), '{}')
            || case when graph <> '{}' then array['content_hash'] else '{}' end,
        coalesce(array_agg(attname::text) filter (where attgenerated = 's'), '{}')
            -- The graph of a shape of the application is in the row's other columns, and its hash follows from them.
            || case when graph = '{}' and pgaudit_wf._has_own_shape((setting).target) and not bool_or(attname = 'content_hash')
                then array['content_hash'] else '{}' end,
        secret,
        (setting).ignore,
        coalesce(array_agg(attname::text) filter (
            where attgenerated = '' and attname = any ((setting).ignore) and not atthasdef and attidentity = ''), '{}')
    )::pgaudit_wf.undo_columns
    from pg_attribute,
    (select pgaudit_wf._definition_columns((setting).target), pgaudit_wf._secret_columns((setting).redact, (setting).columns))
        as known (graph, secret)
    where attrelid = (setting).target and attnum > 0 and not attisdropped
    group by graph, secret
$$;
comment on function pgaudit_wf._undo_columns(pgaudit_wf.attachment) is
    'What can be put back of an attached table''s columns; a workflow''s graph goes by its content_hash.';

create type pgaudit_wf.undo_state as (record jsonb, nulls text[], conflicts jsonb, digested text[]);
comment on type pgaudit_wf.undo_state is
    'A row on its way back, the columns of it that hold a JSON null, what stands against it, as [{"kind": …, "column": …}], '
    'and the columns whose values are too large to be shown, so that the row has their digests.';

create function pgaudit_wf._with_conflict(conflicts jsonb, kind text, column_name text default null) returns jsonb
language sql immutable parallel safe
as $$
    select case when conflicts @> jsonb_build_array(conflict.item) then conflicts else conflicts || conflict.item end
    from (select jsonb_strip_nulls(jsonb_build_object('kind', kind, 'column', column_name)) as item) as conflict
$$;
comment on function pgaudit_wf._with_conflict(jsonb, text, text) is 'A list of conflicts with one more, unless it is in it already.';

create function pgaudit_wf._is_hidden(value jsonb) returns boolean
language sql immutable parallel safe
-- Within a json or jsonb column, too, and in the JSON of a text column.
as $$ select value::text ~ e'"\\[redacted\\]\\\\?"' $$;
comment on function pgaudit_wf._is_hidden(jsonb) is 'Whether a recorded value is not what the row had, as something in it is redacted.';

create function pgaudit_wf._obstacle(columns pgaudit_wf.undo_columns, name text) returns text
language sql immutable parallel safe
as $$
    select case
        when name = any ((columns).restorable || (columns).generated) then null
        when name = any ((columns).redacted) then 'redacted'
        when name = any ((columns).ignored) then 'ignored'
        else 'dropped'
    end
$$;
comment on function pgaudit_wf._obstacle(pgaudit_wf.undo_columns, text) is
    'Why a column of a recorded row cannot be put back; null: it can.';

create function pgaudit_wf._is_value(found jsonb, found_digested boolean, expected jsonb, digested boolean) returns boolean
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- The digest is of a text itself, or of what jsonb prints.
    select case when digested is not true then found is not distinct from expected and not found_digested
        when found_digested then found ->> 'sha256' is not distinct from expected ->> 'sha256'
        else encode(sha256(convert_to(case jsonb_typeof(found) when 'string' then found #>> '{}' else found::text end, 'UTF8')), 'hex')
            is not distinct from expected ->> 'sha256' end
$$;
comment on function pgaudit_wf._is_value(jsonb, boolean, jsonb, boolean) is
    'Whether a value is the one that an event left; either may be known by its digest only.';

create function pgaudit_wf._undo_insert(state pgaudit_wf.undo_state, op jsonb, columns pgaudit_wf.undo_columns)
returns pgaudit_wf.undo_state
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    changed text;
begin
    if state.record is null then
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, 'gone');
        return state;
    end if;
    for changed in
        select member.key from jsonb_each(op -> 'value') as member
        where member.key = any (columns.restorable) and not pgaudit_wf._is_hidden(member.value)
            and (not pgaudit_wf._is_value(
                    state.record -> member.key, member.key = any (state.digested), member.value, op -> 'digest' ? member.key)
                or (member.key = any (state.nulls)) <> coalesce(op -> 'json_null' ? member.key, false))
    loop
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, 'changed', changed);
    end loop;
    state.record := null;
    state.nulls := '{}';
    state.digested := '{}';
    return state;
end
$$;
comment on function pgaudit_wf._undo_insert(pgaudit_wf.undo_state, jsonb, pgaudit_wf.undo_columns) is
    'A row before it was inserted: none. What it has otherwise than it was inserted is a conflict.';

create function pgaudit_wf._undo_delete(state pgaudit_wf.undo_state, op jsonb, columns pgaudit_wf.undo_columns)
returns pgaudit_wf.undo_state
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lost record;
begin
    if state.record is not null then
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, 'exists');
    end if;
    for lost in
        select coalesce(
            case when op -> 'digest' ? member.key then 'digested' when pgaudit_wf._is_hidden(member.value) then 'redacted' end,
            pgaudit_wf._obstacle(columns, member.key)) as kind, member.key
        from jsonb_each(op -> 'old') as member
        union all
        select 'ignored', name from unnest(columns.forgotten) as name
    loop
        continue when lost.kind is null;
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, lost.kind, lost.key);
    end loop;
    state.record := (
        select coalesce(jsonb_object_agg(member.key, member.value), '{}') from jsonb_each(op -> 'old') as member
        where member.key = any (columns.restorable || columns.generated) and not pgaudit_wf._is_hidden(member.value)
            and (op -> 'digest' ? member.key) is not true);
    state.nulls := array(select jsonb_array_elements_text(op -> 'json_null'));
    state.digested := '{}';
    return state;
end
$$;
comment on function pgaudit_wf._undo_delete(pgaudit_wf.undo_state, jsonb, pgaudit_wf.undo_columns) is
    'A row before it was deleted, as far as the log has its values.';

create function pgaudit_wf._undo_change(state pgaudit_wf.undo_state, op jsonb, columns pgaudit_wf.undo_columns)
returns pgaudit_wf.undo_state
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    path constant text := op ->> 'path';
    nested constant boolean := strpos(substr(path, 2), '/') > 0;
    steps constant text[] := case when nested then pgaudit_wf._pointer_steps(path) else array[pgaudit_wf._unpointer(path)] end;
    name constant text := steps[1];
    obstacle text;
    is_changed boolean;
begin
    if name = any (columns.generated) then
        -- Follows from the others.
        state.record := state.record || jsonb_build_object(name, op -> 'old');
        return state;
    end if;
    obstacle := case
        when name <> all (columns.restorable) then pgaudit_wf._obstacle(columns, name)
        when op -> 'digest' ? 'old' then 'digested'
        when pgaudit_wf._is_hidden(op -> 'old') or pgaudit_wf._is_hidden(op -> 'value') then 'redacted' end;
    if obstacle is not null then
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, obstacle, name);
        return state;
    end if;
    if nested and name = any (state.digested) then
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, 'digested', name);
        return state;
    elsif nested then
        is_changed := name = any (state.nulls) or (state.record #> steps) is distinct from op -> 'value';
        if is_changed and (state.record #> steps) is distinct from op -> 'old' then
            state.conflicts := pgaudit_wf._with_conflict(state.conflicts, 'changed', name);
        end if;
        -- Where what it was in is no more, the column stays as it is.
        state.record := pgaudit_wf._put_nested(state.record, op, 'old');
        return state;
    end if;
    is_changed := (name = any (state.nulls)) <> coalesce(op -> 'json_null' ? 'value', false)
        or case when op ? 'digest' or state.digested <> '{}' then not pgaudit_wf._is_value(
                state.record -> name, name = any (state.digested), op -> 'value', op -> 'digest' ? 'value')
            else (state.record -> name) is distinct from op -> 'value' end;
    if is_changed and ((state.record -> name) is distinct from op -> 'old'
        or (name = any (state.nulls)) <> coalesce(op -> 'json_null' ? 'old', false))
    then
        state.conflicts := pgaudit_wf._with_conflict(state.conflicts, 'changed', name);
    end if;
    state.record := state.record || jsonb_build_object(name, op -> 'old');
    state.digested := array_remove(state.digested, name);
    if state.nulls <> '{}' or op ? 'json_null' then
        state.nulls := array_remove(state.nulls, name) || case when op -> 'json_null' ? 'old' then array[name] else '{}' end;
    end if;
    return state;
end
$$;
comment on function pgaudit_wf._undo_change(pgaudit_wf.undo_state, jsonb, pgaudit_wf.undo_columns) is
    'A row before an operation of an update. A value that is neither what the operation left nor what it found is a conflict.';

create function pgaudit_wf._undo_event(state pgaudit_wf.undo_state, diff jsonb, columns pgaudit_wf.undo_columns)
returns pgaudit_wf.undo_state
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    for number in reverse jsonb_array_length(diff) - 1 .. 0 loop
        state := case
            when diff -> number ->> 'path' <> '' then
                case when state.record is null
                    then row(null, state.nulls, pgaudit_wf._with_conflict(state.conflicts, 'gone'), '{}')::pgaudit_wf.undo_state
                    else pgaudit_wf._undo_change(state, diff -> number, columns) end
            when diff -> number ->> 'op' = 'add' then pgaudit_wf._undo_insert(state, diff -> number, columns)
            else pgaudit_wf._undo_delete(state, diff -> number, columns) end;
    end loop;
    return state;
end
$$;
comment on function pgaudit_wf._undo_event(pgaudit_wf.undo_state, jsonb, pgaudit_wf.undo_columns) is 'A row before a captured event.';

create function pgaudit_wf._renamed_members(members jsonb, renames jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case jsonb_typeof(members)
        when 'object' then (
            select coalesce(jsonb_object_agg(coalesce(renames ->> member.key, member.key), member.value), '{}')
            from jsonb_each(members) as member)
        when 'array' then (
            select coalesce(jsonb_agg(coalesce(renames ->> item.name, item.name)), '[]')
            from jsonb_array_elements_text(members) as item (name))
    end
$$;
comment on function pgaudit_wf._renamed_members(jsonb, jsonb) is 'A row, or a list of columns, with columns renamed ({old: new}).';

create function pgaudit_wf._renamed_diff(diff jsonb, renames jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(
        op || case
            when op ->> 'path' = '' then jsonb_strip_nulls(jsonb_build_object(
                    'digest', pgaudit_wf._renamed_members(op -> 'digest', renames),
                    'json_null', pgaudit_wf._renamed_members(op -> 'json_null', renames)))
                || case when op ? 'old' then jsonb_build_object('old', pgaudit_wf._renamed_members(op -> 'old', renames)) else '{}' end
                || case when op ? 'value'
                    then jsonb_build_object('value', pgaudit_wf._renamed_members(op -> 'value', renames)) else '{}' end
            else (
                select jsonb_build_object('path', pgaudit_wf._pointer(coalesce(renames ->> steps[1], steps[1]))
                    || substr(op ->> 'path', 1 + length(pgaudit_wf._pointer(steps[1]))))
                from pgaudit_wf._pointer_steps(op ->> 'path') as steps)
        end order by number)
    from jsonb_array_elements(diff) with ordinality as listed (op, number)
$$;
comment on function pgaudit_wf._renamed_diff(jsonb, jsonb) is 'A captured diff as it would read after columns were renamed ({old: new}).';

create function pgaudit_wf._follow_renames(diff jsonb, type text, since timestamptz) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    renames jsonb;
begin
    for renames in
        select h.detail -> 'renamed' from pgaudit_wf.attachment_history as h
        where h.resource_type = _follow_renames.type and h.occurred_at > _follow_renames.since
            and h.change = 'altered' and h.detail ? 'renamed'
        order by h.occurred_at, h.id
    loop
        diff := pgaudit_wf._renamed_diff(diff, renames);
    end loop;
    return diff;
end
$$;
comment on function pgaudit_wf._follow_renames(jsonb, text, timestamptz) is 'A captured diff under the present names of the columns.';

create function pgaudit_wf._blame(type text, resource_id text, undone bigint[], kind text, column_name text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    pointer constant text := pgaudit_wf._pointer(column_name);
    cause record;
begin
    select l.id, l.occurred_at, l.actor_id, l.actor_label, l.db_user, l.action into cause
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = type and l.resource_id = _blame.resource_id and l.captured
        and l.id > undone[cardinality(undone)] and l.id <> all (undone)
        and case kind
            when 'gone' then l.diff @> '[{"op": "remove", "path": ""}]'
            when 'exists' then l.diff @> '[{"op": "add", "path": ""}]'
            else exists (
                select from jsonb_array_elements(l.diff) as op
                where op ->> 'path' in ('', pointer) or starts_with(op ->> 'path', pointer || '/')) end
    order by l.occurred_at desc, l.id desc limit 1;
    if cause.id is null and kind in ('gone', 'changed') then
        select l.id, l.occurred_at, l.actor_id, l.actor_label, l.db_user, l.action into cause
        from pgaudit_wf.security_audit_log as l
        where l.action = type || case kind when 'gone' then '.truncated' else '.rewritten' end and l.captured
            and l.id > undone[cardinality(undone)]
        order by l.occurred_at desc, l.id desc limit 1;
    end if;
    return case when cause.id is null then '{}' else jsonb_strip_nulls(jsonb_build_object(
        'event_id', cause.id, 'occurred_at', cause.occurred_at, 'actor_id', cause.actor_id, 'actor_label', cause.actor_label,
        'db_user', cause.db_user, 'action', cause.action)) end;
end
$$;
comment on function pgaudit_wf._blame(text, text, bigint[], text, text) is
    'Who made a row (or a column of it) other than the undone events left it, and when: of the events that the caller may read, the newest '
    'that is not itself undone.';
