-- What maintenance has to do, step by step; pgaudit-wf maintain does it.

create function pgaudit_wf._maintenance_plan(months_ahead integer, cache_kept interval)
returns table (kind text, subject text, events bigint, is_archived boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
    return query
        with missing as (
            select p.name
            from (
                select to_char(date_trunc('month', now()) + make_interval(months => m), '"security_audit_log_y"YYYY"m"MM') as name
                from generate_series(0, _maintenance_plan.months_ahead) as m
            ) as p
            where to_regclass('pgaudit_wf.' || p.name) is null
        ),
        waiting as (
            select to_char(l.occurred_at, '"security_audit_log_y"YYYY"m"MM') as name, count(*) as events
            from only pgaudit_wf.security_audit_log_default as l
            where isfinite(l.occurred_at)
            group by 1
        )
        select p.kind, p.name, p.events, null::boolean
        from (
            select 'add' as kind, m.name, 0::bigint as events
            from missing as m
            where not exists (select from waiting as w where w.name = m.name)
            union all
            select 'move', w.name, w.events from waiting as w
        ) as p
        order by p.kind, p.name;
    return query
        select s.kind, r.partition_name, case s.kind when 'archive' then r.events else r.expired_events end, done.is_archived
        from pgaudit_wf.log_retention() as r
        cross join lateral (select coalesce(pgaudit_wf._archived_events(r.partition_name), 0) = r.events as is_archived) as done
        cross join unnest(array['archive', 'prune']) with ordinality as s (kind, number)
        where (r.expired_events > 0 or (r.events = 0 and r.keep_until <= now())) and not (s.kind = 'archive' and done.is_archived)
        order by r.from_time, s.number;
    return query
        select p.kind, p.subject, p.events, null::boolean
        from (
            select 'prune_versions' as kind, 'workflow_history' as subject, pgaudit_wf._prunable_versions() as events
            union all
            select 'prune_cache', 'canonical_cache', count(*)
            from pgaudit_wf.canonical_cache as c where c.written_at < now() - _maintenance_plan.cache_kept
        ) as p
        where p.events > 0
        order by p.kind desc;
end
$$;
comment on function pgaudit_wf._maintenance_plan(integer, interval) is
    'The steps that maintenance has to take now, in order: add and move (partitions), archive and prune (months; is_archived says whether '
    'all events of the month are archived), prune_versions and prune_cache. Changes nothing.';
