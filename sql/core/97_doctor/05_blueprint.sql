-- What was installed, so that doctor() can tell what has been changed since: one comparison instead of a check for each way in which
-- a guard, a default or a function can be replaced.

create table pgaudit_wf.blueprint (
    object text primary key,
    digest text not null,
    definition text not null,
    server_version integer not null,
    is_generated boolean not null default false,
    settings jsonb
);
comment on table pgaudit_wf.blueprint is
    'Functions, triggers, defaults, constraints, policies and views of this schema as they were installed; doctor() names what differs.';
comment on column pgaudit_wf.blueprint.object is 'Its kind and name.';
comment on column pgaudit_wf.blueprint.digest is 'SHA-256 of everything that defines it, in hex.';
comment on column pgaudit_wf.blueprint.definition is 'SQL that restores it: the remedy that doctor() shows.';
comment on column pgaudit_wf.blueprint.server_version is
    'Major version of PostgreSQL that it was recorded on: others print views differently.';
comment on column pgaudit_wf.blueprint.is_generated is 'Whether attach() or a limit wrote it for a table of the application.';
comment on column pgaudit_wf.blueprint.settings is
    'What attach(), attach_workflow() or attach_execution() wrote it by: their tables are lost when one of their rows cannot be restored.';

create function pgaudit_wf._function_digest(function oid) returns text
-- Inlined, as there are hundreds.
language sql stable
as $$
    select encode(sha256(convert_to(concat_ws('|', p.prosrc, l.lanname, p.prosecdef, p.provolatile, p.proisstrict, p.proconfig,
        pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), pg_get_function_sqlbody(p.oid)), 'UTF8')), 'hex')
    from pg_catalog.pg_proc as p join pg_catalog.pg_language as l on l.oid = p.prolang
    where p.oid = function
$$;
comment on function pgaudit_wf._function_digest(oid) is 'SHA-256 of everything that defines a function, in hex.';

create function pgaudit_wf._describe_function(function oid) returns table (object text, digest text, definition text)
language sql stable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set quote_all_identifiers = off
as $$
    select format('function %s', p.oid::regprocedure), pgaudit_wf._function_digest(p.oid), pg_get_functiondef(p.oid) || ';'
    from pg_proc as p
    where p.oid = _describe_function.function
$$;
comment on function pgaudit_wf._describe_function(oid) is 'A function as the blueprint records it.';

