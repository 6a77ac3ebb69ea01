CREATE OR REPLACE FUNCTION pgaudit_wf.capture_api_key()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
-- Records every change of an attached table; written by pgaudit_wf.attach().
-- To change it, attach the table again or edit pgaudit_wf.action_rule. Columns as of <digest>.
declare
    event_id text;
    event_previous_id text;
    event_org text;
    event_label text;
    event_action text;
    event_diff jsonb;
    event_metadata jsonb;
    event_op jsonb;
begin
    if current_setting('session_replication_role') = 'replica' and pgaudit_wf._is_applied() then
        -- A subscription that brings the log along brings this event, too.
        return null;
    end if;
    if tg_op in ('DELETE', 'INSERT', 'UPDATE') and current_setting('session_replication_role') <> 'replica' then
        -- Recorded at the end of the statement.
        return null;
    end if;
    if pgaudit_wf._is_packed() then
        perform pgaudit_wf._unpack_context();
    end if;
    if tg_op = 'UPDATE' then
        if old.id is distinct from new.id then
            if octet_length(old.id) > 2396745
                or octet_length(new.id) > 2396745 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/id');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.id, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.id, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/id',
                    'old', old.id,
                    'value', new.id);
            end if;
        end if;
        if old.org_id is distinct from new.org_id then
            if octet_length(old.org_id) > 2396745
                or octet_length(new.org_id) > 2396745 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/org_id');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.org_id, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.org_id, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/org_id',
                    'old', old.org_id,
                    'value', new.org_id);
            end if;
        end if;
        if old.user_id is distinct from new.user_id then
            if octet_length(old.user_id) > 2396745
                or octet_length(new.user_id) > 2396745 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/user_id');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.user_id, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.user_id, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/user_id',
                    'old', old.user_id,
                    'value', new.user_id);
            end if;
        end if;
        if old.name is distinct from new.name then
            if octet_length(old.name) > 2396745
                or octet_length(new.name) > 2396745 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/name');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.name, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.name, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/name',
                    'old', old.name,
                    'value', new.name);
            end if;
        end if;
        if old.key_prefix is distinct from new.key_prefix then
            if octet_length(old.key_prefix) > 2396745
                or octet_length(new.key_prefix) > 2396745 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/key_prefix');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.key_prefix, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.key_prefix, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/key_prefix',
                    'old', old.key_prefix,
                    'value', new.key_prefix);
            end if;
        end if;
        if old.key_hash is distinct from new.key_hash then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/key_hash',
                'old', case when old.key_hash is distinct from null then '[redacted]' end,
                'value', case when new.key_hash is distinct from null then '[redacted]' end);
        end if;
        if old.scopes is distinct from new.scopes then
            if pg_column_size(old.scopes) > 2340 or pg_column_compression(old.scopes) is not null
                or pg_column_size(new.scopes) > 2340 or pg_column_compression(new.scopes) is not null then
                event_op := jsonb_build_object('op', 'replace', 'path', '/scopes');
                event_op := pgaudit_wf._put_array(event_op, '{value}', new.scopes, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_array(event_op, '{old}', old.scopes, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/scopes',
                    'old', old.scopes,
                    'value', new.scopes);
            end if;
        end if;
        if old.expires_at is distinct from new.expires_at then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/expires_at',
                'old', old.expires_at,
                'value', new.expires_at);
        end if;
        if old.revoked_at is distinct from new.revoked_at then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/revoked_at',
                'old', old.revoked_at,
                'value', new.revoked_at);
        end if;
        if old.created_at is distinct from new.created_at then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/created_at',
                'old', old.created_at,
                'value', new.created_at);
        end if;
        if event_diff is null then
            return null;
        end if;
        event_id := pgaudit_wf._bounded_key(new.id::text);
        if old.id is distinct from new.id then
            event_previous_id := pgaudit_wf._bounded_key(old.id::text);
        end if;
        event_org := left(coalesce(new.org_id::text, old.org_id::text), 255);
        if old.org_id is distinct from new.org_id then
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', old.org_id);
        end if;
        event_label := left(new.key_prefix::text, 255);
        begin
            event_action := case
                when old.revoked_at is null and new.revoked_at is not null and new.org_id is null then 'api_key.revoked'
                when old.revoked_at is null and new.revoked_at is not null then 'org_api_key.revoked'
                when old.revoked_at is not null and new.revoked_at is null and new.org_id is null then 'api_key.reinstated'
                when old.revoked_at is not null and new.revoked_at is null then 'org_api_key.reinstated'
                when old.key_hash is distinct from new.key_hash and new.org_id is null then 'api_key.rotated'
                when old.key_hash is distinct from new.key_hash then 'org_api_key.rotated'
                when old.name is distinct from new.name and new.org_id is null then 'api_key.renamed'
                when old.name is distinct from new.name then 'org_api_key.renamed'
                when new.org_id is null then 'api_key.updated'
                when true then 'org_api_key.updated'
                else 'api_key.updated'
            end;
        exception
            -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
            when others then
                if sqlstate ~ '^(40|53|57)' then
                    raise;
                end if;
                event_action := 'api_key.updated';
                raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', 'api_key', sqlstate, 'api_key.updated'
                    using hint = 'pgaudit_wf.doctor() names the rule.';
        end;
    elsif tg_op = 'INSERT' then
        event_id := pgaudit_wf._bounded_key(new.id::text);
        event_org := left(new.org_id::text, 255);
        event_label := left(new.key_prefix::text, 255);
        if octet_length(new.id) > 2396745
            or octet_length(new.org_id) > 2396745
            or octet_length(new.user_id) > 2396745
            or octet_length(new.name) > 2396745
            or octet_length(new.key_prefix) > 2396745
            or pg_column_size(new.scopes) > 2340 or pg_column_compression(new.scopes) is not null then
            event_op := jsonb_build_object('op', 'add', 'path', '', 'value', jsonb_build_object(
                'key_hash', case when new.key_hash is distinct from null then '[redacted]' end,
                'expires_at', new.expires_at,
                'revoked_at', new.revoked_at,
                'created_at', new.created_at));
            event_op := pgaudit_wf._put_large(event_op, '{value,id}', new.id);
            event_op := pgaudit_wf._put_large(event_op, '{value,org_id}', new.org_id);
            event_op := pgaudit_wf._put_large(event_op, '{value,user_id}', new.user_id);
            event_op := pgaudit_wf._put_large(event_op, '{value,name}', new.name);
            event_op := pgaudit_wf._put_large(event_op, '{value,key_prefix}', new.key_prefix);
            event_op := pgaudit_wf._put_array(event_op, '{value,scopes}', new.scopes);
            event_diff := jsonb_build_array(event_op);
        else
            event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'user_id', new.user_id,
                'name', new.name,
                'key_prefix', new.key_prefix,
                'key_hash', case when new.key_hash is distinct from null then '[redacted]' end,
                'scopes', new.scopes,
                'expires_at', new.expires_at,
                'revoked_at', new.revoked_at,
                'created_at', new.created_at));
        end if;
        begin
            event_action := case
                when new.org_id is null then 'api_key.created'
                when true then 'org_api_key.created'
                else 'api_key.created'
            end;
        exception
            -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
            when others then
                if sqlstate ~ '^(40|53|57)' then
                    raise;
                end if;
                event_action := 'api_key.created';
                raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', 'api_key', sqlstate, 'api_key.created'
                    using hint = 'pgaudit_wf.doctor() names the rule.';
        end;
    elsif tg_op = 'DELETE' then
        event_id := pgaudit_wf._bounded_key(old.id::text);
        event_org := left(old.org_id::text, 255);
        event_label := left(old.key_prefix::text, 255);
        if octet_length(old.id) > 2396745
            or octet_length(old.org_id) > 2396745
            or octet_length(old.user_id) > 2396745
            or octet_length(old.name) > 2396745
            or octet_length(old.key_prefix) > 2396745
            or pg_column_size(old.scopes) > 2340 or pg_column_compression(old.scopes) is not null then
            event_op := jsonb_build_object('op', 'remove', 'path', '', 'old', jsonb_build_object(
                'key_hash', case when old.key_hash is distinct from null then '[redacted]' end,
                'expires_at', old.expires_at,
                'revoked_at', old.revoked_at,
                'created_at', old.created_at));
            event_op := pgaudit_wf._put_large(event_op, '{old,id}', old.id);
            event_op := pgaudit_wf._put_large(event_op, '{old,org_id}', old.org_id);
            event_op := pgaudit_wf._put_large(event_op, '{old,user_id}', old.user_id);
            event_op := pgaudit_wf._put_large(event_op, '{old,name}', old.name);
            event_op := pgaudit_wf._put_large(event_op, '{old,key_prefix}', old.key_prefix);
            event_op := pgaudit_wf._put_array(event_op, '{old,scopes}', old.scopes);
            event_diff := jsonb_build_array(event_op);
        else
            event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'user_id', old.user_id,
                'name', old.name,
                'key_prefix', old.key_prefix,
                'key_hash', case when old.key_hash is distinct from null then '[redacted]' end,
                'scopes', old.scopes,
                'expires_at', old.expires_at,
                'revoked_at', old.revoked_at,
                'created_at', old.created_at));
        end if;
        begin
            event_action := case
                when old.revoked_at is not null and old.org_id is null then 'api_key.deleted'
                when old.revoked_at is not null then 'org_api_key.deleted'
                when old.org_id is null then 'api_key.revoked'
                when true then 'org_api_key.revoked'
                else 'api_key.deleted'
            end;
        exception
            -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
            when others then
                if sqlstate ~ '^(40|53|57)' then
                    raise;
                end if;
                event_action := 'api_key.deleted';
                raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', 'api_key', sqlstate, 'api_key.deleted'
                    using hint = 'pgaudit_wf.doctor() names the rule.';
        end;
    else
        event_action := 'api_key.truncated';
        event_metadata := jsonb_build_object('table', format('%I.%I', tg_table_schema, tg_table_name));
    end if;
    if event_label is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('label', event_label);
    end if;
    if current_setting('app.reason', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('reason', pgaudit_wf._context_reason());
    end if;
    if current_setting('pgaudit_wf.undoing', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}')
            || jsonb_strip_nulls(jsonb_build_object('undoes', pgaudit_wf._undoes('api_key', coalesce(event_previous_id, event_id))));
    end if;
    if event_previous_id is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
        insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
        select 'api_key', event_previous_id, event_id, event_org where event_id is not null
        on conflict on constraint key_change_pkey do nothing;
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, 'api_key', event_id, true, event_diff, coalesce(event_metadata, '{}'));
    return null;
end
$function$
