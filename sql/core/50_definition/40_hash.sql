-- The content hash. _canonical_definition(nodes, edges) is _canonical_json(normalize_definition(nodes, edges)), written out level
-- by level: two statements for the whole graph where the general way builds the normalized document and then needs one for
-- every object in it. That takes a third of the time; the tests compare the two. A save takes the texts of unchanged nodes
-- from canonical_cache.

create function pgaudit_wf._canonical_edges(edges jsonb) returns text
language plpgsql immutable parallel safe
-- The planner expects many rows of JSON functions, and would JIT-compile the query for a second to run it for a millisecond.
set jit = off
-- For _canonical_json_at(), as in _canonical_json().
set plan_cache_mode = force_generic_plan
as $$
begin
    return (
        select string_agg(
            case jsonb_typeof(edge)
                -- concat_ws leaves out what is null, which is what an absent key gives; a JSON null is not.
                when 'object' then concat('{', concat_ws(',',
                    '"data":' || pgaudit_wf._canonical_value(edge -> 'data', 4),
                    '"id":' || pgaudit_wf._canonical_value(edge -> 'id', 4),
                    '"source":' || pgaudit_wf._canonical_value(edge -> 'source', 4),
                    '"sourceHandle":' || pgaudit_wf._canonical_value(edge -> 'sourceHandle', 4),
                    '"target":' || pgaudit_wf._canonical_value(edge -> 'target', 4),
                    '"targetHandle":' || pgaudit_wf._canonical_value(edge -> 'targetHandle', 4)), '}')
                else pgaudit_wf._canonical_json_at(edge, 3)
            end, ',')
        from jsonb_array_elements(_canonical_edges.edges) as edge);
end
$$;
comment on function pgaudit_wf._canonical_edges(jsonb) is
    'The normalized edges as they appear between the brackets of the text that is hashed; null for none. '
    'Unchecked: _canonical_checked() must see the whole text.';

create function pgaudit_wf._canonical_nodes(nodes jsonb[], aliases text[]) returns text[]
language plpgsql stable parallel safe
-- The planner expects many rows of JSON functions, and would JIT-compile the query for a second to run it for a millisecond.
set jit = off
-- Otherwise a cheaper plan for an array of one node would be made at each save; and for _canonical_json_at().
set plan_cache_mode = force_generic_plan
as $$
begin
    return array(
        select case jsonb_typeof(node)
            when 'object' then concat('{', concat_ws(',',
                '"data":' || case jsonb_typeof(node -> 'data')
                    when 'object' then (
                        select '{' || coalesce(string_agg(
                            concat_ws(':', to_json(member.key), case
                                when member.key <> 'config' or jsonb_typeof(member.value) <> 'object'
                                then pgaudit_wf._canonical_value(member.value, 5)
                                when member.value ?| _canonical_nodes.aliases
                                then pgaudit_wf._canonical_json_at(pgaudit_wf._normalize_config(member.value), 5)
                                else (
                                    select '{' || coalesce(string_agg(
                                        concat_ws(':', to_json(setting.key), pgaudit_wf._canonical_value(setting.value, 6)),
                                        ',' order by pgaudit_wf._utf16_order(setting.key) collate "C"), '')
                                        || '}'
                                    from jsonb_each(member.value) as setting)
                            end),
                            ',' order by pgaudit_wf._utf16_order(member.key) collate "C"), '')
                            || '}'
                        from jsonb_each(node -> 'data') as member)
                    else pgaudit_wf._canonical_value(node -> 'data', 4)
                end,
                '"id":' || pgaudit_wf._canonical_value(node -> 'id', 4),
                '"type":' || pgaudit_wf._canonical_value(node -> 'type', 4)), '}')
            else pgaudit_wf._canonical_json_at(node, 3)
        end
        from unnest(_canonical_nodes.nodes) as node);
end
$$;
comment on function pgaudit_wf._canonical_nodes(jsonb[], text[]) is
    'Each node, normalized, as it appears in the text that is hashed. aliases is every alias of config_alias, read once by the '
    'caller. Unchecked: _canonical_checked() must see the whole text.';

create function pgaudit_wf._join_definition(nodes text[], edges text) returns text
language sql stable parallel safe
return pgaudit_wf._canonical_checked(
    concat('{"edges":[', _join_definition.edges, '],"nodes":[', array_to_string(_join_definition.nodes, ','), ']}'));
comment on function pgaudit_wf._join_definition(text[], text) is
    'The text that is hashed, made of what _canonical_nodes() and _canonical_edges() return.';