create function pgaudit_wf._describe_relations() returns table (object text, digest text, definition text)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
-- By which definitions are written.
set standard_conforming_strings = on
set quote_all_identifiers = off
set intervalstyle = postgres
set datestyle = iso
set bytea_output = hex
as $$
    with ours as (
        select c.oid, c.oid::regclass as name, c.relkind, c.relrowsecurity, c.relforcerowsecurity
        from pg_class as c
        -- What a partition has of its own is compared with the log itself.
        where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
    ), found (object, fingerprint, definition) as (
        select format('trigger %I on %s', t.tgname, ours.name),
            concat_ws('|', t.tgenabled, t.tgfoid::regprocedure, pg_get_triggerdef(t.oid)),
            format('drop trigger if exists %1$I on %2$s; %3$s; alter table %2$s enable %4$strigger %1$I;', t.tgname, ours.name,
                pg_get_triggerdef(t.oid), case t.tgenabled when 'A' then 'always ' when 'R' then 'replica ' else '' end)
        from ours join pg_trigger as t on t.tgrelid = ours.oid and not t.tgisinternal
        union all
        select format('default of %s.%I', ours.name, a.attname), pg_get_expr(d.adbin, d.adrelid),
            format('alter table %s alter column %I set default %s;', ours.name, a.attname, pg_get_expr(d.adbin, d.adrelid))
        from ours
        join pg_attrdef as d on d.adrelid = ours.oid
        join pg_attribute as a on a.attrelid = d.adrelid and a.attnum = d.adnum
        union all
        select format('constraint %I of %s', k.conname, ours.name), pg_get_constraintdef(k.oid),
            format('alter table %s add constraint %I %s;', ours.name, k.conname, pg_get_constraintdef(k.oid))
        from ours join pg_constraint as k on k.conrelid = ours.oid and k.contype in ('p', 'u', 'f', 'c')
        union all
        select format('row-level security of %s', ours.name), concat_ws('|', ours.relrowsecurity, ours.relforcerowsecurity),
            format('alter table %s %s row level security, %s row level security;', ours.name,
                case when ours.relrowsecurity then 'enable' else 'disable' end,
                case when ours.relforcerowsecurity then 'force' else 'no force' end)
        from ours where ours.relkind in ('r', 'p')
        union all
        select format('policy %I on %s', p.polname, ours.name),
            concat_ws('|', p.polpermissive, granted.roles, rule.command, rule.visible, rule.writable),
            concat(format('drop policy if exists %1$I on %2$s; create policy %1$I on %2$s as ', p.polname, ours.name),
                case when p.polpermissive then 'permissive' else 'restrictive' end, ' for ', rule.command, ' to ', granted.roles,
                ' using (' || rule.visible || ')', ' with check (' || rule.writable || ')', ';')
        from ours
        join pg_policy as p on p.polrelid = ours.oid,
        lateral (
            select string_agg(case role when 0 then 'public' else quote_ident(pg_get_userbyid(role)) end, ', ' order by role) as roles
            from unnest(p.polroles) as role
        ) as granted,
        lateral (
            select
                case p.polcmd
                    when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all'
                end as command,
                pg_get_expr(p.polqual, p.polrelid) as visible, pg_get_expr(p.polwithcheck, p.polrelid) as writable
        ) as rule
        union all
        select format('view %s', ours.name), pg_get_viewdef(ours.oid),
            format('create or replace view %s as %s', ours.name, pg_get_viewdef(ours.oid))
        from ours
        -- Not those that an application points at its own tables.
        where ours.relkind in ('v', 'm') and ours.name::text !~ e'\\.(actor_directory|org_member|credential_directory|api_key_directory)$'
        union all
        select format('event trigger %I', e.evtname), concat_ws('|', e.evtevent, e.evttags, e.evtfoid::regprocedure, e.evtenabled),
            concat(format('drop event trigger if exists %1$I; create event trigger %1$I on %2$s', e.evtname, e.evtevent),
                ' when tag in (' || (select string_agg(quote_literal(tag), ', ') from unnest(e.evttags) as tag) || ')',
                format(' execute function %s; alter event trigger %I enable always;', e.evtfoid::regprocedure, e.evtname))
        from pg_event_trigger as e where e.evtname ~ '^pgaudit_wf_'
    )
    select found.object, encode(sha256(convert_to(coalesce(found.fingerprint, ''), 'UTF8')), 'hex'), found.definition from found
$$;
comment on function pgaudit_wf._describe_relations() is 'What the schema contains now but for functions, in the terms of the blueprint.';

create function pgaudit_wf._describe_objects() returns table (object text, digest text, definition text)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    select described.* from pgaudit_wf._describe_relations() as described
    union all
    select described.* from pg_proc as p, lateral pgaudit_wf._describe_function(p.oid) as described
    where p.pronamespace = 'pgaudit_wf'::regnamespace and p.prokind in ('f', 'p')
$$;
comment on function pgaudit_wf._describe_objects() is 'What the schema contains now, in the terms of the blueprint.';

create function pgaudit_wf._write_blueprint() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    was constant jsonb := (
        select jsonb_object_agg(b.object, left(b.digest, 32)) from pgaudit_wf.blueprint as b where not b.is_generated);
    becomes jsonb;
begin
    delete from pgaudit_wf.blueprint where not blueprint.is_generated;
    insert into pgaudit_wf.blueprint (object, digest, definition, server_version)
    select now_there.object, now_there.digest, now_there.definition, current_setting('server_version_num')::integer / 10000
    from pgaudit_wf._describe_objects() as now_there
    on conflict on constraint blueprint_pkey do nothing;
    becomes := (select jsonb_object_agg(b.object, left(b.digest, 32)) from pgaudit_wf.blueprint as b where not b.is_generated);
    if was <> becomes then
        perform pgaudit_wf._record_audit('audit.upgraded', 'pgaudit_wf.blueprint', null, pgaudit_wf._json_diff(was, becomes));
    end if;
end
$$;
comment on function pgaudit_wf._write_blueprint() is
    'Records the schema as it is now as installed: called by migrate after it has applied something. '
    'Where that changed anything, it is the event audit.upgraded, whose diff names what.';

