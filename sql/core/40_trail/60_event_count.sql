-- What pgaudit-wf status shows beside the attached tables.

create view pgaudit_wf.event_count with (security_invoker = true) as
select
    l.resource_type,
    count(*) as events
from pgaudit_wf.security_audit_log as l
group by l.resource_type;
comment on view pgaudit_wf.event_count is 'How many events the log has of each resource type; reads the whole log.';
comment on column pgaudit_wf.event_count.resource_type is 'The resource type; null: events that are not about a resource.';
comment on column pgaudit_wf.event_count.events is 'Number of events.';

create function pgaudit_wf._reader_logins() returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select r.rolname::text from pg_roles as r
    where r.rolcanlogin and not r.rolsuper and r.rolname <> 'pgaudit_wf_reader'
        and pg_has_role(r.oid, to_regrole('pgaudit_wf_reader'), 'member')
    order by 1
$$;
comment on function pgaudit_wf._reader_logins() is 'Logins that are members of pgaudit_wf_reader, superusers aside.';
