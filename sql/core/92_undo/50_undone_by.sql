-- Whether an event was undone is not in it, but in the later event that did so.

create function pgaudit_wf._undone_by(
    ids bigint[], resource_types text[], resource_ids text[], times timestamptz[], most integer
) returns table (event_id bigint, id bigint, occurred_at timestamptz, actor text, cursor text)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
    with recursive asked as (
        select a.* from unnest(ids, resource_types, resource_ids, times) as a (event_id, resource_type, resource_id, occurred_at)
    ),
    -- The row's keys from the event on: undoing it may itself change the key.
    known as (
        select asked.event_id, asked.resource_type, asked.occurred_at, asked.resource_id as key, asked.event_id as since_id, 1 as place
        from asked
        union all
        select k.event_id, k.resource_type, k.occurred_at, d.new_id, d.id, k.place + 1
        from known as k, lateral pgaudit_wf._row_departure(k.resource_type, k.key, k.since_id, 9223372036854775807, false) as d
        where k.place < 10
    )
    select distinct on (known.event_id) known.event_id, later.id, later.occurred_at,
        coalesce(later.actor_label, later.actor_id, later.db_user), pgaudit_wf._trail_cursor(later.occurred_at, later.id)
    from known,
    lateral (
        select l.id, l.occurred_at, l.actor_label, l.actor_id, l.db_user, l.captured, l.metadata
        from pgaudit_wf.security_audit_log as l
        where l.resource_type = known.resource_type and l.resource_id = known.key and l.occurred_at >= known.occurred_at
        order by l.occurred_at, l.id limit most
    ) as later
    where later.captured and later.id <> known.event_id and later.metadata -> 'undoes' @> to_jsonb(known.event_id)
    order by known.event_id, later.id desc
$$;
comment on function pgaudit_wf._undone_by(bigint[], text[], text[], timestamptz[], integer) is
    'The last event that says that it undoes an event, for each that has one among the next changes ($5) of its row: '
    'found by the row''s index, as an index of its own would slow down every write.';

create function pgaudit_wf._is_confined() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select row_security_active('pgaudit_wf.security_audit_log') $$;
comment on function pgaudit_wf._is_confined() is
    'Whether the caller sees, and undo() takes, the events of one organization only; not so for owner, superuser and BYPASSRLS.';