create function pgaudit_wf._note_installed(prefix text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.blueprint (object, digest, definition, server_version)
    select now_there.object, now_there.digest, now_there.definition, current_setting('server_version_num')::integer / 10000
    from pgaudit_wf._describe_relations() as now_there where starts_with(now_there.object, _note_installed.prefix)
    on conflict on constraint blueprint_pkey do nothing
$$;
comment on function pgaudit_wf._note_installed(text) is
    'Adds to the blueprint what was made after the installation: objects whose description begins so.';

create function pgaudit_wf._note_generated(function regprocedure) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.blueprint as b (object, digest, definition, server_version, is_generated)
    select described.*, current_setting('server_version_num')::integer / 10000, true
    from pgaudit_wf._describe_function(_note_generated.function) as described
    on conflict on constraint blueprint_pkey do update
    set digest = excluded.digest, definition = excluded.definition, server_version = excluded.server_version, is_generated = true
$$;
comment on function pgaudit_wf._note_generated(regprocedure) is
    'Adds a function that was written for a table of the application to the blueprint.';

create function pgaudit_wf._note_settings(function_name text, settings jsonb) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    update pgaudit_wf.blueprint as b set settings = _note_settings.settings
    where b.object = format('function %s', to_regprocedure(format('pgaudit_wf.%I()', _note_settings.function_name)))
        and b.settings is distinct from _note_settings.settings
$$;
comment on function pgaudit_wf._note_settings(text, jsonb) is 'Notes in the blueprint what a function was written by.';

create function pgaudit_wf._call_with(function_name text, target regclass, settings jsonb) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('select pgaudit_wf.%I(%L%s);', _call_with.function_name, _call_with.target, string_agg(
        format(', %I => %L', argument.name, case jsonb_typeof(argument.value)
            when 'array' then array(select jsonb_array_elements_text(argument.value))::text
            when 'null' then case argument.name when 'max_value' then '0' else '' end
            else argument.value #>> '{}' end),
        '' order by argument.name))
    from jsonb_each(_call_with.settings) as argument (name, value)
$$;
comment on function pgaudit_wf._call_with(text, regclass, jsonb) is 'A call of attach() or attach_execution(), as doctor() shows it.';

create function pgaudit_wf._lost_settings() returns table (severity text, subject text, problem text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with standing as (
        select distinct on (t.tgrelid)
            t.tgrelid::regclass as relation, t.tgname as trigger, b.settings - 'workflow' as settings, b.settings -> 'workflow' as workflow
        from pg_trigger as t
        join pg_class as c on c.oid = t.tgrelid and not c.relispartition
        left join pgaudit_wf.blueprint as b on b.object = format('function %s', t.tgfoid::regprocedure)
        where starts_with(t.tgname, '!pgaudit_wf_') and not t.tgisinternal
        order by t.tgrelid, t.tgname
    ), stamped as (
        select t.tgrelid::regclass as relation, t.tgfoid::regprocedure as function, b.settings,
            to_regclass(b.settings ->> 'workflow') as workflow
        from pg_trigger as t
        left join pgaudit_wf.blueprint as b on b.object = format('function %s', t.tgfoid::regprocedure)
        where starts_with(t.tgname, 'pgaudit_wf_stamp') and t.tgparentid = 0
    )
    select 'error', s.relation::text, format('it has our triggers (%s), but the settings of its attachment were lost', s.trigger),
        concat(
            -- With the prefix that its versions have.
            case when s.workflow is not null then format(
                'insert into pgaudit_wf.workflow_attachment select * from jsonb_populate_record(null::pgaudit_wf.workflow_attachment, %L)'
                ' on conflict do nothing; ', s.workflow || jsonb_build_object('target', s.relation)) end,
            pgaudit_wf._call_with('attach', s.relation, s.settings))
    from standing as s
    where not exists (select from pgaudit_wf.attachment as a where a.target = s.relation)
    union all
    select 'error', s.relation::text, 'its runs have our trigger, but the settings of attach_execution() were lost',
        case
            when s.workflow in (select w.target from pgaudit_wf.workflow_attachment as w)
                then pgaudit_wf._call_with('attach_execution', s.relation, s.settings)
            else format('drop function %s cascade;'
                ' -- or attach_execution() with another table of workflows, as its own is not there', s.function)
        end
    from stamped as s
    where not exists (select from pgaudit_wf.execution_attachment as e where e.target = s.relation)
        -- Once that one has its settings again.
        and not exists (
            select from standing as w
            where w.relation = s.workflow and not exists (select from pgaudit_wf.attachment as a where a.target = w.relation))
    union all
    select 'error', a.target::text, 'it has a limit, but its rows are not being counted', format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where exists (select from pgaudit_wf.org_limit as l where l.resource_type = a.resource_type)
        and not exists (select from pgaudit_wf.limit_target as t where t.target = a.target)
$$;
comment on function pgaudit_wf._lost_settings() is
    'Findings of doctor(): tables whose settings were lost, as after a dump without one of the attached tables.';

create function pgaudit_wf._give_to_owner() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    object text;
begin
    -- A dump of the database is without its server's roles.
    if to_regrole('pgaudit_wf_owner') is null then
        create role pgaudit_wf_owner nologin;
    end if;
    -- Routines last: those that follow DDL run at each of these, and are to find the rest theirs.
    for object in
        select 'schema pgaudit_wf'
        union all
        select format('table %s', c.oid::regclass) from pg_class as c
        where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
        union all
        -- Those of columns follow their tables.
        select 'sequence pgaudit_wf.log_arrival_seq'
        union all
        select format('type %s', t.oid::regtype) from pg_type as t left join pg_class as c on c.oid = t.typrelid
        where t.typnamespace = 'pgaudit_wf'::regnamespace and (t.typtype = 'd' or c.relkind = 'c')
        union all
        select format('routine %s', p.oid::regprocedure) from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace
    loop
        execute format('alter %s owner to pgaudit_wf_owner', object);
    end loop;
end
$$;
comment on function pgaudit_wf._give_to_owner() is
    'Gives the schema and everything in it to pgaudit_wf_owner, as after pg_restore --no-owner by a superuser.';

create function pgaudit_wf._changed_objects() returns table (severity text, subject text, problem text, remedy text)
language sql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    select 'error', coalesce(now_there.object, b.object),
        case
            when b.object is null then 'it was not installed with the audit schema: somebody has added it'
            when now_there.object is null then 'it is missing'
            else 'it is not as it was installed: somebody has changed it'
        end,
        case
            when b.object is not null then b.definition
            when now_there.object ~ '^default of ' then regexp_replace(now_there.definition, ' set default .*$', ' drop default;')
            when now_there.object ~ '^constraint '
                then regexp_replace(now_there.object, '^constraint (.*) of (.*)$', e'alter table \\2 drop constraint \\1;')
            else format('drop %s;', now_there.object)
        end
    from pgaudit_wf.blueprint as b
    full join pgaudit_wf._describe_objects() as now_there on now_there.object = b.object
    where now_there.digest is distinct from b.digest
        -- A detached table no longer has a function.
        and not (now_there.object is null and b.is_generated)
        -- Each major version prints expressions in its own way.
        and (b.object is null or now_there.object is null or b.object ~ '^function ' and b.definition ~ e'\nAS '
            or b.server_version = current_setting('server_version_num')::integer / 10000)
    union all
    select 'error', c.oid::regclass::text, format('the rule %I rewrites what is written to it', r.rulename),
        format('drop rule %I on %s;', r.rulename, c.oid::regclass)
    from pg_rewrite as r join pg_class as c on c.oid = r.ev_class
    where c.relnamespace = 'pgaudit_wf'::regnamespace and r.rulename <> '_RETURN'
    union all
    select 'error', c.oid::regclass::text, format('the trigger %I was not put there by us', t.tgname),
        format('drop trigger %I on %s;', t.tgname, c.oid::regclass)
    from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
    where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relispartition and not t.tgisinternal and t.tgparentid = 0
        and t.tgfoid <> 'pgaudit_wf._refuse_change'::regproc
    union all
    select 'error', part.relid::text, format('the default of its column %I is not that of the log', a.attname),
        format('alter table %s alter column %I %s;', part.relid, a.attname,
            coalesce('set default ' || pg_get_expr(whole.adbin, whole.adrelid), 'drop default'))
    from pg_partition_tree('pgaudit_wf.security_audit_log') as part
    join pg_attribute as a on a.attrelid = part.relid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef as own on own.adrelid = part.relid and own.adnum = a.attnum
    left join pg_attribute as b on b.attrelid = 'pgaudit_wf.security_audit_log'::regclass and b.attname = a.attname
    left join pg_attrdef as whole on whole.adrelid = b.attrelid and whole.adnum = b.attnum
    where part.level > 0 and pg_get_expr(own.adbin, own.adrelid) is distinct from pg_get_expr(whole.adbin, whole.adrelid)
$$;
comment on function pgaudit_wf._changed_objects() is 'Findings of doctor(): objects of this schema that are not as they were installed.';
