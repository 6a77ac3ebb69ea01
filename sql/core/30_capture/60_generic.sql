-- The pieces of the generic form, which reads rows as JSON, and what its triggers call: for servers where DDL cannot be followed.

create type pgaudit_wf.generic_setting as (
    known text[],
    ignore text[],
    redact text[],
    redact_numbers smallint[],
    whole text[],
    max_value integer
);
comment on type pgaudit_wf.generic_setting is
    'What a trigger of the generic form knows of its table''s columns: '
    'those that were there; which it hides, the redacted ones by number too (0: it was not there); '
    'which it records as they are, whatever their size, because it takes them from there; '
    'and how many bytes a value of the others may have.';

create function pgaudit_wf._generic_columns(table_id oid, setting pgaudit_wf.generic_setting) returns pgaudit_wf.capture_column[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Renames go unnoticed. Once a redacted column is no longer where it was, under its name, any column that did not exist at the time
    -- of attach() may be it; the key is still shown, as it cannot be redacted.
    select array(
        select pgaudit_wf._describe_column(col, attname = any ((setting).redact)
            or exists (
                select from unnest((setting).redact, (setting).redact_numbers) as secret (name, number)
                where secret.number = attnum and pgaudit_wf._secret_column(secret.name, (setting).known) <> attname)
            or (attname <> all ((setting).known)
                and exists (
                    select from unnest((setting).redact, (setting).redact_numbers) as secret (name, number)
                    where secret.number > 0 and not exists (
                        select from pg_attribute as other
                        where other.attrelid = table_id and other.attnum = secret.number
                            and other.attname = pgaudit_wf._secret_column(secret.name, (setting).known) and not other.attisdropped))
                and not exists (select from pg_index where indrelid = table_id and indisprimary and attnum = any (indkey))),
            case when attname <> all ((setting).whole) then unbounded end, (setting).max_value,
            secrets => pgaudit_wf._secret_paths((setting).redact, attname, (setting).known))
        from pg_attribute as col, pgaudit_wf._unbounded(table_id) as unbounded
        where attrelid = table_id and attnum > 0 and not attisdropped and attgenerated <> 'v' and attname <> all ((setting).ignore)
        order by attnum)
$$;
comment on function pgaudit_wf._generic_columns(oid, pgaudit_wf.generic_setting) is
    'The columns of a table as a trigger of the generic form shows them now. '
    'After a redacted column was renamed, dropped or restored elsewhere, new columns are hidden too until attach() is called again.';

create function pgaudit_wf._generic_op(record anyelement, setting pgaudit_wf.generic_setting) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_id constant oid := (select typrelid from pg_type where oid = pg_typeof(record));
    columns pgaudit_wf.capture_column[];
    col pgaudit_wf.capture_column;
    shown jsonb;
begin
    if cardinality((setting).redact) = 0 and not exists (
        select from pg_attribute
        where attrelid = table_id and attnum > 0 and not attisdropped
            and ((attname = any ((setting).ignore) and attlen < 0) or attgenerated = 'v'
                or (atttypid >= 16384 and not pgaudit_wf._json_without_casts(atttypid))))
    then
        begin
            shown := to_jsonb(record) - (setting).ignore;
            if pg_column_size(shown) <= least(32768, (setting).max_value / 8) then
                return jsonb_build_object('row', shown);
            end if;
        exception
            -- json can hold what jsonb cannot, and a row more than that.
            when others then
                null;
        end;
    end if;
    columns := pgaudit_wf._generic_columns(table_id, setting);
    execute format('select jsonb_build_object(''row'', %s) from (select ($1).*) as r', pgaudit_wf._row_object(
        array(select c from unnest(columns) as c where c.large_from is null), 'r'))
        into shown using record;
    foreach col in array columns loop
        continue when col.large_from is null;
        execute format('select %s from (select ($1).*) as r',
                pgaudit_wf._put_expression(col, 'r', '$2', array['row', col.name], room => 117440512))
            into shown using record, shown;
    end loop;
    return shown;
end
$$;
comment on function pgaudit_wf._generic_op(anyelement, pgaudit_wf.generic_setting) is
    'A row as it may be shown, for triggers of the generic form: without ignored columns, redacted ones hidden; '
    'what is hidden is not read. As the member row of an object whose member digest names the columns recorded by digest.';

create function pgaudit_wf._generic_hidden_changes(before anyelement, after anyelement, setting pgaudit_wf.generic_setting) returns text[]
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
            from unnest(pgaudit_wf._generic_columns((select typrelid from pg_type where oid = pg_typeof(before)), setting)) as col
            where redacted or secrets is not null)
            into changed using before, after;
    end if;
    return coalesce(changed, '{}');
