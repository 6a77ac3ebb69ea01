-- Reading versions: the timeline, one version, two compared, and the use of a definition.

create function pgaudit_wf._actor_name(actor_id text, org_id text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select a.name from pgaudit_wf._present_actors(array[_actor_name.actor_id], array[_actor_name.org_id],
        row_security_active('pgaudit_wf.workflow_history')) as a limit 1);
end
$$;
comment on function pgaudit_wf._actor_name(text, text) is 'Current name of an actor, as far as the caller may see it.';

create function pgaudit_wf._version_line(source text, restored_from integer, change jsonb) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case source
        when 'create' then 'created with ' || contents
        when 'backfill' then 'found with ' || contents
        -- Only an undeleted one comes back as it was.
        when 'restore' then case when summary = 'no changes' then format('put back as in version %s, after it was deleted', restored_from)
            else format('version %s put back: %s', restored_from, summary) end
        when 'listing' then 'listing changed' || case when summary = 'no changes' then '' else '; ' || summary end
        else summary
    end
    from (
        select
            pgaudit_wf.version_summary(change) as summary,
            format('%s node%s and %s connection%s',
                nodes, case when nodes = 1 then '' else 's' end,
                connections, case when connections = 1 then '' else 's' end) as contents
        from (
            select jsonb_array_length(change -> 'nodes_added') as nodes, jsonb_array_length(change -> 'connections_added') as connections
        ) as counted
    ) as words
$$;
comment on function pgaudit_wf._version_line(text, integer, jsonb) is 'A version in one line: how it came about, and what changed.';

create view pgaudit_wf.workflow_timeline with (security_invoker = true) as
select
    h.workflow_id,
    h.version,
    h.created_at,
    h.actor_id,
    coalesce(pgaudit_wf._actor_name(h.actor_id, h.org_id), h.actor_label) as actor_name,
    h.auth_method,
    h.api_key_id,
    h.source,
    h.restored_from,
    pgaudit_wf._version_line(h.source, h.restored_from, h.change) as summary,
    h.content_hash,
    h.change,
    h.org_id,
    h.correlation_id,
    h.version = (
        select max(newest.version) from pgaudit_wf.workflow_history as newest where newest.workflow_id = h.workflow_id
    ) as is_current,
    named.label,
    named.note,
    coalesce(h.version = (
        select p.version from pgaudit_wf.published_version as p where p.workflow_id = h.workflow_id order by p.id desc limit 1
    ), false) as is_published
from pgaudit_wf.workflow_history as h
left join lateral (
    select l.label, l.note from pgaudit_wf.version_label as l
    where l.workflow_id = h.workflow_id and l.version = h.version order by l.id desc limit 1
) as named on true;
comment on view pgaudit_wf.workflow_timeline is
    'The versions of workflows as people read them: who, when, with what, and what changed in one line.';
comment on column pgaudit_wf.workflow_timeline.workflow_id is 'Id of the workflow.';
comment on column pgaudit_wf.workflow_timeline.version is '1, 2, 3, …';
comment on column pgaudit_wf.workflow_timeline.created_at is 'When it was saved.';
comment on column pgaudit_wf.workflow_timeline.actor_id is 'Who saved it.';
comment on column pgaudit_wf.workflow_timeline.actor_name is 'The author''s current name, or the one stored with the version.';
comment on column pgaudit_wf.workflow_timeline.auth_method is 'How the author authenticated.';
comment on column pgaudit_wf.workflow_timeline.api_key_id is 'The API key used, if any.';
comment on column pgaudit_wf.workflow_timeline.source is 'create, update, listing, restore or backfill.';
comment on column pgaudit_wf.workflow_timeline.restored_from is 'The version that was restored, for source restore.';
comment on column pgaudit_wf.workflow_timeline.summary is 'What changed, in one line.';
comment on column pgaudit_wf.workflow_timeline.content_hash is 'Hash of the definition.';
comment on column pgaudit_wf.workflow_timeline.change is 'What changed, in full: version_diff() from the version before.';
comment on column pgaudit_wf.workflow_timeline.org_id is 'Organization of the workflow.';
comment on column pgaudit_wf.workflow_timeline.correlation_id is 'Request it was saved in.';
comment on column pgaudit_wf.workflow_timeline.is_current is 'Whether it is the newest version.';
comment on column pgaudit_wf.workflow_timeline.label is 'Its name, by label_version(); null for none.';
comment on column pgaudit_wf.workflow_timeline.note is 'What was noted with the name; null for nothing.';
comment on column pgaudit_wf.workflow_timeline.is_published is 'Whether runs are made with it, by publish_version().';

