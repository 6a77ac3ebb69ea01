-- Is what should be recorded still being recorded?

create function pgaudit_wf._attach_again(relation regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce((
        select pgaudit_wf._call_with('attach', relation, h.detail - '{form,function_name,before}'::text[])
        from pgaudit_wf.attachment_history as h
        where h.target = _attach_again.relation::text and h.change in ('attached', 'changed')
        order by h.id desc limit 1), format('select pgaudit_wf.attach(%L);', _attach_again.relation))
$$;
comment on function pgaudit_wf._attach_again(regclass) is 'The call that attaches a table as the one of its name last was.';

create function pgaudit_wf.doctor() returns table (severity text, subject text, problem text, remedy text)
language sql
set search_path = pg_catalog, pg_temp
-- The planner overestimates so long a query, and would JIT-compile it for seconds to run it for milliseconds.
set jit = off
set quote_all_identifiers = off
as $$
    with expected as (
        select a.target, tree.relid, wanted.name, to_regprocedure(format('pgaudit_wf.%I()', a.function_name)) as function,
            -- Either a statement trigger records, or the row trigger.
            case when wanted.op = any (batch.ops) and not pgaudit_wf._needs_rows(a.target, wanted.op) then 'R' else 'A' end as state
        from pgaudit_wf.attachment as a
        -- "offset 0": once a table, not for each of its partitions.
        cross join lateral (select pgaudit_wf._batched_ops(a.target) as ops offset 0) as batch,
        lateral (
            select a.target as relid, not exists (select from pg_partition_tree(a.target)) as isleaf
            union
            select part.relid, true from pg_partition_tree(a.target) as part where part.isleaf
        ) as tree
        join pg_class as c on c.oid = tree.relid,
        lateral (
            select pgaudit_wf._trigger_name(a.target, '!pgaudit_wf_' || op, a.function_name) as name, op
            from unnest(array['insert', 'update', 'delete']) as op
            union all
            select 'pgaudit_wf_truncate', null where c.relkind <> 'f' and tree.isleaf
        ) as wanted
        union all
        select a.target, a.target, '!pgaudit_wf_batch_' || op,
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._batch_function_name(a))),
            case when pgaudit_wf._needs_rows(a.target, op) or by_row.tgenabled = 'A' then 'D' else 'O' end
        from pgaudit_wf.attachment as a
        cross join unnest(array['insert', 'update', 'delete']) as op
        left join pg_trigger as by_row on by_row.tgrelid = a.target and by_row.tgname = '!pgaudit_wf_' || op
        where pgaudit_wf._has_batch(a)
        union all
        select t.target, tree.relid, wanted.name, to_regprocedure(format('pgaudit_wf.%I()', t.function_name)), 'O'
        from pgaudit_wf.limit_target as t,
        lateral (select t.target as relid union select relid from pg_partition_tree(t.target)) as tree
        join pg_class as c on c.oid = tree.relid and c.relkind <> 'f',
        lateral unnest(array['pgaudit_wf_limit_insert', 'pgaudit_wf_limit_update', 'pgaudit_wf_limit_delete']) as wanted (name)
        union all
        select a.target, a.target, pgaudit_wf._trigger_name(a.target, 'pgaudit_wf_guard', a.function_name),
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._guard_function_name(a))), 'O'
        from pgaudit_wf.attachment as a
        join pgaudit_wf.workflow_attachment as w
            on w.target = a.target and w.shape = 'reactflow' and coalesce(w.enabled_column, w.listed_column) is not null
        union all
        select a.target, a.target, pgaudit_wf._trigger_name(a.target, '!pgaudit_wf_graph', a.function_name),
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._graph_function_name(a))), 'A'
        from pgaudit_wf.attachment as a where pgaudit_wf._has_own_shape(a.target)
    ), expected_of_runs as (
        select e.target, pgaudit_wf._trigger_name(e.target, wanted.name, e.function_name) as name,
            to_regprocedure(format('pgaudit_wf.%I()', e.function_name)) as function, wanted.state,
            pgaudit_wf._call_with('attach_execution', e.target, pgaudit_wf._execution_settings(e)) as remedy
        from pgaudit_wf.execution_attachment as e,
        lateral (values ('pgaudit_wf_stamp', 'O'), ('pgaudit_wf_restamp', 'A')) as wanted (name, state)
        where exists (select from pg_class where oid = e.target)
    )
    select 'error', e.relid::regclass::text, format('the trigger %s is missing', e.name), format('select pgaudit_wf.attach(%L);', e.target)
    from expected as e
    where not exists (select from pg_trigger where tgrelid = e.relid and tgname = e.name and tgfoid = e.function and tgqual is null)
    union all
    select 'error', e.target::text, format('the trigger %s is missing', e.name), e.remedy
    from expected_of_runs as e
    where not exists (select from pg_trigger where tgrelid = e.target and tgname = e.name and tgfoid = e.function)
    union all
    select 'error', e.relid::regclass::text,
        format(case
            when tgenabled = 'D' then 'the trigger %s is disabled'
            when e.state = 'D' then 'the trigger %s records changes after what other triggers change, or rows of a child'
            when tgenabled = 'R' then 'the trigger %s fires in replicas only'
            else 'the trigger %s does not fire in a session that calls itself a replica' end, e.name),
        -- Which of two triggers records is decided in one step.
        case when starts_with(e.name, '!pgaudit_wf_')
                and exists (select from pg_trigger as t where t.tgrelid = e.relid and starts_with(t.tgname, '!pgaudit_wf_batch_'))
            then format('select pgaudit_wf.attach(%L);', e.relid::regclass)
            else format('alter table %s enable %strigger %I;',
                e.relid::regclass, case e.state when 'A' then 'always ' else '' end, e.name) end
    from (select x.relid, x.name, x.state from expected as x union all select x.target, x.name, x.state from expected_of_runs as x) as e
    join pg_trigger on tgrelid = e.relid and tgname = e.name and tgenabled <> e.state::"char"
        -- It may fire more often than it must, but for a statement trigger beside a row trigger.
        and not (tgenabled = 'A' and (e.state = 'R' or e.state = 'O' and not starts_with(e.name, '!')))
        -- Attaching a child that came later, which is named below, is what changes its parent's.
        and not (tgenabled <> 'D' and exists (
            select from pg_inherits
            where inhparent = e.relid and inhrelid not in (select a.target from pgaudit_wf.attachment as a)
                and not (select relispartition from pg_class where oid = inhrelid)))
    union all
    select case when pgaudit_wf._copes_without(a, changed.gone) then 'notice' else 'error' end, a.target::text,
        format('its columns have changed since its trigger was written: %s%s',
            array_to_string(array(
                select '+' || name from unnest(changed.come) as name union all select '-' || name from unnest(changed.gone) as name), ', '),
            case when pgaudit_wf._copes_without(a, changed.gone) then '; it records them, but more slowly than it could' end),
        format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a,
    lateral (
        select array(select unnest(pgaudit_wf._column_names(a.target)) except select unnest(a.columns) order by 1) as come,
            array(select unnest(a.columns) except select unnest(pgaudit_wf._column_names(a.target)) order by 1) as gone
    ) as changed
    where changed.come <> '{}' or changed.gone <> '{}'
    union all
    select 'error', a.target::text, 'its trigger is compiled, but DDL is not being followed: the next ALTER TABLE can make writes fail',
        coalesce((
            select string_agg(b.definition, ' ' order by b.object) from pgaudit_wf.blueprint as b
            where b.object ~ '^event trigger pgaudit_wf_(after_ddl|after_drop|follow_as_author)$'
                and not exists (
                    select from pg_event_trigger
                    where format('event trigger %I', evtname) = b.object and evtenabled in ('O', 'A'))),
            format('select pgaudit_wf.attach(%L);', a.target))
    from pgaudit_wf.attachment as a
    where a.form = 'compiled' and not pgaudit_wf._can_follow_ddl()
    union all
    select 'error', a.target::text, format('role %I can alter the table, and so disable its triggers', member.rolname),
        format('revoke %I from %I;', owner.rolname, member.rolname)
    from pgaudit_wf.attachment as a
    join pg_class as c on c.oid = a.target
    join pg_roles as owner on owner.oid = c.relowner
    -- "usage", by inheritance: since PostgreSQL 16 the creator of a role administers it, which "member" overrates.
    join pg_roles as member on pg_has_role(member.oid, owner.oid, 'usage') and not member.rolsuper
    where pg_has_role(member.oid, to_regrole('pgaudit_wf_app'), 'usage') and member.rolname <> 'pgaudit_wf_app'
        and to_regrole('pgaudit_wf_app') is not null
    union all
    select 'error', l.relation::text,
        case l.privilege
            when 'SELECT' then format('role %s may read %s, bypassing row-level security or secrecy', l.grantee,
                case when l.is_partition then 'a partition of the log' else 'the table' end)
            else format('role %s may %s the log directly', l.grantee, lower(l.privilege))
        end,
        format('revoke %s on %s from %s;', lower(l.privilege), l.relation, l.grantee)
    from (
        select c.oid::regclass as relation, case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end as grantee,
            acl.privilege_type as privilege, c.relispartition as is_partition
        from pg_class as c, aclexplode(c.relacl) as acl
        where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind in ('r', 'p', 'm') and acl.grantee <> c.relowner
            and (acl.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
                or (acl.privilege_type = 'SELECT' and (c.relispartition
                    or c.relname = any ('{attestation_key,log_leaf,log_kept,canonical_cache,canonical_cache_node,erased_event,erasure}'))))
    ) as l
    union all
    select 'error', p.oid::regprocedure::text, format('it runs with the rights of %I, a superuser', owner.rolname),
        format('alter function %s owner to pgaudit_wf_owner;', p.oid::regprocedure)
    from pg_proc as p join pg_roles as owner on owner.oid = p.proowner and owner.rolsuper
    where p.pronamespace = 'pgaudit_wf'::regnamespace and p.prosecdef
        and p.proowner <> (select n.nspowner from pg_namespace as n where n.nspname = 'pgaudit_wf')
    union all
    select 'error', 'pgaudit_wf', format('the schema belongs to %I, a superuser', owner.rolname),
        'select pgaudit_wf._give_to_owner();'
    from pg_namespace as n join pg_roles as owner on owner.oid = n.nspowner and owner.rolsuper
    where n.nspname = 'pgaudit_wf'
    union all
    select 'error', 'pgaudit_wf_owner', format('the role that owns the audit schema is %s', surplus.what),
        format('alter role pgaudit_wf_owner %s;', surplus.remedy)
    from pg_roles as r,
    lateral (values
        (r.rolsuper, 'a superuser', 'nosuperuser'),
        (r.rolcanlogin, 'a login', 'nologin'),
        (r.rolcreaterole, 'allowed to create roles', 'nocreaterole'),
        (r.rolcreatedb, 'allowed to create databases', 'nocreatedb'),
        (r.rolreplication, 'allowed to replicate', 'noreplication'),
        (r.rolbypassrls, 'allowed to bypass row-level security', 'nobypassrls')
    ) as surplus (has, what, remedy)
    where r.rolname = 'pgaudit_wf_owner' and surplus.has
    union all
    select 'error', 'pgaudit_wf_owner', format('the role that owns the audit schema is a member of %I', g.rolname),
        format('revoke %I from pgaudit_wf_owner;', g.rolname)
    from pg_auth_members as m
    join pg_roles as g on g.oid = m.roleid
    where m.member = to_regrole('pgaudit_wf_owner')
    union all
    select 'error', v.oid::regclass::text,
        format('%s has row-level security, which we do not run as %I: the view cannot be read',
            d.refobjid::regclass, pg_get_userbyid(v.relowner)),
        format('alter view %1$s owner to %2$s; grant select on %1$s to %3$I;',
            v.oid::regclass, t.relowner::regrole, pgaudit_wf._schema_owner())
    from pg_class as v
    join pg_rewrite as r on r.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
    join pg_class as t on t.oid = d.refobjid and t.relrowsecurity and (t.relforcerowsecurity or t.relowner <> v.relowner)
        and t.relnamespace <> 'pgaudit_wf'::regnamespace
    where v.relnamespace = 'pgaudit_wf'::regnamespace and v.relkind = 'v'
        and not (select rolsuper or rolbypassrls from pg_roles where oid = v.relowner)
    group by v.oid, v.relowner, d.refobjid, t.relowner
    union all
    select 'error', a.target::text,
        format('rule %s is not applied: its condition could run a user-defined cast from the type of a column', r.id),
        format('delete from pgaudit_wf.action_rule where id = %s; -- or let its condition name other columns, or drop the cast', r.id)
    from pgaudit_wf.attachment as a
    join pgaudit_wf.action_rule as r on r.resource_type = a.resource_type and pgaudit_wf._rule_could_cast(a.target, r.condition)
    union all
    select 'error', v.oid::regclass::text, format('%I may not read the columns of %s that it names', owner.rolname, d.refobjid::regclass),
        'select pgaudit_wf.grant_directory();'
    from pg_class as v
    join pg_roles as owner on owner.oid = v.relowner
    join pg_rewrite as r on r.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
    where v.relnamespace = 'pgaudit_wf'::regnamespace and v.relkind = 'v'
        and not has_column_privilege(v.relowner, d.refobjid, d.refobjsubid::smallint, 'select')
    group by v.oid, owner.rolname, d.refobjid
    union all
    select 'error', b.target::text, b.problem,
        format('delete from pgaudit_wf.action_rule where id = %s; -- or change its condition', b.rule_id)
    from pgaudit_wf.broken_rules() as b
    union all
    select 'error', written.origin,
        format('it calls %s, which %I can replace, and which then runs with the rights of %I',
            p.oid::regprocedure, author.rolname, pgaudit_wf._schema_owner()),
        format('alter function %s owner to %I;', p.oid::regprocedure, pgaudit_wf._schema_owner())
    from (
        select format('action rule %s of %s', r.id, r.resource_type) as origin, r.condition from pgaudit_wf.action_rule as r
        union all
        select format('limit condition of %s', c.resource_type), c.condition from pgaudit_wf.limit_condition as c
    ) as written
    -- By its text, so perhaps too often: whatever is called by a name with a schema.
    cross join lateral regexp_matches(
        written.condition,
        e'(?:"((?:[^"]|"")+)"|([[:alpha:]_][\\w$]*))\\s*\\.\\s*(?:"((?:[^"]|"")+)"|([[:alpha:]_][\\w$]*))\\s*\\(',
        'g') as called
    join pg_namespace as n on n.nspname = coalesce(replace(called[1], '""', '"'), lower(called[2]))
    join pg_proc as p on p.pronamespace = n.oid and p.proname = coalesce(replace(called[3], '""', '"'), lower(called[4]))
    join pg_roles as author on author.oid = p.proowner and not author.rolsuper
    where author.rolname <> pgaudit_wf._schema_owner()
    union all
    select distinct 'error', c.oid::regclass::text,
        format('its owner %s may not execute %s: partitions of it cannot be created', c.relowner::regrole, p.oid::regprocedure),
        -- Less than attach(), which takes the owner's rights.
        format('grant execute on function %s to %s;', p.oid::regprocedure, c.relowner::regrole)
    from pg_class as c
    join pg_trigger as t on t.tgrelid = c.oid and not t.tgisinternal and t.tgtype & 1 = 1
    join pg_proc as p on p.oid = t.tgfoid and p.pronamespace = 'pgaudit_wf'::regnamespace
    where c.relkind = 'p' and not has_function_privilege(c.relowner, p.oid, 'execute')
        and c.oid in (select a.target from pgaudit_wf.attachment as a union all select e.target from pgaudit_wf.execution_attachment as e)
    union all
    select 'error', a.target::text, lost.problem, lost.remedy
    from pgaudit_wf.attachment as a, pgaudit_wf._switched_off(a) as lost
    where exists (select from pg_class where oid = a.target)
    union all
    select 'error', e.target::text, lost.problem, lost.remedy
    from pgaudit_wf.execution_attachment as e, pgaudit_wf._lost_stamps(e) as lost
    where exists (select from pg_class where oid = e.target)
    union all
    select 'warning', a.target::text, format('column "%s", named in %s, does not exist', named.name, named.role),
        format('select pgaudit_wf.attach(%L, %s => %L); -- or name the column that took its place', a.target, named.role, named.without)
    from pgaudit_wf.attachment as a,
    lateral (
        select 'org_column' as role, a.org_column as name, '' as without
        union all select 'label_column', a.label_column, ''
        union all select 'ignore', gone.name, array_remove(a.ignore, gone.name)::text from unnest(a.ignore) as gone (name)
    ) as named
    where named.name <> all (pgaudit_wf._column_names(a.target))
    union all
    select 'error', t.target::text, format('the count of its rows may be wrong since %s', t.stale_since),
        format('select pgaudit_wf.recount_usage(%L);', t.resource_type)
    from pgaudit_wf.limit_target as t where t.stale_since is not null
    union all
    select 'error', f.target,
        format('%s changes went through uncounted, last at %s (SQLSTATE %s): the condition of its limit fails',
            count(*), max(f.occurred_at), max(f.sqlstate)),
        -- Whether the condition still fails is not ours to try.
        coalesce(
            format('delete from pgaudit_wf.limit_condition where resource_type = %1$L; select pgaudit_wf.recount_usage(%1$L); '
                '-- or mend the condition, and only count', max(t.resource_type)),
            format('delete from pgaudit_wf.capture_failure where target = %L and op = ''COUNT'';', f.target))
    from pgaudit_wf.capture_failure as f left join pgaudit_wf.limit_target as t on t.target = to_regclass(f.target)
    where f.op = 'COUNT'
    group by f.target
    union all
    select 'error', t.target::text,
        format('its rows are not being counted: column "%s", which its limit needs, does not exist', needed.name),
        case when needed.name = t.org_column
            then format('delete from pgaudit_wf.org_limit where resource_type = %L; -- or name another org_column', t.resource_type)
            else format('delete from pgaudit_wf.limit_condition where resource_type = %L; -- or change it', t.resource_type)
        end
    from pgaudit_wf.limit_target as t, unnest(t.org_column || t.condition_columns) as needed (name)
    where not exists (
        select from jsonb_each_text(t.aliases) as alias
        where alias.value = needed.name and alias.key = any (pgaudit_wf._column_names(t.target)))
    union all
    select 'error', guard.relation::text, 'the log''s append-only trigger is missing or disabled',
        format('create or replace trigger append_only before update or delete or truncate on %1$s for each statement '
            'execute function pgaudit_wf._refuse_change(); alter table %1$s enable always trigger append_only;', guard.relation)
    from (
        select relid::regclass as relation from pg_partition_tree('pgaudit_wf.security_audit_log')
        union all values ('pgaudit_wf.attachment_history'::regclass)
    ) as guard
    where not exists (select from pg_trigger where tgrelid = guard.relation and tgname = 'append_only' and tgenabled = 'A')
    union all
    select 'warning', 'pgaudit_wf.security_audit_log', format('there is no partition for %s yet', to_char(month, 'YYYY-MM')),
        'select pgaudit_wf.ensure_log_partitions();'
    from (values (interval '0'), (interval '1 month')) as ahead (distance),
    lateral (select date_trunc('month', now() at time zone 'UTC') + ahead.distance as month) as needed
    where to_regclass(format('pgaudit_wf.security_audit_log_%s', to_char(month, '"y"YYYY"m"MM'))) is null
    union all
    select 'warning', 'pgaudit_wf.security_audit_log_default',
        format('events of %s are waiting in the default partition', to_char(waiting.month, 'YYYY-MM')),
        format('select pgaudit_wf.add_log_partition(%L);', waiting.month)
    from (
        select distinct date_trunc('month', occurred_at at time zone 'UTC')::date as month from pgaudit_wf.security_audit_log_default
    ) as waiting
    union all
    select 'warning', f.target,
        format('%s changes went through unrecorded, last at %s (SQLSTATE %s)', count(*), max(f.occurred_at), max(f.sqlstate)),
        format('delete from pgaudit_wf.capture_failure where target = %L; -- once its cause has been found', f.target)
    from pgaudit_wf.capture_failure as f where f.op <> 'COUNT' group by f.target
    union all
    select 'warning', 'pgaudit_wf.alert_delivery',
        format('%s alerts were given up, last at %s (%s)', count(*), max(d.settled_at),
            (array_agg(d.last_error order by d.settled_at desc))[1]),
        'select pgaudit_wf.requeue_alert();'
    from pgaudit_wf.alert_delivery as d where d.state = 'dead' and (d.recipient <> '' or d.rule_id is not null)
    having count(*) > 0
    union all
    select 'warning', format('stream %s', l.destination),
        format('it refused %s events, last at %s (%s)', count(*), max(l.put_aside_at),
            (array_agg(l.problem order by l.put_aside_at desc))[1]),
        format('select pgaudit_wf._backfill_stream(%L, %L);', l.destination, min(l.event_occurred_at))
    from pgaudit_wf.stream_dead_letter as l group by l.destination
    union all
    select 'warning', format('stream %s', s.destination), format('it failed %s times in a row (%s)', s.attempts, s.last_error),
        format('select pgaudit_wf._pause_stream(%L, false); -- once that is mended: tries again at once', s.destination)
    from pgaudit_wf.stream_state as s where s.attempts >= 5
    union all
    select 'notice', a.target::text, 'its trigger is of the generic form, which is slower',
        '-- In a shell, as a role that may create event triggers: pgaudit-wf migrate'
    from pgaudit_wf.attachment as a
    where a.form = 'generic' and not pgaudit_wf._can_follow_ddl()
    union all
    select 'notice', a.target::text, 'its trigger is of the generic form, which is no longer needed',
        format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where a.form = 'generic' and pgaudit_wf._can_follow_ddl()
    union all
    -- Of the latest versions only, as these are read in full.
    select 'notice', w.target::text,
        format('its graphs have keys of which nobody knows whether they mean anything: %s. A change of these makes an event and no version',
            string_agg(distinct found.key, ', ' order by found.key)),
        format('insert into pgaudit_wf.canvas_key values %s; -- those that only say how the graph looks',
            string_agg(distinct format('(%L)', found.key), ', '))
    from pgaudit_wf.workflow_attachment as w
    cross join lateral (
        select h.snapshot from pgaudit_wf.workflow_history as h
        where starts_with(h.workflow_id, w.id_prefix) and h.snapshot is not null order by h.tx_id desc limit 50
    ) as latest
    cross join lateral pgaudit_wf._uncounted_keys(w.shape, latest.snapshot) as found (key)
    group by w.target
    union all
    select 'notice', name, 'the role does not exist', format('create role %I nologin; select pgaudit_wf.grant_roles();', name)
    from unnest(array['pgaudit_wf_app', 'pgaudit_wf_reader']) as name
    where to_regrole(name) is null
    union all
    select 'error', i.inhrelid::regclass::text, format('it inherits from %s, and its rows are not recorded', i.inhparent::regclass),
        format('select pgaudit_wf.attach(%L, id_columns => %L);', i.inhrelid::regclass, a.id_columns)
    from pg_inherits as i
    join pgaudit_wf.attachment as a on a.target = i.inhparent
    join pg_class as c on c.oid = i.inhrelid and not c.relispartition
    where i.inhrelid not in (select own.target from pgaudit_wf.attachment as own)
    union all
    select * from pgaudit_wf._lost_settings()
    union all
    -- Swapped by rename, as online schema changes do, or dropped and made anew: nothing of ours came along.
    select 'error', named.target, 'it is not recorded, and the table that had this name before was', pgaudit_wf._attach_again(c.oid)
    from (select distinct on (h.target) h.target, h.change from pgaudit_wf.attachment_history as h order by h.target, h.id desc) as named
    join pg_class as c on c.oid = to_regclass(named.target) and c.relkind in ('r', 'p')
    where named.change <> 'detached'
        and not exists (
            select from pgaudit_wf.attachment as a
            where a.target = c.oid or a.target in (select relid from pg_partition_ancestors(c.oid)))
        and not exists (select from pg_trigger as t where t.tgrelid = c.oid and starts_with(t.tgname, '!pgaudit_wf_insert'))
    union all
    select
        case when exists (
                select from pg_subscription_rel as r
                where r.srrelid in (select relid from pg_partition_tree('pgaudit_wf.security_audit_log')))
            then 'notice' else 'error' end,
        'pgaudit_wf.security_audit_log', 'it was replicated from another cluster, and readers of it cannot go on here yet',
        'select pgaudit_wf.finish_switchover();'
    where case
        when (
            select has_schema_privilege(proowner, pronamespace, 'usage') from pg_proc where oid = 'pgaudit_wf._is_moved()'::regprocedure)
            then pgaudit_wf._is_moved() end
    union all
    select * from pgaudit_wf._stopped_subscriptions()
    union all
    select * from pgaudit_wf._holdups(interval '15 minutes')
    union all
    select * from pgaudit_wf._changed_objects()
    order by 1, 2, 3
$$;
comment on function pgaudit_wf.doctor() is
    'What is wrong or has drifted, and the remedy: missing or disabled triggers, functions, '
    'defaults and guards that are not as they were installed, changed columns, rights that are too wide, missing partitions. '
    'No rows: all is well.';
