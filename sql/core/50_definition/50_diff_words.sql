-- The words of a version diff: what a node, a connection, a configuration value and a whole diff are called when people read them.

create function pgaudit_wf._try_jsonb(value text) returns jsonb
language plpgsql immutable strict
-- Not parallel safe: the exception block is a subtransaction.
as $$
begin
    return _try_jsonb.value::jsonb;
exception
    when data_exception or program_limit_exceeded then
        return null;
end
$$;
comment on function pgaudit_wf._try_jsonb(text) is 'The text as JSON, or null if it is not JSON, or not JSON that jsonb can hold.';

create function pgaudit_wf._readable_text(value text) returns text
language sql immutable parallel safe
return case
    when coalesce(_readable_text.value, '') = '' then 'empty'
    when strpos(_readable_text.value, '{{@') = 0 then _readable_text.value
    else regexp_replace(_readable_text.value, e'\\{\\{@[^:}]+:([^}]+)\\}\\}', e'{{\\1}}', 'g')
end;
comment on function pgaudit_wf._readable_text(text) is
    'A configuration text for people: template references {{@nodeId:Display.field}} read {{Display.field}}, nothing reads '
    '"empty".';

create function pgaudit_wf._node_type(node jsonb) returns text
language sql immutable parallel safe
return coalesce(
    nullif(_node_type.node -> 'data' ->> 'type', ''), nullif(_node_type.node ->> 'type', ''), 'node');
comment on function pgaudit_wf._node_type(jsonb) is 'A node''s category: data.type, else its type, else "node".';

create function pgaudit_wf._node_label(node jsonb) returns text
language sql immutable parallel safe
return coalesce(
    nullif(btrim(_node_label.node -> 'data' ->> 'label'), ''),
    nullif(_node_label.node -> 'data' -> 'config' ->> 'actionType', ''),
    nullif(_node_label.node -> 'data' -> 'config' ->> 'triggerType', ''),
    upper(left(pgaudit_wf._node_type(_node_label.node), 1)) || substr(pgaudit_wf._node_type(_node_label.node), 2));
comment on function pgaudit_wf._node_label(jsonb) is
    'What people call a node: its label, else its action or trigger type, else its category, capitalized.';

-- PL/pgSQL for what is called with more than a variable: such a SQL function is not inlined, and before PostgreSQL 18 is planned
-- again in each transaction, which takes longer than all the rest of a small diff.

