-- Which tables are audited, and how; and who changed that.

create table pgaudit_wf.attachment (
    target regclass primary key,
    resource_type text not null,
    id_columns text[] not null,
    org_column text,
    label_column text,
    ignore text[] not null,
    redact text[] not null,
    shallow text[] not null,
    max_value integer,
    on_failure text not null,
    form text not null,
    function_name text not null unique,
    columns text[] not null,
    usage_granted name,
    written_for text,
    attached_at timestamptz not null default now(),
    attached_by text not null default session_user,
    constraint attachment_max_value check (max_value > 0),
    constraint attachment_on_failure check (on_failure in ('abort', 'warn')),
    constraint attachment_form check (form in ('compiled', 'generic')),
    constraint attachment_id_columns check (cardinality(id_columns) > 0)
);
comment on table pgaudit_wf.attachment is 'Settings of the audited tables; written by attach() and detach() only. Read the view attached.';
comment on column pgaudit_wf.attachment.target is 'The audited table.';
comment on column pgaudit_wf.attachment.resource_type is 'resource_type of its events, and the first half of their default actions.';
comment on column pgaudit_wf.attachment.id_columns is 'Columns that make up resource_id.';
comment on column pgaudit_wf.attachment.org_column is 'Column that gives org_id; null when the table has none and app.org_id is taken.';
comment on column pgaudit_wf.attachment.label_column is 'Column whose value is kept as metadata.label.';
comment on column pgaudit_wf.attachment.ignore is 'Columns left out of the log altogether: a change of nothing else makes no event.';
comment on column pgaudit_wf.attachment.redact is
    'Columns that are shown as "[redacted]", and paths within json, jsonb and text columns that are (options.headers.*).';
comment on column pgaudit_wf.attachment.shallow is 'json and jsonb columns that are replaced as a whole, whatever changed within.';
comment on column pgaudit_wf.attachment.max_value is
    'Bytes up to which a value is recorded as it is, a larger one by its digest; null: up to what jsonb can hold.';
comment on column pgaudit_wf.attachment.on_failure is
    'abort: no change without its record. warn: the change goes through, the failure is counted.';
comment on column pgaudit_wf.attachment.form is
    'compiled: native comparisons, kept up to date by the DDL event trigger. generic: by to_jsonb, for servers without that event trigger.';
comment on column pgaudit_wf.attachment.function_name is e'Trigger function in schema pgaudit_wf; read it with \\sf.';
comment on column pgaudit_wf.attachment.columns is 'The table''s columns as compiled, in order: how a rename is recognized.';
comment on column pgaudit_wf.attachment.usage_granted is 'Owner of a partitioned table, granted USAGE on our schema because of it.';
comment on column pgaudit_wf.attachment.written_for is
    'What its functions were written for: a fingerprint of the table''s columns, owner, root and statement triggers in use.';
comment on column pgaudit_wf.attachment.attached_at is 'When it was first attached.';
comment on column pgaudit_wf.attachment.attached_by is 'Login role that first attached it.';

create table pgaudit_wf.workflow_attachment (
    target regclass primary key,
    shape text not null default 'reactflow',
    nodes_column text,
    edges_column text,
    name_column text,
    description_column text,
    visibility_column text,
    enabled_column text,
    listed_column text,
    listing_columns text[] not null,
    id_prefix text not null unique
);
comment on table pgaudit_wf.workflow_attachment is
    'Attached tables that hold workflows, and in which columns; written by attach_workflow() and detach() only.';
comment on column pgaudit_wf.workflow_attachment.target is 'The table.';
comment on column pgaudit_wf.workflow_attachment.shape is
    'How the graph is stored: reactflow, n8n, flowise, or the schema of one''s own functions nodes, edges and back.';
comment on column pgaudit_wf.workflow_attachment.nodes_column is
    'Column with the nodes; flowise: with the whole graph; a shape of one''s own: one that events leave out, or null.';
