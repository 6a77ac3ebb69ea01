-- The difference of two versions for people: which nodes and connections were added, removed and changed, and how, in words instead
-- of JSON paths. A node that is equal on both sides costs one comparison; only a changed one is looked into.

create function pgaudit_wf._different_keys(before jsonb, after jsonb) returns text[]
language plpgsql immutable parallel safe
as $$
begin
    return array(
        select key
        from (
            select member.key
            from jsonb_each(_different_keys.after) as member
            -- The bytes first, which recognize most equal values in a fraction of the time.
            where record_image_ne(row(_different_keys.before -> member.key), row(member.value))
                and _different_keys.before -> member.key is distinct from member.value
            union all
            select gone from jsonb_object_keys(_different_keys.before) as gone where not _different_keys.after ? gone
        ) as different
        order by key collate "C");
end
$$;
comment on function pgaudit_wf._different_keys(jsonb, jsonb) is
    'The keys that two JSON objects do not share with the same value, in byte order.';

create function pgaudit_wf._node_delta(before jsonb, after jsonb) returns jsonb
language plpgsql stable
as $$
declare
    old_data jsonb := case jsonb_typeof(_node_delta.before -> 'data')
        when 'object' then _node_delta.before -> 'data' else '{}' end;
    new_data jsonb := case jsonb_typeof(_node_delta.after -> 'data')
        when 'object' then _node_delta.after -> 'data' else '{}' end;
    old_config jsonb := case jsonb_typeof(old_data -> 'config') when 'object' then old_data -> 'config' else '{}' end;
    new_config jsonb := case jsonb_typeof(new_data -> 'config') when 'object' then new_data -> 'config' else '{}' end;
    old_rest jsonb := old_data - '{label,description,type,enabled}'::text[];
    new_rest jsonb := new_data - '{label,description,type,enabled}'::text[];
    delta jsonb := '[]';
    aliases text[];
    key text;
    member text;
    changes jsonb[] := '{}';
begin
    delta := delta || coalesce(pgaudit_wf._text_delta('name', old_data ->> 'label', new_data ->> 'label'), '[]');
    delta := delta || coalesce(
        pgaudit_wf._text_delta('description', old_data ->> 'description', new_data ->> 'description'), '[]');
    delta := delta || coalesce(
        pgaudit_wf._text_delta('type', pgaudit_wf._node_type(_node_delta.before), pgaudit_wf._node_type(_node_delta.after)),
        pgaudit_wf._text_delta('type', _node_delta.before ->> 'type', _node_delta.after ->> 'type'), '[]');
    delta := delta || coalesce(pgaudit_wf._text_delta('enabled',
        coalesce(old_data ->> 'enabled', 'true'), coalesce(new_data ->> 'enabled', 'true')), '[]');

    if old_config <> new_config then
        aliases := array(select config_alias.alias from pgaudit_wf.config_alias);
        if old_config ?| aliases then
            old_config := pgaudit_wf._normalize_config(old_config);
        end if;
        if new_config ?| aliases then
            new_config := pgaudit_wf._normalize_config(new_config);
        end if;
        foreach key in array pgaudit_wf._different_keys(old_config, new_config) loop
            changes := array_append(changes, pgaudit_wf._config_delta(
                key, old_config, new_config, old_config -> key, new_config -> key));
        end loop;
    end if;

    -- What some editors keep next to, or instead of, config.
    if coalesce(jsonb_typeof(old_data -> 'config'), 'object') = 'object'
        and coalesce(jsonb_typeof(new_data -> 'config'), 'object') = 'object'
    then
        old_rest := old_rest - 'config';
        new_rest := new_rest - 'config';
    end if;
    if old_rest <> new_rest then
        foreach key in array pgaudit_wf._different_keys(old_rest, new_rest) loop
            if jsonb_typeof(old_rest -> key) = 'object' and jsonb_typeof(new_rest -> key) = 'object' then
                -- By its members, so that one field of twenty does not read as twenty.
                foreach member in array pgaudit_wf._different_keys(old_rest -> key, new_rest -> key) loop
                    changes := array_append(changes, pgaudit_wf._config_delta(
                        key || '.' || member, old_config, new_config, old_rest -> key -> member, new_rest -> key -> member));
                end loop;
            else
                changes := array_append(changes, pgaudit_wf._config_delta(
                    key, old_config, new_config, old_rest -> key, new_rest -> key));
            end if;
        end loop;
    end if;
    if _node_delta.before -> 'data' is distinct from _node_delta.after -> 'data'
        and (jsonb_typeof(_node_delta.before -> 'data') is distinct from jsonb_typeof(_node_delta.after -> 'data')
            or jsonb_typeof(_node_delta.after -> 'data') <> 'object')
    then
        changes := array_append(changes, pgaudit_wf._config_delta(
            'data', old_config, new_config, _node_delta.before -> 'data', _node_delta.after -> 'data'));
    end if;
    if changes <> '{}' then
        delta := delta || jsonb_build_object('field', 'configuration', 'changes', to_jsonb(changes));
    end if;
    return delta;
