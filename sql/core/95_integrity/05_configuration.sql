-- What is recorded, by which rules, for how long and who is told of it: changes of that are events, whoever makes them and by which
-- function. They belong to no organization. What PostgreSQL does not tell at the time, pgaudit-wf seal finds (_note_configuration()).

create function pgaudit_wf._configuration_tables() returns table (name text, action text, key text, derived text[])
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select * from (values
        -- What follows the table's columns changes with DDL, which is no change of settings.
        ('attachment', 'audit.settings_changed', 'function_name', '{columns,usage_granted,written_for}'::text[]),
        ('workflow_attachment', 'audit.settings_changed', 'id_prefix', '{}'),
        ('execution_attachment', 'audit.settings_changed', 'function_name', '{columns}'),
        ('config_alias', 'audit.settings_changed', 'alias', '{}'),
        ('canvas_key', 'audit.settings_changed', 'key', '{}'),
        ('action_schema', 'audit.settings_changed', 'action_type', '{}'),
        ('action_rule', 'audit.rule_changed', 'id', '{}'),
        ('alert_rule', 'audit.alert_rule_changed', 'id', '{}'),
        ('alert_policy', 'audit.alert_rule_changed', 'is_only', '{}'),
        ('stream_destination', 'audit.stream_changed', 'name', '{}'),
        ('retention_policy', 'audit.retention_changed', 'id', '{}'),
        ('version_policy', 'audit.retention_changed', 'org_id', '{}'),
        ('api_key_policy', 'audit.settings_changed', 'is_only', '{}'),
        ('waiver', 'audit.settings_changed', 'subject', '{}'),
        ('limit_condition', 'audit.limit_changed', 'resource_type', '{}'),
        ('attestation_key', 'audit.key_changed', 'key_id', '{}')
    ) as configured (name, action, key, derived)
$$;
comment on function pgaudit_wf._configuration_tables() is
    'The tables that say what is recorded and how: the action of an event that says that they changed, the column that identifies a row, '
    'and those that say nothing of their own.';

create function pgaudit_wf._configuration_state(setting jsonb) returns text
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
-- Without the tables that it names: these may be renamed.
as $$ select left(encode(sha256(convert_to((setting - '{target,workflow_target}'::text[])::text, 'UTF8')), 'hex'), 32) $$;
comment on function pgaudit_wf._configuration_state(jsonb) is
    'First half of the SHA-256 of a row of the configuration, without the tables that it is about: '
    'by it a row that no event tells of is found.';

create function pgaudit_wf._without_secrets(setting jsonb) returns jsonb
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select setting
        || case when setting ? 'inner_pad' then '{"inner_pad": "[redacted]", "outer_pad": "[redacted]"}' else '{}'::jsonb end
        -- What the path of a webhook contains is often its secret.
        || case when setting ->> 'channel' = 'webhook'
            then jsonb_build_object('address', regexp_replace(setting ->> 'address', '^([a-z]+://[^/?#]*).*$', e'\\1/[redacted]'))
            else '{}'::jsonb end
        || case when setting ? 'url'
            then jsonb_build_object('url', regexp_replace(setting ->> 'url', '^([a-z0-9]+://[^/?#]*).*$', e'\\1/[redacted]'))
            else '{}'::jsonb end
$$;
comment on function pgaudit_wf._without_secrets(jsonb) is
    'A row of the configuration as an event may show it: without keys, and without more of a webhook''s or stream''s URL than its host.';

create function pgaudit_wf._record_audit(action text, resource_type text, resource_id text, diff jsonb, metadata jsonb default '{}')
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._unpack_context();
    insert into pgaudit_wf.security_audit_log (org_id, org_label, action, resource_type, resource_id, captured, diff, metadata)
    values (null, null, _record_audit.action, _record_audit.resource_type, pgaudit_wf._bounded_key(_record_audit.resource_id), true,
        _record_audit.diff, _record_audit.metadata);
    return found;
end
$$;
comment on function pgaudit_wf._record_audit(text, text, text, jsonb, jsonb) is
    'Records what changed about the trail itself, for no organization; false: something swallowed the event.';

create function pgaudit_wf._record_configuration() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- So that the state of a row is the same whoever computes it.
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
as $$
declare
    configured record;
    was jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    becomes jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    setting constant jsonb := coalesce(becomes, was);
    -- A table that was dropped is only a number by now.
    dropped constant boolean := coalesce(setting ->> 'target' ~ e'^\\d+$', false);
begin
    select c.action, c.key, c.derived into configured from pgaudit_wf._configuration_tables() as c where c.name = tg_table_name;
    was := was - configured.derived;
    becomes := becomes - configured.derived;
    -- What a subscription or a dump brings along was recorded where it was changed.
    if was is not distinct from becomes or current_setting('check_function_bodies') = 'off' or pgaudit_wf._is_applied() then
        return null;
    end if;
    perform pgaudit_wf._record_audit(
        case when tg_table_name <> 'attachment' then configured.action
            when tg_op = 'INSERT' then 'audit.attached' when tg_op = 'DELETE' then 'audit.detached' else configured.action end,
        'pgaudit_wf.' || tg_table_name,
        case when dropped then coalesce((
                select h.target from pgaudit_wf.attachment_history as h
                where h.detail ->> 'function_name' = setting ->> configured.key order by h.id desc limit 1), setting ->> configured.key)
            else coalesce(setting ->> 'target', setting ->> configured.key) end,
        pgaudit_wf._json_diff(pgaudit_wf._without_secrets(was), pgaudit_wf._without_secrets(becomes)) || coalesce((
            select jsonb_agg(jsonb_build_object('op', 'replace', 'path', '/' || member.key, 'old', member.value, 'value', member.value))
            from jsonb_each(pgaudit_wf._without_secrets(was)) as member
            where was -> member.key <> becomes -> member.key
                and pgaudit_wf._without_secrets(becomes) -> member.key = member.value), '[]'),
        jsonb_strip_nulls(jsonb_build_object(
            'reason', pgaudit_wf._context_reason(),
            'configuration', concat(tg_table_name, '/', setting ->> configured.key),
            'state', pgaudit_wf._configuration_state(becomes),
            'dropped', case when dropped then true end)));
    return null;
end
$$;
comment on function pgaudit_wf._record_configuration() is
    'Trigger of the tables that say what is recorded and how: records each change as an event of no organization. Its metadata has the '
    'state of the row, by which pgaudit-wf seal finds a change of which there is no event.';

do $$
declare
    configured text;
begin
    for configured in select c.name from pgaudit_wf._configuration_tables() as c loop
        execute format('create trigger record_configuration after insert or update or delete on pgaudit_wf.%I '
            'for each row execute function pgaudit_wf._record_configuration()', configured);
        execute format('alter table pgaudit_wf.%I enable always trigger record_configuration', configured);
    end loop;
end
$$;
