-- The versions of workflows: one row each, append-only, with a hash that anybody can recompute.

-- A domain, and no CHECK on the table: PostgreSQL parses those again for every INSERT, which takes 10 µs each.
create domain pgaudit_wf.version_source as text
    constraint version_source_known check (value in ('create', 'update', 'listing', 'restore', 'backfill'));
comment on domain pgaudit_wf.version_source is 'How a version came about: create, update, listing, restore or backfill.';

create function pgaudit_wf._workflow_id(prefix text, key text) returns text
language sql immutable parallel safe
-- Ids that contain a slash get one more in front if their table has no prefix, so that none looks like an id of another table.
as $$ select case when prefix = '' and strpos(key, '/') > 0 then '/' || key else prefix || key end $$;
comment on function pgaudit_wf._workflow_id(text, text) is 'Id of a workflow in the history: the prefix of its table and its key.';

create table pgaudit_wf.workflow_history (
    workflow_id text not null,
    version integer not null,
    org_id text,
    source pgaudit_wf.version_source not null,
    snapshot jsonb,
    change jsonb not null,
    content_hash text not null,
    previous_version integer,
    previous_hash text,
    restored_from integer,
    actor_id text default pgaudit_wf._context_value('app.actor_id'),
    actor_label text default pgaudit_wf._context_value('app.actor_label'),
    auth_method text default pgaudit_wf._context_value('app.auth_method'),
    api_key_id text default pgaudit_wf._context_value('app.api_key_id'),
    correlation_id text default pgaudit_wf._context_value('app.correlation_id'),
    created_at timestamptz not null default clock_timestamp(),
    pruned_at timestamptz,
    tx_id bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (workflow_id, version)
);
comment on table pgaudit_wf.workflow_history is
    'Every version of every workflow, append-only. Made by the triggers of attach_workflow(); read workflow_timeline.';
comment on column pgaudit_wf.workflow_history.workflow_id is
    'Id of the workflow (resource_id of its events); with <resource_type>/ before it for all but the first attached workflow table.';
comment on column pgaudit_wf.workflow_history.version is '1, 2, 3, … without gaps.';
comment on column pgaudit_wf.workflow_history.org_id is 'Organization of the workflow.';
comment on column pgaudit_wf.workflow_history.source is
    'create, update, listing (its marketplace listing changed), restore, or backfill (older than its table''s attachment).';
comment on column pgaudit_wf.workflow_history.snapshot is
    'The version in full: name, description, visibility, enabled, nodes, edges as saved, canvas positions included; null once pruned.';
comment on column pgaudit_wf.workflow_history.change is 'version_diff() from the previous version, for people.';
comment on column pgaudit_wf.workflow_history.content_hash is 'hash_definition() of nodes and edges.';
comment on column pgaudit_wf.workflow_history.previous_version is 'version - 1; null for the first.';
comment on column pgaudit_wf.workflow_history.previous_hash is 'content_hash of the previous version.';
comment on column pgaudit_wf.workflow_history.restored_from is 'The version that was restored, for source restore.';
comment on column pgaudit_wf.workflow_history.actor_id is 'Who saved it (app.actor_id).';
comment on column pgaudit_wf.workflow_history.actor_label is 'Name of the actor at that time (app.actor_label).';
comment on column pgaudit_wf.workflow_history.auth_method is 'How the actor authenticated (app.auth_method).';
comment on column pgaudit_wf.workflow_history.api_key_id is 'Id of the API key that was used, if any (app.api_key_id).';
comment on column pgaudit_wf.workflow_history.correlation_id is 'Request it was saved in (app.correlation_id).';
comment on column pgaudit_wf.workflow_history.created_at is 'When it was saved.';
comment on column pgaudit_wf.workflow_history.pruned_at is 'When prune_history() removed its snapshot; null while it is there.';
comment on column pgaudit_wf.workflow_history.tx_id is '64-bit id of the transaction that saved it, by which the sealer finds what is new.';

create index workflow_history_hash on pgaudit_wf.workflow_history (content_hash);
create index workflow_history_org on pgaudit_wf.workflow_history (org_id, created_at);
create index workflow_history_tx on pgaudit_wf.workflow_history (tx_id);

create trigger append_only before update or delete or truncate on pgaudit_wf.workflow_history
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.workflow_history enable always trigger append_only;

create function pgaudit_wf._readable_history_org() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
declare
    org constant text := pgaudit_wf._context_text('org_id');
