-- The part of a workflow table's trigger function that keeps its versions, in workflow_history.

create function pgaudit_wf._record_value(setting pgaudit_wf.attachment, record_name text, column_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The generic form must not name a column that could be gone: its trigger reads old and new as JSON.
    select case
        when (setting).form = 'generic' and record_name in ('old', 'new') then
            format('(%s -> %L)', case record_name when 'old' then 'before' else 'after' end, column_name)
        when atttypid = 'json'::regtype then pgaudit_wf._field(record_name, column_name) || '::jsonb'
        else pgaudit_wf._json_expression(atttypid, pgaudit_wf._field(record_name, column_name))
    end
    from pg_attribute
    where attrelid = (setting).target and attname = column_name
$$;
comment on function pgaudit_wf._record_value(pgaudit_wf.attachment, text, text) is
    'SQL expression for a column of old or new, for either form of trigger, or of a row of a query.';

create function pgaudit_wf._compiled_names(record jsonb, table_id oid, numbers jsonb, known text[]) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    renamed jsonb;
    names text[];
begin
    if record ?& array(select jsonb_object_keys(numbers)) then
        return record;
    end if;
    select jsonb_object_agg(compiled.key, record -> attname), array_agg(attname::text) into renamed, names
    from jsonb_each(numbers) as compiled
    join pg_attribute on attrelid = table_id and attnum = compiled.value::smallint and not attisdropped
    -- After a restore from a dump the numbers can be others: what had a name of its own then was not renamed.
    where not record ? compiled.key and attname <> all (known);
    return (record - coalesce(names, '{}')) || coalesce(renamed, '{}');
end
$$;
comment on function pgaudit_wf._compiled_names(jsonb, oid, jsonb, text[]) is
    'A row with a workflow''s columns under the names that the trigger was compiled with, for the generic form, '
    'which nothing recompiles when one is renamed. numbers: {compiled name: column number}; known: all columns at that time.';

create function pgaudit_wf._follow_names(setting pgaudit_wf.attachment, variable text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce((
        select array[format('%1$s := pgaudit_wf._compiled_names(%1$s, tg_relid, %2$L, %3$L);',
            variable, jsonb_object_agg(attname, attnum), (setting).columns)]
        from pgaudit_wf._usable_workflow((setting).target) as w
        join pg_attribute on attrelid = w.target and attname = any (array[w.nodes_column, w.edges_column, w.name_column,
            w.description_column, w.visibility_column, w.enabled_column, w.listed_column] || w.listing_columns)
        having count(*) > 0), '{}')
$$;
comment on function pgaudit_wf._follow_names(pgaudit_wf.attachment, text) is
    'PL/pgSQL of the generic form that reads a workflow''s renamed columns under their compiled names; nothing for other tables.';

create function pgaudit_wf._any_changed(setting pgaudit_wf.attachment, column_names text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select coalesce(string_agg(
        case when (setting).form = 'generic'
            then format('%s is distinct from %s',
                pgaudit_wf._record_value(setting, 'old', attname), pgaudit_wf._record_value(setting, 'new', attname))
            else pgaudit_wf._changed_expression(pgaudit_wf._describe_column(col, false)) end,
        ' or ' order by array_position(column_names, attname::text)), 'false')
    from pg_attribute as col
    where attrelid = (setting).target and attname = any (column_names));
end
$$;
comment on function pgaudit_wf._any_changed(pgaudit_wf.attachment, text[]) is
    'SQL condition that is true when one of the columns differs between old and new.';

create function pgaudit_wf._maybe_changed(setting pgaudit_wf.attachment, column_names text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select coalesce(string_agg(
        case when (setting).form = 'compiled' and (pgaudit_wf._describe_column(col, false)).toastable
            then format('(pg_column_toast_chunk_id(%s) = pg_column_toast_chunk_id(%s)) is not true',
                pgaudit_wf._field('old', attname), pgaudit_wf._field('new', attname))
            else 'true' end,
        ' or ' order by attnum), 'false')
    from pg_attribute as col
    where attrelid = (setting).target and attname = any (column_names));
end
$$;
comment on function pgaudit_wf._maybe_changed(pgaudit_wf.attachment, text[]) is
    'SQL condition that is false when the columns are certainly the same in old and new, without reading them.';

create function pgaudit_wf._snapshot_expression(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text,
    nodes text default null, edges text default null
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('jsonb_build_object(%s)', string_agg(
        format('%L, %s', member, coalesce(expression, pgaudit_wf._record_value(setting, record_name, column_name))),
        ', ' order by position))
    from (values
        (1, 'name', (workflow).name_column, null),
        (2, 'description', (workflow).description_column, null),
        (3, 'visibility', (workflow).visibility_column, null),
        (4, 'enabled', (workflow).enabled_column, null),
        (5, 'nodes', (workflow).nodes_column, nodes),
        (6, 'edges', (workflow).edges_column, edges)
    ) as kept (position, member, column_name, expression)
    where column_name is not null and expression is distinct from ''
$$;
comment on function pgaudit_wf._snapshot_expression(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text, text) is
    'SQL expression for what a version keeps of a workflow row: name, description, visibility, enabled, nodes, edges. '
    'nodes and edges are expressions in place of those columns; empty to leave them out.';

create function pgaudit_wf._graph_assignments(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text
) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- In a variable the value is decompressed once, where each mention of old.nodes would do it again; #> '{}' is what does it.
    select array[
        format('%s_nodes := %s #> ''{}'';', record_name, pgaudit_wf._record_value(setting, record_name, (workflow).nodes_column)),
        format('%s_edges := %s #> ''{}'';', record_name, pgaudit_wf._record_value(setting, record_name, (workflow).edges_column))]
$$;
comment on function pgaudit_wf._graph_assignments(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text) is
    'PL/pgSQL that takes nodes and edges of old or new into variables.';

create function pgaudit_wf._version_statements(setting pgaudit_wf.attachment, op text) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow constant pgaudit_wf.workflow_attachment := pgaudit_wf._usable_workflow((setting).target);
    record_name constant text := case op when 'delete' then 'old' else 'new' end;
    key text;
    org text;
    lines text[];
begin
    if workflow.target is null then
        return '{}';
    end if;
    key := case when (setting).form = 'generic' then 'event_id'
        else pgaudit_wf._key_expression(setting, record_name) end;
    if workflow.id_prefix <> '' then
        key := format('%L || %s', workflow.id_prefix, key);
    elsif (setting).form = 'generic' or exists (
        select from pg_attribute where attrelid = (setting).target and attname = any (pgaudit_wf._key_columns(setting)) and attlen < 0)
    then
        key := format('pgaudit_wf._workflow_id('''', %s)', key);
    end if;
    org := case
        when (setting).org_column = any ((setting).columns) and (setting).form = 'compiled' and op = 'update'
            then pgaudit_wf._org_expression(setting)
        else 'event_org' end;

    if op = 'delete' then
        lines := array[format('event_hash := pgaudit_wf._latest_hash(%s);', key)];
    elsif op = 'insert' then
        lines := pgaudit_wf._fill(
$insert${{new graph}}
event_version := pgaudit_wf._add_version({{key}}, {{org}}, 'create', null,
    {{snapshot}}, null, null, new_nodes, new_edges);
event_hash := event_version.content_hash;
event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);$insert$,
            jsonb_build_object(
                'new graph', pgaudit_wf._graph_assignments(setting, workflow, 'new'),
                'key', key,
                'org', org,
                'snapshot', pgaudit_wf._snapshot_expression(setting, workflow, 'new', 'new_nodes', 'new_edges')));
    else
        lines := pgaudit_wf._fill(
$update$-- What only moves things about on the canvas makes no version.
if {{graph may differ}} then
    {{old and new graph}}
    definition_changed := not pgaudit_wf.same_definition(old_nodes, old_edges, new_nodes, new_edges);
end if;
if definition_changed or {{settings differ}} then
    if not definition_changed then
        {{old and new graph}}
    end if;
    event_version := pgaudit_wf._add_version({{key}}, {{org}}, case when {{listing differs}} then 'listing' else 'update' end,
        {{old settings}},
        {{new snapshot}},
        old_nodes, old_edges, new_nodes, new_edges);
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
    if event_version.content_hash is distinct from event_version.previous_hash then
        event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/content_hash',
            'old', event_version.previous_hash, 'value', event_version.content_hash);
    end if;
end if;$update$,
            jsonb_build_object(
                'graph may differ', pgaudit_wf._maybe_changed(setting, array[workflow.nodes_column, workflow.edges_column]),
                'old and new graph', pgaudit_wf._graph_assignments(setting, workflow, 'old')
                    || pgaudit_wf._graph_assignments(setting, workflow, 'new'),
                'settings differ', pgaudit_wf._any_changed(setting, array_remove(
                    array[workflow.name_column, workflow.description_column, workflow.visibility_column, workflow.enabled_column], null)
                    || workflow.listing_columns),
                'key', key,
                'org', org,
                'listing differs', pgaudit_wf._any_changed(setting, workflow.listing_columns),
                'old settings', coalesce(pgaudit_wf._snapshot_expression(setting, workflow, 'old', '', ''), '''{}''::jsonb'),
                'new snapshot', pgaudit_wf._snapshot_expression(setting, workflow, 'new', 'new_nodes', 'new_edges')));
    end if;
    -- Where DDL cannot be followed, the graph or the key can be gone.
    return case when (setting).form = 'compiled' then lines else pgaudit_wf._fill(
$generic$if as_attached or (event_id is not null
    and jsonb_typeof({{nodes}}) is not distinct from 'array' and jsonb_typeof({{edges}}) is not distinct from 'array')
then
    {{lines}}
end if;$generic$,
        jsonb_build_object(
            'lines', lines,
            'nodes', pgaudit_wf._record_value(setting, record_name, workflow.nodes_column),
            'edges', pgaudit_wf._record_value(setting, record_name, workflow.edges_column))) end;
end
$$;
comment on function pgaudit_wf._version_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that keeps the versions of a workflow table on update, insert or delete; nothing for other tables.';
