CREATE OR REPLACE FUNCTION pgaudit_wf.capture_api_key()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET bytea_output TO 'hex'
 SET "DateStyle" TO 'ISO, MDY'
 SET extra_float_digits TO '1'
 SET "IntervalStyle" TO 'postgres'
 SET lc_monetary TO 'C'
 SET quote_all_identifiers TO 'off'
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
    setting constant pgaudit_wf.generic_setting := row('{id,org_id,user_id,name,key_prefix,key_hash,scopes,last_used_at,expires_at,revoked_at,created_at}'::text[], '{last_used_at}'::text[], '{key_hash}'::text[], '{6}'::smallint[], '{id,org_id}'::text[], NULL::integer)::pgaudit_wf.generic_setting;
    as_attached boolean;
    hidden_changes text[];
    nulls_before text[] := '{}';
    nulls_after text[] := '{}';
    digests_before text[] := '{}';
    digests_after text[] := '{}';
    event_op jsonb;
    before jsonb;
    after jsonb;
    shown_before jsonb;
    shown_after jsonb;
begin
    if current_setting('session_replication_role') = 'replica' and pgaudit_wf._is_applied() then
        -- A subscription that brings the log along brings this event, too.
        return null;
    end if;
    if pgaudit_wf._is_packed() then
        perform pgaudit_wf._unpack_context();
    end if;
    as_attached := pgaudit_wf._columns_of(tg_relid) = 'created_at:1184,expires_at:1184,id:25,key_hash:25,key_prefix:25,last_used_at:1184,name:25,org_id:25,revoked_at:1184,scopes:1009,user_id:25';
    if tg_op in ('UPDATE', 'DELETE') then
        if as_attached then
            if octet_length(old.user_id) > 2396745
            or octet_length(old.name) > 2396745
            or octet_length(old.key_prefix) > 2396745
            or pg_column_size(old.scopes) > 2340 or pg_column_compression(old.scopes) is not null then
                event_op := jsonb_build_object('row', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'key_hash', case when old.key_hash is distinct from null then '[redacted]' end,
                'expires_at', old.expires_at,
                'revoked_at', old.revoked_at,
                'created_at', old.created_at));
                event_op := pgaudit_wf._put_large(event_op, '{row,user_id}', old.user_id, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,name}', old.name, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,key_prefix}', old.key_prefix, room => 117440512);
                event_op := pgaudit_wf._put_array(event_op, '{row,scopes}', old.scopes, room => 117440512);
                before := event_op -> 'row';
                digests_before := array(select jsonb_array_elements_text(event_op -> 'digest'));
            else
                before := jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'user_id', old.user_id,
                'name', old.name,
                'key_prefix', old.key_prefix,
                'key_hash', case when old.key_hash is distinct from null then '[redacted]' end,
                'scopes', old.scopes,
                'expires_at', old.expires_at,
                'revoked_at', old.revoked_at,
                'created_at', old.created_at);
            end if;
        else
            event_op := pgaudit_wf._generic_op(old, setting);
            before := event_op -> 'row';
            digests_before := array(select jsonb_array_elements_text(event_op -> 'digest'));
        end if;
        shown_before := before - '{}'::text[];
    end if;
    if tg_op in ('UPDATE', 'INSERT') then
        if as_attached then
            if octet_length(new.user_id) > 2396745
            or octet_length(new.name) > 2396745
            or octet_length(new.key_prefix) > 2396745
            or pg_column_size(new.scopes) > 2340 or pg_column_compression(new.scopes) is not null then
                event_op := jsonb_build_object('row', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'key_hash', case when new.key_hash is distinct from null then '[redacted]' end,
                'expires_at', new.expires_at,
                'revoked_at', new.revoked_at,
                'created_at', new.created_at));
                event_op := pgaudit_wf._put_large(event_op, '{row,user_id}', new.user_id, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,name}', new.name, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,key_prefix}', new.key_prefix, room => 117440512);
                event_op := pgaudit_wf._put_array(event_op, '{row,scopes}', new.scopes, room => 117440512);
                after := event_op -> 'row';
                digests_after := array(select jsonb_array_elements_text(event_op -> 'digest'));
            else
                after := jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'user_id', new.user_id,
                'name', new.name,
                'key_prefix', new.key_prefix,
                'key_hash', case when new.key_hash is distinct from null then '[redacted]' end,
                'scopes', new.scopes,
                'expires_at', new.expires_at,
                'revoked_at', new.revoked_at,
                'created_at', new.created_at);
            end if;
        else
            event_op := pgaudit_wf._generic_op(new, setting);
            after := event_op -> 'row';
            digests_after := array(select jsonb_array_elements_text(event_op -> 'digest'));
        end if;
        shown_after := after - '{}'::text[];
    end if;
    if tg_level = 'ROW' then
        event_id := pgaudit_wf._generic_key(coalesce(after, before), '{id}', tg_relid);
        if 'key_prefix' <> all (digests_before || digests_after) then
            event_label := left(nullif(coalesce(shown_after, shown_before) ->> 'key_prefix', '[redacted]'), 255);
        end if;
        event_org := left(nullif(coalesce(after ->> 'org_id', before ->> 'org_id'), '[redacted]'), 255);
        if tg_op = 'UPDATE' and before -> 'org_id' is distinct from after -> 'org_id' then
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', before -> 'org_id');
        end if;
    end if;
    if tg_op = 'UPDATE' then
        if as_attached then
            hidden_changes := array_remove(array[case when record_image_ne(row(old.key_hash), row(new.key_hash)) then 'key_hash' end]::text[], null);
        else
            hidden_changes := pgaudit_wf._generic_hidden_changes(old, new, setting);
        end if;
        event_diff := pgaudit_wf._generic_diff(
            shown_before, shown_after, hidden_changes, nulls_before, nulls_after, digests_before, digests_after);
        if event_diff is null then
            return null;
        end if;
        if pgaudit_wf._generic_key(before, '{id}', tg_relid) is distinct from event_id then
            event_previous_id := pgaudit_wf._generic_key(before, '{id}', tg_relid);
        end if;
        begin
            perform pgaudit_wf._refuse_casts(tg_relid, 'old.revoked_at is null and new.revoked_at is not null and new.org_id is null
old.revoked_at is null and new.revoked_at is not null
old.revoked_at is not null and new.revoked_at is null and new.org_id is null
old.revoked_at is not null and new.revoked_at is null
old.key_hash is distinct from new.key_hash and new.org_id is null
old.key_hash is distinct from new.key_hash
old.name is distinct from new.name and new.org_id is null
old.name is distinct from new.name
new.org_id is null');
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
        event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', shown_after);
        if nulls_after <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_after));
        end if;
        if digests_after <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_after));
        end if;
        begin
            perform pgaudit_wf._refuse_casts(tg_relid, 'new.org_id is null');
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
        event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', shown_before);
        if nulls_before <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_before));
        end if;
        if digests_before <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_before));
        end if;
        begin
            perform pgaudit_wf._refuse_casts(tg_relid, 'old.revoked_at is not null and old.org_id is null
old.revoked_at is not null
old.org_id is null');
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