end
$$;
comment on function pgaudit_wf._node_delta(jsonb, jsonb) is
    'What changed in one node: a list of {field, before, after} for name, description, type and enabled, and {field: '
    '"configuration", changes: [{key, before, after}]}. Empty if nothing readable did.';

create function pgaudit_wf._edge_key(edge jsonb) returns text
language sql immutable parallel safe
-- A unit separator between the parts, so that ids may hold any usual character; a null handle is an absent one.
return concat(_edge_key.edge ->> 'source', chr(31), _edge_key.edge ->> 'target', chr(31),
    _edge_key.edge ->> 'sourceHandle', chr(31), _edge_key.edge ->> 'targetHandle');
comment on function pgaudit_wf._edge_key(jsonb) is
    'What makes two edges the same connection: source, target, sourceHandle and targetHandle.';

create function pgaudit_wf._connection_ref(edge jsonb, labels jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'from', coalesce(_connection_ref.labels ->> (_connection_ref.edge ->> 'source'), _connection_ref.edge ->> 'source', 'empty'),
        'to', coalesce(_connection_ref.labels ->> (_connection_ref.edge ->> 'target'), _connection_ref.edge ->> 'target', 'empty'),
        'source_handle', nullif(_connection_ref.edge ->> 'sourceHandle', ''),
        'target_handle', nullif(_connection_ref.edge ->> 'targetHandle', '')))
        || jsonb_build_object(
            'from_id', _connection_ref.edge ->> 'source',
            'to_id', _connection_ref.edge ->> 'target');
end
$$;
comment on function pgaudit_wf._connection_ref(jsonb, jsonb) is
    'A connection as a version diff names it: {from, to, from_id, to_id} and source_handle, target_handle where set. labels maps '
    'node ids to labels.';

create function pgaudit_wf._changed_in_place(old_nodes jsonb[], new_nodes jsonb[]) returns jsonb
language plpgsql stable
as $$
declare
    delta jsonb;
    -- An array of SQL, since that grows in place and a jsonb is copied at each step.
    refs jsonb[] := '{}';
begin
    for place in 1..cardinality(new_nodes) loop
        delta := pgaudit_wf._node_delta(old_nodes[place], new_nodes[place]);
        if delta <> '[]' then
            refs := array_append(refs, pgaudit_wf._changed_node_ref(new_nodes[place], delta));
        end if;
    end loop;
    return nullif(to_jsonb(refs), '[]');
end
$$;
comment on function pgaudit_wf._changed_in_place(jsonb[], jsonb[]) is
    'What changed in nodes that are pairs already, by their position; null for nothing readable.';

