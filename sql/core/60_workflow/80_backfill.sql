-- Workflows older than their table's attachment get their first version.

create function pgaudit_wf.backfill_workflows(
    target regclass, after_id text default null, batch_size integer default 100,
    out examined integer, out written integer, out last_id text, out refused jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = backfill_workflows.target);
    workflow pgaudit_wf.workflow_attachment := (
        select w from pgaudit_wf.workflow_attachment as w where w.target = backfill_workflows.target);
    sort_key text := pgaudit_wf._key_expression(setting, 'w');
    sort_type text := '';
begin
    if workflow.target is null then
        raise exception '% is not an attached workflow table', backfill_workflows.target
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it first.';
    end if;
    perform pgaudit_wf._check_columns(setting, '{}');
    perform pgaudit_wf._check_shape(workflow);
    perform pgaudit_wf._check_workflow_columns(workflow);
    if coalesce(backfill_workflows.batch_size, 0) < 1 then
        raise exception 'batch_size must be at least 1' using errcode = 'PA008';
    end if;
    examined := 0;
    written := 0;
    refused := '[]';
    last_id := backfill_workflows.after_id;
    -- A single key is compared in its own type, so that its index is used.
    if cardinality(setting.id_columns) = 1 then
        select format('w.%I', attname), '::' || format_type(atttypid, atttypmod) into sort_key, sort_type
        from pg_attribute where attrelid = setting.target and attname = setting.id_columns[1];
    end if;
    for last_id in execute array_to_string(pgaudit_wf._fill(
            'select {{id}} from {{table}} as w where $1 is null or {{sort key}} > $1{{type}} order by {{sort key}} limit $2',
            jsonb_build_object('id', pgaudit_wf._key_expression(setting, 'w'), 'table', setting.target::text,
                'sort key', sort_key, 'type', sort_type)), '')
        using backfill_workflows.after_id, backfill_workflows.batch_size
    loop
        examined := examined + 1;
        continue when pgaudit_wf._newest_version(pgaudit_wf._workflow_id(workflow.id_prefix, last_id)) is not null;
        -- One malformed workflow must not hold up all the others.
        begin
            written := written + pgaudit_wf._backfill_workflow(setting, workflow, last_id);
        exception
            when sqlstate 'PA201' or sqlstate 'PA202' or sqlstate 'PA203' then
                refused := refused || jsonb_build_object(
                    'workflow_id', pgaudit_wf._workflow_id(workflow.id_prefix, last_id), 'message', sqlerrm);
        end;
    end loop;
end
$$;
comment on function pgaudit_wf.backfill_workflows(regclass, text, integer) is
    'Writes version 1 (source backfill) and a creation event (metadata.backfilled) for workflows that have no version yet: '
    'one batch, in the order of their ids, after after_id. '
    'Call it in a transaction of its own, with last_id as the next after_id, until examined is 0. '
    'Malformed ones, whose nodes are not an array for instance, are left out and listed in refused ([{workflow_id, message}]). '
    'Safe to repeat and while the application writes. Raises PA002 for a table that has lost a column, PA005 for one that is not attached.';

create function pgaudit_wf._backfill_workflow(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, id text
) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    snapshot jsonb;
    op jsonb;
    org text;
    label text;
    key constant text := pgaudit_wf._workflow_id((workflow).id_prefix, _backfill_workflow.id);
    hash text;
begin
    perform pgaudit_wf._unpack_context();
    -- The row lock makes a save by the application wait, or us wait for it: then it has written the first version itself.
    execute format('select %s, %s, %s',
            pgaudit_wf._snapshot_expression(setting, workflow, 'w',
                pgaudit_wf._graph_expression(setting, workflow, 'w', 'nodes'),
                pgaudit_wf._graph_expression(setting, workflow, 'w', 'edges')),
            pgaudit_wf._optional_column('left(w.%I::text, 255)', (setting).org_column, 'null::text'),
            pgaudit_wf._optional_column('left(w.%I::text, 255)', (setting).label_column, 'null::text'))
            || format(' from %s as w where %s for no key update', (setting).target, pgaudit_wf._key_condition(setting, 'w'))
        into snapshot, org, label using _backfill_workflow.id;
    if snapshot is null or pgaudit_wf._newest_version(key) is not null then
        return 0;
    end if;
    op := pgaudit_wf._stored_row(setting, _backfill_workflow.id) || '{"op": "add", "path": ""}';
    hash := pgaudit_wf.hash_definition(snapshot -> 'nodes', snapshot -> 'edges');
    insert into pgaudit_wf.workflow_history (workflow_id, version, org_id, source, snapshot, change, content_hash)
    values (key, 1, org, 'backfill', snapshot, pgaudit_wf.version_diff(null, snapshot), hash);
    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (org, (setting).resource_type || '.created', (setting).resource_type, _backfill_workflow.id, true,
        jsonb_build_array(jsonb_set(op, '{value,content_hash}', to_jsonb(hash))),
        jsonb_strip_nulls(jsonb_build_object('backfilled', true, 'version', 1, 'label', label)));
    return 1;
end
$$;
comment on function pgaudit_wf._backfill_workflow(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text) is
    'Writes version 1 and the creation event of one workflow, unless it has a version; returns how many were written.';
