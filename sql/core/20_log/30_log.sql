-- The log: one row an event, append-only, partitioned by month.

-- A domain, because a CHECK of the table costs each insert 5 µs more.
create domain pgaudit_wf.event_outcome as text
    constraint event_outcome_known check (value in ('succeeded', 'failed', 'denied'));
comment on domain pgaudit_wf.event_outcome is 'How an event ended: succeeded, failed or denied.';

create table pgaudit_wf.security_audit_log (
    id bigint generated always as identity,
    occurred_at timestamptz not null default clock_timestamp(),
    -- The same number as pg_current_xact_id(), which has no cast to bigint: by way of text it takes 1 to 2 µs more.
    tx_id bigint not null default txid_current(),
    actor_id text default pgaudit_wf._context_value('app.actor_id'),
    actor_label text default pgaudit_wf._context_value('app.actor_label'),
    actor_type text default pgaudit_wf._context_value('app.actor_type'),
    on_behalf_of text default pgaudit_wf._context_value('app.on_behalf_of'),
    client text default pgaudit_wf._context_value('app.client'),
    org_id text default pgaudit_wf._context_value('app.org_id'),
    org_label text default pgaudit_wf._context_value('app.org_label'),
    auth_method text default pgaudit_wf._context_value('app.auth_method'),
    api_key_id text default pgaudit_wf._context_value('app.api_key_id'),
    action text not null,
    resource_type text,
    resource_id text,
    outcome pgaudit_wf.event_outcome not null default 'succeeded',
    captured boolean not null default false,
    attested boolean not null default pgaudit_wf._context_attested(),
    diff jsonb,
    metadata jsonb not null default '{}',
    ip inet default pgaudit_wf._context_ip(),
    country text default pgaudit_wf._context_value('app.country'),
    user_agent text default nullif(current_setting('app.user_agent', true), '')::varchar(1024),
    correlation_id text default pgaudit_wf._context_value('app.correlation_id'),
    db_user text not null default session_user,
    application_name text default nullif(current_setting('application_name', true), ''),
    -- tx_id first: it is the order in which read_log() follows the log, and inserts go to the right edge.
    primary key (tx_id, id, occurred_at)
) partition by range (occurred_at);

comment on table pgaudit_wf.security_audit_log is
    'The security audit trail, one row an event. '
    'Append-only for everyone; who and from where come from the app.* settings of the transaction (or the members of app.context), '
    'each at most 255 characters where nothing else is said. Partitioned by month of occurred_at.';
comment on column pgaudit_wf.security_audit_log.id is
    'Number of the event, unique; given before commit, so not an order of visibility: read by (tx_id, id).';
comment on column pgaudit_wf.security_audit_log.occurred_at is
    'Wall-clock time at which the change was made (not when its transaction began or committed).';
comment on column pgaudit_wf.security_audit_log.tx_id is '64-bit id of the transaction that made the change.';
comment on column pgaudit_wf.security_audit_log.actor_id is
    'Who really did it (app.actor_id); null when nobody said, then db_user and application_name still do.';
comment on column pgaudit_wf.security_audit_log.actor_label is
    'Name of the actor at that time (app.actor_label), a snapshot that outlives the account.';
comment on column pgaudit_wf.security_audit_log.actor_type is
    'What the actor is (app.actor_type): user, service, agent or system.';
comment on column pgaudit_wf.security_audit_log.on_behalf_of is
    'In whose name the actor acted, if in another''s (app.on_behalf_of): the customer of a support engineer, the person of an agent.';
comment on column pgaudit_wf.security_audit_log.client is
    'Program or agent that was used, with its version or run (app.client).';
comment on column pgaudit_wf.security_audit_log.org_id is
    'Organization the changed resource belongs to: its own org column, else app.org_id; null for what belongs to no organization.';
comment on column pgaudit_wf.security_audit_log.org_label is 'Name of the organization at that time (app.org_label).';
comment on column pgaudit_wf.security_audit_log.auth_method is
    'How the actor signed in (app.auth_method), such as session, api_key, oauth, webhook.';
comment on column pgaudit_wf.security_audit_log.api_key_id is 'Id of the API key that was used, if any (app.api_key_id); never the key.';
comment on column pgaudit_wf.security_audit_log.action is
    'What it means, such as api_key.revoked: from action_rule, else <resource_type>.created, .updated, .deleted, .truncated.';
comment on column pgaudit_wf.security_audit_log.resource_type is 'Kind of thing that changed, as named at attach().';
comment on column pgaudit_wf.security_audit_log.resource_id is
    'Key of the row as text, several key columns as a JSON array; over 1,024 bytes its SHA-256 as sha256:<hex>.';
