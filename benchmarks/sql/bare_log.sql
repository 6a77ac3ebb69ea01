-- The log as it was at commit 113f169, whatever ours became since: columns, constraints, indexes, and partitions for the same months.
-- There are no defaults, because the bare trigger gives each value as a constant.
create domain bare_outcome as text
    constraint bare_outcome_known check (value in ('succeeded', 'failed', 'denied'));

create table bare_log (
    id bigint generated always as identity,
    occurred_at timestamptz not null,
    tx_id bigint not null,
    actor_id text,
    actor_label text,
    org_id text,
    org_label text,
    auth_method text,
    api_key_id text,
    action text not null,
    resource_type text,
    resource_id text,
    outcome bare_outcome not null,
    captured boolean not null,
    attested boolean not null,
    diff jsonb,
    metadata jsonb not null,
    ip inet,
    country text,
    user_agent text,
    correlation_id text,
    db_user text not null,
    application_name text,
    primary key (tx_id, id, occurred_at)
) partition by range (occurred_at);

create index on bare_log (org_id, occurred_at, id) where org_id is not null;
create index on bare_log (actor_id, occurred_at, id) where actor_id is not null;
create index on bare_log (resource_type, resource_id, occurred_at, id);
create index on bare_log (action, occurred_at, id);
create index on bare_log (correlation_id) where correlation_id is not null;
create index on bare_log using brin (tx_id, id) with (pages_per_range = 32, autosummarize = on);

do $$
declare
    leaf record;
begin
    for leaf in
        select row_number() over () as number, pg_get_expr(relpartbound, oid) as bound
        from pg_class join pg_inherits on inhrelid = oid
        where inhparent = 'pgaudit_wf.security_audit_log'::regclass
    loop
        execute format('create table bare_log_%s partition of bare_log %s', leaf.number, leaf.bound);
    end loop;
end
$$;
