-- The content hash. canonical_definition(nodes, edges) is canonical_json(normalize_definition(nodes, edges)), written out level
-- by level: two statements for the whole graph where the general way builds the normalised document and then needs one for
-- every object in it. That takes a third of the time, and is what keeps a meaningful save inside its budget; the tests hold
-- the two ways together.

create or replace function pgaudit_wf.canonical_value(value jsonb, depth int)
returns text
language sql
immutable
parallel safe
return case jsonb_typeof(canonical_value.value)
    when 'string' then canonical_value.value::text
    when 'object' then pgaudit_wf.canonical_json_at(canonical_value.value, canonical_value.depth)
    when 'array' then pgaudit_wf.canonical_json_at(canonical_value.value, canonical_value.depth)
    when 'number' then
        case when length(canonical_value.value::text) < 16 and strpos(canonical_value.value::text, '.') = 0
            then canonical_value.value::text
            else pgaudit_wf.canonical_number(canonical_value.value::numeric) end
    else canonical_value.value::text
end;

comment on function pgaudit_wf.canonical_value(jsonb, int) is
    'canonical_json_at for a value that is most often a string. Not strict, so that the planner inlines it. Internal.';


create or replace function pgaudit_wf.canonical_definition(nodes jsonb, edges jsonb)
returns text
language plpgsql
stable
parallel safe
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    aliases text[] := array(select config_alias.alias from pgaudit_wf.config_alias);
    edge_text text;
    node_text text;
begin
    select string_agg(
        case jsonb_typeof(edge)
            -- concat_ws leaves out what is null, which is what an absent key gives; a JSON null is not.
            when 'object' then concat('{', concat_ws(',',
                '"data":' || pgaudit_wf.canonical_value(edge -> 'data', 4),
                '"id":' || pgaudit_wf.canonical_value(edge -> 'id', 4),
                '"source":' || pgaudit_wf.canonical_value(edge -> 'source', 4),
                '"sourceHandle":' || pgaudit_wf.canonical_value(edge -> 'sourceHandle', 4),
                '"target":' || pgaudit_wf.canonical_value(edge -> 'target', 4),
                '"targetHandle":' || pgaudit_wf.canonical_value(edge -> 'targetHandle', 4)), '}')
            else pgaudit_wf.canonical_json_at(edge, 3)
        end, ',')
        into edge_text
        from jsonb_array_elements(pgaudit_wf.graph_array(canonical_definition.edges, 'edges')) as edge;

    select string_agg(
        case jsonb_typeof(node)
            when 'object' then concat('{', concat_ws(',',
                '"data":' || case jsonb_typeof(node -> 'data')
                    when 'object' then (
                        select '{' || coalesce(string_agg(
                            concat_ws(':', to_json(member.key), case
                                when member.key <> 'config' or jsonb_typeof(member.value) <> 'object'
                                then pgaudit_wf.canonical_value(member.value, 5)
                                when member.value ?| aliases
                                then pgaudit_wf.canonical_json_at(pgaudit_wf.normalize_config(member.value), 5)
                                else (
                                    select '{' || coalesce(string_agg(
                                        concat_ws(':', to_json(setting.key), pgaudit_wf.canonical_value(setting.value, 6)),
                                        ',' order by case when octet_length(setting.key) = length(setting.key)
                                            then setting.key else pgaudit_wf.utf16_order(setting.key) end collate "C"), '')
                                        || '}'
                                    from jsonb_each(member.value) as setting)
                            end),
                            ',' order by case when octet_length(member.key) = length(member.key)
                                then member.key else pgaudit_wf.utf16_order(member.key) end collate "C"), '')
                            || '}'
                        from jsonb_each(node -> 'data') as member)
                    else pgaudit_wf.canonical_value(node -> 'data', 4)
                end,
                '"id":' || pgaudit_wf.canonical_value(node -> 'id', 4),
                '"type":' || pgaudit_wf.canonical_value(node -> 'type', 4)), '}')
            else pgaudit_wf.canonical_json_at(node, 3)
        end, ',')
        into node_text
        from jsonb_array_elements(pgaudit_wf.graph_array(canonical_definition.nodes, 'nodes')) as node;

    return pgaudit_wf.canonical_checked(concat('{"edges":[', edge_text, '],"nodes":[', node_text, ']}'));
end
$$;

comment on function pgaudit_wf.canonical_definition(jsonb, jsonb) is
    'The text that is hashed: the RFC 8785 form of normalize_definition(nodes, edges), made in one go.';


create or replace function pgaudit_wf.hash_definition(nodes jsonb, edges jsonb)
returns text
language sql
stable
parallel safe
return encode(sha256(convert_to(
    pgaudit_wf.canonical_definition(hash_definition.nodes, hash_definition.edges), 'UTF8')), 'hex');

comment on function pgaudit_wf.hash_definition(jsonb, jsonb) is
    'The content hash of a workflow: lower-case hex SHA-256 of the RFC 8785 form of normalize_definition(nodes, edges). The same '
    'definition gives the same hash in every version, run and language.';


create or replace function pgaudit_wf.same_definition(
    old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb)
returns boolean
language plpgsql
stable
parallel safe
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    aliases text[];
begin
    -- What was malformed has no definition that the new one could be the same as, and must not keep it from being mended.
    if jsonb_typeof(same_definition.old_nodes) not in ('array', 'null') or jsonb_typeof(same_definition.old_edges) not in ('array', 'null') then
        return false;
    end if;
    -- Pairs by position: a save that only moved nodes never gets further than comparing three fields of each.
    if same_definition.old_edges is distinct from same_definition.new_edges and exists (
        select from rows from (
            jsonb_array_elements(pgaudit_wf.graph_array(same_definition.old_edges, 'edges')),
            jsonb_array_elements(pgaudit_wf.graph_array(same_definition.new_edges, 'edges'))) as pair (old, new)
        where pair.old is distinct from pair.new
            and pgaudit_wf.normalize_edge(pair.old) is distinct from pgaudit_wf.normalize_edge(pair.new))
    then
        return false;
    end if;
    if same_definition.old_nodes is not distinct from same_definition.new_nodes then
        return true;
    end if;
    aliases := array(select config_alias.alias from pgaudit_wf.config_alias);
    return not exists (
        select from rows from (
            jsonb_array_elements(pgaudit_wf.graph_array(same_definition.old_nodes, 'nodes')),
            jsonb_array_elements(pgaudit_wf.graph_array(same_definition.new_nodes, 'nodes'))) as pair (old, new)
        where pair.old is distinct from pair.new
            and (jsonb_typeof(pair.old) is distinct from 'object' or jsonb_typeof(pair.new) is distinct from 'object'
                or pair.old -> 'data' is distinct from pair.new -> 'data'
                or pair.old -> 'id' is distinct from pair.new -> 'id'
                or pair.old -> 'type' is distinct from pair.new -> 'type')
            and pgaudit_wf.normalize_node(pair.old, aliases) is distinct from pgaudit_wf.normalize_node(pair.new, aliases));
end
$$;

comment on function pgaudit_wf.same_definition(jsonb, jsonb, jsonb, jsonb) is
    'Whether two states of a workflow have the same normalised definition, that is, whether nothing but the canvas changed. '
    'Much cheaper than comparing two hashes.';