create function pgaudit_wf._node_ref(node jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    return jsonb_build_object(
        'id', _node_ref.node ->> 'id',
        'label', pgaudit_wf._node_label(_node_ref.node),
        'node_type', pgaudit_wf._node_type(_node_ref.node));
end
$$;
comment on function pgaudit_wf._node_ref(jsonb) is 'A node as a version diff names it: {id, label, node_type}.';

create function pgaudit_wf._changed_node_ref(node jsonb, deltas jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    return pgaudit_wf._node_ref(_changed_node_ref.node) || jsonb_build_object(
        'action_type', _changed_node_ref.node -> 'data' -> 'config' ->> 'actionType',
        'deltas', _changed_node_ref.deltas);
end
$$;
comment on function pgaudit_wf._changed_node_ref(jsonb, jsonb) is
    'A changed node as a version diff names it: {id, label, node_type, action_type, deltas}.';

create function pgaudit_wf._abi_type(input jsonb) returns text
language plpgsql immutable strict parallel safe
as $$
begin
    if _abi_type.input ->> 'type' like 'tuple%' and jsonb_typeof(_abi_type.input -> 'components') = 'array' then
        return '(' || coalesce((
                select string_agg(pgaudit_wf._abi_type(component), ',')
                from jsonb_array_elements(_abi_type.input -> 'components') as component), '')
            || ')' || substr(_abi_type.input ->> 'type', 6);
    end if;
    return coalesce(_abi_type.input ->> 'type', '');
end
$$;
comment on function pgaudit_wf._abi_type(jsonb) is
    'The type of an ABI parameter as it appears in a function signature: a tuple is its components.';

create function pgaudit_wf._argument_text(config jsonb, value jsonb) returns text
language plpgsql immutable
as $$
declare
    arguments jsonb := case jsonb_typeof(_argument_text.value)
        when 'string' then pgaudit_wf._try_jsonb(_argument_text.value #>> '{}') else _argument_text.value end;
    abi jsonb := case jsonb_typeof(_argument_text.config -> 'abi')
        when 'string' then pgaudit_wf._try_jsonb(_argument_text.config ->> 'abi') else _argument_text.config -> 'abi' end;
    inputs jsonb;
    named text;
begin
    if jsonb_typeof(arguments) is distinct from 'array' then
        return null;
    end if;
    if jsonb_typeof(abi) = 'array' then
        -- An overloaded function is stored by its signature; a name alone is resolved by the number of arguments.
        select entry -> 'inputs' into inputs
        from jsonb_array_elements(abi) with ordinality as item (entry, position)
        where entry ->> 'name' = split_part(_argument_text.config ->> 'abiFunction', '(', 1)
            and coalesce(entry ->> 'type', 'function') = 'function'
            and jsonb_typeof(entry -> 'inputs') = 'array'
        order by
            (entry ->> 'name') || '(' || coalesce((
                select string_agg(pgaudit_wf._abi_type(input), ',' order by place)
                from jsonb_array_elements(entry -> 'inputs') with ordinality as parameter (input, place)), '') || ')'
                = _argument_text.config ->> 'abiFunction' desc,
            jsonb_array_length(entry -> 'inputs') = jsonb_array_length(arguments) desc,
            position
        limit 1;
    end if;
    select e'{\n' || string_agg(
            '  ' || to_json(case when occurrence = 1 then name else 'arg' || (place - 1) end)::text || ': ' || argument::text,
            e',\n' order by place) || e'\n}'
        into named
        from (
            select argument, place, name, row_number() over (partition by name order by place) as occurrence
            from (
                select argument, place,
                    coalesce(nullif(btrim(inputs -> (place::integer - 1) ->> 'name'), ''), 'arg' || (place - 1)) as name
                from jsonb_array_elements(arguments) with ordinality as given (argument, place)
                -- Editors pad the array with empty strings past the function's own parameters.
                where inputs is null or place <= jsonb_array_length(inputs) or argument <> '""'
            ) as labeled
        ) as counted;
    return pgaudit_wf._readable_text(coalesce(named, arguments::text));
end
$$;
comment on function pgaudit_wf._argument_text(jsonb, jsonb) is
    'Contract arguments (a positional array, or its JSON text) for people: a JSON object by the parameter names of the '
    'function that abiFunction names in the config''s own abi, argN where there is no name. Null if value is not an array.';

create function pgaudit_wf._condition_text(condition_group jsonb, depth integer default 0) returns text
language plpgsql immutable strict parallel safe
as $$
begin
    return (
        select string_agg(
            repeat('  ', _condition_text.depth) || place || '. '
            || case when jsonb_typeof(rule -> 'rules') = 'array'
                then concat_ws(e'\n', 'group', pgaudit_wf._condition_text(rule, _condition_text.depth + 1))
                else concat_ws(' ',
                    coalesce(nullif(btrim(coalesce(rule ->> 'leftOperand', rule ->> 'field')), ''), '""'),
                    rule ->> 'operator',
                    nullif(btrim(coalesce(rule ->> 'rightOperand', rule ->> 'value')), ''))
            end,
            e'\n' || repeat('  ', _condition_text.depth)
            || upper(coalesce(nullif(_condition_text.condition_group ->> 'logic', ''), 'and')) || e'\n'
            order by place)
        from jsonb_array_elements(_condition_text.condition_group -> 'rules') with ordinality as listed (rule, place));
end
$$;
comment on function pgaudit_wf._condition_text(jsonb, integer) is
    'A condition group {logic, rules} as a numbered list of its rules with AND or OR between them, groups in groups indented.';

create function pgaudit_wf._config_text(config jsonb, key text, value jsonb) returns text
language plpgsql immutable
as $$
declare
    tree jsonb := _config_text.value;
    named text;
begin
    if _config_text.key = 'functionArgs' then
        named := pgaudit_wf._argument_text(_config_text.config, _config_text.value);
    elsif jsonb_typeof(tree) = 'object' or tree #>> '{}' like '{%"rules"%' then
        if jsonb_typeof(tree) = 'string' then
            tree := pgaudit_wf._try_jsonb(tree #>> '{}');
        end if;
        if jsonb_typeof(tree -> 'group' -> 'rules') = 'array' then
            tree := tree -> 'group';
        end if;
        if jsonb_typeof(tree -> 'rules') = 'array' and (tree ? 'logic' or _config_text.key = 'conditionConfig') then
            named := pgaudit_wf._readable_text(pgaudit_wf._condition_text(tree));
        end if;
    end if;
    -- #>> '{}' is the text of a string and of anything else its JSON; of a JSON null it is null.
    return coalesce(named, pgaudit_wf._readable_text(_config_text.value #>> '{}'));
end
$$;
comment on function pgaudit_wf._config_text(jsonb, text, jsonb) is
    'One configuration value for people, in full: contract arguments by name, a condition tree as a rule list, template '
    'references without node ids, "empty" for nothing. config is the whole configuration the value stands in.';

create function pgaudit_wf._config_delta(key text, old_config jsonb, new_config jsonb, before jsonb, after jsonb) returns jsonb
language plpgsql immutable
as $$
begin
    return jsonb_build_object(
        'key', _config_delta.key,
        'before', pgaudit_wf._config_text(_config_delta.old_config, _config_delta.key, _config_delta.before),
        'after', pgaudit_wf._config_text(_config_delta.new_config, _config_delta.key, _config_delta.after));
end
$$;
comment on function pgaudit_wf._config_delta(text, jsonb, jsonb, jsonb, jsonb) is
    'A changed configuration value as {key, before, after}, for people.';

create function pgaudit_wf._text_delta(field text, before text, after text) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    if coalesce(_text_delta.before, '') = coalesce(_text_delta.after, '') then
        return null;
    end if;
    return jsonb_build_object(
        'field', _text_delta.field,
        'before', coalesce(nullif(_text_delta.before, ''), 'empty'),
        'after', coalesce(nullif(_text_delta.after, ''), 'empty'));
end
$$;
comment on function pgaudit_wf._text_delta(text, text, text) is
    'A changed text as {field, before, after}, null if it did not change.';

create function pgaudit_wf._count_text(added integer, removed integer, changed integer, noun text) returns text
language plpgsql immutable parallel safe
-- PL/pgSQL keeps the plan, which a timeline of many versions needs; a SQL function does so only from PostgreSQL 18 on.
as $$
begin
    return (
        select string_agg(
            amount || case when first then ' ' || _count_text.noun || case when amount = 1 then '' else 's' end else '' end || ' ' || verb,
            ', ' order by place)
        from (
            select amount, verb, place, row_number() over (order by place) = 1 as first
            from (values
                (_count_text.added, 'added', 1),
                (_count_text.removed, 'removed', 2),
                (_count_text.changed, 'changed', 3)) as tally (amount, verb, place)
            where amount > 0
        ) as counted);
end
$$;
comment on function pgaudit_wf._count_text(integer, integer, integer, text) is '"2 nodes added, 1 changed", null for none.';

create function pgaudit_wf.version_summary(diff jsonb) returns text
language plpgsql immutable strict parallel safe
as $$
begin
    return coalesce(
        nullif(concat_ws('; ',
            nullif(concat_ws(', ',
                pgaudit_wf._count_text(
                    jsonb_array_length(version_summary.diff -> 'nodes_added'),
                    jsonb_array_length(version_summary.diff -> 'nodes_removed'),
                    jsonb_array_length(version_summary.diff -> 'nodes_changed'), 'node'),
                pgaudit_wf._count_text(
                    jsonb_array_length(version_summary.diff -> 'connections_added'),
                    jsonb_array_length(version_summary.diff -> 'connections_removed'), 0, 'connection')), ''),
            (
                select string_agg(
                    case setting ->> 'field'
                        when 'name' then case when setting ->> 'before' = 'empty'
                            then format('named ''%s''', setting ->> 'after')
                            else format('renamed ''%s'' to ''%s''', setting ->> 'before', setting ->> 'after') end
                        when 'description' then 'description changed'
                        when 'enabled' then case when setting ->> 'after' = 'true' then 'enabled' else 'disabled' end
                        else format('%s changed from %s to %s',
                            setting ->> 'field', setting ->> 'before', setting ->> 'after')
                    end, '; ' order by place)
                from jsonb_array_elements(version_summary.diff -> 'settings') with ordinality as listed (setting, place)
            )), ''),
        case when (version_summary.diff -> 'has_changes')::boolean
            then 'order or connection details changed' else 'no changes' end);
end
$$;
comment on function pgaudit_wf.version_summary(jsonb) is
    'A version diff in one line: "2 nodes added, 1 changed, 1 connection removed; renamed ''A'' to ''B''".';
