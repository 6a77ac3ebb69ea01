-- Events that no table shows: the application reports them itself.

create function pgaudit_wf.json_diff(before jsonb, after jsonb, path text default '') returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if before is null and after is null then
        return null;
    elsif before is null then
        return jsonb_build_array(jsonb_build_object('op', 'add', 'path', path, 'value', after));
    elsif after is null then
        return jsonb_build_array(jsonb_build_object('op', 'remove', 'path', path, 'old', before));
    elsif before = after then
        return '[]';
    elsif jsonb_typeof(before) <> 'object' or jsonb_typeof(after) <> 'object' then
        return jsonb_build_array(jsonb_build_object('op', 'replace', 'path', path, 'old', before, 'value', after));
    end if;
    return (
        select coalesce(jsonb_agg(op order by key, position), '[]')
        from (select jsonb_object_keys(before) as key union select jsonb_object_keys(after)) as keys,
        lateral jsonb_array_elements(pgaudit_wf.json_diff(before -> key, after -> key, path || pgaudit_wf.pointer(key)))
            with ordinality as ops (op, position)
    );
end
$$;
comment on function pgaudit_wf.json_diff(jsonb, jsonb, text) is
    'JSON Patch (RFC 6902) from before to after, with "old" in each remove and replace; objects member by member, arrays as a whole; null stands for absent.';

create function pgaudit_wf.record_event(
    action text,
    resource_type text default null,
    resource_id text default null,
    before jsonb default null,
    after jsonb default null,
    metadata jsonb default null,
    outcome text default 'succeeded'
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    event_id bigint;
begin
    if coalesce(record_event.action, '') = '' then
        raise exception 'record_event needs an action, such as subscription.change_requested' using errcode = 'PA008';
    end if;
    if octet_length(record_event.action) > 255 or octet_length(record_event.resource_type) > 255 then
        raise exception 'action and resource_type may have 255 bytes at most' using errcode = 'PA008';
    end if;
    if record_event.outcome is null or record_event.outcome not in ('succeeded', 'failed', 'denied') then
        raise exception 'outcome is "%": it must be succeeded, failed or denied', record_event.outcome using errcode = 'PA008';
    end if;
    if jsonb_typeof(record_event.metadata) <> 'object' then
        raise exception 'metadata must be a JSON object, not %', jsonb_typeof(record_event.metadata) using errcode = 'PA008';
    end if;
    insert into pgaudit_wf.security_audit_log (action, resource_type, resource_id, diff, metadata, outcome)
    values (
        record_event.action, record_event.resource_type, pgaudit_wf.bounded_key(record_event.resource_id),
        pgaudit_wf.json_diff(record_event.before, record_event.after),
        case when current_setting('app.reason', true) <> '' then jsonb_build_object('reason', current_setting('app.reason', true)) else '{}' end
            || coalesce(record_event.metadata, '{}'),
        record_event.outcome)
    returning id into event_id;
    return event_id;
end
$$;
comment on function pgaudit_wf.record_event(text, text, text, jsonb, jsonb, jsonb, text) is
    'Records an event that no table shows (a plan change requested, an export made) in the current transaction, with the current context, and returns its id. '
    'before and after become diff; metadata is a JSON object. Its captured is false: the application says so. Raises PA008 on a wrong argument.';
