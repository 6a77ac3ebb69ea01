-- How long events and versions are kept, and the only way in which old ones leave.
--
-- Events leave a whole partition at a time, once archived: what is judged is the partition's end, so that each is
-- touched once for each number of days in force. Rows under a longer policy than the rest of their month are carried over into a
-- fresh partition in its place: a long policy for one organization does not keep everybody's events.

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
    'How long events are kept. Of the policies that fit an event the most specific one holds: for its organization before for all, then the longer pattern. An event that none fits stays for good.';
comment on column pgaudit_wf.retention_policy.id is 'Number of the policy.';
comment on column pgaudit_wf.retention_policy.action_pattern is 'Actions it is for; * stands for any characters: api_key.*.';
comment on column pgaudit_wf.retention_policy.org_id is 'Organization it is for; null: all, and events without one.';
comment on column pgaudit_wf.retention_policy.keep_days is 'Days, from 30 to 1,000,000, that an event stays after the end of its month (UTC); null: for good.';
insert into pgaudit_wf.retention_policy (keep_days) values (730);

create table pgaudit_wf.version_policy (
    org_id text unique nulls not distinct,
    keep_versions integer,
    keep_days integer not null default 90,
    constraint version_policy_keep_versions check (keep_versions >= 1),
    constraint version_policy_keep_days check (keep_days between 30 and 1000000)
);
-- It has no primary key, without which no publication of all tables could be updated.
alter table pgaudit_wf.version_policy replica identity full;
comment on table pgaudit_wf.version_policy is
    'Which versions of workflows keep their snapshot: the newest ones, the young ones, and any that a run points at. Of the others the chain stays: number, hash, change, who and when.';
comment on column pgaudit_wf.version_policy.org_id is 'Organization it is for; null: all that have no policy of their own.';
comment on column pgaudit_wf.version_policy.keep_versions is 'How many of a workflow''s newest versions keep it; null: all.';
comment on column pgaudit_wf.version_policy.keep_days is 'Days, from 30 to 1,000,000, for which every version keeps it.';
insert into pgaudit_wf.version_policy (keep_versions) values (100);

create function pgaudit_wf._record_policy_change() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not pgaudit_wf._is_applied() then
        perform pgaudit_wf.record_event(tg_argv[0] || '.changed', tg_argv[0], null,
            case when tg_op <> 'INSERT' then to_jsonb(old) end, case when tg_op <> 'DELETE' then to_jsonb(new) end);
    end if;
    return null;
end
$$;
comment on function pgaudit_wf._record_policy_change() is 'Trigger: who changed how long things are kept is itself in the log.';
create trigger record_change after insert or update or delete on pgaudit_wf.retention_policy
    for each row execute function pgaudit_wf._record_policy_change('retention_policy');
create trigger record_change after insert or update or delete on pgaudit_wf.version_policy
    for each row execute function pgaudit_wf._record_policy_change('version_policy');
alter table pgaudit_wf.retention_policy enable always trigger record_change;
alter table pgaudit_wf.version_policy enable always trigger record_change;

