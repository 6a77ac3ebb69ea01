-- Only prune() may drop a part of the trail: DROP TABLE and DETACH would be the back door of an append-only log.

create function pgaudit_wf._trail_tables() returns text[]
language sql immutable parallel safe
as $$
    select array['security_audit_log', 'workflow_history', 'attachment_history', 'archive', 'erasure', 'erased_event',
        'log_tile', 'log_leaf', 'log_kept', 'log_checkpoint', 'log_cosignature', 'log_timestamp']
$$;
comment on function pgaudit_wf._trail_tables() is 'The tables of the audit trail, which can be neither dropped nor moved.';

create function pgaudit_wf._refuse_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set timezone = 'UTC'
as $$
declare
    gone record;
    month timestamptz;
begin
    for gone in
        select d.object_name, d.object_identity from pg_event_trigger_dropped_objects() as d
        where d.schema_name = 'pgaudit_wf' and d.object_type = 'table'
            and (d.object_name = any (pgaudit_wf._trail_tables()) or d.object_name ~ e'^security_audit_log_(y\\d{4}m\\d{2}|default)$')
    loop
        month := to_timestamp(substring(gone.object_name from e'y(\\d{4}m\\d{2})$'), 'YYYY"m"MM');
        -- A future month holds nothing.
        continue when month > now();
        if month is not null then
            -- What prune() removes is recorded in the same transaction, and no earlier than allowed.
            continue when exists (
                select from pgaudit_wf.archive as a
                where a.partition_name = gone.object_name and a.from_time = month and a.pruned_at = now());
        end if;
        raise exception '% is part of the audit trail and cannot be dropped', gone.object_identity
            using errcode = 'PA343',
                hint = 'pgaudit_wf.prune() removes old events; pgaudit-wf migrate --to 0 removes the whole audit schema.';
    end loop;
end
$$;
comment on function pgaudit_wf._refuse_drop() is
    'Event trigger: raises PA343 when a part of the audit trail is dropped by anything but prune().';

create function pgaudit_wf._refuse_detach() returns event_trigger
-- As the owner of our schema: the owner of an altered table need not be allowed to read it.
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
    stray text;
begin
    -- Everything must still be there under its name, or the next statement could drop it.
    select format('pgaudit_wf.%I', part) into stray
    from unnest(pgaudit_wf._trail_tables()) as part
    where to_regclass(format('pgaudit_wf.%I', part)) is null;
    if stray is not null then
        raise exception '% is part of the audit trail and can be neither moved nor renamed', stray using errcode = 'PA343';
    end if;
    select c.oid::regclass::text into stray
    from pg_class as c
    join pg_trigger as t on t.tgrelid = c.oid and t.tgname = 'append_only' and t.tgfoid = 'pgaudit_wf._refuse_change'::regproc
    left join pg_inherits as i on i.inhrelid = c.oid
    where c.relkind = 'r'
        and (c.relname ~ '^security_audit_log_' or i.inhparent = 'pgaudit_wf.security_audit_log'::regclass)
        and (i.inhparent is null or i.inhdetachpending or c.relnamespace <> 'pgaudit_wf'::regnamespace
            or c.relname <> case pg_get_expr(c.relpartbound, c.oid) when 'DEFAULT' then 'security_audit_log_default'
                else regexp_replace(
                    pg_get_expr(c.relpartbound, c.oid), e'^.*FROM \\(''(\\d{4})-(\\d{2})-.*$', e'security_audit_log_y\\1m\\2') end)
    limit 1;
    if stray is not null then
        raise exception '% is part of the audit trail and can be neither detached nor moved nor renamed', stray
            using errcode = 'PA343', hint = 'pgaudit_wf.prune() removes old events.';
    end if;
end
$$;
comment on function pgaudit_wf._refuse_detach() is 'Event trigger: raises PA343 when a partition of the log is detached or renamed.';
