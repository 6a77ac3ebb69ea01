-- What may be gone from the log: only what a sealed event says, and exactly that.

create function pgaudit_wf._is_sealed() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select exists (select from pgaudit_wf.log_checkpoint) $$;
comment on function pgaudit_wf._is_sealed() is 'Whether the log is being sealed: what leaves it must then be sealed as leaving.';

create function pgaudit_wf._month_leaves(
    from_time timestamptz, to_time timestamptz, out leaves bigint, out tree_size bigint, out digest text
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By tile, as a month can have more hashes than fit into one value.
    with tile as (
        select l.leaf_index / 256 as number, count(*) as leaves,
            sha256(string_agg(substr(t.hashes, (l.leaf_index % 256 * 32 + 1)::integer, 32), '' order by l.leaf_index)) as digest
        from pgaudit_wf.log_leaf as l
        join pgaudit_wf.log_tile as t on t.level = 0 and t.tile_number = l.leaf_index / 256
        where l.event_id is not null
            and l.occurred_at >= _month_leaves.from_time and l.occurred_at < _month_leaves.to_time
        group by 1
    )
    select coalesce(sum(tile.leaves), 0)::bigint, (select coalesce(max(l.leaf_index) + 1, 0) from pgaudit_wf.log_leaf as l),
        encode(sha256(coalesce(string_agg(tile.digest, '' order by tile.number), '')), 'hex')
    from tile
$$;
comment on function pgaudit_wf._month_leaves(timestamptz, timestamptz) is
    'The leaves of the events of a month in the tree as it is, whose size is tree_size: how many, and SHA-256 over the SHA-256 of the '
    'hashes of those in each tile.';

create function pgaudit_wf._released_parts(release_id bigint) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when count(*) = 0 then '{}' else jsonb_build_object('parts', count(*), 'digest', encode(sha256(convert_to(
        string_agg(format(e'%s %s%s\n', k.leaf_index, k.part, mask.hashes), '' order by k.leaf_index, k.part collate "C"),
        'UTF8')), 'hex')) end
    from pgaudit_wf.log_kept as k,
    lateral (
        select coalesce(string_agg(' ' || (m.value ->> 1), '' order by m.position), '') as hashes
        from jsonb_array_elements(k.masks) with ordinality as m (value, position)
        where (m.value ->> 0)::bigint = _released_parts.release_id
    ) as mask
    where k.release_id = _released_parts.release_id or k.masks @> jsonb_build_array(jsonb_build_array(_released_parts.release_id))
$$;
comment on function pgaudit_wf._released_parts(bigint) is
    'Which parts of which leaves an event lets go: how many, and SHA-256 over a line for each with the number of the leaf, the name of '
    'the part and the hash of the text that took its place, if any; nothing if there are none.';

create function pgaudit_wf._mark_configuration() returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    event_id constant bigint := pgaudit_wf._next_event_id();
begin
    -- Every organization is shown it, so it says neither for whom nor by whom.
    insert into pgaudit_wf.security_audit_log (id, action, captured, metadata, actor_id, actor_label, actor_type, on_behalf_of, client,
        org_id, org_label, auth_method, api_key_id, ip, country, user_agent, correlation_id, attested)
    overriding system value
    values (event_id, 'audit.configuration_shown', true, '{}', null, null, null, null, null,
        null, null, null, null, null, null, null, null, false);
    return event_id;
end
$$;
comment on function pgaudit_wf._mark_configuration() is
    'Records that the configuration is about to be shown to an auditor, and returns the event''s id: once it is sealed, no earlier change '
    'of the configuration can be left out unnoticed.';
