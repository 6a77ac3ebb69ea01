-- Workflows and tables of workflows and runs, as the pages and the command line list them.

create view pgaudit_wf.workflow_list with (security_invoker = true) as
select
    newest.workflow_id,
    newest.org_id,
    h.snapshot ->> 'name' as name,
    newest.version,
    h.created_at as changed_at,
    (
        select p.version from pgaudit_wf.published_version as p where p.workflow_id = newest.workflow_id order by p.id desc limit 1
    ) as published_version
from (
    select
        w.org_id,
        w.workflow_id,
        max(w.version) as version
    from pgaudit_wf.workflow_history as w
    group by w.org_id, w.workflow_id
) as newest
join pgaudit_wf.workflow_history as h on h.workflow_id = newest.workflow_id and h.version = newest.version;
comment on view pgaudit_wf.workflow_list is
    'The newest version of each workflow. Owners and admins see those of their own organization, as reader.';
comment on column pgaudit_wf.workflow_list.workflow_id is 'The workflow.';
comment on column pgaudit_wf.workflow_list.org_id is 'Its organization.';
comment on column pgaudit_wf.workflow_list.name is 'Its name in that version.';
comment on column pgaudit_wf.workflow_list.version is 'Number of its newest version.';
comment on column pgaudit_wf.workflow_list.changed_at is 'When that version was written.';
comment on column pgaudit_wf.workflow_list.published_version is 'Number of the version that runs are made with; null: the newest.';

create view pgaudit_wf.workflow_table with (security_invoker = true) as
select
    w.target,
    w.shape,
    w.nodes_column,
    w.edges_column,
    w.id_prefix,
    nullif(c.reltuples, -1)::bigint as workflows
from pgaudit_wf.workflow_attachment as w
join pg_class as c on c.oid = w.target;
comment on view pgaudit_wf.workflow_table is 'The attached tables of workflows.';
comment on column pgaudit_wf.workflow_table.target is 'The table.';
comment on column pgaudit_wf.workflow_table.shape is 'How the graph is stored: reactflow, n8n, flowise, or a schema with functions.';
comment on column pgaudit_wf.workflow_table.nodes_column is 'Column with the nodes, if any.';
comment on column pgaudit_wf.workflow_table.edges_column is 'Column with the edges, if any.';
comment on column pgaudit_wf.workflow_table.id_prefix is 'What precedes a row''s key in the id of its workflow.';
comment on column pgaudit_wf.workflow_table.workflows is 'Number of rows as the planner estimates it; null: no estimate yet.';

create function pgaudit_wf._readable_run_tables()
returns table (
    target regclass, schema text, name text, id_column text, org_column text, time_column text, workflow_column text, id_prefix text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select e.target, n.nspname::text, c.relname::text,
        e.id_column, e.org_column, e.time_column, e.workflow_column, coalesce(w.id_prefix, '')
    from pgaudit_wf.execution_attachment as e
    join pg_class as c on c.oid = e.target
    join pg_namespace as n on n.oid = c.relnamespace
    left join pgaudit_wf.workflow_attachment as w on w.target = e.workflow_target
    where has_table_privilege(e.target, 'select') and has_schema_privilege(n.oid, 'usage') and e.org_column is not null
    order by coalesce(w.id_prefix, ''), e.target::text
$$;
comment on function pgaudit_wf._readable_run_tables() is
    'The attached tables of runs that the caller may read and that say whose a run is, with their columns.';
