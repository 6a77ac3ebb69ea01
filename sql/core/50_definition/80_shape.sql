-- Graphs of other products as nodes and edges of React Flow's form, on which all the rest works: hashes, differences, pages. A
-- shape says how; those of one's own are functions, which run with the rights of whoever writes (see _graph_body()).
--
-- What is left out of the form is either canvas state, listed in canvas_key, or nobody knows what it is: then its change is an event.

create table pgaudit_wf.canvas_key (
    key text primary key constraint canvas_key_part check (key ~ '^(node|edge|data|graph)[.].')
);
comment on table pgaudit_wf.canvas_key is
    'Keys that only say how a graph looks: a change of nothing else makes neither a version nor an event. '
    'A change of any other key that makes no version is an event; doctor() names those keys. Add those of your editor.';
comment on column pgaudit_wf.canvas_key.key is
    'The key after the part it is in: node.position, edge.animated, graph.viewport (beside nodes and edges), '
    'or data.selected (in a node''s data, for shapes that do not count all of it: flowise).';

insert into pgaudit_wf.canvas_key (key)
select part || '.' || key
from (values
    ('node', '{position,positionAbsolute,width,height,initialWidth,initialHeight,measured,selected,dragging,resizing,style,className,'
        'zIndex,sourcePosition,targetPosition,handles,dragHandle,draggable,selectable,connectable,focusable,origin,ariaLabel,domAttributes,'
        'internals,computed}'),
    ('edge', '{selected,animated,style,className,zIndex,type,label,labelStyle,labelShowBg,labelBgStyle,labelBgPadding,labelBgBorderRadius,'
        'markerStart,markerEnd,pathOptions,interactionWidth,reconnectable,updatable,focusable,selectable,sourceX,sourceY,targetX,targetY,'
        'sourceNode,targetNode,ariaLabel,domAttributes}'),
    ('data', '{id,type,selected,color,icon,hideInput,hideOutput,baseClasses,tags,category,description,badge,author,documentation,warning,'
        'inputParams,inputAnchors,outputAnchors,filePath,loadMethods,credential,tabIdentifier,deprecateMessage,hint,state,error,status}'),
    ('graph', '{viewport}')
) as listed (part, keys), unnest(keys::text[]) as key;

create function pgaudit_wf._n8n_nodes(nodes jsonb) returns jsonb
language plpgsql immutable parallel safe
set jit = off
as $$
begin
    if jsonb_typeof(nodes) is distinct from 'array' then
        return nodes;
    end if;
    return (
        select coalesce(jsonb_agg(
            case when jsonb_typeof(node) <> 'object' then node
                else pgaudit_wf._keep_keys(node, '{id,type,position}')
                    || case when is_note and node -> 'parameters' ?| '{width,height}'
                        then jsonb_strip_nulls(jsonb_build_object(
                            'width', node -> 'parameters' -> 'width', 'height', node -> 'parameters' -> 'height')) else '{}' end
                    || jsonb_build_object('data', jsonb_build_object('label', node -> 'name')
                        || case when node ? 'label' then jsonb_build_object('name', node -> 'name') else '{}' end
                        || (node - '{id,type,name,position}'::text[])
                        || case when is_note then jsonb_build_object('parameters', (node -> 'parameters') - '{width,height}'::text[])
                            else '{}' end)
            end order by place), '[]')
        from jsonb_array_elements(nodes) with ordinality as listed (node, place),
        lateral (
            select coalesce(
                node ->> 'type' = 'n8n-nodes-base.stickyNote' and jsonb_typeof(node -> 'parameters') = 'object', false) as is_note
        ) as kind);
end
$$;
comment on function pgaudit_wf._n8n_nodes(jsonb) is
    'Nodes of n8n in React Flow''s form: everything but the canvas (position, a sticky note''s size) is in data. '
    'What is not an array is returned as it is.';

