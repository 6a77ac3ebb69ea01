-- The versions of workflows: one row each, append-only, with a hash that anybody can recompute.

create table pgaudit_wf.workflow_history (
    workflow_id text not null,
    version integer not null,
    org_id text,
    source text not null,
    snapshot jsonb not null,
    change jsonb not null,
    content_hash text not null,
    previous_version integer,
    previous_hash text,
    restored_from integer,
    actor_id text default pgaudit_wf.context_value('app.actor_id'),
    actor_label text default nullif(current_setting('app.actor_label', true), ''),
    auth_method text default nullif(current_setting('app.auth_method', true), ''),
    api_key_id text default nullif(current_setting('app.api_key_id', true), ''),
    correlation_id text default pgaudit_wf.context_value('app.correlation_id'),
    created_at timestamptz not null default clock_timestamp(),
    primary key (workflow_id, version),
    constraint workflow_history_source check (source in ('create', 'update', 'listing', 'restore', 'backfill')),
    constraint workflow_history_chain check (
        (version = 1 and previous_version is null and previous_hash is null)
        or (version > 1 and previous_version = version - 1 and previous_hash is not null)),
    constraint workflow_history_restored check ((source = 'restore') = (restored_from is not null))
);
comment on table pgaudit_wf.workflow_history is 'Every version of every workflow, append-only. Made by the triggers of attach_workflow(); read workflow_timeline.';
comment on column pgaudit_wf.workflow_history.workflow_id is 'Id of the workflow (resource_id of its events); with <resource_type>/ before it for all but the first attached workflow table.';
comment on column pgaudit_wf.workflow_history.version is '1, 2, 3, … without gaps.';
comment on column pgaudit_wf.workflow_history.org_id is 'Organisation of the workflow.';
comment on column pgaudit_wf.workflow_history.source is 'create, update, listing (its marketplace listing changed), restore, or backfill (older than its table''s attachment).';
comment on column pgaudit_wf.workflow_history.snapshot is 'The version in full: name, description, visibility, enabled, nodes, edges as saved, canvas positions included.';
comment on column pgaudit_wf.workflow_history.change is 'version_diff() from the previous version, for people.';
comment on column pgaudit_wf.workflow_history.content_hash is 'hash_definition() of nodes and edges.';
comment on column pgaudit_wf.workflow_history.previous_version is 'version - 1; null for the first.';
comment on column pgaudit_wf.workflow_history.previous_hash is 'content_hash of the previous version.';
comment on column pgaudit_wf.workflow_history.restored_from is 'The version that was put back, for source restore.';
comment on column pgaudit_wf.workflow_history.actor_id is 'Who saved it (app.actor_id).';
comment on column pgaudit_wf.workflow_history.actor_label is 'Name of the actor at that time (app.actor_label).';
comment on column pgaudit_wf.workflow_history.auth_method is 'How the actor signed in (app.auth_method).';
comment on column pgaudit_wf.workflow_history.api_key_id is 'Id of the API key that was used, if any (app.api_key_id).';
comment on column pgaudit_wf.workflow_history.correlation_id is 'Request it was saved in (app.correlation_id).';
comment on column pgaudit_wf.workflow_history.created_at is 'When it was saved.';

create index workflow_history_hash on pgaudit_wf.workflow_history (content_hash);
create index workflow_history_org on pgaudit_wf.workflow_history (org_id, created_at);

create trigger append_only before update or delete or truncate on pgaudit_wf.workflow_history
    for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.workflow_history enable always trigger append_only;

alter table pgaudit_wf.workflow_history enable row level security;
create policy readable_org on pgaudit_wf.workflow_history for select using (org_id = (select pgaudit_wf.readable_org()));

-- Several times faster than the default on documents of this size, where the server was built with it.
do $$
begin
    alter table pgaudit_wf.workflow_history alter column snapshot set compression lz4;
exception
    when feature_not_supported or invalid_parameter_value then
        null;
end
$$;

create function pgaudit_wf.latest_hash(workflow_id text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select h.content_hash from pgaudit_wf.workflow_history as h where h.workflow_id = latest_hash.workflow_id order by h.version desc limit 1
$$;
comment on function pgaudit_wf.latest_hash(text) is 'content_hash of the newest version of a workflow; null if it has none.';

create function pgaudit_wf.add_version(workflow_id text, org_id text, source text, before jsonb, after jsonb, new_hash text)
returns pgaudit_wf.version_ref
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    latest record;
    made pgaudit_wf.version_ref;
    restored constant integer := nullif(current_setting('pgaudit_wf.restoring', true), '')::integer;
begin
    -- The row lock on the workflow, which our caller's UPDATE holds, makes versions of one workflow one after the other.
    select h.version, h.content_hash into latest
    from pgaudit_wf.workflow_history as h where h.workflow_id = add_version.workflow_id order by h.version desc limit 1;
    if latest.version is null and add_version.before is not null then
        -- Older than the attachment: what it was until now is the first version.
        latest.version := 1;
        latest.content_hash := pgaudit_wf.hash_definition(add_version.before -> 'nodes', add_version.before -> 'edges');
        insert into pgaudit_wf.workflow_history (workflow_id, version, org_id, source, snapshot, change, content_hash, actor_id, actor_label, auth_method, api_key_id, correlation_id)
        values (add_version.workflow_id, 1, add_version.org_id, 'backfill', add_version.before,
            pgaudit_wf.version_diff(null, add_version.before), latest.content_hash, null, null, null, null, null);
    end if;
    made.version := coalesce(latest.version, 0) + 1;
    made.previous_hash := latest.content_hash;
    -- The setting alone proves nothing: a restored version has the content of the one it says.
    if restored is not null then
        select h.version into made.restored_from
        from pgaudit_wf.workflow_history as h
        where h.workflow_id = add_version.workflow_id and h.version = restored and h.content_hash = coalesce(new_hash, latest.content_hash);
    end if;
    insert into pgaudit_wf.workflow_history (
        workflow_id, version, org_id, source, snapshot, change, content_hash, previous_version, previous_hash, restored_from)
    values (
        add_version.workflow_id, made.version, add_version.org_id,
        case when made.restored_from is null then add_version.source else 'restore' end,
        add_version.after, pgaudit_wf.version_diff(add_version.before, add_version.after), coalesce(new_hash, latest.content_hash),
        latest.version, latest.content_hash, made.restored_from);
    return made;
end
$$;
comment on function pgaudit_wf.add_version(text, text, text, jsonb, jsonb, text) is
    'Appends a version of a workflow; called by its table''s trigger. new_hash is null when the definition did not change.';
