-- The schema, the role it belongs to and the two group roles.
--
-- How it hangs together: attach() compiles a trigger function for a table from its settings (attachment) and rules (action_rule);
-- the trigger appends one row to security_audit_log, whose column defaults say who is asking. Everything after that only reads the
-- log: read_log(), with which no reader skips an event, audit_trail() and row_as_of(). Folders are subjects, in the order in which
-- they are loaded. A function whose name begins with an underscore is internal: the others are the manual, "\df pgaudit_wf.[^_]*".

-- Roles are shared by all databases of a server, so another database may have created them already, or be creating them now; and a
-- managed server may not allow it. grant_roles() grants the rights and can be run again once the roles exist.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['pgaudit_wf_app', 'pgaudit_wf_reader'] loop
        if to_regrole(role_name) is null then
            begin
                execute format('create role %I nologin', role_name);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'role % was not created: % is not allowed to create roles', role_name, current_user
                        using hint = format(
                            'Have an administrator run "create role %I nologin", then run "select pgaudit_wf.grant_roles()".', role_name);
            end;
        end if;
    end loop;
end
$$;

-- Everything belongs to a dedicated role that can do nothing else, so a mistake in one of our functions can only affect this schema.
-- Where the installing role may not create roles, or may not act for that one, it owns the schema itself.
do $$
declare
    surplus text;
begin
    if to_regrole('pgaudit_wf_owner') is null then
        begin
            create role pgaudit_wf_owner nologin;
        exception
            -- Roles are shared by all databases of a server: another one may be making it now.
            when duplicate_object or unique_violation then
                null;
            when insufficient_privilege then
                null;
        end;
    end if;
    select concat_ws(', ',
            case when rolsuper then 'superuser' end, case when rolcanlogin then 'login' end,
            case when rolcreaterole then 'createrole' end, case when rolcreatedb then 'createdb' end,
            case when rolreplication then 'replication' end, case when rolbypassrls then 'bypassrls' end,
            (
                select string_agg(format('member of %I', g.rolname), ', ')
                from pg_auth_members as m join pg_roles as g on g.oid = m.roleid where m.member = r.oid))
        into surplus
    from pg_roles as r where r.rolname = 'pgaudit_wf_owner';
    if surplus <> '' then
        raise exception 'role pgaudit_wf_owner, which is to own schema pgaudit_wf, has more rights than it may have: %', surplus
            using errcode = 'PA009',
                hint = 'Revoke that (alter role … nologin nosuperuser …, revoke …), or drop the role if nothing needs it; '
                    'then run this again.';
    end if;
    -- Since PostgreSQL 16 the creator of a role only gets to administer it.
    if to_regrole('pgaudit_wf_owner') is not null
        and not pg_has_role('pgaudit_wf_owner',
            case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end)
    then
        begin
            execute format('grant pgaudit_wf_owner to %I', current_user);
        exception
            when insufficient_privilege then
                null;
        end;
    end if;
    begin
        create schema pgaudit_wf authorization pgaudit_wf_owner;
    exception
        when insufficient_privilege or undefined_object then
            create schema pgaudit_wf;
            raise notice 'schema pgaudit_wf belongs to %, which may not create a role pgaudit_wf_owner or act for it', current_user
                using hint = 'An administrator can create a dedicated role to own it: '
                    'create role pgaudit_wf_owner nologin; grant pgaudit_wf_owner to the installing role.';
    end;
    -- Until the event triggers, which perhaps only the installing role may create.
    execute format('set role %s', (select nspowner::regrole from pg_namespace where nspname = 'pgaudit_wf'));
end
$$;

comment on schema pgaudit_wf is
    'Security audit trail: attach(table) records every change to the table in security_audit_log, in the same transaction. '
    'Start with the view attached and the functions audit_trail() and doctor().';

create function pgaudit_wf._schema_owner() returns name
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'pgaudit_wf' $$;
comment on function pgaudit_wf._schema_owner() is
    'The role that owns the schema and everything in it: pgaudit_wf_owner, or the installing role where that one could not be created.';

create table pgaudit_wf.turn (
    subject text primary key
);
comment on table pgaudit_wf.turn is
    'Work that only one transaction may do at a time: its key is inserted and deleted, so that others that need it wait. Always empty. '
    'Not advisory locks: any role could take those and hold up DDL and writes.';
comment on column pgaudit_wf.turn.subject is 'What must be done in turn.';

create function pgaudit_wf._take_turn(subject text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgaudit_wf.turn (subject) values (_take_turn.subject);
    delete from pgaudit_wf.turn as t where t.subject = _take_turn.subject;
end
$$;
comment on function pgaudit_wf._take_turn(text) is
    'Waits until no other transaction works on the subject, then keeps others waiting until this one ends.';

create function pgaudit_wf._begin_job(job text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    number constant integer := array_position(array['maintenance', 'lead seal', 'lead maintain'], _begin_job.job);
begin
    if number is null then
        raise exception 'there is no job "%" that only one process may do', _begin_job.job using errcode = 'PA008';
    end if;
    return pg_try_advisory_lock(1885815925, number) or not exists (
        -- Any role can take an advisory lock, so it only counts if its holder could do the work.
        select from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
        where l.locktype = 'advisory' and l.granted and l.database = (select oid from pg_database where datname = current_database())
            and l.classid = 1885815925 and l.objid = number and l.objsubid = 2
            and pg_has_role(a.usesysid, pgaudit_wf._schema_owner(), 'usage'));
end
$$;
comment on function pgaudit_wf._begin_job(text) is
    'Whether this session may do a job now: "maintenance", or lead the processes that "seal" or "maintain"; false while another one does. '
    'Holds a session-level lock until it ends, or until _end_maintenance().';

create function pgaudit_wf._end_maintenance() returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    select pg_advisory_unlock(l.classid::integer, l.objid::integer) from pg_locks as l
    where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.classid = 1885815925 and l.objid = 1 and l.objsubid = 2
$$;
comment on function pgaudit_wf._end_maintenance() is 'Lets other sessions run maintenance.';

create function pgaudit_wf._revoke_defaults(relation regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    grantee text;
begin
    for grantee in
        select distinct case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end
        from pg_class as c, aclexplode(c.relacl) as acl
        where c.oid = _revoke_defaults.relation and acl.grantee <> c.relowner
    loop
        execute format('revoke all on table %s from %s', _revoke_defaults.relation, grantee);
    end loop;
    -- Anybody may declare columns of a table's row type, and such a column keeps the table from being dropped.
    if (select reltype <> 0 from pg_class where oid = _revoke_defaults.relation) then
        execute format('revoke usage on type %s from public', _revoke_defaults.relation);
    end if;
end
$$;
comment on function pgaudit_wf._revoke_defaults(regclass) is
    'Revokes from a new table, view or sequence of ours the rights that the database''s default privileges granted to others.';
