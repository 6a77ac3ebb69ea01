-- Limits: how many rows of a resource type an organization may have. Statement triggers keep a counter for each organization and type;
-- only tables whose type has a limit have them.

create table pgaudit_wf.org_limit (
    id bigint generated always as identity primary key,
    org_id text,
    resource_type text not null,
    max_count bigint,
    constraint org_limit_key unique nulls not distinct (org_id, resource_type),
    constraint org_limit_max_count check (max_count >= 0),
    constraint org_limit_default check (org_id is not null or max_count is not null),
    constraint org_limit_org_id check (org_id <> '' and length(org_id) <= 255),
    constraint org_limit_resource_type check (resource_type <> '')
);
comment on table pgaudit_wf.org_limit is
    'How many rows of a resource type an organization may have; takes effect at once on attached tables of that type: '
    'a statement that exceeds it is refused with PA330. Lowering a limit below current usage only refuses new rows.';
comment on column pgaudit_wf.org_limit.id is 'Number of the limit.';
comment on column pgaudit_wf.org_limit.org_id is 'The organization; null: all that have no limit of their own.';
comment on column pgaudit_wf.org_limit.resource_type is 'Resource type of the attached tables, as given to attach().';
comment on column pgaudit_wf.org_limit.max_count is 'How many there may be; null: unlimited, whatever the default is.';

create table pgaudit_wf.limit_condition (
    resource_type text primary key,
    condition text not null,
    constraint limit_condition_condition check (condition <> '')
);
comment on table pgaudit_wf.limit_condition is
    'Which rows of a resource type count towards the limit, where not all do: '
    'a row for which the condition ceases to hold (a key that is revoked) no longer counts.';
comment on column pgaudit_wf.limit_condition.resource_type is 'Resource type of the attached tables.';
comment on column pgaudit_wf.limit_condition.condition is
    'Boolean SQL expression over the row''s columns, such as revoked_at is null; immutable, as a counter cannot follow the clock. '
    'Functions outside pg_catalog need their schema.';

-- Room on the page, so that counting up makes no index entries.
create table pgaudit_wf.org_usage (
    org_id text not null,
    resource_type text not null,
    used bigint not null,
    primary key (org_id, resource_type)
) with (fillfactor = 50);
comment on table pgaudit_wf.org_usage is
    'How many rows of each organization count towards a limit, for resource types that have one; written by triggers only. '
    'recount_usage() recounts.';
comment on column pgaudit_wf.org_usage.org_id is 'The organization.';
comment on column pgaudit_wf.org_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.org_usage.used is 'Rows that count towards the limit.';

create table pgaudit_wf.limit_target (
    target regclass primary key,
    resource_type text not null,
    org_column text not null,
    condition text not null,
    condition_columns text[] not null,
    aliases jsonb not null,
    function_name text not null unique,
    basis jsonb not null,
    stale_since timestamptz
);
comment on table pgaudit_wf.limit_target is 'Tables whose rows are counted; written by _place_limit() only.';
comment on column pgaudit_wf.limit_target.target is 'The table.';
comment on column pgaudit_wf.limit_target.resource_type is 'Its resource type.';
comment on column pgaudit_wf.limit_target.org_column is 'Column with the organization, by its alias; rows without one do not count.';
comment on column pgaudit_wf.limit_target.condition is
    'Condition for a row to count towards the limit, as PostgreSQL prints it, over the aliases of the columns.';
comment on column pgaudit_wf.limit_target.condition_columns is 'Aliases of the columns that the condition names.';
comment on column pgaudit_wf.limit_target.aliases is
    'The columns'' names when the condition was compiled, by their current names ({name: alias}): '
    'so a renamed column is counted as before.';
comment on column pgaudit_wf.limit_target.function_name is 'Trigger function in schema pgaudit_wf.';
comment on column pgaudit_wf.limit_target.basis is
    'What the count rests on: number of the org column, types of the columns by alias, relations that hold the rows.';
comment on column pgaudit_wf.limit_target.stale_since is
    'Since when the count may be wrong, because it could not be redone after DDL; recount_usage() redoes it.';

