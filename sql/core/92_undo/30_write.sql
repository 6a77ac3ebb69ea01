-- Reading the rows of an attached table that are to be changed, and the statements that change them.

create function pgaudit_wf._undo_match(setting pgaudit_wf.attachment, record_name text, by_expression boolean) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when by_expression then format('%s = b.key', pgaudit_wf._key_expression(setting, record_name)) else (
        -- Column by column, so that the key's index is used.
        select string_agg(format('%I.%I = %s::%s', record_name, attname,
                case when cardinality(names) > 1 then format('(b.key::jsonb ->> %s)', position - 1) else 'b.key' end,
                format_type(pgaudit_wf._base_type(atttypid), -1)), ' and ' order by position)
        from unnest(names) with ordinality as k (key_column, position)
        join pg_attribute on attrelid = (setting).target and attname = key_column) end
    from pgaudit_wf._key_columns(setting) as names
$$;
comment on function pgaudit_wf._undo_match(pgaudit_wf.attachment, text, boolean) is
    'SQL condition that joins an attached table''s rows with b.key, a resource_id.';

create function pgaudit_wf._undo_read(setting pgaudit_wf.attachment, names text[], keys text[], by_expression boolean)
returns table (place integer, record jsonb, nulls text[], digested text[])
language plpgsql
set search_path = pg_catalog, pg_temp
-- As the triggers write it, whatever the session's settings.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set lc_monetary = 'C'
set extra_float_digits = 1
set quote_all_identifiers = off
set jit = off
as $$
declare
    graph constant text := case when 'content_hash' = any (names) and pgaudit_wf._definition_columns((setting).target) <> '{}'
        then pgaudit_wf._graph_call(setting, pgaudit_wf._usable_workflow((setting).target), 'r') end;
    columns pgaudit_wf.capture_column[];
    large text;
begin
    setting.ignore := '{}';
    setting.max_value := null;
    columns := array(
        select c from pgaudit_wf._capture_columns(setting) as c
        where c.name = any (names) or c.name = (setting).org_column or c.name = any (pgaudit_wf._key_columns(setting)));
    large := pgaudit_wf._large_op(columns, 'r');
    return query execute array_to_string(pgaudit_wf._fill(
        'select b.place::integer, {{row}}{{hash}}, {{nulls}}, {{digested}} from unnest($1) with ordinality as b (key, place) '
        'join {{table}} as r on {{match}}{{large}}{{lock}}',
        jsonb_build_object(
            'row', case when large is null then pgaudit_wf._row_object(columns, 'r')
                else format('case when l.op is null then %s else l.op -> ''value'' end', pgaudit_wf._row_object(columns, 'r')) end,
            'digested', case when large is null then '''{}''::text[]'
                else 'array(select jsonb_array_elements_text(l.op -> ''digest''))' end,
            -- Once for both.
            'large', coalesce(' cross join lateral (select case ' || large || ' end as op offset 0) as l', ''),
            'hash', coalesce(' || (select jsonb_build_object(''content_hash'', pgaudit_wf._try_hash(g.nodes, g.edges)) from '
                || graph || ' as g)', ''),
            'nulls', coalesce(pgaudit_wf._json_null_columns(columns, 'r'), '''{}''::text[]'),
            'table', pgaudit_wf._only((setting).target),
            'match', pgaudit_wf._undo_match(setting, 'r', by_expression),
            -- Nothing comes between what is read and what is written.
            'lock', case when has_any_column_privilege((setting).target, 'update') then ' for update of r' else '' end)), e'\n')
        using keys;
end
$$;
comment on function pgaudit_wf._undo_read(pgaudit_wf.attachment, text[], text[], boolean) is
    'Columns of rows of an attached table as events show them, with those that hold a JSON null, and those that are too large for that, '
    'so that their digests are shown; the rows are locked.';

create function pgaudit_wf._hstore_text(value jsonb) returns text
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(string_agg(
        format('"%s"=>%s', replace(replace(member.key, e'\\', e'\\\\'), '"', e'\\"'),
            coalesce('"' || replace(replace(member.value, e'\\', e'\\\\'), '"', e'\\"') || '"', 'NULL')), ','), '')
    from jsonb_each_text(value) as member
$$;
comment on function pgaudit_wf._hstore_text(jsonb) is 'A recorded hstore as its type reads it.';

