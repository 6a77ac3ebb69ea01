-- Whoever takes the trail out of the database is in the trail.

create function pgaudit_wf.record_export(format text, filters jsonb, events bigint default null, outcome text default 'succeeded') returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Two fixed actions: a reader, who may export, does not get to write what he likes.
    return pgaudit_wf.record_event(
        case when record_export.events is null then 'audit.export_started' else 'audit.exported' end, 'audit_trail', null,
        metadata => jsonb_strip_nulls(jsonb_build_object(
            'format', left(record_export.format, 50), 'filters', coalesce(record_export.filters, '{}'), 'events', record_export.events)),
        outcome => record_export.outcome);
end
$$;
comment on function pgaudit_wf.record_export(text, jsonb, bigint, text) is
    'Records, with the current context, that an export of the trail begins (events null: audit.export_started) or how it ended (audit.exported, with the number of events that went out), and returns the event''s id.';
