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

create function pgaudit_wf._stored_text(setting pgaudit_wf.attachment, record_name text, column_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when column_name is null then 'null::text'
        when (setting).form = 'generic' and record_name in ('old', 'new')
            then format('%s ->> %L', case record_name when 'old' then 'before' else 'after' end, column_name)
        else pgaudit_wf._field(record_name, column_name) || '::text'
    end
$$;
comment on function pgaudit_wf._stored_text(pgaudit_wf.attachment, text, text) is
    'SQL expression for the text of a column with a graph, as the application stored it (in the generic form: as jsonb prints it).';

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
        (5, 'nodes', null, nodes),
        (6, 'edges', null, edges),
        -- What these shapes keep of a graph does not lead back to the product's own form.
        (7, 'stored', null, case when (workflow).shape in ('n8n', 'flowise') then (
            select format('jsonb_build_object(%s)',
                string_agg(format('%L, %s', name, pgaudit_wf._stored_text(setting, record_name, name)), ', ' order by position))
            from unnest(array[(workflow).nodes_column, (workflow).edges_column]) with ordinality as graph (name, position)
            where name is not null) end)
    ) as kept (position, member, column_name, expression)
    where column_name is not null or expression is not null
$$;
comment on function pgaudit_wf._snapshot_expression(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text, text) is
    'SQL expression for what a version keeps of a workflow row: name, description, visibility, enabled, nodes, edges and, of shapes that '
    'change a graph''s form, the columns as stored. nodes and edges are the expressions for the graph; null to leave it out.';

create function pgaudit_wf._has_own_shape(target regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pgaudit_wf._graph_types(w.shape) is null and w.target is not null, false)
    from pgaudit_wf._usable_workflow(_has_own_shape.target) as w
$$;
comment on function pgaudit_wf._has_own_shape(regclass) is 'Whether a table''s graphs are read by functions of the application.';

create function pgaudit_wf._graph_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array_to_string(pgaudit_wf._fill($body$
-- Reads the graph of a row by functions of the application, with the rights of whoever writes; written by pgaudit_wf.attach_workflow().
-- It always fires just before the trigger that records the row and takes the graph from this setting, so what else a client writes
-- there is never read.
declare
    graph jsonb;
begin
    begin
        graph := jsonb_build_array(null, null, {{nodes}}(new), {{edges}}(new));
        if tg_op = 'UPDATE' then
            graph := jsonb_set(jsonb_set(graph, '{0}', coalesce({{nodes}}(old), '[]')), '{1}', coalesce({{edges}}(old), '[]'));
        end if;
        if exists (select from jsonb_array_elements(graph) as part where jsonb_typeof(part) not in ('array', 'null')) then
            raise exception 'a graph is not an array' using errcode = 'data_exception';
        end if;
    exception
        -- It costs the version, not the write.
        when others then
            if sqlstate ~ '^(40|53|57)' then
                raise;
            end if;
            graph := null;
            raise warning 'a row of % has no version, as the functions of shape % failed (SQLSTATE %)', {{table}}, {{shape}}, sqlstate;
    end;
    perform set_config('pgaudit_wf.graph', coalesce(graph::text, ''), true);
    return null;
end
$body$,
        jsonb_build_object(
            'nodes', format('%I.nodes', w.shape),
            'edges', format('%I.edges', w.shape),
            'table', quote_literal(w.target::text),
            'shape', quote_literal(w.shape))), e'\n')
    from pgaudit_wf._usable_workflow((setting).target) as w
    where pgaudit_wf._has_own_shape((setting).target)
$$;
comment on function pgaudit_wf._graph_body(pgaudit_wf.attachment) is
    'The body of the trigger function that reads graphs by functions of the application; null for other tables.';

create function pgaudit_wf._graph_function_name(setting pgaudit_wf.attachment) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select 'graph_' || substr((setting).function_name, length('capture_') + 1) $$;
comment on function pgaudit_wf._graph_function_name(pgaudit_wf.attachment) is
    'Name of the trigger function that reads graphs by functions of the application.';

