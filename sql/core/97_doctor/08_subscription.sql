-- Does what another server sends still arrive?

create function pgaudit_wf._stopped_subscriptions() returns table (severity text, subject text, problem text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select 'error', format('subscription %I', s.subname),
        case when s.subenabled then format('it is failing (%s errors so far), and nothing arrives', failed.errors)
            else 'it is disabled, and nothing arrives' end,
        format('alter subscription %I enable; -- once what stopped it, which the server''s log says, is mended', s.subname)
    from pg_subscription as s,
    lateral (
        select coalesce(sum(t.apply_error_count + t.sync_error_count), 0) as errors
        from pg_stat_subscription_stats as t where t.subid = s.oid
    ) as failed
    where s.subdbid = (select d.oid from pg_database as d where d.datname = current_database())
        and exists (
            select from pg_subscription_rel as r join pg_class as c on c.oid = r.srrelid
            where r.srsubid = s.oid
                and (c.relnamespace = 'pgaudit_wf'::regnamespace or c.oid in (select a.target from pgaudit_wf.attachment as a)))
        and (not s.subenabled
            -- Started again every few seconds, until it gets further.
            or (failed.errors > 0 and not exists (
                select from pg_stat_subscription as worker where worker.subid = s.oid and worker.latest_end_time is not null)))
$$;
comment on function pgaudit_wf._stopped_subscriptions() is
    'Findings of doctor(): subscriptions to the log or to attached tables that are disabled or keep failing.';
