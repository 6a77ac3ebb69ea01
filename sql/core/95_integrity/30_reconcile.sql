-- The log against the rows as they are: what changed them without a trigger seeing it.

create type pgaudit_wf.reconcile_finding as (
    kind text,
    resource_id text,
    path text,
    before jsonb,
    after jsonb,
    event_id bigint,
    occurred_at timestamptz
);
comment on type pgaudit_wf.reconcile_finding is
    'Where a row and the log differ. kind: changed (the row has after, the log says before), overwritten (it had after instead of before '
    'when the event event_id changed it), missing (the row was last before, and is gone), '
    'unknown (no event says how the row came to be there); '
    'and slice, the last of a call: before counts what was compared, after is the place to go on from.';

create type pgaudit_wf.replayed as (
    -- null: no event says how the row began; else inserted, deleted, or unrecorded: it went on after its deletion.
    base text,
    known jsonb,
    -- Columns that are known by their digest only.
    digests jsonb,
    -- Operations within a column that had nothing to start from, by column.
    pending jsonb,
    altered integer,
    rewritten boolean,
    event_id bigint,
    occurred_at timestamptz,
    breaks pgaudit_wf.reconcile_finding[]
);
comment on type pgaudit_wf.replayed is 'What the log says of a row, up to an event.';

create function pgaudit_wf._reads_otherwise(logged jsonb, actual jsonb) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    hidden constant jsonb := '"[redacted]"';
    pseudonyms text[];
    texts text[];
    patterns text[];
    pseudonym text;
begin
    -- As the triggers do, which see no change from 1.0 to 1.00.
    if logged is not distinct from actual then
        return false;
    end if;
    texts := array[pgaudit_wf._readable_json(coalesce(logged, 'null'))::text, pgaudit_wf._readable_json(coalesce(actual, 'null'))::text];
    if 'null' = any (texts) then
        return true;
    elsif hidden in (logged, actual) then
        return null;
    elsif texts[1] ~ 'erased-[0-9a-f]{16}' or texts[2] ~ 'erased-[0-9a-f]{16}' then
        pseudonyms := array(select e.pseudonym from pgaudit_wf.erasure as e
            where strpos(texts[1], e.pseudonym) > 0 or strpos(texts[2], e.pseudonym) > 0);
        patterns := array(
            select pgaudit_wf._like_literal(text_part)
            from unnest(texts) with ordinality as part (text_part, position) order by position);
        foreach pseudonym in array pseudonyms loop
            patterns := array[replace(patterns[1], pseudonym, '%'), replace(patterns[2], pseudonym, '%')];
        end loop;
        if texts[1] like patterns[2] or texts[2] like patterns[1] then
            return null;
        end if;
    end if;
    return true;
end
$$;
comment on function pgaudit_wf._reads_otherwise(jsonb, jsonb) is
    'Whether a value differs from the logged one; null where the log cannot tell, as the value is redacted, or an erasure masked it.';

create function pgaudit_wf._digest_of_json(value jsonb) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    text_value constant text := value #>> '{}';
    raw bytea := convert_to(text_value, 'UTF8');
begin
    if text_value ~ e'^\\\\x([0-9a-f]{2})*$' then
        raw := text_value::bytea;
    end if;
    return jsonb_build_object('sha256', encode(sha256(raw), 'hex'), 'bytes', octet_length(raw));
end
$$;
comment on function pgaudit_wf._digest_of_json(jsonb) is
    '_digest() of the value that is shown like this: right for texts, jsonb and bytea, and types that read as JSON as they do as text.';

create function pgaudit_wf._replay_alter(state pgaudit_wf.replayed, altered jsonb) returns pgaudit_wf.replayed
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    state.altered := state.altered + 1;
    if altered ? 'rewritten' then
        -- The columns that the same DDL added follow; of their values only the defaults are known that are the same for all rows.
        state.rewritten := true;
        if altered ->> 'rewritten' = 'changed' then
            state.known := '{}';
            state.digests := '{}';
            state.pending := '{}';
        end if;
        return state;
    end if;
    state.known := pgaudit_wf._alter_row(state.known, altered - case when state.rewritten then 'added' else '' end, false);
    state.digests := pgaudit_wf._alter_row(state.digests, altered - 'added', false);
    -- The paths of what is pending go on naming the column as it was.
    state.pending := case when altered ?| array['renamed', 'dropped'] then '{}' else state.pending end;
    state.rewritten := false;
    return state;
