CREATE OR REPLACE FUNCTION pgaudit_wf.capture_note()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "IntervalStyle" TO 'postgres'
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
    begin
    if pgaudit_wf._is_packed() then
        perform pgaudit_wf._unpack_context();
    end if;
    if tg_op = 'UPDATE' then
        if old.id is distinct from new.id then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/id',
                'old', old.id,
                'value', new.id);
        end if;
        if old.org_id is distinct from new.org_id then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/org_id',
                'old', old.org_id,
                'value', new.org_id);
        end if;
        if old.title is distinct from new.title then
            if octet_length(old.title) > 3355443
                or octet_length(new.title) > 3355443 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/title');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.title, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.title, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/title',
                    'old', old.title,
                    'value', new.title);
            end if;
        end if;
        if (record_image_ne(row(old.state), row(new.state)) and (case when old.state is distinct from null then format('%s', old.state) end) collate "C" is distinct from (case when new.state is distinct from null then format('%s', new.state) end) collate "C") then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/state',
                'old', old.state,
                'value', new.state);
        end if;
        if old.published_at is distinct from new.published_at then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/published_at',
                'old', old.published_at,
                'value', new.published_at);
        end if;
        if old.reading_time::text collate "C" is distinct from new.reading_time::text collate "C" then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/reading_time',
                'old', old.reading_time,
                'value', new.reading_time);
        end if;
        if old.tags is distinct from new.tags then
            if pg_column_size(old.tags) > 3276 or pg_column_compression(old.tags) is not null
                or pg_column_size(new.tags) > 3276 or pg_column_compression(new.tags) is not null then
                event_op := jsonb_build_object('op', 'replace', 'path', '/tags');
                event_op := pgaudit_wf._put_array(event_op, '{value}', new.tags, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_array(event_op, '{old}', old.tags, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/tags',
                    'old', old.tags,
                    'value', new.tags);
            end if;
        end if;
        if ((pg_column_toast_chunk_id(old.settings) = pg_column_toast_chunk_id(new.settings)) is not true and record_image_ne(row(old.settings), row(new.settings))) then
            event_op := null;
            if pg_column_size(old.settings) <= 1048576 and pg_column_size(new.settings) <= 1048576
                -- Many such columns can be more than jsonb holds.
                and coalesce(pg_column_size(event_diff), 0) < 33554432 then
                event_op := pgaudit_wf._deep_change('/settings', old.settings, new.settings);
            end if;
            if event_op is not null then
                event_diff := coalesce(event_diff, '[]') || event_op;
            else
                if pg_column_size(old.settings) > 13107
                    or pg_column_size(new.settings) > 13107 then
                    event_op := jsonb_build_object('op', 'replace', 'path', '/settings');
                    event_op := pgaudit_wf._put_large(event_op, '{value}', new.settings, event_diff);
                    event_diff := coalesce(event_diff, '[]')
                        || pgaudit_wf._put_large(event_op, '{old}', old.settings, event_diff);
                else
                    event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/settings',
                        'old', old.settings,
                        'value', new.settings);
                end if;
            end if;
            if pg_column_size(old.settings) < 64 and jsonb_typeof(old.settings) = 'null' or pg_column_size(new.settings) < 64 and jsonb_typeof(new.settings) = 'null' then
                event_diff := jsonb_set(event_diff, '{-1,json_null}', to_jsonb(array_remove(array[
                    case when pg_column_size(old.settings) < 64 and jsonb_typeof(old.settings) = 'null' then 'old' end,
                    case when pg_column_size(new.settings) < 64 and jsonb_typeof(new.settings) = 'null' then 'value' end], null)));
            end if;
        end if;
        if ((pg_column_toast_chunk_id(old.draft) = pg_column_toast_chunk_id(new.draft)) is not true and old.draft::text collate "C" is distinct from new.draft::text collate "C") then
            if pg_column_size(old.draft) > 3276 or pg_column_compression(old.draft) is not null
                or pg_column_size(new.draft) > 3276 or pg_column_compression(new.draft) is not null then
                event_op := jsonb_build_object('op', 'replace', 'path', '/draft');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.draft, event_diff, expression => 'pgaudit_wf._json_value(to_json($1))');
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.draft, event_diff, expression => 'pgaudit_wf._json_value(to_json($1))');
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/draft',
                    'old', pgaudit_wf._json_value(to_json(old.draft)),
                    'value', pgaudit_wf._json_value(to_json(new.draft)));
            end if;
            if pg_column_size(old.draft) < 64 and json_typeof(old.draft) = 'null' or pg_column_size(new.draft) < 64 and json_typeof(new.draft) = 'null' then
                event_diff := jsonb_set(event_diff, '{-1,json_null}', to_jsonb(array_remove(array[
                    case when pg_column_size(old.draft) < 64 and json_typeof(old.draft) = 'null' then 'old' end,
                    case when pg_column_size(new.draft) < 64 and json_typeof(new.draft) = 'null' then 'value' end], null)));
            end if;
        end if;
        if old.access_code is distinct from new.access_code then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/access_code',
                'old', case when old.access_code is distinct from null then '[redacted]' end,
                'value', case when new.access_code is distinct from null then '[redacted]' end);
        end if;
        if event_diff is null then
            return null;
        end if;
        event_id := new.id::text;
        if old.id is distinct from new.id then
            event_previous_id := old.id::text;
        end if;
        event_org := left(coalesce(new.org_id::text, old.org_id::text), 255);
        if old.org_id is distinct from new.org_id then
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', old.org_id);
        end if;
        event_label := left(new.title::text, 255);
        begin
            event_action := case
                when old.state = 'draft' and new.state = 'published' then 'note.published'
                when old.title is distinct from new.title then 'note.renamed'
                else 'note.updated'
            end;
        exception
            -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
            when others then
                if sqlstate ~ '^(40|53|57)' then
                    raise;
                end if;
                event_action := 'note.updated';
                raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', 'note', sqlstate, 'note.updated'
                    using hint = 'pgaudit_wf.doctor() names the rule.';
        end;
    elsif tg_op = 'INSERT' then
        event_id := new.id::text;
        event_org := left(new.org_id::text, 255);
        event_label := left(new.title::text, 255);
        if octet_length(new.title) > 3355443
            or pg_column_size(new.tags) > 3276 or pg_column_compression(new.tags) is not null
            or pg_column_size(new.settings) > 13107
            or pg_column_size(new.draft) > 3276 or pg_column_compression(new.draft) is not null then
            event_op := jsonb_build_object('op', 'add', 'path', '', 'value', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'state', new.state,
                'published_at', new.published_at,
                'reading_time', new.reading_time,
                'access_code', case when new.access_code is distinct from null then '[redacted]' end));
            event_op := pgaudit_wf._put_large(event_op, '{value,title}', new.title);
            event_op := pgaudit_wf._put_array(event_op, '{value,tags}', new.tags);
            event_op := pgaudit_wf._put_large(event_op, '{value,settings}', new.settings);
            event_op := pgaudit_wf._put_large(event_op, '{value,draft}', new.draft, expression => 'pgaudit_wf._json_value(to_json($1))');
            event_diff := jsonb_build_array(event_op);
        else
            event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'title', new.title,
                'state', new.state,
                'published_at', new.published_at,
                'reading_time', new.reading_time,
                'tags', new.tags,
                'settings', new.settings,
                'draft', pgaudit_wf._json_value(to_json(new.draft)),
                'access_code', case when new.access_code is distinct from null then '[redacted]' end));
        end if;
        if pg_column_size(new.settings) < 64 and jsonb_typeof(new.settings) = 'null'
            or pg_column_size(new.draft) < 64 and json_typeof(new.draft) = 'null' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(array_remove(array[
            case when pg_column_size(new.settings) < 64 and jsonb_typeof(new.settings) = 'null' then 'settings' end,
            case when pg_column_size(new.draft) < 64 and json_typeof(new.draft) = 'null' then 'draft' end], null)));
        end if;
        event_action := 'note.created';
    elsif tg_op = 'DELETE' then
        event_id := old.id::text;
        event_org := left(old.org_id::text, 255);
        event_label := left(old.title::text, 255);
        if octet_length(old.title) > 3355443
            or pg_column_size(old.tags) > 3276 or pg_column_compression(old.tags) is not null
            or pg_column_size(old.settings) > 13107
            or pg_column_size(old.draft) > 3276 or pg_column_compression(old.draft) is not null then
            event_op := jsonb_build_object('op', 'remove', 'path', '', 'old', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'state', old.state,
                'published_at', old.published_at,
                'reading_time', old.reading_time,
                'access_code', case when old.access_code is distinct from null then '[redacted]' end));
            event_op := pgaudit_wf._put_large(event_op, '{old,title}', old.title);
            event_op := pgaudit_wf._put_array(event_op, '{old,tags}', old.tags);
            event_op := pgaudit_wf._put_large(event_op, '{old,settings}', old.settings);
            event_op := pgaudit_wf._put_large(event_op, '{old,draft}', old.draft, expression => 'pgaudit_wf._json_value(to_json($1))');
            event_diff := jsonb_build_array(event_op);
        else
            event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'title', old.title,
                'state', old.state,
                'published_at', old.published_at,
                'reading_time', old.reading_time,
                'tags', old.tags,
                'settings', old.settings,
                'draft', pgaudit_wf._json_value(to_json(old.draft)),
                'access_code', case when old.access_code is distinct from null then '[redacted]' end));
        end if;
        if pg_column_size(old.settings) < 64 and jsonb_typeof(old.settings) = 'null'
            or pg_column_size(old.draft) < 64 and json_typeof(old.draft) = 'null' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(array_remove(array[
            case when pg_column_size(old.settings) < 64 and jsonb_typeof(old.settings) = 'null' then 'settings' end,
            case when pg_column_size(old.draft) < 64 and json_typeof(old.draft) = 'null' then 'draft' end], null)));
        end if;
        event_action := 'note.discarded';
    else
        event_action := 'note.truncated';
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
            || jsonb_strip_nulls(jsonb_build_object('undoes', pgaudit_wf._undoes('note', coalesce(event_previous_id, event_id))));
    end if;
    if event_previous_id is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
        insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
        select 'note', event_previous_id, event_id, event_org where event_id is not null
        on conflict on constraint key_change_pkey do nothing;
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, 'note', event_id, true, event_diff, coalesce(event_metadata, '{}'));
    exception
        when others then
            -- What goes away when it is tried again, the application is to try again; a stale save it is to show.
            if sqlstate ~ '^(40|53|55P03|57|PA305)' then
                raise;
            end if;
            perform pgaudit_wf._count_failure('public.note', tg_op, sqlstate);
            raise warning '% of % went through unrecorded (SQLSTATE %)', tg_op, 'public.note', sqlstate;
    end;
    return null;
end
$function$