create function pgaudit_wf._json_text(value jsonb) returns text
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    -- What jsonb cannot hold was recorded as the text that it is.
    if jsonb_typeof(value) = 'string' then
        if pgaudit_wf._json_value((value #>> '{}')::json) = value then
            return value #>> '{}';
        end if;
    end if;
    return value::text;
exception
    when invalid_text_representation then
        return value::text;
end
$$;
comment on function pgaudit_wf._json_text(jsonb) is 'A recorded value of a json column as its type reads it.';

create type pgaudit_wf.undo_column as (name text, type text, as_text text);
comment on type pgaudit_wf.undo_column is
    'A column that is written: its type, and json, jsonb or hstore where the recorded value goes by way of text.';

create function pgaudit_wf._undo_types(target regclass) returns pgaudit_wf.undo_column[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select row(attname::text, format_type(atttypid, atttypmod), case
            when base = 'json'::regtype then 'json'
            when base = 'jsonb'::regtype then 'jsonb'
            when exists (
                select from pg_cast join pg_proc on pg_proc.oid = castfunc
                where castsource = base and casttarget = 'json'::regtype and probin = '$libdir/hstore' and proowner = 10) then 'hstore'
            end)::pgaudit_wf.undo_column
        from pg_attribute, pgaudit_wf._base_type(atttypid) as base
        where attrelid = _undo_types.target and attnum > 0 and not attisdropped and attgenerated = '' order by attnum)
$$;
comment on function pgaudit_wf._undo_types(regclass) is 'The columns of a table that can be written, and how.';

create function pgaudit_wf._undo_payload(record jsonb, nulls text[], types pgaudit_wf.undo_column[]) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select record || coalesce((
        select jsonb_object_agg(t.name, to_jsonb(case
            when record -> t.name = 'null' then case when t.name = any (nulls) then 'null' end
            when t.as_text = 'jsonb' then (record -> t.name)::text
            when t.as_text = 'json' then pgaudit_wf._json_text(record -> t.name)
            else pgaudit_wf._hstore_text(record -> t.name) end))
        from unnest(types) as t where t.as_text is not null and record ? t.name), '{}')
$$;
comment on function pgaudit_wf._undo_payload(jsonb, text[], pgaudit_wf.undo_column[]) is
    'What is to be put back as _undo_statement() takes it.';

create function pgaudit_wf._undo_statement(
    setting pgaudit_wf.attachment, op text, names text[], types pgaudit_wf.undo_column[], by_expression boolean
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array_to_string(pgaudit_wf._fill(
        case op
            when 'delete' then 'delete from {{only}} as r using unnest($1) as b (key) where {{match}}'
            when 'update' then 'update {{only}} as r set {{assignments}} from unnest($1, $2) as b (key, put) '
                'cross join lateral jsonb_to_record(b.put) as s ({{columns}}) where {{match}}'
            else 'insert into {{table}} as r ({{names}}) overriding system value select {{values}} from unnest($1, $2) as b (key, put) '
                'cross join lateral jsonb_to_record(b.put) as s ({{columns}})'
        end,
        jsonb_build_object(
            'only', pgaudit_wf._only((setting).target),
            'table', (setting).target::text,
            'match', case when op <> 'insert' then pgaudit_wf._undo_match(setting, 'r', by_expression) else '' end,
            'names', coalesce(string_agg(quote_ident(t.name), ', ' order by t.position), ''),
            'columns', coalesce(string_agg(
                format('%I %s', t.name, case when t.as_text is null then t.type else 'text' end), ', ' order by t.position), ''),
            'values', coalesce(string_agg(t.value, ', ' order by t.position), ''),
            'assignments', coalesce(string_agg(format('%I = %s', t.name, t.value), ', ' order by t.position), ''))), e'\n')
    from (
        select listed.name, listed.type, listed.as_text, listed.position,
            format('s.%I', listed.name) || case when listed.as_text is null then '' else '::' || listed.type end as value
        from unnest(types) with ordinality as listed (name, type, as_text, position)
        where listed.name = any (names)
    ) as t
$$;
comment on function pgaudit_wf._undo_statement(pgaudit_wf.attachment, text, text[], pgaudit_wf.undo_column[], boolean) is
    'The statement that inserts, updates or deletes rows of an attached table, by keys $1 and what is put back $2.';
