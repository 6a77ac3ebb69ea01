-- The canonical texts of the nodes of workflows that are being edited, so that a save only pays for the nodes that it changes.
-- Nothing depends on these rows: where they are missing, or belong to another version, they are recomputed.

create unlogged table pgaudit_wf.canonical_cache (
    workflow_id text primary key,
    version integer not null,
    aliases jsonb not null,
    edges text,
    written_at timestamptz not null default now()
) with (fillfactor = 70);
comment on table pgaudit_wf.canonical_cache is
    'For which version of a workflow canonical_cache_node holds the canonical texts. '
    'May be emptied at any time, as a crash does; pgaudit-wf maintain removes what was not saved for a month.';
comment on column pgaudit_wf.canonical_cache.workflow_id is 'Id of the workflow, as in workflow_history.';
comment on column pgaudit_wf.canonical_cache.version is 'The version whose texts these are.';
comment on column pgaudit_wf.canonical_cache.aliases is 'config_alias at that time, {alias: canonical_name}.';
comment on column pgaudit_wf.canonical_cache.edges is 'canonical_edges() of the version; null for none.';
comment on column pgaudit_wf.canonical_cache.written_at is 'When the version was saved.';

create unlogged table pgaudit_wf.canonical_cache_node (
    workflow_id text,
    place integer,
    node text not null,
    primary key (workflow_id, place)
) with (fillfactor = 70);
comment on table pgaudit_wf.canonical_cache_node is 'Canonical text of each node of the version that canonical_cache names.';
comment on column pgaudit_wf.canonical_cache_node.workflow_id is 'Id of the workflow, as in workflow_history.';
comment on column pgaudit_wf.canonical_cache_node.place is 'Index in the array of nodes, from 0.';
comment on column pgaudit_wf.canonical_cache_node.node is 'The element of _canonical_nodes().';

-- Compressing a node of several kilobytes with pglz takes longer than reading it back saves.
do $$
begin
    alter table pgaudit_wf.canonical_cache alter column edges set compression lz4;
    alter table pgaudit_wf.canonical_cache_node alter column node set compression lz4;
exception
    when feature_not_supported or invalid_parameter_value then
        alter table pgaudit_wf.canonical_cache alter column edges set storage external;
        alter table pgaudit_wf.canonical_cache_node alter column node set storage external;
end
$$;

create function pgaudit_wf._hash_next_version(
    workflow_id text, version integer, old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb
) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    aliases text[];
    spelling jsonb;
    cached_version integer;
    cached_spelling jsonb;
    cached_edges text;
    cached_nodes text[];
    usable boolean;
    new_node jsonb;
    origin integer;
    places_by_id jsonb;
    nodes text[];
    edges text;
    moved integer[] := '{}';
    changed integer[] := '{}';
    changed_nodes jsonb[] := '{}';
    changed_texts text[];
