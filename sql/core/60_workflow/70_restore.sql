-- Restoring a version: an ordinary update, so validation, history and audit all apply.

create type pgaudit_wf.workflow_place as (
    target regclass,
    row_id text,
    key_condition text,
    shape text,
    nodes text,
    edges text,
    graph_columns text[],
    graph_types text[],
    name_column text,
    description_column text
);
comment on type pgaudit_wf.workflow_place is
    'The table and row in which a workflow lives, expressions for its nodes and edges there (w is the row), '
    'and the columns that hold them, but for a shape of the application.';

create function pgaudit_wf._find_workflow(workflow_id text, target regclass) returns pgaudit_wf.workflow_place
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_attachment;
    setting pgaudit_wf.attachment;
    place pgaudit_wf.workflow_place;
begin
    select w.* into workflow
    from pgaudit_wf.workflow_attachment as w
    where w.target = _find_workflow.target
        or (_find_workflow.target is null and case
            when w.id_prefix = '' then true
            else starts_with(_find_workflow.workflow_id, w.id_prefix) end)
    order by length(w.id_prefix) desc limit 1;
    if workflow.target is null then
        raise exception 'there is no attached workflow table%', coalesce(' ' || _find_workflow.target, '')
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it.';
    end if;
    place.target := workflow.target;
    place.row_id := substr(_find_workflow.workflow_id,
        1 + case
            when workflow.id_prefix = '' then starts_with(_find_workflow.workflow_id, '/')::integer
            else length(workflow.id_prefix)
        end);
    select a.* into setting from pgaudit_wf.attachment as a where a.target = workflow.target;
    place.key_condition := pgaudit_wf._key_condition(setting, 'w');
    place.shape := workflow.shape;
    place.nodes := pgaudit_wf._graph_expression(setting, workflow, 'w', 'nodes');
    place.edges := pgaudit_wf._graph_expression(setting, workflow, 'w', 'edges');
    if pgaudit_wf._graph_types(workflow.shape) is not null then
        select array_agg(name order by position), array_agg(format_type(atttypid, -1) order by position)
        into place.graph_columns, place.graph_types
        from unnest(array[workflow.nodes_column, workflow.edges_column]) with ordinality as graph (name, position)
        join pg_attribute on attrelid = workflow.target and attname = name and not attisdropped;
    end if;
    place.name_column := workflow.name_column;
    place.description_column := workflow.description_column;
    return place;
end
$$;
comment on function pgaudit_wf._find_workflow(text, regclass) is 'Where a workflow lives; raises PA005 if no workflow table is attached.';

create function pgaudit_wf._newest_version(workflow_id text) returns integer
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select max(h.version) from pgaudit_wf.workflow_history as h where h.workflow_id = _newest_version.workflow_id
$$;
comment on function pgaudit_wf._newest_version(text) is 'Number of a workflow''s newest version; null if it has none.';

create function pgaudit_wf._stored_graph(stored jsonb, names text[]) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    -- A column that was renamed since is the one that is left.
    select case when count(*) filter (where source is null) = 0 then jsonb_object_agg(name, stored -> source) end
    from (
        select name, case when stored ? name then name when lost[2] is null and missing[2] is null then lost[1] end as source
        from unnest(names) as name,
        (select array(select key from jsonb_object_keys(stored) as key where key <> all (names)),
            array(select name from unnest(names) as name where not stored ? name)) as other (lost, missing)
    ) as found
$$;
comment on function pgaudit_wf._stored_graph(jsonb, text[]) is
    'The columns of a graph as a version stored them, by the names that they have now; null if that cannot be told.';

create function pgaudit_wf._snapshot_columns(snapshot jsonb, shape text, names text[]) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when (snapshot ? 'stored') <> (shape in ('n8n', 'flowise')) then null
        when snapshot ? 'stored' then pgaudit_wf._stored_graph(snapshot -> 'stored', names)
        when names = '{}' then '{}'
        -- What functions of the application make of such columns does not lead back to them.
        when pgaudit_wf._graph_types(shape) is null then null
        else jsonb_build_object(names[1], nullif(snapshot -> 'nodes', 'null')::text, names[2], nullif(snapshot -> 'edges', 'null')::text)
    end
$$;
comment on function pgaudit_wf._snapshot_columns(jsonb, text, text[]) is
    'The graph of a snapshot as texts, by the columns that hold graphs of that shape; null if it was kept in another shape, '
    'or the columns cannot be told from it.';

