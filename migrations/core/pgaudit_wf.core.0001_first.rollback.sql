-- generated from sql/ by make migration: edit sql/, not this

-- First, or they would run for the statements that follow.
do $$
declare
  trigger_name name;
begin
  for trigger_name in
    select e.evtname
    from pg_catalog.pg_event_trigger as e
    inner join pg_catalog.pg_proc as p on e.evtfoid = p.oid
    where p.pronamespace = 'pgaudit_wf'::regnamespace
  loop
    execute format('drop event trigger %I', trigger_name);
  end loop;
end
$$;

-- What views and counters of ours may read of the application's tables.
do $$
declare
  granted record;
begin
  for granted in
    select distinct
      a.attrelid::regclass as relation, quote_ident(a.attname) as name,
      acl.grantee::regrole as reader
    from pg_catalog.pg_attribute as a
    cross join lateral aclexplode(a.attacl) as acl
    where acl.grantee = (select nspowner from pg_catalog.pg_namespace where nspname = 'pgaudit_wf')
      and acl.grantee = to_regrole('pgaudit_wf_owner')
  loop
    begin
      execute format(
        'revoke all (%s) on %s from %s', granted.name, granted.relation, granted.reader);
    exception
      -- Anybody can grant it something; it is of no use to a role that owns nothing.
      when insufficient_privilege then
        raise notice 'the rights of % on % stay', granted.reader, granted.relation;
    end;
  end loop;
end
$$;

-- Takes the triggers on audited tables along, whoever owns those tables.
drop schema pgaudit_wf cascade;

-- Roles belong to the whole server: another database may need them, or we may not be allowed to.
do $$
declare
  role_name name;
begin
  foreach role_name in array
    array['pgaudit_wf_app', 'pgaudit_wf_reader', 'pgaudit_wf_owner']::name[]
  loop
    begin
      execute format('drop role if exists %I', role_name);
    exception
      when dependent_objects_still_exist or insufficient_privilege then
        raise notice 'role % stays', role_name;
    end;
  end loop;
end
$$;
