-- undo_plan() and undo(): with the rights of the caller, whose policies and triggers apply.

create type pgaudit_wf.undo_row as (
    target regclass,
    resource_type text,
    resource_id text,
    operation text,
    put_back jsonb,
    events bigint[],
    conflicts jsonb,
    decision text
);
comment on type pgaudit_wf.undo_row is
    'A row that undo() changes: its table and key, whether it is inserted, updated or deleted, with which values, which events that undoes '
    '(newest first), what stands against it, and what is done about that: undo, skip or abort.';

create function pgaudit_wf._check_undo_options(on_conflict jsonb) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    wrong record;
begin
    if jsonb_typeof(on_conflict) <> 'object' then
        raise exception 'on_conflict is not a JSON object' using errcode = 'PA008', hint = 'Write {"changed": "skip"}, for example.';
    end if;
    select option.key, option.value, known.overwritable into wrong
    from jsonb_each(on_conflict) as option
    left join (values
        ('changed', true), ('exists', true), ('redacted', true), ('digested', true), ('ignored', true), ('dropped', true),
        ('altered', true), ('cascade', true), ('gone', false), ('other_org', false), ('foreign_key', false), ('unique', false),
        ('constraint', false), ('refused', false), ('unversioned', false), ('truncated', false), ('rewritten', false),
        ('detached', false), ('ambiguous', false), ('keyless', false)) as known (kind, overwritable) on known.kind = option.key
    where known.kind is null or option.value not in ('"abort"', '"skip"', '"overwrite"')
        or (option.value = '"overwrite"' and not known.overwritable)
    limit 1;
    if wrong.key is null then
        return;
    elsif wrong.overwritable is null then
        raise exception 'on_conflict names "%", which is not a kind of conflict', wrong.key
            using errcode = 'PA008', hint = 'docs/how-to/undo.md lists them.';
    end if;
    raise exception 'on_conflict has % for "%"', wrong.value, wrong.key
        using errcode = 'PA008', hint = format('It can be "abort" (the default)%s.',
            case when wrong.overwritable then ', "skip" or "overwrite"' else ' or "skip"' end);
end
$$;
comment on function pgaudit_wf._check_undo_options(jsonb) is 'Raises PA008 if on_conflict is not {kind: "abort", "skip" or "overwrite"}.';

