-- Half of each page stays free, so that an updated row finds room beside the old one, run after run.
alter table item_{variant} set (fillfactor = 45);
insert into item_{variant} (org_id, name, kind, enabled, quota, tags, created_at, updated_at)
select 'org_' || n % 50, 'item number ' || n, 'standard', true, n % 1000, array['read', 'write'], now(), now()
from generate_series(1, {rows}) as n;

alter table document_{variant} set (fillfactor = 45);
insert into document_{variant} (org_id, name, definition, updated_at)
select 'org_' || n, 'document number ' || n, definition, now()
from generate_series(1, 100) as n,
lateral (
    -- About 100 KiB as text, and half as compressible as prose: hashes between repeated keys.
    select jsonb_object_agg('node_' || i, jsonb_build_object('type', 'action', 'value', md5(n::text || i), 'next', md5(i::text || n))) as definition
    from generate_series(1, 820) as i
) as generated;
