-- What the trigger function of an attached table reads like: one template for both forms, whose slots are filled in by pieces of
-- PL/pgSQL. The result is for people too: \sf pgaudit_wf.capture_<table>; for samples of it, see tests/capture_golden/.

create function pgaudit_wf.fill(template text, pieces jsonb) returns text[]
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    missing constant text := (
        select slot[1] from regexp_matches(template, '\{\{([^{}]+)\}\}', 'g') as slot where pieces ->> slot[1] is null limit 1);
begin
    if missing is not null then
        raise exception 'no piece for the slot "%"', missing using errcode = 'internal_error';
    end if;
    -- The template is cut once: what fills a slot, such as the name of a column, is never searched for others. And only whole lines of
    -- templates are indented: what is quoted in one, such as a rule, can have line breaks that must stay as they are.
    return array(
        select filled.line
        from string_to_table(template, e'\n') with ordinality as given (line, number)
        cross join lateral regexp_match(given.line, '^( *)\{\{([^{}]+)\}\}$') as alone
        cross join lateral (
            select alone[1] || piece.line as line, piece.number
            from jsonb_array_elements_text(
                case when jsonb_typeof(pieces -> alone[2]) = 'array' then pieces -> alone[2]
                    when pieces ->> alone[2] = '' then '[]'
                    else jsonb_build_array(pieces -> alone[2]) end) with ordinality as piece (line, number)
            where alone is not null
            union all
            select coalesce(string_agg(
                case when part.number = 1 then part.line
                    else (pieces ->> split_part(part.line, '}}', 1)) || substr(part.line, strpos(part.line, '}}') + 2) end,
                '' order by part.number), ''), 1
            from string_to_table(given.line, '{{') with ordinality as part (line, number)
            having alone is null
        ) as filled
        order by given.number, filled.number);
end
$$;
comment on function pgaudit_wf.fill(text, jsonb) is
    'The lines of a template with pieces in its {{slots}}. On a line of its own, a slot takes an array of lines, each of which is indented as the slot is; none, or an empty text, takes the line away. Elsewhere it takes a text. Raises an error if a slot has no piece.';

create function pgaudit_wf.capture_template() returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $template$ select $body$
-- Records every change of an attached table; written by pgaudit_wf.attach().
-- To change it, attach the table again or edit pgaudit_wf.action_rule. Columns as of {{shape}}.
declare
    event_id text;
    event_previous_id text;
    event_org text{{org at first}};
    event_label text;
    event_action text;
    event_diff jsonb;
    event_metadata jsonb;
    {{variables of the form}}
    {{variables of a version}}
begin
    {{check of the place}}
    {{begin of the attempt}}
    {{rows as JSON}}
    if tg_op = 'UPDATE' then
        {{changed columns}}
        {{version of the update}}
        if event_diff is null then
            return null;
        end if;
        {{key of the update}}
        {{org and label of the update}}
        {{action of the update}}
    elsif tg_op = 'INSERT' then
        {{key of the insert}}
        {{org and label of the insert}}
        {{version of the insert}}
        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', {{inserted row}}{{with its hash}}));
        {{action of the insert}}
    elsif tg_op = 'DELETE' then
        {{key of the delete}}
        {{org and label of the delete}}
        {{version of the delete}}
        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', {{deleted row}}{{with its hash}}));
        {{action of the delete}}
    else
        event_action := {{action of the truncate}};
        event_metadata := jsonb_build_object('table', format('%I.%I', tg_table_schema, tg_table_name));
    end if;
    {{action of a restore}}
    if event_label is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('label', event_label);
    end if;
    if current_setting('app.reason', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('reason', pgaudit_wf.context_reason());
    end if;
    if event_previous_id is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
        insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
        select {{type}}, event_previous_id, event_id, event_org where event_id is not null
        on conflict on constraint key_change_pkey do nothing;
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, {{type}}, event_id, true, event_diff, coalesce(event_metadata, '{}'));
    {{end of the attempt}}
    return null;
end
$body$ $template$;
comment on function pgaudit_wf.capture_template() is
    'The trigger function of an attached table as \sf shows it, with slots for fill(): see common_pieces(), compiled_pieces() and generic_pieces().';

