-- What nothing told at the time: pgaudit-wf seal compares the configuration as it is with what it last noted of it in the log, and
-- records what differs there, before it seals.

create function pgaudit_wf._configuration_rows() returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
-- As _record_configuration() has it.
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
as $$
declare
    noted jsonb;
begin
    execute (
        select format('select jsonb_object_agg(name, states) from (%s) as listed', string_agg(format(
            'select %1$L as name, coalesce(jsonb_object_agg(coalesce(setting ->> %2$L, ''''), '
            'pgaudit_wf._configuration_state(setting - %3$L::text[])), ''{}'') as states '
            'from (select to_jsonb(t) as setting from pgaudit_wf.%1$I as t) as r', c.name, c.key, c.derived), ' union all '))
        from pgaudit_wf._configuration_tables() as c) into noted;
    return noted;
end
$$;
comment on function pgaudit_wf._configuration_rows() is
    'The state of each row of the configuration, by table and key, as the events that tell of its changes have it.';

create function pgaudit_wf._configuration() returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set quote_all_identifiers = off
set jit = off
as $$
    with recursive ours as (
        select r.oid, r.rolname from pg_roles as r
        where r.rolname in ('pgaudit_wf_owner', 'pgaudit_wf_app', 'pgaudit_wf_reader', pgaudit_wf._schema_owner())
    ), granted (roleid, member, options) as (
        select m.roleid, m.member, (to_jsonb(m) - '{oid,roleid,member,grantor}'::text[])::text
        from pg_auth_members as m where m.roleid in (select ours.oid from ours)
        union
        select m.roleid, m.member, (to_jsonb(m) - '{oid,roleid,member,grantor}'::text[])::text
        from granted join pg_auth_members as m on m.roleid = granted.member
    ), relation as (
        select c.oid, c.oid::regclass::text as name, c.relkind, c.relowner, c.relacl, c.relispartition
        from pg_class as c where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
    ), routine as (
        select p.oid, p.oid::regprocedure::text as name, p.proowner, p.proacl,
            p.prorettype = 'trigger'::regtype and p.proname !~ '^_' as generated,
            left(pgaudit_wf._function_digest(p.oid), 32) as digest
        from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace
    ), acl (grantee, granted) as (
        select acl.grantee, format('%s %s %s', relation.name, acl.privilege_type, acl.is_grantable)
        from relation, aclexplode(relation.relacl) as acl where acl.grantee <> relation.relowner
        union all
        select acl.grantee, format('%s.%s %s %s', relation.name, a.attname, acl.privilege_type, acl.is_grantable)
        from relation join pg_attribute as a on a.attrelid = relation.oid and a.attacl is not null, aclexplode(a.attacl) as acl
        where acl.grantee <> relation.relowner
        union all
        -- The owner of a partitioned table may execute what is written for it, and use the schema.
        select acl.grantee, format('%s %s %s', routine.name, acl.privilege_type, acl.is_grantable)
        from routine, aclexplode(coalesce(routine.proacl, acldefault('f', routine.proowner))) as acl
        where acl.grantee <> routine.proowner and not routine.generated
        union all
        select acl.grantee, format('schema %s', acl.is_grantable)
        from pg_namespace as n, aclexplode(n.nspacl) as acl
        where n.nspname = 'pgaudit_wf' and acl.grantee <> n.nspowner and acl.privilege_type = 'CREATE'
    ), part (name, key, state) as (
        select 'database', identity.key, identity.value
        from pg_control_system() as cluster, lateral (values
            ('system_identifier', cluster.system_identifier::text),
            ('oid', (select d.oid::text from pg_database as d where d.datname = current_database())),
            ('timeline', left(pg_walfile_name(pg_current_wal_lsn()), 8)),
            ('server_version', (current_setting('server_version_num')::integer / 10000)::text)
        ) as identity (key, value)
        union all
        select 'table', written.name, format('%s, owned by %s', written.relation, (
            select pg_get_userbyid(c.relowner) from pg_class as c where c.oid = written.relation))
        from (
            select a.function_name as name, a.target as relation from pgaudit_wf.attachment as a
            union all select e.function_name, e.target from pgaudit_wf.execution_attachment as e
            union all select concat('workflow of ', e.function_name), e.workflow_target from pgaudit_wf.execution_attachment as e
            union all select concat('workflow ', w.id_prefix), w.target from pgaudit_wf.workflow_attachment as w
        ) as written
        union all
        select case when routine.generated then 'function' else 'object' end, 'function ' || routine.name, routine.digest from routine
        union all
        select 'object', described.object, left(described.digest, 32) from pgaudit_wf._describe_relations() as described
        union all
        -- What a partition of the log has that the log has not, or the reverse.
        select 'partition', part.relid::text, concat_ws(', ',
            case when not exists (
                select from pg_trigger as t where t.tgrelid = part.relid and t.tgname = 'append_only' and t.tgenabled = 'A'
                    and t.tgfoid = 'pgaudit_wf._refuse_change'::regproc and t.tgqual is null) then 'without append_only' end,
            (
                select string_agg(format('trigger %I', t.tgname), ', ' order by t.tgname) from pg_trigger as t
                where t.tgrelid = part.relid and not t.tgisinternal and t.tgparentid = 0 and t.tgname <> 'append_only'))
        from pg_partition_tree('pgaudit_wf.security_audit_log') as part
        where part.level > 0
        union all
        select 'rule', format('%s on %s', r.rulename, relation.name), pg_get_ruledef(r.oid)
        from relation join pg_rewrite as r on r.ev_class = relation.oid and r.rulename <> '_RETURN'
        union all
        select 'owner', named.name, pg_get_userbyid(named.owner)
        from (
            select 'schema', n.nspowner from pg_namespace as n where n.nspname = 'pgaudit_wf'
            union all select relation.name, relation.relowner from relation
            union all select routine.name, routine.proowner from routine
        ) as named (name, owner)
        where named.name = 'schema' or pg_get_userbyid(named.owner) <> pgaudit_wf._schema_owner()
        union all
        select 'right', case acl.grantee when 0 then 'public' else pg_get_userbyid(acl.grantee) end,
            left(encode(sha256(convert_to(string_agg(acl.granted, e'\n' order by acl.granted collate "C"), 'UTF8')), 'hex'), 32)
        from acl group by acl.grantee
        union all
        select 'role', r.rolname, concat_ws(', ', case when r.rolsuper then 'superuser' end, case when r.rolcanlogin then 'login' end,
            case when r.rolcreaterole then 'createrole' end, case when r.rolcreatedb then 'createdb' end,
            case when r.rolreplication then 'replication' end, case when r.rolbypassrls then 'bypassrls' end)
        from pg_roles as r where r.oid in (select ours.oid from ours)
        union all
        select 'member', format('%s of %s', pg_get_userbyid(granted.member), pg_get_userbyid(granted.roleid)),
            string_agg(granted.options, ', ' order by granted.options)
        from granted group by granted.member, granted.roleid
    )
    select pgaudit_wf._configuration_rows() || jsonb_object_agg(listed.name, listed.states)
    from (
        select part.name, jsonb_object_agg(part.key, part.state) as states from part where part.state <> '' group by part.name
    ) as listed
$$;
comment on function pgaudit_wf._configuration() is
    'What is recorded and by what, who may change that and which database this is: by kind and name, in full or by a digest.';

create function pgaudit_wf._is_as_written(function_name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    function constant text := format('pgaudit_wf.%I()', function_name);
    before constant text := (select f.digest from pgaudit_wf._describe_function(to_regprocedure(function)) as f);
    after text;
    written bigint := 0;
begin
    perform pgaudit_wf._write_functions(a)
    from pgaudit_wf.attachment as a left join pgaudit_wf.limit_target as t on t.target = a.target
    where _is_as_written.function_name in (
        a.function_name, pgaudit_wf._batch_function_name(a), pgaudit_wf._guard_function_name(a),
        pgaudit_wf._graph_function_name(a), t.function_name);
    get diagnostics written = row_count;
    perform pgaudit_wf._write_stamp(e) from pgaudit_wf.execution_attachment as e where e.function_name = _is_as_written.function_name;
    written := written + case when found then 1 else 0 end;
    after := (select f.digest from pgaudit_wf._describe_function(to_regprocedure(function)) as f);
    raise exception using errcode = 'transaction_rollback';
exception
    when transaction_rollback then
        return (written > 0 or before is null) and before is not distinct from after;
    when others then
        return false;
end
$$;
comment on function pgaudit_wf._is_as_written(text) is
    'Whether a trigger function of an attached table is what attach() would write now. Tries it, and leaves everything as it was.';

create function pgaudit_wf._configuration_changes(noted jsonb, becomes jsonb)
returns table (name text, key text, was text, state text)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select name, key, before.state, after.state
    from (
        select g.key as name, p.key, p.value as state from jsonb_each(noted) as g, jsonb_each_text(g.value) as p
    ) as before
    full join (
        select g.key as name, p.key, p.value as state from jsonb_each(becomes) as g, jsonb_each_text(g.value) as p
    ) as after using (name, key)
    where before.state is distinct from after.state
$$;
comment on function pgaudit_wf._configuration_changes(jsonb, jsonb) is 'Where two results of _configuration() differ.';

create function pgaudit_wf._record_found(action text, resource_type text, resource_id text, diff jsonb, metadata jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgaudit_wf._record_audit(action, resource_type, resource_id, diff, '{"found_by": "seal"}' || metadata) then
        raise exception 'the log takes no events: something swallows them'
            using hint = 'pgaudit_wf.doctor() names it.';
    end if;
end
$$;
comment on function pgaudit_wf._record_found(text, text, text, jsonb, jsonb) is 'Records what the sealer found changed.';

create function pgaudit_wf._note_configuration() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    last record;
    taken record;
    newest constant bigint := (select l.id from pgaudit_wf.security_audit_log as l order by l.tx_id desc, l.id desc limit 1);
    elsewhere boolean;
    unexplained jsonb := '[]';
    change record;
begin
    -- Refuses where the log is still being replicated: nothing may be written to it.
    perform from pgaudit_wf.log_generations();
    perform pgaudit_wf._note_recording();
    select noted.* into last
    from unnest(array['audit.configuration_noted', 'audit.configuration_changed']) as kind,
    lateral (
        select l.id, l.occurred_at, l.metadata -> 'configuration' as configuration, (l.metadata ->> 'last_id')::bigint as last_id,
            (l.metadata ->> 'snapshot')::pg_snapshot as snapshot
        from pgaudit_wf.security_audit_log as l where l.action = kind and l.captured
        order by l.occurred_at desc, l.id desc limit 1
    ) as noted
    -- Not by its number: numbers may have been set back.
    order by noted.occurred_at desc, noted.id desc limit 1;
    -- Together, so that no change is in one and its event not in the other.
    select pgaudit_wf._configuration() as configuration, pg_current_snapshot() as snapshot, s.last_value as last_id into taken
    from pgaudit_wf.security_audit_log_id_seq as s;
    if last.configuration = taken.configuration and taken.last_id >= last.last_id and taken.last_id >= newest then
        return;
    end if;
    elsewhere := last.configuration #> '{database,system_identifier}' <> taken.configuration #> '{database,system_identifier}';
    for change in
        with event as materialized (
            select l.id, l.action, l.diff, l.metadata
            from pgaudit_wf.security_audit_log as l
            where l.action in (
                    select c.action from pgaudit_wf._configuration_tables() as c
                    union all select unnest(array['audit.attached', 'audit.detached', 'audit.function_replaced', 'audit.upgraded']))
                -- One that was under way at the last seal may have made its change long before.
                and l.captured and l.occurred_at > last.occurred_at - interval '7 days'
                and case when elsewhere then l.id > last.id else not pg_visible_in_snapshot(l.tx_id::text::xid8, last.snapshot) end
        ), told as (
            select distinct on (part) part, state
            from (
                select event.id, event.metadata ->> 'configuration' as part, event.metadata ->> 'state' as state
                from event where event.action <> 'audit.upgraded'
                union all
                select event.id, 'object/' || pgaudit_wf._unpointer(op.value ->> 'path'), op.value ->> 'value'
                from event, jsonb_array_elements(event.diff) as op where event.action = 'audit.upgraded'
            ) as change
            order by part, id desc
        )
        select c.name, c.key, c.was, c.state, format('/%s%s', c.name, pgaudit_wf._pointer(c.key)) as path,
            case
                when c.name in (select t.name from pgaudit_wf._configuration_tables() as t) then exists (
                    select from told where told.part = c.name || '/' || c.key and told.state is not distinct from c.state)
                when c.name = 'table' then exists (
                    select from told where told.part in (
                        'attachment/' || c.key, 'execution_attachment/' || c.key,
                        'execution_attachment/' || substr(c.key, length('workflow of ') + 1),
                        'workflow_attachment/' || substr(c.key, length('workflow ') + 1)))
                when c.name = 'object' then exists (
                    select from told
                    where told.part = 'object/' || c.key and left(told.state, 32) is not distinct from c.state)
                    -- Each version of PostgreSQL prints expressions in its own way.
                    or c.key !~ '^function ' and c.was is not null and c.state is not null
                        and last.configuration #> '{database,server_version}' <> taken.configuration #> '{database,server_version}'
                when c.name = 'function' then pgaudit_wf._is_as_written(
                    regexp_replace(c.key, e'^function pgaudit_wf\\."?(.*?)"?\\(\\)$', e'\\1'))
                else false
            end as explained
        from pgaudit_wf._configuration_changes(last.configuration, taken.configuration) as c
        where last.configuration is not null
        order by c.name, c.key
    loop
        continue when change.explained;
        if change.name = 'member' then
            perform pgaudit_wf._record_found(
                case when change.state is null then 'audit.role_revoked' else 'audit.role_granted' end,
                'pgaudit_wf.role', substring(change.key from ' of (.*)$'),
                pgaudit_wf._json_diff(to_jsonb(change.was), to_jsonb(change.state)),
                jsonb_build_object('member', substring(change.key from '^(.*) of ')));
        elsif change.name = 'database' and change.key <> 'server_version' then
            continue;
        else
            unexplained := unexplained
                || pgaudit_wf._json_diff(to_jsonb(change.was), to_jsonb(change.state), change.path);
        end if;
    end loop;
    if last.configuration -> 'database' <> taken.configuration -> 'database' then
        perform pgaudit_wf._record_found('audit.restored', 'pgaudit_wf.database', null,
            pgaudit_wf._json_diff(last.configuration -> 'database', taken.configuration -> 'database'), '{}');
    end if;
    if taken.last_id < greatest(last.last_id, newest) then
        unexplained := unexplained || jsonb_build_object(
            'op', 'replace', 'path', '/last_id', 'old', greatest(last.last_id, newest), 'value', taken.last_id);
    end if;
    perform pgaudit_wf._record_found(
        case when unexplained = '[]' then 'audit.configuration_noted' else 'audit.configuration_changed' end,
        'pgaudit_wf.configuration', null, nullif(unexplained, '[]'),
        jsonb_build_object(
            'configuration', taken.configuration, 'snapshot', taken.snapshot, 'last_id', taken.last_id,
            'digest', encode(sha256(convert_to(taken.configuration::text, 'UTF8')), 'hex')));
end
$$;
comment on function pgaudit_wf._note_configuration() is
    'Before sealing: records what changed of the configuration since it was last noted, and of which no event tells, '
    'and notes it anew where it changed at all. audit.configuration_changed names what, audit.configuration_noted says that all was told.';