comment on column pgaudit_wf.workflow_attachment.edges_column is
    'Column with the edges; n8n: with the connections; flowise: null; a shape of one''s own: one that events leave out, or null.';
comment on column pgaudit_wf.workflow_attachment.name_column is 'Column with the workflow''s name.';
comment on column pgaudit_wf.workflow_attachment.description_column is 'Column with its description.';
comment on column pgaudit_wf.workflow_attachment.visibility_column is 'Column that says who may see it.';
comment on column pgaudit_wf.workflow_attachment.enabled_column is 'Boolean column that switches it on.';
comment on column pgaudit_wf.workflow_attachment.listed_column is 'Boolean column that puts it on the marketplace.';
comment on column pgaudit_wf.workflow_attachment.listing_columns is
    'Columns of its marketplace listing: a change to one of them creates a version of source listing.';
comment on column pgaudit_wf.workflow_attachment.id_prefix is
    'What workflow_history puts before this table''s ids: nothing for the first table, then <resource_type>/.';

create function pgaudit_wf._column_names(target regclass) returns text[]
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select array_agg(attname::text order by attnum)
        from pg_attribute
        where attrelid = $1 and attnum > 0 and not attisdropped
    );
end
$$;
comment on function pgaudit_wf._column_names(regclass) is 'Names of the table''s columns, in order.';

create function pgaudit_wf._primary_key(target regclass) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array_agg(attname::text order by k.position)
    from pg_index, unnest(indkey) with ordinality as k (key_number, position)
    join pg_attribute on attrelid = _primary_key.target and attnum = key_number
    where indrelid = _primary_key.target and indisprimary
$$;
comment on function pgaudit_wf._primary_key(regclass) is 'Columns of a table''s primary key, in its order; null without one.';

create function pgaudit_wf._key_columns(setting pgaudit_wf.attachment) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when (setting).id_columns <@ pgaudit_wf._column_names((setting).target) then (setting).id_columns
        else coalesce((
            select key from pgaudit_wf._primary_key((setting).target) as key
            where not key && ((setting).ignore || pgaudit_wf._secret_columns((setting).redact, (setting).columns))
                and not exists (
                    select from pg_attribute where attrelid = (setting).target and attname = any (key) and attgenerated = 'v')), '{}')
    end;
end
$$;
comment on function pgaudit_wf._key_columns(pgaudit_wf.attachment) is
    'Columns that make up resource_id now: those of the attachment; after one of them was dropped, the primary key, if it may be shown, '
    'or else none.';

create function pgaudit_wf._graph_types(shape text) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when shape = 'reactflow' then array['jsonb', 'json']
        when shape in ('n8n', 'flowise') then array['jsonb', 'json', 'text', 'character varying']
    end
$$;
comment on function pgaudit_wf._graph_types(text) is
    'The types that a column with a graph of a shape can have; null for a shape of one''s own, which takes any.';

create function pgaudit_wf._shape_function(workflow pgaudit_wf.workflow_attachment, name text) returns oid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select oid from pg_proc
    where oid = to_regprocedure(format('%I.%I(%s%s)', (workflow).shape, name, (workflow).target,
            case name when 'back' then ', jsonb, jsonb' else '' end))
        and prorettype = case name when 'back' then (select reltype from pg_class where oid = (workflow).target) else 'jsonb'::regtype end
        and not proretset
$$;
comment on function pgaudit_wf._shape_function(pgaudit_wf.workflow_attachment, text) is
    'The function nodes, edges or back of a shape of one''s own for a table; null without one.';