create function pgaudit_wf._pair_nodes(
    old_nodes jsonb[], new_nodes jsonb[], out added jsonb, out removed jsonb, out changed jsonb
)
language plpgsql stable
as $$
begin
    -- Of several nodes with one id (or none) the first is matched with the first, the second with the second.
    with old as (
        select node, place, coalesce('=' || (node ->> 'id'), '') collate "C" as id,
            row_number() over (partition by coalesce('=' || (node ->> 'id'), '') collate "C" order by place) as occurrence
        from unnest(old_nodes) with ordinality as listed (node, place)
    ), new as (
        select node, place, coalesce('=' || (node ->> 'id'), '') collate "C" as id,
            row_number() over (partition by coalesce('=' || (node ->> 'id'), '') collate "C" order by place) as occurrence
        from unnest(new_nodes) with ordinality as listed (node, place)
    ), pair as (
        select old.node as node_before, old.place as place_before, new.node as node_after, new.place as place_after
        from old full join new on old.id = new.id and old.occurrence = new.occurrence
        where old.node is null or new.node is null
            or old.node <> new.node and (
                old.node -> 'data' is distinct from new.node -> 'data'
                or old.node -> 'type' is distinct from new.node -> 'type')
    ), compared as (
        select pair.*, case when node_before is not null and node_after is not null
            then pgaudit_wf._node_delta(node_before, node_after) end as changes
        from pair
    )
    select
        jsonb_agg(pgaudit_wf._node_ref(node_after) order by place_after) filter (where node_before is null),
        jsonb_agg(pgaudit_wf._node_ref(node_before) order by place_before) filter (where node_after is null),
        jsonb_agg(pgaudit_wf._changed_node_ref(node_after, changes) order by place_after) filter (where changes <> '[]')
        into added, removed, changed
        from compared;
end
$$;
comment on function pgaudit_wf._pair_nodes(jsonb[], jsonb[]) is
    'Nodes that were added, removed and changed, matched by id wherever they are; null for none.';

create function pgaudit_wf._pair_edges(old_edges jsonb, new_edges jsonb, out added jsonb, out removed jsonb)
language plpgsql stable
as $$
begin
    -- Two equal ones in one position are a pair already; which of several with one key they are makes no difference.
    with pair as materialized (
        select old, new, place
        from rows from (jsonb_array_elements(old_edges), jsonb_array_elements(new_edges)) with ordinality as listed (old, new, place)
        where record_image_ne(row(old), row(new))
    ), old as (
        select old as edge, place, pgaudit_wf._edge_key(old) collate "C" as key,
            row_number() over (partition by pgaudit_wf._edge_key(old) collate "C" order by place) as occurrence
        from pair where old is not null
    ), new as (
        select new as edge, place, pgaudit_wf._edge_key(new) collate "C" as key,
            row_number() over (partition by pgaudit_wf._edge_key(new) collate "C" order by place) as occurrence
        from pair where new is not null
    )
    select
        jsonb_agg(new.edge order by new.place) filter (where old.edge is null),
        jsonb_agg(old.edge order by old.place) filter (where new.edge is null)
        into added, removed
        from old full join new on old.key = new.key and old.occurrence = new.occurrence
        where old.edge is null or new.edge is null;
end
$$;
comment on function pgaudit_wf._pair_edges(jsonb, jsonb) is
    'Edges that were added and removed, matched by what they connect; null for none.';