create function pgaudit_wf._matches_pattern(action text, pattern text) returns boolean
language sql immutable strict parallel safe
as $$
    select action like replace(replace(replace(replace(pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')
$$;
comment on function pgaudit_wf._matches_pattern(text, text) is 'Whether an action fits a pattern in which * stands for any characters.';

create function pgaudit_wf.retention_days(action text, org_id text default null) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select p.keep_days
    from pgaudit_wf.retention_policy as p
    where pgaudit_wf._matches_pattern(retention_days.action, p.action_pattern) and (p.org_id is null or p.org_id = retention_days.org_id)
    order by p.org_id is null, length(replace(p.action_pattern, '*', '')) desc, strpos(p.action_pattern, '*') > 0, p.action_pattern desc
    limit 1
$$;
comment on function pgaudit_wf.retention_days(text, text) is
    'Days for which an event of that action and organization is kept after the end of its month; null: for good, as when no policy fits.';

create function pgaudit_wf._keeps_until(to_time timestamptz, keep_days integer) returns timestamptz
language sql immutable parallel safe
set timezone = 'UTC'
as $$ select coalesce(to_time + make_interval(days => keep_days), 'infinity') $$;
comment on function pgaudit_wf._keeps_until(timestamptz, integer) is 'When events of a month that ends then are out of the retention window.';

create function pgaudit_wf.log_months() returns table (partition_name text, relation regclass, from_time timestamptz, to_time timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
    select c.relname::text, c.oid::regclass, b.bound[1]::timestamptz, b.bound[2]::timestamptz
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid,
    lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), $bound$FROM \('(.+)'\) TO \('(.+)'\)$bound$) as bound) as b
    where i.inhparent = 'pgaudit_wf.security_audit_log'::regclass and b.bound is not null
    order by 3
$$;
comment on function pgaudit_wf.log_months() is 'The monthly partitions of the log, oldest first.';

create function pgaudit_wf._month_of(partition_name text) returns table (relation regclass, from_time timestamptz, to_time timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query select m.relation, m.from_time, m.to_time from pgaudit_wf.log_months() as m where m.partition_name = _month_of.partition_name;
    if not found then
        raise exception '"%" is no monthly partition of the log', _month_of.partition_name
            using errcode = 'PA340', hint = 'pgaudit_wf.log_months() lists them.';
    end if;
end
$$;
comment on function pgaudit_wf._month_of(text) is 'A monthly partition of the log by name; raises PA340 if it is none.';

create function pgaudit_wf._retention_groups(relation regclass, to_time timestamptz)
returns table (action text, org_id text, events bigint, keep_until timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format(
        'select g.action, g.org_id, g.events, pgaudit_wf._keeps_until($1, pgaudit_wf.retention_days(g.action, g.org_id))'
        ' from (select l.action, l.org_id, count(*) as events from only %s as l group by 1, 2) as g', _retention_groups.relation)
        using _retention_groups.to_time;
end
$$;
comment on function pgaudit_wf._retention_groups(regclass, timestamptz) is 'What a month of the log holds by action and organization, and until when each is kept.';

create function pgaudit_wf.log_retention(at timestamptz default now())
returns table (partition_name text, from_time timestamptz, to_time timestamptz, events bigint, expired_events bigint, keep_until timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    month record;
begin
    if log_retention.at > now() then
        raise exception 'retention is judged at the present or a past moment, not at %', log_retention.at using errcode = 'PA008';
    end if;
    for month in
        select m.* from pgaudit_wf.log_months() as m
        -- Counting takes a scan: only where a policy is short enough to let something go.
        where pgaudit_wf._keeps_until(m.to_time, (select min(p.keep_days) from pgaudit_wf.retention_policy as p)) <= log_retention.at
    loop
        return query
            select month.partition_name, month.from_time, month.to_time, coalesce(sum(g.events), 0)::bigint,
                coalesce(sum(g.events) filter (where g.keep_until <= log_retention.at), 0)::bigint,
                nullif(coalesce(min(g.keep_until), pgaudit_wf._keeps_until(month.to_time, pgaudit_wf.retention_days('', null))), 'infinity')
            from pgaudit_wf._retention_groups(month.relation, month.to_time) as g;
    end loop;
end
$$;
comment on function pgaudit_wf.log_retention(timestamptz) is
    'The months of the log of which something may be out of the retention window: their events, how many of these are, and when the first of them is or will be (null: never). Raises PA008 on a moment to come.';

create function pgaudit_wf.prune(partition_name text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    month record;
    total bigint;
    expired bigint;
    keep_until timestamptz;
    covered bigint;
    carried bigint := 0;
    fresh constant text := 'carried_over_' || prune.partition_name;
begin
    perform pgaudit_wf._take_turn('partition');
    select * into month from pgaudit_wf._month_of(prune.partition_name);
    -- Nothing can be added to it from here on; reading goes on.
    execute format('lock table only %s in share mode', month.relation);
    select coalesce(sum(g.events), 0), coalesce(sum(g.events) filter (where g.keep_until <= now()), 0),
        coalesce(min(g.keep_until), pgaudit_wf._keeps_until(month.to_time, pgaudit_wf.retention_days('', null)))
    into total, expired, keep_until
    from pgaudit_wf._retention_groups(month.relation, month.to_time) as g;
    if pgaudit_wf._keeps_until(month.to_time, 30) > now() or keep_until > now() then
        raise exception '% is inside the retention window', prune.partition_name
            using errcode = 'PA341', hint = 'pgaudit_wf.retention_policy says how long events are kept; nothing leaves before 30 days after the end of its month.';
    end if;
    covered := pgaudit_wf._archived_events(prune.partition_name);
    if covered is distinct from total then
        raise exception '% has % events, and % of them are archived', prune.partition_name, total, coalesce(covered, 0)
            using errcode = 'PA342', hint = 'Archive it first: pgaudit-wf maintain --archive URL does both.';
    end if;
    if total > 0 and (
        select a.read_back_at is null from pgaudit_wf.archive as a where a.partition_name = prune.partition_name order by a.id desc limit 1) then
        raise exception 'the archive of % has been rewritten since it was last read back', prune.partition_name
            using errcode = 'PA342', hint = 'pgaudit-wf maintain reads it and compares it with the log first.';
    end if;

    if expired < total then
        execute format('create table pgaudit_wf.%I (like pgaudit_wf.security_audit_log including defaults including constraints)', fresh);
        perform pgaudit_wf._revoke_defaults(format('pgaudit_wf.%I', fresh)::regclass);
        execute format(
            'insert into pgaudit_wf.%I select l.* from only %s as l'
            ' where array[l.action, l.org_id] in (select array[g.action, g.org_id] from pgaudit_wf._retention_groups($1, $2) as g where g.keep_until > now())',
            fresh, month.relation) using month.relation, month.to_time;
        get diagnostics carried = row_count;
    end if;
    update pgaudit_wf.archive as a set live_events = carried, pruned_at = now()
    where a.id = (select max(newest.id) from pgaudit_wf.archive as newest where newest.partition_name = prune.partition_name);
    if not found then
        -- An empty month needs no file; that it went is noted all the same.
        insert into pgaudit_wf.archive (partition_name, from_time, to_time, events, live_events, pruned_at)
        values (prune.partition_name, month.from_time, month.to_time, 0, 0, now());
    end if;
    execute format('drop table %s', month.relation);
    if carried > 0 then
        execute format('alter table pgaudit_wf.%I rename to %I', fresh, prune.partition_name);
        execute format('comment on table pgaudit_wf.%I is %L', prune.partition_name,
            format('Events of %s (UTC) that are kept longer than the rest of that month.', to_char(month.from_time, 'YYYY-MM')));
        execute format('alter table pgaudit_wf.security_audit_log attach partition pgaudit_wf.%I for values from (%L) to (%L)',
            prune.partition_name, month.from_time, month.to_time);
        perform pgaudit_wf._guard_log_partition(prune.partition_name);
    end if;
    return total - carried;
end
$$;
comment on function pgaudit_wf.prune(text) is
    'Removes a month of the log that is archived and out of the retention window, and returns how many events that were; those under a longer policy stay, in a fresh partition of that month. '
    'Raises PA340 if it is no month of the log, PA341 inside the window or less than 30 days after its end, PA342 if it holds an event that is not archived, or the archive has yet to be read back.';

create function pgaudit_wf._prunable_versions_query() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Tables of runs differ from one application to the next; what they point at stays.
    select 'with policy as ('
        '     select w.workflow_id, w.newest, coalesce(own.keep_versions, common.keep_versions) as keep_versions,'
        '         coalesce(own.keep_days, common.keep_days) as keep_days, own.org_id is not null as has_own, own.keep_versions as own_keep_versions'
        '     from (select distinct on (h.workflow_id) h.workflow_id, h.version as newest, h.org_id from pgaudit_wf.workflow_history as h order by h.workflow_id, h.version desc) as w'
        '     left join pgaudit_wf.version_policy as own on own.org_id = w.org_id'
        '     left join pgaudit_wf.version_policy as common on common.org_id is null)'
        ' select h.workflow_id, h.version from pgaudit_wf.workflow_history as h'
        ' join policy as p on p.workflow_id = h.workflow_id'
        ' where h.pruned_at is null'
        '     and h.version <= p.newest - case when p.has_own then p.own_keep_versions else p.keep_versions end'
        '     and h.created_at < now() - make_interval(days => p.keep_days)'
        || coalesce(string_agg(format(' and not exists (select from %s as run where %s = h.content_hash)', e.target,
            pgaudit_wf._text_expression((select atttypid from pg_attribute where attrelid = e.target and attname = e.hash_column), pgaudit_wf._field('run', e.hash_column))), '' order by e.target::oid), '')
        || ' order by h.workflow_id, h.version'
    from pgaudit_wf.execution_attachment as e
    where exists (select from pg_class where oid = e.target and relkind in ('r', 'p'))
$$;
comment on function pgaudit_wf._prunable_versions_query() is 'Query for the versions whose snapshot no policy and no run keeps.';

create function pgaudit_wf._prunable_versions() returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    found_versions bigint;
begin
    execute 'select count(*) from (' || pgaudit_wf._prunable_versions_query() || ') as v' into found_versions;
    return found_versions;
end
$$;
comment on function pgaudit_wf._prunable_versions() is 'How many versions prune_history() would let go of.';

create function pgaudit_wf.prune_history(max_versions integer default 1000) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- Rather an error than a run hidden by somebody's policy, which we would run to see it.
set row_security = off
as $$
declare
    pruned bigint;
    version pgaudit_wf.workflow_history;
    bare pgaudit_wf.workflow_history;
    keys text[] := '{}';
    numbers integer[] := '{}';
begin
    if coalesce(prune_history.max_versions, 0) < 1 then
        raise exception 'max_versions must be at least 1' using errcode = 'PA008';
    end if;
    -- What was sealed must verify without its snapshot too.
    perform pgaudit_wf._lock_seal();
    alter table pgaudit_wf.workflow_history disable trigger append_only;
    for version in
        execute 'select h.* from pgaudit_wf.workflow_history as h join (' || pgaudit_wf._prunable_versions_query()
            || ' limit $1) as v on h.workflow_id = v.workflow_id and h.version = v.version'
            using prune_history.max_versions
    loop
        bare := version;
        bare.snapshot := null;
        bare.pruned_at := now();
        perform pgaudit_wf._keep_commitments(version, bare);
        keys := keys || version.workflow_id;
        numbers := numbers || version.version;
    end loop;
    update pgaudit_wf.workflow_history as h set snapshot = null, pruned_at = now()
    from unnest(keys, numbers) as v (workflow_id, version)
    where h.workflow_id = v.workflow_id and h.version = v.version;
    get diagnostics pruned = row_count;
    alter table pgaudit_wf.workflow_history enable always trigger append_only;
    return pruned;
end
$$;
comment on function pgaudit_wf.prune_history(integer) is
    'Lets go of the snapshots of up to max_versions versions that version_policy no longer keeps and no run points at; returns how many. Numbers, hashes, changes, authors and times stay, so the chain still verifies. '
    'Call it until it returns less than max_versions. Raises PA008 on a wrong argument.';

-- DROP TABLE and DETACH would be the side door of an append-only log.
create function pgaudit_wf._trail_tables() returns text[]
language sql immutable parallel safe
as $$
    select '{security_audit_log,workflow_history,attachment_history,archive,erasure,erased_event,log_tile,log_leaf,log_kept,log_checkpoint,log_cosignature}'::text[]
$$;
comment on function pgaudit_wf._trail_tables() is 'The tables of the audit trail, which can be neither dropped nor moved.';

create function pgaudit_wf._refuse_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    gone record;
    month timestamptz;
begin
    for gone in
        select d.object_name, d.object_identity from pg_event_trigger_dropped_objects() as d
        where d.schema_name = 'pgaudit_wf' and d.object_type = 'table'
            and (d.object_name = any (pgaudit_wf._trail_tables()) or d.object_name ~ '^security_audit_log_(y\d{4}m\d{2}|default)$')
    loop
        month := to_timestamp(substring(gone.object_name from 'y(\d{4}m\d{2})$'), 'YYYY"m"MM');
        -- A month to come holds nothing.
        continue when month > now();
        if month is not null then
            -- What prune() takes is noted in its transaction, and no earlier than it may be.
            continue when exists (
                select from pgaudit_wf.archive as a
                where a.partition_name = gone.object_name and a.from_time = month and a.pruned_at = now());
        end if;
        raise exception '% is part of the audit trail and cannot be dropped', gone.object_identity
            using errcode = 'PA343', hint = 'Old events leave by pgaudit_wf.prune(); pgaudit-wf migrate --to 0 removes the audit schema as a whole.';
    end loop;
end
$$;
comment on function pgaudit_wf._refuse_drop() is 'Event trigger: raises PA343 when a part of the audit trail is dropped by anything but prune().';

create function pgaudit_wf._refuse_detach() returns event_trigger
-- As the owner of our schema: whoever alters a table of his own need not be allowed to see into it.
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
    stray text;
begin
    -- Everything has to be in its place and carry its name, or the next step could take it away.
    select format('pgaudit_wf.%I', part) into stray
    from unnest(pgaudit_wf._trail_tables()) as part
    where to_regclass(format('pgaudit_wf.%I', part)) is null;
    if stray is not null then
        raise exception '% is part of the audit trail and can be neither moved nor renamed', stray using errcode = 'PA343';
    end if;
    select c.oid::regclass::text into stray
    from pg_class as c
    join pg_trigger as t on t.tgrelid = c.oid and t.tgname = 'append_only' and t.tgfoid = 'pgaudit_wf._refuse_change'::regproc
    left join pg_inherits as i on i.inhrelid = c.oid
    where c.relkind = 'r'
        and (c.relname ~ '^security_audit_log_' or i.inhparent = 'pgaudit_wf.security_audit_log'::regclass)
        and (i.inhparent is null or i.inhdetachpending or c.relnamespace <> 'pgaudit_wf'::regnamespace
            or c.relname <> case pg_get_expr(c.relpartbound, c.oid) when 'DEFAULT' then 'security_audit_log_default'
                else regexp_replace(pg_get_expr(c.relpartbound, c.oid), '^.*FROM \(''(\d{4})-(\d{2})-.*$', 'security_audit_log_y\1m\2') end)
    limit 1;
    if stray is not null then
        raise exception '% is part of the audit trail and can be neither detached nor moved nor renamed', stray
            using errcode = 'PA343', hint = 'Old events leave by pgaudit_wf.prune().';
    end if;
end
$$;
comment on function pgaudit_wf._refuse_detach() is 'Event trigger: raises PA343 when a partition of the log is detached or renamed.';