create function pgaudit_wf._undo_decision(conflicts jsonb, on_conflict jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case when bool_or(chosen = 'abort') then 'abort' when bool_or(chosen = 'skip') then 'skip' else 'undo' end
    from jsonb_array_elements(conflicts) as conflict,
    lateral (select coalesce(on_conflict ->> (conflict ->> 'kind'), 'abort')) as c (chosen)
$$;
comment on function pgaudit_wf._undo_decision(jsonb, jsonb) is 'What is done about a row with such conflicts: undo, skip or abort.';

create function pgaudit_wf._undo_dependents(setting pgaudit_wf.attachment, keys text[], by_expression boolean)
returns table (place integer, dependent text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    reference record;
begin
    for reference in
        select c.conrelid::regclass as relation, string_agg(
            format('d.%I = r.%I', own.attname, other.attname), ' and ' order by part.position) as condition
        from pg_constraint as c,
        unnest(c.conkey, c.confkey) with ordinality as part (number, other_number, position),
        pg_attribute as own, pg_attribute as other
        where c.contype = 'f' and c.confrelid = (setting).target and c.conparentid = 0 and c.confdeltype in ('c', 'n', 'd')
            and own.attrelid = c.conrelid and own.attnum = part.number and other.attrelid = c.confrelid and other.attnum = part.other_number
        group by c.oid
    loop
        if not has_table_privilege(reference.relation, 'select') then
            return query select p, reference.relation::text from generate_subscripts(keys, 1) as p;
            continue;
        end if;
        return query execute array_to_string(pgaudit_wf._fill(
            'select distinct b.place::integer, {{name}} from unnest($1) with ordinality as b (key, place) '
            'join {{table}} as r on {{match}} join {{dependent}} as d on {{condition}} {{others}}',
            jsonb_build_object('name', quote_literal(reference.relation::text), 'table', pgaudit_wf._only((setting).target),
                'match', pgaudit_wf._undo_match(setting, 'r', by_expression),
                'dependent', reference.relation::text, 'condition', reference.condition,
                'others', case when reference.relation = (setting).target then format(
                    'where not exists (select from unnest($1) as b (key) where %s)', pgaudit_wf._undo_match(setting, 'd', by_expression))
                    else '' end)), e'\n') using keys;
    end loop;
end
$$;
comment on function pgaudit_wf._undo_dependents(pgaudit_wf.attachment, text[], boolean) is
    'Which of the rows to be deleted (by their place) others refer to that would be deleted or changed along with them.';

create function pgaudit_wf._undo_graph(setting pgaudit_wf.attachment, resource_id text, hash text, below integer)
returns table (version integer, graph jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select h.version, pgaudit_wf._snapshot_columns(h.snapshot, w.shape, array_remove(array[w.nodes_column, w.edges_column], null))
    from pgaudit_wf.workflow_attachment as w
    join pgaudit_wf.workflow_history as h on h.workflow_id = pgaudit_wf._workflow_id(w.id_prefix, _undo_graph.resource_id)
    where w.target = (setting).target and h.content_hash = _undo_graph.hash and h.snapshot is not null
        and (_undo_graph.below is null or h.version < _undo_graph.below)
    order by h.version desc limit 1
$$;
comment on function pgaudit_wf._undo_graph(pgaudit_wf.attachment, text, text, integer) is
    'The newest version of a workflow with that content_hash, before a version, and its graph as texts, by column; '
    'no graph if the version does not lead back to them.';

create function pgaudit_wf._record_key(setting pgaudit_wf.attachment, record jsonb) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._bounded_key(case when cardinality(names) > 1 then (
            select jsonb_agg(record -> name order by position) from unnest(names) with ordinality as k (name, position))::text
        else record ->> names[1] end)
    from pgaudit_wf._key_columns(setting) as names
$$;
comment on function pgaudit_wf._record_key(pgaudit_wf.attachment, jsonb) is 'resource_id of a recorded row.';

create function pgaudit_wf._failure_kind(code text) returns text
language sql immutable
as $$
    select case when code in ('23503', '23001') then 'foreign_key' when code in ('23505', '23P01') then 'unique'
        when code ~ '^23' then 'constraint' else 'refused' end
$$;
comment on function pgaudit_wf._failure_kind(text) is 'The kind of conflict that an SQLSTATE is.';

create function pgaudit_wf._undo_write(
    setting pgaudit_wf.attachment, statement text, checked_names text[], by_expression boolean, caller_path text,
    keys text[], keys_after text[], puts jsonb[], wanted jsonb[], undoing text, restoring text
) returns integer[]
language plpgsql
set search_path = pg_catalog, pg_temp
set intervalstyle = 'postgres'
set lc_monetary = 'C'
as $$
declare
    written bigint;
    altered integer[];
begin
    perform set_config('pgaudit_wf.undoing', undoing, true), set_config('pgaudit_wf.restoring', coalesce(restoring, ''), true);
    -- The table's triggers find what they name as they do for the caller.
    perform set_config('search_path', caller_path, true);
    execute statement using keys, puts;
    get diagnostics written = row_count;
    perform set_config('search_path', 'pg_catalog, pg_temp', true);
    perform set_config('pgaudit_wf.undoing', '', true), set_config('pgaudit_wf.restoring', '', true);
    if written <> cardinality(keys) then
        raise exception 'a trigger or policy of % kept % of % rows as they are', (setting).target, cardinality(keys) - written,
            cardinality(keys) using errcode = 'no_data_found';
    end if;
    if checked_names is not null then
        altered := array(
            select r.place from pgaudit_wf._undo_read(setting, checked_names, keys_after, by_expression) as r
            where exists (
                select from jsonb_each(wanted[r.place]) as member
                where r.record ? member.key and r.record -> member.key is distinct from member.value));
    end if;
    return altered;
end
$$;
comment on function pgaudit_wf._undo_write(
    pgaudit_wf.attachment, text, text[], boolean, text, text[], text[], jsonb[], jsonb[], text, text) is
    'Runs a statement of _undo_statement(), whose events then say what they undo. '
    'Returns the places of the rows that got other values than wanted, if checked.';

create function pgaudit_wf._is_checked(target regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_attribute where attrelid = _is_checked.target and attgenerated = 's' and not attisdropped)
        or exists (
            select from pg_trigger
            where (tgrelid = _is_checked.target or tgrelid in (select relid from pg_partition_tree(_is_checked.target)))
                and not tgisinternal and tgenabled <> 'D'
                and tgname !~ '^!?pgaudit_wf_'
                -- Of pg_trigger's flags: for each row (1), before it (2), insert (4) or update (16).
                and tgtype & 3 = 3 and tgtype & 20 <> 0)
$$;
comment on function pgaudit_wf._is_checked(regclass) is
    'Whether what is written to a table may come to be something else, by a trigger or a generated column.';

create type pgaudit_wf.undo_outcome as (place integer, result pgaudit_wf.undo_row);
comment on type pgaudit_wf.undo_outcome is 'What became of a row of a list, by its place.';

create function pgaudit_wf._undo_run(run pgaudit_wf.undo_group[], on_conflict jsonb, org_id text, caller_path text)
returns setof pgaudit_wf.undo_outcome
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_variable
declare
    size constant integer := cardinality(run);
    place integer;
    result pgaudit_wf.undo_row;
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = run[1].target);
    columns constant pgaudit_wf.undo_columns := pgaudit_wf._undo_columns(setting);
    types constant pgaudit_wf.undo_column[] := pgaudit_wf._undo_types(run[1].target);
    checked constant boolean := pgaudit_wf._is_checked(run[1].target);
    keys constant text[] := array(
        select item.resource_id from unnest(run) with ordinality
            as item (target, resource_type, resource_id, op, problem, ids, tx_ids, times, position) order by item.position);
    key_columns constant text[] := pgaudit_wf._key_columns(setting);
    by_text constant boolean := exists (select from unnest(types) as t where t.as_text is not null);
    renamed_at constant timestamptz := (
        select max(h.occurred_at) from pgaudit_wf.attachment_history as h
        where h.resource_type = run[1].resource_type and h.detail ? 'renamed');
    by_expression boolean := false;
    whole boolean := false;
    names text[] := '{}';
    name text;
    event record;
    event_places integer[] := '{}';
    diffs jsonb[] := '{}';
    versions integer[] := array_fill(null::integer, array[size]);
    next_event integer := 1;
    found record;
    before_rows jsonb[] := array_fill(null::jsonb, array[size]);
    before_nulls text[] := array_fill('{}'::text, array[size]);
    before_digested text[] := array_fill('{}'::text, array[size]);
    found_counts integer[] := array_fill(0, array[size]);
    state pgaudit_wf.undo_state;
    results pgaudit_wf.undo_row[] := array_fill(null::pgaudit_wf.undo_row, array[size]);
    row_after jsonb;
    nulls_before text[];
    wanted jsonb;
    put jsonb;
    graph jsonb;
    graph_version integer;
    write_places integer[] := '{}';
    write_keys text[] := array_fill(null::text, array[size]);
    write_names text[] := array_fill(null::text, array[size]);
    write_restores integer[] := array_fill(null::integer, array[size]);
    puts jsonb[] := array_fill(null::jsonb, array[size]);
    wanted_rows jsonb[] := array_fill(null::jsonb, array[size]);
    part record;
    places integer[];
    altered integer[];
    undoing text;
begin
    if run[1].problem is not null then
        for place_number in 1 .. size loop
            place := place_number;
            result := row(run[place].target, run[place].resource_type, run[place].resource_id, null, null, run[place].ids,
                jsonb_build_array(jsonb_build_object('kind', run[place].problem)), null);
            result.decision := pgaudit_wf._undo_decision(result.conflicts, on_conflict);
            return next row(place, result)::pgaudit_wf.undo_outcome;
        end loop;
        return;
    end if;

    for event in select e.* from pgaudit_wf._undo_events(run) as e loop
        if event.occurred_at < renamed_at then
            event.diff := pgaudit_wf._follow_renames(event.diff, run[1].resource_type, event.occurred_at);
        end if;
        event_places := event_places || event.place;
        diffs := diffs || event.diff;
        versions[event.place] := event.version;
        for number in 0 .. jsonb_array_length(event.diff) - 1 loop
            name := event.diff -> number ->> 'path';
            whole := whole or name = '';
            name := pgaudit_wf._unpointer('/' || split_part(name, '/', 2));
            if name <> all (names) then
                names := names || name;
            end if;
        end loop;
    end loop;
    if whole then
        names := columns.restorable || columns.generated;
    end if;
    loop
        begin
            for found in select r.* from pgaudit_wf._undo_read(setting, names, keys, by_expression) as r loop
                before_rows[found.place] := found.record;
                before_nulls[found.place] := found.nulls;
                before_digested[found.place] := found.digested;
                found_counts[found.place] := found_counts[found.place] + 1;
            end loop;
            exit;
        exception
            -- The key had another type once, or is recorded by its digest.
            when data_exception then
                if by_expression then
                    raise;
                end if;
                by_expression := true;
                found_counts := array_fill(0, array[size]);
        end;
    end loop;
    if not by_expression and exists (select from unnest(keys) as key where starts_with(key, 'sha256:')) then
        by_expression := true;
        for found in select r.* from pgaudit_wf._undo_read(setting, names, keys, by_expression) as r loop
            before_rows[found.place] := found.record;
            before_nulls[found.place] := found.nulls;
            before_digested[found.place] := found.digested;
            found_counts[found.place] := greatest(found_counts[found.place], 1);
        end loop;
    end if;

    for place_number in 1 .. size loop
        place := place_number;
        nulls_before := before_nulls[place];
        state := row(before_rows[place], nulls_before, '[]', before_digested[place]);
        while event_places[next_event] = place loop
            state := pgaudit_wf._undo_event(state, diffs[next_event], columns);
            next_event := next_event + 1;
        end loop;
        row_after := state.record;
        result := row(run[place].target, run[place].resource_type, run[place].resource_id,
            case when before_rows[place] is null then 'insert' when row_after is null then 'delete' else 'update' end,
            null, run[place].ids, state.conflicts, 'undo');
        wanted := null;
        graph := null;
        if before_rows[place] is null and row_after is null then
            -- Gone already, as it was to be.
            continue when state.conflicts = '[]' or run[place].op = 'delete';
            result.operation := null;
        elsif before_rows[place] is null then
            wanted := row_after;
        elsif row_after is not null then
            wanted := coalesce((
                select jsonb_object_agg(member.key, member.value) from jsonb_each(row_after) as member
                where record_image_ne(row(member.value), row(before_rows[place] -> member.key))
                    or (member.key = any (nulls_before)) <> (member.key = any (state.nulls))), '{}');
        end if;
        put := wanted - columns.generated;
        -- As it was to be already.
        continue when result.operation = 'update' and put = '{}' and row_after ?& array(select jsonb_object_keys(before_rows[place]))
            and not exists (
                select from jsonb_array_elements(result.conflicts) as c where c ->> 'kind' not in ('changed', 'exists'));
        result.put_back := put;
        if found_counts[place] > 1 then
            result.conflicts := pgaudit_wf._with_conflict(result.conflicts, 'ambiguous');
        end if;
        if org_id is not null and setting.org_column = any (setting.columns)
            and ((before_rows[place] is not null and before_rows[place] ->> setting.org_column is distinct from org_id)
                or (row_after ? setting.org_column and row_after ->> setting.org_column is distinct from org_id))
        then
            result.conflicts := pgaudit_wf._with_conflict(result.conflicts, 'other_org');
            -- Its values are for its own organization.
            result.put_back := null;
        end if;
        if put ? 'content_hash' and 'content_hash' = any (columns.restorable) then
            select g.version, g.graph into graph_version, graph
            from pgaudit_wf._undo_graph(setting, run[place].resource_id, put ->> 'content_hash', versions[place]) as g;
            if graph is null then
                result.conflicts := pgaudit_wf._with_conflict(result.conflicts, 'unversioned', 'content_hash');
            end if;
            put := put - 'content_hash';
            write_restores[place] := graph_version;
        elsif versions[place] > 1 then
            write_restores[place] := versions[place] - 1;
        end if;
        wanted_rows[place] := wanted;
        puts[place] := case when by_text then pgaudit_wf._undo_payload(put, state.nulls, types) else put end || coalesce(graph, '{}');
        write_names[place] := array(select jsonb_object_keys(puts[place]))::text;
        if result.operation = 'insert' or put ?| key_columns then
            write_keys[place] := pgaudit_wf._record_key(setting, coalesce(before_rows[place], '{}') || row_after);
        end if;
        results[place] := result;
    end loop;

    if exists (select from unnest(results) as r where r.operation = 'delete') then
        for part in
            select d.place, d.dependent from pgaudit_wf._undo_dependents(setting, keys, by_expression) as d
            where (results[d.place]).operation = 'delete'
        loop
            result := results[part.place];
            result.conflicts := result.conflicts || jsonb_build_object('kind', 'cascade', 'table', part.dependent);
            results[part.place] := result;
        end loop;
    end if;
    for place_number in 1 .. size loop
        place := place_number;
        continue when (results[place]).resource_type is null;
        result := results[place];
        if result.conflicts <> '[]' then
            result.conflicts := (
                select jsonb_agg(c || case when c ->> 'kind' in ('changed', 'gone', 'exists') then
                        pgaudit_wf._blame(result.resource_type, result.resource_id, result.events, c ->> 'kind', c ->> 'column')
                        || case when c ->> 'kind' = 'changed' and not result.conflicts @> '[{"kind": "other_org"}]'
                            then jsonb_build_object('found', before_rows[place] -> (c ->> 'column')) else '{}' end
                    else '{}' end)
                from jsonb_array_elements(result.conflicts) as c);
            result.decision := pgaudit_wf._undo_decision(result.conflicts, on_conflict);
            results[place] := result;
        end if;
        if result.decision = 'undo' and (result.operation = 'delete' or write_names[place] <> '{}') then
            write_places := write_places || place;
        end if;
    end loop;

    for part in
        select w.op, w.names::text[] as names, w.restores, array_agg(w.place order by w.place) as places
        from (
            select p as place, (results[p]).operation as op, write_names[p] as names,
                case when (results[p]).operation = 'update' then write_restores[p] end as restores
            from unnest(write_places) as p) as w
        group by w.op, w.names, w.restores
    loop
        places := part.places;
        while places <> '{}' loop
            altered := '{}';
            undoing := (
                select string_agg(e'\n' || to_json(setting.resource_type)::text || to_json(k)::text || ':'
                    || array_to_string((results[p]).events[:1000], ','), '' order by p) || e'\n'
                from unnest(places) as p, lateral (select keys[p] union select write_keys[p]) as known (k) where k is not null);
            begin
                altered := pgaudit_wf._undo_write(setting, pgaudit_wf._undo_statement(setting, part.op, part.names, types, by_expression),
                    case when checked and part.op <> 'delete' then part.names || columns.generated end, by_expression, caller_path,
                    array(select keys[p] from unnest(places) with ordinality as o (p, n) order by n),
                    array(select coalesce(write_keys[p], keys[p]) from unnest(places) with ordinality as o (p, n) order by n),
                    array(select puts[p] from unnest(places) with ordinality as o (p, n) order by n),
                    array(select wanted_rows[p] from unnest(places) with ordinality as o (p, n) order by n),
                    undoing, part.restores::text);
                if altered <> '{}' and coalesce(on_conflict ->> 'altered', 'abort') <> 'overwrite' then
                    raise exception using errcode = 'UN001';
                end if;
                exit;
            exception
                when others then
                    -- What goes away when it is tried again, and what the caller may not do, is for the caller.
                    if sqlstate ~ '^(40|53|57|58|XX|55P03|42501)' then
                        raise;
                    elsif sqlstate = 'UN001' then
                        for place in select places[n] from unnest(altered) as n loop
                            result := results[place];
                            result.conflicts := result.conflicts || '{"kind": "altered"}';
                            result.decision := coalesce(on_conflict ->> 'altered', 'abort');
                            results[place] := result;
                        end loop;
                        places := array(select places[n] from generate_subscripts(places, 1) as n where n <> all (altered) order by n);
                        continue;
                    end if;
                    foreach place in array places loop
                        result := results[place];
                        -- Tried again, alone, after those that it may depend on.
                        result.decision := 'retry';
                        if size = 1 then
                            result.conflicts := result.conflicts || jsonb_build_object(
                                'kind', pgaudit_wf._failure_kind(sqlstate), 'sqlstate', sqlstate, 'message', sqlerrm);
                        end if;
                        results[place] := result;
                    end loop;
                    exit;
            end;
        end loop;
    end loop;
    for place_number in 1 .. size loop
        place := place_number;
        result := results[place];
        if result.resource_type is not null then
            return next row(place, result)::pgaudit_wf.undo_outcome;
        end if;
    end loop;
end
$$;
comment on function pgaudit_wf._undo_run(pgaudit_wf.undo_group[], jsonb, text, text) is
    'Undoes rows of one table, each by its place in the list: those against which nothing stands, or nothing that counts. '
    'Decision "retry": it failed, perhaps for what is yet to come. org_id: the only organization whose rows may be changed; null: any.';

create function pgaudit_wf._deferred_failure(out kind text, out code text, out message text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    begin
        set constraints all immediate;
        -- They stay as they were set.
        raise exception using errcode = 'UN000';
    exception
        when sqlstate 'UN000' then
            null;
    end;
exception
    when integrity_constraint_violation then
        kind := pgaudit_wf._failure_kind(sqlstate);
        code := sqlstate;
        message := sqlerrm;
end
$$;
comment on function pgaudit_wf._deferred_failure() is 'The first constraint that would fail at the end of the transaction; null: none.';

create function pgaudit_wf._undo(
    event_id bigint, correlation_id text, tx_id bigint, actor_id text, api_key_id text, tables regclass[],
    since timestamptz, until timestamptz, on_conflict jsonb, dry boolean, caller_path text
) returns setof pgaudit_wf.undo_row
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    restricted constant boolean := row_security_active('pgaudit_wf.security_audit_log');
    org constant text := case when restricted then pgaudit_wf._readable_org() end;
    choices constant jsonb := coalesce(_undo.on_conflict, '{}');
    groups cursor for
        select g.* from pgaudit_wf._undo_groups(
            event_id, correlation_id, tx_id, actor_id, api_key_id, tables, since, until, org) as g;
    item pgaudit_wf.undo_group;
    is_read boolean := false;
    slice pgaudit_wf.undo_group[];
    pending pgaudit_wf.undo_group[] := '{}';
    tried integer := 0;
    one_by_one boolean := false;
    is_stuck boolean := false;
    part record;
    made record;
    result pgaudit_wf.undo_row;
    deferred record;
    read_rows bigint := 0;
    done_rows bigint := 0;
    conflict_rows bigint := 0;
    first_conflicts text[] := '{}';
begin
    if num_nonnulls(event_id, correlation_id, tx_id, actor_id, api_key_id) = 0 then
        raise exception 'undo needs an event, a request, a transaction, an actor or an API key whose changes it is to undo'
            using errcode = 'PA008', hint = 'Pass event_id, correlation_id, tx_id, actor_id or api_key_id.';
    end if;
    perform pgaudit_wf._check_undo_options(choices);
    if restricted and org is null then
        raise exception 'only owners and admins of an organization may undo what was done in it'
            using errcode = 'PA006',
                hint = 'Set app.org_id and app.actor_id in the transaction; '
                    'pgaudit_wf.org_member must list the actor as an owner or admin of the organization.';
    end if;
    if exists (select from unnest(tables) as t where t is null or t not in (select a.target from pgaudit_wf.attachment as a)) then
        raise exception 'not all of these tables are attached: %', array_to_string(tables, ', ')
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists the attached tables.';
    end if;
    begin
        open groups;
        loop
            slice := '{}';
            while not is_read and cardinality(slice) < 1000 loop
                fetch groups into item;
                is_read := not found;
                if not is_read then
                    slice := slice || item;
                    read_rows := read_rows + 1;
                end if;
            end loop;
            if cardinality(slice) = 0 then
                exit when cardinality(pending) = 0;
                -- Again what failed, as long as that helps: several rows by a statement, then each by itself.
                is_stuck := one_by_one and cardinality(pending) = tried;
                one_by_one := one_by_one or cardinality(pending) = tried;
                tried := cardinality(pending);
                slice := pending;
                pending := '{}';
            end if;
            for part in select r.run, r.positions from pgaudit_wf._undo_runs(slice, one_by_one) as r loop
                for made in select r.place, r.result from pgaudit_wf._undo_run(part.run, choices, org, caller_path) as r loop
                    result := made.result;
                    if result.decision = 'retry' and not is_stuck then
                        pending := pending || slice[part.positions[made.place]];
                        continue;
                    elsif result.decision = 'retry' then
                        result.decision := pgaudit_wf._undo_decision(result.conflicts, choices);
                    end if;
                    done_rows := done_rows + 1;
                    if result.decision = 'abort' then
                        conflict_rows := conflict_rows + 1;
                        if conflict_rows <= 10 then
                            first_conflicts := first_conflicts || format('%s %s: %s', result.resource_type, result.resource_id,
                                (select string_agg(distinct c ->> 'kind', ', ') from jsonb_array_elements(result.conflicts) as c));
                        end if;
                    end if;
                    return next result;
                    if done_rows % 10000 = 0 then
                        raise notice 'undo: % rows', done_rows;
                    end if;
                end loop;
            end loop;
        end loop;
        close groups;
        select d.* into deferred from pgaudit_wf._deferred_failure() as d where d.kind is not null;
        if found then
            conflict_rows := conflict_rows + 1;
            first_conflicts := first_conflicts || deferred.message;
            result := row(null, null, null, null, null, '{}', jsonb_build_array(jsonb_build_object(
                'kind', deferred.kind, 'sqlstate', deferred.code, 'message', deferred.message)), 'abort');
            return next result;
        end if;
        if dry then
            -- Nothing of it stays.
            raise exception using errcode = 'UN000';
        end if;
    exception
        when sqlstate 'UN000' then
            null;
    end;
    if dry then
        return;
    elsif conflict_rows > 0 then
        raise exception 'undo stopped, as % of % rows have conflicts', conflict_rows, done_rows
            using errcode = 'PA510', detail = array_to_string(first_conflicts, e'\n'),
                hint = 'pgaudit_wf.undo_plan() lists them all; on_conflict says what to do about each kind, such as {"changed": "skip"}.';
    elsif read_rows = 0 then
        raise exception 'there is no change of an attached table to undo'
            using errcode = 'PA511',
                hint = 'The trail shows which changes a trigger recorded (captured), as far as you may read it; '
                    'one that was followed by its opposite leaves nothing to undo.';
    end if;
end
$$;
comment on function pgaudit_wf._undo(
    bigint, text, bigint, text, text, regclass[], timestamptz, timestamptz, jsonb, boolean, text) is
    'undo() or, dry, undo_plan(): all the same, then rolled back.';

create function pgaudit_wf.undo_plan(
    event_id bigint default null,
    correlation_id text default null,
    tx_id bigint default null,
    actor_id text default null,
    api_key_id text default null,
    tables regclass[] default null,
    since timestamptz default null,
    until timestamptz default null,
    on_conflict jsonb default '{}'
) returns setof pgaudit_wf.undo_row
-- Without "set": the search_path is the caller's.
language sql
as $$
    select * from pgaudit_wf._undo(undo_plan.event_id, undo_plan.correlation_id, undo_plan.tx_id, undo_plan.actor_id, undo_plan.api_key_id,
        undo_plan.tables, undo_plan.since, undo_plan.until, undo_plan.on_conflict, true, pg_catalog.current_setting('search_path'))
$$;
comment on function pgaudit_wf.undo_plan(
    bigint, text, bigint, text, text, regclass[], timestamptz, timestamptz, jsonb) is
    'What undo() would do with the same arguments, found by doing it and rolling that back: one row for each table row. '
    'operation is insert (it was deleted), update or delete (it was inserted), put_back the values, events those undone, newest first. '
    'conflicts lists what stands against it, [{"kind": …, "column": …, "event_id": …, "actor_id": …, "occurred_at": …}]; '
    'decision is undo, skip or abort. Raises what undo() raises, but for PA510 and PA511.';

create function pgaudit_wf.undo(
    event_id bigint default null,
    correlation_id text default null,
    tx_id bigint default null,
    actor_id text default null,
    api_key_id text default null,
    tables regclass[] default null,
    since timestamptz default null,
    until timestamptz default null,
    on_conflict jsonb default '{}'
) returns setof pgaudit_wf.undo_row
language sql
as $$
    select * from pgaudit_wf._undo(undo.event_id, undo.correlation_id, undo.tx_id, undo.actor_id, undo.api_key_id,
        undo.tables, undo.since, undo.until, undo.on_conflict, false, pg_catalog.current_setting('search_path'))
$$;
comment on function pgaudit_wf.undo(
    bigint, text, bigint, text, text, regclass[], timestamptz, timestamptz, jsonb) is
    'Undoes the captured changes that match all arguments: of an event, a request, a transaction, an actor or an API key; to some tables; '
    'since (inclusive) and until (exclusive) a time. Rows are put back by ordinary statements with the caller''s rights, policies and '
    'triggers; the events of that say in metadata.undoes which ones they undo. Returns the rows, as undo_plan() does. '
    'on_conflict has a choice for each kind of conflict, {"changed": "abort", "skip" or "overwrite"}; abort is the default. '
    'Raises PA510 where a conflict aborts it, PA511 where there is nothing to undo, PA005 (table), PA008 (argument), '
    'PA006 for a reader whose actor is neither an owner nor an admin of app.org_id.';
