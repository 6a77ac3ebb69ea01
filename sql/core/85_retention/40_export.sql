-- Exports of the trail are recorded in the trail.

create function pgaudit_wf._export_event(format text, filters jsonb, events bigint, outcome text) returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.record_event(
        case when _export_event.events is null then 'audit.export_started' else 'audit.exported' end, 'audit_trail', null,
        metadata => jsonb_strip_nulls(jsonb_build_object(
            'format', left(_export_event.format, 50), 'filters', coalesce(_export_event.filters, '{}'), 'events', _export_event.events)),
        outcome => _export_event.outcome)
$$;
comment on function pgaudit_wf._export_event(text, jsonb, bigint, text) is
    'Writes the event of an export: two fixed actions, whatever the caller says.';

create function pgaudit_wf._record_org_export(format text, filters jsonb, events bigint, outcome text) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    -- A reader cannot have exported what it cannot read: of such an actor, only the attempt is recorded.
    select pgaudit_wf._export_event(
        _record_org_export.format, _record_org_export.filters, _record_org_export.events,
        case
            when _record_org_export.outcome = 'failed' or pgaudit_wf._readable_org() is not null then _record_org_export.outcome
            else 'denied'
        end)
$$;
comment on function pgaudit_wf._record_org_export(text, jsonb, bigint, text) is
    'record_export() for those who see one organization: denied, unless the actor may read it or the export failed.';

create function pgaudit_wf.record_export(
    format text, filters jsonb, events bigint default null, outcome text default 'succeeded'
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if row_security_active('pgaudit_wf.security_audit_log') then
        return pgaudit_wf._record_org_export(record_export.format, record_export.filters, record_export.events, record_export.outcome);
    end if;
    return pgaudit_wf._export_event(record_export.format, record_export.filters, record_export.events, record_export.outcome);
end
$$;
comment on function pgaudit_wf.record_export(text, jsonb, bigint, text) is
    'Records, with the current context, that an export of the trail begins (events null: audit.export_started) '
    'or how it ended (audit.exported, with the number of events exported), and returns the event''s id. '
    'Where the caller only sees one organization and the actor may not read it, the outcome is denied, whatever the caller says.';
