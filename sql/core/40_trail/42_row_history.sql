-- Every state that a row had, with who made it.

create function pgaudit_wf.row_history(target regclass, id text)
returns table (
    occurred_at timestamptz, event_id bigint, tx_id bigint, action text, actor_id text, actor_label text, on_behalf_of text, db_user text,
    correlation_id text, reason text, change text, columns text[], other_id text, record jsonb, unknown text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
    type constant text := pgaudit_wf._recorded_type(row_history.target);
    key constant text := pgaudit_wf._given_key(row_history.target, row_history.id);
    log_begins constant timestamptz := pgaudit_wf._log_begins(row_history.target);
    step record;
    state pgaudit_wf.row_state := row(null, null, true, false);
    is_known boolean := false;
    is_asked boolean := false;
begin
    for step in
        select l.occurred_at, l.id, l.tx_id, l.action, l.actor_id, l.actor_label, l.on_behalf_of, l.db_user, l.correlation_id,
            l.metadata ->> 'reason' as reason, l.diff, null::jsonb as altered, l.metadata ->> 'previous_resource_id' as other_id,
            case when l.metadata ? 'previous_resource_id' then 'arrived'
                when l.diff -> 0 ->> 'path' <> '' then 'updated'
                when l.diff -> 0 ? 'value' then 'inserted' else 'deleted' end as change
        from pgaudit_wf.security_audit_log as l
        where l.resource_type = type and l.resource_id = key and l.captured and jsonb_array_length(l.diff) > 0
        union all
        select l.occurred_at, l.id, l.tx_id, l.action, l.actor_id, l.actor_label, l.on_behalf_of, l.db_user, l.correlation_id,
            l.metadata ->> 'reason', l.diff, null, l.resource_id, 'left'
        from pgaudit_wf.key_change as k
        join pgaudit_wf.security_audit_log as l
            on l.resource_type = k.resource_type and l.resource_id = k.new_id and l.metadata ->> 'previous_resource_id' = k.old_id
        where k.resource_type = type and k.old_id = key
        union all
        select l.occurred_at, l.id, l.tx_id, l.action, l.actor_id, l.actor_label, l.on_behalf_of, l.db_user, l.correlation_id,
            l.metadata ->> 'reason', null, null, null, 'truncated'
        from pgaudit_wf.security_audit_log as l
        where l.action = type || '.truncated' and l.captured
            and (select relkind <> 'p' from pg_class where oid = row_history.target)
        union all
        select h.occurred_at, null, null, null, null, null, null, null, null, null, null, h.detail, null, 'altered'
        from pgaudit_wf.attachment_history as h
        where h.resource_type = type and h.change = 'altered'
        order by 1, 2
    loop
        if step.change = 'altered' then
            -- What DDL computed is in no event: the present row may have it.
            if step.altered ? 'rewritten' then
                is_known := is_known and state.record is null;
                is_asked := false;
            end if;
            state.record := pgaudit_wf._alter_row(state.record, step.altered, false);
            continue;
        elsif step.change in ('deleted', 'left', 'truncated') then
            continue when step.change = 'truncated' and state.record is null;
            state := row(null, null, false, false);
            is_known := true;
        elsif step.change = 'inserted' then
            state := row(pgaudit_wf._apply_diff(null, step.diff), null, false, false);
            is_known := true;
            is_asked := false;
        elsif step.change = 'updated' and (is_asked or is_known and not pgaudit_wf._lacks(state.record, step.diff)) then
            state.record := case when state.rewritten_at is null then pgaudit_wf._apply_diff(state.record, step.diff) end;
        else
            state := pgaudit_wf._row_at(row_history.target, type, key, step.occurred_at);
            is_known := state.rewritten_at is null;
            -- Once, as each answer takes all that came after.
            is_asked := true;
        end if;
        occurred_at := step.occurred_at;
        event_id := step.id;
        tx_id := step.tx_id;
        action := step.action;
        actor_id := step.actor_id;
        actor_label := step.actor_label;
        on_behalf_of := step.on_behalf_of;
        db_user := step.db_user;
        correlation_id := step.correlation_id;
        reason := step.reason;
        change := step.change;
        other_id := step.other_id;
        columns := case when step.change in ('updated', 'arrived') then array(
            select distinct (pgaudit_wf._pointer_steps(op ->> 'path'))[1] from jsonb_array_elements(step.diff) as op order by 1) end;
        record := state.record;
        unknown := pgaudit_wf._unknown(state, step.occurred_at, log_begins);
        return next;
    end loop;
end
$$;
comment on function pgaudit_wf.row_history(regclass, text) is
    'Every state that the row with an id had, oldest first: who made it when (event_id, tx_id, actor, reason), what was done '
    '(change: inserted, updated, deleted, truncated, arrived or left by a change of its key, with the other id in other_id; '
    'and which columns), and the row after it (record; null once it is gone). id and record are those of row_as_of(). '
    'unknown says what the log cannot tell of a state, as in table_as_of(). What the row was before its first event is the old side of '
    'that event''s diff: row_as_of() with an earlier moment. '
    'Raises PA005 for a table that was never attached.';
