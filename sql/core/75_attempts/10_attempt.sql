-- Failed and denied attempts, each recorded once however often it is sent.

create table pgaudit_wf.attempt (
    id uuid primary key,
    recorded_at timestamptz not null default now()
);
comment on table pgaudit_wf.attempt is
    'Attempts recorded by record_attempt(), so that one whose commit was in doubt, '
    'or that is read from a spool file again, is not recorded twice.';
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
    'Records an attempt that was refused, in the current transaction, which must be committed: rolled back, it takes the event with it. '
    'Returns the event''s id; raises PA008 on a wrong argument.';

create function pgaudit_wf.record_attempt(entry jsonb) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    field text;
begin
    if entry ->> 'outcome' is null or entry ->> 'outcome' not in ('failed', 'denied') then
        raise exception 'outcome is "%": that of an attempt must be failed or denied', entry ->> 'outcome' using errcode = 'PA008';
    end if;
    if entry ->> 'id' is null or entry ->> 'id' !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
        raise exception 'an attempt needs an id, a UUID, by which it is recorded once' using errcode = 'PA008';
    end if;
    -- Waits for another transaction that is recording the same attempt right now.
    insert into pgaudit_wf.attempt (id) values ((entry ->> 'id')::uuid) on conflict on constraint attempt_pkey do nothing;
    if not found then
        return null;
    end if;
    perform set_config('app.context', '', true), set_config('pgaudit_wf.unpacked', '', true);
    foreach field in array pgaudit_wf._context_names() loop
        perform set_config('app.' || field, coalesce(entry -> 'context' ->> field, ''), true);
    end loop;
    -- Truncated, where record_event() would refuse: a spooled attempt must not be lost because of a long name. Its attestation is bound
    -- to its id, as nobody knows the transaction in which it will be recorded.
    return pgaudit_wf._record_event(
        left(entry ->> 'action', 128), left(entry ->> 'resource_type', 128), entry ->> 'resource_id', null, null,
        coalesce(nullif(entry -> 'metadata', 'null'), '{}')
            || jsonb_strip_nulls(jsonb_build_object('attempted_at', entry -> 'attempted_at')),
        entry ->> 'outcome',
        coalesce(pgaudit_wf._check_attestation(entry -> 'context' ->> 'attestation', 'attempt ' || (entry ->> 'id')), false));
end
$$;
comment on function pgaudit_wf.record_attempt(jsonb) is
    'Records a failed or denied attempt: {id, action, outcome, resource_type, resource_id, metadata, context, attempted_at}, '
    'where context ({actor_id, org_id, …}) becomes the transaction''s and attempted_at is given when it was not just now. '
    'Returns the event''s id; null if an attempt of that id was recorded before. Raises PA008 on a wrong argument.';