create function pgaudit_wf._graph_update(workflow pgaudit_wf.workflow_place, kept jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    call constant text := format('%I.back(w, $2, $3)', (workflow).shape);
    changed text;
begin
    if (workflow).graph_columns is not null then
        return (
            select string_agg(
                case when kept ? 'stored' then format('%I = ($6 ->> %L)::%s', name, name, type)
                    else format('%I = $%s', name, position + 1) end, ', ' order by position)
            from unnest((workflow).graph_columns, (workflow).graph_types) with ordinality as graph (name, type, position));
    end if;
    -- Whoever restores need not be allowed to update more than the graph.
    execute format(
$query$select string_agg(quote_ident(attname), ', ' order by attnum)
from pg_attribute, (select to_jsonb(w) as before, to_jsonb(%s) as after from %s as w where %s) as stored
where attrelid = %L::regclass and attnum > 0 and not attisdropped and attgenerated = '' and attname <> all ($4)
    and before -> attname::text is distinct from after -> attname::text$query$,
            call, (workflow).target, (workflow).key_condition, (workflow).target)
        into changed
        using (workflow).row_id, kept -> 'nodes', kept -> 'edges',
            array_remove(array[(workflow).name_column, (workflow).description_column], null);
    return format('(%1$s) = (select %1$s from %2$s)', changed, call);
end
$$;
comment on function pgaudit_wf._graph_update(pgaudit_wf.workflow_place, jsonb) is
    'What an update of a workflow''s row must set to restore the graph of a snapshot; null for nothing. '
    '$2 and $3 are its nodes and edges, $6 the columns as stored.';

create function pgaudit_wf.restore_workflow(workflow_id text, version integer, target regclass default null) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_place;
    kept jsonb;
    present_nodes jsonb;
    present_edges jsonb;
    present_name text;
    present_description text;
    found_rows integer;
begin
    workflow := pgaudit_wf._find_workflow(restore_workflow.workflow_id, restore_workflow.target);
    kept := pgaudit_wf.version_snapshot(restore_workflow.workflow_id, restore_workflow.version);
    if workflow.graph_columns is null and to_regprocedure(format('%I.back(%s, jsonb, jsonb)', workflow.shape, workflow.target)) is null then
        raise exception 'workflows of % cannot be restored, as there is no function %.back()', workflow.target, workflow.shape
            using errcode = 'PA304',
                hint = format('Create %I.back(row %s, nodes jsonb, edges jsonb), which returns the row with that graph.',
                    workflow.shape, workflow.target);
    elsif (kept ? 'stored') <> (workflow.shape in ('n8n', 'flowise'))
        or kept ? 'stored' and pgaudit_wf._stored_graph(kept -> 'stored', workflow.graph_columns) is null
    then
        raise exception 'version % of workflow % was kept in another shape than %',
            restore_workflow.version, restore_workflow.workflow_id, workflow.shape
            using errcode = 'PA304', hint = 'Its nodes and edges are in pgaudit_wf.version_snapshot().';
    end if;
    -- The lock keeps a save that comes in between from being overwritten unseen.
    execute format('select %s, %s, %s, %s', workflow.nodes, workflow.edges,
            pgaudit_wf._optional_column('w.%I::text', workflow.name_column, 'null::text'),
            pgaudit_wf._optional_column('w.%I::text', workflow.description_column, 'null::text'))
            || format(' from %s as w where %s for no key update', workflow.target, workflow.key_condition)
        into present_nodes, present_edges, present_name, present_description using workflow.row_id;
    get diagnostics found_rows = row_count;
    if found_rows = 0 then
        raise exception 'workflow % does not exist, so it cannot be restored', restore_workflow.workflow_id
            using errcode = 'PA302',
                hint = 'It was deleted, or belongs to another organization. The definition is in pgaudit_wf.version_snapshot().';
    end if;
    -- Older than the attachment of these columns: there is nothing to restore.
    if not kept ? 'name' then
        workflow.name_column := null;
    end if;
    if not kept ? 'description' then
        workflow.description_column := null;
    end if;
    if pgaudit_wf.same_definition(present_nodes, present_edges, kept -> 'nodes', kept -> 'edges')
        and (workflow.name_column is null or present_name is not distinct from kept ->> 'name')
        and (workflow.description_column is null or present_description is not distinct from kept ->> 'description')
    then
        return pgaudit_wf._newest_version(restore_workflow.workflow_id);
    end if;

    perform set_config('pgaudit_wf.restoring', restore_workflow.version::text, true);
    execute format('update %s as w set ', workflow.target)
            || concat_ws(', ',
                pgaudit_wf._graph_update(workflow, kept),
                pgaudit_wf._optional_column('%I = $4', workflow.name_column, null),
                pgaudit_wf._optional_column('%I = $5', workflow.description_column, null))
            || format(' where %s', workflow.key_condition)
        using workflow.row_id, kept -> 'nodes', kept -> 'edges', kept ->> 'name', kept ->> 'description',
            pgaudit_wf._stored_graph(kept -> 'stored', workflow.graph_columns);
    perform set_config('pgaudit_wf.restoring', '', true);
    return pgaudit_wf._newest_version(restore_workflow.workflow_id);
end
$$;
comment on function pgaudit_wf.restore_workflow(text, integer, regclass) is
    'Restores a version of a workflow (nodes, edges, name, description; visibility, enabled and the listing stay) '
    'by an ordinary update with the caller''s rights, and returns the number of the version that is then current. '
    'Restoring the current state changes nothing. target is needed only where two workflow tables share ids. '
    'Raises PA302 if there is no such workflow or version, or it is another organization''s, '
    'PA304 if its shape cannot be restored.';

create function pgaudit_wf._restore_problems(login name) returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('it may not call restore_workflow(): grant pgaudit_wf_app to %I', login)
    where not has_function_privilege(login, 'pgaudit_wf.restore_workflow(text, integer, regclass)', 'execute')
    union all
    select format('it may not update %s: grant select, update on %s to %I', w.target, w.target, login)
    from pgaudit_wf.workflow_attachment as w
    where not has_any_column_privilege(login, w.target, 'select') or not has_any_column_privilege(login, w.target, 'update')
$$;
comment on function pgaudit_wf._restore_problems(name) is 'Why a role cannot restore workflows, and what would let it.';
