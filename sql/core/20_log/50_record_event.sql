-- Events that no table shows: the application reports them itself.

create function pgaudit_wf._json_diff(before jsonb, after jsonb, path text default '') returns jsonb
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
    -- Each level is a nested call, and the stack is limited.
    elsif jsonb_typeof(before) <> 'object' or jsonb_typeof(after) <> 'object'
        or (length(path) >= 32 and length(path) - length(replace(path, '/', '')) >= 32) then
        return jsonb_build_array(jsonb_build_object('op', 'replace', 'path', path, 'old', before, 'value', after));
    end if;
    return (
        select coalesce(jsonb_agg(op order by key, position), '[]')
        from (select jsonb_object_keys(before) as key union select jsonb_object_keys(after)) as keys,
        lateral jsonb_array_elements(pgaudit_wf._json_diff(before -> key, after -> key, path || pgaudit_wf._pointer(key)))
            with ordinality as ops (op, position)
    );
end
$$;
comment on function pgaudit_wf._json_diff(jsonb, jsonb, text) is
    'JSON Patch (RFC 6902) from before to after, with "old" in each remove and replace; '
    'objects member by member down to 32 levels, arrays as a whole; null stands for absent.';

create function pgaudit_wf._readable_json(value jsonb, longest integer default 1073741823) returns jsonb
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if octet_length(_readable_json.value::text) <= _readable_json.longest then
        return _readable_json.value;
    end if;
    return jsonb_build_object(
        'sha256', encode(sha256(convert_to(_readable_json.value::text, 'UTF8')), 'hex'), 'bytes', octet_length(_readable_json.value::text));
exception
    -- Such a value cannot be printed, so there is no text to digest; its hash still shows when it differs.
    when program_limit_exceeded then
        return jsonb_build_object('hash', jsonb_hash_extended(_readable_json.value, 0)::text, 'bytes', 'more than 1 GB');
end
$$;
comment on function pgaudit_wf._readable_json(jsonb, integer) is
    'A value whose text has at most that many bytes (by default 1 GB, the most PostgreSQL can print) as it is; '
    'a larger one as {"sha256": …, "bytes": …} of its text, or {"hash": …, "bytes": …} where it has none. '
    'An array of 9,000 times 1e131071 is stored in 3 KB, and no reader could get past it.';

create function pgaudit_wf._bounded_json(value jsonb, longest integer default 1048576) returns jsonb
language plpgsql stable
as $$
begin
    -- The text is what counts: 1e100000 is stored in 12 bytes and printed in 100,001. A value this small can always be printed, which
    -- spares a subtransaction.
    if pg_column_size(value) <= 65536 then
        if octet_length(value::text) <= longest then
            return value;
        end if;
    end if;
    return pgaudit_wf._readable_json(value, longest);
end
$$;
comment on function pgaudit_wf._bounded_json(jsonb, integer) is
    'A value whose text has at most that many bytes (1 MiB) as it is; '
    'a larger one as {"sha256": …, "bytes": …} of its text, so that readers of the log can handle it.';