create function pgaudit_wf._n8n_edges(nodes jsonb, connections jsonb) returns jsonb
language plpgsql immutable parallel safe
set jit = off
as $$
begin
    if jsonb_typeof(connections) is distinct from 'object' then
        return '[]';
    end if;
    return (
        with known as (
            select distinct on (node ->> 'name') node ->> 'name' as name, node ->> 'id' as id
            from jsonb_array_elements(
                case jsonb_typeof(nodes) when 'array' then nodes else '[]' end) with ordinality as listed (node, place)
            where node ->> 'name' is not null
            order by node ->> 'name', place
        )
        select coalesce(jsonb_agg(
            jsonb_build_object(
                'source', coalesce(source.id, by_source.key),
                'target', coalesce(target.id, link ->> 'node'),
                'sourceHandle', by_kind.key || '/' || (output.place - 1),
                'targetHandle', (link ->> 'type') || '/' || (link ->> 'index'))
            || case when jsonb_typeof(link) <> 'object' then jsonb_build_object('data', link)
                when link - '{node,type,index}'::text[] <> '{}' then jsonb_build_object('data', link - '{node,type,index}'::text[])
                else '{}' end
            order by by_source.key collate "C", by_kind.key collate "C", output.place, listed.place), '[]')
        from jsonb_each(connections) as by_source
        cross join lateral jsonb_each(case jsonb_typeof(by_source.value) when 'object' then by_source.value else '{}' end) as by_kind
        cross join lateral jsonb_array_elements(
            case jsonb_typeof(by_kind.value) when 'array' then by_kind.value else '[]' end) with ordinality as output (links, place)
        cross join lateral jsonb_array_elements(
            case jsonb_typeof(output.links) when 'array' then output.links else '[]' end) with ordinality as listed (link, place)
        left join known as source on source.name = by_source.key
        left join known as target on target.name = link ->> 'node');
end
$$;
comment on function pgaudit_wf._n8n_edges(jsonb, jsonb) is
    'Connections of n8n, which go by names, as edges between the nodes'' ids, in the byte order of the names: '
    'the handles are "type/output" and "type/index".';

create function pgaudit_wf._flowise_nodes(nodes jsonb) returns jsonb
language plpgsql immutable parallel safe
set jit = off
as $$
begin
    if jsonb_typeof(nodes) is distinct from 'array' then
        return nodes;
    end if;
    return (
        select coalesce(jsonb_agg(
            case when jsonb_typeof(node) <> 'object' then node
                else pgaudit_wf._keep_keys(node, '{position,width,height,parentNode}') || jsonb_build_object(
                    'id', node -> 'id',
                    'type', node -> 'type',
                    'data', jsonb_strip_nulls(jsonb_build_object(
                            'label', node -> 'data' -> 'label', 'name', node -> 'data' -> 'name', 'version', node -> 'data' -> 'version',
                            'parent', node -> 'parentNode'))
                        || jsonb_build_object(
                            'inputs', coalesce(node -> 'data' -> 'inputs', '{}'), 'outputs', coalesce(node -> 'data' -> 'outputs', '{}')))
            end order by place), '[]')
        from jsonb_array_elements(nodes) with ordinality as listed (node, place));
end
$$;
comment on function pgaudit_wf._flowise_nodes(jsonb) is
    'Nodes of Flowise with what of their data means something: label, name, version, parent, inputs and outputs, '
    'not the component''s own description. What is not an array is returned as it is.';

create function pgaudit_wf._flowise_edges(edges jsonb) returns jsonb
language plpgsql immutable parallel safe
set jit = off
as $$
begin
    if jsonb_typeof(edges) is distinct from 'array' then
        return edges;
    end if;
    return (
        select coalesce(jsonb_agg(
            case when jsonb_typeof(edge) <> 'object' then edge
                else jsonb_strip_nulls(jsonb_build_object(
                    'source', edge -> 'source', 'target', edge -> 'target',
                    'sourceHandle', edge -> 'sourceHandle', 'targetHandle', edge -> 'targetHandle',
                    'data', case when jsonb_typeof(edge -> 'data') <> 'object' then edge -> 'data'
                        else nullif((edge -> 'data') - '{sourceColor,targetColor}'::text[], '{}') end))
            end order by place), '[]')
        from jsonb_array_elements(edges) with ordinality as listed (edge, place));