create function pgaudit_wf._canonical_definition(nodes jsonb, edges jsonb) returns text
language plpgsql stable parallel safe
as $$
begin
    return pgaudit_wf._join_definition(
        pgaudit_wf._canonical_nodes(
            array(select jsonb_array_elements(pgaudit_wf._graph_array(_canonical_definition.nodes, 'nodes'))),
            array(select config_alias.alias from pgaudit_wf.config_alias)),
        pgaudit_wf._canonical_edges(pgaudit_wf._graph_array(_canonical_definition.edges, 'edges')));
end
$$;
comment on function pgaudit_wf._canonical_definition(jsonb, jsonb) is
    'The text that is hashed: the RFC 8785 form of normalize_definition(nodes, edges), made in one go.';

create function pgaudit_wf.content_hash(canonical text) returns text
language sql stable strict parallel safe
return encode(sha256(convert_to(content_hash.canonical, 'UTF8')), 'hex');
comment on function pgaudit_wf.content_hash(text) is 'Lower-case hex SHA-256 of the UTF-8 bytes of a canonical text.';

create function pgaudit_wf.hash_definition(nodes jsonb, edges jsonb) returns text
language sql stable parallel safe
return pgaudit_wf.content_hash(pgaudit_wf._canonical_definition(hash_definition.nodes, hash_definition.edges));
comment on function pgaudit_wf.hash_definition(jsonb, jsonb) is
    'The content hash of a workflow: lower-case hex SHA-256 of the RFC 8785 form of normalize_definition(nodes, edges). The same '
    'definition gives the same hash in every version, run and language.';

create function pgaudit_wf._same_node(before jsonb, after jsonb) returns boolean
language sql immutable parallel safe
return not record_image_ne(row(_same_node.before), row(_same_node.after))
    or (coalesce(jsonb_typeof(_same_node.before) = 'object' and jsonb_typeof(_same_node.after) = 'object', false)
        and _same_node.before -> 'data' is not distinct from _same_node.after -> 'data'
        and _same_node.before -> 'id' is not distinct from _same_node.after -> 'id'
        and _same_node.before -> 'type' is not distinct from _same_node.after -> 'type');
comment on function pgaudit_wf._same_node(jsonb, jsonb) is
    'Whether two nodes are equal as stored, apart from the canvas; false for two that are equal only by config_alias. '
    'Bytes first: most are equal, and comparing JSON takes several times as long to find that out.';

create function pgaudit_wf.same_definition(old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb) returns boolean
language plpgsql stable parallel safe
as $$
declare
    aliases text[];
begin
    -- A malformed state has no definition to compare with, and must not keep the new one from being saved.
    if jsonb_typeof(same_definition.old_nodes) not in ('array', 'null')
        or jsonb_typeof(same_definition.old_edges) not in ('array', 'null')
    then
        return false;
    end if;
    old_nodes := pgaudit_wf._graph_array(same_definition.old_nodes, 'nodes');
    old_edges := pgaudit_wf._graph_array(same_definition.old_edges, 'edges');
    new_nodes := pgaudit_wf._graph_array(same_definition.new_nodes, 'nodes');
    new_edges := pgaudit_wf._graph_array(same_definition.new_edges, 'edges');
    -- Pairs by position, their bytes first.
    if record_image_ne(row(old_edges), row(new_edges)) and exists (
        select from rows from (jsonb_array_elements(old_edges), jsonb_array_elements(new_edges)) as pair (old, new)
        where record_image_ne(row(pair.old), row(pair.new))
            and pgaudit_wf._normalize_edge(pair.old) is distinct from pgaudit_wf._normalize_edge(pair.new))
    then
        return false;
    end if;
    if jsonb_array_length(old_nodes) <> jsonb_array_length(new_nodes) then
        return false;
    end if;
    for place in 0 .. jsonb_array_length(new_nodes) - 1 loop
        if not pgaudit_wf._same_node(old_nodes -> place, new_nodes -> place) then
            if aliases is null then
                aliases := array(select config_alias.alias from pgaudit_wf.config_alias);
            end if;
            if pgaudit_wf._normalize_node(old_nodes -> place, aliases)
                is distinct from pgaudit_wf._normalize_node(new_nodes -> place, aliases)
            then
                return false;
            end if;
        end if;
    end loop;
    return true;
end
$$;
comment on function pgaudit_wf.same_definition(jsonb, jsonb, jsonb, jsonb) is
    'Whether two states of a workflow have the same normalized definition, that is, whether only the canvas changed. '
    'Much cheaper than comparing two hashes.';