alter table pgaudit_wf.org_limit enable row level security;
create policy readable_org on pgaudit_wf.org_limit for select using (org_id is null or org_id = (select pgaudit_wf._readable_org()));
alter table pgaudit_wf.org_usage enable row level security;
create policy readable_org on pgaudit_wf.org_usage for select using (org_id = (select pgaudit_wf._readable_org()));

create function pgaudit_wf._limit_of(org_id text, resource_type text) returns bigint
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select max_count from pgaudit_wf.org_limit as l
    where l.resource_type = _limit_of.resource_type and (l.org_id = _limit_of.org_id or l.org_id is null)
    order by l.org_id nulls last limit 1
$$;
comment on function pgaudit_wf._limit_of(text, text) is
    'How many rows of a resource type an organization may have: its own limit, else the default; null: any number.';

create view pgaudit_wf.limit_usage with (security_invoker = true) as
select
    known.org_id,
    known.resource_type,
    coalesce(u.used, 0) as used,
    pgaudit_wf._limit_of(known.org_id, known.resource_type) as max_count,
    not exists (select from pgaudit_wf.org_limit as l where l.org_id = known.org_id and l.resource_type = known.resource_type) as is_default
from (
    select counted.org_id, counted.resource_type from pgaudit_wf.org_usage as counted
    union
    select l.org_id, l.resource_type from pgaudit_wf.org_limit as l where l.org_id is not null
) as known
left join pgaudit_wf.org_usage as u on u.org_id = known.org_id and u.resource_type = known.resource_type;
comment on view pgaudit_wf.limit_usage is
    'How much of its limits each organization has used. Owners and admins see their own organization, as reader.';
comment on column pgaudit_wf.limit_usage.org_id is 'The organization.';
comment on column pgaudit_wf.limit_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.limit_usage.used is 'Rows that count towards the limit now.';
comment on column pgaudit_wf.limit_usage.max_count is 'How many there may be; null: unlimited.';
comment on column pgaudit_wf.limit_usage.is_default is 'True when the limit is the default for all organizations.';

create function pgaudit_wf._record_org_limit() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    before constant jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) - 'id' end;
    after constant jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) - 'id' end;
begin
    if before is distinct from after then
        perform pgaudit_wf._unpack_context();
        insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff)
        values (coalesce(after, before) ->> 'org_id', case when tg_op = 'DELETE' then 'org_limit.removed' else 'org_limit.set' end,
            'org_limit', coalesce(after, before) ->> 'resource_type', true, pgaudit_wf._json_diff(before, after));
    end if;
    return null;
end
$$;
comment on function pgaudit_wf._record_org_limit() is
    'Trigger of org_limit: records as org_limit.set and org_limit.removed who allowed whom how much.';
create trigger record after insert or update or delete on pgaudit_wf.org_limit
    for each row execute function pgaudit_wf._record_org_limit();

create function pgaudit_wf._write_org_limit(org_id text, resource_type text, max_count bigint) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.org_limit (org_id, resource_type, max_count)
    values (_write_org_limit.org_id, _write_org_limit.resource_type, _write_org_limit.max_count)
    on conflict on constraint org_limit_key do update set max_count = excluded.max_count
$$;
comment on function pgaudit_wf._write_org_limit(text, text, bigint) is
    'set_org_limit() for callers without rights on org_limit. Granted to nobody.';

create function pgaudit_wf.set_org_limit(org_id text, resource_type text, max_count bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    -- The first limit of a type puts triggers on its tables, which takes their owner's rights: ours are not enough.
    if has_table_privilege('pgaudit_wf.org_limit', 'insert') and has_table_privilege('pgaudit_wf.org_limit', 'update') then
        insert into pgaudit_wf.org_limit (org_id, resource_type, max_count) values (org_id, resource_type, max_count)
        on conflict on constraint org_limit_key do update set max_count = excluded.max_count;
    else
        perform pgaudit_wf._write_org_limit(org_id, resource_type, max_count);
    end if;
end
$$;
comment on function pgaudit_wf.set_org_limit(text, text, bigint) is
    'Sets the limit of an organization (null: of all that have none of their own) for a resource type, whether it had one or not; '
    'max_count null: no limit for this organization. Granted to nobody: its callers decide what is paid for. '
    'A login that is only to set limits needs EXECUTE on it and on _write_org_limit(); '
    'the first limit of a type must come from the owner of its tables or a superuser (else PA331).';
