-- attach_workflow(): versions for any table that holds a graph; and the guard that keeps a broken one from going live.

create function pgaudit_wf._check_workflow_columns(workflow pgaudit_wf.workflow_attachment) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problem record;
begin
    select * into problem from pgaudit_wf._workflow_problems(workflow) limit 1;
    if found then
        raise exception '% of % must be a column%: "%" is %', problem.role, (workflow).target,
            coalesce(format(' of type %s', array_to_string(problem.wanted, ' or ')), ''),
            problem.name, coalesce(problem.given, 'missing')
            using errcode = 'PA002', hint = 'Name the right column, or '''' for an optional one that the table does not have.';
    end if;
end
$$;
comment on function pgaudit_wf._check_workflow_columns(pgaudit_wf.workflow_attachment) is
    'Raises PA002 naming the column that is missing or of the wrong type.';

create function pgaudit_wf._check_shape(workflow pgaudit_wf.workflow_attachment) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problem constant text := pgaudit_wf._shape_problem(workflow);
    stranger regprocedure;
begin
    if problem is not null then
        raise exception '%', problem
            using errcode = 'PA008', hint = format('As %1$I: grant usage on schema %1$I to public; grant execute on all functions in '
                'schema %1$I to public;', (workflow).shape);
    elsif pgaudit_wf._graph_types((workflow).shape) is null then
        select p.oid into stranger
        from unnest(array['nodes', 'edges', 'back']) as name
        join pg_proc as p on p.oid = pgaudit_wf._shape_function(workflow, name)
        join pg_roles as author on author.oid = p.proowner
        where not author.rolsuper and author.rolname not in (current_user, pgaudit_wf._schema_owner()) limit 1;
        if found then
            raise exception '% belongs to another role, which % cannot trust', stranger, current_user
                using errcode = 'PA008',
                    hint = format('The rows are read by it with your rights: alter function %s owner to %I;', stranger, current_user);
        end if;
    end if;
end
$$;
comment on function pgaudit_wf._check_shape(pgaudit_wf.workflow_attachment) is
    'Raises PA008 where a shape is none, or its functions are not to be run with the rights of the caller.';

create function pgaudit_wf._check_graphs(workflow pgaudit_wf.workflow_attachment, id_columns text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    setting pgaudit_wf.attachment;
    has_back constant boolean := pgaudit_wf._graph_types((workflow).shape) is null
        and pgaudit_wf._shape_function(workflow, 'back') is not null;
    row_key text;
    nodes jsonb;
    edges jsonb;
    malformed text;
    leads_back boolean;
begin
    if not has_table_privilege((workflow).target, 'select') or row_security_active((workflow).target) then
        return;
    end if;
    setting.target := (workflow).target;
    setting.form := 'compiled';
    -- A domain's or type's own casts are nobody's to run.
    for row_key, nodes, edges, malformed, leads_back in execute format('select %s, %s, %s, %s, %s from %s as w',
        coalesce((select format('concat_ws('', '', %s)', string_agg(pgaudit_wf._column_text(setting, name, 'w'), ', '))
            from unnest(coalesce(id_columns, pgaudit_wf._primary_key((workflow).target))) as name), 'w.ctid::text'),
        pgaudit_wf._graph_expression(setting, workflow, 'w', 'nodes'),
        pgaudit_wf._graph_expression(setting, workflow, 'w', 'edges'),
        coalesce((
            select string_agg(format('case when %1$s <> '''' and pgaudit_wf._try_jsonb(%1$s) is null then %2$L else '''' end',
                pgaudit_wf._stored_text(setting, 'w', name), name), ' || ')
            from unnest(array[(workflow).nodes_column, (workflow).edges_column]) as name
            where name is not null and pgaudit_wf._graph_types((workflow).shape) is not null), ''''''),
        case when has_back then format('to_jsonb(%1$I.back(w, %1$I.nodes(w), %1$I.edges(w))) = to_jsonb(w)', (workflow).shape)
            else 'true' end,
        (workflow).target)
    loop
        malformed := nullif(malformed, '') || ' is not JSON that jsonb can hold';
        if malformed is null then
            begin
                perform pgaudit_wf.hash_definition(nodes, edges);
            exception
                when sqlstate 'PA201' or sqlstate 'PA202' or sqlstate 'PA203' then
                    malformed := sqlerrm;
            end;
        end if;
        if malformed is not null then
            raise exception 'no version can be kept of row % of %: %', row_key, (workflow).target, malformed
                using errcode = 'PA203', hint = 'Mend or delete it first, or attach the table by attach(), without versions.';
        elsif leads_back is not true then
            raise exception 'row % of % could not be restored: %.back() makes another row of its nodes and edges',
                row_key, (workflow).target, (workflow).shape
                using errcode = 'PA304', hint = 'Let nodes() and edges() keep all that back() needs, or drop back().';
        end if;
    end loop;
exception
    -- As reactflow reads it; n8n and flowise by _try_jsonb().
    when invalid_text_representation or untranslatable_character then
        raise exception 'no version can be kept of a row of %: %', (workflow).target, sqlerrm using errcode = 'PA203';
end
$$;
comment on function pgaudit_wf._check_graphs(pgaudit_wf.workflow_attachment, text[]) is
    'Raises PA203 or PA304, naming the row, where a table has a graph that cannot be kept or restored. '
    'Rows that the caller may not read are not looked at.';

create function pgaudit_wf.attach_workflow(
    target regclass,
    nodes_column text default null,
    edges_column text default null,
    resource_type text default null,
    id_columns text[] default null,
    org_column text default null,
    label_column text default null,
    ignore text[] default null,
    redact text[] default null,
    on_failure text default null,
    name_column text default null,
    description_column text default null,
    visibility_column text default null,
    enabled_column text default null,
    listed_column text default null,
    listing_columns text[] default null,
    max_value integer default null,
    shallow text[] default null,
    shape text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    workflow pgaudit_wf.workflow_attachment;
    before pgaudit_wf.workflow_attachment;
    columns_now constant text[] := pgaudit_wf._column_names(attach_workflow.target);
    type text;
begin
    perform pgaudit_wf._check_attachable(attach_workflow.target);
    select * into workflow from pgaudit_wf.workflow_attachment as w where w.target = attach_workflow.target;
    if not found then
        type := coalesce(nullif(attach_workflow.resource_type, ''),
            (select a.resource_type from pgaudit_wf.attachment as a where a.target = attach_workflow.target),
            (select relname from pg_class where oid = attach_workflow.target));
        workflow.id_prefix := case when exists (select from pgaudit_wf.workflow_attachment) then replace(type, '/', '.') || '/' else '' end;
        workflow.listing_columns := '{}';
        -- As in the reference application, where a column of that name is there.
        workflow.name_column := case when 'name' = any (columns_now) then 'name' end;
        workflow.description_column := case when 'description' = any (columns_now) then 'description' end;
        workflow.visibility_column := case when 'visibility' = any (columns_now) then 'visibility' end;
        workflow.enabled_column := case when 'enabled' = any (columns_now) then 'enabled' end;
        workflow.shape := 'reactflow';
        workflow.listed_column := case when 'listed' = any (columns_now) then 'listed' end;
    end if;
    before := workflow;
    workflow.target := attach_workflow.target;
    workflow.shape := coalesce(nullif(attach_workflow.shape, ''), workflow.shape);
    if workflow.shape <> before.shape then
        workflow.nodes_column := null;
        workflow.edges_column := null;
    end if;
    workflow.nodes_column := nullif(coalesce(attach_workflow.nodes_column, workflow.nodes_column, case workflow.shape
        when 'reactflow' then 'nodes' when 'n8n' then 'nodes' when 'flowise' then 'flowData' end), '');
    workflow.edges_column := nullif(coalesce(attach_workflow.edges_column, workflow.edges_column, case workflow.shape
        when 'reactflow' then 'edges' when 'n8n' then 'connections' end), '');
    perform pgaudit_wf._check_shape(workflow);
    workflow.name_column := nullif(coalesce(attach_workflow.name_column, workflow.name_column), '');
    workflow.description_column := nullif(coalesce(attach_workflow.description_column, workflow.description_column), '');
    workflow.visibility_column := nullif(coalesce(attach_workflow.visibility_column, workflow.visibility_column), '');
    workflow.enabled_column := nullif(coalesce(attach_workflow.enabled_column, workflow.enabled_column), '');
    workflow.listed_column := nullif(coalesce(attach_workflow.listed_column, workflow.listed_column), '');
    workflow.listing_columns := coalesce(attach_workflow.listing_columns, workflow.listing_columns);
    if workflow.listed_column is not null and workflow.listed_column <> all (workflow.listing_columns) then
        workflow.listing_columns := workflow.listed_column || workflow.listing_columns;
    end if;
    perform pgaudit_wf._check_workflow_columns(workflow);
    if (workflow.shape, workflow.nodes_column, workflow.edges_column)
        is distinct from (before.shape, before.nodes_column, before.edges_column)
    then
        perform pgaudit_wf._check_graphs(workflow, attach_workflow.id_columns);
    end if;

    insert into pgaudit_wf.workflow_attachment select workflow.*
    on conflict on constraint workflow_attachment_pkey do update
    set (shape, nodes_column, edges_column, name_column, description_column, visibility_column, enabled_column, listed_column,
            listing_columns)
        = (workflow.shape, workflow.nodes_column, workflow.edges_column, workflow.name_column, workflow.description_column,
            workflow.visibility_column,
            workflow.enabled_column, workflow.listed_column, workflow.listing_columns);
    perform pgaudit_wf.attach(
        attach_workflow.target, attach_workflow.resource_type, attach_workflow.id_columns, attach_workflow.org_column,
        coalesce(attach_workflow.label_column, case when not exists (
            select from pgaudit_wf.attachment as a where a.target = attach_workflow.target) then workflow.name_column end),
        attach_workflow.ignore, attach_workflow.redact, attach_workflow.on_failure, attach_workflow.max_value, attach_workflow.shallow);
end
$$;
comment on function pgaudit_wf.attach_workflow(
    regclass, text, text, text, text[], text, text, text[], text[], text, text, text, text, text, text, text[], integer, text[], text
) is
    'attach() for a table that holds workflows: also keeps versions in workflow_history, '
    'one for every save that changes something meaningful in the graph (nodes_column, edges_column: '
    'nodes and edges unless said otherwise) or in name, description, visibility, enabled or the listing. '
    'Events then carry content_hash in place of the graph. Enabling or listing an invalid definition is refused (PA301). '
    'The name, description, visibility, enabled and listed columns are taken by those names where they are there; '''' for none. '
    'shape says how the graph is stored: reactflow (arrays in jsonb or json; the default), '
    'n8n (nodes and connections in jsonb, json or text), flowise (all of it in one column, flowData), or a schema with functions '
    'nodes(row) and edges(row), which return jsonb in React Flow''s form and run with the rights of whoever writes, '
    'and back(row, nodes, edges), without which restore_workflow() cannot restore. Only reactflow graphs are validated. '
    'All rows are read first: raises PA203 where one has a graph of which no version can be kept, PA304 where back() does not lead '
    'back to the row, PA002 on a column that is missing or of the wrong type, PA008 on a shape that is none, '
    'and whatever attach() raises.';