create function pgaudit_wf._take_graph() returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    graph constant text := current_setting('pgaudit_wf.graph', true);
begin
    perform set_config('pgaudit_wf.graph', '', true);
    return nullif(graph, '')::jsonb;
end
$$;
comment on function pgaudit_wf._take_graph() is
    'What the trigger of _graph_body() has just read: nodes and edges before, nodes and edges now; null if that failed.';

create function pgaudit_wf._raw_graph(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text, column_name text
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when column_name is null then 'null'
        when (workflow).shape = 'reactflow' or atttypid = 'jsonb'::regtype and (setting).form = 'compiled'
            then pgaudit_wf._record_value(setting, record_name, column_name)
        else format('pgaudit_wf._try_jsonb(%s)', pgaudit_wf._stored_text(setting, record_name, column_name))
    end
    from (select (select atttypid from pg_attribute where attrelid = (setting).target and attname = column_name)) as typed (atttypid)
$$;
comment on function pgaudit_wf._raw_graph(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text) is
    'SQL expression for what a column with a graph holds, as jsonb; null for what is no JSON, unless the shape is reactflow.';

create function pgaudit_wf._graph_call(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('pgaudit_wf._shape_graph(%L, %s, %s)', (workflow).shape,
        pgaudit_wf._raw_graph(setting, workflow, record_name, (workflow).nodes_column),
        pgaudit_wf._raw_graph(setting, workflow, record_name, (workflow).edges_column))
$$;
comment on function pgaudit_wf._graph_call(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text) is
    'SQL call that makes nodes and edges of the columns of old or new, or of a row of a query, by a shape of ours.';

create function pgaudit_wf._graph_expression(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text, part text
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when pgaudit_wf._graph_types((workflow).shape) is null then format('%I.%s(%I)', (workflow).shape, part, record_name)
        else format('(%s).%s', pgaudit_wf._graph_call(setting, workflow, record_name), part) end
$$;
comment on function pgaudit_wf._graph_expression(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text) is
    'SQL expression for the nodes or edges (part) of a row of a query. That of a shape of one''s own runs functions of the application.';

create function pgaudit_wf._raw_or_text(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text, column_name text
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when column_name is null then 'null' else format('coalesce(%s, to_jsonb(%s))',
        pgaudit_wf._raw_graph(setting, workflow, record_name, column_name), pgaudit_wf._stored_text(setting, record_name, column_name)) end
$$;
comment on function pgaudit_wf._raw_or_text(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text) is
    'SQL expression for what a column with a graph holds, as jsonb; what is no JSON as a JSON string.';

create function pgaudit_wf._raw_pair(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- In the other shapes these are the graph itself.
    select case when (workflow).shape in ('n8n', 'flowise')
        then concat_ws(', ', pgaudit_wf._raw_or_text(setting, workflow, record_name, (workflow).nodes_column),
            pgaudit_wf._raw_or_text(setting, workflow, record_name, (workflow).edges_column))
        else format('%1$s_nodes, %1$s_edges', record_name) end
$$;
comment on function pgaudit_wf._raw_pair(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text) is
    'The last arguments of _uncounted_changes() for old or new.';

create function pgaudit_wf._uncounted_statements(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment
) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._fill(
$uncounted$if not definition_changed then
    event_diff := pgaudit_wf._uncounted_changes(event_diff, {{shape}}, {{paths}},
        {{old}},
        {{new}});
end if;$uncounted$,
        jsonb_build_object(
            'shape', quote_literal((workflow).shape),
            'paths', quote_literal(array[
                pgaudit_wf._pointer(coalesce((workflow).nodes_column, 'nodes')),
                pgaudit_wf._pointer(coalesce((workflow).edges_column, 'edges'))]::text),
            'old', pgaudit_wf._raw_pair(setting, workflow, 'old'),
            'new', pgaudit_wf._raw_pair(setting, workflow, 'new')))
$$;
comment on function pgaudit_wf._uncounted_statements(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment) is
    'PL/pgSQL that adds to event_diff what a graph''s definition does not count, and the canvas does not explain.';

create function pgaudit_wf._graph_assignments(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text
) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- In a variable the value is decompressed once, where each mention of old.nodes would do it again; #> '{}' is what does it.
    select case
        when pgaudit_wf._graph_types((workflow).shape) is null then array[
            format('%s_nodes := event_graph -> %s;', record_name, case record_name when 'old' then 0 else 2 end),
            format('%s_edges := event_graph -> %s;', record_name, case record_name when 'old' then 1 else 3 end)]
        when (workflow).shape <> 'reactflow' then array[
            format('select graph.nodes, graph.edges into %1$s_nodes, %1$s_edges from %2$s as graph;',
                record_name, pgaudit_wf._graph_call(setting, workflow, record_name))]
        else array[
            format('%s_nodes := %s #> ''{}'';', record_name, pgaudit_wf._record_value(setting, record_name, (workflow).nodes_column)),
            format('%s_edges := %s #> ''{}'';', record_name, pgaudit_wf._record_value(setting, record_name, (workflow).edges_column))]
    end
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
    own_shape constant boolean := pgaudit_wf._has_own_shape((setting).target);
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
    {{uncounted changes}}
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
                'graph may differ', case
                    when own_shape then 'true'
                    when workflow.shape = 'reactflow'
                        then pgaudit_wf._maybe_changed(setting, array[workflow.nodes_column, workflow.edges_column])
                    -- To compare what is stored takes less than to make graphs of it.
                    else pgaudit_wf._any_changed(setting, pgaudit_wf._definition_columns((setting).target)) end,
                'uncounted changes', pgaudit_wf._uncounted_statements(setting, workflow),
                'old and new graph', pgaudit_wf._graph_assignments(setting, workflow, 'old')
                    || pgaudit_wf._graph_assignments(setting, workflow, 'new'),
                'settings differ', pgaudit_wf._any_changed(setting, array_remove(
                    array[workflow.name_column, workflow.description_column, workflow.visibility_column, workflow.enabled_column], null)
                    || workflow.listing_columns),
                'key', key,
                'org', org,
                'listing differs', pgaudit_wf._any_changed(setting, workflow.listing_columns),
                'old settings', coalesce(pgaudit_wf._snapshot_expression(setting, workflow, 'old'), '''{}''::jsonb'),
                'new snapshot', pgaudit_wf._snapshot_expression(setting, workflow, 'new', 'new_nodes', 'new_edges')));
    end if;
    if own_shape and op <> 'delete' then
        lines := pgaudit_wf._fill(
$own$event_graph := pgaudit_wf._take_graph();
if event_graph is null then
    event_diff := coalesce(event_diff, '[]');
    event_metadata := coalesce(event_metadata, '{}') || '{"version": null}';
else
    {{lines}}
end if;$own$, jsonb_build_object('lines', lines));
    end if;
    -- Where DDL cannot be followed, the graph or the key can be gone.
    return case when (setting).form = 'compiled' then lines else pgaudit_wf._fill(
$generic$if as_attached or (event_id is not null{{graph is there}})
then
    {{lines}}
end if;$generic$,
        jsonb_build_object(
            'lines', lines,
            'graph is there', case when workflow.shape = 'reactflow' then format(
e'\n    and jsonb_typeof(%s) is not distinct from ''array'' and jsonb_typeof(%s) is not distinct from ''array''',
                pgaudit_wf._record_value(setting, record_name, workflow.nodes_column),
                pgaudit_wf._record_value(setting, record_name, workflow.edges_column))
                else coalesce((
                    select string_agg(format(' and %s is not null', pgaudit_wf._record_value(setting, record_name, name)), '')
                    from unnest(pgaudit_wf._definition_columns((setting).target)) as name), '') end)) end;
end
$$;
comment on function pgaudit_wf._version_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that keeps the versions of a workflow table on update, insert or delete; nothing for other tables.';
