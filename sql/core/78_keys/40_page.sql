-- What the page of a key shows besides the log: what the directory says, but for the hash, and which definitions it ran.

create function pgaudit_wf._describe_api_key(api_key_id text, org_id text)
returns table (
    owner_id text, label text, prefix text, created_at timestamptz, expires_at timestamptz, last_used_at timestamptz,
    revoked_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
    select d.owner_id, d.label, d.prefix,
        case when isfinite(d.created_at) then d.created_at end, case when isfinite(d.expires_at) then d.expires_at end,
        case when isfinite(d.last_used_at) then d.last_used_at end, case when isfinite(d.revoked_at) then d.revoked_at end
    from pgaudit_wf.api_key_directory as d
    where d.api_key_id = _describe_api_key.api_key_id and d.org_id = _describe_api_key.org_id
        and d.org_id = (select pgaudit_wf._readable_org())
    limit 1
$$;
comment on function pgaudit_wf._describe_api_key(text, text) is
    'What api_key_directory says of a key of the organization, but for its hash; for the organization''s owners and admins only.';

create function pgaudit_wf._definitions_run(handles text[], org_id text)
returns table (workflow_id text, name text, version integer, runs bigint, last_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    place record;
begin
    -- The tables are the application's, and may show those of all organizations to this login.
    if pgaudit_wf._readable_org() is distinct from _definitions_run.org_id then
        return;
    end if;
    for place in
        select t.*, e.label_column, e.hash_column from pgaudit_wf._readable_run_tables() as t
        join pgaudit_wf.execution_attachment as e on e.target = t.target
    loop
        -- Of the last 500 runs, along the index that the page of runs needs, too.
        return query execute array_to_string(pgaudit_wf._fill($query$
select r.workflow_id,
    (select left(w.name, 256) from pgaudit_wf.workflow_list as w where w.workflow_id = r.workflow_id and w.org_id = $2),
    -- The newest that was there.
    (select coalesce(max(h.version) filter (where h.created_at <= r.last_at), min(h.version))
        from pgaudit_wf.workflow_history as h
        where h.workflow_id = r.workflow_id and h.content_hash = r.hash and h.org_id = $2),
    r.runs, r.last_at
from (
    select pgaudit_wf._workflow_id({{prefix}}, u.workflow) as workflow_id, u.hash, count(*) as runs, max(u.at) as last_at
    from (
        select t.{{workflow}}::text as workflow, t.{{hash}}::text as hash, {{time}} as at from {{table}} as t
        where t.{{org}}::text = $2 and t.{{label}}::text = any ($1) order by 3 desc nulls last limit 500) as u
    group by 1, 2 order by 4 desc nulls last, 1 limit 10) as r$query$,
            jsonb_build_object(
                'prefix', quote_literal(place.id_prefix), 'workflow', quote_ident(place.workflow_column),
                'hash', quote_ident(place.hash_column), 'org', quote_ident(place.org_column), 'label', quote_ident(place.label_column),
                'time', coalesce(format('t.%I::timestamptz', place.time_column), 'null::timestamptz'), 'table', place.target)), e'\n')
        using _definitions_run.handles, _definitions_run.org_id;
    end loop;
end
$$;
comment on function pgaudit_wf._definitions_run(text[], text) is
    'Which definitions were run with a credential of one of these handles, of its last 500 runs in the tables of runs that the caller may '
    'read, for the organization''s owners and admins: the last first, at most 10 a table. '
    'version is null if the history has no version with that hash.';

create function pgaudit_wf._uses_of_key(
    api_key_id text, org_id text, out first_at timestamptz, out last_at timestamptz, out uses bigint, out networks jsonb,
    out leaked_at timestamptz
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select min(u.first_at), max(u.last_at), sum(u.uses)::bigint,
        coalesce(jsonb_agg(jsonb_build_object(
                'network', case when masklen(u.network) > 0 then u.network end, 'uses', u.uses,
                'first_at', u.first_at, 'last_at', u.last_at)
            order by u.last_at desc, u.network) filter (where u.uses > 0 and u.rank <= 50), '[]'),
        (select max(l.occurred_at) from pgaudit_wf.security_audit_log as l
            where l.resource_type = 'api_key' and l.resource_id = _uses_of_key.api_key_id and l.org_id = _uses_of_key.org_id
                and l.action = 'api_key.leaked')
    from (
        select k.*, row_number() over (order by k.last_at desc, k.network) as rank
        from pgaudit_wf.api_key_use as k where k.api_key_id = _uses_of_key.api_key_id and k.org_id = _uses_of_key.org_id
    ) as u
$$;
comment on function pgaudit_wf._uses_of_key(text, text) is
    'How a key was used by the log, as far as the caller may read that: when, how often, the 50 last networks, '
    'and when it was last reported as found in public. uses is null if no use was counted.';
