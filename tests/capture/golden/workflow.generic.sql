CREATE OR REPLACE FUNCTION pgaudit_wf.capture_workflow()
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
    setting constant pgaudit_wf.generic_setting := row('{id,org_id,user_id,name,description,visibility,enabled,listed,listed_slug,listed_at,listing_description,listing_category,listing_price,listing_currency,nodes,edges,created_at,updated_at}'::text[], '{updated_at}'::text[], '{}'::text[], '{}'::smallint[], '{id,org_id,nodes,edges,name,description,visibility,enabled,listed,listed,listed_slug,listed_at,listing_description,listing_category,listing_price,listing_currency}'::text[], NULL::integer)::pgaudit_wf.generic_setting;
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
    as_attached := pgaudit_wf._columns_of(tg_relid) = 'created_at:1184,description:25,edges:3802,enabled:16,id:2950,listed:16,listed_at:1184,listed_slug:25,listing_category:25,listing_currency:25,listing_description:25,listing_price:1700,name:25,nodes:3802,org_id:25,updated_at:1184,user_id:25,visibility:25';
    if tg_op in ('UPDATE', 'DELETE') then
        if as_attached then
            if octet_length(old.user_id) > 1398101 then
                event_op := jsonb_build_object('row', jsonb_build_object(
                'id', old.id,
                'org_id', old.org_id,
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
                'nodes', old.nodes,
                'edges', old.edges,
                'created_at', old.created_at));
                event_op := pgaudit_wf._put_large(event_op, '{row,user_id}', old.user_id, room => 117440512);
                before := event_op -> 'row';
                digests_before := array(select jsonb_array_elements_text(event_op -> 'digest'));
            else
                before := jsonb_build_object(
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
                'nodes', old.nodes,
                'edges', old.edges,
                'created_at', old.created_at);
            end if;
            nulls_before := array_remove(array[
            case when pg_column_size(old.nodes) < 64 and jsonb_typeof(old.nodes) = 'null' then 'nodes' end,
            case when pg_column_size(old.edges) < 64 and jsonb_typeof(old.edges) = 'null' then 'edges' end], null);
        else
            event_op := pgaudit_wf._generic_op(old, setting);
            before := event_op -> 'row';
            digests_before := array(select jsonb_array_elements_text(event_op -> 'digest'));
            before := pgaudit_wf._compiled_names(before, tg_relid, '{"name": 4, "edges": 16, "nodes": 15, "listed": 8, "enabled": 7, "listed_at": 10, "visibility": 6, "description": 5, "listed_slug": 9, "listing_price": 13, "listing_category": 12, "listing_currency": 14, "listing_description": 11}', '{id,org_id,user_id,name,description,visibility,enabled,listed,listed_slug,listed_at,listing_description,listing_category,listing_price,listing_currency,nodes,edges,created_at,updated_at}');
        end if;
        shown_before := before - '{nodes,edges}'::text[];
    end if;
    if tg_op in ('UPDATE', 'INSERT') then
        if as_attached then
            if octet_length(new.user_id) > 1398101 then
                event_op := jsonb_build_object('row', jsonb_build_object(
                'id', new.id,
                'org_id', new.org_id,
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
                'nodes', new.nodes,
                'edges', new.edges,
                'created_at', new.created_at));
                event_op := pgaudit_wf._put_large(event_op, '{row,user_id}', new.user_id, room => 117440512);
                after := event_op -> 'row';
                digests_after := array(select jsonb_array_elements_text(event_op -> 'digest'));
            else
                after := jsonb_build_object(
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
                'nodes', new.nodes,
                'edges', new.edges,
                'created_at', new.created_at);
            end if;
            nulls_after := array_remove(array[
            case when pg_column_size(new.nodes) < 64 and jsonb_typeof(new.nodes) = 'null' then 'nodes' end,
            case when pg_column_size(new.edges) < 64 and jsonb_typeof(new.edges) = 'null' then 'edges' end], null);
        else
            event_op := pgaudit_wf._generic_op(new, setting);
            after := event_op -> 'row';
            digests_after := array(select jsonb_array_elements_text(event_op -> 'digest'));
            after := pgaudit_wf._compiled_names(after, tg_relid, '{"name": 4, "edges": 16, "nodes": 15, "listed": 8, "enabled": 7, "listed_at": 10, "visibility": 6, "description": 5, "listed_slug": 9, "listing_price": 13, "listing_category": 12, "listing_currency": 14, "listing_description": 11}', '{id,org_id,user_id,name,description,visibility,enabled,listed,listed_slug,listed_at,listing_description,listing_category,listing_price,listing_currency,nodes,edges,created_at,updated_at}');
        end if;
        shown_after := after - '{nodes,edges}'::text[];
    end if;
    if tg_level = 'ROW' then
        event_id := pgaudit_wf._generic_key(coalesce(after, before), '{id}', tg_relid);
        if 'name' <> all (digests_before || digests_after) then
            event_label := left(nullif(coalesce(shown_after, shown_before) ->> 'name', '[redacted]'), 255);
        end if;
        event_org := left(nullif(coalesce(after ->> 'org_id', before ->> 'org_id'), '[redacted]'), 255);
        if tg_op = 'UPDATE' and before -> 'org_id' is distinct from after -> 'org_id' then
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_org_id', before -> 'org_id');
        end if;
    end if;
    if tg_op = 'UPDATE' then
        if as_attached then
            hidden_changes := '{}'::text[];
        else
            hidden_changes := pgaudit_wf._generic_hidden_changes(old, new, setting);
        end if;
        event_diff := pgaudit_wf._generic_diff(
            shown_before, shown_after, hidden_changes, nulls_before, nulls_after, digests_before, digests_after);
        if as_attached or (event_id is not null
    and jsonb_typeof((after -> 'nodes')) is not distinct from 'array' and jsonb_typeof((after -> 'edges')) is not distinct from 'array')
        then
            -- What only moves things about on the canvas makes no version.
            if true or true then
                old_nodes := (before -> 'nodes') #> '{}';
                old_edges := (before -> 'edges') #> '{}';
                new_nodes := (after -> 'nodes') #> '{}';
                new_edges := (after -> 'edges') #> '{}';
                definition_changed := not pgaudit_wf.same_definition(old_nodes, old_edges, new_nodes, new_edges);
                if not definition_changed then
                    event_diff := pgaudit_wf._uncounted_changes(event_diff, 'reactflow', '{/nodes,/edges}',
                        old_nodes, old_edges,
                        new_nodes, new_edges);
                end if;
            end if;
            if definition_changed or (before -> 'name') is distinct from (after -> 'name') or (before -> 'description') is distinct from (after -> 'description') or (before -> 'visibility') is distinct from (after -> 'visibility') or (before -> 'enabled') is distinct from (after -> 'enabled') or (before -> 'listed') is distinct from (after -> 'listed') or (before -> 'listed_slug') is distinct from (after -> 'listed_slug') or (before -> 'listed_at') is distinct from (after -> 'listed_at') or (before -> 'listing_description') is distinct from (after -> 'listing_description') or (before -> 'listing_category') is distinct from (after -> 'listing_category') or (before -> 'listing_price') is distinct from (after -> 'listing_price') or (before -> 'listing_currency') is distinct from (after -> 'listing_currency') then
                if not definition_changed then
                    old_nodes := (before -> 'nodes') #> '{}';
                    old_edges := (before -> 'edges') #> '{}';
                    new_nodes := (after -> 'nodes') #> '{}';
                    new_edges := (after -> 'edges') #> '{}';
                end if;
                event_version := pgaudit_wf._add_version(pgaudit_wf._workflow_id('', event_id), event_org, case when (before -> 'listed') is distinct from (after -> 'listed') or (before -> 'listed_slug') is distinct from (after -> 'listed_slug') or (before -> 'listed_at') is distinct from (after -> 'listed_at') or (before -> 'listing_description') is distinct from (after -> 'listing_description') or (before -> 'listing_category') is distinct from (after -> 'listing_category') or (before -> 'listing_price') is distinct from (after -> 'listing_price') or (before -> 'listing_currency') is distinct from (after -> 'listing_currency') then 'listing' else 'update' end,
                    jsonb_build_object('name', (before -> 'name'), 'description', (before -> 'description'), 'visibility', (before -> 'visibility'), 'enabled', (before -> 'enabled')),
                    jsonb_build_object('name', (after -> 'name'), 'description', (after -> 'description'), 'visibility', (after -> 'visibility'), 'enabled', (after -> 'enabled'), 'nodes', new_nodes, 'edges', new_edges),
                    old_nodes, old_edges, new_nodes, new_edges);
                event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
                if event_version.content_hash is distinct from event_version.previous_hash then
                    event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/content_hash',
                        'old', event_version.previous_hash, 'value', event_version.content_hash);
                end if;
            end if;
        end if;
        if event_diff is null then
            return null;
        end if;
        if pgaudit_wf._generic_key(before, '{id}', tg_relid) is distinct from event_id then
            event_previous_id := pgaudit_wf._generic_key(before, '{id}', tg_relid);
        end if;
        begin
            perform pgaudit_wf._refuse_casts(tg_relid, 'new.listed and not old.listed
old.listed and not new.listed
new.enabled and not old.enabled
old.enabled and not new.enabled
(old.listed_slug, old.listed_at, old.listing_description, old.listing_category, old.listing_price, old.listing_currency) is distinct from (new.listed_slug, new.listed_at, new.listing_description, new.listing_category, new.listing_price, new.listing_currency)');
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
        if as_attached or (event_id is not null
    and jsonb_typeof((after -> 'nodes')) is not distinct from 'array' and jsonb_typeof((after -> 'edges')) is not distinct from 'array')
        then
            new_nodes := (after -> 'nodes') #> '{}';
            new_edges := (after -> 'edges') #> '{}';
            event_version := pgaudit_wf._add_version(pgaudit_wf._workflow_id('', event_id), event_org, 'create', null,
                jsonb_build_object('name', (after -> 'name'), 'description', (after -> 'description'), 'visibility', (after -> 'visibility'), 'enabled', (after -> 'enabled'), 'nodes', new_nodes, 'edges', new_edges), null, null, new_nodes, new_edges);
            event_hash := event_version.content_hash;
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
        end if;
        event_diff := jsonb_set('[{"op": "add", "path": "", "value": null}]', '{0,value}', shown_after || jsonb_build_object('content_hash', event_hash));
        if nulls_after <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_after));
        end if;
        if digests_after <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_after));
        end if;
        event_action := 'workflow.created';
    elsif tg_op = 'DELETE' then
        if as_attached or (event_id is not null
    and jsonb_typeof((before -> 'nodes')) is not distinct from 'array' and jsonb_typeof((before -> 'edges')) is not distinct from 'array')
        then
            event_hash := pgaudit_wf._latest_hash(pgaudit_wf._workflow_id('', event_id));
        end if;
        event_diff := jsonb_set('[{"op": "remove", "path": "", "old": null}]', '{0,old}', shown_before || jsonb_build_object('content_hash', event_hash));
        if nulls_before <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,json_null}', to_jsonb(nulls_before));
        end if;
        if digests_before <> '{}' then
            event_diff := jsonb_set(event_diff, '{0,digest}', to_jsonb(digests_before));
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