comment on column pgaudit_wf.security_audit_log.outcome is
    'succeeded, failed (an attempt that raised) or denied (an attempt that was refused).';
comment on column pgaudit_wf.security_audit_log.captured is
    'True when a trigger saw the change itself; false when the application reported it through record_event().';
comment on column pgaudit_wf.security_audit_log.attested is
    'True when the application proved, by an HMAC that injected SQL cannot make, that it set the actor (with type, in whose name and '
    'client), organization and correlation id.';
comment on column pgaudit_wf.security_audit_log.diff is
    'JSON Patch (RFC 6902) from the old row to the new one; remove and replace also carry "old", so that it runs backwards.';
comment on column pgaudit_wf.security_audit_log.metadata is
    'More about the event: label of the resource at that time, reason (app.reason, at most 4,096 characters), '
    'previous_resource_id of a row whose key changed, and what record_event() was given; '
    'a part that is larger than 1 MiB by its SHA-256 and length.';
comment on column pgaudit_wf.security_audit_log.ip is 'Address of the client (app.ip).';
comment on column pgaudit_wf.security_audit_log.country is 'Country of the client (app.country), as the application looked it up.';
comment on column pgaudit_wf.security_audit_log.user_agent is 'User agent of the client (app.user_agent), at most 1,024 characters.';
comment on column pgaudit_wf.security_audit_log.correlation_id is 'Id that ties together all events of one request (app.correlation_id).';
comment on column pgaudit_wf.security_audit_log.db_user is 'Login role of the database session (session_user).';
comment on column pgaudit_wf.security_audit_log.application_name is 'application_name of the database session.';

create index security_audit_log_org on pgaudit_wf.security_audit_log (org_id, occurred_at, id) where org_id is not null;
create index security_audit_log_actor on pgaudit_wf.security_audit_log (actor_id, occurred_at, id) where actor_id is not null;
create index security_audit_log_api_key on pgaudit_wf.security_audit_log (api_key_id, occurred_at, id) where api_key_id is not null;
create index security_audit_log_resource on pgaudit_wf.security_audit_log (resource_type, resource_id, occurred_at, id);
-- Few, and looked for: what failed or was refused. An event that succeeded pays for the test only.
create index security_audit_log_refused on pgaudit_wf.security_audit_log (org_id, occurred_at, id) where outcome <> 'succeeded';
create index security_audit_log_action on pgaudit_wf.security_audit_log (action, occurred_at, id);
create index security_audit_log_correlation on pgaudit_wf.security_audit_log (correlation_id) where correlation_id is not null;
-- Finds an event by id alone, and a range of transactions, at next to no cost for the writer.
create index security_audit_log_tx on pgaudit_wf.security_audit_log using brin (tx_id, id) with (pages_per_range = 32, autosummarize = on);

create function pgaudit_wf._is_applied() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Whoever can create a subscription can write to its tables anyway; a session that merely sets session_replication_role has none.
    select current_setting('session_replication_role') = 'replica' and exists (
        select from pg_stat_subscription as worker
        join pg_subscription_rel as part on part.srsubid = worker.subid
        where worker.pid = pg_backend_pid()
            and part.srrelid in (select relid from pg_partition_tree('pgaudit_wf.security_audit_log')))
$$;
comment on function pgaudit_wf._is_applied() is
    'Whether this is a worker of a logical subscription that brings the log along: '
    'its changes were recorded, and refused, where they were made.';

create function pgaudit_wf._refuse_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if pgaudit_wf._is_applied() then
        return case when tg_op = 'DELETE' then old else new end;
    end if;
    raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, lower(tg_op)
        using errcode = 'PA001',
            hint = 'Events are never changed; pgaudit_wf.prune() removes old ones, a whole partition at a time.';
end
$$;
comment on function pgaudit_wf._refuse_change() is
    'Trigger that makes a table append-only: raises PA001 on UPDATE, DELETE and TRUNCATE.';

-- "Always", so that session_replication_role = replica does not bypass it. The row trigger is inherited by every partition, even by
-- one created by hand; a statement trigger is not, so add_log_partition() gives each partition its own.
create trigger append_only_row before update or delete on pgaudit_wf.security_audit_log
    for each row execute function pgaudit_wf._refuse_change();
create trigger append_only before update or delete or truncate on pgaudit_wf.security_audit_log
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.security_audit_log enable always trigger append_only_row;
alter table pgaudit_wf.security_audit_log enable always trigger append_only;