create function pgaudit_wf.rule_could_cast(target oid, condition text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By its text alone, so rather too often: a mention of the column, or of the row as a whole.
    select coalesce(bool_or(case when name ~ '^\w+$' then condition ~* ('\m' || name || '\M') else strpos(condition, replace(name, '"', '""')) > 0 end
        or condition ~* '\m(old|new)\M\s*($|[^.[:space:]]|\.\s*\*)'), false)
    from unnest(pgaudit_wf.columns_with_casts(target)) as name
$$;
comment on function pgaudit_wf.rule_could_cast(oid, text) is
    'Whether a rule''s condition may run, with our rights, a cast that somebody made of a type of the table''s columns: it is then left out.';

create function pgaudit_wf.refuse_casts(relation oid, conditions text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pg_attribute where attrelid = relation and attnum > 0 and not attisdropped and atttypid >= 16384)
        and pgaudit_wf.rule_could_cast(relation, conditions)
    then
        raise exception 'a column of % has a type with a cast that this could run: %', relation::regclass, conditions using errcode = 'PA003';
    end if;
end
$$;
comment on function pgaudit_wf.refuse_casts(oid, text) is
    'Raises PA003 where a condition over the table''s columns could run a cast that somebody made, with our rights; for the generic form.';

create function pgaudit_wf.action_statements(setting pgaudit_wf.attachment, op text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with rule as (
        select id, position, condition, action from pgaudit_wf.action_rule
        where action_rule.resource_type = (setting).resource_type and action_rule.op = $2
            and not pgaudit_wf.rule_could_cast((setting).target, condition)
    ), fallback as (
        select quote_literal((setting).resource_type || case op when 'insert' then '.created' when 'update' then '.updated' else '.deleted' end) as action
    )
    select case when exists (select from rule where condition is not null) then pgaudit_wf.fill(
$rules$begin
    {{check of casts}}
    event_action := case
        {{rules}}
        else {{fallback}}
    end;
exception
    -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
    when others then
        if sqlstate ~ '^(40|53|57)' then
            raise;
        end if;
        event_action := {{fallback}};
        raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', {{type}}, sqlstate, event_action
            using hint = 'pgaudit_wf.doctor() names the rule.';
end;$rules$,
        jsonb_build_object(
            -- Nobody tells a trigger of the generic form of a cast that is made later.
            'check of casts', case when (setting).form = 'generic' then (
                select format('perform pgaudit_wf.refuse_casts(tg_relid, %L);', string_agg(condition, e'\n')) from rule) else '' end,
            'rules', (
                select array_agg(line order by position, id, number)
                from rule
                cross join lateral unnest(
                    -- What follows a comment has to stand on a line of its own.
                    case when strpos(condition, '--') > 0 then array['when ' || condition, format('then %L', action)]
                        else array[format('when %s then %L', coalesce(condition, 'true'), action)] end
                ) with ordinality as branch (line, number)),
            'fallback', fallback.action,
            'type', quote_literal((setting).resource_type)))
        else array[format('event_action := %s;',
            coalesce((select quote_literal(rule.action) from rule order by position, id limit 1), fallback.action))] end
    from fallback
$$;
comment on function pgaudit_wf.action_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that names the action of an insert, update or delete, from action_rule.';

create function pgaudit_wf.shape_of(relation oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(string_agg(concat_ws(',', attnum, attname, atttypid, attcollation, attgenerated, (
            select pgaudit_wf.shape_of(c.oid) from pg_class as c
            join pg_type as t on t.typrelid = c.oid
            where atttypid >= 16384 and t.typtype = 'c' and pgaudit_wf.contains_type(atttypid, t.oid) and t.oid <> (select reltype from pg_class where oid = shape_of.relation)
            order by c.oid limit 1)), ';' order by attnum))
        from pg_attribute where attrelid = shape_of.relation and attnum > 0 and not attisdropped);
end
$$;
comment on function pgaudit_wf.shape_of(oid) is 'A fingerprint of the names and types of a relation''s columns.';

create function pgaudit_wf.capture_settings(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select distinct pinned
        from (
            select unnest(pgaudit_wf.output_settings(atttypid, attname = any ((setting).id_columns || array[coalesce((setting).org_column, ''), coalesce((setting).label_column, '')])))
            from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped and attname <> all ((setting).ignore || (setting).redact)
            -- The generic form does not know what columns will come.
            union all
            select unnest(array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
                'lc_monetary = ''C''', 'extra_float_digits = 1', 'quote_all_identifiers = off'])
            where (setting).form = 'generic'
        ) as type_setting (pinned)
        order by pinned)
$$;
comment on function pgaudit_wf.capture_settings(pgaudit_wf.attachment) is
    'The settings that an attached table''s trigger pins, so that what it records does not depend on the session.';

create function pgaudit_wf.common_pieces(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    versioned constant boolean := pgaudit_wf.definition_columns((setting).target) <> '{}';
    warns constant boolean := (setting).on_failure = 'warn';
begin
    return jsonb_build_object(
        -- PL/pgSQL keeps plans by the types of a row's columns: another type must make it another function.
        'shape', pgaudit_wf.shape_of((setting).target),
        'org at first', case when (setting).org_column = any ((setting).columns) then ''
            else ' := pgaudit_wf.context_value(''app.org_id'')' end,
        'variables of a version', case when versioned then array[
            'event_hash text;',
            'event_version pgaudit_wf.version_ref;',
            'definition_changed boolean := false;',
            'old_nodes jsonb;',
            'old_edges jsonb;',
            'new_nodes jsonb;',
            'new_edges jsonb;'] else '{}' end,
        'check of the place', pgaudit_wf.check_place((setting).target, (setting).function_name),
        'begin of the attempt', case when warns then 'begin' else '' end,
        'version of the update', pgaudit_wf.version_statements(setting, 'update'),
        'action of the update', pgaudit_wf.action_statements(setting, 'update'),
        'version of the insert', pgaudit_wf.version_statements(setting, 'insert'),
        'with its hash', case when versioned then ' || jsonb_build_object(''content_hash'', event_hash)' else '' end,
        'action of the insert', pgaudit_wf.action_statements(setting, 'insert'),
        'version of the delete', pgaudit_wf.version_statements(setting, 'delete'),
        'action of the delete', pgaudit_wf.action_statements(setting, 'delete'),
        'action of the truncate', quote_literal((setting).resource_type || '.truncated'),
        'action of a restore', case when versioned then pgaudit_wf.fill(
$restore$if event_version.restored_from is not null then
    event_action := {{action}};
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('restored_from', event_version.restored_from);
end if;$restore$, jsonb_build_object('action', quote_literal((setting).resource_type || '.restored'))) else '{}' end,
        'type', quote_literal((setting).resource_type),
        'end of the attempt', case when warns then pgaudit_wf.fill(
$failure$exception
    when others then
        perform pgaudit_wf.count_failure({{table}}, tg_op, sqlstate);
        raise warning '% of % went through unrecorded (SQLSTATE %)', tg_op, {{table}}, sqlstate;
end;$failure$, jsonb_build_object('table', quote_literal((setting).target::text))) else '{}' end);
end
$$;
comment on function pgaudit_wf.common_pieces(pgaudit_wf.attachment) is
    'The pieces of capture_template() that are made alike for both forms, in the order of its slots.';

create function pgaudit_wf.capture_body(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return array_to_string(
        pgaudit_wf.fill(pgaudit_wf.capture_template(), pgaudit_wf.common_pieces(setting) || case (setting).form
            when 'compiled' then pgaudit_wf.compiled_pieces(setting)
            else pgaudit_wf.generic_pieces(setting) end),
        e'\n');
end
$$;
comment on function pgaudit_wf.capture_body(pgaudit_wf.attachment) is 'The body of an attached table''s trigger function.';

-- The pieces of the compiled form, which names each column and compares it in its own type.

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

create function pgaudit_wf.hidden_columns(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A virtual generated column is not in the row that a trigger sees.
    select array(
        select attname::text from pg_attribute
        where attrelid = (setting).target and attnum > 0 and not attisdropped
            and (attname = any ((setting).ignore || (select pgaudit_wf.definition_columns((setting).target))) or attgenerated = 'v')
        order by attnum)
$$;
comment on function pgaudit_wf.hidden_columns(pgaudit_wf.attachment) is
    'The columns of an attached table that its events leave out: ignored ones, a workflow''s graph, and those that are computed when read.';

create function pgaudit_wf.capture_columns(setting pgaudit_wf.attachment) returns setof pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.describe_column(col, attname = any ((setting).redact))
    from pg_attribute as col
    where attrelid = (setting).target and attnum > 0 and not attisdropped and attname <> all ((select pgaudit_wf.hidden_columns(setting))::text[])
    order by attnum
$$;
comment on function pgaudit_wf.capture_columns(pgaudit_wf.attachment) is 'The columns that the trigger of an attached table records, in their order.';

create function pgaudit_wf.changed_expression(col pgaudit_wf.capture_column) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format(
        case
            -- Byte by byte, so that no operator of anybody's is looked for; what then reads the same has not changed.
            when not pgaudit_wf.is_built_in((col).type) then
                '(record_image_ne(row(%1$s), row(%2$s)) and (%3$s) collate "C" is distinct from (%4$s) collate "C")'
            -- Equal TOAST ids are the same stored value: then the value, which may be long, is not read at all.
            when (col).toastable then '((pg_column_toast_chunk_id(%1$s) = pg_column_toast_chunk_id(%2$s)) is not true and '
                || case when (col).by_text then '%1$s::text collate "C" is distinct from %2$s::text collate "C")' else '%1$s is distinct from %2$s)' end
            when (col).by_text then '%1$s::text collate "C" is distinct from %2$s::text collate "C"'
            else '%1$s is distinct from %2$s'
        end,
        before, after, pgaudit_wf.text_expression((col).type, before), pgaudit_wf.text_expression((col).type, after))
    from (select pgaudit_wf.field('old', (col).name) as before, pgaudit_wf.field('new', (col).name) as after) as sides
$$;
comment on function pgaudit_wf.changed_expression(pgaudit_wf.capture_column) is 'SQL condition that is true when the column differs between old and new.';

create function pgaudit_wf.shown_expression(col pgaudit_wf.capture_column, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A composite of nulls "is null", and yet is a value.
    select case when (col).redacted then format('case when %s is distinct from null then ''[redacted]'' end', pgaudit_wf.field(record_name, (col).name))
        else pgaudit_wf.json_expression((col).type, pgaudit_wf.field(record_name, (col).name)) end
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
        when cardinality((setting).id_columns) > 1 then format('pgaudit_wf.bounded_key(jsonb_build_array(%s)::text)', as_json)
        when short then as_text
        else format('pgaudit_wf.bounded_key(%s)', as_text)
    end
    from (
        select
            string_agg(pgaudit_wf.json_expression(atttypid, pgaudit_wf.field(record_name, key_column)), ', ' order by position) as as_json,
            min(pgaudit_wf.text_expression(atttypid, pgaudit_wf.field(record_name, key_column))) as as_text,
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
    -- A single key of a built-in type is compared in it, so that its index is used; never in a domain, whose checks are somebody's code.
    select coalesce((
            select format('%I.%I = $1::%s', record_name, attname, format_type(pgaudit_wf.base_type(atttypid), -1))
            from pg_attribute
            where attrelid = (setting).target and attname = (setting).id_columns[1] and cardinality((setting).id_columns) = 1
                and pgaudit_wf.is_built_in(atttypid)),
        format('%s = $1', pgaudit_wf.key_expression(setting, record_name)))
$$;
comment on function pgaudit_wf.key_condition(pgaudit_wf.attachment, text) is 'SQL condition that picks the row of an attached table with resource_id $1.';

create function pgaudit_wf.bounded_key(key text) returns text
language sql stable parallel safe
as $$
    -- An index entry has to fit a third of a page. Not immutable, as convert_to() is not: then it would not be inlined.
    select case when octet_length(key) > 1024 then 'sha256:' || encode(sha256(convert_to(key, 'UTF8')), 'hex') else key end
$$;
comment on function pgaudit_wf.bounded_key(text) is 'A key as resource_id: itself, or its SHA-256 as sha256:<hex> when it is longer than 1,024 bytes.';

create function pgaudit_wf.row_object(columns pgaudit_wf.capture_column[], record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A function takes 100 arguments at most.
    select coalesce(string_agg(format(e'jsonb_build_object(\n                %s)', listed), e'\n            || ' order by chunk), '''{}''::jsonb')
    from (
        select (position - 1) / 50 as chunk,
            string_agg(format('%L, %s', name,
                pgaudit_wf.shown_expression(row(name, type, redacted, by_text, toastable)::pgaudit_wf.capture_column, record_name)),
                e',\n                ' order by position) as listed
        from unnest(columns) with ordinality as col (name, type, redacted, by_text, toastable, position)
        group by chunk
    ) as chunks
$$;
comment on function pgaudit_wf.row_object(pgaudit_wf.capture_column[], text) is
    'SQL expression for the given columns of a record as a jsonb object, redacted ones hidden; no other column is read.';

create function pgaudit_wf.row_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The row as a whole is quickest, but reads each column: not one that is to be hidden and may be long, nor one that it would turn
    -- into JSON by somebody's cast or cannot turn into JSON.
    select case when bool_and(pgaudit_wf.json_without_casts(atttypid) and not pgaudit_wf.holds_json(atttypid)
                and (attlen > 0 or attgenerated = 'v' or (attname <> all ((select pgaudit_wf.hidden_columns(setting))::text[]) and attname <> all ((setting).redact))))
        then format('to_jsonb(%I)', record_name)
            || case when pgaudit_wf.hidden_columns(setting) = '{}' then '' else format(e'\n            - %L::text[]', pgaudit_wf.hidden_columns(setting)) end
            || coalesce((
                select e'\n            || ' || pgaudit_wf.row_object(array_agg(col), record_name)
                from pgaudit_wf.capture_columns(setting) as col where (col).redacted
                having count(*) > 0), '')
        else pgaudit_wf.row_object(array(select pgaudit_wf.capture_columns(setting)), record_name) end
    from pg_attribute
    where attrelid = (setting).target and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf.row_expression(pgaudit_wf.attachment, text) is 'SQL expression for a whole row as jsonb, less ignored columns and a workflow''s graph, redacted columns hidden.';

create function pgaudit_wf.update_statements(setting pgaudit_wf.attachment) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    col pgaudit_wf.capture_column;
    lines text[] := '{}';
begin
    -- One statement a column: PL/pgSQL evaluates such simple expressions several times faster than one long expression.
    for col in select * from pgaudit_wf.capture_columns(setting) loop
        lines := lines || pgaudit_wf.fill(
$change$if {{changed}} then
    event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', {{path}},
        'old', {{old}}, 'value', {{new}});
end if;$change$,
            jsonb_build_object(
                'changed', pgaudit_wf.changed_expression(col),
                'path', quote_literal(pgaudit_wf.pointer(col.name)),
                'old', pgaudit_wf.shown_expression(col, 'old'),
                'new', pgaudit_wf.shown_expression(col, 'new')));
    end loop;
    return lines;
end
$$;
comment on function pgaudit_wf.update_statements(pgaudit_wf.attachment) is 'PL/pgSQL that collects the changed columns of an update into event_diff.';

create function pgaudit_wf.column_text(setting pgaudit_wf.attachment, column_name text, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.text_expression(atttypid, pgaudit_wf.field(record_name, column_name))
    from pg_attribute where attrelid = (setting).target and attname = column_name and attnum > 0
$$;
comment on function pgaudit_wf.column_text(pgaudit_wf.attachment, text, text) is
    'SQL expression for a column of a record as text; null where the table has no such column (any more).';

create function pgaudit_wf.org_expression(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('left(coalesce(%s, %s), 255)',
        pgaudit_wf.column_text(setting, (setting).org_column, 'new'), pgaudit_wf.column_text(setting, (setting).org_column, 'old'))
$$;
comment on function pgaudit_wf.org_expression(pgaudit_wf.attachment) is
    'SQL expression for the organization of an updated row: the new one, or the old one of a row that has left it.';

create function pgaudit_wf.key_statements(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.fill(
$key$event_id := {{new key}};
if {{changed}} then
    event_previous_id := {{old key}};
end if;$key$,
        jsonb_build_object(
            'new key', pgaudit_wf.key_expression(setting, 'new'),
            'changed', string_agg(pgaudit_wf.changed_expression(col), ' or '),
            'old key', pgaudit_wf.key_expression(setting, 'old')))
    from pgaudit_wf.capture_columns(setting) as col where (col).name = any ((setting).id_columns)
$$;
comment on function pgaudit_wf.key_statements(pgaudit_wf.attachment) is 'PL/pgSQL that takes the key of an updated row, and the one before if it is another.';

create function pgaudit_wf.assignments(setting pgaudit_wf.attachment, record_name text, on_update boolean) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
            when org is null then '{}'
            when record_name = 'new' and on_update then (
                select pgaudit_wf.fill(
$org$event_org := {{org}};
if {{changed}} then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', {{old org}});
end if;$org$,
                    jsonb_build_object(
                        'org', pgaudit_wf.org_expression(setting),
                        'changed', pgaudit_wf.changed_expression(pgaudit_wf.describe_column(col, false)),
                        'old org', pgaudit_wf.json_expression(atttypid, pgaudit_wf.field('old', attname))))
                from pg_attribute as col where attrelid = (setting).target and attname = (setting).org_column)
            else array[format('event_org := left(%s, 255);', org)]
        end
        || case when label is null then '{}' else array[format('event_label := left(%s, 255);', label)] end
    from (select pgaudit_wf.column_text(setting, (setting).org_column, record_name) as org,
        pgaudit_wf.column_text(setting, (setting).label_column, record_name) as label) as taken
$$;
comment on function pgaudit_wf.assignments(pgaudit_wf.attachment, text, boolean) is 'PL/pgSQL that takes org and label from the given record.';

create function pgaudit_wf.compiled_pieces(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object(
        'variables of the form', '',
        'rows as JSON', '',
        'changed columns', pgaudit_wf.update_statements(setting),
        'key of the update', pgaudit_wf.key_statements(setting),
        'org and label of the update', pgaudit_wf.assignments(setting, 'new', true),
        'key of the insert', format('event_id := %s;', pgaudit_wf.key_expression(setting, 'new')),
        'org and label of the insert', pgaudit_wf.assignments(setting, 'new', false),
        'inserted row', pgaudit_wf.row_expression(setting, 'new'),
        'key of the delete', format('event_id := %s;', pgaudit_wf.key_expression(setting, 'old')),
        'org and label of the delete', pgaudit_wf.assignments(setting, 'old', false),
        'deleted row', pgaudit_wf.row_expression(setting, 'old'));
end
$$;
comment on function pgaudit_wf.compiled_pieces(pgaudit_wf.attachment) is
    'The pieces of capture_template() that the compiled form has of its own, in the order of its slots.';

-- The pieces of the generic form, which reads rows as JSON, and what its triggers call: for servers where nobody says that a table changes.

create type pgaudit_wf.generic_setting as (
    known text[],
    ignore text[],
    redact text[],
    redact_numbers smallint[]
);
comment on type pgaudit_wf.generic_setting is
    'What a trigger of the generic form knows of its table''s columns: those that were there, and which it hides, the redacted ones by number too (0: it was not there).';

create function pgaudit_wf.generic_columns(table_id oid, setting pgaudit_wf.generic_setting) returns pgaudit_wf.capture_column[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Nobody says when a column is renamed. Once a redacted one is no longer where it was, under its name, any that was not there at the
    -- time of attach() may be it; the key is shown all the same, as it cannot be redacted.
    select array(
        select pgaudit_wf.describe_column(col, attname = any ((setting).redact)
            or exists (
                select from unnest((setting).redact, (setting).redact_numbers) as secret (name, number)
                where secret.number = attnum and secret.name <> attname)
            or (attname <> all ((setting).known)
                and exists (
                    select from unnest((setting).redact, (setting).redact_numbers) as secret (name, number)
                    where secret.number > 0 and not exists (
                        select from pg_attribute as other
                        where other.attrelid = table_id and other.attnum = secret.number and other.attname = secret.name and not other.attisdropped))
                and not exists (select from pg_index where indrelid = table_id and indisprimary and attnum = any (indkey))))
        from pg_attribute as col
        where attrelid = table_id and attnum > 0 and not attisdropped and attgenerated <> 'v' and attname <> all ((setting).ignore)
        order by attnum)
$$;
comment on function pgaudit_wf.generic_columns(oid, pgaudit_wf.generic_setting) is 'The columns of a table as a trigger of the generic form shows them now. After a redacted column was renamed, dropped or restored elsewhere, new columns are hidden too until attach() is called again.';

create function pgaudit_wf.generic_row(record anyelement, setting pgaudit_wf.generic_setting) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_id constant oid := (select typrelid from pg_type where oid = pg_typeof(record));
    shown jsonb;
begin
    if cardinality((setting).redact) = 0 and not exists (
        select from pg_attribute
        where attrelid = table_id and attnum > 0 and not attisdropped
            and ((attname = any ((setting).ignore) and attlen < 0) or attgenerated = 'v' or (atttypid >= 16384 and not pgaudit_wf.json_without_casts(atttypid))))
    then
        begin
            return to_jsonb(record) - (setting).ignore;
        exception
            -- json can hold what jsonb cannot.
            when data_exception or program_limit_exceeded then
                null;
        end;
    end if;
    execute format('select %s from (select ($1).*) as r', pgaudit_wf.row_object(pgaudit_wf.generic_columns(table_id, setting), 'r')) into shown using record;
    return shown;
end
$$;
comment on function pgaudit_wf.generic_row(anyelement, pgaudit_wf.generic_setting) is
    'A row as it may be shown, for triggers of the generic form: without ignored columns, redacted ones hidden; what is hidden is not read.';

create function pgaudit_wf.generic_hidden_changes(before anyelement, after anyelement, setting pgaudit_wf.generic_setting) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    changed text[];
begin
    if cardinality((setting).redact) > 0 then
        execute (
            select format('select array_remove(array[%s]::text[], null) from (select ($1).*) as old, (select ($2).*) as new',
                string_agg(format('case when record_image_ne(row(old.%1$I), row(new.%1$I)) then %1$L end', name), ', '))
            from unnest(pgaudit_wf.generic_columns((select typrelid from pg_type where oid = pg_typeof(before)), setting)) as col
            where redacted)
            into changed using before, after;
    end if;
    return coalesce(changed, '{}');
end
$$;
comment on function pgaudit_wf.generic_hidden_changes(anyelement, anyelement, pgaudit_wf.generic_setting) is
    'The redacted columns that an update changed, for triggers of the generic form.';

create function pgaudit_wf.generic_diff(before jsonb, after jsonb, hidden_changes text[]) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(jsonb_build_object('op', 'replace', 'path', pgaudit_wf.pointer(key), 'old', before -> key, 'value', value) order by key)
    from jsonb_each(after)
    where before -> key is distinct from value or key = any (hidden_changes)
$$;
comment on function pgaudit_wf.generic_diff(jsonb, jsonb, text[]) is 'JSON Patch between two rows of one table, for triggers of the generic form.';

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

create function pgaudit_wf.columns_of(relation oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By name: in a partition they can stand in another order.
    select string_agg(attname || ':' || atttypid, ',' order by attname) from pg_attribute
    where attrelid = columns_of.relation and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf.columns_of(oid) is 'The names and types of a relation''s columns, to tell whether they are still what a trigger of the generic form was written for.';

create function pgaudit_wf.generic_of(setting pgaudit_wf.attachment) returns pgaudit_wf.generic_setting
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select row((setting).columns, (setting).ignore, (setting).redact, array(
        select coalesce((select attnum from pg_attribute where attrelid = (setting).target and attname = name and not attisdropped), 0)::smallint
        from unnest((setting).redact) with ordinality as secret (name, position) order by position))::pgaudit_wf.generic_setting
$$;
comment on function pgaudit_wf.generic_of(pgaudit_wf.attachment) is 'What a trigger of the generic form is to know of its table''s columns.';

create function pgaudit_wf.describe_generic(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('row(%L::text[], %L::text[], %L::text[], %L::smallint[])::pgaudit_wf.generic_setting', (g).known, (g).ignore, (g).redact, (g).redact_numbers)
    from (select pgaudit_wf.generic_of(setting) as g) as described
$$;
comment on function pgaudit_wf.describe_generic(pgaudit_wf.attachment) is 'SQL expression for what a trigger of the generic form knows of its table''s columns.';

create function pgaudit_wf.generic_org(setting pgaudit_wf.attachment) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when (setting).org_column is null then array['-- no org column: app.org_id is taken']
        else pgaudit_wf.fill(
$org$event_org := left(nullif(coalesce(after ->> {{column}}, before ->> {{column}}), '[redacted]'), 255);
if tg_op = 'UPDATE' and before -> {{column}} is distinct from after -> {{column}} then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', before -> {{column}});
end if;$org$,
            jsonb_build_object('column', quote_literal((setting).org_column)))
    end
$$;
comment on function pgaudit_wf.generic_org(pgaudit_wf.attachment) is 'PL/pgSQL of the generic form that takes the org from the rows as JSON.';

create function pgaudit_wf.generic_pieces(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    columns constant pgaudit_wf.capture_column[] := pgaudit_wf.generic_columns((setting).target, pgaudit_wf.generic_of(setting));
    id_columns constant text := quote_literal((setting).id_columns::text);
begin
    return jsonb_build_object(
        'variables of the form', array[
            format('setting constant pgaudit_wf.generic_setting := %s;', pgaudit_wf.describe_generic(setting)),
            'as_attached boolean;',
            'hidden_changes text[];',
            'before jsonb;',
            'after jsonb;',
            'shown_before jsonb;',
            'shown_after jsonb;'],
        'rows as JSON', pgaudit_wf.fill(
$rows$as_attached := pgaudit_wf.columns_of(tg_relid) = {{columns}};
if tg_op in ('UPDATE', 'DELETE') then
    if as_attached then
        before := {{old row}};
    else
        before := pgaudit_wf.generic_row(old, setting);
        {{old names}}
    end if;
    shown_before := before - {{graph}}::text[];
end if;
if tg_op in ('UPDATE', 'INSERT') then
    if as_attached then
        after := {{new row}};
    else
        after := pgaudit_wf.generic_row(new, setting);
        {{new names}}
    end if;
    shown_after := after - {{graph}}::text[];
end if;
if tg_level = 'ROW' then
    event_id := pgaudit_wf.generic_key(coalesce(after, before), {{id columns}}, tg_relid);
    event_label := left(nullif(coalesce(shown_after, shown_before) ->> {{label column}}, '[redacted]'), 255);
    {{org}}
end if;$rows$,
            jsonb_build_object(
                'columns', quote_literal(pgaudit_wf.columns_of((setting).target)),
                'old row', pgaudit_wf.row_object(columns, 'old'),
                'old names', pgaudit_wf.follow_names(setting, 'before'),
                'new row', pgaudit_wf.row_object(columns, 'new'),
                'new names', pgaudit_wf.follow_names(setting, 'after'),
                'graph', quote_literal(pgaudit_wf.definition_columns((setting).target)::text),
                'id columns', id_columns,
                'label column', quote_nullable((setting).label_column),
                'org', pgaudit_wf.generic_org(setting))),
        'changed columns', pgaudit_wf.fill(
$changes$if as_attached then
    hidden_changes := {{hidden changes}};
else
    hidden_changes := pgaudit_wf.generic_hidden_changes(old, new, setting);
end if;
event_diff := pgaudit_wf.generic_diff(shown_before, shown_after, hidden_changes);$changes$,
            jsonb_build_object('hidden changes', (
                select coalesce('array_remove(array[' || string_agg(format('case when record_image_ne(row(%s), row(%s)) then %L end',
                    pgaudit_wf.field('old', name), pgaudit_wf.field('new', name), name), ', ') || ']::text[], null)', '''{}''::text[]')
                from unnest(columns) where redacted))),
        'key of the update', pgaudit_wf.fill(
$key$if pgaudit_wf.generic_key(before, {{id columns}}, tg_relid) is distinct from event_id then
    event_previous_id := pgaudit_wf.generic_key(before, {{id columns}}, tg_relid);
end if;$key$, jsonb_build_object('id columns', id_columns)),
        -- Those of the other branches were taken from the rows as JSON.
        'org and label of the update', '',
        'key of the insert', '',
        'org and label of the insert', '',
        'inserted row', 'shown_after',
        'key of the delete', '',
        'org and label of the delete', '',
        'deleted row', 'shown_before');
end
$$;
comment on function pgaudit_wf.generic_pieces(pgaudit_wf.attachment) is
    'The pieces of capture_template() that the generic form has of its own, in the order of its slots.';