end
$$;
comment on function pgaudit_wf._flowise_edges(jsonb) is
    'Edges of Flowise without their ids, which follow from the ends, and without colors. What is not an array is returned as it is.';

create function pgaudit_wf._shape_graph(shape text, first jsonb, second jsonb, out nodes jsonb, out edges jsonb)
language plpgsql immutable parallel safe
as $$
begin
    case shape
        when 'n8n' then
            nodes := pgaudit_wf._n8n_nodes(first);
            edges := pgaudit_wf._n8n_edges(first, second);
        when 'flowise' then
            nodes := pgaudit_wf._flowise_nodes(first -> 'nodes');
            edges := pgaudit_wf._flowise_edges(first -> 'edges');
        else
            nodes := first;
            edges := second;
    end case;
end
$$;
comment on function pgaudit_wf._shape_graph(text, jsonb, jsonb) is
    'Nodes and edges of what the columns of a workflow hold, by its shape: '
    'first is nodes (flowise: all), second is edges (n8n: connections; flowise: none).';

create function pgaudit_wf._add_change(diff jsonb, path text, before jsonb, after jsonb) returns jsonb
language plpgsql stable parallel safe
as $$
declare
    ops jsonb;
    op jsonb;
begin
    if not record_image_ne(row(before), row(after)) then
        return diff;
    end if;
    ops := pgaudit_wf._deep_change(path, before, after);
    if ops is null then
        op := pgaudit_wf._put_large(jsonb_build_object('op', 'replace', 'path', path), '{value}', after, diff);
        ops := jsonb_build_array(pgaudit_wf._put_large(op, '{old}', before, diff));
    end if;
    return coalesce(diff, '[]') || ops;
end
$$;
comment on function pgaudit_wf._add_change(jsonb, text, jsonb, jsonb) is
    'A diff with what changed from one JSON value at a path to another; the same diff if nothing did.';

create function pgaudit_wf._rest_of(item jsonb, keys text[], data_keys text[]) returns jsonb
language sql immutable parallel safe
as $$
    select case
        when jsonb_typeof(item) <> 'object' then item
        when data_keys is null or jsonb_typeof(item -> 'data') <> 'object' then item - keys
        else (item - keys) || jsonb_build_object('data', (item -> 'data') - data_keys)
    end
$$;
comment on function pgaudit_wf._rest_of(jsonb, text[], text[]) is
    'A node or edge without the keys named, and its data without those of data_keys.';

create function pgaudit_wf._uncounted_in(
    diff jsonb, path text, before jsonb, after jsonb, part text, counted text[], counted_data text[] default null
) returns jsonb
language plpgsql stable parallel safe
as $$
declare
    keys text[];
    data_keys text[];
begin
    before := coalesce(nullif(before, 'null'), '[]');
    after := coalesce(nullif(after, 'null'), '[]');
    if not record_image_ne(row(before), row(after)) then
        return diff;
    elsif jsonb_typeof(before) <> 'array' or jsonb_typeof(after) <> 'array' then
        return pgaudit_wf._add_change(diff, path, before, after);
    end if;
    for place in 0 .. greatest(jsonb_array_length(before), jsonb_array_length(after)) - 1 loop
        continue when not record_image_ne(row(before -> place), row(after -> place));
        if keys is null then
            keys := counted || array(
                select substr(c.key, length(part) + 2) from pgaudit_wf.canvas_key as c where starts_with(c.key, part || '.'));
            if counted_data is not null then
                data_keys := counted_data
                    || array(select substr(c.key, 6) from pgaudit_wf.canvas_key as c where starts_with(c.key, 'data.'));
            end if;
        end if;
        diff := pgaudit_wf._add_change(diff, path || '/' || place,
            pgaudit_wf._rest_of(before -> place, keys, data_keys), pgaudit_wf._rest_of(after -> place, keys, data_keys));
    end loop;
    return diff;
end
$$;
comment on function pgaudit_wf._uncounted_in(jsonb, text, jsonb, jsonb, text, text[], text[]) is
    'A diff with what changed in an array of nodes or edges (part) whose counted keys are as before, less the canvas. '
    'counted_data: the keys of data that count, where not all of them do.';

