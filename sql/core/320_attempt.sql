-- Attempts that came to nothing: failed and denied events, each recorded once however often it is sent.

create table pgaudit_wf.attempt (
    id uuid primary key,
    recorded_at timestamptz not null default now()
);
comment on table pgaudit_wf.attempt is
    'Attempts that have been recorded by record_attempt(), so that one whose commit was in doubt, or that is read from a spool file again, makes no second event.';
comment on column pgaudit_wf.attempt.id is 'Id that the client gave to the attempt.';
comment on column pgaudit_wf.attempt.recorded_at is 'When it was recorded.';

create function pgaudit_wf.record_denied(
    action text,
    resource_type text default null,
    resource_id text default null,
    metadata jsonb default null
) returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.record_event(
        action => record_denied.action, resource_type => record_denied.resource_type, resource_id => record_denied.resource_id,
        metadata => record_denied.metadata, outcome => 'denied')
$$;
comment on function pgaudit_wf.record_denied(text, text, text, jsonb) is
    'Records an attempt that was refused, in the current transaction, which must be committed: rolled back, it takes the event with it. Returns the event''s id; raises PA008 on a wrong argument.';

create function pgaudit_wf.record_attempt(
    id uuid,
    action text,
    outcome text,
    resource_type text default null,
    resource_id text default null,
    metadata jsonb default null,
    context jsonb default null,
    attempted_at timestamptz default null
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    field text;
begin
    if record_attempt.outcome is null or record_attempt.outcome not in ('failed', 'denied') then
        raise exception 'outcome is "%": that of an attempt is failed or denied', record_attempt.outcome using errcode = 'PA008';
    end if;
    -- Waits for another transaction that is recording the same attempt right now.
    insert into pgaudit_wf.attempt (id) values (record_attempt.id) on conflict do nothing;
    if not found then
        return null;
    end if;
    foreach field in array array['actor_id', 'actor_label', 'org_id', 'org_label', 'auth_method', 'api_key_id', 'ip', 'country', 'user_agent', 'correlation_id', 'reason'] loop
        perform set_config('app.' || field, coalesce(record_attempt.context ->> field, ''), true);
    end loop;
    return pgaudit_wf.record_event(
        action => record_attempt.action, resource_type => record_attempt.resource_type, resource_id => record_attempt.resource_id,
        metadata => coalesce(record_attempt.metadata, '{}')
            || case when record_attempt.attempted_at is not null then jsonb_build_object('attempted_at', record_attempt.attempted_at) else '{}' end,
        outcome => record_attempt.outcome);
end
$$;
comment on function pgaudit_wf.record_attempt(uuid, text, text, text, text, jsonb, jsonb, timestamptz) is
    'Records a failed or denied attempt of the given context ({actor_id, org_id, …}, which becomes the transaction''s), unless that id was recorded before: then it returns null, else the event''s id. '
    'attempted_at is kept in metadata when the attempt was not just now. Raises PA008 on a wrong argument.';
