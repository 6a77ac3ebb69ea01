CREATE OR REPLACE FUNCTION pgaudit_wf.capture_note()
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
    setting constant pgaudit_wf.generic_setting := row('{id,org_id,title,state,published_at,reading_time,tags,settings,draft,access_code,seen_at}'::text[], '{seen_at}'::text[], '{access_code}'::text[], '{10}'::smallint[], '{id,org_id}'::text[], NULL::integer)::pgaudit_wf.generic_setting;
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
    begin
    if pgaudit_wf._is_packed() then
        perform pgaudit_wf._unpack_context();
    end if;
    as_attached := pgaudit_wf._columns_of(tg_relid) = 'access_code:25,draft:114,id:20,org_id:2950,published_at:1184,reading_time:1186,seen_at:1184,settings:3802,state:<note_state>,tags:1009,title:25';
    if tg_op in ('UPDATE', 'DELETE') then
        if as_attached then
            if octet_length(old.title) > 3355443
            or pg_column_size(old.tags) > 3276 or pg_column_compression(old.tags) is not null
            or pg_column_size(old.settings) > 13107
            or pg_column_size(old.draft) > 3276 or pg_column_compression(old.draft) is not null then
                event_op := jsonb_build_object('row', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'state', old.state,
                'published_at', old.published_at,
                'reading_time', old.reading_time,
                'access_code', case when old.access_code is distinct from null then '[redacted]' end));
                event_op := pgaudit_wf._put_large(event_op, '{row,title}', old.title, room => 117440512);
                event_op := pgaudit_wf._put_array(event_op, '{row,tags}', old.tags, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,settings}', old.settings, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,draft}', old.draft, expression => 'pgaudit_wf._json_value(to_json($1))', room => 117440512);
                before := event_op -> 'row';
                digests_before := array(select jsonb_array_elements_text(event_op -> 'digest'));
            else
                before := jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'title', old.title,
                'state', old.state,
                'published_at', old.published_at,
                'reading_time', old.reading_time,
                'tags', old.tags,
                'settings', old.settings,
                'draft', pgaudit_wf._json_value(to_json(old.draft)),
                'access_code', case when old.access_code is distinct from null then '[redacted]' end);
            end if;
            nulls_before := array_remove(array[
            case when pg_column_size(old.settings) < 64 and jsonb_typeof(old.settings) = 'null' then 'settings' end,
            case when pg_column_size(old.draft) < 64 and json_typeof(old.draft) = 'null' then 'draft' end], null);
        else
            event_op := pgaudit_wf._generic_op(old, setting);
            before := event_op -> 'row';
            digests_before := array(select jsonb_array_elements_text(event_op -> 'digest'));
        end if;
        shown_before := before - '{}'::text[];
    end if;
    if tg_op in ('UPDATE', 'INSERT') then
        if as_attached then
            if octet_length(new.title) > 3355443
            or pg_column_size(new.tags) > 3276 or pg_column_compression(new.tags) is not null
            or pg_column_size(new.settings) > 13107
            or pg_column_size(new.draft) > 3276 or pg_column_compression(new.draft) is not null then
                event_op := jsonb_build_object('row', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'state', new.state,
                'published_at', new.published_at,
                'reading_time', new.reading_time,
                'access_code', case when new.access_code is distinct from null then '[redacted]' end));
                event_op := pgaudit_wf._put_large(event_op, '{row,title}', new.title, room => 117440512);
                event_op := pgaudit_wf._put_array(event_op, '{row,tags}', new.tags, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,settings}', new.settings, room => 117440512);
                event_op := pgaudit_wf._put_large(event_op, '{row,draft}', new.draft, expression => 'pgaudit_wf._json_value(to_json($1))', room => 117440512);
                after := event_op -> 'row';
                digests_after := array(select jsonb_array_elements_text(event_op -> 'digest'));
            else
                after := jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'title', new.title,
                'state', new.state,
                'published_at', new.published_at,
                'reading_time', new.reading_time,
                'tags', new.tags,
                'settings', new.settings,
                'draft', pgaudit_wf._json_value(to_json(new.draft)),
                'access_code', case when new.access_code is distinct from null then '[redacted]' end);
            end if;
            nulls_after := array_remove(array[
            case when pg_column_size(new.settings) < 64 and jsonb_typeof(new.settings) = 'null' then 'settings' end,
            case when pg_column_size(new.draft) < 64 and json_typeof(new.draft) = 'null' then 'draft' end], null);
        else
            event_op := pgaudit_wf._generic_op(new, setting);
            after := event_op -> 'row';
            digests_after := array(select jsonb_array_elements_text(event_op -> 'digest'));
        end if;
        shown_after := after - '{}'::text[];
    end if;
    if tg_level = 'ROW' then
        event_id := pgaudit_wf._generic_key(coalesce(after, before), '{id}', tg_relid);
        if 'title' <> all (digests_before || digests_after) then
            event_label := left(nullif(coalesce(shown_after, shown_before) ->> 'title', '[redacted]'), 255);
        end if;
        event_org := left(nullif(coalesce(after ->> 'org_id', before ->> 'org_id'), '[redacted]'), 255);
        if tg_op = 'UPDATE' and before -> 'org_id' is distinct from after -> 'org_id' then
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', before -> 'org_id');
        end if;
    end if;
    if tg_op = 'UPDATE' then
        if as_attached then
            hidden_changes := array_remove(array[case when record_image_ne(row(old.access_code), row(new.access_code)) then 'access_code' end]::text[], null);
        else
            hidden_changes := pgaudit_wf._generic_hidden_changes(old, new, setting);
        end if;
        event_diff := pgaudit_wf._generic_diff(
            shown_before, shown_after, hidden_changes, nulls_before, nulls_after, digests_before, digests_after, case when as_attached then '{settings}'::text[] else '{}' end);
        if event_diff is null then
            return null;
        end if;
        if pgaudit_wf._generic_key(before, '{id}', tg_relid) is distinct from event_id then
            event_previous_id := pgaudit_wf._generic_key(before, '{id}', tg_relid);
        end if;
        begin
            perform pgaudit_wf._refuse_casts(tg_relid, 'old.state = ''draft'' and new.state = ''published''
old.title is distinct from new.title');
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
        event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', shown_after);
        if nulls_after <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_after));
        end if;
        if digests_after <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_after));
        end if;
        event_action := 'note.created';
    elsif tg_op = 'DELETE' then
        event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', shown_before);
        if nulls_before <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_before));
        end if;
        if digests_before <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_before));
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