end
$$;
comment on function pgaudit_wf._generic_hidden_changes(anyelement, anyelement, pgaudit_wf.generic_setting) is
    'The redacted columns that an update changed, for triggers of the generic form.';

create function pgaudit_wf._generic_diff(
    before jsonb, after jsonb, hidden_changes text[], nulls_before text[], nulls_after text[],
    digests_before text[] default '{}', digests_after text[] default '{}', nested text[] default '{}'
) returns jsonb
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(op order by key, position)
    from jsonb_each(after)
    cross join lateral jsonb_array_elements(coalesce(
        case when key = any (nested) and key <> all (digests_before || digests_after)
            then pgaudit_wf._deep_change(pgaudit_wf._pointer(key), before -> key, value) end,
        jsonb_build_array(jsonb_build_object('op', 'replace', 'path', pgaudit_wf._pointer(key), 'old', before -> key, 'value', value)
            || case when key = any (nulls_before || nulls_after) then jsonb_build_object('json_null', array_remove(array[
                case when key = any (nulls_before) then 'old' end,
                case when key = any (nulls_after) then 'value' end], null))
                else '{}' end
            || case when key = any (digests_before || digests_after) then jsonb_build_object('digest', array_remove(array[
                case when key = any (digests_before) then 'old' end,
                case when key = any (digests_after) then 'value' end], null))
                else '{}' end))) with ordinality as changed (op, position)
    where before -> key is distinct from value or key = any (hidden_changes)
        or (key = any (nested) and record_image_ne(row(before -> key), row(value)))
        or (key = any (nulls_before)) <> (key = any (nulls_after))
        or (key = any (digests_before)) <> (key = any (digests_after))
$$;
comment on function pgaudit_wf._generic_diff(jsonb, jsonb, text[], text[], text[], text[], text[], text[]) is
    'JSON Patch between two rows of one table, for triggers of the generic form; nested: columns of which the changes within are recorded.';

