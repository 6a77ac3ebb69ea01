-- How far the log is sealed, for the page of an organization.

create function pgaudit_wf._sealing(org_id text)
returns table (size bigint, sealed_at timestamptz, note text, unsealed bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(c.size, 0), c.sealed_at, c.note, (
        select count(*)
        from (
            select from pgaudit_wf.security_audit_log as l
            where l.org_id = _sealing.org_id
                -- Anything older was sealed then, except for transactions that ran for an hour.
                and (c.sealed_at is null or l.occurred_at > c.sealed_at - interval '1 hour')
                and not exists (select from pgaudit_wf.log_leaf as s where s.event_id = l.id and s.tx_id = l.tx_id)
            limit 1000
        ) as waiting
    )
    from (values (1)) as one
    left join lateral (select * from pgaudit_wf.log_checkpoint as k order by k.size desc limit 1) as c on true
$$;
comment on function pgaudit_wf._sealing(text) is
    'The newest checkpoint, and how many events of an organization are not sealed yet, counted up to 1,000.';
