-- What of a workflow makes a version: of a node its id, type and data, of an edge its ends, handles, id and data. The canvas
-- (position, selection, size, style, color, …) is everything else, whatever an editor calls it, so this is an allow-list.
--
-- The order of nodes and edges is kept: it is part of the stored definition, and a hash over the arrays as saved can be
-- recomputed elsewhere without a sorting rule of ours. Absent and null stay different for the same reason.

create function pgaudit_wf._graph_array(value jsonb, column_name text) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    if jsonb_typeof(_graph_array.value) = 'array' then
        return _graph_array.value;
    elsif coalesce(jsonb_typeof(_graph_array.value), 'null') = 'null' then
        return '[]';
    end if;
    raise exception '% is a JSON %, not an array', _graph_array.column_name, jsonb_typeof(_graph_array.value)
        using errcode = 'PA203',
              hint = format('Store the %s of a workflow as a JSON array, one object each.', _graph_array.column_name);
end
$$;
comment on function pgaudit_wf._graph_array(jsonb, text) is
    'The array itself, an empty one for null; raises PA203, naming the column, for anything else.';

-- The three functions below take the common shapes first. A function with a subquery is not inlined, so what needs one stands
-- apart, in PL/pgSQL: before PostgreSQL 18 a SQL function is planned again for each query.

create function pgaudit_wf._keep_keys(value jsonb, keys text[]) returns jsonb
language plpgsql immutable strict parallel safe
as $$
begin
    return _keep_keys.value - array(
        select field from jsonb_object_keys(_keep_keys.value) as field where field <> all (_keep_keys.keys));
end
$$;
comment on function pgaudit_wf._keep_keys(jsonb, text[]) is 'A JSON object with only the keys named.';

create function pgaudit_wf._normalize_node(node jsonb, aliases text[]) returns jsonb
language sql stable parallel safe
return case
    when jsonb_typeof(_normalize_node.node) <> 'object' then _normalize_node.node
    when _normalize_node.node -> 'data' -> 'config' ?| _normalize_node.aliases
        and jsonb_typeof(_normalize_node.node -> 'data' -> 'config') = 'object'
    then jsonb_set(
        pgaudit_wf._keep_keys(_normalize_node.node, '{id,type,data}'), '{data,config}',
        pgaudit_wf._normalize_config(_normalize_node.node -> 'data' -> 'config'))
    when _normalize_node.node ?& '{id,type,data}' then jsonb_build_object(
        'id', _normalize_node.node -> 'id',
        'type', _normalize_node.node -> 'type',
        'data', _normalize_node.node -> 'data')
    else pgaudit_wf._keep_keys(_normalize_node.node, '{id,type,data}')
end;
comment on function pgaudit_wf._normalize_node(jsonb, text[]) is
    'The meaningful part of one node. aliases is every alias of config_alias, read once by the caller. What is not an object is '
    'returned as it is, so that no malformed node disappears.';

create function pgaudit_wf._normalize_edge(edge jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    return case
        when jsonb_typeof(_normalize_edge.edge) <> 'object' then _normalize_edge.edge
        when _normalize_edge.edge ? 'data' or not _normalize_edge.edge ?& '{id,source,target}'
        then pgaudit_wf._keep_keys(_normalize_edge.edge, '{id,source,target,sourceHandle,targetHandle,data}')
        when _normalize_edge.edge ?& '{sourceHandle,targetHandle}' then jsonb_build_object(
            'id', _normalize_edge.edge -> 'id',
            'source', _normalize_edge.edge -> 'source',
            'target', _normalize_edge.edge -> 'target',
            'sourceHandle', _normalize_edge.edge -> 'sourceHandle',
            'targetHandle', _normalize_edge.edge -> 'targetHandle')
        when not _normalize_edge.edge ?| '{sourceHandle,targetHandle}' then jsonb_build_object(
            'id', _normalize_edge.edge -> 'id',
            'source', _normalize_edge.edge -> 'source',
            'target', _normalize_edge.edge -> 'target')
        else pgaudit_wf._keep_keys(_normalize_edge.edge, '{id,source,target,sourceHandle,targetHandle,data}')
    end;
end
$$;
comment on function pgaudit_wf._normalize_edge(jsonb) is
    'The meaningful part of one edge. What is not an object is returned as it is.';

create function pgaudit_wf.normalize_definition(nodes jsonb, edges jsonb) returns jsonb
language plpgsql stable parallel safe
-- The planner expects many rows of JSON functions, and would JIT-compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    aliases text[] := array(select config_alias.alias from pgaudit_wf.config_alias);
    kept_nodes jsonb;
    kept_edges jsonb;
begin
    select jsonb_agg(pgaudit_wf._normalize_node(node, aliases)) into kept_nodes
    from jsonb_array_elements(pgaudit_wf._graph_array(normalize_definition.nodes, 'nodes')) as node;
    select jsonb_agg(pgaudit_wf._normalize_edge(edge)) into kept_edges
    from jsonb_array_elements(pgaudit_wf._graph_array(normalize_definition.edges, 'edges')) as edge;
    return jsonb_build_object('edges', coalesce(kept_edges, '[]'), 'nodes', coalesce(kept_nodes, '[]'));
end
$$;
comment on function pgaudit_wf.normalize_definition(jsonb, jsonb) is
    'The meaningful part of a workflow, {"edges": […], "nodes": […]}: of a node id, type and data, of an edge id, source, target, '
    'sourceHandle, targetHandle and data, in the order saved, with the legacy keys of data.config read through config_alias. '
    'Null nodes or edges are an empty array; anything else that is not an array raises PA203.';