create function pgaudit_wf.detach_workflow(target regclass) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$ select pgaudit_wf.detach(detach_workflow.target) $$;
comment on function pgaudit_wf.detach_workflow(regclass) is
    'Stops keeping versions of a table, and recording it: detach() by the name that goes with attach_workflow(). '
    'Versions and events stay. Raises PA005 if it is not attached.';

create function pgaudit_wf._check_definition(nodes jsonb, edges jsonb, doing text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problems jsonb;
begin
    select jsonb_agg(to_jsonb(p)) into problems from pgaudit_wf.validate_definition(_check_definition.nodes, _check_definition.edges) as p;
    if problems is not null then
        raise exception 'the workflow cannot be % with % problem%: %', doing, jsonb_array_length(problems),
            case when jsonb_array_length(problems) = 1 then '' else 's' end,
            (select string_agg(problem ->> 'message', '; ' order by position)
                from jsonb_array_elements(problems) with ordinality as listed (problem, position) where position <= 5)
            using errcode = 'PA301', detail = problems::text,
                hint = 'Fix them and retry; pgaudit_wf.validate_definition(nodes, edges) lists them.';
    end if;
end
$$;
comment on function pgaudit_wf._check_definition(jsonb, jsonb, text) is
    'Raises PA301 with the problems (as JSON in the detail) of a definition that is about to be enabled, listed or run.';

create function pgaudit_wf._is_restored(target regclass, stamped boolean) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Every script of pg_dump and pg_restore sets it, whatever its options; applications have no use for it.
    restoring constant boolean := current_setting('check_function_bodies') = 'off';
begin
    -- Also where the trigger was set to fire always, as some set all of them when a subscriber takes over.
    if current_setting('session_replication_role') = 'replica' then
        return true;
    end if;
    if not restoring and not (stamped and current_query() ~* e'^\\s*copy\\M') then
        return false;
    end if;
    -- Anybody can claim to restore: believed of those who may disable the trigger, by their login, as the trigger is security definer.
    if pg_has_role(session_user, (select relowner from pg_class where oid = _is_restored.target), 'member') then
        return true;
    end if;
    if restoring and stamped then
        raise exception '% does not own %, so the runs that it restores would be stamped again', session_user, _is_restored.target
            using errcode = 'PA303', hint = 'Restore them as the owner of the table or as a superuser.';
    end if;
    return false;
end
$$;
comment on function pgaudit_wf._is_restored(regclass, boolean) is
    'Whether a row being inserted is one from elsewhere, which is neither judged nor stamped: a replica applies it; '
    'or the owner of the table, a member or a superuser restores it from a dump, or loads it by COPY with a stamp. '
    'Raises PA303 when anybody else restores a row that has a stamp.';

create function pgaudit_wf._guard_function_name(setting pgaudit_wf.attachment) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select 'guard_' || substr((setting).function_name, length('capture_') + 1) $$;
comment on function pgaudit_wf._guard_function_name(pgaudit_wf.attachment) is
    'Name of the guard''s trigger function, derived from that of the capture.';

create function pgaudit_wf._guard_body(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow constant pgaudit_wf.workflow_attachment := pgaudit_wf._usable_workflow((setting).target);
    generic constant boolean := (setting).form = 'generic';
    checks text[] := '{}';
    switch record;
begin
    if not exists (
        select from pgaudit_wf.workflow_attachment as w
        where w.target = (setting).target and w.shape = 'reactflow' and coalesce(w.enabled_column, w.listed_column) is not null)
    then
        return null;
    end if;
    for switch in
        select name, doing from (values (workflow.enabled_column, 'enabled'), (workflow.listed_column, 'listed')) as s (name, doing)
        where name is not null
    loop
        checks := checks || pgaudit_wf._fill(
$check$if {{goes live}} and not pgaudit_wf._is_restored(tg_relid, false) then
    perform pgaudit_wf._check_definition({{nodes}}, {{edges}}, {{doing}});
end if;$check$,
            case when generic then jsonb_build_object(
                'goes live', format('after -> %1$L = ''true'' and (before -> %1$L = ''true'') is not true', switch.name),
                'nodes', format('after -> %L', workflow.nodes_column),
                'edges', format('after -> %L', workflow.edges_column))
            else jsonb_build_object(
                'goes live', format('%s and (tg_op = ''INSERT'' or %s is not true)',
                    pgaudit_wf._field('new', switch.name), pgaudit_wf._field('old', switch.name)),
                'nodes', pgaudit_wf._record_value(setting, 'new', workflow.nodes_column),
                'edges', pgaudit_wf._record_value(setting, 'new', workflow.edges_column)) end
            || jsonb_build_object('doing', quote_literal(switch.doing)));
    end loop;
    return array_to_string(pgaudit_wf._fill($body$
-- Keeps an invalid workflow from going live; written by pgaudit_wf.attach_workflow(). Columns as of {{shape}}.
{{variables}}
begin
    {{check of the place}}
    {{rows as JSON}}
    {{checks}}
    return new;
end
$body$,
        jsonb_build_object(
            'shape', pgaudit_wf._shape_of((setting).target),
            'variables', case when generic then array[
                'declare',
                format('    setting constant pgaudit_wf.generic_setting := %s;', pgaudit_wf._describe_generic(setting)),
                '    before jsonb;',
                '    after jsonb;'] else '{}' end,
            'check of the place', pgaudit_wf._check_place((setting).target, pgaudit_wf._guard_function_name(setting)),
            'rows as JSON', case when generic then pgaudit_wf._fill(
$rows$after := pgaudit_wf._generic_op(new, setting) -> 'row';
{{new names}}
if tg_op = 'UPDATE' then
    before := pgaudit_wf._generic_op(old, setting) -> 'row';
    {{old names}}
end if;$rows$,
                jsonb_build_object(
                    'new names', pgaudit_wf._follow_names(setting, 'after'),
                    'old names', pgaudit_wf._follow_names(setting, 'before'))) else '{}' end,
            'checks', checks)), e'\n');
end
$$;
comment on function pgaudit_wf._guard_body(pgaudit_wf.attachment) is
    'The body of the trigger function that refuses to enable or list an invalid workflow; null for other tables.';
