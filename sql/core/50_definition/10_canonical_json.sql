-- RFC 8785 (JSON Canonicalization Scheme) for jsonb: the one text that every language's RFC 8785 library produces for the
-- same document, so that a content hash can be recomputed anywhere.
--
-- jsonb's own text differs from it in four ways: keys are ordered by length, there are blanks after ':' and ',', numbers
-- keep the digits they were written with, and repeated keys are already gone (the last one won, as in JavaScript). String
-- escapes are the same: PostgreSQL only escapes the quote, the backslash and control characters.

create function pgaudit_wf._utf16_order(key text) returns text
language sql immutable parallel safe
-- Not strict, so that the planner inlines it: ASCII, which is nearly every key, then costs two lengths.
return case
    when octet_length(_utf16_order.key) = length(_utf16_order.key) then _utf16_order.key
    else regexp_replace(
        replace(_utf16_order.key, U&'\D7FF', U&'\D7FF\0001'),
        U&'([\+010000-\+10FFFF])', U&'\D7FF\\1', 'g')
end;
comment on function pgaudit_wf._utf16_order(text) is
    'A text whose byte order is the UTF-16 code unit order of key, as RFC 8785 sorts: characters from U+10000 on (surrogates in '
    'UTF-16) move between U+D7FF and U+E000. Texts without such characters stay as they are.';

create function pgaudit_wf._canonical_number(value numeric) returns text
language plpgsql immutable strict parallel safe
-- float8's text is the shortest that reads back the same only while this is positive, and a session may say otherwise.
set extra_float_digits = 1
as $$
declare
    plain text := trim_scale(_canonical_number.value)::text;
    magnitude numeric := abs(_canonical_number.value);
    sign text := case when _canonical_number.value < 0 then '-' else '' end;
    double text;
    digits text;
    point integer;
    shorter text;
begin
    -- Up to 15 significant digits survive the way to a double and back, so the decimal is the shortest form already.
    if length(plain) <= 15 and (magnitude >= 0.000001 or magnitude = 0) then
        return plain;
    end if;
    -- 2^1024 - 2^970 and beyond rounds to infinity.
    if magnitude > 1e308 and magnitude >= 2::numeric ^ 1024 - 2::numeric ^ 970 then
        raise exception 'number out of range for canonical JSON: % has a magnitude over 1.7976931348623157e308',
            case when length(plain) <= 40 then plain else left(plain, 20) || '… (' || length(plain) || ' characters)' end
            using errcode = 'PA201',
                  hint = 'RFC 8785 numbers are IEEE 754 doubles; keep larger ones as strings.';
    end if;
    -- 2^-1075 and below rounds to zero, where a cast to float8 would raise.
    if magnitude < 1e-320 and magnitude * 2::numeric ^ 1075 <= 1 then
        return '0';
    end if;
    double := magnitude::float8::text;
    digits := split_part(double, 'e', 1);
    point := coalesce(nullif(strpos(digits, '.'), 0) - 1, length(digits))
        + coalesce(nullif(split_part(double, 'e', 2), '')::integer, 0);
    digits := replace(digits, '.', '');
    point := point - (length(digits) - length(ltrim(digits, '0')));
    digits := trim(digits, '0');
    -- PostgreSQL does not use a decimal that lies exactly between two doubles; ECMAScript does where it reads back as this one
    -- (1e23). Such a decimal can be shorter only for an integer over 2^53 with at most 40 digits.
    if length(digits) >= 16 and point between 16 and 40 then
        foreach shorter in array array[left(digits, -1), (left(digits, -1)::numeric + 1)::text] loop
            if (shorter || 'e' || (point - length(digits) + 1))::float8 = double::float8 then
                point := length(shorter) + point - length(digits) + 1;
                digits := rtrim(shorter, '0');
                exit;
            end if;
        end loop;
    end if;
    return sign || case
        when point > 21 or point <= -6 then
            left(digits, 1)
            || case when length(digits) > 1 then '.' || substr(digits, 2) else '' end
            || 'e' || case when point > 0 then '+' else '' end || (point - 1)
        when point <= 0 then '0.' || repeat('0', -point) || digits
        when length(digits) <= point then rpad(digits, point, '0')
        else left(digits, point) || '.' || substr(digits, point + 1)
    end;
end
$$;
comment on function pgaudit_wf._canonical_number(numeric) is
    'A number as RFC 8785 (ECMAScript) writes it: rounded to the nearest IEEE 754 double, shortest digits, exponent only below '
    '1e-6 and from 1e21 on. Raises PA201 for numbers too large for a double; those too small become 0.';

