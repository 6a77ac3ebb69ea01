-- Secrets within json, jsonb and text values: an entry of redact that names no column is a path, options.headers.*, whose first step
-- is the column.

create function pgaudit_wf._has_secret_name(name text) returns boolean
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select name ~* ('passw(or)?d|passphrase|secret|token|credential|authorization|(api|private|access|signing)_?key|key_?hash'
            '|(^|_)(pwd|pin|cvv|cvc|ssn|otp|totp)(_|$)')
        and name !~* '_(ids?|at|count|type|name|label)$|keyids?$' and name !~ '[a-z](Ids?|At|Count|Type|Name|Label)$'
$$;
comment on function pgaudit_wf._has_secret_name(text) is 'Whether a column or member of this name is likely to hold a secret.';

create function pgaudit_wf._looks_secret(name text, type oid) returns boolean
language sql stable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- No secret is a date, a duration or a yes.
    select pgaudit_wf._has_secret_name(name) and (select typcategory not in ('B', 'D', 'T') from pg_type where oid = _looks_secret.type)
$$;
comment on function pgaudit_wf._looks_secret(text, oid) is 'Whether a column is likely to hold a secret, by its name and type.';

create function pgaudit_wf._secret_steps(entry text) returns text[]
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select case when step[1] is not null then replace(step[1], '""', '"') else nullif(step[2], '*') end
        from regexp_matches(entry, '"((?:[^"]|"")+)"|([^.]+)', 'g') with ordinality as found (step, position) order by position)
$$;
comment on function pgaudit_wf._secret_steps(text) is
    'The steps of a path: names between dots, in double quotes where they have any; null for *, which is every member or element.';

create function pgaudit_wf._secret_column(entry text, columns text[]) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select case when entry = any (columns) then entry else coalesce((pgaudit_wf._secret_steps(entry))[1], entry) end $$;
comment on function pgaudit_wf._secret_column(text, text[]) is 'The column that an entry of redact hides, or hides something of.';

create function pgaudit_wf._secret_columns(redact text[], columns text[]) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select array(select pgaudit_wf._secret_column(entry, columns) from unnest(redact) as entry) $$;
comment on function pgaudit_wf._secret_columns(text[], text[]) is 'The columns that redact hides, or hides something of.';

create function pgaudit_wf._secret_paths(redact text[], column_name text, columns text[]) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select array_agg(entry order by position) from unnest(redact) with ordinality as listed (entry, position)
    where entry <> column_name and pgaudit_wf._secret_column(entry, columns) = column_name
$$;
comment on function pgaudit_wf._secret_paths(text[], text, text[]) is 'The paths of redact into a column; null for none.';

create function pgaudit_wf._renamed_secret(entry text, columns text[], renames jsonb) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when renames ? entry then renames ->> entry
        when entry <> all (columns) and renames ? pgaudit_wf._secret_column(entry, columns)
            then regexp_replace(entry, '^("((?:[^"]|"")+)"|[^.]+)',
                replace(format('"%s"', replace(renames ->> pgaudit_wf._secret_column(entry, columns), '"', '""')), e'\\', e'\\\\'))
    end
$$;
comment on function pgaudit_wf._renamed_secret(text, text[], jsonb) is
    'An entry of redact after its column was renamed ({old: new}); null if it was not.';

create function pgaudit_wf._hide_member(value jsonb, steps text[]) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
    if value is null or value = 'null' then
        return value;
    elsif cardinality(steps) = 0 then
        return '"[redacted]"';
    elsif jsonb_typeof(value) = 'object' then
        if steps[1] is null then
            return (
                select coalesce(jsonb_object_agg(m.key, pgaudit_wf._hide_member(m.value, steps[2:])), '{}') from jsonb_each(value) as m);
        elsif value ? steps[1] then
            return jsonb_set(value, steps[:1], pgaudit_wf._hide_member(value -> steps[1], steps[2:]));
        end if;
    elsif jsonb_typeof(value) = 'array' then
        -- A name is looked for in each element.
        return (
            select coalesce(jsonb_agg(
                case when steps[1] is null then pgaudit_wf._hide_member(element, steps[2:])
                    when steps[1] !~ '^[0-9]+$' then pgaudit_wf._hide_member(element, steps)
                    when steps[1] = (place - 1)::text then pgaudit_wf._hide_member(element, steps[2:])
                    else element end order by place), '[]')
            from jsonb_array_elements(value) with ordinality as listed (element, place));
    end if;
    return value;
