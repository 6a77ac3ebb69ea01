-- What keeps readers of the log waiting.

create function pgaudit_wf._holdups(longer_than interval) returns table (severity text, subject text, problem text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select 'warning', format('process %s', s.pid),
        format('its transaction has been open since %s, and no reader gets past what was written since',
            date_trunc('second', s.xact_start)),
        format('select pg_terminate_backend(%s);', s.pid)
    from pg_stat_activity as s
    where s.backend_xid is not null and s.xact_start < now() - _holdups.longer_than and s.pid <> pg_backend_pid()
    union all
    select 'warning', format('prepared transaction %L', p.gid),
        format('it has been open since %s, and no reader gets past what was written since', date_trunc('second', p.prepared)),
        format('rollback prepared %L;', p.gid)
    from pg_prepared_xacts as p
    where p.prepared < now() - _holdups.longer_than
$$;
comment on function pgaudit_wf._holdups(interval) is
    'Findings of doctor(): transactions, of any database, that have been open for so long that readers of the log wait for them.';
