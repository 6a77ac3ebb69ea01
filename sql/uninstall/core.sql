-- Takes everything away, whichever version it is: "pgaudit-wf migrate --to 0".

-- First, or they would run for the statements that follow.
do $$
declare
    trigger_name name;
begin
    for trigger_name in
        select e.evtname
        from pg_catalog.pg_event_trigger as e
        join pg_catalog.pg_proc as p on e.evtfoid = p.oid
        where p.pronamespace = 'pgaudit_wf'::regnamespace
    loop
        execute format('drop event trigger %I', trigger_name);
    end loop;
end
$$;

-- What views and counters of ours may read of the application's tables.
do $$
declare
    given text;
begin
    for given in
        select distinct format('revoke all (%I) on %s from pgaudit_wf_owner', a.attname, a.attrelid::regclass)
        from pg_catalog.pg_attribute as a
        cross join lateral aclexplode(a.attacl) as acl
        where acl.grantee = to_regrole('pgaudit_wf_owner')
        union all
        select distinct format('revoke all on schema %I from pgaudit_wf_owner', n.nspname)
        from pg_catalog.pg_namespace as n
        cross join lateral aclexplode(n.nspacl) as acl
        where acl.grantee = to_regrole('pgaudit_wf_owner') and n.nspowner <> acl.grantee
    loop
        begin
            execute given;
        exception
            -- Anybody can grant it something, which is of no use to a role that owns nothing.
            when insufficient_privilege then
                raise notice '%: not allowed', given;
        end;
    end loop;
end
$$;

-- Also drops the triggers on audited tables, whoever owns those tables.
drop schema pgaudit_wf cascade;

-- Roles belong to the whole server: another database may need them, or we may not be allowed to.
do $$
declare
    role_name name;
begin
    foreach role_name in array array['pgaudit_wf_app', 'pgaudit_wf_reader', 'pgaudit_wf_owner']::name[] loop
        begin
            execute format('drop role if exists %I', role_name);
        exception
            when dependent_objects_still_exist or insufficient_privilege then
                raise notice 'role % stays', role_name;
        end;
    end loop;
end
$$;