create function pgaudit_wf._touches_node(change jsonb, node_id text) returns boolean
language sql immutable parallel safe
as $$
    select jsonb_path_exists(change, '$.* ? (@.id == $node)', jsonb_build_object('node', node_id))
$$;
comment on function pgaudit_wf._touches_node(jsonb, text) is 'Whether a version''s change added, removed or changed the node.';

create function pgaudit_wf.workflow_versions(
    workflow_id text,
    node_id text default null,
    source_id text default null,
    target_id text default null,
    before_version integer default null,
    page_size integer default 50
) returns setof pgaudit_wf.workflow_timeline
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(workflow_versions.page_size, 0) not between 1 and 1000 then
        raise exception 'page_size must be from 1 to 1000' using errcode = 'PA008';
    end if;
    -- The limit first: names and summaries are worked out for the page only.
    return query
        with page as materialized (
            select h.version from pgaudit_wf.workflow_history as h
            where h.workflow_id = workflow_versions.workflow_id
                and (workflow_versions.before_version is null or h.version < workflow_versions.before_version)
                and (workflow_versions.node_id is null or pgaudit_wf._touches_node(h.change, workflow_versions.node_id))
                and (workflow_versions.source_id is null and workflow_versions.target_id is null or exists (
                    select from jsonb_array_elements((h.change -> 'connections_added') || (h.change -> 'connections_removed')) as connection
                    where (workflow_versions.source_id is null or connection ->> 'from_id' = workflow_versions.source_id)
                        and (workflow_versions.target_id is null or connection ->> 'to_id' = workflow_versions.target_id)))
            order by h.version desc limit workflow_versions.page_size
        )
        select t.* from pgaudit_wf.workflow_timeline as t
        where t.workflow_id = workflow_versions.workflow_id and t.version in (select page.version from page)
        order by t.version desc;
end
$$;
comment on function pgaudit_wf.workflow_versions(text, text, text, text, integer, integer) is
    'A page of a workflow''s versions, newest first; narrowed to those that touched a node (node_id) or a connection (source_id, '
    'target_id). Next page: before_version => the last version of the page. Raises PA008 on a page_size outside 1 to 1000.';