begin
    return (
        select m.org_id from pgaudit_wf.org_member as m
        where m.org_id = org and m.actor_id = pgaudit_wf._context_text('actor_id')
            and (m.role in ('owner', 'admin') or coalesce(
                (select p.members_read from pgaudit_wf.version_policy as p where p.org_id = org),
                (select p.members_read from pgaudit_wf.version_policy as p where p.org_id is null), false))
        limit 1);
end
$$;
comment on function pgaudit_wf._readable_history_org() is
    'The organization whose versions the current actor may read: app.org_id, if org_member has app.actor_id as its owner or admin, '
    'or as any member where version_policy lets members read; else null.';

alter table pgaudit_wf.workflow_history enable row level security;
create policy readable_org on pgaudit_wf.workflow_history for select using (org_id = (select pgaudit_wf._readable_history_org()));

-- Several times faster than the default on documents of this size, where the server was built with it.
do $$
begin
    alter table pgaudit_wf.workflow_history alter column snapshot set compression lz4;
exception
    when feature_not_supported or invalid_parameter_value then
        null;
end
$$;

create function pgaudit_wf._latest_hash(workflow_id text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select h.content_hash from pgaudit_wf.workflow_history as h
    where h.workflow_id = _latest_hash.workflow_id order by h.version desc limit 1
$$;
comment on function pgaudit_wf._latest_hash(text) is 'content_hash of the newest version of a workflow; null if it has none.';

create function pgaudit_wf._restored_version(
    workflow_id text, before jsonb, after jsonb, content_hash text, previous_hash text, undeleted boolean
) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    claimed constant text := current_setting('pgaudit_wf.restoring', true);
begin
    -- Anybody can write the setting: it is a restore only if it changed something, and left the content of the version that it names.
    if claimed is null or claimed !~ '^[0-9]{1,9}$' or (
        not undeleted
        and _restored_version.content_hash is not distinct from _restored_version.previous_hash
        and before ->> 'name' is not distinct from after ->> 'name'
        and before ->> 'description' is not distinct from after ->> 'description')
    then
        return null;
    end if;
    return (
        select h.version
        from pgaudit_wf.workflow_history as h
        where h.workflow_id = _restored_version.workflow_id and h.version = claimed::integer
            and h.content_hash = _restored_version.content_hash
            and (not h.snapshot ? 'name' or h.snapshot ->> 'name' is not distinct from after ->> 'name')
            and (not h.snapshot ? 'description' or h.snapshot ->> 'description' is not distinct from after ->> 'description'));
end
$$;
comment on function pgaudit_wf._restored_version(text, jsonb, jsonb, text, text, boolean) is
    'The version that a save by restore_workflow() restores, or an insert by undelete_workflow() (undeleted); null for any other save.';

create type pgaudit_wf.version_ref as (
    version integer,
    content_hash text,
    previous_hash text,
    restored_from integer
);
comment on type pgaudit_wf.version_ref is 'What _add_version() returns to the trigger about the version it added.';

create function pgaudit_wf._check_base(workflow_id text, after jsonb) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    base_version constant text := nullif(current_setting('app.base_version', true), '');
    base_hash constant text := nullif(current_setting('app.base_hash', true), '');
    latest record;
    base record;
begin
    if base_version !~ '^[0-9]{1,9}$' then
        raise exception 'app.base_version must be the number of a version' using errcode = 'PA008';
    end if;
    select h.version, h.content_hash, h.snapshot, h.tx_id into latest
    from pgaudit_wf.workflow_history as h where h.workflow_id = _check_base.workflow_id order by h.version desc limit 1;
    -- What this transaction has saved itself rests on the base too.
    if latest.version is null or latest.tx_id = pg_current_xact_id()::text::bigint
        or (latest.version = coalesce(base_version::integer, latest.version)
            and latest.content_hash = coalesce(base_hash, latest.content_hash)) then
        return;
    end if;
    select h.version, h.snapshot into base
    from pgaudit_wf.workflow_history as h
    where h.workflow_id = _check_base.workflow_id
        and h.version = coalesce(base_version::integer, h.version) and h.content_hash = coalesce(base_hash, h.content_hash)
    order by h.version desc limit 1;
    raise exception 'workflow % has changed since: version % is current', _check_base.workflow_id, latest.version
        using errcode = 'PA305',
            detail = jsonb_build_object('base', base.version, 'current', latest.version,
                'theirs', case when base.snapshot is not null and latest.snapshot is not null
                    then pgaudit_wf.version_diff(base.snapshot, latest.snapshot) end,
                'yours', case when base.snapshot is not null
                    then pgaudit_wf.version_diff(base.snapshot, base.snapshot || _check_base.after) end)::text,
            hint = 'The detail has both differences from the base. Load the current version, and save again on it.';
end
$$;
comment on function pgaudit_wf._check_base(text, jsonb) is
    'Refuses a save that rests on an older version than the newest, by app.base_version or app.base_hash, with PA305.';

create function pgaudit_wf._add_version(
    workflow_id text, org_id text, source text, before jsonb, after jsonb,
    old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb
) returns pgaudit_wf.version_ref
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    latest record;
    made pgaudit_wf.version_ref;
begin
    if current_setting('app.base_version', true) <> '' or current_setting('app.base_hash', true) <> '' then
        perform pgaudit_wf._check_base(_add_version.workflow_id, _add_version.after);
    end if;
    -- The row lock on the workflow, held by our caller's UPDATE, serializes the versions of one workflow.
    select h.version, h.content_hash, h.snapshot #> '{}' as snapshot into latest
    from pgaudit_wf.workflow_history as h where h.workflow_id = _add_version.workflow_id order by h.version desc limit 1;
    if latest.snapshot is not null then
        -- The table holds another state only where it was changed without its triggers: the next version shows that change.
        before := latest.snapshot;
        old_nodes := latest.snapshot -> 'nodes';
        old_edges := latest.snapshot -> 'edges';
    elsif latest.version is null and _add_version.before is not null then
        -- Older than the attachment: its state until now is the first version, unless it was malformed and has no hash.
        begin
            latest.content_hash := pgaudit_wf.hash_definition(_add_version.old_nodes, _add_version.old_edges);
            latest.version := 1;
            insert into pgaudit_wf.workflow_history (
                workflow_id, version, org_id, source, snapshot, change, content_hash,
                actor_id, actor_label, auth_method, api_key_id, correlation_id)
            values (_add_version.workflow_id, 1, _add_version.org_id, 'backfill',
                _add_version.before || jsonb_build_object('nodes', _add_version.old_nodes, 'edges', _add_version.old_edges),
                pgaudit_wf._snapshot_diff(null, _add_version.before, null, null, _add_version.old_nodes, _add_version.old_edges),
                latest.content_hash, null, null, null, null, null);
        exception
            when sqlstate 'PA201' or sqlstate 'PA202' or sqlstate 'PA203' then
                before := null;
        end;
    end if;
    made.version := coalesce(latest.version, 0) + 1;
    made.previous_hash := latest.content_hash;
    if before is null or jsonb_typeof(old_nodes) not in ('array', 'null') or jsonb_typeof(old_edges) not in ('array', 'null') then
        old_nodes := null;
        old_edges := null;
    end if;
    made.content_hash := case
        when latest.snapshot is null then pgaudit_wf.hash_definition(new_nodes, new_edges)
        when not record_image_ne(row(old_nodes, old_edges), row(new_nodes, new_edges)) then latest.content_hash
        else pgaudit_wf._hash_next_version(_add_version.workflow_id, latest.version, old_nodes, old_edges, new_nodes, new_edges) end;
    if current_setting('pgaudit_wf.restoring', true) <> '' then
        made.restored_from := pgaudit_wf._restored_version(
            _add_version.workflow_id, before, _add_version.after, made.content_hash, made.previous_hash,
            _add_version.source = 'create');
    end if;
    insert into pgaudit_wf.workflow_history (
        workflow_id, version, org_id, source, snapshot, change, content_hash, previous_version, previous_hash, restored_from)
    values (
        _add_version.workflow_id, made.version, _add_version.org_id,
        case when made.restored_from is null then _add_version.source else 'restore' end,
        _add_version.after,
        pgaudit_wf._snapshot_diff(before, _add_version.after, old_nodes, old_edges, new_nodes, new_edges),
        made.content_hash, latest.version, latest.content_hash, made.restored_from);
    return made;
end
$$;
comment on function pgaudit_wf._add_version(text, text, text, jsonb, jsonb, jsonb, jsonb, jsonb, jsonb) is
    'Appends a version of a workflow; called by its table''s trigger. '
    'before is the settings as they were, null for a new workflow; after the whole snapshot. '
    'before, old_nodes and old_edges count only where the newest version does not tell.';
