-- Keys that somebody found in public, as a secret scanner reports them.

create function pgaudit_wf._key_activity_since(api_key_id text, org_id text, since timestamptz) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with event as materialized (
        select l.action, l.ip, l.occurred_at from pgaudit_wf.security_audit_log as l
        where l.api_key_id = _key_activity_since.api_key_id and l.occurred_at >= _key_activity_since.since
            and (_key_activity_since.org_id is null or l.org_id = _key_activity_since.org_id)
    ),
    policy as materialized (select p from pgaudit_wf.api_key_policy as p)
    select jsonb_strip_nulls(jsonb_build_object(
        'since', pgaudit_wf._key_moment(_key_activity_since.since),
        'events', (select count(*) from event),
        'last_event_at', (select pgaudit_wf._key_moment(max(e.occurred_at)) from event as e),
        'actions', (
            select jsonb_object_agg(a.action, a.number) from (
                select e.action, count(*) as number from event as e group by e.action order by 2 desc, 1 limit 20) as a),
        'networks', (
            select jsonb_agg(n.network order by n.number desc, n.network) from (
                select pgaudit_wf._network_of(e.ip, p.p) as network, count(*) as number from event as e, policy as p
                where e.ip is not null group by 1 order by 2 desc, 1 limit 20) as n),
        'runs', (select r.runs from pgaudit_wf._runs_of_key(_key_activity_since.api_key_id, _key_activity_since.since) as r)))
$$;
comment on function pgaudit_wf._key_activity_since(text, text, timestamptz) is
    'What an API key did since a time, in numbers: events, the 20 most frequent actions and networks, and runs.';

create function pgaudit_wf._report_leaked_key(
    source text, place text default null, found_at timestamptz default null, key_hash text default null, prefix text default null
) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
declare
    -- A query or a password in it may be what was found.
    clean_place constant text := left(regexp_replace(
        regexp_replace(_report_leaked_key.place, '[?#].*$', ''), '^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@', e'\\1'), 1024);
    since constant timestamptz := greatest(
        least(coalesce(case when isfinite(_report_leaked_key.found_at) then _report_leaked_key.found_at end, now() - interval '30 days'),
            now()),
        now() - interval '90 days');
    leaked record;
    outcome text := 'unknown';
begin
    if coalesce(_report_leaked_key.source, '') !~ '^[[:alnum:]][[:alnum:] ._-]{0,62}$' then
        raise exception 'source must name the reporter in at most 63 letters, digits, blanks and . _ -' using errcode = 'PA008';
    end if;
    if num_nonnulls(nullif(_report_leaked_key.key_hash, ''), nullif(_report_leaked_key.prefix, '')) <> 1 then
        raise exception 'a report names the key either by key_hash or by prefix' using errcode = 'PA008';
    end if;
    for leaked in
        select d.api_key_id, d.org_id, d.label, d.revoked_at from pgaudit_wf.api_key_directory as d
        where d.key_hash = _report_leaked_key.key_hash or d.prefix = _report_leaked_key.prefix
        order by d.api_key_id limit 20
    loop
        if outcome = 'unknown' then
            outcome := 'known';
        end if;
        if pgaudit_wf._record_key_event(
            leaked.api_key_id, 'api_key.leaked',
            encode(sha256(convert_to(concat_ws(e'\n', _report_leaked_key.source, clean_place), 'UTF8')), 'hex'), 0,
            leaked.org_id, leaked.label,
            jsonb_strip_nulls(jsonb_build_object(
                'source', _report_leaked_key.source, 'place', clean_place,
                'named_by', case when _report_leaked_key.prefix <> '' then 'prefix' else 'hash' end,
                'revoked_at', pgaudit_wf._key_moment(leaked.revoked_at),
                'activity', pgaudit_wf._key_activity_since(leaked.api_key_id, leaked.org_id, since))))
        then
            outcome := 'recorded';
        end if;
    end loop;
    return outcome;
end
$$;
comment on function pgaudit_wf._report_leaked_key(text, text, timestamptz, text, text) is
    'Records api_key.leaked for the key that a report names by the hash or the public prefix in api_key_directory, with what the key did '
    'since found_at (by default in the last 30 days): once for a source and place. '
    'Returns recorded, known (there was such a report) or unknown (there is no such key); raises PA008 on a wrong argument.';

create function pgaudit_wf.grant_keys(worker regrole) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('grant usage on schema pgaudit_wf to %s', grant_keys.worker);
    execute format('grant execute on function pgaudit_wf._follow_api_keys(integer), pgaudit_wf._check_api_keys(),'
        ' pgaudit_wf._report_leaked_key(text, text, timestamptz, text, text) to %s', grant_keys.worker);
end
$$;
comment on function pgaudit_wf.grant_keys(regrole) is
    'Lets a login run pgaudit-wf keys watch and take in reports of leaked keys, and nothing else: '
    'it can read neither the log nor the keys.';