end
$$;
comment on function pgaudit_wf._hide_member(jsonb, text[]) is 'A JSON value with "[redacted]" wherever the steps lead; nulls stay.';

create function pgaudit_wf._hide_json(value jsonb, secrets text[]) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
    secret text;
begin
    foreach secret in array secrets loop
        value := pgaudit_wf._hide_member(value, (pgaudit_wf._secret_steps(secret))[2:]);
    end loop;
    return value;
end
$$;
comment on function pgaudit_wf._hide_json(jsonb, text[]) is 'A jsonb column''s value with "[redacted]" at the paths of redact.';

create function pgaudit_wf._hide_json(value json, secrets text[]) returns jsonb
language plpgsql immutable
as $$
begin
    return pgaudit_wf._hide_json(value::jsonb, secrets);
exception
    -- What jsonb cannot hold cannot be looked into.
    when data_exception or program_limit_exceeded then
        return '"[redacted]"';
end
$$;
comment on function pgaudit_wf._hide_json(json, text[]) is
    'A json column''s value with "[redacted]" at the paths of redact, or in place of what jsonb cannot hold.';

create function pgaudit_wf._hide_text(value text, secrets text[]) returns text
language plpgsql immutable
as $$
declare
    parsed constant jsonb := pgaudit_wf._try_jsonb(value);
    hidden constant jsonb := pgaudit_wf._hide_json(parsed, secrets);
begin
    return case
        when value = '' then value
        when parsed is null then case when value is not null then '[redacted]' end
        when hidden = parsed then value
        else hidden::text
    end;
end
$$;
comment on function pgaudit_wf._hide_text(text, text[]) is
    'A text column''s value, which is JSON, with "[redacted]" at the paths of redact; what is no JSON is hidden as a whole.';

create function pgaudit_wf._secret_ops(path text, before jsonb, after jsonb, steps text[]) returns setof jsonb
language plpgsql immutable
as $$
declare
    key text;
begin
    if before is null or after is null or 'null' in (before, after) or not record_image_ne(row(before), row(after)) then
        return;
    elsif cardinality(steps) = 0 then
        return next jsonb_build_object('op', 'replace', 'path', path, 'old', '[redacted]', 'value', '[redacted]');
    elsif jsonb_typeof(before) = 'object' and jsonb_typeof(after) = 'object' then
        for key in select k from jsonb_object_keys(before) as k where steps[1] is null or k = steps[1] loop
            return query select pgaudit_wf._secret_ops(path || pgaudit_wf._pointer(key), before -> key, after -> key, steps[2:]);
        end loop;
    elsif jsonb_typeof(before) = 'array' and jsonb_typeof(after) = 'array' then
        for place in 0 .. least(jsonb_array_length(before), jsonb_array_length(after)) - 1 loop
            continue when steps[1] ~ '^[0-9]+$' and steps[1] <> place::text;
            return query select pgaudit_wf._secret_ops(path || '/' || place, before -> place, after -> place,
                case when steps[1] !~ '^[0-9]+$' then steps else steps[2:] end);
        end loop;
    end if;
end
$$;
comment on function pgaudit_wf._secret_ops(text, jsonb, jsonb, text[]) is
    'Operations that say where a hidden value changed: from "[redacted]" to "[redacted]".';

create function pgaudit_wf._secret_change(path text, before jsonb, after jsonb, secrets text[], longest integer default null) returns jsonb
language plpgsql stable
as $$
declare
    hidden_before constant jsonb := pgaudit_wf._hide_json(before, secrets);
    hidden_after constant jsonb := pgaudit_wf._hide_json(after, secrets);
    ops jsonb := '[]';
begin
    if record_image_ne(row(hidden_before), row(hidden_after)) then
        ops := pgaudit_wf._deep_change(path, hidden_before, hidden_after, longest);
    end if;
    return nullif(ops || (
        select coalesce(jsonb_agg(distinct op), '[]')
        from unnest(secrets) as secret, pgaudit_wf._secret_ops(path, before, after, (pgaudit_wf._secret_steps(secret))[2:]) as op), '[]');
end
$$;
comment on function pgaudit_wf._secret_change(text, jsonb, jsonb, text[], integer) is
    '_deep_change() of values with secrets, which says where one of these changed. Null: the value is to be replaced, hidden.';
