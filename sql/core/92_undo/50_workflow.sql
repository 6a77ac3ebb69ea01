-- Rows of workflows written anew: one that was deleted comes back, a version becomes another workflow. Both are ordinary inserts of
-- what was recorded, with the caller's rights.

create type pgaudit_wf.workflow_source as (
    target regclass,
    shape text,
    row_id text,
    key_columns text[],
    key_condition text,
    key_expression text,
    row_expression text,
    nulls_expression text,
    columns pgaudit_wf.undo_columns,
    graph_columns text[],
    workflow pgaudit_wf.workflow_attachment,
    deletion jsonb
);
comment on type pgaudit_wf.workflow_source is
    'Where the row of a workflow is, SQL that reads it as an event would show it, and the operation that its last event recorded, '
    'if that deleted it.';

create function pgaudit_wf._workflow_source(workflow_id text, target regclass) returns pgaudit_wf.workflow_source
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    org constant text := pgaudit_wf._context_text('org_id');
    place constant pgaudit_wf.workflow_place := pgaudit_wf._find_workflow(_workflow_source.workflow_id, _workflow_source.target);
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = place.target);
    source pgaudit_wf.workflow_source;
    event record;
begin
    source.target := place.target;
    source.shape := place.shape;
    source.row_id := place.row_id;
    source.workflow := pgaudit_wf._usable_workflow(place.target);
    source.graph_columns := pgaudit_wf._definition_columns(place.target);
    source.columns := pgaudit_wf._undo_columns(setting);
    -- A column with a redacted path comes back where nothing in it was redacted.
    source.columns.restorable := (source.columns).restorable || array(
        select attname::text from pg_attribute
        where attrelid = place.target and attgenerated = '' and not attisdropped
            and attname = any ((source.columns).redacted) and attname <> all (setting.redact || setting.ignore || source.graph_columns));
    -- Values that are recorded by their digest are copied in full, as the caller may read them.
    setting.max_value := null;
    source.key_columns := pgaudit_wf._key_columns(setting);
    source.key_condition := pgaudit_wf._key_condition(setting, 'r');
    source.key_expression := pgaudit_wf._key_expression(setting, 'r');
    source.row_expression := pgaudit_wf._row_expression(setting, 'r');
    source.nulls_expression := pgaudit_wf._json_null_columns(array(select pgaudit_wf._capture_columns(setting)), 'r');
    select l.diff, l.occurred_at into event
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = setting.resource_type and l.resource_id = place.row_id and l.captured and l.diff -> 0 ->> 'path' = ''
        and (l.org_id is not distinct from org or (org is null and pg_has_role(
            session_user, (select relowner from pg_class where oid = 'pgaudit_wf.security_audit_log'::regclass), 'member')))
    order by l.occurred_at desc, l.id desc limit 1;
    if event.diff -> 0 ->> 'op' = 'remove' then
        source.deletion := pgaudit_wf._follow_renames(event.diff, setting.resource_type, event.occurred_at) -> 0;
    end if;
    return source;
end
$$;
comment on function pgaudit_wf._workflow_source(text, regclass) is
    'Where the row of a workflow is or was. Its deletion is that of the organization app.org_id, or of none while that is not set. '
    'Raises PA005 if no workflow table is attached.';

create function pgaudit_wf._stored_workflow(source pgaudit_wf.workflow_source) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write it, whatever the session's settings.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set lc_monetary = 'C'
set extra_float_digits = 1
set quote_all_identifiers = off
as $$
declare
    op jsonb;
