-- What changed within a json or jsonb value.

create type pgaudit_wf.nested_change as (ops jsonb[], budget integer);
comment on type pgaudit_wf.nested_change is
    'The operations that lead from one document to another (null: it takes too many), and how many more members may be looked at.';

create function pgaudit_wf._nested_change(path text, before jsonb, after jsonb, levels integer, budget integer)
returns pgaudit_wf.nested_change
language plpgsql immutable parallel safe
as $$
declare
    -- What replacing the whole takes: the operation with its keys, less the two headers that values have by themselves.
    room integer := 53 + octet_length(path) + pg_column_size(before) + pg_column_size(after);
    ops jsonb[] := '{}';
    -- No query finds the members that differ: to start one takes longer than to look at thirty.
    keys text[];
    keys_after text[];
    kept integer;
    members integer;
    member_path text;
    old jsonb;
    value jsonb;
    nested pgaudit_wf.nested_change;
    op jsonb;
begin
    if jsonb_typeof(before) = 'object' then
        keys := array(select jsonb_object_keys(before));
        keys_after := array(select jsonb_object_keys(after));
        if keys <> keys_after then
            keys := keys || array(select key from unnest(keys_after) as key where not before ? key);
        end if;
        members := cardinality(keys);
    else
        kept := jsonb_array_length(after);
        members := greatest(jsonb_array_length(before), kept);
    end if;
    for number in 1 .. members loop
        if keys is not null then
            old := before -> keys[number];
            value := after -> keys[number];
        elsif number <= kept then
            old := before -> (number - 1);
            value := after -> (number - 1);
        else
            -- Those that are removed: the last one first, so that the others stay where they are.
            old := before -> (members + kept - number);
            value := null;
        end if;
        -- Byte by byte: to the equality of jsonb, 1.0 and 1.00 are the same.
        continue when not record_image_ne(row(old), row(value));
        budget := budget - 1;
        if budget < 0 then
            return row(null::jsonb[], 0);
        end if;
        member_path := path || case when keys is not null then pgaudit_wf._pointer(keys[number])
            when number <= kept then '/' || number - 1 else '/' || members + kept - number end;
        if levels > 1 and jsonb_typeof(old) = jsonb_typeof(value) and jsonb_typeof(old) in ('object', 'array') then
            nested := pgaudit_wf._nested_change(member_path, old, value, levels - 1, budget);
            if nested.ops is null then
                return nested;
            end if;
            budget := nested.budget;
            foreach op in array nested.ops loop
                ops := ops || op;
                room := room - pg_column_size(op) - 3;
            end loop;
        else
            op := case
                when old is null then jsonb_build_object('op', 'add', 'path', member_path, 'value', value)
                when value is null then jsonb_build_object('op', 'remove', 'path', member_path, 'old', old)
                else jsonb_build_object('op', 'replace', 'path', member_path, 'old', old, 'value', value)
            end;
            ops := ops || op;
            -- In an array, it may have to be padded.
            room := room - pg_column_size(op) - 3;
        end if;
        if room < 0 then
            return row(array[jsonb_build_object('op', 'replace', 'path', path, 'old', before, 'value', after)], budget);
        end if;
    end loop;
    return row(ops, budget);
end
$$;
comment on function pgaudit_wf._nested_change(text, jsonb, jsonb, integer, integer) is
    'JSON Patch (RFC 6902) from one object to another or one array to another, both at the given path, '
    'with "old" in each remove and replace; whatever is longer than replacing the whole is replaced. '
    'Neither document may be compressed, or it would be read once for each member.';

create function pgaudit_wf._deep_change(path text, before jsonb, after jsonb, longest integer default null) returns jsonb
language plpgsql stable parallel safe
as $$
declare
    ops jsonb[];
begin
    -- This reads a value that is compressed or out of line, and copies no other.
    before := before #> '{}';
    after := after #> '{}';
    if jsonb_typeof(before) is distinct from jsonb_typeof(after) or jsonb_typeof(before) not in ('object', 'array')
        or greatest(pg_column_size(before), pg_column_size(after)) > 1048576
    then
        return null;
    end if;
    if longest is not null
        and (pgaudit_wf._readable_json(before, longest) is distinct from before
            or pgaudit_wf._readable_json(after, longest) is distinct from after)
    then
        return null;
    end if;
    ops := (pgaudit_wf._nested_change(path, before, after, 32, 1000)).ops;
    return case when ops <> '{}' then to_jsonb(ops) end;
end
$$;
comment on function pgaudit_wf._deep_change(text, jsonb, jsonb, integer) is
    'The operations of a diff for a changed json or jsonb column (path: its own), never longer than replacing it. '
    'Null: it is to be replaced, as one of the values is no object or array or another kind of it, has more than 1 MiB, or more than '
    'longest as text; as more than 1,000 members differ; or as they are only written differently. '
    'What differs below 32 levels is replaced at the 32nd.';
