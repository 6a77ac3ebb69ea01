CREATE OR REPLACE FUNCTION pgaudit_wf.capture_workflow()
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
    event_hash text;
    event_version pgaudit_wf.version_ref;
    definition_changed boolean := false;
    old_nodes jsonb;
    old_edges jsonb;
    new_nodes jsonb;
    new_edges jsonb;
begin
    if current_setting('session_replication_role') = 'replica' and pgaudit_wf._is_applied() then
        -- A subscription that brings the log along brings this event, too.
        return null;
    end if;
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
            if octet_length(old.org_id) > 1398101
                or octet_length(new.org_id) > 1398101 then
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
            if octet_length(old.user_id) > 1398101
                or octet_length(new.user_id) > 1398101 then
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
            if octet_length(old.name) > 1398101
                or octet_length(new.name) > 1398101 then
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
        if old.description is distinct from new.description then
            if octet_length(old.description) > 1398101
                or octet_length(new.description) > 1398101 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/description');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.description, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.description, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/description',
                    'old', old.description,
                    'value', new.description);
            end if;
        end if;
        if old.visibility is distinct from new.visibility then
            if octet_length(old.visibility) > 1398101
                or octet_length(new.visibility) > 1398101 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/visibility');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.visibility, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.visibility, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/visibility',
                    'old', old.visibility,
                    'value', new.visibility);
            end if;
        end if;
        if old.enabled is distinct from new.enabled then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/enabled',
                'old', old.enabled,
                'value', new.enabled);
        end if;
        if old.listed is distinct from new.listed then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listed',
                'old', old.listed,
                'value', new.listed);
        end if;
        if old.listed_slug is distinct from new.listed_slug then
            if octet_length(old.listed_slug) > 1398101
                or octet_length(new.listed_slug) > 1398101 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/listed_slug');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.listed_slug, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.listed_slug, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listed_slug',
                    'old', old.listed_slug,
                    'value', new.listed_slug);
            end if;
        end if;
        if old.listed_at is distinct from new.listed_at then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listed_at',
                'old', old.listed_at,
                'value', new.listed_at);
        end if;
        if old.listing_description is distinct from new.listing_description then
            if octet_length(old.listing_description) > 1398101
                or octet_length(new.listing_description) > 1398101 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/listing_description');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.listing_description, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.listing_description, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listing_description',
                    'old', old.listing_description,
                    'value', new.listing_description);
            end if;
        end if;
        if old.listing_category is distinct from new.listing_category then
            if octet_length(old.listing_category) > 1398101
                or octet_length(new.listing_category) > 1398101 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/listing_category');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.listing_category, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.listing_category, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listing_category',
                    'old', old.listing_category,
                    'value', new.listing_category);
            end if;
        end if;
        if old.listing_price is distinct from new.listing_price then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listing_price',
                'old', old.listing_price,
                'value', new.listing_price);
        end if;
        if old.listing_currency is distinct from new.listing_currency then
            if octet_length(old.listing_currency) > 1398101
                or octet_length(new.listing_currency) > 1398101 then
                event_op := jsonb_build_object('op', 'replace', 'path', '/listing_currency');
                event_op := pgaudit_wf._put_large(event_op, '{value}', new.listing_currency, event_diff);
                event_diff := coalesce(event_diff, '[]')
                    || pgaudit_wf._put_large(event_op, '{old}', old.listing_currency, event_diff);
            else
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/listing_currency',
                    'old', old.listing_currency,
                    'value', new.listing_currency);
            end if;
        end if;
        if old.created_at is distinct from new.created_at then
            event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/created_at',
                'old', old.created_at,
                'value', new.created_at);
        end if;
        -- What only moves things about on the canvas makes no version.
        if (pg_column_toast_chunk_id(old.nodes) = pg_column_toast_chunk_id(new.nodes)) is not true or (pg_column_toast_chunk_id(old.edges) = pg_column_toast_chunk_id(new.edges)) is not true then
            old_nodes := old.nodes #> '{}';
            old_edges := old.edges #> '{}';
            new_nodes := new.nodes #> '{}';
            new_edges := new.edges #> '{}';
            definition_changed := not pgaudit_wf.same_definition(old_nodes, old_edges, new_nodes, new_edges);
            if not definition_changed then
                event_diff := pgaudit_wf._uncounted_changes(event_diff, 'reactflow', '{/nodes,/edges}',
                    old_nodes, old_edges,
                    new_nodes, new_edges);
            end if;
        end if;
        if definition_changed or old.name is distinct from new.name or old.description is distinct from new.description or old.visibility is distinct from new.visibility or old.enabled is distinct from new.enabled or old.listed is distinct from new.listed or old.listed_slug is distinct from new.listed_slug or old.listed_at is distinct from new.listed_at or old.listing_description is distinct from new.listing_description or old.listing_category is distinct from new.listing_category or old.listing_price is distinct from new.listing_price or old.listing_currency is distinct from new.listing_currency then
            if not definition_changed then
                old_nodes := old.nodes #> '{}';
                old_edges := old.edges #> '{}';
                new_nodes := new.nodes #> '{}';
                new_edges := new.edges #> '{}';
            end if;
            event_version := pgaudit_wf._add_version(new.id::text, left(coalesce(new.org_id::text, old.org_id::text), 255), case when old.listed is distinct from new.listed or old.listed_slug is distinct from new.listed_slug or old.listed_at is distinct from new.listed_at or old.listing_description is distinct from new.listing_description or old.listing_category is distinct from new.listing_category or old.listing_price is distinct from new.listing_price or old.listing_currency is distinct from new.listing_currency then 'listing' else 'update' end,
                jsonb_build_object('name', old.name, 'description', old.description, 'visibility', old.visibility, 'enabled', old.enabled),
                jsonb_build_object('name', new.name, 'description', new.description, 'visibility', new.visibility, 'enabled', new.enabled, 'nodes', new_nodes, 'edges', new_edges),
                old_nodes, old_edges, new_nodes, new_edges);
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
            if event_version.content_hash is distinct from event_version.previous_hash then
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/content_hash',
                    'old', event_version.previous_hash, 'value', event_version.content_hash);
            end if;
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
        event_label := left(new.name::text, 255);
        begin
            event_action := case
                when new.listed and not old.listed then 'workflow.listed'
                when old.listed and not new.listed then 'workflow.unlisted'
                when new.enabled and not old.enabled then 'workflow.enabled'
                when old.enabled and not new.enabled then 'workflow.disabled'
                when (old.listed_slug, old.listed_at, old.listing_description, old.listing_category, old.listing_price, old.listing_currency) is distinct from (new.listed_slug, new.listed_at, new.listing_description, new.listing_category, new.listing_price, new.listing_currency) then 'workflow.listing_updated'
                else 'workflow.updated'
            end;
        exception
            -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
            when others then
                if sqlstate ~ '^(40|53|57)' then
                    raise;
                end if;
                event_action := 'workflow.updated';
                raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', 'workflow', sqlstate, 'workflow.updated'
                    using hint = 'pgaudit_wf.doctor() names the rule.';
        end;
    elsif tg_op = 'INSERT' then
        event_id := new.id::text;
        event_org := left(new.org_id::text, 255);
        event_label := left(new.name::text, 255);
        new_nodes := new.nodes #> '{}';
        new_edges := new.edges #> '{}';
        event_version := pgaudit_wf._add_version(new.id::text, event_org, 'create', null,
            jsonb_build_object('name', new.name, 'description', new.description, 'visibility', new.visibility, 'enabled', new.enabled, 'nodes', new_nodes, 'edges', new_edges), null, null, new_nodes, new_edges);
        event_hash := event_version.content_hash;
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
        if octet_length(new.org_id) > 1398101
            or octet_length(new.user_id) > 1398101
            or octet_length(new.name) > 1398101
            or octet_length(new.description) > 1398101
            or octet_length(new.visibility) > 1398101
            or octet_length(new.listed_slug) > 1398101
            or octet_length(new.listing_description) > 1398101
            or octet_length(new.listing_category) > 1398101
            or octet_length(new.listing_currency) > 1398101 then
            event_op := jsonb_build_object('op', 'add', 'path', '', 'value', jsonb_build_object(
                'id', new.id,
                'enabled', new.enabled,
                'listed', new.listed,
                'listed_at', new.listed_at,
                'listing_price', new.listing_price,
                'created_at', new.created_at) || jsonb_build_object('content_hash', event_hash));
            event_op := pgaudit_wf._put_large(event_op, '{value,org_id}', new.org_id);
            event_op := pgaudit_wf._put_large(event_op, '{value,user_id}', new.user_id);
            event_op := pgaudit_wf._put_large(event_op, '{value,name}', new.name);
            event_op := pgaudit_wf._put_large(event_op, '{value,description}', new.description);
            event_op := pgaudit_wf._put_large(event_op, '{value,visibility}', new.visibility);
            event_op := pgaudit_wf._put_large(event_op, '{value,listed_slug}', new.listed_slug);
            event_op := pgaudit_wf._put_large(event_op, '{value,listing_description}', new.listing_description);
            event_op := pgaudit_wf._put_large(event_op, '{value,listing_category}', new.listing_category);
            event_op := pgaudit_wf._put_large(event_op, '{value,listing_currency}', new.listing_currency);
            event_diff := jsonb_build_array(event_op);
        else
            event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
                'user_id', new.user_id,
                'name', new.name,
                'description', new.description,
                'visibility', new.visibility,
                'enabled', new.enabled,
                'listed', new.listed,
                'listed_slug', new.listed_slug,
                'listed_at', new.listed_at,
                'listing_description', new.listing_description,
                'listing_category', new.listing_category,
                'listing_price', new.listing_price,
                'listing_currency', new.listing_currency,
                'created_at', new.created_at) || jsonb_build_object('content_hash', event_hash));
        end if;
        event_action := 'workflow.created';
    elsif tg_op = 'DELETE' then
        event_id := old.id::text;
        event_org := left(old.org_id::text, 255);
        event_label := left(old.name::text, 255);
        event_hash := pgaudit_wf._latest_hash(old.id::text);
        if octet_length(old.org_id) > 1398101
            or octet_length(old.user_id) > 1398101
            or octet_length(old.name) > 1398101
            or octet_length(old.description) > 1398101
            or octet_length(old.visibility) > 1398101
            or octet_length(old.listed_slug) > 1398101
            or octet_length(old.listing_description) > 1398101
            or octet_length(old.listing_category) > 1398101
            or octet_length(old.listing_currency) > 1398101 then
            event_op := jsonb_build_object('op', 'remove', 'path', '', 'old', jsonb_build_object(
                'id', old.id,
                'enabled', old.enabled,
                'listed', old.listed,
                'listed_at', old.listed_at,
                'listing_price', old.listing_price,
                'created_at', old.created_at) || jsonb_build_object('content_hash', event_hash));
            event_op := pgaudit_wf._put_large(event_op, '{old,org_id}', old.org_id);
            event_op := pgaudit_wf._put_large(event_op, '{old,user_id}', old.user_id);
            event_op := pgaudit_wf._put_large(event_op, '{old,name}', old.name);
            event_op := pgaudit_wf._put_large(event_op, '{old,description}', old.description);
            event_op := pgaudit_wf._put_large(event_op, '{old,visibility}', old.visibility);
            event_op := pgaudit_wf._put_large(event_op, '{old,listed_slug}', old.listed_slug);
            event_op := pgaudit_wf._put_large(event_op, '{old,listing_description}', old.listing_description);
            event_op := pgaudit_wf._put_large(event_op, '{old,listing_category}', old.listing_category);
            event_op := pgaudit_wf._put_large(event_op, '{old,listing_currency}', old.listing_currency);
            event_diff := jsonb_build_array(event_op);
        else
            event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
                'user_id', old.user_id,
                'name', old.name,
                'description', old.description,
                'visibility', old.visibility,
                'enabled', old.enabled,
                'listed', old.listed,
                'listed_slug', old.listed_slug,
                'listed_at', old.listed_at,
                'listing_description', old.listing_description,
                'listing_category', old.listing_category,
                'listing_price', old.listing_price,
                'listing_currency', old.listing_currency,
                'created_at', old.created_at) || jsonb_build_object('content_hash', event_hash));
        end if;
        event_action := 'workflow.deleted';
    else
        event_action := 'workflow.truncated';
        event_metadata := jsonb_build_object('table', format('%I.%I', tg_table_schema, tg_table_name));
    end if;
    if event_version.restored_from is not null then
        event_action := 'workflow' || case tg_op when 'INSERT' then '.undeleted' else '.restored' end;
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('restored_from', event_version.restored_from);
    end if;
    if event_label is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('label', event_label);
    end if;
    if current_setting('app.reason', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('reason', pgaudit_wf._context_reason());
    end if;
    if current_setting('pgaudit_wf.undoing', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}')
            || jsonb_strip_nulls(jsonb_build_object('undoes', pgaudit_wf._undoes('workflow', coalesce(event_previous_id, event_id))));
    end if;
    if event_previous_id is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
        insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
        select 'workflow', event_previous_id, event_id, event_org where event_id is not null
        on conflict on constraint key_change_pkey do nothing;
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, 'workflow', event_id, true, event_diff, coalesce(event_metadata, '{}'));
    return null;
end
$function$