create function pgaudit_wf._shape_problem(workflow pgaudit_wf.workflow_attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when pgaudit_wf._graph_types((workflow).shape) is not null then null
        when pgaudit_wf._shape_function(workflow, 'nodes') is null or pgaudit_wf._shape_function(workflow, 'edges') is null
            then format('shape "%s" is neither reactflow, n8n nor flowise nor a schema with functions nodes(%2$s) and edges(%2$s)'
                ' that return jsonb', (workflow).shape, (workflow).target)
        -- Whoever writes the table runs them.
        when not has_schema_privilege('public', to_regnamespace(quote_ident((workflow).shape))::oid, 'usage')
            or not has_function_privilege('public', pgaudit_wf._shape_function(workflow, 'nodes'), 'execute')
            or not has_function_privilege('public', pgaudit_wf._shape_function(workflow, 'edges'), 'execute')
            then format('not everybody may call the functions of shape "%s", which run with the rights of whoever writes %s',
                (workflow).shape, (workflow).target)
    end
$$;
comment on function pgaudit_wf._shape_problem(pgaudit_wf.workflow_attachment) is
    'Why the graph of a workflow table cannot be read by its shape; null if it can.';

create function pgaudit_wf._workflow_problems(workflow pgaudit_wf.workflow_attachment)
returns table (role text, name text, wanted text[], given text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(named.role, 'listing_columns'), name, named.wanted, format_type(atttypid, null)
    from (values
        ('nodes_column', (workflow).nodes_column, pgaudit_wf._graph_types((workflow).shape)),
        ('edges_column', (workflow).edges_column, pgaudit_wf._graph_types((workflow).shape)),
        ('name_column', (workflow).name_column, null),
        ('description_column', (workflow).description_column, null),
        ('visibility_column', (workflow).visibility_column, null),
        ('enabled_column', (workflow).enabled_column, array['boolean']),
        ('listed_column', (workflow).listed_column, array['boolean'])
    ) as named (role, name, wanted)
    full join unnest((workflow).listing_columns) as listed (name) using (name)
    left join pg_attribute on attrelid = (workflow).target and attname = name and not attisdropped
    where name is not null and (attname is null or atttypid <> all (named.wanted::regtype[]))
$$;
comment on function pgaudit_wf._workflow_problems(pgaudit_wf.workflow_attachment) is
    'The columns of a workflow table that are missing or of the wrong type.';

create function pgaudit_wf._usable_workflow(target regclass) returns pgaudit_wf.workflow_attachment
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_attachment;
    faulty text[];
begin
    select * into workflow from pgaudit_wf.workflow_attachment as w where w.target = _usable_workflow.target;
    if not found then
        return null;
    end if;
    select coalesce(array_agg(problem.name), '{}') into faulty from pgaudit_wf._workflow_problems(workflow) as problem;
    if faulty && array[workflow.nodes_column, workflow.edges_column] or pgaudit_wf._shape_problem(workflow) is not null
        or (select pgaudit_wf._key_columns(a) = '{}' from pgaudit_wf.attachment as a where a.target = workflow.target)
    then
        return null;
    end if;
    workflow.name_column := case when workflow.name_column <> all (faulty) then workflow.name_column end;
    workflow.description_column := case when workflow.description_column <> all (faulty) then workflow.description_column end;
    workflow.visibility_column := case when workflow.visibility_column <> all (faulty) then workflow.visibility_column end;
    workflow.enabled_column := case when workflow.enabled_column <> all (faulty) then workflow.enabled_column end;
    workflow.listed_column := case when workflow.listed_column <> all (faulty) then workflow.listed_column end;
    workflow.listing_columns := array(select name from unnest(workflow.listing_columns) as name where name <> all (faulty));
    return workflow;
end
$$;
comment on function pgaudit_wf._usable_workflow(regclass) is
    'What is attached of a workflow table, without the columns that were dropped or retyped since; '
    'null for another table, and without a graph or a key, as no versions can then be kept.';

create function pgaudit_wf._definition_columns(target regclass) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case when w.target is null then '{}' else array_remove(array[w.nodes_column, w.edges_column], null) end
        from pgaudit_wf._usable_workflow(_definition_columns.target) as w
    );
end
$$;
comment on function pgaudit_wf._definition_columns(regclass) is
    'The columns with the graph of a workflow table whose versions are kept, which events leave out; none for other tables.';

create function pgaudit_wf._keeps_versions(target regclass) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select w.target is not null from pgaudit_wf._usable_workflow(_keeps_versions.target) as w);
end
$$;
comment on function pgaudit_wf._keeps_versions(regclass) is 'Whether versions of a table''s rows are kept now.';

