-- Who may do what. Only the owner writes the log; triggers and record_event() do it as the owner.

create function pgaudit_wf.grant_roles() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    invoker regprocedure;
begin
    -- By default everybody may execute a function, and a security definer runs with our rights.
    revoke execute on all functions in schema pgaudit_wf from public;
    if to_regrole('pgaudit_wf_app') is not null then
        grant usage on schema pgaudit_wf to pgaudit_wf_app;
        grant execute on function pgaudit_wf.record_event(text, text, text, jsonb, jsonb, jsonb, text),
            pgaudit_wf.record_denied(text, text, text, jsonb), pgaudit_wf.record_attempt(jsonb),
            pgaudit_wf.restore_workflow(text, integer, regclass), pgaudit_wf.label_version(text, integer, text, text),
            pgaudit_wf.publish_version(text, integer),
            pgaudit_wf.version_snapshot(text, integer), pgaudit_wf._org_version_snapshot(text, integer),
            pgaudit_wf._find_workflow(text, regclass), pgaudit_wf._newest_version(text),
            pgaudit_wf.undelete_workflow(text, regclass), pgaudit_wf.copy_workflow(text, integer, text, text, regclass),
            pgaudit_wf._workflow_source(text, regclass),
            pgaudit_wf._insert_workflow(pgaudit_wf.workflow_source, jsonb, text, text, text),
            pgaudit_wf.same_definition(jsonb, jsonb, jsonb, jsonb),
            pgaudit_wf.validate_definition(jsonb, jsonb), pgaudit_wf.hash_definition(jsonb, jsonb) to pgaudit_wf_app;
        grant select on pgaudit_wf.config_alias, pgaudit_wf.action_schema to pgaudit_wf_app;
        -- Those about definitions call others, which only compute.
        for invoker in
            select p.oid::regprocedure from pg_proc as p
            where p.pronamespace = 'pgaudit_wf'::regnamespace and not p.prosecdef and p.provolatile <> 'v'
        loop
            execute format('grant execute on function %s to pgaudit_wf_app', invoker);
        end loop;
    end if;
    if to_regrole('pgaudit_wf_reader') is not null then
        grant usage on schema pgaudit_wf to pgaudit_wf_reader;
        grant select on pgaudit_wf.security_audit_log, pgaudit_wf.api_key_activity, pgaudit_wf.attachment, pgaudit_wf.attachment_history,
            pgaudit_wf.attached, pgaudit_wf.key_change, pgaudit_wf.action_rule, pgaudit_wf.capture_failure,
            pgaudit_wf.workflow_history, pgaudit_wf.workflow_timeline, pgaudit_wf.version_label, pgaudit_wf.published_version,
            pgaudit_wf.workflow_attachment,
            pgaudit_wf.execution_attachment, pgaudit_wf.config_alias, pgaudit_wf.canvas_key, pgaudit_wf.action_schema,
            pgaudit_wf.org_limit, pgaudit_wf.limit_condition, pgaudit_wf.org_usage, pgaudit_wf.limit_usage,
            pgaudit_wf.limit_list, pgaudit_wf.workflow_list, pgaudit_wf.workflow_table, pgaudit_wf.log_partition, pgaudit_wf.event_count,
            pgaudit_wf.api_key_use, pgaudit_wf.hub_node
            to pgaudit_wf_reader;
        -- What runs with the caller's own rights can do no harm; of the security definers, only those that check who asks.
        for invoker in
            select p.oid::regprocedure from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace and not p.prosecdef
        loop
            execute format('grant execute on function %s to pgaudit_wf_reader', invoker);
        end loop;
        grant execute on function pgaudit_wf._readable_org(), pgaudit_wf._readable_history_org(), pgaudit_wf._deleted_at(text),
            pgaudit_wf.describe_actors(text, text[], text),
            pgaudit_wf.log_generations(), pgaudit_wf._has_event(text, bigint, bigint, timestamptz),
            pgaudit_wf._org_pseudonyms(text[]), pgaudit_wf._record_org_export(text, jsonb, bigint, text),
            pgaudit_wf._describe_api_key(text, text) to pgaudit_wf_reader;
    end if;
end
$$;
comment on function pgaudit_wf.grant_roles() is
    'Grants pgaudit_wf_app and pgaudit_wf_reader their rights. Run it again after creating a role that was missing at installation.';

-- What the database's default privileges granted to others during the installation.
select pgaudit_wf._revoke_defaults(oid)
from pg_catalog.pg_class where relnamespace = 'pgaudit_wf'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'S');

do $$
declare
    given record;
begin
    for given in
        select p.oid::regprocedure as function, acl.grantee::regrole as grantee
        from pg_proc as p, aclexplode(p.proacl) as acl
        where p.pronamespace = 'pgaudit_wf'::regnamespace and acl.grantee not in (0, p.proowner)
    loop
        execute format('revoke all on function %s from %s', given.function, given.grantee);
    end loop;
end
$$;

select pgaudit_wf.grant_roles();
