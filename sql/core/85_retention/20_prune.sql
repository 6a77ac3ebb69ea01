-- Pruning: months of the log that are archived and out of the retention window, and snapshots of old versions.

create function pgaudit_wf._retention_groups(relation regclass, to_time timestamptz)
returns table (action text, org_id text, events bigint, keep_until timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format(
        'select g.action, g.org_id, g.events, pgaudit_wf._kept_until($1, pgaudit_wf.retention_days(g.action, g.org_id))'
        ' from (select l.action, l.org_id, count(*) as events from only %s as l group by 1, 2) as g', _retention_groups.relation)
        using _retention_groups.to_time;
end
$$;
comment on function pgaudit_wf._retention_groups(regclass, timestamptz) is
    'What a month of the log holds by action and organization, and until when each is kept.';

create function pgaudit_wf.log_retention(at timestamptz default now())
returns table (
    partition_name text, from_time timestamptz, to_time timestamptz, events bigint, expired_events bigint, keep_until timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    month record;
begin
    if log_retention.at > now() then
        raise exception 'retention cannot be computed for a future time: %', log_retention.at using errcode = 'PA008';
    end if;
    for month in
        select m.* from pgaudit_wf.log_months() as m
        -- Counting takes a scan: only where a policy is short enough for something to have expired.
        where pgaudit_wf._kept_until(m.to_time, (select min(p.keep_days) from pgaudit_wf.retention_policy as p)) <= log_retention.at
    loop
        return query
            select month.partition_name, month.from_time, month.to_time, coalesce(sum(g.events), 0)::bigint,
                coalesce(sum(g.events) filter (where g.keep_until <= log_retention.at), 0)::bigint,
                nullif(coalesce(min(g.keep_until), pgaudit_wf._kept_until(month.to_time, pgaudit_wf.retention_days('', null))), 'infinity')
            from pgaudit_wf._retention_groups(month.relation, month.to_time) as g;
    end loop;
end
$$;
comment on function pgaudit_wf.log_retention(timestamptz) is
    'The months of the log of which something may be out of the retention window: '
    'their events, how many of these are, and when the first of them is or will be (null: never). Raises PA008 on a future time.';

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
    -- Blocks writes to it from here on, not reads.
    execute format('lock table only %s in share mode', month.relation);
    select coalesce(sum(g.events), 0), coalesce(sum(g.events) filter (where g.keep_until <= now()), 0),
        coalesce(min(g.keep_until), pgaudit_wf._kept_until(month.to_time, pgaudit_wf.retention_days('', null)))
    into total, expired, keep_until
    from pgaudit_wf._retention_groups(month.relation, month.to_time) as g;
    if pgaudit_wf._kept_until(month.to_time, 30) > now() or keep_until > now() then
        raise exception '% is inside the retention window', prune.partition_name
            using errcode = 'PA341',
                hint = 'pgaudit_wf.retention_policy says how long events are kept; '
                    'nothing is removed until 30 days after the end of its month.';
    end if;
    covered := pgaudit_wf._archived_events(prune.partition_name);
    if covered is distinct from total then
        raise exception '% has % events, and % of them are archived', prune.partition_name, total, coalesce(covered, 0)
            using errcode = 'PA342', hint = 'Archive it first: pgaudit-wf maintain --archive URL does both.';
    end if;
    if total > 0 and (
        select a.read_back_at is null from pgaudit_wf.archive as a
        where a.partition_name = prune.partition_name order by a.id desc limit 1)
    then
        raise exception 'the archive of % has been rewritten since it was last read back', prune.partition_name
            using errcode = 'PA342', hint = 'pgaudit-wf maintain first reads it back and compares it with the log.';
    end if;

    if total > 0 and pgaudit_wf._is_sealed() and not exists (
        select from pgaudit_wf.log_leaf as l
        join pgaudit_wf.log_checkpoint as c on c.note is not null and c.size > l.leaf_index
        where l.event_id = (select a.event_id from pgaudit_wf.archive as a
            where a.partition_name = prune.partition_name order by a.id desc limit 1))
    then
        raise exception 'that % is archived is not sealed yet', prune.partition_name
            using errcode = 'PA345', hint = 'Seal the log first (pgaudit-wf seal): whoever verifies it accepts as pruned only what is '
                'signed as archived.';
    end if;

    if expired < total then
        execute format('create table pgaudit_wf.%I (like pgaudit_wf.security_audit_log'
            ' including defaults including constraints including compression)', fresh);
        perform pgaudit_wf._revoke_defaults(format('pgaudit_wf.%I', fresh)::regclass);
        execute format(
            'insert into pgaudit_wf.%I select l.* from only %s as l'
            ' where array[l.action, l.org_id] in ('
            '     select array[g.action, g.org_id] from pgaudit_wf._retention_groups($1, $2) as g where g.keep_until > now())',
            fresh, month.relation) using month.relation, month.to_time;
        get diagnostics carried = row_count;
    end if;
    update pgaudit_wf.archive as a set live_events = carried, pruned_at = now()
    where a.id = (select max(newest.id) from pgaudit_wf.archive as newest where newest.partition_name = prune.partition_name);
    if not found then
        -- An empty month needs no file, but its removal is recorded too.
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
    perform pgaudit_wf._record_release(pgaudit_wf._next_event_id(), 'audit.pruned', 'archive', (
            select max(a.id)::text from pgaudit_wf.archive as a where a.partition_name = prune.partition_name), null,
        jsonb_build_object('month', to_char(month.from_time, 'YYYY-MM'), 'events', total - carried, 'kept', carried));
    return total - carried;
end
$$;
comment on function pgaudit_wf.prune(text) is
    'Removes a month of the log that is archived and out of the retention window, and returns how many events that were; '
    'those under a longer policy stay, in a new partition of that month. '
    'Raises PA340 if it is not a month of the log, PA341 inside the window or less than 30 days after its end, '
    'PA342 if it holds an event that is not archived, or the archive has yet to be read back, '
    'PA345 if the log is sealed and its event audit.archived is not yet. Recorded as audit.pruned.';

create function pgaudit_wf._prunable_versions_query() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Tables of runs differ from one application to the next; the versions that they refer to are kept.
    select 'with policy as ('
        '     select w.workflow_id, w.newest, coalesce(own.keep_versions, common.keep_versions) as keep_versions,'
        '         coalesce(own.keep_days, common.keep_days) as keep_days,'
        '         own.org_id is not null as has_own, own.keep_versions as own_keep_versions'
        '     from ('
        '         select distinct on (h.workflow_id) h.workflow_id, h.version as newest, h.org_id'
        '         from pgaudit_wf.workflow_history as h order by h.workflow_id, h.version desc) as w'
        '     left join pgaudit_wf.version_policy as own on own.org_id = w.org_id'
        '     left join pgaudit_wf.version_policy as common on common.org_id is null)'
        ' select h.workflow_id, h.version from pgaudit_wf.workflow_history as h'
        ' join policy as p on p.workflow_id = h.workflow_id'
        ' where h.pruned_at is null'
        '     and h.version <= p.newest - case when p.has_own then p.own_keep_versions else p.keep_versions end'
        '     and h.created_at < now() - make_interval(days => p.keep_days)'
        '     and not exists (select from pgaudit_wf.version_label as named'
        '         where named.workflow_id = h.workflow_id and named.version = h.version)'
        '     and h.version is distinct from (select p.version from pgaudit_wf.published_version as p'
        '         where p.workflow_id = h.workflow_id order by p.id desc limit 1)'
        || coalesce(
            string_agg(
                format(' and not exists (select from %s as run where %s = h.content_hash)', e.target, pgaudit_wf._text_expression(
                    (select atttypid from pg_attribute where attrelid = e.target and attname = e.hash_column),
                    pgaudit_wf._field('run', e.hash_column))),
                '' order by e.target::oid),
            '')
        || ' order by h.workflow_id, h.version'
    from pgaudit_wf.execution_attachment as e
    where exists (select from pg_class where oid = e.target and relkind in ('r', 'p'))
        and e.hash_column = any (pgaudit_wf._column_names(e.target))
$$;
comment on function pgaudit_wf._prunable_versions_query() is
    'Query for the versions whose snapshot is kept by no policy, no run and no label, and that are not published.';

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
comment on function pgaudit_wf._prunable_versions() is 'How many snapshots prune_history() would remove.';

create function pgaudit_wf.prune_history(max_versions integer default 1000) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- Better an error than a run hidden by a policy, which we would evaluate with our rights.
set row_security = off
as $$
declare
    pruned bigint;
    version pgaudit_wf.workflow_history;
    bare pgaudit_wf.workflow_history;
    keys text[] := '{}';
    numbers integer[] := '{}';
    event_id constant bigint := pgaudit_wf._next_event_id();
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
        perform pgaudit_wf._keep_commitments(version, bare, event_id);
        keys := keys || version.workflow_id;
        numbers := numbers || version.version;
    end loop;
    update pgaudit_wf.workflow_history as h set snapshot = null, pruned_at = now()
    from unnest(keys, numbers) as v (workflow_id, version)
    where h.workflow_id = v.workflow_id and h.version = v.version;
    get diagnostics pruned = row_count;
    alter table pgaudit_wf.workflow_history enable always trigger append_only;
    if pruned > 0 then
        perform pgaudit_wf._record_release(event_id, 'audit.history_pruned', null, null, null,
            jsonb_build_object('versions', pruned) || pgaudit_wf._released_parts(event_id));
    end if;
    return pruned;
end
$$;
comment on function pgaudit_wf.prune_history(integer) is
    'Removes the snapshots of up to max_versions versions that version_policy no longer keeps, no run refers to and nobody has labeled '
    'or published; '
    'returns how many. '
    'Numbers, hashes, changes, authors and times stay, so the chain still verifies. Call it until it returns less than max_versions. '
    'Recorded as audit.history_pruned. Raises PA008 on a wrong argument.';
