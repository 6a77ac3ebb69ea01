-- Writes the trigger function of an attached table. The text is for people too: \sf pgaudit_wf.capture_<table>.

create type pgaudit_wf.capture_column as (
    name text,
    type oid,
    redacted boolean,
    by_text boolean,
    toastable boolean
);
comment on type pgaudit_wf.capture_column is 'A column that a trigger records, with what its type asks for.';

create function pgaudit_wf.describe_column(col pg_attribute, redacted boolean) returns pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select row(
        (col).attname::text,
        (col).atttypid,
        redacted,
        pgaudit_wf.compare_by_text((col).atttypid)
            or exists (select from pg_collation where oid = (col).attcollation and not collisdeterministic),
        -- Only types that tend to be long; and the function that compares two out-of-line values unread is new in PostgreSQL 17.
        (col).attlen = -1 and current_setting('server_version_num')::integer >= 170000
            and (col).atttypid in ('jsonb'::regtype, 'json'::regtype, 'xml'::regtype, 'bytea'::regtype, 'tsvector'::regtype)
    )::pgaudit_wf.capture_column
$$;
comment on function pgaudit_wf.describe_column(pg_attribute, boolean) is 'A column with what its type asks for.';

create function pgaudit_wf.capture_columns(setting pgaudit_wf.attachment) returns setof pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.describe_column(col, attname = any ((setting).redact))
    from pg_attribute as col
    where attrelid = (setting).target and attnum > 0 and not attisdropped
        and attname <> all ((setting).ignore || pgaudit_wf.definition_columns((setting).target))
        -- A virtual generated column is not in the row that a trigger sees.
        and attgenerated <> 'v'
    order by attnum
$$;
comment on function pgaudit_wf.capture_columns(pgaudit_wf.attachment) is 'The columns that the trigger of an attached table records, in their order.';

create function pgaudit_wf.changed_expression(col pgaudit_wf.capture_column) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    -- Equal TOAST ids are the same stored value: then the value, which may be long, is not read at all.
    select case when (col).toastable
            then format('((pg_column_toast_chunk_id(old.%1$I) = pg_column_toast_chunk_id(new.%1$I)) is not true and ', (col).name) else '' end
        || format(case when (col).by_text then 'old.%1$I::text collate "C" is distinct from new.%1$I::text collate "C"' else 'old.%1$I is distinct from new.%1$I' end, (col).name)
        || case when (col).toastable then ')' else '' end
$$;
comment on function pgaudit_wf.changed_expression(pgaudit_wf.capture_column) is 'SQL condition that is true when the column differs between old and new.';

