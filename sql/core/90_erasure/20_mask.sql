-- Masking: an event or a version without its personal values.

create function pgaudit_wf._mask_text(text_part text, exact text[], emails text[], pseudonym text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    value text;
begin
    if text_part = any (exact) then
        return pseudonym;
    end if;
    foreach value in array emails loop
        if strpos(lower(text_part), lower(value)) > 0 then
            -- Only as a whole: neither the end of a longer address nor the beginning of a longer domain.
            text_part := regexp_replace(text_part,
                '(?<![[:alnum:]._%+-])' || pgaudit_wf._quote_regexp(value) || e'(?![[:alnum:]-]|\\.[[:alnum:]])', pseudonym, 'gi');
        end if;
    end loop;
    foreach value in array exact loop
        -- In running text only what is too long for an ordinary word.
        if length(value) >= 5 and strpos(text_part, value) > 0 then
            text_part := regexp_replace(text_part,
                '(?<![[:alnum:]])' || pgaudit_wf._quote_regexp(value) || '(?![[:alnum:]])', pseudonym, 'g');
        end if;
    end loop;
    return text_part;
end
$$;
comment on function pgaudit_wf._mask_text(text, text[], text[], text) is
    'The text with the pseudonym in place of e-mail addresses, in any case, and of the exact values: '
    'as the whole text or, from five characters on, as words in it.';

create function pgaudit_wf._mask_json(doc jsonb, exact text[], emails text[], pseudonym text) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return case jsonb_typeof(doc)
        when 'string' then to_jsonb(pgaudit_wf._mask_text(doc #>> '{}', exact, emails, pseudonym))
        when 'array' then (
            select coalesce(jsonb_agg(pgaudit_wf._mask_json(e.value, exact, emails, pseudonym) order by e.position), '[]')
            from jsonb_array_elements(doc) with ordinality as e (value, position))
        when 'object' then (
            select coalesce(
                jsonb_object_agg(
                    pgaudit_wf._mask_text(m.key, '{}', emails, pseudonym), pgaudit_wf._mask_json(m.value, exact, emails, pseudonym)),
                '{}')
            from jsonb_each(doc) as m)
        else doc
    end;
end
$$;
comment on function pgaudit_wf._mask_json(jsonb, text[], text[], text) is 'The document with _mask_text() applied to every string in it.';

create function pgaudit_wf._mask_diff(diff jsonb, exact text[], emails text[], pseudonym text) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- A path is made of keys, and has to go on naming the same ones.
    select case jsonb_typeof(diff) when 'array' then (
        select coalesce(jsonb_agg(
            pgaudit_wf._mask_json(op, exact, emails, pseudonym) || case
                when jsonb_typeof(op -> 'path') = 'string' then jsonb_build_object('path', (
                    select coalesce(string_agg(pgaudit_wf._pointer(pgaudit_wf._mask_text(step, '{}', emails, pseudonym)), ''
                        order by position), '')
                    from unnest(pgaudit_wf._pointer_steps(nullif(op ->> 'path', ''))) with ordinality as s (step, position)))
                else '{}' end
            order by number), '[]')
        from jsonb_array_elements(diff) with ordinality as o (op, number))
        else pgaudit_wf._mask_json(diff, exact, emails, pseudonym) end
$$;
comment on function pgaudit_wf._mask_diff(jsonb, text[], text[], text) is
    '_mask_json() for a diff, in whose paths keys are masked as they are in documents.';

create function pgaudit_wf._mask_event(
    event pgaudit_wf.security_audit_log, actor_id text, pseudonym text, actor_types text[], known pgaudit_wf.personal_value[] default '{}'
) returns pgaudit_wf.security_audit_log
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    found pgaudit_wf.personal_value[] := known
        || array(select v from pgaudit_wf._event_values(event, _mask_event.actor_id, actor_types) as v);
    emails constant text[] := array(select distinct v.value from unnest(found) as v where v.kind = 'email' and v.value <> pseudonym);
    -- Many people share a name, an address or a browser: masked only where the event concerns the actor. An e-mail address is unique.
    concerned constant boolean := coalesce(event.actor_id = _mask_event.actor_id, false)
        or coalesce(event.resource_id = _mask_event.actor_id and event.resource_type = any (actor_types), false)
        or strpos(concat(event.diff::text, event.metadata::text, event.resource_id), to_json(_mask_event.actor_id)::text) > 0
        or (cardinality(emails) > 0 and (
            pgaudit_wf._mask_diff(event.diff, '{}', emails, pseudonym) is distinct from event.diff
            or pgaudit_wf._mask_json(event.metadata, '{}', emails, pseudonym) is distinct from event.metadata));
    exact constant text[] := case when concerned
        then array(select distinct v.value from unnest(found) as v where v.kind <> 'email' and v.value <> pseudonym) else '{}' end;
begin
    if event.actor_id = _mask_event.actor_id then
        event.actor_label := case when event.actor_label is not null then pseudonym end;
        event.ip := null;
        event.user_agent := case when event.user_agent is not null then pseudonym end;
    else
        event.actor_label := pgaudit_wf._mask_text(event.actor_label, '{}', emails, pseudonym);
        event.user_agent := pgaudit_wf._mask_text(event.user_agent, '{}', emails, pseudonym);
    end if;
    event.diff := pgaudit_wf._mask_diff(event.diff, exact, emails, pseudonym);
    event.metadata := pgaudit_wf._mask_json(event.metadata, exact, emails, pseudonym);
    return event;
end
$$;
comment on function pgaudit_wf._mask_event(pgaudit_wf.security_audit_log, text, text, text[], pgaudit_wf.personal_value[]) is
    'An event without the values that identify the actor: label and user agent become the pseudonym, the IP address null, '
    'and values in diff and metadata that are personal values of the actor, from the event or known, the pseudonym.';
