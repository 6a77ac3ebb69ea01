-- The pieces of the compiled form, which names each column and compares it in its own type.

create type pgaudit_wf.capture_column as (
    name text,
    type oid,
    redacted boolean,
    by_text boolean,
    toastable boolean,
    -- From how many bytes on a value may be too large for the event; null: no value is.
    large_from integer,
    -- How many bytes a value may have to be recorded as it is; null: whatever jsonb can hold.
    longest integer,
    -- Whether what changed within a value is recorded, rather than the value as a whole.
    nested boolean,
    -- Paths within a value that are hidden; null: none.
    secrets text[]
);
comment on type pgaudit_wf.capture_column is 'A column that a trigger records, with what its type asks for.';

create function pgaudit_wf._can_hold_secrets(type oid) returns boolean
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select type in ('jsonb'::regtype, 'json'::regtype, 'text'::regtype, 'varchar'::regtype) $$;
comment on function pgaudit_wf._can_hold_secrets(oid) is 'Whether a path of redact can lead into values of a type.';

create function pgaudit_wf._describe_column(
    col pg_attribute, redacted boolean, unbounded integer default null, longest integer default null, shallow boolean default true,
    secrets text[] default null
) returns pgaudit_wf.capture_column
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select row(
            (col).attname::text,
            (col).atttypid,
            hidden,
            pgaudit_wf._compare_by_text((col).atttypid)
                or exists (select from pg_collation where oid = (col).attcollation and not collisdeterministic),
            -- Only types that tend to be long; and the function that compares two out-of-line values unread is new in PostgreSQL 17.
            (col).attlen = -1 and current_setting('server_version_num')::integer >= 170000
                and (col).atttypid in ('jsonb'::regtype, 'json'::regtype, 'xml'::regtype, 'bytea'::regtype, 'tsvector'::regtype),
            case
                when hidden or unbounded is null
                    or pgaudit_wf._longest_value((col).atttypid, (col).atttypmod) <= coalesce(longest, 147456) then null
                -- jsonb holds 256 MiB: what is not too large takes 32 of them at most, all columns, old and new values together.
                when base in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) then least(16777216 / unbounded, longest)
                when base = 'bytea'::regtype then least(8388608 / unbounded, longest)
                -- As stored, which may be compressed to a 256th.
                when base in ('jsonb'::regtype, 'xml'::regtype) and longest is null then 65536 / unbounded
                -- An array of nulls is 64 times as long when it is printed, and a composite of them takes even more as JSON.
                else least(16384 / unbounded,
                    longest / case when base in ('jsonb'::regtype, 'json'::regtype, 'xml'::regtype) then 8 else 64 end)
            end,
            longest,
            base in ('jsonb'::regtype, 'json'::regtype) and not hidden and not shallow,
            case when not hidden then secrets end
        )::pgaudit_wf.capture_column
        from (select pgaudit_wf._base_type((col).atttypid) as base) as described,
        lateral (
            -- A value of a type that paths do not lead into is hidden as a whole.
            select redacted or (secrets is not null and not pgaudit_wf._can_hold_secrets(base)) as hidden
        ) as shown
    );
end
$$;
comment on function pgaudit_wf._describe_column(pg_attribute, boolean, integer, integer, boolean, text[]) is
    'A column with what its type asks for. unbounded is the number of columns of the table whose values have no fixed length '
    '(null: no value of this column is too large), longest the most bytes with which a value is recorded as it is; '
    'shallow: a json or jsonb value is replaced as a whole; secrets: paths within it that are hidden.';

create function pgaudit_wf._unbounded(relation oid) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select greatest(count(*), 1)::integer from pg_attribute
        where attrelid = _unbounded.relation and attnum > 0 and not attisdropped and attlen < 0
    );
end
$$;
comment on function pgaudit_wf._unbounded(oid) is 'Number of columns of a relation whose values have no fixed length, at least 1.';

create function pgaudit_wf._hidden_columns(setting pgaudit_wf.attachment) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A virtual generated column is not in the row that a trigger sees.
    return array(
        select attname::text from pg_attribute
        where attrelid = (setting).target and attnum > 0 and not attisdropped
            and (attname = any ((setting).ignore || (select pgaudit_wf._definition_columns((setting).target))) or attgenerated = 'v')
        order by attnum);