create function pgaudit_wf._org_version_snapshot(
    workflow_id text, version integer, out org_id text, out snapshot jsonb, out content_hash text
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select h.org_id, h.snapshot, h.content_hash from pgaudit_wf.workflow_history as h
    where h.workflow_id = _org_version_snapshot.workflow_id
        and h.version = coalesce(_org_version_snapshot.version, pgaudit_wf._version_to_run(_org_version_snapshot.workflow_id))
        and h.org_id is not distinct from pgaudit_wf._context_text('org_id')
$$;
comment on function pgaudit_wf._org_version_snapshot(text, integer) is
    'A version (null: what runs are made with) of a workflow of the organization app.org_id, or of none while that is not set; '
    'nulls for any other.';

create function pgaudit_wf.version_snapshot(workflow_id text, version integer default null) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    kept jsonb;
    hash text;
begin
    if has_table_privilege('pgaudit_wf.workflow_history', 'select') then
        select h.snapshot, h.content_hash into kept, hash from pgaudit_wf.workflow_history as h
        where h.workflow_id = version_snapshot.workflow_id
            and h.version = coalesce(version_snapshot.version, pgaudit_wf._version_to_run(version_snapshot.workflow_id))
            -- A login that may read all organizations still acts in the one that the request names, if any.
            and (h.org_id = pgaudit_wf._context_text('org_id') or h.org_id is null or pgaudit_wf._context_text('org_id') is null);
    else
        select s.snapshot, s.content_hash into kept, hash
        from pgaudit_wf._org_version_snapshot(version_snapshot.workflow_id, version_snapshot.version) as s;
    end if;
    if hash is null then
        raise exception 'there is no version %of workflow %', coalesce(version_snapshot.version || ' ', ''), version_snapshot.workflow_id
            using errcode = 'PA302', hint = 'See pgaudit_wf.workflow_timeline; it does not show other organizations'' workflows.';
    end if;
    if kept is null then
        raise exception 'the snapshot of version %of workflow % was pruned',
            coalesce(version_snapshot.version || ' ', ''), version_snapshot.workflow_id
            using errcode = 'PA344',
                hint = 'What it changed, its hash and its author are still in pgaudit_wf.workflow_timeline; '
                    'pgaudit_wf.version_policy says which snapshots are kept.';
    end if;
    return kept;
end
$$;
comment on function pgaudit_wf.version_snapshot(text, integer) is
    'A version in full: {name, description, visibility, enabled, nodes, edges}; without a number, the one that runs are made with: '
    'the published one, or else the newest. '
    'Raises PA302 if there is none, or none that the caller may see, PA344 if its snapshot was pruned.';

create function pgaudit_wf.compare_versions(workflow_id text, before integer, after integer) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.version_diff(
        pgaudit_wf.version_snapshot(compare_versions.workflow_id, compare_versions.before),
        pgaudit_wf.version_snapshot(compare_versions.workflow_id, compare_versions.after))
$$;
comment on function pgaudit_wf.compare_versions(text, integer, integer) is
    'version_diff() between any two versions of a workflow. Raises PA302 if one does not exist.';

create function pgaudit_wf._version_neighbors(
    workflow_id text, version integer, out newest integer, out before jsonb, out after jsonb
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select max(h.version),
        (array_agg(h.snapshot) filter (where h.version = _version_neighbors.version - 1))[1],
        (array_agg(h.snapshot) filter (where h.version = _version_neighbors.version))[1]
    from (
        select n.version, case when n.version between _version_neighbors.version - 1 and _version_neighbors.version then n.snapshot end
        from pgaudit_wf.workflow_history as n where n.workflow_id = _version_neighbors.workflow_id
    ) as h (version, snapshot)
$$;
comment on function pgaudit_wf._version_neighbors(text, integer) is
    'For a page with one version: the number of the newest, and the snapshots of the one before and of itself; null where pruned.';

create function pgaudit_wf._workflow_of_event(resource_type text, resource_id text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._workflow_id(w.id_prefix, _workflow_of_event.resource_id)
    from pgaudit_wf.attachment as a
    join pgaudit_wf.workflow_attachment as w on w.target = a.target
    where a.resource_type = _workflow_of_event.resource_type
    order by w.id_prefix limit 1
$$;
comment on function pgaudit_wf._workflow_of_event(text, text) is
    'Id in the history of the workflow that an event is about; null if it is about something else.';

create function pgaudit_wf._run_pieces(run pgaudit_wf.execution_attachment) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A run that names no organization is its workflow's.
    select jsonb_build_object(
        'table', (run).target::text,
        'id', pgaudit_wf._optional_column('r.%I', there ->> (run).id_column, 'null::text'),
        'id type', coalesce((
            select format_type(atttypid, atttypmod) from pg_attribute
            where attrelid = (run).target and attname = there ->> (run).id_column), 'text'),
        'workflow', format('pgaudit_wf._workflow_id($2, %s)',
            pgaudit_wf._optional_column('r.%I::text', there ->> (run).workflow_column, 'null::text')),
        'hash', pgaudit_wf._optional_column('r.%I', there ->> (run).hash_column, 'null::text'),
        'type', pgaudit_wf._optional_column('r.%I::text', there ->> (run).type_column, 'null::text'),
        'label', pgaudit_wf._optional_column('r.%I::text', there ->> (run).label_column, 'null::text'),
        'time', pgaudit_wf._optional_column('r.%I::timestamptz', there ->> (run).time_column, 'null::timestamptz'),
        'org', pgaudit_wf._optional_column('r.%I::text', there ->> (run).org_column, 'null::text'))
    from (
        select jsonb_object_agg(name, name) as there from unnest(pgaudit_wf._column_names((run).target)) as name
    ) as present
$$;
comment on function pgaudit_wf._run_pieces(pgaudit_wf.execution_attachment) is
    'The columns of a table of runs, r, for the {{slots}} of a query; $2 is the prefix of its workflows'' ids.';

create function pgaudit_wf._run_query(run pgaudit_wf.execution_attachment, template text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array_to_string(pgaudit_wf._fill(template || $condition$
and ($3::text is null or coalesce({{org}} = $3, exists (
    select from pgaudit_wf.workflow_history as own where own.workflow_id = {{workflow}})))$condition$, pgaudit_wf._run_pieces(run)), e'\n')
$$;
comment on function pgaudit_wf._run_query(pgaudit_wf.execution_attachment, text) is
    'A query over a table of runs that leaves out those of organizations other than $3; null: none.';

create function pgaudit_wf.definition_usage(content_hash text)
returns table (
    kind text, workflow_id text, version integer, execution_id text, occurred_at timestamptz,
    org_id text, actor_id text, actor_name text, credential_type text, credential_label text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    run pgaudit_wf.execution_attachment;
    prefix text;
    -- Runs are in a table of the application, which may show those of all organizations to this login.
    org constant text := case when row_security_active('pgaudit_wf.workflow_history') then coalesce(pgaudit_wf._readable_org(), '') end;
begin
    return query
        select 'version', t.workflow_id, t.version, null::text, t.created_at,
            t.org_id, t.actor_id, t.actor_name, t.auth_method, t.api_key_id
        from pgaudit_wf.workflow_timeline as t where t.content_hash = definition_usage.content_hash;
    for run in select e.* from pgaudit_wf.execution_attachment as e where has_table_privilege(e.target, 'select') loop
        prefix := (select w.id_prefix from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target);
        return query execute pgaudit_wf._run_query(run, $query$
select 'run', {{workflow}}, null::integer, {{id}}::text, {{time}}, {{org}}, null::text, null::text, {{type}}, {{label}}
from {{table}} as r
where {{hash}} = $1$query$)
            using definition_usage.content_hash, coalesce(prefix, ''), org;
    end loop;
end
$$;
comment on function pgaudit_wf.definition_usage(text) is
    'Every version that had this definition and every run of it, including those of deleted workflows: '
    'kind (version or run), who, when, with which credential. Runs as far as the caller may read their table.';

create function pgaudit_wf.execution_attribution(target regclass, id text)
returns table (
    execution_id text, workflow_id text, credential_type text, credential_label text, executed_workflow_hash text,
    occurred_at timestamptz, org_id text, version integer, snapshot jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    run pgaudit_wf.execution_attachment := (
        select e from pgaudit_wf.execution_attachment as e where e.target = execution_attribution.target);
    prefix text;
    -- Runs are in a table of the application, which may show those of all organizations to this login.
    org constant text := case when row_security_active('pgaudit_wf.workflow_history') then coalesce(pgaudit_wf._readable_org(), '') end;
begin
    if run.target is null then
        raise exception '% is not attached as a table of runs', execution_attribution.target
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_execution() for it.';
    end if;
    prefix := (select w.id_prefix from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target);
    -- The newest version with that definition when it ran; its clock may be the application's, or its transaction's beginning.
    return query execute pgaudit_wf._run_query(run, $query$
select {{id}}::text, {{workflow}}, {{type}}, {{label}}, {{hash}}::text, {{time}}, {{org}}, v.version, v.snapshot
from {{table}} as r
left join lateral (
    select h.version, h.snapshot from pgaudit_wf.workflow_history as h
    cross join lateral (select coalesce(h.created_at <= {{time}}, true) as was_there) as t
    where h.workflow_id = {{workflow}} and h.content_hash = {{hash}}
    order by was_there desc, case when was_there then - h.version else h.version end limit 1
) as v on true
where {{id}} = $1::{{id type}}$query$)
        using execution_attribution.id, coalesce(prefix, ''), org;
end
$$;
comment on function pgaudit_wf.execution_attribution(regclass, text) is
    'The credential and the definition behind a run, joined to the version it ran, even after key, user and workflow are gone. '
    'Raises PA005 for a table that attach_execution() does not know.';
