-- The partitions of the log, the default one included.

create view pgaudit_wf.log_partition with (security_invoker = true) as
select
    c.relname::text as name,
    m.from_time,
    m.to_time,
    nullif(c.reltuples, -1)::bigint as events,
    pg_total_relation_size(c.oid) as size
from pg_inherits as i
join pg_class as c on c.oid = i.inhrelid
left join pgaudit_wf.log_months() as m on m.relation = c.oid
where i.inhparent = 'pgaudit_wf.security_audit_log'::regclass;
comment on view pgaudit_wf.log_partition is 'The partitions of the log and their sizes.';
comment on column pgaudit_wf.log_partition.name is 'Name of the partition.';
comment on column pgaudit_wf.log_partition.from_time is 'Start of its month, inclusive; null for the default partition.';
comment on column pgaudit_wf.log_partition.to_time is 'End of its month, exclusive; null for the default partition.';
comment on column pgaudit_wf.log_partition.events is 'Number of events as the planner estimates it; null: no estimate yet.';
comment on column pgaudit_wf.log_partition.size is 'Size in bytes, with indexes.';
