-- DDL that gives rows other values (a volatile default, a type changed with USING, a stored expression) fires no row trigger. What the
-- log says of older states is still true, but no longer leads to newer ones: that is recorded, for row_as_of() and readers of the trail.

create function pgaudit_wf._note_rewrite() returns event_trigger
-- As the owner of our schema: the author of the DDL need not be allowed to write the log.
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    reason constant integer := pg_event_trigger_table_rewrite_reason();
    setting pgaudit_wf.attachment;
begin
    -- Bits 2 and 4 of the reason: an added column's default was computed for each row; a column was recomputed.
    if reason & 6 = 0 then
        return;
    end if;
    perform pgaudit_wf._unpack_context();
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.target in (
            select pg_event_trigger_table_rewrite_oid()
            union
            select relid from pg_partition_ancestors(pg_event_trigger_table_rewrite_oid()))
    loop
        -- Each partition is rewritten on its own.
        continue when exists (
            select from pgaudit_wf.attachment_history as h
            where h.target = setting.target::text and h.occurred_at >= statement_timestamp() and h.detail ? 'rewritten');
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, 'altered', jsonb_build_object('rewritten',
            -- Since PostgreSQL 17 a stored expression can be replaced, which has the reason of an added column.
            case when reason & 4 = 0 and not (current_setting('server_version_num')::integer >= 170000 and exists (
                select from pg_attribute where attrelid = setting.target and attgenerated = 's' and not attisdropped))
                then 'added' else 'changed' end));
        insert into pgaudit_wf.security_audit_log (action, resource_type, captured, diff, metadata)
        values (setting.resource_type || '.rewritten', setting.resource_type, true, '[]',
            jsonb_build_object('table', setting.target::text));
    end loop;
end
$$;
comment on function pgaudit_wf._note_rewrite() is
    'Event trigger: records that DDL gave the rows of an attached table values that no trigger saw.';