create table pgaudit_wf.attachment_history (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default clock_timestamp(),
    target text not null,
    resource_type text not null,
    change text not null,
    detail jsonb not null default '{}',
    db_user text not null default session_user,
    constraint attachment_history_change check (change in ('attached', 'changed', 'detached', 'altered', 'dropped'))
);
comment on table pgaudit_wf.attachment_history is
    'Who attached, changed or detached which table and when, and how its columns changed since. Append-only.';
comment on column pgaudit_wf.attachment_history.id is 'Number of the entry.';
comment on column pgaudit_wf.attachment_history.occurred_at is 'When it happened.';
comment on column pgaudit_wf.attachment_history.target is 'The table''s name at that time.';
comment on column pgaudit_wf.attachment_history.resource_type is 'Its resource type.';
comment on column pgaudit_wf.attachment_history.change is
    'attached, changed (settings), detached, altered (its columns, by DDL) or dropped.';
comment on column pgaudit_wf.attachment_history.detail is
    'Settings after the change, or the columns added, dropped and renamed ({old name: new name}). '
    'before: what attach() found in the table, {"rows": "none"} or {"highest": key}.';
comment on column pgaudit_wf.attachment_history.db_user is 'Login role that did it.';
create trigger append_only before update or delete or truncate on pgaudit_wf.attachment_history
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.attachment_history enable always trigger append_only;

create table pgaudit_wf.capture_failure (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default clock_timestamp(),
    target text not null,
    op text not null,
    sqlstate text not null
);
comment on table pgaudit_wf.capture_failure is
    'Changes that went through unrecorded, on tables attached with on_failure => ''warn'', '
    'or uncounted, where the condition of a limit raised. Never holds values.';
comment on column pgaudit_wf.capture_failure.id is 'Number of the failure.';
comment on column pgaudit_wf.capture_failure.occurred_at is 'When it happened.';
comment on column pgaudit_wf.capture_failure.target is 'The table.';
comment on column pgaudit_wf.capture_failure.op is
    'INSERT, UPDATE, DELETE or TRUNCATE of what is unrecorded; COUNT: it is recorded, but uncounted.';
comment on column pgaudit_wf.capture_failure.sqlstate is 'SQLSTATE of the error that kept it from being recorded or counted.';

create table pgaudit_wf.key_change (
    resource_type text not null,
    old_id text not null,
    new_id text not null,
    org_id text,
    primary key (resource_type, old_id, new_id)
);
create index key_change_new on pgaudit_wf.key_change (resource_type, new_id);
comment on table pgaudit_wf.key_change is 'Rows whose key was changed: where a row''s history continues under another resource_id.';
comment on column pgaudit_wf.key_change.resource_type is 'resource_type of the row.';
comment on column pgaudit_wf.key_change.old_id is 'resource_id before.';
comment on column pgaudit_wf.key_change.new_id is 'resource_id of the event that changed it, and of those after it.';
comment on column pgaudit_wf.key_change.org_id is 'Organization of the row.';

create function pgaudit_wf._count_failure(target text, op text, failure text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgaudit_wf.capture_failure (target, op, sqlstate)
    values (_count_failure.target, _count_failure.op, _count_failure.failure);
exception
    when others then
        raise warning 'pgaudit_wf could not count the failure either (SQLSTATE %)', sqlstate;
end
$$;
comment on function pgaudit_wf._count_failure(text, text, text) is 'Notes a change that went through unrecorded or uncounted.';