end
$$;
comment on function pgaudit_wf._hidden_columns(pgaudit_wf.attachment) is
    'The columns of an attached table that its events leave out: ignored ones, a workflow''s graph, and those that are computed when read.';

create function pgaudit_wf._capture_columns(setting pgaudit_wf.attachment) returns setof pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._describe_column(col, attname = any ((setting).redact), unbounded, (setting).max_value,
        attname = any ((setting).shallow), pgaudit_wf._secret_paths((setting).redact, attname, (setting).columns))
    from pg_attribute as col, pgaudit_wf._unbounded((setting).target) as unbounded
    where attrelid = (setting).target and attnum > 0 and not attisdropped
        and attname <> all ((select pgaudit_wf._hidden_columns(setting))::text[])
    order by attnum
$$;
comment on function pgaudit_wf._capture_columns(pgaudit_wf.attachment) is
    'The columns that the trigger of an attached table records, in their order.';

create function pgaudit_wf._changed_expression(col pgaudit_wf.capture_column) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format(
        case
            -- Byte by byte, so that no user-defined operator is looked up; what then reads the same has not changed.
            when not pgaudit_wf._is_built_in((col).type) or may_not_print then
                '(record_image_ne(row(%1$s), row(%2$s)) and '
                || case
                    -- As text it may be too long for PostgreSQL.
                    when may_not_print then '(pg_column_size(%1$s) > 65536 or pg_column_size(%2$s) > 65536'
                        ' or (%3$s) collate "C" is distinct from (%4$s) collate "C"))'
                    else '(%3$s) collate "C" is distinct from (%4$s) collate "C")'
                end
            -- Equal TOAST ids are the same stored value: then the value, which may be long, is not read at all.
            when (col).toastable then '((pg_column_toast_chunk_id(%1$s) = pg_column_toast_chunk_id(%2$s)) is not true and '
                || case
                    when by_image then 'record_image_ne(row(%1$s), row(%2$s)))'
                    when (col).by_text then '%1$s::text collate "C" is distinct from %2$s::text collate "C")'
                    else '%1$s is distinct from %2$s)'
                end
            when by_image then 'record_image_ne(row(%1$s), row(%2$s))'
            when (col).by_text then '%1$s::text collate "C" is distinct from %2$s::text collate "C"'
            else '%1$s is distinct from %2$s'
        end,
        before, after, pgaudit_wf._text_expression((col).type, before), pgaudit_wf._text_expression((col).type, after))
    from (
        select pgaudit_wf._field('old', (col).name) as before, pgaudit_wf._field('new', (col).name) as after,
            typlen < 0 and ((col).by_text or not pgaudit_wf._is_built_in((col).type))
                and pgaudit_wf._base_type((col).type) not in (
                    'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'json'::regtype, 'xml'::regtype) as may_not_print,
            -- 1.0 and 1.00 are equal as jsonb, and later operations within the value rest on what was recorded of it.
            (col).nested and not (col).by_text as by_image
        from pg_type where oid = (col).type
    ) as sides
$$;
comment on function pgaudit_wf._changed_expression(pgaudit_wf.capture_column) is
    'SQL condition that is true when the column differs between old and new.';

create function pgaudit_wf._visible_value(col pgaudit_wf.capture_column, record_name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A composite of nulls "is null", and yet is a value.
    return case
        when (col).redacted then
            format('case when %s is distinct from null then ''[redacted]'' end', pgaudit_wf._field(record_name, (col).name))
        when (col).secrets is not null then format('pgaudit_wf.%s(%s, %L::text[])',
            case when pgaudit_wf._base_type((col).type) in ('text'::regtype, 'varchar'::regtype) then '_hide_text' else '_hide_json' end,
            pgaudit_wf._field(record_name, (col).name), (col).secrets)
        else pgaudit_wf._json_expression((col).type, pgaudit_wf._field(record_name, (col).name))
    end;
end
$$;
comment on function pgaudit_wf._visible_value(pgaudit_wf.capture_column, text) is
    'SQL expression for the column''s value as it may be shown.';

create function pgaudit_wf._json_null_test(col pgaudit_wf.capture_column, record_name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- By its size first, which is known without reading a value that may be long.
    return case when pgaudit_wf._base_type((col).type) in ('json'::regtype, 'jsonb'::regtype) and not (col).redacted
        then format('pg_column_size(%1$s) < 64 and %2$s_typeof(%1$s) = ''null''', pgaudit_wf._field(record_name, (col).name),
            -- Not format_type(), which quotes a name when quote_all_identifiers is on.
            case when pgaudit_wf._base_type((col).type) = 'json'::regtype then 'json' else 'jsonb' end) end;
end
$$;
comment on function pgaudit_wf._json_null_test(pgaudit_wf.capture_column, text) is
    'SQL condition that is true where a json or jsonb column holds a JSON null, which a diff would show like an SQL null.';

create function pgaudit_wf._json_null_columns(columns pgaudit_wf.capture_column[], record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select e'array_remove(array[\n            '
        || string_agg(format('case when %s then %L end', test, (columns[position]).name), e',\n            ' order by position)
        || '], null)'
    from generate_subscripts(columns, 1) as position, pgaudit_wf._json_null_test(columns[position], record_name) as test
    where test is not null
$$;
comment on function pgaudit_wf._json_null_columns(pgaudit_wf.capture_column[], text) is
    'SQL expression for the names of the columns of a record that hold a JSON null; '
    'null for a table without json and jsonb columns.';

create function pgaudit_wf._json_null_statements(setting pgaudit_wf.attachment, record_name text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce((
        select pgaudit_wf._fill(
$nulls$if {{any}} then
    event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb({{names}}));
end if;$nulls$,
            jsonb_build_object(
                'any', (select string_agg(pgaudit_wf._json_null_test(col, record_name), e'\n            or ') from unnest(columns) as col),
                'names', pgaudit_wf._json_null_columns(columns, record_name)))
        from (select array(select pgaudit_wf._capture_columns(setting)) as columns) as captured
        where pgaudit_wf._json_null_columns(columns, record_name) is not null), '{}')
$$;
comment on function pgaudit_wf._json_null_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that names in the diff of a whole row the columns that hold a JSON null.';

create function pgaudit_wf._json_null_of_change(col pgaudit_wf.capture_column) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when before is null then '{}' else pgaudit_wf._fill(
$nulls$if {{before}} or {{after}} then
    event_diff := jsonb_set(event_diff, '{-1,json_null}', to_jsonb(array_remove(array[
        case when {{before}} then 'old' end,
        case when {{after}} then 'value' end], null)));
end if;$nulls$, jsonb_build_object('before', before, 'after', after)) end
    from (select pgaudit_wf._json_null_test(col, 'old') as before, pgaudit_wf._json_null_test(col, 'new') as after) as tests
$$;
comment on function pgaudit_wf._json_null_of_change(pgaudit_wf.capture_column) is
    'PL/pgSQL that says in a changed column''s operation which of its sides are JSON nulls.';

create function pgaudit_wf._pointer(key text) returns text
language sql immutable strict parallel safe
as $$ select '/' || replace(replace(key, '~', '~0'), '/', '~1') $$;
comment on function pgaudit_wf._pointer(text) is 'JSON pointer to a member (RFC 6901, section 3).';

create function pgaudit_wf._key_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when count = 0 then 'null::text'
        when count > 1 then format('pgaudit_wf._bounded_key(jsonb_build_array(%s)::text)', as_json)
        when short then as_text
        else format('pgaudit_wf._bounded_key(%s)', as_text)
    end
    from (
        select
            string_agg(
                pgaudit_wf._json_expression(atttypid, pgaudit_wf._field(record_name, key_column)), ', ' order by position) as as_json,
            min(pgaudit_wf._text_expression(atttypid, pgaudit_wf._field(record_name, key_column))) as as_text,
            bool_and(attlen > 0) as short,
            count(*) as count
        from unnest(pgaudit_wf._key_columns(setting)) with ordinality as k (key_column, position)
        join pg_attribute on attrelid = (setting).target and attname = key_column
    ) as key_columns
$$;
comment on function pgaudit_wf._key_expression(pgaudit_wf.attachment, text) is
    'SQL expression for resource_id over the given record (old or new).';

create function pgaudit_wf._key_condition(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A single key of a built-in type is compared as that type, so that its index is used; never as a domain, whose checks are user code.
    select coalesce((
            select format('%I.%I = $1::%s', record_name, attname, format_type(pgaudit_wf._base_type(atttypid), -1))
            from pg_attribute
            where attrelid = (setting).target and array[attname::text] = pgaudit_wf._key_columns(setting)
                and pgaudit_wf._is_built_in(atttypid)),
        format('%s = $1', pgaudit_wf._key_expression(setting, record_name)))
$$;
comment on function pgaudit_wf._key_condition(pgaudit_wf.attachment, text) is
    'SQL condition that picks the row of an attached table with resource_id $1.';

create function pgaudit_wf._bounded_key(key text) returns text
language sql stable parallel safe
as $$
    -- An index entry has to fit a third of a page. Not immutable, as convert_to() is not: then it would not be inlined.
    select case when octet_length(key) > 1024 then 'sha256:' || encode(sha256(convert_to(key, 'UTF8')), 'hex') else key end
$$;
comment on function pgaudit_wf._bounded_key(text) is
    'A key as resource_id: itself, or its SHA-256 as sha256:<hex> when it is longer than 1,024 bytes.';

create function pgaudit_wf._row_object(columns pgaudit_wf.capture_column[], record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A function takes 100 arguments at most.
    select coalesce(
        string_agg(format(e'jsonb_build_object(\n                %s)', listed), e'\n            || ' order by chunk), '''{}''::jsonb')
    from (
        select (position - 1) / 50 as chunk,
            string_agg(
                format('%L, %s', (columns[position]).name, pgaudit_wf._visible_value(columns[position], record_name)),
                e',\n                ' order by position) as listed
        from generate_subscripts(columns, 1) as position
        group by chunk
    ) as chunks
$$;
comment on function pgaudit_wf._row_object(pgaudit_wf.capture_column[], text) is
    'SQL expression for the given columns of a record as a jsonb object, redacted ones hidden; no other column is read.';

create function pgaudit_wf._row_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The row as a whole is fastest, but reads every column: unsuited where one is hidden and may be long, or would be turned into JSON
    -- by a user-defined cast, or cannot be turned into JSON.
    select case when bool_and(pgaudit_wf._json_without_casts(atttypid) and not pgaudit_wf._holds_json(atttypid)
                and (attlen > 0 or attgenerated = 'v'
                    or (attname <> all ((select pgaudit_wf._hidden_columns(setting))::text[]) and attname <> all ((setting).redact))))
        then format('to_jsonb(%I.*)', record_name)
            || case
                when pgaudit_wf._hidden_columns(setting) = '{}' then ''
                else format(e'\n            - %L::text[]', pgaudit_wf._hidden_columns(setting))
            end
            || coalesce((
                select e'\n            || ' || pgaudit_wf._row_object(array_agg(col), record_name)
                from pgaudit_wf._capture_columns(setting) as col where (col).redacted or (col).secrets is not null
                having count(*) > 0), '')
        else pgaudit_wf._row_object(array(select pgaudit_wf._capture_columns(setting)), record_name) end
    from pg_attribute
    where attrelid = (setting).target and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf._row_expression(pgaudit_wf.attachment, text) is
    'SQL expression for a whole row as jsonb, less ignored columns and a workflow''s graph, redacted columns hidden.';

create function pgaudit_wf._large_test(col pgaudit_wf.capture_column, record_name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- None of these reads the value.
    return format(
        case
            when (col).large_from is null then null
            when pgaudit_wf._base_type((col).type) in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype)
                then 'octet_length(%1$s) > %2$s'
            when pgaudit_wf._base_type((col).type) in ('jsonb'::regtype, 'xml'::regtype) and (col).longest is null
                then 'pg_column_size(%1$s) > %2$s'
            else 'pg_column_size(%1$s) > %2$s or pg_column_compression(%1$s) is not null'
        end,
        pgaudit_wf._field(record_name, (col).name), (col).large_from);
end
$$;
comment on function pgaudit_wf._large_test(pgaudit_wf.capture_column, text) is
    'SQL condition that is true where the value of a column may be too large to be recorded as it is; '
    'null for a column whose values never are.';

create function pgaudit_wf._put_expression(
    col pgaudit_wf.capture_column, record_name text, op text, path text[], beside text default null, room integer default null
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return format('pgaudit_wf.%s(%s)',
        case when (select typcategory = 'A' and typelem <> 0 from pg_type where oid = pgaudit_wf._base_type((col).type))
            then '_put_array' else '_put_large' end,
        concat_ws(', ',
        op, quote_literal(path::text),
        case when (col).secrets is null then pgaudit_wf._field(record_name, (col).name)
            else pgaudit_wf._visible_value(col, record_name) end, beside,
        case when (col).secrets is null
            then 'expression => ' || quote_literal(nullif(pgaudit_wf._json_expression((col).type, '$1'), '$1')) end,
        'longest => ' || (col).longest, 'room => ' || room));
end
$$;
comment on function pgaudit_wf._put_expression(pgaudit_wf.capture_column, text, text, text[], text, integer) is
    'SQL expression for _put_large() with a column of a record.';

create function pgaudit_wf._large_op(columns pgaudit_wf.capture_column[], record_name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    large constant text := (select string_agg(pgaudit_wf._large_test(c, record_name), ' or ') from unnest(columns) as c);
    op text := format('jsonb_build_object(''value'', %s)', pgaudit_wf._row_object(
        array(select c from unnest(columns) as c where pgaudit_wf._large_test(c, record_name) is null), record_name));
    col pgaudit_wf.capture_column;
begin
    foreach col in array columns loop
        continue when pgaudit_wf._large_test(col, record_name) is null;
        op := pgaudit_wf._put_expression(col, record_name, op, array['value', col.name]);
    end loop;
    return 'when ' || large || ' then ' || op;
end
$$;
comment on function pgaudit_wf._large_op(pgaudit_wf.capture_column[], text) is
    'The branch of an SQL CASE for a row of which a value may be too large to be shown with the others: {"value": row, "digest": columns}; '
    'null if no value of these columns ever is.';

create function pgaudit_wf._whole_row_statements(
    columns pgaudit_wf.capture_column[], record_name text, op text, path text[], room integer, finish text[], plain text
) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when bool_and(test is null) then array[plain] else pgaudit_wf._fill(
$row$if {{large}} then
    event_op := {{op}};
    {{columns}}
    {{finish}}
else
    {{plain}}
end if;$row$,
        jsonb_build_object(
            'large', string_agg(test, e'\n            or ' order by position),
            'op', format(op, pgaudit_wf._row_object(array_agg(col order by position) filter (where test is null), record_name)),
            'columns', array_agg(
                format('event_op := %s;',
                    pgaudit_wf._put_expression(col, record_name, 'event_op', path || (col).name, room => room))
                order by position) filter (where test is not null),
            'finish', finish,
            'plain', plain)) end
    from (
        select columns[position] as col, position, pgaudit_wf._large_test(columns[position], record_name) as test
        from generate_subscripts(columns, 1) as position
    ) as tested
$$;
comment on function pgaudit_wf._whole_row_statements(pgaudit_wf.capture_column[], text, text, text[], integer, text[], text) is
    'PL/pgSQL that records a whole row: by the plain statement or, where a value may be too large, column by column in event_op. '
    'op is the expression it begins with (%s: the other columns), path where they are in it, finish what is done with it.';

create function pgaudit_wf._row_diff(op text, member text, shown text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- Cheaper than building object and array around the row.
    select format('jsonb_set(%L, %L, %s)', format('[{"op": "%s", "path": "", "%s": null}]', op, member), format('{0,%s}', member), shown)
$$;
comment on function pgaudit_wf._row_diff(text, text, text) is
    'SQL expression for the diff of an inserted or deleted row, of one for its columns as an object.';

create function pgaudit_wf._row_diff_statements(setting pgaudit_wf.attachment, record_name text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._whole_row_statements(
            array(select pgaudit_wf._capture_columns(setting)), record_name,
            format('jsonb_build_object(''op'', %L, ''path'', '''', %L, %%s%s)', op, member,
                replace(pgaudit_wf._with_hash(setting), '%', '%%')),
            array[member], null, array['event_diff := jsonb_build_array(event_op);'],
            format('event_diff := %s;', pgaudit_wf._row_diff(
                op, member, pgaudit_wf._row_expression(setting, record_name) || pgaudit_wf._with_hash(setting))))
        || pgaudit_wf._json_null_statements(setting, record_name)
    from (values ('new', 'add', 'value'), ('old', 'remove', 'old')) as kind (record, op, member)
    where kind.record = record_name
$$;
comment on function pgaudit_wf._row_diff_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that makes event_diff of the row that was inserted (new) or deleted (old).';

create function pgaudit_wf._nested_statements(col pgaudit_wf.capture_column, otherwise text[]) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when (col).nested then pgaudit_wf._fill(
$change$event_op := null;
if {{old fits}} and {{new fits}}
    -- Many such columns can be more than jsonb holds.
    and coalesce(pg_column_size(event_diff), 0) < 33554432 then
    event_op := {{change}}({{path}}, {{old}}, {{new}}{{longest}});
end if;
if event_op is not null then
    event_diff := coalesce(event_diff, '[]') || event_op;
else
    {{otherwise}}
end if;$change$,
        jsonb_build_object(
            'old fits', format(fits, pgaudit_wf._field('old', (col).name)),
            'new fits', format(fits, pgaudit_wf._field('new', (col).name)),
            'path', quote_literal(pgaudit_wf._pointer((col).name)),
            'change', case when (col).secrets is null then 'pgaudit_wf._deep_change' else 'pgaudit_wf._secret_change' end,
            'old', pgaudit_wf._json_expression((col).type, pgaudit_wf._field('old', (col).name)),
            'new', pgaudit_wf._json_expression((col).type, pgaudit_wf._field('new', (col).name))
                || case when (col).secrets is null then '' else format(', %L::text[]', (col).secrets) end,
            'longest', case when as_text then '' else coalesce(', ' || (col).longest, '') end,
            'otherwise', otherwise)) else otherwise end
    -- Neither reads the value.
    from (select pgaudit_wf._base_type((col).type) = 'json'::regtype as as_text) as kind,
    lateral (select case
        when as_text then 'octet_length(%s::text) <= ' || least(1048576, (col).longest)
        else 'pg_column_size(%s) <= 1048576' end as fits) as measured
$$;
comment on function pgaudit_wf._nested_statements(pgaudit_wf.capture_column, text[]) is
    'PL/pgSQL that adds to event_diff what changed within a json or jsonb column; '
    'the other statements where it is to be replaced, and for every other column.';

create function pgaudit_wf._change_statements(col pgaudit_wf.capture_column) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._nested_statements(col, pgaudit_wf._fill(
        case when before is null then
$change$event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', {{path}},
    'old', {{old}},
    'value', {{new}});$change$
        else
$change$if {{large before}}
    or {{large after}} then
    event_op := jsonb_build_object('op', 'replace', 'path', {{path}});
    event_op := {{put new}};
    event_diff := coalesce(event_diff, '[]')
        || {{put old}};
else
    event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', {{path}},
        'old', {{old}},
        'value', {{new}});
end if;$change$ end,
        jsonb_build_object(
            'path', quote_literal(path),
            'large before', before,
            'large after', after,
            -- The new value first: the old one is in an earlier event.
            'put new', pgaudit_wf._put_expression(col, 'new', 'event_op', '{value}', 'event_diff'),
            'put old', pgaudit_wf._put_expression(col, 'old', 'event_op', '{old}', 'event_diff'),
            'old', pgaudit_wf._visible_value(col, 'old'),
            'new', pgaudit_wf._visible_value(col, 'new'))))
    from (
        select pgaudit_wf._pointer((col).name) as path,
            pgaudit_wf._large_test(col, 'old') as before, pgaudit_wf._large_test(col, 'new') as after
    ) as tests
$$;
comment on function pgaudit_wf._change_statements(pgaudit_wf.capture_column) is
    'PL/pgSQL that adds the operations of a changed column to event_diff.';

create function pgaudit_wf._update_statements(setting pgaudit_wf.attachment) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    col pgaudit_wf.capture_column;
    lines text[] := '{}';
begin
    -- One statement a column: PL/pgSQL evaluates such simple expressions several times faster than one long expression.
    for col in select * from pgaudit_wf._capture_columns(setting) loop
        lines := lines || pgaudit_wf._fill(
$change$if {{changed}} then
    {{operation}}
    {{JSON nulls}}
end if;$change$,
            jsonb_build_object(
                'changed', pgaudit_wf._changed_expression(col),
                'operation', pgaudit_wf._change_statements(col),
                'JSON nulls', pgaudit_wf._json_null_of_change(col)));
    end loop;
    return lines;
end
$$;
comment on function pgaudit_wf._update_statements(pgaudit_wf.attachment) is
    'PL/pgSQL that collects the changed columns of an update into event_diff.';

create function pgaudit_wf._column_text(setting pgaudit_wf.attachment, column_name text, record_name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select pgaudit_wf._text_expression(atttypid, pgaudit_wf._field(record_name, column_name))
        from pg_attribute where attrelid = (setting).target and attname = column_name and attnum > 0
    );
end
$$;
comment on function pgaudit_wf._column_text(pgaudit_wf.attachment, text, text) is
    'SQL expression for a column of a record as text; null where the table has no such column (any more).';

create function pgaudit_wf._org_expression(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('left(coalesce(%s, %s), 255)',
        pgaudit_wf._column_text(setting, (setting).org_column, 'new'), pgaudit_wf._column_text(setting, (setting).org_column, 'old'))
$$;
comment on function pgaudit_wf._org_expression(pgaudit_wf.attachment) is
    'SQL expression for the organization of an updated row: the new one, or the old one of a row that has left it.';

create function pgaudit_wf._key_statements(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._fill(
$key$event_id := {{new key}};
if {{changed}} then
    event_previous_id := {{old key}};
end if;$key$,
        jsonb_build_object(
            'new key', pgaudit_wf._key_expression(setting, 'new'),
            'changed', coalesce(string_agg(pgaudit_wf._changed_expression(col), ' or '), 'false'),
            'old key', pgaudit_wf._key_expression(setting, 'old')))
    from pgaudit_wf._capture_columns(setting) as col where (col).name = any (pgaudit_wf._key_columns(setting))
$$;
comment on function pgaudit_wf._key_statements(pgaudit_wf.attachment) is
    'PL/pgSQL that takes the key of an updated row, and the previous one if it changed.';

create function pgaudit_wf._assignments(setting pgaudit_wf.attachment, record_name text, on_update boolean) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
            when org is null then '{}'
            when record_name = 'new' and on_update then (
                select pgaudit_wf._fill(
$org$event_org := {{org}};
if {{changed}} then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', {{old org}});
end if;$org$,
                    jsonb_build_object(
                        'org', pgaudit_wf._org_expression(setting),
                        'changed', pgaudit_wf._changed_expression(pgaudit_wf._describe_column(col, false)),
                        'old org', pgaudit_wf._json_expression(atttypid, pgaudit_wf._field('old', attname))))
                from pg_attribute as col where attrelid = (setting).target and attname = (setting).org_column)
            else array[format('event_org := left(%s, 255);', org)]
        end
        || case when label is null then '{}' else array[format('event_label := left(%s, 255);', label)] end
    from (select pgaudit_wf._column_text(setting, (setting).org_column, record_name) as org,
        pgaudit_wf._column_text(setting, (setting).label_column, record_name) as label) as taken
$$;
comment on function pgaudit_wf._assignments(pgaudit_wf.attachment, text, boolean) is
    'PL/pgSQL that takes org and label from the given record.';

create function pgaudit_wf._compiled_pieces(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object(
        'variables of the form', 'event_op jsonb;',
        'rows as JSON', '',
        'changed columns', pgaudit_wf._update_statements(setting),
        'key of the update', pgaudit_wf._key_statements(setting),
        'org and label of the update', pgaudit_wf._assignments(setting, 'new', true),
        'key of the insert', format('event_id := %s;', pgaudit_wf._key_expression(setting, 'new')),
        'org and label of the insert', pgaudit_wf._assignments(setting, 'new', false),
        'diff of the insert', pgaudit_wf._row_diff_statements(setting, 'new'),
        'key of the delete', format('event_id := %s;', pgaudit_wf._key_expression(setting, 'old')),
        'org and label of the delete', pgaudit_wf._assignments(setting, 'old', false),
        'diff of the delete', pgaudit_wf._row_diff_statements(setting, 'old'));
end
$$;
comment on function pgaudit_wf._compiled_pieces(pgaudit_wf.attachment) is
    'The pieces of _trigger_template() that the compiled form has of its own, in the order of its slots.';