end
$$;
comment on function pgaudit_wf._replay_alter(pgaudit_wf.replayed, jsonb) is
    'What the log says of a row after its table was altered (attachment_history.detail).';

create function pgaudit_wf._replay_break(
    state pgaudit_wf.replayed, resource_id text, path text, logged jsonb, actual jsonb, event_id bigint, occurred_at timestamptz
) returns pgaudit_wf.replayed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if pgaudit_wf._reads_otherwise(logged, actual) then
        state.breaks := state.breaks || row('overwritten', resource_id, path, logged, actual, event_id, occurred_at)
            ::pgaudit_wf.reconcile_finding;
    end if;
    return state;
end
$$;
comment on function pgaudit_wf._replay_break(pgaudit_wf.replayed, text, text, jsonb, jsonb, bigint, timestamptz) is
    'Notes where an event found another value than the events before it left.';

create function pgaudit_wf._replay_event(
    state pgaudit_wf.replayed, resource_id text, event_id bigint, occurred_at timestamptz, diff jsonb
) returns pgaudit_wf.replayed
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    op jsonb;
    path text;
    steps text[];
    digested text[];
begin
    state.event_id := _replay_event.event_id;
    state.occurred_at := _replay_event.occurred_at;
    for op in select jsonb_array_elements(_replay_event.diff) loop
        path := op ->> 'path';
        if path = '' then
            digested := array(select jsonb_array_elements_text(op -> 'digest'));
            if op ->> 'op' = 'remove' then
                for steps in select array[key] from jsonb_object_keys(state.known) as key where op -> 'old' ? key and key <> all (digested)
                loop
                    state := pgaudit_wf._replay_break(state, _replay_event.resource_id, pgaudit_wf._pointer(steps[1]),
                        state.known -> steps[1], op -> 'old' -> steps[1], event_id, occurred_at);
                end loop;
            end if;
            state.base := case op ->> 'op' when 'add' then 'inserted' else 'deleted' end;
            state.known := coalesce(op -> 'value', '{}') - digested
                || case when op ->> 'op' = 'add' and op ? 'content_hash'
                    then jsonb_build_object('content_hash', op -> 'content_hash') else '{}' end;
            state.digests := coalesce((
                select jsonb_object_agg(name, op -> 'value' -> name) from unnest(digested) as name where op ? 'value'), '{}');
            state.pending := '{}';
            continue;
        end if;
        steps := pgaudit_wf._pointer_steps(path);
        if state.base = 'deleted' then
            state.base := 'unrecorded';
        end if;
        if state.known ? steps[1] and (cardinality(steps) = 1 or state.known #> steps[:cardinality(steps) - 1] is not null) then
            if op ->> 'op' <> 'add' and not coalesce(op -> 'digest' ? 'old', false) then
                state := pgaudit_wf._replay_break(
                    state, _replay_event.resource_id, path, state.known #> steps, op -> 'old', event_id, occurred_at);
            end if;
            state.known := pgaudit_wf._put_side(state.known, op, 'value');
        elsif cardinality(steps) > 1 then
            state.known := state.known - steps[1];
            state.pending := state.pending
                || jsonb_build_object(steps[1], coalesce(state.pending -> steps[1], '[]') || jsonb_build_array(op));
        else
            state.known := pgaudit_wf._put_side(state.known, op, 'value');
        end if;
        state.digests := state.digests - steps[1];
        if cardinality(steps) = 1 then
            state.pending := state.pending - steps[1];
            if op -> 'digest' ? 'value' then
                state.digests := state.digests || jsonb_build_object(steps[1], op -> 'value');
            end if;
        end if;
    end loop;
    return state;
end
$$;
comment on function pgaudit_wf._replay_event(pgaudit_wf.replayed, text, bigint, timestamptz, jsonb) is
    'What the log says of a row after an event, and where the event found something else than the events before it left.';

create function pgaudit_wf._row_history(
    resource_type text, resource_id text, since timestamptz, before_id bigint default 9223372036854775807
) returns table (occurred_at timestamptz, id bigint, diff jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    base record;
    departure record;
begin
    select l.id, l.occurred_at, l.metadata ->> 'previous_resource_id' as previous_id into base
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = _row_history.resource_type and l.resource_id = _row_history.resource_id and l.captured
        and l.occurred_at > since and l.id < before_id and (l.diff -> 0 ->> 'path' = '' or l.metadata ? 'previous_resource_id')
    order by l.occurred_at desc, l.id desc limit 1;
    if base.previous_id is not null then
        return query select h.* from pgaudit_wf._row_history(resource_type, base.previous_id, since, base.id) as h;
    end if;
    select d.id, d.occurred_at into departure
    from pgaudit_wf._row_departure(resource_type, resource_id, coalesce(base.id, -1), before_id, true) as d where d.occurred_at > since;
    if departure.id is not null then
        return query select departure.occurred_at, departure.id, '[{"op": "remove", "path": ""}]'::jsonb;
    end if;
    return query
        select l.occurred_at, l.id, l.diff from pgaudit_wf.security_audit_log as l
        where l.resource_type = _row_history.resource_type and l.resource_id = _row_history.resource_id and l.captured
            and l.occurred_at >= coalesce(base.occurred_at, since) and l.occurred_at > since
            and l.id >= coalesce(base.id, -1) and l.id > coalesce(departure.id, -1) and l.id < before_id;
end
$$;
comment on function pgaudit_wf._row_history(text, text, timestamptz, bigint) is
    'The events of the row that has a key now, or had it before an event, under the keys that it had before, too; '
    'of a row that left the key for another, a deletion.';

create function pgaudit_wf._log_reach(setting pgaudit_wf.attachment,
    out since timestamptz, out pruned_until timestamptz, out truncated_at timestamptz, out was_empty boolean, out highest numeric,
    out off jsonb, out unrecorded bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    baseline jsonb;
    attached_at timestamptz;
    whole constant boolean := (select relkind <> 'p' from pg_class where oid = (setting).target);
begin
    -- What had this resource type before a table was dropped is another table's.
    select max(h.occurred_at) filter (where h.change = 'dropped' or h.change = 'attached' and h.previous is distinct from 'detached'),
        max(h.occurred_at) filter (where h.change = 'attached'),
        jsonb_agg(jsonb_build_array(h.previous_at, h.occurred_at) order by h.occurred_at)
            filter (where h.change = 'attached' and h.previous = 'detached')
    into since, attached_at, off
    from (
        select a.occurred_at, a.change, lag(a.change) over by_time as previous, lag(a.occurred_at) over by_time as previous_at
        from pgaudit_wf.attachment_history as a
        where a.resource_type = (setting).resource_type and a.change in ('attached', 'detached', 'dropped')
        window by_time as (order by a.occurred_at, a.id)
    ) as h;
    select max(a.to_time) into pruned_until from pgaudit_wf.archive as a where a.pruned_at is not null and a.live_events < a.events;
    select max(l.occurred_at) into truncated_at from pgaudit_wf.security_audit_log as l
    where l.action = (setting).resource_type || '.truncated' and l.resource_type = (setting).resource_type and l.captured
        and l.occurred_at > coalesce(since, '-infinity');
    -- Of the table as attach() found it, unless its rows had another type since.
    select h.detail -> 'before' into baseline from pgaudit_wf.attachment_history as h
    where h.resource_type = (setting).resource_type and h.change = 'attached' and h.occurred_at = attached_at
        and not exists (
            select from pgaudit_wf.attachment_history as c
            where c.target = h.target and c.occurred_at > h.occurred_at and c.change = 'changed' and c.resource_type <> h.resource_type);
    if pruned_until > attached_at then
        baseline := null;
    end if;
    was_empty := coalesce(baseline ->> 'rows' = 'none', false)
        or coalesce(whole and truncated_at > greatest(attached_at, pruned_until), false);
    highest := (baseline ->> 'highest')::numeric;
    since := greatest(coalesce(since, '-infinity'), pruned_until, case when whole then truncated_at end);
    unrecorded := (
        select count(*) from pgaudit_wf.capture_failure as f where f.target = (setting).target::text and f.op <> 'COUNT');
end
$$;
comment on function pgaudit_wf._log_reach(pgaudit_wf.attachment) is
    'From when on the log tells what happened to an attached table''s rows, and what it knows of those that were there before: '
    'that there were none (was_empty), or the highest key. truncated_at: when it last was, or one of its partitions; '
    'off: when it was not attached; unrecorded: capture_failure.';

create function pgaudit_wf._reconcile_obstacle(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when not exists (select from pg_class where oid = (setting).target) then 'the table is gone'
        when not has_table_privilege((setting).target, 'select') then format('%s may not read it', quote_ident(current_user))
        when row_security_active((setting).target) then format('row-level security hides rows of it from %s', quote_ident(current_user))
        when pgaudit_wf._key_columns(setting) = '{}' then 'nothing identifies its rows any more'
        when exists (
            select from pgaudit_wf.attachment as a where a.resource_type = (setting).resource_type and a.target <> (setting).target)
            then format('another table is recorded as "%s", too, and the log does not tell them apart', (setting).resource_type)
        when not exists (
            select from pg_index as i
            where i.indrelid = (setting).target and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
                and (select array_agg(attname::text) from pg_attribute
                    where attrelid = i.indrelid and attnum = any (i.indkey[0:i.indnkeyatts - 1])) <@ pgaudit_wf._key_columns(setting))
            then format('no unique index keeps two rows from having the same %s', array_to_string(pgaudit_wf._key_columns(setting), ', '))
    end
$$;
comment on function pgaudit_wf._reconcile_obstacle(pgaudit_wf.attachment) is
    'Why a table cannot be compared with the log; null if it can be.';

create function pgaudit_wf._reconcile_tables(wanted regclass default null) returns table (
    target text, estimate bigint, obstacle text, since timestamptz, pruned_until timestamptz, off jsonb, unrecorded bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    setting pgaudit_wf.attachment;
begin
    if row_security_active('pgaudit_wf.security_audit_log') then
        raise exception '% sees a part of the log only', current_user
            using errcode = 'insufficient_privilege', hint = 'Connect as the schema''s owner or as a superuser.';
    end if;
    if wanted is not null and not exists (select from pgaudit_wf.attachment as a where a.target = wanted) then
        raise exception '% is not attached', wanted
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists the attached tables.';
    end if;
    for setting in select a.* from pgaudit_wf.attachment as a where wanted is null or a.target = wanted order by a.target::text loop
        return query
            select setting.target::text, (
                select sum(greatest(c.reltuples, 0))::bigint from pg_class as c
                where c.oid = setting.target or c.oid in (select relid from pg_partition_tree(setting.target) where isleaf)),
                pgaudit_wf._reconcile_obstacle(setting), r.since, r.pruned_until, r.off, r.unrecorded
            from pgaudit_wf._log_reach(setting) as r;
    end loop;
end
$$;
comment on function pgaudit_wf._reconcile_tables(regclass) is
    'The attached tables (or the wanted one) as they can be compared with the log: about how many rows they have, why not, '
    'since when the log tells, up to when it was pruned, when the table was not attached ([[from, until], …]), '
    'and how many changes on_failure => ''warn'' let through unrecorded. Raises PA005 for a table that is not attached.';

create function pgaudit_wf._try_hash(nodes jsonb, edges jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgaudit_wf.hash_definition(nodes, edges);
exception
    when others then
        return null;
end
$$;
comment on function pgaudit_wf._try_hash(jsonb, jsonb) is 'hash_definition(); null for a malformed definition.';

create function pgaudit_wf._live_op(setting pgaudit_wf.attachment, record_name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    columns constant pgaudit_wf.capture_column[] := array(select pgaudit_wf._capture_columns(setting));
    expression text := format('jsonb_build_object(''value'', %s)', pgaudit_wf._row_expression(setting, record_name));
    large constant text := pgaudit_wf._large_op(columns, record_name);
    workflow constant pgaudit_wf.workflow_attachment := pgaudit_wf._usable_workflow((setting).target);
    graph constant text := pgaudit_wf._graph_call(setting, workflow, record_name);
begin
    expression := coalesce('case ' || large || ' else ' || expression || ' end', expression);
    if workflow.target is not null and not exists (select from unnest(columns) as c where c.name = 'content_hash') then
        -- Functions of the application are not run for this.
        expression := format('jsonb_set(%s, ''{value,content_hash}'', %s)', expression,
            case when pgaudit_wf._has_own_shape((setting).target) then '''"[redacted]"'''
                else format('(select coalesce(to_jsonb(pgaudit_wf._try_hash(g.nodes, g.edges)), ''null'') from %s as g)', graph) end);
    end if;
    return expression;
end
$$;
comment on function pgaudit_wf._live_op(pgaudit_wf.attachment, text) is
    'SQL expression for a row as an event of its insertion would show it now: {"value": row, "digest": columns}; '
    'a workflow''s content_hash is in the row.';

create function pgaudit_wf._live_ids(setting pgaudit_wf.attachment, ids text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    key constant text := pgaudit_wf._key_expression(setting, 'pgaudit_wf_row');
    rows constant text := format('%s as pgaudit_wf_row', pgaudit_wf._only((setting).target));
    columns constant text[] := pgaudit_wf._key_columns(setting);
    typed text;
    found text[];
begin
    select string_agg(format('pgaudit_wf_row.%I = (%s)::%s', attname,
            case when cardinality(columns) = 1 then 'wanted.id' else format('wanted.id::jsonb ->> %s', position - 1) end,
            format_type(pgaudit_wf._base_type(atttypid), -1)), ' and ')
    into typed
    from unnest(columns) with ordinality as k (name, position)
    join pg_attribute on attrelid = (setting).target and attname = name
    having bool_and(pgaudit_wf._is_built_in(atttypid));
    if typed is not null then
        begin
            execute format('select array_agg(%s) from unnest($1) as wanted (id) join %s on %s', key, rows, typed) into found using ids;
            return coalesce(found, '{}');
        exception
            -- A key that was too long to be recorded, or that its column, retyped since, cannot hold.
            when data_exception then
                null;
        end;
    end if;
    execute format('select array_agg(%1$s) from %2$s where %1$s = any ($1)', key, rows) into found using ids;
    return coalesce(found, '{}');
end
$$;
comment on function pgaudit_wf._live_ids(pgaudit_wf.attachment, text[]) is 'Those of the ids that a row of an attached table has now.';

create function pgaudit_wf._rows_query(setting pgaudit_wf.attachment, place jsonb, comparison text, sampled boolean) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    key constant text := pgaudit_wf._key_expression(setting, 'pgaudit_wf_row');
    sorting text;
    places text;
    bounds text;
    parts integer;
begin
    -- Of types that others define, the operators are theirs, too.
    select string_agg(pgaudit_wf._field('pgaudit_wf_row', attname), ', ' order by position),
        string_agg(pgaudit_wf._text_expression(atttypid, pgaudit_wf._field('pgaudit_wf_row', attname)), ', ' order by position),
        string_agg(format('($1 ->> %s)::%s', position - 1, format_type(pgaudit_wf._base_type(atttypid), -1)), ', ' order by position),
        count(*)
    into sorting, places, bounds, parts
    from unnest(pgaudit_wf._primary_key((setting).target)) with ordinality as k (name, position)
    join pg_attribute on attrelid = (setting).target and attname = name
    having bool_and(pgaudit_wf._is_built_in(atttypid));
    if sorting is null then
        sorting := format('coalesce(%s, '''') collate "C"', key);
        places := key;
        bounds := '$1 ->> 0';
        parts := 1;
    end if;
    if jsonb_array_length(place) <> parts then
        raise exception 'the primary key of % has % columns, not %', (setting).target, parts, jsonb_array_length(place)
            using errcode = 'PA008', hint = 'Write the key of several columns as a JSON array, in the order of the primary key.';
    end if;
    return format('select %s as key, jsonb_build_array(%s) as place, %s as op from %s as pgaudit_wf_row%s%s order by %s limit $2',
        key, places, pgaudit_wf._live_op(setting, 'pgaudit_wf_row'), pgaudit_wf._only((setting).target),
        case when sampled then ' tablesample bernoulli ($5)' else '' end,
        case when place is not null then format(' where (%s) %s (%s)', sorting, comparison, bounds) else '' end,
        case when sampled then 'random()' else sorting end);
end
$$;
comment on function pgaudit_wf._rows_query(pgaudit_wf.attachment, jsonb, text, boolean) is
    'Query for the next rows of an attached table after (comparison ">") or from (">=") a place $1, at most $2, '
    'or for as many out of a sample of $5 percent: their key, place and _live_op().';

create function pgaudit_wf._same_graph(setting pgaudit_wf.attachment, resource_id text, hash text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- What is equal by config_alias has another hash since an alias was added.
    select pgaudit_wf._try_hash(h.snapshot -> 'nodes', h.snapshot -> 'edges') = _same_graph.hash
    from pgaudit_wf.workflow_attachment as w
    join pgaudit_wf.workflow_history as h on h.workflow_id = pgaudit_wf._workflow_id(w.id_prefix, _same_graph.resource_id)
    where w.target = (setting).target order by h.version desc limit 1
$$;
comment on function pgaudit_wf._same_graph(pgaudit_wf.attachment, text, text) is
    'Whether a hash is the one that the newest version of a workflow would have if it was made now; null without its snapshot.';

create function pgaudit_wf._value_differs(
    setting pgaudit_wf.attachment, name text, known jsonb, digest jsonb, live jsonb, live_is_digest boolean
) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    same boolean;
begin
    if known is not null and not live_is_digest then
        return pgaudit_wf._reads_otherwise(known, live);
    elsif digest is not null and live_is_digest then
        return digest is distinct from live;
    elsif known is null and digest is null then
        return null;
    end if;
    -- One of them was too large, by the settings of its time.
    same := case when live_is_digest then pgaudit_wf._digest_of_json(known) = live else pgaudit_wf._digest_of_json(live) = digest end;
    return case when same then false else (
        select true from pg_attribute
        where attrelid = (setting).target and attname = name
            and pgaudit_wf._base_type(atttypid) in ('text'::regtype, 'varchar'::regtype, 'jsonb'::regtype, 'bytea'::regtype)) end;
end
$$;
comment on function pgaudit_wf._value_differs(pgaudit_wf.attachment, text, jsonb, jsonb, jsonb, boolean) is
    'Whether a column of a row has another value than the log says, which knows it or its digest; null where the log cannot tell.';

create function pgaudit_wf._reconcile_row(
    setting pgaudit_wf.attachment, resource_id text, state pgaudit_wf.replayed, op jsonb,
    out findings pgaudit_wf.reconcile_finding[], out incomparable bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    digested constant text[] := array(select jsonb_array_elements_text(op -> 'digest'));
    name text;
    live jsonb;
    differs boolean;
    step jsonb;
    steps text[];
    unwound jsonb;
begin
    findings := state.breaks;
    incomparable := 0;
    for name, live in select key, value from jsonb_each(op -> 'value') loop
        if state.pending ? name and name <> all (digested) then
            unwound := jsonb_build_object(name, live);
            for step in select value from jsonb_array_elements(state.pending -> name) with ordinality order by ordinality desc loop
                steps := pgaudit_wf._pointer_steps(step ->> 'path');
                if pgaudit_wf._reads_otherwise(step -> 'value', unwound #> steps) then
                    findings := findings || row('changed', resource_id, step ->> 'path', step -> 'value', unwound #> steps,
                        state.event_id, state.occurred_at)::pgaudit_wf.reconcile_finding;
                    exit;
                end if;
                unwound := pgaudit_wf._put_nested(unwound, step, 'old');
            end loop;
            continue;
        end if;
        -- Of a row without the event of its insertion, what was not changed since is no gap.
        continue when state.base is null and not state.known ? name and not state.digests ? name;
        differs := pgaudit_wf._value_differs(setting, name, state.known -> name, state.digests -> name, live, name = any (digested));
        if differs and not coalesce(name = 'content_hash' and pgaudit_wf._same_graph(setting, resource_id, live #>> '{}'), false) then
            findings := findings || row('changed', resource_id, pgaudit_wf._pointer(name),
                coalesce(state.known -> name, state.digests -> name), live, state.event_id, state.occurred_at)
                ::pgaudit_wf.reconcile_finding;
        elsif differs is null then
            incomparable := incomparable + 1;
        end if;
    end loop;
end
$$;
comment on function pgaudit_wf._reconcile_row(pgaudit_wf.attachment, text, pgaudit_wf.replayed, jsonb) is
    'Where a row differs from what the log says of it, column by column; incomparable counts the values of which the log cannot tell.';

create type pgaudit_wf.replay_step as (
    key text,
    place jsonb,
    op jsonb,
    moved boolean,
    occurred_at timestamptz,
    id bigint,
    diff jsonb,
    is_last boolean
);
comment on type pgaudit_wf.replay_step is 'An event of a row that is being replayed, or the row without any, as _steps_query() returns it.';

create function pgaudit_wf._steps_query(rows text, resource_type text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format(
        'with live as materialized ('
        '     select row_number() over () as number, found.*, %s as moved from (%s) as found)'
        ' select live.key, live.place, live.op, live.moved, l.occurred_at, l.id, l.diff,'
        '     lead(live.number) over (order by live.number, l.occurred_at, l.id) is distinct from live.number as is_last'
        ' from live'
        ' left join lateral ('
        '     select e.occurred_at, e.id, e.diff from pgaudit_wf.security_audit_log as e'
        '     where e.resource_type = $3 and e.resource_id = live.key and e.captured and e.occurred_at > $4 and not live.moved'
        '     union all'
        '     select h.* from pgaudit_wf._row_history($3, live.key, $4) as h where live.moved) as l on true'
        ' order by live.number, l.occurred_at, l.id',
        case when exists (select from pgaudit_wf.key_change as k where k.resource_type = _steps_query.resource_type)
            then 'exists (select from pgaudit_wf.key_change as k where k.resource_type = $3 and k.old_id = found.key)'
                ' or exists (select from pgaudit_wf.key_change as k where k.resource_type = $3 and k.new_id = found.key)'
            else 'false' end,
        _steps_query.rows)
$$;
comment on function pgaudit_wf._steps_query(text, text) is
    'Query for the events of some rows (key, place, op), those of each row together, oldest first; $3 is their type, $4 since when.';

create function pgaudit_wf._reconcile(
    target regclass, phase text, place jsonb default null, size integer default 5000, comparison text default '>',
    percent double precision default null
) returns setof pgaudit_wf.reconcile_finding
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write it, whatever the session's settings.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set lc_monetary = 'C'
set extra_float_digits = 1
set quote_all_identifiers = off
set jit = off
-- A slice is small, and the log is not: without statistics, PostgreSQL would read all of it for each.
set enable_hashjoin = off
set enable_mergejoin = off
set enable_hashagg = off
set enable_sort = off
set enable_bitmapscan = off
set enable_seqscan = off
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = _reconcile.target);
    reach record;
    alters timestamptz[];
    details jsonb[];
    source text;
    ids text[];
    fresh constant pgaudit_wf.replayed := row(null, '{}', '{}', '{}', 0, false, null, null, '{}');
    state pgaudit_wf.replayed := fresh;
    reached jsonb;
    step pgaudit_wf.replay_step;
    compared record;
    looked bigint := 0;
    keyless bigint := 0;
    unrecorded bigint := 0;
    partial bigint := 0;
    incomparable bigint := 0;
    truncated bigint := 0;
begin
    select * into reach from pgaudit_wf._log_reach(setting);
    select coalesce(array_agg(h.occurred_at order by h.occurred_at, h.id), '{}'),
        coalesce(array_agg(h.detail order by h.occurred_at, h.id), '{}')
    into alters, details
    from pgaudit_wf.attachment_history as h
    where h.resource_type = setting.resource_type and h.change = 'altered' and h.occurred_at > reach.since
        and h.detail ?| array['added', 'dropped', 'renamed', 'rewritten'];

    if phase = 'rows' then
        source := pgaudit_wf._rows_query(setting, place, comparison, percent is not null);
    else
        execute format(
            'select array_agg(listed.id), jsonb_build_array(max(listed.id)) from ('
            '     select distinct l.resource_id as id from pgaudit_wf.security_audit_log as l%s'
            '     where l.resource_type = $2 and l.resource_id > $3 and l.occurred_at > $4 %s limit $5) as listed',
            case when percent is not null then ' tablesample bernoulli ($1)' else '' end,
            case when percent is null then 'order by l.resource_id' else '' end)
            into ids, reached using percent, setting.resource_type, coalesce(place ->> 0, ''), reach.since, size;
        looked := coalesce(cardinality(ids), 0);
        ids := array(select unnest(ids) except select unnest(pgaudit_wf._live_ids(setting, ids)));
        source := 'select wanted.id as key, null::jsonb as place, null::jsonb as op from unnest($6) as wanted (id)';
    end if;

    for step in
        execute pgaudit_wf._steps_query(source, setting.resource_type)
            using place, size, setting.resource_type, reach.since, percent, ids
    loop
        while state.altered < cardinality(alters) and alters[state.altered + 1] < step.occurred_at loop
            state := pgaudit_wf._replay_alter(state, details[state.altered + 1]);
        end loop;
        if state.event_id is null and step.diff #>> '{0,path}' = '' and step.diff -> 0 ? 'value'
            and not step.diff -> 0 ?| array['digest', 'content_hash']
        then
            -- The insertion of most rows, and all that there is of many.
            state.base := 'inserted';
            state.known := step.diff #> '{0,value}';
            state.event_id := step.id;
            state.occurred_at := step.occurred_at;
        elsif step.id is not null then
            state := pgaudit_wf._replay_event(state, step.key, step.id, step.occurred_at, step.diff);
        end if;
        continue when not step.is_last;

        while state.altered < cardinality(alters) loop
            state := pgaudit_wf._replay_alter(state, details[state.altered + 1]);
        end loop;
        if phase = 'rows' then
            looked := looked + 1;
            reached := step.place;
        end if;
        if step.key is null then
            keyless := keyless + 1;
        elsif phase = 'gone' then
            return query select * from unnest(state.breaks);
            if state.occurred_at < reach.truncated_at then
                -- No event says of which partition its rows were.
                truncated := truncated + 1;
            elsif state.event_id is not null and state.base is distinct from 'deleted' then
                return next row('missing', step.key, '', state.known || state.digests, null, state.event_id, state.occurred_at)
                    ::pgaudit_wf.reconcile_finding;
            end if;
        elsif state.base in ('deleted', 'unrecorded') or state.base is null and (
            reach.was_empty or not step.moved and step.key ~ '^-?[0-9]{1,19}$' and step.key::numeric > reach.highest)
        then
            return query select * from unnest(state.breaks);
            return next row('unknown', step.key, '', null, step.op -> 'value', state.event_id, state.occurred_at)
                ::pgaudit_wf.reconcile_finding;
        elsif state.event_id is null then
            unrecorded := unrecorded + 1;
        else
            partial := partial + (state.base is null)::integer;
            -- Most are as the log says.
            if state.base is null or step.op ? 'digest' or state.digests <> '{}' or state.pending <> '{}' or state.breaks <> '{}'
                or state.known <> step.op -> 'value'
            then
                select * into compared from pgaudit_wf._reconcile_row(setting, step.key, state, step.op);
                incomparable := incomparable + compared.incomparable;
                return query select * from unnest(compared.findings);
            end if;
        end if;
        state := fresh;
    end loop;
    return next row('slice', null, null, jsonb_build_object('looked', looked, 'keyless', keyless, 'unrecorded', unrecorded,
            'partial', partial, 'incomparable', incomparable, 'truncated', truncated),
        case when looked >= size and percent is null then reached end, null, null)
        ::pgaudit_wf.reconcile_finding;
end
$$;
comment on function pgaudit_wf._reconcile(regclass, text, jsonb, integer, text, double precision) is
    'Compares the next rows of an attached table (phase rows), or those that the log knows and the table has no more (gone), with the '
    'log: at most size after or from a place on (null: from the start), or out of a sample of some percent. '
    'Returns findings; the last one, slice, has the place to go on from, or null at the end.';
