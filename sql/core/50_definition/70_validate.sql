-- Problems of a definition: an editor shows them, and the guard refuses to enable, list or run a workflow that has any. A draft may
-- be saved with any number of them.

create table pgaudit_wf.action_schema (
    action_type text primary key,
    required_fields text[] not null check (array_position(required_fields, null) is null),
    description text
);
comment on table pgaudit_wf.action_schema is
    'Which configuration fields each action or trigger type needs before its workflow may be enabled, listed or run. A type '
    'that is not listed needs none. The rows that come with pgaudit_wf are examples: change them to what your actions need.';
comment on column pgaudit_wf.action_schema.action_type is
    'The value of data.config.actionType, or of data.config.triggerType for a trigger.';
comment on column pgaudit_wf.action_schema.required_fields is
    'Keys of data.config, by their canonical names (see config_alias), that must be there and not empty.';
comment on column pgaudit_wf.action_schema.description is 'What the action does, for maintainers of this table.';

insert into pgaudit_wf.action_schema (action_type, required_fields, description) values
    ('web3/read-contract', '{network,contractAddress,abi,abiFunction}', 'Calls a view function of a contract.'),
    ('web3/write-contract', '{network,contractAddress,abi,abiFunction}', 'Sends a transaction to a contract.'),
    ('HTTP Request', '{endpoint,httpMethod}', 'Calls a web API.'),
    ('Schedule', '{scheduleCron}', 'Starts the workflow by the clock.');

create function pgaudit_wf.validate_definition(nodes jsonb, edges jsonb) returns table (node_id text, field text, code text, message text)
language plpgsql stable parallel safe rows 10
-- The planner expects many rows of JSON functions, and would JIT-compile the query for a second to run it for a millisecond.
set jit = off
as $$
#variable_conflict use_column
declare
    listed_nodes jsonb := case jsonb_typeof(validate_definition.nodes)
        when 'array' then validate_definition.nodes else '[]' end;
    listed_edges jsonb := case jsonb_typeof(validate_definition.edges)
        when 'array' then validate_definition.edges else '[]' end;
begin
    return query
    select null::text, given.name, 'not_an_array', format('%s is a JSON %s, not an array', given.name, jsonb_typeof(given.value))
    from (values ('nodes', validate_definition.nodes), ('edges', validate_definition.edges)) as given (name, value)
    where jsonb_typeof(given.value) not in ('array', 'null');

    return query
    with item as (
        select node, place, node ->> 'id' as id
        from jsonb_array_elements(listed_nodes) with ordinality as listed (node, place)
    ), problem as (
        select place, 0 as rank, null::text as id, null::text as field, 'not_an_object' as code,
            format('node %s is a JSON %s, not an object', place, jsonb_typeof(node)) as message
        from item where jsonb_typeof(node) <> 'object'
        union all
        select place, 1, null, 'id', 'missing_id', format('node %s (%s) has no id', place, pgaudit_wf._node_label(node))
        from item where jsonb_typeof(node) = 'object' and coalesce(id, '') = ''
        union all
        select min(place), 2, id, 'id', 'duplicate_id', format('%s nodes have the id %s', count(*), id)
        from item where id <> '' group by id having count(*) > 1
        union all
        select item.place, 3, item.id, required.field, 'missing_field',
            format('%s (%s) needs %s', pgaudit_wf._node_label(node), action_schema.action_type, required.field)
        from item
        join pgaudit_wf.action_schema on action_schema.action_type
            = coalesce(node -> 'data' -> 'config' ->> 'actionType', node -> 'data' -> 'config' ->> 'triggerType')
        cross join lateral (
            select pgaudit_wf._normalize_config(node -> 'data' -> 'config') as config offset 0) as normalized
        cross join lateral unnest(action_schema.required_fields) as required (field)
        where btrim(coalesce(normalized.config ->> required.field, '')) in ('', '[]', '{}')
    )
    select problem.id, problem.field, problem.code, problem.message
    from problem order by problem.place, problem.rank, problem.field;

    return query
    with known as (
        select distinct node ->> 'id' as id from jsonb_array_elements(listed_nodes) as node where node ->> 'id' <> ''
    ), item as (
        select edge, place, edge ->> 'id' as id
        from jsonb_array_elements(listed_edges) with ordinality as listed (edge, place)
    ), problem as (
        select place, 0 as rank, null::text as node, null::text as field, 'not_an_object' as code,
            format('edge %s is a JSON %s, not an object', place, jsonb_typeof(edge)) as message
        from item where jsonb_typeof(edge) <> 'object'
        union all
        select min(place), 1, null, 'id', 'duplicate_id', format('%s edges have the id %s', count(*), id)
        from item where id <> '' group by id having count(*) > 1
        union all
        select place, 2, edge ->> ends.name, ends.name, 'dangling_edge',
            case when coalesce(edge ->> ends.name, '') = ''
                then format('edge %s has no %s', coalesce(item.id, place::text), ends.name)
                else format('edge %s has %s %s, which is not a node of this workflow',
                    coalesce(item.id, place::text), ends.name, edge ->> ends.name) end
        from item
        cross join (values ('source'), ('target')) as ends (name)
        left join known on known.id = edge ->> ends.name
        where jsonb_typeof(edge) = 'object' and known.id is null
    )
    select problem.node, problem.field, problem.code, problem.message
    from problem order by problem.place, problem.rank, problem.field;
end
$$;
comment on function pgaudit_wf.validate_definition(jsonb, jsonb) is
    'The problems of a workflow, none if it may run: not_an_array, not_an_object, missing_id, duplicate_id, missing_field (by '
    'action_schema, under canonical names, so that legacy spellings are accepted) and dangling_edge (node_id is the id that the '
    'edge names). field is the configuration key, the edge''s end, or id.';