begin
    old_nodes := pgaudit_wf._graph_array(_hash_next_version.old_nodes, 'nodes');
    new_nodes := pgaudit_wf._graph_array(_hash_next_version.new_nodes, 'nodes');
    new_edges := pgaudit_wf._graph_array(_hash_next_version.new_edges, 'edges');
    select coalesce(array_agg(a.alias), '{}'), coalesce(jsonb_object_agg(a.alias, a.canonical_name), '{}')
        into aliases, spelling from pgaudit_wf.config_alias as a;
    select c.version, c.aliases, c.edges, array(
            select n.node from pgaudit_wf.canonical_cache_node as n where n.workflow_id = c.workflow_id order by n.place)
        into cached_version, cached_spelling, cached_edges, cached_nodes
        from pgaudit_wf.canonical_cache as c where c.workflow_id = _hash_next_version.workflow_id;
    -- The count: rows may be removed at any time, also while we wait for the lock on one of them.
    usable := coalesce(cached_version = _hash_next_version.version and cached_spelling = spelling
        and cardinality(cached_nodes) = jsonb_array_length(old_nodes), false);

    if not usable then
        -- As if nothing had been there before.
        old_nodes := '[]';
        old_edges := null;
        cached_nodes := '{}';
    end if;
    nodes := cached_nodes[:jsonb_array_length(new_nodes)];
    for place in 0 .. jsonb_array_length(new_nodes) - 1 loop
        if not pgaudit_wf._same_node(old_nodes -> place, new_nodes -> place) then
            new_node := new_nodes -> place;
            origin := place;
            if old_nodes -> place ->> 'id' is distinct from new_node ->> 'id' then
                -- Another node came or went before it.
                if places_by_id is null then
                    places_by_id := (
                        select coalesce(jsonb_object_agg(node ->> 'id', position - 1), '{}')
                        from jsonb_array_elements(old_nodes) with ordinality as listed (node, position) where node ->> 'id' is not null);
                end if;
                origin := places_by_id ->> (new_node ->> 'id');
            end if;
            if pgaudit_wf._same_node(old_nodes -> origin, new_node) then
                moved := array_append(moved, place);
                nodes[place + 1] := cached_nodes[origin + 1];
            else
                changed := array_append(changed, place);
                changed_nodes := array_append(changed_nodes, new_node);
            end if;
        end if;
    end loop;
    if changed <> '{}' then
        changed_texts := pgaudit_wf._canonical_nodes(changed_nodes, aliases);
        for i in 1 .. cardinality(changed) loop
            nodes[changed[i] + 1] := changed_texts[i];
        end loop;
    end if;
    edges := case when record_image_ne(row(old_edges), row(new_edges))
        then pgaudit_wf._canonical_edges(new_edges) else cached_edges end;

    -- First, as its lock is what keeps _prune_canonical_cache() away from the nodes.
    insert into pgaudit_wf.canonical_cache (workflow_id, version, aliases, edges)
    values (_hash_next_version.workflow_id, _hash_next_version.version + 1, spelling, edges)
    on conflict on constraint canonical_cache_pkey do update
        set version = excluded.version, aliases = excluded.aliases, edges = excluded.edges, written_at = excluded.written_at;
    if changed <> '{}' or moved <> '{}' then
        insert into pgaudit_wf.canonical_cache_node (workflow_id, place, node)
        select _hash_next_version.workflow_id, p.place, nodes[p.place + 1] from unnest(changed || moved) as p (place)
        on conflict on constraint canonical_cache_node_pkey do update set node = excluded.node;
    end if;
    if not usable or jsonb_array_length(new_nodes) < cardinality(cached_nodes) then
        delete from pgaudit_wf.canonical_cache_node as n
        where n.workflow_id = _hash_next_version.workflow_id and n.place >= jsonb_array_length(new_nodes);
    end if;
    return pgaudit_wf.content_hash(pgaudit_wf._join_definition(nodes, edges));
end
$$;
comment on function pgaudit_wf._hash_next_version(text, integer, jsonb, jsonb, jsonb, jsonb) is
    'hash_definition(new_nodes, new_edges) at the cost of what differs from old_nodes and old_edges, '
    'which are those of the newest version: its number is version. The caller holds the lock on the workflow.';

create function pgaudit_wf._prune_canonical_cache(unused_for interval) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    pruned bigint;
begin
    with unused as (
        delete from pgaudit_wf.canonical_cache as c
        where c.workflow_id in (
            select old.workflow_id from pgaudit_wf.canonical_cache as old
            where old.written_at < now() - _prune_canonical_cache.unused_for for update skip locked)
        returning c.workflow_id
    ), gone as (
        delete from pgaudit_wf.canonical_cache_node as n using unused as u where n.workflow_id = u.workflow_id
    )
    select count(*) into pruned from unused;
    return pruned;
end
$$;
comment on function pgaudit_wf._prune_canonical_cache(interval) is
    'Lets go of the canonical texts of workflows without a new version for so long; returns of how many. Their next save makes them again.';
