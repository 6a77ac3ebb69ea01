-- Which version of a workflow runs are made with: the published one, or else the newest.

create table pgaudit_wf.published_version (
    id bigint generated always as identity primary key,
    workflow_id text not null,
    version integer,
    org_id text,
    created_at timestamptz not null default clock_timestamp()
);
comment on table pgaudit_wf.published_version is
    'Which version of each workflow is published, append-only: the newest row of a workflow counts. Written by publish_version().';
comment on column pgaudit_wf.published_version.id is 'In the order in which they were published.';
comment on column pgaudit_wf.published_version.workflow_id is 'The workflow, as in workflow_history.';
comment on column pgaudit_wf.published_version.version is 'Number of the version; null: none any more, so that the newest one is run.';
comment on column pgaudit_wf.published_version.org_id is 'Organization of the workflow.';
comment on column pgaudit_wf.published_version.created_at is 'When that was; who did so is in the log.';

create index published_version_workflow on pgaudit_wf.published_version (workflow_id, id);

create trigger append_only before update or delete or truncate on pgaudit_wf.published_version
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.published_version enable always trigger append_only;

alter table pgaudit_wf.published_version enable row level security;
create policy readable_org on pgaudit_wf.published_version for select using (org_id = (select pgaudit_wf._readable_history_org()));

create function pgaudit_wf._published_version(workflow_id text) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select p.version from pgaudit_wf.published_version as p
    where p.workflow_id = _published_version.workflow_id order by p.id desc limit 1
$$;
comment on function pgaudit_wf._published_version(text) is 'Number of the published version of a workflow; null: none is.';

create function pgaudit_wf._version_to_run(workflow_id text) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pgaudit_wf._published_version(_version_to_run.workflow_id), (
        select max(h.version) from pgaudit_wf.workflow_history as h where h.workflow_id = _version_to_run.workflow_id))
$$;
comment on function pgaudit_wf._version_to_run(text) is 'The version that runs are made with: the published one, or else the newest.';

create function pgaudit_wf._version_for_note(workflow_id text, version integer) returns pgaudit_wf.workflow_history
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Whoever may read all organizations acts in the one of the context, if there is one.
    org constant text := pgaudit_wf._context_text('org_id');
    kept pgaudit_wf.workflow_history;
begin
    -- prune_history() waits, or has committed what it prunes.
    lock table pgaudit_wf.workflow_history in row exclusive mode;
    select h.* into kept from pgaudit_wf.workflow_history as h
    where h.workflow_id = _version_for_note.workflow_id
        and h.version = coalesce(_version_for_note.version, pgaudit_wf._newest_version(_version_for_note.workflow_id))
        and (h.org_id is not distinct from org or (org is null and pg_has_role(
            session_user, (select relowner from pg_class where oid = 'pgaudit_wf.workflow_history'::regclass), 'member')));
    if not found then
        raise exception 'there is no version %of workflow %', coalesce(_version_for_note.version || ' ', ''), _version_for_note.workflow_id
            using errcode = 'PA302', hint = 'Or it belongs to another organization than app.org_id.';
    end if;
    return kept;
end
$$;
comment on function pgaudit_wf._version_for_note(text, integer) is
    'A version (null: the newest) of which something is to be noted, which is not pruned meanwhile; '
    'raises PA302 if there is none in the organization app.org_id.';

create function pgaudit_wf._record_version_note(
    target regclass, row_id text, org_id text, what text, version integer, before jsonb, after jsonb
) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    -- Not captured: its diff is not of the workflow's row, to be run backwards.
    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    select _record_version_note.org_id, a.resource_type || what, a.resource_type,
        pgaudit_wf._bounded_key(_record_version_note.row_id), false,
        pgaudit_wf._json_diff(jsonb_strip_nulls(before), jsonb_strip_nulls(after)),
        jsonb_strip_nulls(jsonb_build_object('version', _record_version_note.version, 'reason', pgaudit_wf._context_reason()))
    from pgaudit_wf.attachment as a where a.target = _record_version_note.target
$$;
comment on function pgaudit_wf._record_version_note(regclass, text, text, text, integer, jsonb, jsonb) is
    'Records what was noted of a version: action <resource_type><what>.';

create function pgaudit_wf.publish_version(workflow_id text, version integer) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    kept pgaudit_wf.workflow_history;
    place record;
    before integer;
begin
    perform pgaudit_wf._unpack_context();
    kept := pgaudit_wf._version_for_note(publish_version.workflow_id, publish_version.version);
    select w.target, w.row_id, w.shape into place from pgaudit_wf._find_workflow(publish_version.workflow_id, null) as w;
    if publish_version.version is not null then
        if kept.snapshot is null then
            raise exception 'the snapshot of version % of workflow % was pruned', publish_version.version, publish_version.workflow_id
                using errcode = 'PA344', hint = 'Nothing is left of it that could run.';
        elsif place.shape = 'reactflow' then
            perform pgaudit_wf._check_definition(kept.snapshot -> 'nodes', kept.snapshot -> 'edges', 'published');
        end if;
    end if;
    before := pgaudit_wf._published_version(publish_version.workflow_id);
    if before is not distinct from publish_version.version then
        return;
    end if;
    insert into pgaudit_wf.published_version (workflow_id, version, org_id)
    values (publish_version.workflow_id, publish_version.version, kept.org_id);
    perform pgaudit_wf._record_version_note(place.target, place.row_id, kept.org_id,
        case when publish_version.version is null then '.version_unpublished' else '.version_published' end,
        coalesce(publish_version.version, before),
        jsonb_build_object('published_version', before), jsonb_build_object('published_version', publish_version.version));
end
$$;
comment on function pgaudit_wf.publish_version(text, integer) is
    'Makes a version the one that runs are made with and stamped with, whatever is saved later; null: the newest one is again. '
    'version_snapshot(workflow_id) is what is to be run. prune_history() keeps it. '
    'Recorded as <resource_type>.version_published or .version_unpublished; nothing happens if it is published already. '
    'Raises PA302 if there is no such version in the organization app.org_id, PA344 if its snapshot was pruned, '
    'PA301 if its definition is invalid.';