create function pgaudit_wf._generic_key(record jsonb, id_columns text[], table_id oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._bounded_key(case
        when cardinality(names) > 1 then (
            select jsonb_agg(record -> key_column order by position)
            from unnest(names) with ordinality as k (key_column, position))::text
        else record ->> names[1]
    end)
    from (
        -- A key column that is missing was renamed: look up the primary key.
        select case when record ?& _generic_key.id_columns then _generic_key.id_columns
            else pgaudit_wf._primary_key(_generic_key.table_id) end as names
    ) as key_names
$$;
comment on function pgaudit_wf._generic_key(jsonb, text[], oid) is 'resource_id of a row, for triggers of the generic form.';

create function pgaudit_wf._columns_of(relation oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By name: in a partition they can stand in another order.
    select string_agg(attname || ':' || atttypid, ',' order by attname) from pg_attribute
    where attrelid = _columns_of.relation and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf._columns_of(oid) is
    'The names and types of a relation''s columns, to tell whether they are still what a trigger of the generic form was written for.';

create function pgaudit_wf._generic_of(setting pgaudit_wf.attachment) returns pgaudit_wf.generic_setting
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select row((setting).columns, (setting).ignore, (setting).redact, array(
        select coalesce(attnum, 0)::smallint
        from unnest((setting).redact) with ordinality as secret (name, position)
        left join pg_attribute on attrelid = (setting).target
            and attname = pgaudit_wf._secret_column(name, (setting).columns) and not attisdropped
        order by position),
        -- It takes key, organization and versions from the rows as JSON.
        array_remove((setting).id_columns || (setting).org_column || (
            select array[w.nodes_column, w.edges_column, w.name_column, w.description_column, w.visibility_column, w.enabled_column,
                w.listed_column] || w.listing_columns
            from pgaudit_wf.workflow_attachment as w where w.target = (setting).target), null),
        (setting).max_value)::pgaudit_wf.generic_setting
$$;
comment on function pgaudit_wf._generic_of(pgaudit_wf.attachment) is
    'What a trigger of the generic form is to know of its table''s columns.';

create function pgaudit_wf._copes_without(setting pgaudit_wf.attachment, gone text[]) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- It reads rows as they are now; what its settings name, it cannot find once that has another name.
    select (setting).form = 'generic'
        and not gone && ((setting).id_columns || (setting).ignore || (setting).shallow
            || array_remove(array[(setting).org_column, (setting).label_column], null)
            || pgaudit_wf._secret_columns((setting).redact, (setting).columns))
        and not (gone <> '{}' and exists (select from pgaudit_wf.workflow_attachment as w where w.target = (setting).target))
$$;
comment on function pgaudit_wf._copes_without(pgaudit_wf.attachment, text[]) is
    'Whether a trigger of the generic form records all that it should after columns were renamed or dropped.';

create function pgaudit_wf._describe_generic(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('row(%L::text[], %L::text[], %L::text[], %L::smallint[], %L::text[], %L::integer)::pgaudit_wf.generic_setting',
        (g).known, (g).ignore, (g).redact, (g).redact_numbers, (g).whole, (g).max_value)
    from (select pgaudit_wf._generic_of(setting) as g) as described
$$;
comment on function pgaudit_wf._describe_generic(pgaudit_wf.attachment) is
    'SQL expression for what a trigger of the generic form knows of its table''s columns.';

create function pgaudit_wf._generic_org(setting pgaudit_wf.attachment) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when (setting).org_column is null then array['-- no org column: app.org_id is taken']
        else pgaudit_wf._fill(
$org$event_org := left(nullif(coalesce(after ->> {{column}}, before ->> {{column}}), '[redacted]'), 255);
if tg_op = 'UPDATE' and before -> {{column}} is distinct from after -> {{column}} then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', before -> {{column}});
end if;$org$,
            jsonb_build_object('column', quote_literal((setting).org_column)))
    end
$$;
comment on function pgaudit_wf._generic_org(pgaudit_wf.attachment) is
    'PL/pgSQL of the generic form that takes the org from the rows as JSON.';

create function pgaudit_wf._take_op(variable text) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select array[
        format('%s := event_op -> ''row'';', variable),
        format('digests_%s := array(select jsonb_array_elements_text(event_op -> ''digest''));', variable)]
$$;
comment on function pgaudit_wf._take_op(text) is 'PL/pgSQL of the generic form that takes before or after from event_op.';

create function pgaudit_wf._generic_row_statements(columns pgaudit_wf.capture_column[], record_name text, variable text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- An update's two rows have half of the room each.
    select pgaudit_wf._whole_row_statements(columns, record_name, 'jsonb_build_object(''row'', %s)', '{row}', 117440512,
        pgaudit_wf._take_op(variable), format('%s := %s;', variable, pgaudit_wf._row_object(columns, record_name)))
$$;
comment on function pgaudit_wf._generic_row_statements(pgaudit_wf.capture_column[], text, text) is
    'PL/pgSQL of the generic form that takes before or after from old or new.';

create function pgaudit_wf._generic_pieces(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    columns constant pgaudit_wf.capture_column[] := pgaudit_wf._generic_columns((setting).target, pgaudit_wf._generic_of(setting));
    id_columns constant text := quote_literal((setting).id_columns::text);
begin
    return jsonb_build_object(
        'variables of the form', array[
            format('setting constant pgaudit_wf.generic_setting := %s;', pgaudit_wf._describe_generic(setting)),
            'as_attached boolean;',
            'hidden_changes text[];',
            'nulls_before text[] := ''{}'';',
            'nulls_after text[] := ''{}'';',
            'digests_before text[] := ''{}'';',
            'digests_after text[] := ''{}'';',
            'event_op jsonb;',
            'before jsonb;',
            'after jsonb;',
            'shown_before jsonb;',
            'shown_after jsonb;'],
        'rows as JSON', pgaudit_wf._fill(
$rows$as_attached := pgaudit_wf._columns_of(tg_relid) = {{columns}};
if tg_op in ('UPDATE', 'DELETE') then
    if as_attached then
        {{old row}}
        {{old nulls}}
    else
        event_op := pgaudit_wf._generic_op(old, setting);
        {{old op}}
        {{old names}}
    end if;
    shown_before := before - {{graph}}::text[];
end if;
if tg_op in ('UPDATE', 'INSERT') then
    if as_attached then
        {{new row}}
        {{new nulls}}
    else
        event_op := pgaudit_wf._generic_op(new, setting);
        {{new op}}
        {{new names}}
    end if;
    shown_after := after - {{graph}}::text[];
end if;
if tg_level = 'ROW' then
    event_id := pgaudit_wf._generic_key(coalesce(after, before), {{id columns}}, tg_relid);
    if {{label column}} <> all (digests_before || digests_after) then
        event_label := left(nullif(coalesce(shown_after, shown_before) ->> {{label column}}, '[redacted]'), 255);
    end if;
    {{org}}
end if;$rows$,
            jsonb_build_object(
                'columns', quote_literal(pgaudit_wf._columns_of((setting).target)),
                'old row', pgaudit_wf._generic_row_statements(columns, 'old', 'before'),
                'old op', pgaudit_wf._take_op('before'),
                'old nulls', coalesce('nulls_before := ' || pgaudit_wf._json_null_columns(columns, 'old') || ';', ''),
                'new nulls', coalesce('nulls_after := ' || pgaudit_wf._json_null_columns(columns, 'new') || ';', ''),
                'old names', pgaudit_wf._follow_names(setting, 'before'),
                'new row', pgaudit_wf._generic_row_statements(columns, 'new', 'after'),
                'new op', pgaudit_wf._take_op('after'),
                'new names', pgaudit_wf._follow_names(setting, 'after'),
                'graph', quote_literal(pgaudit_wf._definition_columns((setting).target)::text),
                'id columns', id_columns,
                'label column', quote_nullable((setting).label_column),
                'org', pgaudit_wf._generic_org(setting))),
        'changed columns', pgaudit_wf._fill(
$changes$if as_attached then
    hidden_changes := {{hidden changes}};
else
    hidden_changes := pgaudit_wf._generic_hidden_changes(old, new, setting);
end if;
event_diff := pgaudit_wf._generic_diff(
    shown_before, shown_after, hidden_changes, nulls_before, nulls_after, digests_before, digests_after{{nested}});$changes$,
            jsonb_build_object(
                -- No event says what a row had in a column that came unnoticed: operations within it would have nothing to start from.
                'nested', coalesce((
                    select format(', case when as_attached then %L::text[] else ''{}'' end', array_agg((c).name))
                    from pgaudit_wf._capture_columns(setting) as c where (c).nested having count(*) > 0), ''),
                'hidden changes', (
                select coalesce('array_remove(array[' || string_agg(format('case when record_image_ne(row(%s), row(%s)) then %L end',
                    pgaudit_wf._field('old', name), pgaudit_wf._field('new', name), name), ', ') || ']::text[], null)', '''{}''::text[]')
                from unnest(columns) where redacted or secrets is not null))),
        'key of the update', pgaudit_wf._fill(
$key$if pgaudit_wf._generic_key(before, {{id columns}}, tg_relid) is distinct from event_id then
    event_previous_id := pgaudit_wf._generic_key(before, {{id columns}}, tg_relid);
end if;$key$, jsonb_build_object('id columns', id_columns)),
        -- Those of the other branches were taken from the rows as JSON.
        'org and label of the update', '',
        'key of the insert', '',
        'org and label of the insert', '',
        'diff of the insert', pgaudit_wf._fill(
$diff$event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', shown_after{{with its hash}});
if nulls_after <> '{}' then
    event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_after));
end if;
if digests_after <> '{}' then
    event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_after));
end if;$diff$, jsonb_build_object('with its hash', pgaudit_wf._with_hash(setting))),
        'key of the delete', '',
        'org and label of the delete', '',
        'diff of the delete', pgaudit_wf._fill(
$diff$event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', shown_before{{with its hash}});
if nulls_before <> '{}' then
    event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_before));
end if;
if digests_before <> '{}' then
    event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_before));
end if;$diff$, jsonb_build_object('with its hash', pgaudit_wf._with_hash(setting))));
end
$$;
comment on function pgaudit_wf._generic_pieces(pgaudit_wf.attachment) is
    'The pieces of _trigger_template() that the generic form has of its own, in the order of its slots.';
