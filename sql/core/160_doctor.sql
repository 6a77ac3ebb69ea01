-- Is what should be recorded still being recorded?

create function pgaudit_wf.doctor() returns table (severity text, subject text, problem text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with expected as (
        select a.target, a.form, a.function_name, tree.relid, wanted.name, wanted.name = 'pgaudit_wf_truncate' as statement_level
        from pgaudit_wf.attachment as a,
        lateral (select a.target as relid union select leaf from pgaudit_wf.leaf_tables(a.target) as leaf) as tree,
        lateral unnest(array['pgaudit_wf_insert', 'pgaudit_wf_update', 'pgaudit_wf_delete', 'pgaudit_wf_truncate']) as wanted (name)
        where wanted.name <> 'pgaudit_wf_truncate' or tree.relid in (select pgaudit_wf.leaf_tables(a.target))
    )
    select 'error', e.relid::regclass::text, format('the trigger %s is missing', e.name), format('select pgaudit_wf.attach(%L);', e.target)
    from expected as e
    where not exists (select from pg_trigger where tgrelid = e.relid and tgname = e.name)
    union all
    select 'error', e.relid::regclass::text, format('the trigger %s is disabled', e.name), format('alter table %s enable always trigger %I;', e.relid::regclass, e.name)
    from expected as e
    join pg_trigger on tgrelid = e.relid and tgname = e.name and tgenabled <> 'A'
    union all
    select 'error', a.target::text,
        format('its columns have changed since its trigger was made: %s', array_to_string(array(
            select '+' || name from unnest(pgaudit_wf.column_names(a.target)) as name where name <> all (a.columns)
            union all
            select '-' || name from unnest(a.columns) as name where name <> all (pgaudit_wf.column_names(a.target))), ', ')),
        format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where not (a.columns @> pgaudit_wf.column_names(a.target) and a.columns <@ pgaudit_wf.column_names(a.target))
    union all
    select 'error', a.target::text, 'its trigger is compiled, but DDL is not being followed: the next ALTER TABLE can make writes fail',
        format('alter event trigger … enable always; or, for the slower form that needs none: select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where a.form = 'compiled' and not pgaudit_wf.can_follow_ddl()
    union all
    select 'error', a.target::text, format('role %I can alter the table, and so switch its triggers off', member.rolname), format('revoke %I from %I;', owner.rolname, member.rolname)
    from pgaudit_wf.attachment as a
    join pg_class as c on c.oid = a.target
    join pg_roles as owner on owner.oid = c.relowner
    join pg_roles as member on pg_has_role(member.oid, owner.oid, 'member') and not member.rolsuper
    where pg_has_role(member.oid, to_regrole('pgaudit_wf_app'), 'member') and member.rolname <> 'pgaudit_wf_app'
        and to_regrole('pgaudit_wf_app') is not null
    union all
    select 'error', l.relation::text, format('role %I may %s the log directly', grantee.rolname, lower(l.privilege)),
        format('revoke %s on %s from %I;', lower(l.privilege), l.relation, grantee.rolname)
    from (
        select c.oid::regclass as relation, acl.grantee, acl.privilege_type as privilege
        from pg_class as c, aclexplode(c.relacl) as acl
        where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind in ('r', 'p') and acl.grantee <> c.relowner
            and acl.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
    ) as l
    join pg_roles as grantee on grantee.oid = l.grantee
    union all
    select 'error', guard.relation::text, 'the log''s append-only trigger is missing or disabled', 'Find out who disabled it; then: alter table … enable always trigger append_only;'
    from (
        select relid::regclass as relation from pg_partition_tree('pgaudit_wf.security_audit_log')
        union all values ('pgaudit_wf.attachment_history'::regclass)
    ) as guard
    where not exists (select from pg_trigger where tgrelid = guard.relation and tgname = 'append_only' and tgenabled = 'A')
    union all
    select 'warning', 'pgaudit_wf.security_audit_log', format('there is no partition for %s yet', to_char(month, 'YYYY-MM')), 'select pgaudit_wf.ensure_log_partitions();'
    from generate_series(date_trunc('month', now() at time zone 'UTC'), date_trunc('month', now() at time zone 'UTC') + interval '1 month', interval '1 month') as month
    where to_regclass(format('pgaudit_wf.security_audit_log_%s', to_char(month, '"y"YYYY"m"MM'))) is null
    union all
    select 'warning', 'pgaudit_wf.security_audit_log_default', 'events are waiting in the default partition', 'select pgaudit_wf.add_log_partition(''<their month>'');'
    where exists (select from pgaudit_wf.security_audit_log_default)
    union all
    select 'warning', f.target, format('%s changes went through unrecorded, last at %s (SQLSTATE %s)', count(*), max(f.occurred_at), max(f.sqlstate)),
        'Find the cause; delete the rows of pgaudit_wf.capture_failure when it is mended.'
    from pgaudit_wf.capture_failure as f group by f.target
    union all
    select 'notice', a.target::text, 'its trigger is of the generic form, which is slower', 'Run pgaudit-wf migrate as a role that may create event triggers, then attach again.'
    from pgaudit_wf.attachment as a
    where a.form = 'generic' and not pgaudit_wf.can_follow_ddl()
    union all
    select 'notice', a.target::text, 'its trigger is of the generic form, and need not be', format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where a.form = 'generic' and pgaudit_wf.can_follow_ddl()
    union all
    select 'notice', name, 'the role does not exist', format('create role %I nologin; select pgaudit_wf.grant_roles();', name)
    from unnest(array['pgaudit_wf_app', 'pgaudit_wf_reader']) as name
    where to_regrole(name) is null
    order by 1, 2, 3
$$;
comment on function pgaudit_wf.doctor() is
    'What is wrong or has drifted, and the remedy: missing or disabled triggers, changed columns, rights that are too wide, missing partitions. No row: all is well.';