create function pgaudit_wf._record_event(
    action text, resource_type text, resource_id text, before jsonb, after jsonb, metadata jsonb, outcome text, attested boolean
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    event_id bigint;
    changes jsonb;
begin
    perform pgaudit_wf._unpack_context();
    if coalesce(_record_event.action, '') = '' then
        raise exception 'record_event needs an action, such as subscription.change_requested' using errcode = 'PA008';
    end if;
    if length(_record_event.action) > 128 or length(_record_event.resource_type) > 128 then
        raise exception 'action and resource_type may have at most 128 characters' using errcode = 'PA008';
    end if;
    if _record_event.outcome is null or _record_event.outcome not in ('succeeded', 'failed', 'denied') then
        raise exception 'outcome is "%": it must be succeeded, failed or denied', _record_event.outcome using errcode = 'PA008';
    end if;
    if jsonb_typeof(_record_event.metadata) <> 'object' then
        raise exception 'metadata must be a JSON object, not %', jsonb_typeof(_record_event.metadata) using errcode = 'PA008';
    end if;
    if _record_event.before is not null or _record_event.after is not null then
        changes := pgaudit_wf._json_diff(pgaudit_wf._bounded_json(_record_event.before), pgaudit_wf._bounded_json(_record_event.after));
        -- Paths repeat the keys above them.
        if pg_column_size(changes) > 4194304 then
            changes := jsonb_build_array(jsonb_build_object(
                'op', 'replace', 'path', '',
                'old', pgaudit_wf._bounded_json(_record_event.before), 'value', pgaudit_wf._bounded_json(_record_event.after)));
        end if;
    end if;
    insert into pgaudit_wf.security_audit_log (action, resource_type, resource_id, diff, metadata, outcome, attested)
    values (
        _record_event.action, _record_event.resource_type, pgaudit_wf._bounded_key(_record_event.resource_id), changes,
        case when pgaudit_wf._context_reason() is not null then jsonb_build_object('reason', pgaudit_wf._context_reason()) else '{}' end
            || coalesce(pgaudit_wf._bounded_json(_record_event.metadata), '{}'),
        _record_event.outcome, coalesce(_record_event.attested, pgaudit_wf._context_attested()))
    returning id into event_id;
    return event_id;
end
$$;
comment on function pgaudit_wf._record_event(text, text, text, jsonb, jsonb, jsonb, text, boolean) is
    'Writes the event of record_event() or record_attempt(); attested: whether its context is (null: as the transaction says).';

create function pgaudit_wf._record_release(
    event_id bigint, action text, resource_type text, resource_id text, org_id text, metadata jsonb
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._unpack_context();
    -- Captured, unlike what an application reports by record_event(): that could say anything.
    insert into pgaudit_wf.security_audit_log (id, action, resource_type, resource_id, org_id, captured, metadata)
    overriding system value
    values (_record_release.event_id, _record_release.action, _record_release.resource_type, _record_release.resource_id,
        _record_release.org_id, true,
        jsonb_strip_nulls(jsonb_build_object('reason', pgaudit_wf._context_reason())) || _record_release.metadata);
end
$$;
comment on function pgaudit_wf._record_release(bigint, text, text, text, text, jsonb) is
    'Records that a part of the trail was archived, pruned or erased, and exactly which: verify accepts that something is gone '
    'only if such an event is sealed. event_id comes from _next_event_id().';

create function pgaudit_wf._is_release(action text) returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select action in ('audit.archived', 'audit.pruned', 'audit.history_pruned', 'audit.archive_rewritten', 'actor.pseudonymised',
        'audit.configuration_noted', 'audit.configuration_changed')
$$;
comment on function pgaudit_wf._is_release(text) is
    'Whether events of that action say what has left the trail, or what the next seal compares with: no policy ever lets them go.';

create function pgaudit_wf._next_event_id() returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$ select nextval(pg_get_serial_sequence('pgaudit_wf.security_audit_log', 'id')) $$;
comment on function pgaudit_wf._next_event_id() is 'A number for an event that has to be known before the event is recorded.';

create function pgaudit_wf.record_event(
    action text,
    resource_type text default null,
    resource_id text default null,
    before jsonb default null,
    after jsonb default null,
    metadata jsonb default null,
    outcome text default 'succeeded'
) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._record_event(
        record_event.action, record_event.resource_type, record_event.resource_id, record_event.before, record_event.after,
        record_event.metadata, record_event.outcome, null)
$$;
comment on function pgaudit_wf.record_event(text, text, text, jsonb, jsonb, jsonb, text) is
    'Records an event that no table shows (a plan change requested, an export made) in the current transaction, with the current context, '
    'and returns its id. before and after become diff; metadata is a JSON object; any of them over 1 MiB is recorded '
    'by its SHA-256 and length. captured is false: the application reported it. '
    'Raises PA008 on a wrong argument, such as an action or resource type of more than 128 characters.';
