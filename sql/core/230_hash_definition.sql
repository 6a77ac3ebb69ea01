-- The content hash. canonical_definition is canonical_json for the shape that normalize_definition gives, written out level
-- by level: one statement for the whole graph where the general function needs one for every object. At 20 nodes that is what
-- keeps a meaningful save inside its budget.

create or replace function pgaudit_wf.canonical_value(value jsonb)
returns text
language sql
immutable
parallel safe
-- The depth is that of a value inside a node's data, so that both ways stop at the same level.
return case jsonb_typeof(canonical_value.value)
    when 'string' then canonical_value.value::text
    when 'object' then pgaudit_wf.canonical_json_at(canonical_value.value, 5)
    when 'array' then pgaudit_wf.canonical_json_at(canonical_value.value, 5)
    when 'number' then
        case when length(canonical_value.value::text) < 16 and strpos(canonical_value.value::text, '.') = 0
            then canonical_value.value::text
            else pgaudit_wf.canonical_number(canonical_value.value::numeric) end
    else canonical_value.value::text
end;

comment on function pgaudit_wf.canonical_value(jsonb) is
    'canonical_json for a value that is most often a string. Not strict, so that the planner inlines it. Internal.';