create function pgaudit_wf._connection_refs(edges jsonb, labels jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    return (
        select jsonb_agg(pgaudit_wf._connection_ref(edge, labels) order by place)
        from jsonb_array_elements(edges) with ordinality as listed (edge, place));
end
$$;
comment on function pgaudit_wf._connection_refs(jsonb, jsonb) is '_connection_ref() of each edge; null for none.';

create function pgaudit_wf._snapshot_diff(
    before jsonb, after jsonb, before_nodes jsonb, before_edges jsonb, after_nodes jsonb, after_edges jsonb
) returns jsonb
language plpgsql stable
-- The planner expects many rows of JSON functions, and would JIT-compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    old_nodes constant jsonb := pgaudit_wf._graph_array(_snapshot_diff.before_nodes, 'nodes');
    new_nodes constant jsonb := pgaudit_wf._graph_array(_snapshot_diff.after_nodes, 'nodes');
    old_edges constant jsonb := pgaudit_wf._graph_array(_snapshot_diff.before_edges, 'edges');
    new_edges constant jsonb := pgaudit_wf._graph_array(_snapshot_diff.after_edges, 'edges');
    settings jsonb := '[]';
    old_node jsonb;
    new_node jsonb;
    -- Arrays of SQL, since those grow in place and a jsonb is copied at each step.
    old_different jsonb[] := '{}';
    new_different jsonb[] := '{}';
    in_place boolean := true;
    nodes_added jsonb;
    nodes_removed jsonb;
    nodes_changed jsonb;
    edges_added jsonb;
    edges_removed jsonb;
    labels jsonb;
    field text;
    has_changes boolean;
begin
    foreach field in array '{name,description,visibility,enabled}'::text[] loop
        if _snapshot_diff.before ->> field is distinct from _snapshot_diff.after ->> field then
            settings := settings || coalesce(pgaudit_wf._text_delta(
                field, _snapshot_diff.before ->> field, _snapshot_diff.after ->> field), '[]');
        end if;
    end loop;

    -- Most saves leave the nodes in their positions and most nodes unchanged: those cost one comparison.
    for place in 0 .. greatest(jsonb_array_length(old_nodes), jsonb_array_length(new_nodes)) - 1 loop
        if not pgaudit_wf._same_node(old_nodes -> place, new_nodes -> place) then
            old_node := old_nodes -> place;
            new_node := new_nodes -> place;
            in_place := in_place and coalesce(old_node ->> 'id' = new_node ->> 'id', false);
            if old_node is not null then
                old_different := array_append(old_different, old_node);
            end if;
            if new_node is not null then
                new_different := array_append(new_different, new_node);
            end if;
        end if;
    end loop;
    if not in_place then
        select added, removed, changed into nodes_added, nodes_removed, nodes_changed
        from pgaudit_wf._pair_nodes(old_different, new_different);
    elsif new_different <> '{}' then
        nodes_changed := pgaudit_wf._changed_in_place(old_different, new_different);
    end if;

    if record_image_ne(row(old_edges), row(new_edges)) then
        select added, removed into edges_added, edges_removed from pgaudit_wf._pair_edges(old_edges, new_edges);
        if edges_added is not null or edges_removed is not null then
            -- The newer label where both know the node; of repeated keys jsonb keeps the last.
            select coalesce(jsonb_object_agg(node ->> 'id', pgaudit_wf._node_label(node) order by age, place desc), '{}')
                into labels
                from (
                    select 1 as age, node, place from jsonb_array_elements(old_nodes) with ordinality as listed (node, place)
                    union all
                    select 2, node, place from jsonb_array_elements(new_nodes) with ordinality as listed (node, place)
                ) as known
                where node ->> 'id' is not null;
            edges_added := pgaudit_wf._connection_refs(edges_added, labels);
            edges_removed := pgaudit_wf._connection_refs(edges_removed, labels);
        end if;
    end if;

    -- Another order, another edge id, null for absent: nothing to list, and yet another definition with another hash.
    has_changes := settings <> '[]' or nodes_added is not null or nodes_removed is not null or nodes_changed is not null
        or edges_added is not null or edges_removed is not null
        or not pgaudit_wf.same_definition(old_nodes, old_edges, new_nodes, new_edges);
    return jsonb_build_object(
        'settings', settings,
        'nodes_added', coalesce(nodes_added, '[]'),
        'nodes_removed', coalesce(nodes_removed, '[]'),
        'nodes_changed', coalesce(nodes_changed, '[]'),
        'connections_added', coalesce(edges_added, '[]'),
        'connections_removed', coalesce(edges_removed, '[]'),
        'has_changes', has_changes);
end
$$;
comment on function pgaudit_wf._snapshot_diff(jsonb, jsonb, jsonb, jsonb, jsonb, jsonb) is
    'version_diff() for callers that already have nodes and edges: taking them out of a snapshot copies them.';

create function pgaudit_wf.version_diff(before jsonb, after jsonb) returns jsonb
language sql stable
return pgaudit_wf._snapshot_diff(
    version_diff.before, version_diff.after,
    version_diff.before -> 'nodes', version_diff.before -> 'edges',
    version_diff.after -> 'nodes', version_diff.after -> 'edges');
comment on function pgaudit_wf.version_diff(jsonb, jsonb) is
    'What changed between two snapshots {name, description, visibility, enabled, nodes, edges}, for people: {settings, '
    'nodes_added, nodes_removed, nodes_changed, connections_added, connections_removed, has_changes}. Either may be null: '
    'it did not exist. Nodes are matched by id, connections by source, target and handles; canvas state does not count as a change. '
    'has_changes is also true where only something unlisted differs (order, an edge''s id or data) that changes the hash.';
