-- What of a workflow makes a version: of a node its id, type and data, of an edge its ends, handles, id and data. The canvas
-- (position, selection, size, style, color, …) is everything else, whatever an editor calls it, so this is an allow-list.
--
-- The order of nodes and edges is kept: it is part of the stored definition, and a hash over the arrays as saved is what
-- anybody outside recomputes without a sorting rule of ours. Absent and null stay different for the same reason.

create or replace function pgaudit_wf.graph_array(value jsonb, column_name text)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    if jsonb_typeof(graph_array.value) = 'array' then
        return graph_array.value;
    elsif coalesce(jsonb_typeof(graph_array.value), 'null') = 'null' then
        return '[]';
    end if;
    raise exception '% is a JSON %, not an array', graph_array.column_name, jsonb_typeof(graph_array.value)
        using errcode = 'PA203',
              hint = format('Store the %s of a workflow as a JSON array, one object each.', graph_array.column_name);
end
$$;

comment on function pgaudit_wf.graph_array(jsonb, text) is
    'The array itself, an empty one for null; raises PA203, naming the column, for anything else. Internal.';


-- The three functions below take the common shapes first. A function with a subquery is not inlined, so what needs one stands
-- apart, in PL/pgSQL: before PostgreSQL 18 a SQL function is planned anew for each query.

create or replace function pgaudit_wf.keep_keys(value jsonb, keys text[])
returns jsonb
language plpgsql
immutable
strict
parallel safe
as $$
begin
    return keep_keys.value - array(
        select field from jsonb_object_keys(keep_keys.value) as field where field <> all (keep_keys.keys));
end
$$;

comment on function pgaudit_wf.keep_keys(jsonb, text[]) is 'A JSON object with only the keys named. Internal.';


create or replace function pgaudit_wf.normalize_node(node jsonb, aliases text[])
returns jsonb
language sql
stable
parallel safe
return case
    when jsonb_typeof(normalize_node.node) <> 'object' then normalize_node.node
    when normalize_node.node -> 'data' -> 'config' ?| normalize_node.aliases
        and jsonb_typeof(normalize_node.node -> 'data' -> 'config') = 'object'
    then jsonb_set(
        pgaudit_wf.keep_keys(normalize_node.node, '{id,type,data}'), '{data,config}',
        pgaudit_wf.normalize_config(normalize_node.node -> 'data' -> 'config'))
    when normalize_node.node ?& '{id,type,data}' then jsonb_build_object(
        'id', normalize_node.node -> 'id',
        'type', normalize_node.node -> 'type',
        'data', normalize_node.node -> 'data')
    else pgaudit_wf.keep_keys(normalize_node.node, '{id,type,data}')
end;

comment on function pgaudit_wf.normalize_node(jsonb, text[]) is
    'The meaningful part of one node. aliases is every alias of config_alias, read once by the caller. What is no object is '
    'returned as it is, so that no malformed node disappears. Internal.';


create or replace function pgaudit_wf.normalize_edge(edge jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    return case
        when jsonb_typeof(normalize_edge.edge) <> 'object' then normalize_edge.edge
        when normalize_edge.edge ? 'data' or not normalize_edge.edge ?& '{id,source,target}'
        then pgaudit_wf.keep_keys(normalize_edge.edge, '{id,source,target,sourceHandle,targetHandle,data}')
        when normalize_edge.edge ?& '{sourceHandle,targetHandle}' then jsonb_build_object(
            'id', normalize_edge.edge -> 'id',
            'source', normalize_edge.edge -> 'source',
            'target', normalize_edge.edge -> 'target',
            'sourceHandle', normalize_edge.edge -> 'sourceHandle',
            'targetHandle', normalize_edge.edge -> 'targetHandle')
        when not normalize_edge.edge ?| '{sourceHandle,targetHandle}' then jsonb_build_object(
            'id', normalize_edge.edge -> 'id',
            'source', normalize_edge.edge -> 'source',
            'target', normalize_edge.edge -> 'target')
        else pgaudit_wf.keep_keys(normalize_edge.edge, '{id,source,target,sourceHandle,targetHandle,data}')
    end;
end
$$;

comment on function pgaudit_wf.normalize_edge(jsonb) is
    'The meaningful part of one edge. What is no object is returned as it is. Internal.';


create or replace function pgaudit_wf.normalize_definition(nodes jsonb, edges jsonb)
returns jsonb
language plpgsql
stable
parallel safe
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    aliases text[] := array(select config_alias.alias from pgaudit_wf.config_alias);
    kept_nodes jsonb;
    kept_edges jsonb;
begin
    select jsonb_agg(pgaudit_wf.normalize_node(node, aliases)) into kept_nodes
    from jsonb_array_elements(pgaudit_wf.graph_array(normalize_definition.nodes, 'nodes')) as node;
    select jsonb_agg(pgaudit_wf.normalize_edge(edge)) into kept_edges
    from jsonb_array_elements(pgaudit_wf.graph_array(normalize_definition.edges, 'edges')) as edge;
    return jsonb_build_object('edges', coalesce(kept_edges, '[]'), 'nodes', coalesce(kept_nodes, '[]'));
end
$$;

comment on function pgaudit_wf.normalize_definition(jsonb, jsonb) is
    'The meaningful part of a workflow, {"edges": […], "nodes": […]}: of a node id, type and data, of an edge id, source, target, '
    'sourceHandle, targetHandle and data, in the order saved, with the legacy keys of data.config read through config_alias. '
    'Null nodes or edges are an empty array; anything else that is no array raises PA203.';