begin
    execute format('select jsonb_build_object(''old'', %s, ''json_null'', to_jsonb(%s)) from %s as r where %s', (source).row_expression,
            coalesce((source).nulls_expression, '''{}''::text[]'), (source).target, (source).key_condition)
        into op using (source).row_id;
    return op;
end
$$;
comment on function pgaudit_wf._stored_workflow(pgaudit_wf.workflow_source) is
    'The row of a workflow as its deletion would record it; null if there is none that the caller may read.';

create function pgaudit_wf._workflow_payload(source pgaudit_wf.workflow_source, op jsonb, kept jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    state pgaudit_wf.undo_state := pgaudit_wf._undo_delete(row(null, '{}', '[]', '{}'), op, (source).columns);
    graph constant jsonb := pgaudit_wf._snapshot_columns(kept, (source).shape, (source).graph_columns);
begin
    if graph is null and (kept ? 'stored' or pgaudit_wf._graph_types((source).shape) is not null) then
        raise exception 'the version was kept in another shape than %', (source).shape
            using errcode = 'PA304', hint = 'Its nodes and edges are in pgaudit_wf.version_snapshot().';
    elsif graph is null then
        raise exception 'the trail does not hold the columns % of %', array_to_string((source).graph_columns, ', '), (source).target
            using errcode = 'PA304', hint = 'attach_workflow() was told that nodes() and edges() cover them.';
    end if;
    return pgaudit_wf._undo_payload(state.record - (source).columns.generated - 'content_hash'::text, state.nulls,
        pgaudit_wf._undo_types((source).target)) || graph;
end
$$;
comment on function pgaudit_wf._workflow_payload(pgaudit_wf.workflow_source, jsonb, jsonb) is
    'A recorded row with the graph of a snapshot, as _undo_statement() takes it; without columns whose values were not recorded. '
    'Raises PA304 where the graph cannot be put into its columns.';

create function pgaudit_wf._insert_workflow(
    source pgaudit_wf.workflow_source, payload jsonb, failure text, remedy text, returned text default null
) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set intervalstyle = 'postgres'
set lc_monetary = 'C'
as $$
declare
    setting pgaudit_wf.attachment;
    statement text;
    key text;
    failed_table text;
    failed_column text;
begin
    setting.target := (source).target;
    statement := pgaudit_wf._undo_statement(setting, 'insert', array(select jsonb_object_keys(payload)),
        pgaudit_wf._undo_types((source).target), false);
    if returned is null then
        execute statement using array[(source).row_id], array[payload];
    else
        execute statement || ' returning ' || returned into key using array[(source).row_id], array[payload];
    end if;
    return key;
exception
    when not_null_violation then
        get stacked diagnostics failed_table = table_name, failed_column = column_name;
        if payload ? failed_column or failed_table <> (select relname from pg_class where oid = (source).target) then
            raise;
        end if;
        raise exception '%: column "%" must have a value, and %', failure, failed_column,
            case pgaudit_wf._obstacle((source).columns, failed_column)
                when 'redacted' then 'it is redacted' when 'ignored' then 'it is ignored' else 'its value was not recorded' end
            using errcode = 'PA304',
                hint = format('alter table %s alter column %I set default …', (source).target, failed_column) || remedy;
end
$$;
comment on function pgaudit_wf._insert_workflow(pgaudit_wf.workflow_source, jsonb, text, text, text) is
    'Inserts such a row with the caller''s rights; returns what the expression returned makes of it. '
    'Raises PA304, with the failure and remedy given, where a column whose value was not recorded must have one.';

create function pgaudit_wf.undelete_workflow(workflow_id text, target regclass default null) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    source constant pgaudit_wf.workflow_source := pgaudit_wf._workflow_source(undelete_workflow.workflow_id, undelete_workflow.target);
    newest constant integer := pgaudit_wf._newest_version(undelete_workflow.workflow_id);
    payload jsonb;
begin
    if pgaudit_wf._stored_workflow(source) is not null then
        raise exception 'workflow % was not deleted', undelete_workflow.workflow_id
            using errcode = 'PA304', hint = 'Call pgaudit_wf.restore_workflow() to put an earlier version back.';
    elsif source.deletion is null then
        raise exception 'no event says that workflow % was deleted', undelete_workflow.workflow_id
            using errcode = 'PA302',
                hint = 'It belongs to another organization than app.org_id, was truncated, or its deletion was pruned.';
    end if;
    payload := pgaudit_wf._workflow_payload(source, source.deletion,
        pgaudit_wf.version_snapshot(undelete_workflow.workflow_id, newest));
    perform set_config('pgaudit_wf.restoring', newest::text, true);
    perform pgaudit_wf._insert_workflow(source, payload, format('workflow %s cannot be put back', undelete_workflow.workflow_id),
        ', or insert the row by hand.');
    perform set_config('pgaudit_wf.restoring', '', true);
    return pgaudit_wf._newest_version(undelete_workflow.workflow_id);
end
$$;
comment on function pgaudit_wf.undelete_workflow(text, regclass) is
    'Puts a deleted workflow back by an ordinary insert with the caller''s rights: the row under its key as its deletion recorded it, '
    'with the graph of its newest version; returns the number of the version that this makes (source restore). '
    'Columns whose values were not recorded (redacted, ignored, by digest, of paths) come back with their defaults. '
    'Recorded as <resource_type>.undeleted. '
    'Raises PA302 if nothing says that it was deleted, or it is another organization''s, PA344 if the version was pruned, '
    'PA304 if it is there, or a column that was not recorded must have a value.';

create function pgaudit_wf.copy_workflow(
    workflow_id text, version integer, name text default null, id text default null, target regclass default null
) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    source constant pgaudit_wf.workflow_source := pgaudit_wf._workflow_source(copy_workflow.workflow_id, copy_workflow.target);
    workflow constant pgaudit_wf.workflow_attachment := source.workflow;
    kept constant jsonb := pgaudit_wf.version_snapshot(copy_workflow.workflow_id, copy_workflow.version);
    op constant jsonb := coalesce(pgaudit_wf._stored_workflow(source), source.deletion);
    payload jsonb;
    made text[];
begin
    if op is null then
        raise exception 'workflow % does not exist, and no event says that it was deleted', copy_workflow.workflow_id
            using errcode = 'PA302', hint = 'It may belong to another organization. The version is in pgaudit_wf.version_snapshot().';
    elsif copy_workflow.name is not null and workflow.name_column is null then
        raise exception 'workflows of % have no name', source.target using errcode = 'PA008', hint = 'Leave it out.';
    end if;
    payload := pgaudit_wf._workflow_payload(source, op, kept);
    if copy_workflow.id is null then
        made := array(
            select attname from pg_attribute
            where attrelid = source.target and attname = any (source.key_columns) and (atthasdef or attidentity <> ''));
        if made = '{}' then
            raise exception 'the copy needs an id, as the key of % has no default', source.target using errcode = 'PA008';
        end if;
        payload := payload - made;
    elsif cardinality(source.key_columns) = 1 then
        payload := payload || jsonb_build_object(source.key_columns[1], copy_workflow.id);
    else
        begin
            made := array(select jsonb_array_elements_text(copy_workflow.id::jsonb));
        exception
            when data_exception then
                made := null;
        end;
        if cardinality(made) is distinct from cardinality(source.key_columns) then
            raise exception 'the id of a copy must be a JSON array of %', array_to_string(source.key_columns, ', ')
                using errcode = 'PA008';
        end if;
        payload := payload || jsonb_object(source.key_columns, made);
    end if;
    -- The marketplace has one listing of a name.
    payload := (payload - workflow.listing_columns)
        || case when workflow.name_column is null or coalesce(copy_workflow.name, kept ->> 'name') is null then '{}'
            else jsonb_build_object(workflow.name_column, coalesce(copy_workflow.name, kept ->> 'name')) end
        || case when workflow.description_column is not null and kept ? 'description'
            then jsonb_build_object(workflow.description_column, kept -> 'description') else '{}' end
        -- Two that are live would both answer.
        || case when workflow.enabled_column is not null then jsonb_build_object(workflow.enabled_column, false) else '{}' end
        || case when workflow.listed_column is not null then jsonb_build_object(workflow.listed_column, false) else '{}' end;
    return pgaudit_wf._workflow_id(workflow.id_prefix,
        pgaudit_wf._insert_workflow(source, payload, format('workflow %s cannot be copied', copy_workflow.workflow_id), '',
            source.key_expression));
end
$$;
comment on function pgaudit_wf.copy_workflow(text, integer, text, text, regclass) is
    'Makes another workflow of a version, by an ordinary insert with the caller''s rights, and returns its id: graph, name and '
    'description of the version (name: another one), the key by its default or as given (id; several columns as a JSON array), '
    'switched off, without its listing, and the rest of the row as it is, or as its deletion recorded it. '
    'Columns that events leave out or hide (ignored, redacted) get their defaults. '
    'Raises PA302 if there is no such workflow or version, or it is another organization''s, PA344 if the version was pruned, '
    'PA304 where a column without a value must have one, PA008 without an id where the key has no default.';

create function pgaudit_wf._deleted_at(workflow_id text) returns timestamptz
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    org constant text := pgaudit_wf._readable_history_org();
    place pgaudit_wf.workflow_place;
begin
    if org is null then
        return null;
    end if;
    place := pgaudit_wf._find_workflow(_deleted_at.workflow_id, null);
    return (
        select case when whole.op = 'remove' then whole.occurred_at end
        from (
            select l.occurred_at, l.diff -> 0 ->> 'op' as op
            from pgaudit_wf.security_audit_log as l
            join pgaudit_wf.attachment as a on a.target = place.target and l.resource_type = a.resource_type
            where l.resource_id = place.row_id and l.captured and l.diff -> 0 ->> 'path' = '' and l.org_id = org
            order by l.occurred_at desc, l.id desc limit 1
        ) as whole);
exception
    when sqlstate 'PA005' then
        return null;
end
$$;
comment on function pgaudit_wf._deleted_at(text) is
    'When a workflow whose versions the actor may read was deleted; null if it is there, or nothing says so.';
