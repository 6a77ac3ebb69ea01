-- API keys that are watched: when they expire, when and from where they were used, and whether one was found in public.
--
-- Nothing here touches the write path: a job (pgaudit-wf keys watch) follows the log as the reader "keys", counts in api_key_use from which
-- networks each key is used (_follow_api_keys), and compares the keys with the policy (_check_api_keys). What it finds are events, each
-- made once: api_key_notice has its row in the same transaction.

create view pgaudit_wf.api_key_directory as
select
    null::text as api_key_id,
    null::text as org_id,
    null::text as owner_id,
    null::text as label,
    null::text as prefix,
    null::text as key_hash,
    null::timestamptz as created_at,
    null::timestamptz as expires_at,
    null::timestamptz as last_used_at,
    null::timestamptz as revoked_at
where false;
comment on view pgaudit_wf.api_key_directory is
    'The API keys that there are, to be watched by pgaudit-wf keys watch. Empty until you point it at your own: '
    'create or replace view pgaudit_wf.api_key_directory as select id::text as api_key_id, org_id::text, … '
    'A column that you have nothing for stays null::text or null::timestamptz.';
comment on column pgaudit_wf.api_key_directory.api_key_id is 'Id as in app.api_key_id; never the key.';
comment on column pgaudit_wf.api_key_directory.org_id is 'Organization that the key acts for; null: a person''s own key.';
comment on column pgaudit_wf.api_key_directory.owner_id is 'Actor who answers for the key.';
comment on column pgaudit_wf.api_key_directory.label is
    'A handle that people recognize and that is not secret, as in credential_directory.';
comment on column pgaudit_wf.api_key_directory.prefix is 'Public prefix by which a report of a leak may name the key; null: by none.';
comment on column pgaudit_wf.api_key_directory.key_hash is
    'Hash by which a report of a leak may name the key, as its sender writes it; null: by none. No page or event shows it.';
comment on column pgaudit_wf.api_key_directory.created_at is 'When the key was made.';
comment on column pgaudit_wf.api_key_directory.expires_at is 'When it expires; null: never.';
comment on column pgaudit_wf.api_key_directory.last_used_at is
    'When it was last used, if your tables say that; uses in the log and in the stamps of runs count anyway.';
comment on column pgaudit_wf.api_key_directory.revoked_at is 'When it was revoked; such a key is no longer watched.';

create function pgaudit_wf._key_owner(api_key_id text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    select d.owner_id from pgaudit_wf.api_key_directory as d where d.api_key_id = _key_owner.api_key_id limit 1
$$;
comment on function pgaudit_wf._key_owner(text) is 'Actor who answers for an API key, by api_key_directory.';

create table pgaudit_wf.api_key_policy (
    is_only boolean primary key default true check (is_only),
    expiring_days integer[] not null default '{30,7,1}',
    unused_after interval default '90 days',
    ipv4_prefix integer not null default 24 check (ipv4_prefix between 8 and 32),
    ipv6_prefix integer not null default 48 check (ipv6_prefix between 16 and 128),
    forget_after interval not null default '1 year',
    constraint api_key_policy_expiring_days check (
        cardinality(expiring_days) <= 20 and array_position(expiring_days, null) is null
        and 0 < all (expiring_days) and 3660 >= all (expiring_days)),
    constraint api_key_policy_unused_after check (unused_after between interval '1 hour' and interval '10 years'),
    constraint api_key_policy_forget_after check (forget_after between interval '1 day' and interval '10 years')
);
comment on table pgaudit_wf.api_key_policy is
    'Of what about API keys there are events: one row. Its changes are events, as those of any setting are.';
comment on column pgaudit_wf.api_key_policy.is_only is 'Always true: there is one row.';
comment on column pgaudit_wf.api_key_policy.expiring_days is
    'How many days before a key expires there is an event api_key.expiring; not for more days than the key has in all. Empty: none.';
comment on column pgaudit_wf.api_key_policy.unused_after is 'How long after its last use a key is api_key.unused; null: never.';
comment on column pgaudit_wf.api_key_policy.ipv4_prefix is
    'Length of the prefix that makes a network of IPv4 addresses, for api_key.new_network.';
comment on column pgaudit_wf.api_key_policy.ipv6_prefix is 'The same for IPv6.';
comment on column pgaudit_wf.api_key_policy.forget_after is
    'How long after its last use a network is forgotten, and new when it is used again.';
insert into pgaudit_wf.api_key_policy default values;

create table pgaudit_wf.api_key_watch (
    is_only boolean primary key default true check (is_only),
    since timestamptz not null default now()
);
comment on table pgaudit_wf.api_key_watch is 'Since when API keys are watched: one row, made by the first run of pgaudit-wf keys watch.';
comment on column pgaudit_wf.api_key_watch.is_only is 'Always true: there is one row.';
comment on column pgaudit_wf.api_key_watch.since is
    'There are no events of what was before: keys that had expired or lain unused by then, and networks used by then.';

create table pgaudit_wf.api_key_use (
    api_key_id text,
    org_id text,
    network cidr,
    uses bigint not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    primary key (api_key_id, org_id, network)
);
comment on table pgaudit_wf.api_key_use is
    'From which networks each API key was used, by the log: counted by pgaudit-wf keys watch. The reader role sees its organization''s.';
comment on column pgaudit_wf.api_key_use.api_key_id is 'The key, as in app.api_key_id.';
comment on column pgaudit_wf.api_key_use.org_id is 'Organization of the events; empty: of none.';
comment on column pgaudit_wf.api_key_use.network is
    'Network of the addresses; 0.0.0.0/0 where the log has no address, or a run shows the use.';
comment on column pgaudit_wf.api_key_use.uses is 'Number of events.';
comment on column pgaudit_wf.api_key_use.first_at is 'Time of the first one.';
comment on column pgaudit_wf.api_key_use.last_at is 'Time of the last one.';
alter table pgaudit_wf.api_key_use enable row level security;
create policy readable_org on pgaudit_wf.api_key_use for select using (org_id = (select pgaudit_wf._readable_org()));

create table pgaudit_wf.api_key_notice (
    api_key_id text,
    action text,
    subject text,
    threshold integer,
    noted_at timestamptz not null default now(),
    primary key (api_key_id, action, subject, threshold)
);
comment on table pgaudit_wf.api_key_notice is 'Of what there has been an event, so that there is never a second one.';
comment on column pgaudit_wf.api_key_notice.api_key_id is 'The key.';
comment on column pgaudit_wf.api_key_notice.action is 'Action of the event, such as api_key.expiring.';
comment on column pgaudit_wf.api_key_notice.subject is
    'What it is about: the time of expiry or of the last use, the network, the digest of a report.';
comment on column pgaudit_wf.api_key_notice.threshold is 'Days before the expiry; 0 for other events.';
comment on column pgaudit_wf.api_key_notice.noted_at is 'When the event was made.';
