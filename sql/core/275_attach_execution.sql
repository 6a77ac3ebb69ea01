-- Runs: stamped with the credential that started them and the definition that ran, by trigger, once and for all.

create view pgaudit_wf.credential_directory as
select
    null::text as credential_id,
    null::text as credential_type,
    null::text as label
where false;
comment on view pgaudit_wf.credential_directory is
    'API keys by handle, for the stamp of a run. Empty until you point it at your own keys: create or replace view pgaudit_wf.credential_directory as select id::text as credential_id, ''org_api_key'' as credential_type, prefix as label from …';
comment on column pgaudit_wf.credential_directory.credential_id is 'Id as in app.api_key_id.';
comment on column pgaudit_wf.credential_directory.credential_type is 'webhook_key or org_api_key.';
comment on column pgaudit_wf.credential_directory.label is 'A handle that people recognise and that is no secret, such as kh_9f2….';

create function pgaudit_wf.current_credential(out credential_type text, out label text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    key_id constant text := nullif(current_setting('app.api_key_id', true), '');
    method constant text := nullif(current_setting('app.auth_method', true), '');
    actor constant text := nullif(current_setting('app.actor_id', true), '');
begin
    if key_id is not null then
        select d.credential_type, d.label into credential_type, label
        from pgaudit_wf.credential_directory as d where d.credential_id = key_id limit 1;
    end if;
    credential_type := coalesce(credential_type, case
        when method in ('webhook_key', 'org_api_key', 'oauth', 'session', 'internal') then method
        when method in ('api_key', 'key') or key_id is not null then 'org_api_key'
        when method = 'webhook' then 'webhook_key'
        when actor is not null then 'session'
        else 'internal'
    end);
    if label is null and key_id is null then
        label := coalesce(
            nullif(current_setting('app.actor_label', true), ''),
            (select coalesce(d.email, d.name) from pgaudit_wf.actor_directory as d where d.actor_id = actor limit 1),
            actor,
            session_user::text);
    end if;
    label := coalesce(label, key_id);
end
$$;
comment on function pgaudit_wf.current_credential() is
    'The credential behind the current transaction: its type (webhook_key, org_api_key, oauth, session, internal; from credential_directory by app.api_key_id, else from app.auth_method) and a handle that is no secret.';

create table pgaudit_wf.execution_attachment (
    target regclass primary key,
    workflow_target regclass not null,
    workflow_column text not null,
    hash_column text not null,
    type_column text not null,
    label_column text not null,
    id_column text not null,
    org_column text,
    time_column text,
    function_name text not null unique
);
comment on table pgaudit_wf.execution_attachment is 'Tables that hold the runs of workflows, and where; written by attach_execution() and detach_execution() only.';
comment on column pgaudit_wf.execution_attachment.target is 'The table of runs.';
comment on column pgaudit_wf.execution_attachment.workflow_target is 'The attached workflow table whose workflows run.';
comment on column pgaudit_wf.execution_attachment.workflow_column is 'Column with the workflow''s id.';
comment on column pgaudit_wf.execution_attachment.hash_column is 'Column that is stamped with the hash of the definition.';
comment on column pgaudit_wf.execution_attachment.type_column is 'Column that is stamped with the credential''s type.';
comment on column pgaudit_wf.execution_attachment.label_column is 'Column that is stamped with the credential''s handle.';
comment on column pgaudit_wf.execution_attachment.id_column is 'Primary key of the table.';
comment on column pgaudit_wf.execution_attachment.org_column is 'Column with the organisation, if any.';
comment on column pgaudit_wf.execution_attachment.time_column is 'Column that says when the run started, if any.';
comment on column pgaudit_wf.execution_attachment.function_name is 'Trigger function in schema pgaudit_wf.';

create function pgaudit_wf.runnable_hash(workflow_target regclass, id text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = runnable_hash.workflow_target);
    workflow pgaudit_wf.workflow_attachment := (select w from pgaudit_wf.workflow_attachment as w where w.target = runnable_hash.workflow_target);
    nodes jsonb;
    edges jsonb;
    found_rows integer;
begin
    if workflow.target is null then
        return null;
    end if;
    execute format('select w.%I::jsonb as nodes, w.%I::jsonb as edges from %s as w where %s', workflow.nodes_column, workflow.edges_column, setting.target,
            pgaudit_wf.key_condition(setting, 'w'))
        into nodes, edges using runnable_hash.id;
    get diagnostics found_rows = row_count;
    if found_rows = 0 then
        return null;
    end if;
    perform pgaudit_wf.check_definition(nodes, edges, 'run');
    return coalesce(pgaudit_wf.latest_hash(workflow.id_prefix || runnable_hash.id), pgaudit_wf.hash_definition(nodes, edges));
end
$$;
comment on function pgaudit_wf.runnable_hash(regclass, text) is
    'Hash of the definition that a run of the workflow executes now; null for an unknown workflow; raises PA301 if it is invalid.';

create function pgaudit_wf.refuse_restamp() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'the stamp of a run in %.% cannot be altered', tg_table_schema, tg_table_name
        using errcode = 'PA303', hint = 'Credential and definition hash are written once, when the run is inserted; leave them out of the update.';
end
$$;
comment on function pgaudit_wf.refuse_restamp() is 'Trigger that keeps the stamp of a run as it is: raises PA303.';

create function pgaudit_wf.attach_execution(
    target regclass,
    workflow regclass default null,
    workflow_column text default 'workflow_id',
    hash_column text default 'executed_workflow_hash',
    type_column text default 'triggered_by_credential_type',
    label_column text default 'triggered_by_credential_label',
    org_column text default null,
    time_column text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    columns_now constant text[] := pgaudit_wf.column_names(attach_execution.target);
    run pgaudit_wf.execution_attachment;
    missing text;
begin
    perform pgaudit_wf.check_attachable(attach_execution.target);
    run.target := attach_execution.target;
    run.workflow_target := coalesce(attach_execution.workflow, (select w.target from pgaudit_wf.workflow_attachment as w order by w.id_prefix limit 1));
    if not exists (select from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target) then
        raise exception '% is no attached workflow table', coalesce(run.workflow_target::text, 'there')
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it first.';
    end if;
    run.workflow_column := attach_execution.workflow_column;
    run.hash_column := attach_execution.hash_column;
    run.type_column := attach_execution.type_column;
    run.label_column := attach_execution.label_column;
    run.org_column := coalesce(attach_execution.org_column, case when 'org_id' = any (columns_now) then 'org_id' end);
    run.time_column := coalesce(attach_execution.time_column, (
        select name from unnest(array['started_at', 'created_at']) with ordinality as usual (name, position)
        where name = any (columns_now) order by position limit 1));
    run.function_name := 'stamp_' || substr(pgaudit_wf.capture_function_name(attach_execution.target), 9);
    select name into missing
    from unnest(array_remove(array[run.workflow_column, run.hash_column, run.type_column, run.label_column, run.org_column, run.time_column], null)) as name
    where name <> all (columns_now) limit 1;
    if found then
        raise exception '% has no column "%"', run.target, missing
            using errcode = 'PA002', hint = format('Its columns are %s.', array_to_string(columns_now, ', '));
    end if;
    select attname into run.id_column
    from pg_index join pg_attribute on attrelid = run.target and attnum = indkey[0]
    where indrelid = run.target and indisprimary and indnkeyatts = 1;
    if run.id_column is null then
        raise exception '% has no primary key of one column', run.target using errcode = 'PA002', hint = 'A run is named by it.';
    end if;

    perform set_config('pgaudit_wf.compiling', 'on', true);
    execute format($function$create or replace function pgaudit_wf.%1$I() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as %2$L$function$, run.function_name, format($body$
-- Stamps each run in %1$s with credential and definition; written by pgaudit_wf.attach_execution().
declare
    credential record;
begin
    select * into credential from pgaudit_wf.current_credential();
    new.%2$I := credential.credential_type;
    new.%3$I := credential.label;
    new.%4$I := pgaudit_wf.runnable_hash(%5$L, new.%6$I::text);
    return new;
end
$body$, run.target, run.type_column, run.label_column, run.hash_column, run.workflow_target, run.workflow_column));
    execute format('comment on function pgaudit_wf.%I() is %L', run.function_name, format('Stamps the runs of %s.', run.target));
    execute format('revoke all on function pgaudit_wf.%I() from public', run.function_name);
    execute format('alter function pgaudit_wf.%I() owner to %s', run.function_name, (select nspowner::regrole::text from pg_namespace where nspname = 'pgaudit_wf'));
    execute format('create or replace trigger pgaudit_wf_stamp before insert on %s for each row execute function pgaudit_wf.%I()', run.target, run.function_name);
    execute format('create or replace trigger pgaudit_wf_restamp before update on %1$s for each row'
        ' when (old.%2$I is distinct from new.%2$I or old.%3$I is distinct from new.%3$I or old.%4$I is distinct from new.%4$I)'
        ' execute function pgaudit_wf.refuse_restamp()', run.target, run.type_column, run.label_column, run.hash_column);
    execute format('alter table %s enable always trigger pgaudit_wf_stamp, enable always trigger pgaudit_wf_restamp', run.target);
    perform set_config('pgaudit_wf.compiling', 'off', true);

    delete from pgaudit_wf.execution_attachment as e where e.target = run.target;
    insert into pgaudit_wf.execution_attachment select run.*;
end
$$;
comment on function pgaudit_wf.attach_execution(regclass, regclass, text, text, text, text, text, text) is
    'Has every run inserted into the table stamped with the credential that started it and the hash of the definition that runs, whatever the application writes there; refuses runs of an invalid definition (PA301) and later changes of the stamp (PA303). '
    'workflow is the attached workflow table (default: the first). Raises PA002 on a missing column, PA005 without a workflow table. Call it again after renaming one of the columns.';

create function pgaudit_wf.detach_execution(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    run pgaudit_wf.execution_attachment;
begin
    delete from pgaudit_wf.execution_attachment as e where e.target = detach_execution.target returning e.* into run;
    if not found then
        raise exception '% is not attached', detach_execution.target using errcode = 'PA005';
    end if;
    perform set_config('pgaudit_wf.compiling', 'on', true);
    execute format('drop trigger if exists pgaudit_wf_stamp on %s', run.target);
    execute format('drop trigger if exists pgaudit_wf_restamp on %s', run.target);
    execute format('drop function pgaudit_wf.%I()', run.function_name);
    perform set_config('pgaudit_wf.compiling', 'off', true);
end
$$;
comment on function pgaudit_wf.detach_execution(regclass) is 'Stops stamping runs; the stamps stay. Raises PA005 if the table is not attached.';