create function pgaudit_wf.shown_expression(col pgaudit_wf.capture_column, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format(
        case
            -- A composite of nulls "is null", and yet is a value.
            when (col).redacted then 'case when %1$I.%2$I is distinct from null then ''[redacted]'' end'
            when pgaudit_wf.holds_json((col).type) then 'pgaudit_wf.json_value(to_json(%1$I.%2$I))'
            when pgaudit_wf.follows_timezone((col).type) then 'pgaudit_wf.utc_json(%1$I.%2$I)'
            else '%1$I.%2$I'
        end,
        record_name, (col).name)
$$;
comment on function pgaudit_wf.shown_expression(pgaudit_wf.capture_column, text) is 'SQL expression for the column''s value as it may be shown.';

create function pgaudit_wf.pointer(key text) returns text
language sql immutable strict parallel safe
as $$ select '/' || replace(replace(key, '~', '~0'), '/', '~1') $$;
comment on function pgaudit_wf.pointer(text) is 'JSON pointer to a member (RFC 6901, section 3).';

create function pgaudit_wf.key_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when cardinality((setting).id_columns) > 1 then format('pgaudit_wf.bounded_key(jsonb_build_array(%s)::text)', listed)
        when short then format('%s::text', listed)
        else format('pgaudit_wf.bounded_key(%s::text)', listed)
    end
    from (
        select
            string_agg(format('%I.%I', record_name, key_column), ', ' order by position) as listed,
            bool_and(attlen > 0) as short
        from unnest((setting).id_columns) with ordinality as k (key_column, position)
        join pg_attribute on attrelid = (setting).target and attname = key_column
    ) as key_columns
$$;
comment on function pgaudit_wf.key_expression(pgaudit_wf.attachment, text) is 'SQL expression for resource_id over the given record (old or new).';

create function pgaudit_wf.key_condition(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A single key is compared in its own type, so that its index is used.
    select case when cardinality((setting).id_columns) = 1 then (
            select format('%I.%I = $1::%s', record_name, attname, format_type(atttypid, atttypmod))
            from pg_attribute where attrelid = (setting).target and attname = (setting).id_columns[1])
        else format('%s = $1', pgaudit_wf.key_expression(setting, record_name)) end
$$;
comment on function pgaudit_wf.key_condition(pgaudit_wf.attachment, text) is 'SQL condition that picks the row of an attached table with resource_id $1.';

create function pgaudit_wf.bounded_key(key text) returns text
language sql stable parallel safe
as $$
    -- An index entry has to fit a third of a page. Not immutable, as convert_to() is not: then it would not be inlined.
    select case when octet_length(key) > 1024 then 'sha256:' || encode(sha256(convert_to(key, 'UTF8')), 'hex') else key end
$$;
comment on function pgaudit_wf.bounded_key(text) is 'A key as resource_id: itself, or its SHA-256 as sha256:<hex> when it is longer than 1,024 bytes.';

create function pgaudit_wf.action_expression(setting pgaudit_wf.attachment, op text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with rule as (
        select id, position, condition, action from pgaudit_wf.action_rule
        where action_rule.resource_type = (setting).resource_type and action_rule.op = $2
    ), fallback as (
        select quote_literal((setting).resource_type || case op when 'insert' then '.created' when 'update' then '.updated' else '.deleted' end) as action
    )
    select case when exists (select from rule) then
        e'case\n' || (
            select string_agg(format(e'            when %s then %L\n',
                case when strpos(coalesce(condition, 'true'), '--') > 0 then condition || e'\n           ' else coalesce(condition, 'true') end,
                rule.action), '' order by position, id)
            from rule
        ) || format(e'            else %s\n        end', fallback.action)
        else fallback.action end
    from fallback
$$;
comment on function pgaudit_wf.action_expression(pgaudit_wf.attachment, text) is 'SQL expression for the action of an insert, update or delete, from action_rule.';

create function pgaudit_wf.row_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format((
            select case
                when bool_or(pgaudit_wf.holds_json(atttypid)) then 'pgaudit_wf.json_row(%s)'
                when bool_or(pgaudit_wf.follows_timezone(atttypid)) then 'pgaudit_wf.utc_row(%s)'
                else 'to_jsonb(%s)'
            end
            from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped), record_name)
        || coalesce((
            select format(e'\n            - %L::text[]', array_agg(attname order by attnum)) from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped
                and (attname = any ((setting).ignore || pgaudit_wf.definition_columns((setting).target)) or attgenerated = 'v')
            having count(*) > 0), '')
        || coalesce((
            -- A function takes 100 arguments at most.
            select string_agg(format(e'\n            || jsonb_build_object(%s)', listed), '' order by chunk)
            from (
                select chunk, string_agg(format('%L, %s', (col).name, pgaudit_wf.shown_expression(col, record_name)), e',\n                ') as listed
                from (
                    select col, (row_number() over () - 1) / 50 as chunk
                    from pgaudit_wf.capture_columns(setting) as col where (col).redacted
                ) as hidden
                group by chunk
            ) as chunks), '')
$$;
comment on function pgaudit_wf.row_expression(pgaudit_wf.attachment, text) is 'SQL expression for a whole row as jsonb, less ignored columns and a workflow''s graph, redacted columns hidden.';

create function pgaudit_wf.update_statements(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- One statement a column: PL/pgSQL evaluates such simple expressions several times faster than one long expression.
    select coalesce(string_agg(format(
        e'        if %s then\n'
        '            event_diff := coalesce(event_diff, ''[]'') || jsonb_build_object(''op'', ''replace'', ''path'', %L,\n'
        '                ''old'', %s, ''value'', %s);\n'
        '        end if;\n',
        pgaudit_wf.changed_expression(col), pgaudit_wf.pointer((col).name),
        pgaudit_wf.shown_expression(col, 'old'), pgaudit_wf.shown_expression(col, 'new')
        ), ''), '')
    from pgaudit_wf.capture_columns(setting) as col
$$;
comment on function pgaudit_wf.update_statements(pgaudit_wf.attachment) is 'PL/pgSQL that collects the changed columns of an update into event_diff.';

create function pgaudit_wf.assignments(setting pgaudit_wf.attachment, record_name text, on_update boolean) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
            when (setting).org_column is null then ''
            when record_name = 'new' and on_update then format(
                e'\n        event_org := left(coalesce(new.%1$I, old.%1$I)::text, 255);'
                '\n        if old.%1$I is distinct from new.%1$I then'
                '\n            event_metadata := coalesce(event_metadata, ''{}'') || jsonb_build_object(''previous_org_id'', old.%1$I);'
                '\n        end if;', (setting).org_column)
            else format(e'\n        event_org := left(%I.%I::text, 255);', record_name, (setting).org_column)
        end
        || case when (setting).label_column is null then '' else format(e'\n        event_label := left(%I.%I::text, 255);', record_name, (setting).label_column) end
$$;
comment on function pgaudit_wf.assignments(pgaudit_wf.attachment, text, boolean) is 'PL/pgSQL that takes org and label from the given record.';

create function pgaudit_wf.truncate_statements(setting pgaudit_wf.attachment) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format(e'        event_action := %L;\n        event_metadata := jsonb_build_object(''table'', format(''%%I.%%I'', tg_table_schema, tg_table_name));',
        (setting).resource_type || '.truncated')
$$;
comment on function pgaudit_wf.truncate_statements(pgaudit_wf.attachment) is 'PL/pgSQL for a TRUNCATE: the one event it makes names the table that was emptied.';

create function pgaudit_wf.compiled_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format($body$
    if tg_op = 'UPDATE' then
%1$s%14$s        if event_diff is null then
            return null;
        end if;
        event_id := %2$s;%3$s%13$s
        event_action := %5$s;
    elsif tg_op = 'INSERT' then
        event_id := %2$s;%4$s
%15$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', %6$s%17$s));
        event_action := %7$s;
    elsif tg_op = 'DELETE' then
        event_id := %9$s;%10$s
%16$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', %8$s%17$s));
        event_action := %11$s;
    else
%12$s
    end if;$body$,
        pgaudit_wf.update_statements(setting),
        pgaudit_wf.key_expression(setting, 'new'),
        (
            select format(e'\n        if %s then\n            event_previous_id := %s;\n        end if;',
                string_agg(pgaudit_wf.changed_expression(col), ' or '), pgaudit_wf.key_expression(setting, 'old'))
            from pgaudit_wf.capture_columns(setting) as col where (col).name = any ((setting).id_columns)
        ),
        pgaudit_wf.assignments(setting, 'new', false),
        pgaudit_wf.action_expression(setting, 'update'),
        pgaudit_wf.row_expression(setting, 'new'),
        pgaudit_wf.action_expression(setting, 'insert'),
        pgaudit_wf.row_expression(setting, 'old'),
        pgaudit_wf.key_expression(setting, 'old'),
        pgaudit_wf.assignments(setting, 'old', false),
        pgaudit_wf.action_expression(setting, 'delete'),
        pgaudit_wf.truncate_statements(setting),
        pgaudit_wf.assignments(setting, 'new', true),
        pgaudit_wf.version_statements(setting, 'update'),
        pgaudit_wf.version_statements(setting, 'insert'),
        pgaudit_wf.version_statements(setting, 'delete'),
        case when pgaudit_wf.definition_columns((setting).target) <> '{}' then ' || jsonb_build_object(''content_hash'', event_hash)' else '' end)
$$;
comment on function pgaudit_wf.compiled_body(pgaudit_wf.attachment) is 'The part of a compiled trigger function that works out what changed.';

create function pgaudit_wf.generic_row(record jsonb, known text[], ignore text[], redact text[]) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- A redacted column that is gone may have been renamed: then no column that was not there before is shown.
    select coalesce(jsonb_object_agg(key, case
            when jsonb_typeof(value) <> 'null' and (key = any (redact) or (not record ?& redact and key <> all (known))) then '"[redacted]"'
            else value
        end), '{}')
    from jsonb_each(record)
    where key <> all (ignore)
$$;
comment on function pgaudit_wf.generic_row(jsonb, text[], text[], text[]) is 'A row as it may be shown, for triggers of the generic form.';

create function pgaudit_wf.generic_diff(before jsonb, after jsonb, shown_before jsonb, shown_after jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(jsonb_build_object('op', 'replace', 'path', pgaudit_wf.pointer(key), 'old', shown_before -> key, 'value', value) order by key)
    from jsonb_each(shown_after)
    where before -> key is distinct from after -> key
$$;
comment on function pgaudit_wf.generic_diff(jsonb, jsonb, jsonb, jsonb) is 'JSON Patch between two rows of one table, for triggers of the generic form.';

create function pgaudit_wf.generic_key(record jsonb, id_columns text[], table_id oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.bounded_key(case
        when cardinality(names) > 1 then (select jsonb_agg(record -> key_column order by position) from unnest(names) with ordinality as k (key_column, position))::text
        else record ->> names[1]
    end)
    from (
        -- A key column that is gone was renamed: ask the primary key.
        select case when record ?& generic_key.id_columns then generic_key.id_columns else array(
            select attname::text
            from pg_index, unnest(indkey) with ordinality as k (key_number, position)
            join pg_attribute on attrelid = generic_key.table_id and attnum = key_number
            where indrelid = generic_key.table_id and indisprimary
            order by position
        ) end as names
    ) as key_names
$$;
comment on function pgaudit_wf.generic_key(jsonb, text[], oid) is 'resource_id of a row, for triggers of the generic form.';

create function pgaudit_wf.generic_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format($body$
    if tg_op in ('UPDATE', 'DELETE') then
        before := pgaudit_wf.json_row(old);%16$s
        shown_before := pgaudit_wf.generic_row(before, %1$L, %2$L, %3$L);
    end if;
    if tg_op in ('UPDATE', 'INSERT') then
        after := pgaudit_wf.json_row(new);%17$s
        shown_after := pgaudit_wf.generic_row(after, %1$L, %2$L, %3$L);
    end if;
    if tg_level = 'ROW' then
        event_id := pgaudit_wf.generic_key(coalesce(after, before), %4$L, tg_relid);
        %5$s
    end if;
    if tg_op = 'UPDATE' then
        event_diff := pgaudit_wf.generic_diff(before, after, shown_before, shown_after);
%12$s        if event_diff is null then
            return null;
        end if;
        if pgaudit_wf.generic_key(before, %4$L, tg_relid) is distinct from event_id then
            event_previous_id := pgaudit_wf.generic_key(before, %4$L, tg_relid);
        end if;
    elsif tg_op = 'INSERT' then
%13$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', shown_after%15$s));
    elsif tg_op = 'DELETE' then
%14$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', shown_before%15$s));
    end if;
    if tg_level = 'ROW' then
        event_label := left(coalesce(shown_after, shown_before) ->> %6$L, 255);
        begin
            if tg_op = 'UPDATE' then
                event_action := %7$s;
            elsif tg_op = 'INSERT' then
                event_action := %8$s;
            else
                event_action := %9$s;
            end if;
        exception
            -- A rule over a column that was renamed or dropped meanwhile must not fail the write.
            when others then
                event_action := %10$L || case tg_op when 'UPDATE' then '.updated' when 'INSERT' then '.created' else '.deleted' end;
        end;
    else
%11$s
    end if;$body$,
        (setting).columns,
        -- A virtual generated column is not in the row that a trigger sees.
        (setting).ignore || pgaudit_wf.definition_columns((setting).target)
            || array(select attname::text from pg_attribute where attrelid = (setting).target and attgenerated = 'v' and not attisdropped),
        (setting).redact, (setting).id_columns,
        case when (setting).org_column is null then '-- no org column: app.org_id is taken'
            else format(
                e'event_org := left(coalesce(after ->> %1$L, before ->> %1$L), 255);'
                '\n        if tg_op = ''UPDATE'' and before -> %1$L is distinct from after -> %1$L then'
                '\n            event_metadata := coalesce(event_metadata, ''{}'') || jsonb_build_object(''previous_org_id'', before -> %1$L);'
                '\n        end if;', (setting).org_column) end,
        (setting).label_column,
        pgaudit_wf.action_expression(setting, 'update'),
        pgaudit_wf.action_expression(setting, 'insert'),
        pgaudit_wf.action_expression(setting, 'delete'),
        (setting).resource_type,
        pgaudit_wf.truncate_statements(setting),
        pgaudit_wf.version_statements(setting, 'update'),
        pgaudit_wf.version_statements(setting, 'insert'),
        pgaudit_wf.version_statements(setting, 'delete'),
        case when pgaudit_wf.definition_columns((setting).target) <> '{}' then ' || jsonb_build_object(''content_hash'', event_hash)' else '' end,
        pgaudit_wf.follow_names(setting, 'before'),
        pgaudit_wf.follow_names(setting, 'after'))
$$;
comment on function pgaudit_wf.generic_body(pgaudit_wf.attachment) is 'The part of a generic trigger function that works out what changed.';

create function pgaudit_wf.compile_capture(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    settings constant text := (
        select string_agg(distinct format(e'\nset %s', pinned), '')
        from (
            select unnest(pgaudit_wf.output_settings(atttypid, attname = any ((setting).id_columns || array[coalesce((setting).org_column, ''), coalesce((setting).label_column, '')])))
            from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped and attname <> all ((setting).ignore)
                -- utc_json() and utc_row() pin it where it is needed.
                and (not pgaudit_wf.follows_timezone(atttypid) or pgaudit_wf.holds_json(atttypid)
                    or attname = any ((setting).id_columns || (setting).org_column || (setting).label_column))
            -- The generic form does not know what columns will come.
            union all
            select unnest(array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
                'lc_monetary = ''C''', 'extra_float_digits = 1', 'quote_all_identifiers = off'])
            where (setting).form = 'generic'
        ) as type_setting (pinned));
    one_line constant boolean := (setting)::text !~ '[\r\n]' and not exists (
        select from pgaudit_wf.action_rule as r where r.resource_type = (setting).resource_type and concat(r.condition, r.action) ~ '[\r\n]');
    statements text;
    body text;
begin
    statements := case (setting).form when 'compiled' then pgaudit_wf.compiled_body(setting) else pgaudit_wf.generic_body(setting) end
        || case when pgaudit_wf.definition_columns((setting).target) <> '{}' then format($restored$
    if event_version.restored_from is not null then
        event_action := %L;
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('restored_from', event_version.restored_from);
    end if;$restored$, (setting).resource_type || '.restored') else '' end
        || format($insert$
    if event_label is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('label', event_label);
    end if;
    if current_setting('app.reason', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('reason', current_setting('app.reason', true));
    end if;
    if event_previous_id is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
        insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
        select %1$L, event_previous_id, event_id, event_org where event_id is not null
        on conflict do nothing;
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, %1$L, event_id, true, event_diff, coalesce(event_metadata, '{}'));$insert$,
        (setting).resource_type);

    if (setting).on_failure = 'warn' then
        -- Indented for the reader, unless a line break could stand within a literal.
        statements := e'\n    begin' || case when one_line then replace(statements, e'\n', e'\n    ') else statements end || format($warn$
    exception
        when others then
            perform pgaudit_wf.count_failure(%1$L, tg_op, sqlstate);
            raise warning '%% of %% went through unrecorded (SQLSTATE %%)', tg_op, %1$L, sqlstate;
    end;$warn$, (setting).target);
    end if;

    body := format($body$
-- Records every change of %1$s as %2$s; written by pgaudit_wf.attach().
-- To change it, attach the table again or edit pgaudit_wf.action_rule.
declare
    event_id text;
    event_previous_id text;
    event_org text%3$s;
    event_label text;
    event_action text;
    event_diff jsonb;
    event_metadata jsonb;%4$s
begin%5$s
    return null;
end
$body$,
        -- A line break in a name would end the comment.
        translate((setting).target::text, e'\r\n', '  '),
        translate((setting).resource_type, e'\r\n', '  '),
        case when (setting).org_column is null then ' := pgaudit_wf.context_value(''app.org_id'')' else '' end,
        case when (setting).form = 'generic' then e'\n    before jsonb;\n    after jsonb;\n    shown_before jsonb;\n    shown_after jsonb;' else '' end
            || case when pgaudit_wf.definition_columns((setting).target) <> '{}' then 
                e'\n    event_hash text;\n    event_version pgaudit_wf.version_ref;\n    definition_changed boolean := false;\n    old_nodes jsonb;\n    old_edges jsonb;\n    new_nodes jsonb;\n    new_edges jsonb;' else '' end,
        statements);

    return format(
        e'create or replace function pgaudit_wf.%I() returns trigger\nlanguage plpgsql security definer\nset search_path = pg_catalog, pg_temp%s\nas %L',
        (setting).function_name, settings, body);
end
$$;
comment on function pgaudit_wf.compile_capture(pgaudit_wf.attachment) is 'The CREATE FUNCTION statement of an attached table''s trigger.';
