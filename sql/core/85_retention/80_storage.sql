-- What the log costs in bytes, by what it records.

create view pgaudit_wf.storage with (security_invoker = true) as
with part as (
    select
        c.oid,
        c.relname::text as partition_name,
        m.from_time,
        greatest(c.reltuples, 0) as events,
        pg_table_size(c.oid) as heap_bytes,
        pg_indexes_size(c.oid) as index_bytes,
        -- A month that has hardly begun says little.
        greatest(extract(epoch from least(now(), m.to_time) - m.from_time) / 86400, 1) as days
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid
    left join pgaudit_wf.log_months() as m on m.relation = c.oid
    where i.inhparent = 'pgaudit_wf.security_audit_log'::regclass
), common as (
    select part.oid, u.resource_type, u.frequency
    from part
    join pg_stats as s
        on s.schemaname = 'pgaudit_wf' and s.tablename = part.partition_name and s.attname = 'resource_type' and not s.inherited,
    unnest(s.most_common_vals::text::text[], s.most_common_freqs) as u (resource_type, frequency)
), share as (
    select common.oid, common.resource_type, common.frequency::float8 as share from common
    union all
    select part.oid, null as resource_type, 1 - coalesce(sum(common.frequency), 0) as share
    from part left join common on common.oid = part.oid
    group by part.oid
    -- Frequencies are rounded.
    having 1 - coalesce(sum(common.frequency), 0) > 0.0001
)
select
    part.partition_name,
    part.from_time,
    share.resource_type,
    round(part.events * share.share)::bigint as events,
    round(part.heap_bytes * share.share)::bigint as heap_bytes,
    round(part.index_bytes * share.share)::bigint as index_bytes,
    round((part.events * share.share / part.days)::numeric, 1) as events_a_day,
    kept.days as kept_days,
    round((part.heap_bytes + part.index_bytes) * share.share / part.days * kept.days)::bigint as forecast_bytes
from part
join share on share.oid = part.oid
cross join lateral (
    select case when bool_and(p.keep_days is not null) then max(p.keep_days) end as days
    from pgaudit_wf.retention_policy as p
    cross join lateral (select split_part(p.action_pattern, '*', 1) as prefix, share.resource_type || '.' as prefix_of_type) as named
    where share.resource_type is null
        or starts_with(named.prefix, named.prefix_of_type) or starts_with(named.prefix_of_type, named.prefix)
) as kept;
comment on view pgaudit_wf.storage is
    'What the log takes up, by month and type of resource, and what it will come to. Estimated by the planner''s statistics, not counted: '
    'run analyze pgaudit_wf.security_audit_log first. It assumes that events of all types are of one size.';
comment on column pgaudit_wf.storage.partition_name is 'The partition.';
comment on column pgaudit_wf.storage.from_time is 'Start of its month; null for the default partition.';
comment on column pgaudit_wf.storage.resource_type is
    'What the events are about; null: all types that are too rare for statistics, and all without statistics.';
comment on column pgaudit_wf.storage.events is 'Number of events.';
comment on column pgaudit_wf.storage.heap_bytes is 'Bytes of the events themselves, large values included.';
comment on column pgaudit_wf.storage.index_bytes is 'Bytes in indexes.';
comment on column pgaudit_wf.storage.events_a_day is 'Events a day, in the part of the month that has passed.';
comment on column pgaudit_wf.storage.kept_days is
    'How long the longest policy that may apply to them keeps such events; null: for ever, and there is no forecast.';
comment on column pgaudit_wf.storage.forecast_bytes is
    'Bytes that events will take up once as many leave as come, at the rate of this month.';
