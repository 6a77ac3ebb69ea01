-- How long events and versions are kept, and the only way in which old ones are removed.
--
-- Events are removed a whole partition at a time, once archived: what counts is the partition's end, so that each is processed
-- once for each number of days in force. Rows under a longer policy than the rest of their month are carried over into a
-- new partition in its place: a long policy for one organization does not keep everybody's events.

create table pgaudit_wf.retention_policy (
    id bigint generated always as identity primary key,
    action_pattern text not null default '*',
    org_id text,
    keep_days integer,
    constraint retention_policy_scope unique nulls not distinct (action_pattern, org_id),
    constraint retention_policy_action_pattern check (action_pattern <> ''),
    constraint retention_policy_keep_days check (keep_days between 30 and 1000000)
);
comment on table pgaudit_wf.retention_policy is
    'How long events are kept. '
    'Of the policies that match an event the most specific one applies: for its organization before for all, then the longer pattern. '
    'An event that none matches is kept forever.';
comment on column pgaudit_wf.retention_policy.id is 'Number of the policy.';
comment on column pgaudit_wf.retention_policy.action_pattern is 'Actions it is for; * stands for any characters: api_key.*.';
comment on column pgaudit_wf.retention_policy.org_id is 'Organization it is for; null: all, and events without one.';
comment on column pgaudit_wf.retention_policy.keep_days is
    'Days, from 30 to 1,000,000, that an event is kept after the end of its month (UTC); null: forever.';
insert into pgaudit_wf.retention_policy (keep_days) values (730);

create table pgaudit_wf.version_policy (
    org_id text unique nulls not distinct,
    keep_versions integer,
    keep_days integer not null default 90,
    members_read boolean,
    constraint version_policy_keep_versions check (keep_versions >= 1),
    constraint version_policy_keep_days check (keep_days between 30 and 1000000)
);
-- It has no primary key, without which no publication of all tables could be updated.
alter table pgaudit_wf.version_policy replica identity full;
comment on table pgaudit_wf.version_policy is
    'Which versions of workflows keep their snapshot: the newest ones, recent ones, and any that a run refers to. '
    'Of the others, number, hash, change, author and time are kept. And who may read versions.';
comment on column pgaudit_wf.version_policy.org_id is 'Organization it is for; null: all that have no policy of their own.';
comment on column pgaudit_wf.version_policy.keep_versions is 'How many of a workflow''s newest versions keep it; null: all.';
comment on column pgaudit_wf.version_policy.keep_days is 'Days, from 30 to 1,000,000, for which every version keeps it.';
comment on column pgaudit_wf.version_policy.members_read is
    'Whether every member of the organization may read versions, not only owners and admins; null: as for all, or no.';
insert into pgaudit_wf.version_policy (keep_versions) values (100);

create function pgaudit_wf.retention_days(action text, org_id text default null) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select p.keep_days
    from pgaudit_wf.retention_policy as p
    where not pgaudit_wf._is_release(retention_days.action)
        and pgaudit_wf._matches_pattern(retention_days.action, p.action_pattern) and (p.org_id is null or p.org_id = retention_days.org_id)
    order by p.org_id is null, length(replace(p.action_pattern, '*', '')) desc, strpos(p.action_pattern, '*') > 0, p.action_pattern desc
    limit 1
$$;
comment on function pgaudit_wf.retention_days(text, text) is
    'Days for which an event of that action and organization is kept after the end of its month; '
    'null: forever, also when no policy matches, and for what says what was archived, pruned or erased.';

create function pgaudit_wf._kept_until(to_time timestamptz, keep_days integer) returns timestamptz
language sql immutable parallel safe
set timezone = 'UTC'
as $$ select coalesce(to_time + make_interval(days => keep_days), 'infinity') $$;
comment on function pgaudit_wf._kept_until(timestamptz, integer) is
    'When events of a month that ends at to_time leave the retention window.';