create function pgaudit_wf._uncounted_changes(
    diff jsonb, shape text, paths text[], old_first jsonb, old_second jsonb, new_first jsonb, new_second jsonb
) returns jsonb
language plpgsql stable parallel safe
as $$
declare
    rest text[];
begin
    if not record_image_ne(row(old_first, old_second), row(new_first, new_second)) then
        return diff;
    end if;
    case shape
        when 'n8n' then
            -- All of a node counts, and so do the connections, but for what leads nowhere and is nowhere read.
            if jsonb_typeof(new_first) is distinct from 'array' or jsonb_typeof(old_first) is distinct from 'array' then
                diff := pgaudit_wf._add_change(diff, paths[1], old_first, new_first);
            end if;
            return case when old_second is distinct from new_second
                then pgaudit_wf._add_change(diff, paths[2], old_second, new_second) else diff end;
        when 'flowise' then
            if jsonb_typeof(old_first) is distinct from 'object' or jsonb_typeof(new_first) is distinct from 'object' then
                return pgaudit_wf._add_change(diff, paths[1], old_first, new_first);
            end if;
            diff := pgaudit_wf._uncounted_in(diff, paths[1] || '/nodes', old_first -> 'nodes', new_first -> 'nodes',
                'node', '{id,type,parentNode}', '{label,name,version,inputs,outputs}');
            diff := pgaudit_wf._uncounted_in(diff, paths[1] || '/edges', old_first -> 'edges', new_first -> 'edges',
                'edge', '{id,source,target,sourceHandle,targetHandle,data}');
            rest := '{nodes,edges}' || array(
                select substr(c.key, 7) from pgaudit_wf.canvas_key as c where starts_with(c.key, 'graph.'));
            return pgaudit_wf._add_change(diff, paths[1], old_first - rest, new_first - rest);
        else
            diff := pgaudit_wf._uncounted_in(diff, paths[1], old_first, new_first, 'node', '{id,type,data}');
            return pgaudit_wf._uncounted_in(diff, paths[2], old_second, new_second,
                'edge', '{id,source,target,sourceHandle,targetHandle,data}');
    end case;
end
$$;
comment on function pgaudit_wf._uncounted_changes(jsonb, text, text[], jsonb, jsonb, jsonb, jsonb) is
    'A diff with what changed in a graph whose definition is as before, apart from the canvas: '
    'keys that neither make a version nor are listed in canvas_key. first and second as in _shape_graph(), paths where they are.';

create function pgaudit_wf._uncounted_keys(shape text, snapshot jsonb) returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- n8n counts every key of a node. What Flowise stored is a text.
    with graph as (
        select case shape when 'flowise' then pgaudit_wf._try_jsonb(stored.value) else snapshot end as value
        from (select value from jsonb_each_text(snapshot -> 'stored') union all select null limit 1) as stored
        where shape <> 'n8n'
    ), item as (
        select 'node' as part, node as value
        from graph, jsonb_array_elements(case jsonb_typeof(value -> 'nodes') when 'array' then value -> 'nodes' else '[]' end) as node
        union all
        select 'edge', edge
        from graph, jsonb_array_elements(case jsonb_typeof(value -> 'edges') when 'array' then value -> 'edges' else '[]' end) as edge
        union all
        select 'data', node -> 'data'
        from graph, jsonb_array_elements(case jsonb_typeof(value -> 'nodes') when 'array' then value -> 'nodes' else '[]' end) as node
        where shape = 'flowise'
    )
    select part || '.' || key
    from item, jsonb_object_keys(case jsonb_typeof(value) when 'object' then value else '{}' end) as key
    where key <> all (case part
            when 'edge' then array['id', 'source', 'target', 'sourceHandle', 'targetHandle', 'data']
            when 'data' then array['label', 'name', 'version', 'inputs', 'outputs']
            else case shape when 'flowise' then array['id', 'type', 'data', 'parentNode'] else array['id', 'type', 'data'] end end)
    except
    select c.key from pgaudit_wf.canvas_key as c
$$;
comment on function pgaudit_wf._uncounted_keys(text, jsonb) is
    'The keys in a snapshot of a workflow that neither make a version nor are listed in canvas_key.';
