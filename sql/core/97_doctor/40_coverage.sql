-- What is not recorded, or not as it should be, though nobody said that it is meant so.

create function pgaudit_wf._coverage(since interval) returns table (kind text, subject text, detail text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    with found (kind, subject, detail, remedy) as (
        select 'table', format('%I.%I', n.nspname, c.relname), 'its changes are not recorded',
            format('select pgaudit_wf.attach(%L)', format('%I.%I', n.nspname, c.relname))
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        -- Partitions are recorded with their parents.
        where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
            and n.nspname not in ('pg_catalog', 'information_schema', 'pgaudit_wf', 'pgaudit_wf_migration') and n.nspname !~ '^pg_toast'
            and not exists (select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
            and not exists (select from pgaudit_wf.attachment as a where a.target = c.oid)
        union all
        select 'column', format('%I.%I.%I', n.nspname, c.relname, attribute.attname),
            'its name is that of a secret, and its values are recorded',
            format('select pgaudit_wf.attach(%L, redact => %L)', format('%I.%I', n.nspname, c.relname), a.redact || attribute.attname::text)
        from pgaudit_wf.attachment as a
        join pg_class as c on c.oid = a.target
        join pg_namespace as n on n.oid = c.relnamespace
        join pg_attribute as attribute on attribute.attrelid = a.target and attribute.attnum > 0 and not attribute.attisdropped
        where pgaudit_wf._looks_secret(attribute.attname, attribute.atttypid)
            and not attribute.attname = any (coalesce(a.redact, '{}') || coalesce(a.ignore, '{}'))
        union all
        select 'login', format('role %I', l.db_user), format('%s events do not say who acted', count(*)),
            'set app.actor_id, or app.context, in the transactions of this login'
        from pgaudit_wf.security_audit_log as l
        where l.occurred_at > now() - _coverage.since and l.captured and l.actor_id is null and l.action not like 'audit.%'
        group by l.db_user
    )
    select found.kind, found.subject, found.detail, found.remedy
    from found
    where not exists (select from pgaudit_wf.waiver as w where w.subject = found.subject)
    order by array_position(array['table', 'column', 'login'], found.kind), found.subject
$$;
comment on function pgaudit_wf._coverage(interval) is
    'What is not covered and not waived: tables that are not attached, recorded columns with names of secrets, and '
    'logins whose events since then lack an actor. pgaudit-wf coverage prints it.';