create function pgaudit_wf._canonical_json_at(value jsonb, depth integer) returns text
language plpgsql immutable strict parallel safe
as $$
declare
    canonical text;
begin
    -- Raising here would print the whole recursion as context; no JSON text holds a bare control character, so _canonical_checked()
    -- finds this one.
    if _canonical_json_at.depth > 200 then
        return chr(1);
    end if;
    -- One statement a container, and scalars inside it: measured, a call for each scalar would double the cost.
    if jsonb_typeof(_canonical_json_at.value) = 'object' then
        select '{' || string_agg(
                concat_ws(':', to_json(member.key), pgaudit_wf._canonical_value(member.value, _canonical_json_at.depth + 1)),
                ',' order by pgaudit_wf._utf16_order(member.key) collate "C") || '}'
            into canonical
            from jsonb_each(_canonical_json_at.value) as member;
        return coalesce(canonical, '{}');
    elsif jsonb_typeof(_canonical_json_at.value -> 0) = 'object' and _canonical_json_at.depth < 200 then
        -- The usual array of objects in one statement too.
        select '[' || string_agg(
                case when jsonb_typeof(element) <> 'object'
                    then pgaudit_wf._canonical_value(element, _canonical_json_at.depth + 1)
                    else (
                        select '{' || coalesce(string_agg(
                                concat_ws(':', to_json(member.key),
                                    pgaudit_wf._canonical_value(member.value, _canonical_json_at.depth + 2)),
                                ',' order by pgaudit_wf._utf16_order(member.key) collate "C"), '') || '}'
                            from jsonb_each(element) as member)
                end, ',') || ']'
            into canonical
            from jsonb_array_elements(_canonical_json_at.value) as element;
        return canonical;
    elsif jsonb_typeof(_canonical_json_at.value) = 'array' then
        select '[' || string_agg(pgaudit_wf._canonical_value(element, _canonical_json_at.depth + 1), ',') || ']'
            into canonical
            from jsonb_array_elements(_canonical_json_at.value) as element;
        return coalesce(canonical, '[]');
    elsif jsonb_typeof(_canonical_json_at.value) = 'number' then
        return pgaudit_wf._canonical_number(_canonical_json_at.value::numeric);
    end if;
    return _canonical_json_at.value::text;
end
$$;
comment on function pgaudit_wf._canonical_json_at(jsonb, integer) is
    'The step of _canonical_json() that keeps track of its depth.';

create function pgaudit_wf._canonical_value(value jsonb, depth integer) returns text
language sql immutable parallel safe
return case jsonb_typeof(_canonical_value.value)
    when 'string' then _canonical_value.value::text
    when 'object' then pgaudit_wf._canonical_json_at(_canonical_value.value, _canonical_value.depth)
    when 'array' then pgaudit_wf._canonical_json_at(_canonical_value.value, _canonical_value.depth)
    when 'number' then
        case when length(_canonical_value.value::text) < 16 and strpos(_canonical_value.value::text, '.') = 0
            then _canonical_value.value::text
            else pgaudit_wf._canonical_number(_canonical_value.value::numeric) end
    else _canonical_value.value::text
end;
comment on function pgaudit_wf._canonical_value(jsonb, integer) is
    '_canonical_json_at() for a value that usually is a string. Not strict, so that the planner inlines it.';

create function pgaudit_wf._canonical_checked(canonical text) returns text
language plpgsql immutable strict parallel safe
as $$
begin
    if strpos(_canonical_checked.canonical, chr(1)) > 0 then
        raise exception 'JSON nested more than 200 levels deep has no canonical form here'
            using errcode = 'PA202',
                  hint = 'Keep deeply nested data as a JSON string, or flatten it.';
    end if;
    return _canonical_checked.canonical;
end
$$;
comment on function pgaudit_wf._canonical_checked(text) is
    'The text as it is; raises PA202 if _canonical_json_at() met nesting that is too deep for it.';

create function pgaudit_wf._canonical_json(value jsonb) returns text
language plpgsql immutable strict parallel safe
-- Otherwise each step would be planned again, for its own depth.
set plan_cache_mode = force_generic_plan
as $$
begin
    return pgaudit_wf._canonical_checked(pgaudit_wf._canonical_json_at(_canonical_json.value, 1));
end
$$;
comment on function pgaudit_wf._canonical_json(jsonb) is
    'The RFC 8785 canonical text of a JSON document: encode it as UTF-8 and any RFC 8785 library gives the same bytes. Numbers '
    'are rounded to IEEE 754 doubles. Raises PA201 for a number no double can hold and PA202 for nesting over 200 levels.';
