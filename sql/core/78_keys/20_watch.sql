-- What the job does: follow the log for uses, and compare the keys with the policy.

create function pgaudit_wf._network_of(ip inet, policy pgaudit_wf.api_key_policy) returns cidr
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        network(set_masklen(plain.ip, case family(plain.ip)
            when 4 then (_network_of.policy).ipv4_prefix else (_network_of.policy).ipv6_prefix end)),
        '0.0.0.0/0')
    from (
        -- An IPv4 address as dual-stack servers write it.
        select case when family(_network_of.ip) = 6 and _network_of.ip <<= '::ffff:0:0/96'
            then inet '0.0.0.0' + (set_masklen(_network_of.ip, 128) - inet '::ffff:0:0')
            else _network_of.ip end as ip) as plain
$$;
comment on function pgaudit_wf._network_of(inet, pgaudit_wf.api_key_policy) is
    'The network of an address by the prefix lengths of the policy; 0.0.0.0/0 where there is no address.';

create function pgaudit_wf._key_moment(moment timestamptz) returns text
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$ select to_char(moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;
comment on function pgaudit_wf._key_moment(timestamptz) is 'A time as text, the same for every session.';

create function pgaudit_wf._record_key_event(
    api_key_id text, action text, subject text, threshold integer, org_id text, label text, metadata jsonb,
    ip inet default null, country text default null, user_agent text default null, correlation_id text default null
) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgaudit_wf.api_key_notice (api_key_id, action, subject, threshold)
    values (pgaudit_wf._bounded_key(_record_key_event.api_key_id), _record_key_event.action, _record_key_event.subject,
        _record_key_event.threshold)
    on conflict do nothing;
    if not found then
        return false;
    end if;
    -- Nothing of it is the session's to say.
    insert into pgaudit_wf.security_audit_log (actor_id, actor_label, actor_type, on_behalf_of, client, org_id, org_label, auth_method,
        api_key_id, attested, action, resource_type, resource_id, metadata, ip, country, user_agent, correlation_id)
    values (null, null, 'system', null, 'pgaudit-wf keys', _record_key_event.org_id, null, null,
        null, false, _record_key_event.action, 'api_key', pgaudit_wf._bounded_key(_record_key_event.api_key_id),
        jsonb_strip_nulls(jsonb_build_object('label', left(_record_key_event.label, 255))) || _record_key_event.metadata,
        _record_key_event.ip, _record_key_event.country, _record_key_event.user_agent, _record_key_event.correlation_id);
    return true;
end
$$;
comment on function pgaudit_wf._record_key_event(text, text, text, integer, text, text, jsonb, inet, text, text, text) is
    'Records an event about an API key, unless there has been one of that subject; returns whether it did.';

create function pgaudit_wf._follow_api_keys(max_events integer default 1000) returns table (events bigint, recorded bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
#variable_conflict use_column
declare
    policy constant pgaudit_wf.api_key_policy := (select p from pgaudit_wf.api_key_policy as p);
    watched_since timestamptz;
    used record;
    known record;
    is_new boolean;
    reached text;
begin
    perform pgaudit_wf._take_turn('api keys');
    insert into pgaudit_wf.api_key_watch default values on conflict do nothing;
    watched_since := (select w.since from pgaudit_wf.api_key_watch as w);
    events := 0;
    recorded := 0;
    for used in
        with batch as materialized (
            select row_number() over () as number, r.cursor, (r.event).occurred_at, coalesce((r.event).org_id, '') as org_id,
                (r.event).api_key_id, (r.event).ip, (r.event).country, (r.event).user_agent, (r.event).correlation_id,
                pgaudit_wf._network_of((r.event).ip, policy) as network
            from pgaudit_wf.read_as('keys', _follow_api_keys.max_events) as r
        ),
        grouped as (
            select b.api_key_id, b.org_id, b.network, count(*) as uses, min(b.occurred_at) as first_at, max(b.occurred_at) as last_at,
                min(b.number) as number
            from batch as b where b.api_key_id is not null group by b.api_key_id, b.org_id, b.network
        )
        select whole.events, whole.reached, g.*, b.ip, b.country, b.user_agent, b.correlation_id
        from (select count(*) as events, (array_agg(b.cursor order by b.number desc))[1] as reached from batch as b) as whole
        left join (grouped as g join batch as b on b.number = g.number) on true
        order by g.number
    loop
        events := used.events;
        reached := used.reached;
        continue when used.api_key_id is null;
        select count(*) > 0 as key, coalesce(bool_or(u.network && used.network), false) as network into known
        from pgaudit_wf.api_key_use as u where u.api_key_id = used.api_key_id and masklen(u.network) > 0;
        -- With nothing to compare with, the first network of all is not news.
        is_new := known.key and not known.network and masklen(used.network) > 0 and used.first_at >= watched_since;
        insert into pgaudit_wf.api_key_use as u (api_key_id, org_id, network, uses, first_at, last_at)
        values (used.api_key_id, used.org_id, used.network, used.uses, used.first_at, used.last_at)
        on conflict on constraint api_key_use_pkey do update
        set (uses, first_at, last_at)
            = (u.uses + excluded.uses, least(u.first_at, excluded.first_at), greatest(u.last_at, excluded.last_at));
        continue when not is_new;
        select d.org_id, d.label into known from pgaudit_wf.api_key_directory as d where d.api_key_id = used.api_key_id limit 1;
        recorded := recorded + pgaudit_wf._record_key_event(
            used.api_key_id, 'api_key.new_network', format('%s %s', used.network, pgaudit_wf._key_moment(used.first_at)), 0,
            coalesce(known.org_id, nullif(used.org_id, '')), known.label,
            jsonb_build_object('network', used.network, 'first_used_at', pgaudit_wf._key_moment(used.first_at)),
            used.ip, used.country, used.user_agent, used.correlation_id)::integer;
    end loop;
    if events > 0 then
        perform pgaudit_wf.advance_reader('keys', reached, events);
    end if;
    return next;
end
$$;
comment on function pgaudit_wf._follow_api_keys(integer) is
    'Follows the log as the reader "keys", at most max_events: counts from which networks API keys are used, and records '
    'api_key.new_network where one is used from a network for the first time, except for its very first. '
    'Returns how many events it read and recorded.';

create function pgaudit_wf._runs_of_key(api_key_id text, since timestamptz) returns table (runs bigint, last_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    place pgaudit_wf.execution_attachment;
    handle constant text := coalesce(
        (select c.label from pgaudit_wf.credential_directory as c where c.credential_id = _runs_of_key.api_key_id limit 1),
        _runs_of_key.api_key_id);
    runs_here bigint;
    last_here timestamptz;
begin
    runs := 0;
    for place in
        select e.* from pgaudit_wf.execution_attachment as e
        join pg_class as c on c.oid = e.target and not c.relrowsecurity
        join pg_attribute as label on label.attrelid = e.target and label.attname = e.label_column and label.atttypid < 16384
        join pg_attribute as at on at.attrelid = e.target and at.attname = e.time_column
            and at.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
        where has_column_privilege(e.target, label.attnum, 'select') and has_column_privilege(e.target, at.attnum, 'select')
    loop
        execute format('select count(*), max(%2$I)::timestamptz from %1$s where %3$I = $1 and %2$I >= $2',
            place.target, place.time_column, place.label_column)
        into runs_here, last_here using handle, _runs_of_key.since;
        runs := runs + runs_here;
        last_at := greatest(last_at, last_here);
    end loop;
    return next;
end
$$;
comment on function pgaudit_wf._runs_of_key(text, timestamptz) is
    'How many runs since a time bear the handle of an API key, and the time of the last one: of the tables of runs with a time, without '
    'row-level security, that the caller may read.';

create function pgaudit_wf._check_api_keys() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
declare
    policy constant pgaudit_wf.api_key_policy := (select p from pgaudit_wf.api_key_policy as p);
    watched_since timestamptz;
    due record;
    run_at timestamptz;
    recorded bigint := 0;
begin
    perform pgaudit_wf._take_turn('api keys');
    insert into pgaudit_wf.api_key_watch default values on conflict do nothing;
    watched_since := (select w.since from pgaudit_wf.api_key_watch as w);
    for due in
        with key as materialized (
            -- Times without end compare, and cannot be subtracted.
            select d.api_key_id, pgaudit_wf._bounded_key(d.api_key_id) as id, d.org_id, d.label,
                case when isfinite(d.created_at) then d.created_at end as created_at,
                case when isfinite(d.expires_at) then d.expires_at end as expires_at,
                case when isfinite(d.last_used_at) then d.last_used_at end as last_used_at
            from pgaudit_wf.api_key_directory as d
            where d.api_key_id <> '' and (d.revoked_at is null or d.revoked_at > now())
        ),
        moment as (
            select k.*, 'api_key.expiring' as action, k.expires_at as at, (
                    select min(days) from unnest(policy.expiring_days) as days
                    where k.expires_at <= now() + make_interval(days => days)
                        and (k.created_at is null or k.expires_at > k.created_at + make_interval(days => days))) as threshold
            from key as k where k.expires_at > now()
            union all
            select k.*, 'api_key.expired', k.expires_at, 0 from key as k where k.expires_at > watched_since and k.expires_at <= now()
            union all
            select k.*, 'api_key.unused', used.at, 0
            from key as k,
            lateral (
                select greatest(k.created_at, k.last_used_at, max(u.last_at)) as at
                from pgaudit_wf.api_key_use as u where u.api_key_id = k.id) as used
            where used.at <= now() - policy.unused_after and used.at > watched_since - policy.unused_after
                and (k.expires_at is null or k.expires_at > now())
        )
        select m.*, pgaudit_wf._key_moment(m.at) as subject from moment as m
        where m.threshold is not null and not exists (
            select from pgaudit_wf.api_key_notice as n
            where n.api_key_id = m.id and n.action = m.action and n.subject = pgaudit_wf._key_moment(m.at) and n.threshold <= m.threshold)
        order by m.at, m.id
    loop
        if due.action = 'api_key.unused' then
            run_at := (select r.last_at from pgaudit_wf._runs_of_key(due.api_key_id, due.at) as r);
            if run_at > due.at then
                insert into pgaudit_wf.api_key_use as u (api_key_id, org_id, network, uses, first_at, last_at)
                values (due.id, coalesce(left(due.org_id, 255), ''), '0.0.0.0/0', 0, run_at, run_at)
                on conflict on constraint api_key_use_pkey do update set last_at = greatest(u.last_at, excluded.last_at);
                -- It is unused since a later time, which the next check looks at.
                continue;
            end if;
        end if;
        recorded := recorded + pgaudit_wf._record_key_event(
            due.api_key_id, due.action, due.subject, due.threshold, due.org_id, due.label,
            case due.action
                when 'api_key.expiring' then jsonb_build_object('expires_at', due.subject, 'days', due.threshold)
                when 'api_key.expired' then jsonb_build_object('expires_at', due.subject)
                else jsonb_build_object('unused_since', due.subject)
            end)::integer;
    end loop;
    -- Not the newest of a key, by which it is known when that was last used.
    delete from pgaudit_wf.api_key_use as u
    where u.last_at < now() - policy.forget_after
        and exists (select from pgaudit_wf.api_key_use as n where n.api_key_id = u.api_key_id and n.last_at > u.last_at);
    return recorded;
end
$$;
comment on function pgaudit_wf._check_api_keys() is
    'Compares the keys of api_key_directory with the policy, and records api_key.expiring, .expired and .unused, each once. '
    'Returns how many it recorded.';
