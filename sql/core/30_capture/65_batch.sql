-- A statement's changes recorded together, by triggers FOR EACH STATEMENT: the log's indexes are opened once, however many rows there are.
--
-- The triggers FOR EACH ROW stay beside them, for what no statement trigger of the table sees (what a subscription applies, what a
-- session does that calls itself a replica), and take over where a statement's end would be too late or the wrong place to look.

create type pgaudit_wf.captured_event as (org_id text, action text, resource_id text, diff jsonb, metadata jsonb);
comment on type pgaudit_wf.captured_event is 'An event of a statement, until all of them are inserted.';

create function pgaudit_wf._record_events(type text, events pgaudit_wf.captured_event[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    select e.org_id, e.action, _record_events.type, e.resource_id, true, e.diff, coalesce(e.metadata, '{}')
    from unnest(events) as e;
end
$$;
comment on function pgaudit_wf._record_events(text, pgaudit_wf.captured_event[]) is 'Inserts events that triggers saw into the log.';

create function pgaudit_wf._batch_function_name(setting pgaudit_wf.attachment) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select 'batch_' || substr((setting).function_name, length('capture_') + 1) $$;
comment on function pgaudit_wf._batch_function_name(pgaudit_wf.attachment) is
    'Name of the function that records a table''s changes statement by statement.';

create function pgaudit_wf._has_batch(setting pgaudit_wf.attachment) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Not for partitioned tables: a statement on a partition fires no statement trigger of its parent, and one on the parent none of the
    -- partition. Not for workflows, whose versions are made row by row; nor where a failure must cost one row's event only.
    return (setting).form = 'compiled' and (setting).on_failure = 'abort'
        and exists (select from pg_class where oid = (setting).target and relkind = 'r')
        and not exists (select from pgaudit_wf.workflow_attachment as w where w.target = (setting).target);
end
$$;
comment on function pgaudit_wf._has_batch(pgaudit_wf.attachment) is 'Whether a table has triggers that record statement by statement.';

create function pgaudit_wf._needs_rows(target regclass, op text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A statement may name a parent, or concern a child's rows, too. And other triggers (those of foreign keys included) may change the
    -- same rows again before the statement ends, whose events would then come first. _follow_as_author() looks for these, too.
    return (
        select exists (select from pg_inherits where _needs_rows.target in (inhrelid, inhparent))
            or exists (
                select from pg_trigger
                where tgrelid = _needs_rows.target and not tgisinternal and tgenabled <> 'D' and tgname !~ '^!?pgaudit_wf_'
                    -- Of pg_trigger's flags: for each row (1), not before it (2), insert (4), delete (8), update (16).
                    and tgtype & 3 = 1 and tgtype & case _needs_rows.op when 'insert' then 4 when 'delete' then 8 else 16 end <> 0)
            or exists (
                select from pg_constraint
                where contype = 'f' and confrelid = _needs_rows.target
                    and case _needs_rows.op when 'delete' then confdeltype when 'update' then confupdtype end in ('c', 'n', 'd'))
            -- The rows of a transition table have no type of their own, for which a function could be declared.
            or exists (
                select from pgaudit_wf.attachment as a join pgaudit_wf.action_rule as r on r.resource_type = a.resource_type
                where a.target = _needs_rows.target and r.op = _needs_rows.op and pgaudit_wf._mentions_row(r.condition))
    );
end
$$;
comment on function pgaudit_wf._needs_rows(regclass, text) is
    'Whether the inserts, updates or deletes of a table must be recorded row by row.';

create function pgaudit_wf._batched_ops(target regclass) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select op
        from unnest(array['delete', 'insert', 'update']) as op
        left join pg_trigger on tgrelid = _batched_ops.target and tgname = '!pgaudit_wf_batch_' || op
        where case when tgname is not null then tgenabled <> 'D'
            -- attach() writes the functions before it can put the triggers there.
            else not exists (
                    select from pg_trigger where tgrelid = _batched_ops.target and starts_with(tgname, '!pgaudit_wf_batch_'))
                and (select pgaudit_wf._has_batch(a) from pgaudit_wf.attachment as a where a.target = _batched_ops.target)
                and not pgaudit_wf._needs_rows(_batched_ops.target, op) end
        order by op)
$$;
comment on function pgaudit_wf._batched_ops(regclass) is
    'Which of insert, update and delete are recorded by statement: those whose trigger is enabled or is about to be.';

create function pgaudit_wf._leave_to_batch(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Whatever ENABLE TRIGGER ALL has enabled, nothing is recorded twice.
    select case when cardinality(pgaudit_wf._batched_ops((setting).target)) > 0 then pgaudit_wf._fill(
$check$if tg_op in ({{ops}}) and current_setting('session_replication_role') <> 'replica' then
    -- Recorded at the end of the statement.
    return null;
end if;$check$,
        jsonb_build_object('ops', (
            select string_agg(quote_literal(upper(op)), ', ') from unnest(pgaudit_wf._batched_ops((setting).target)) as op))) else '{}' end
$$;
comment on function pgaudit_wf._leave_to_batch(pgaudit_wf.attachment) is
    'PL/pgSQL by which a row trigger leaves alone what a statement trigger records.';

create function pgaudit_wf._batch_template() returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $template$ select $body$
-- Records what each statement changes in an attached table; written by pgaudit_wf.attach().
-- Where that has to be done row by row, another function does it. Columns as of {{shape}}.
#variable_conflict use_column
declare
    event_id text;
    event_previous_id text;
    event_org text;
    event_label text;
    event_action text;
    event_diff jsonb;
    event_metadata jsonb;
    event_op jsonb;
    events pgaudit_wf.captured_event[];
    events_size bigint;
    old_row no scroll cursor for select * from old_rows;
begin
    if pgaudit_wf._is_packed() then
        perform pgaudit_wf._unpack_context();
    end if;
    {{org of the context}}
    if tg_op = 'INSERT' then
        {{inserted rows}}
    elsif tg_op = 'DELETE' then
        {{deleted rows}}
    else
        -- Row by row with its old version: PostgreSQL keeps both in the same order.
        open old_row;
        for new in select * from new_rows loop
            fetch old_row into old;
            if event_diff is not null then
                -- There is more than one: they are inserted together.
                events_size := coalesce(events_size, 0) + pg_column_size(event_diff);
                events := events || row(event_org, event_action, event_id, event_diff, event_metadata)::pgaudit_wf.captured_event;
                if events_size > 1048576 then
                    perform pgaudit_wf._record_events({{type}}, events);
                    events := null;
                    events_size := null;
                end if;
                event_diff := null;
                event_metadata := null;
                event_previous_id := null;
            end if;
            {{changed columns}}
            continue when event_diff is null;
            {{key of the update}}
            {{org and label of the update}}
            {{action of the update}}
            {{label, reason and previous key}}
        end loop;
        close old_row;
        if events is not null then
            -- The last row may be one that has not changed.
            if event_diff is not null then
                events := events || row(event_org, event_action, event_id, event_diff, event_metadata)::pgaudit_wf.captured_event;
            end if;
            perform pgaudit_wf._record_events({{type}}, events);
        elsif event_diff is not null then
            insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
            values (event_org, event_action, {{type}}, event_id, true, event_diff, coalesce(event_metadata, '{}'));
        end if;
    end if;
    return null;
end
$body$ $template$;
comment on function pgaudit_wf._batch_template() is
    e'The statement trigger function of an attached table as \\sf shows it, with slots for _fill(): see _batch_pieces().';

create function pgaudit_wf._row_diff_expression(setting pgaudit_wf.attachment, record_name text) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    columns constant pgaudit_wf.capture_column[] := array(select pgaudit_wf._capture_columns(setting));
    op constant text := case record_name when 'new' then 'add' else 'remove' end;
    member constant text := case record_name when 'new' then 'value' else 'old' end;
    plain constant text := pgaudit_wf._row_diff(op, member, pgaudit_wf._row_expression(setting, record_name));
    large_test constant text := (
        select string_agg(pgaudit_wf._large_test(c, record_name), e'\n        or ') from unnest(columns) as c);
    nulls constant text := (
        select format('case when %s then to_jsonb(%s) end', string_agg(test, ' or '), pgaudit_wf._json_null_columns(columns, record_name))
        from unnest(columns) as c, pgaudit_wf._json_null_test(c, record_name) as test having count(test) > 0);
    large text := format('jsonb_build_object(''op'', %L, ''path'', '''', %L, %s)', op, member, pgaudit_wf._row_object(
        array(select c from unnest(columns) as c where pgaudit_wf._large_test(c, record_name) is null), record_name));
    diff text[] := array[plain];
    col pgaudit_wf.capture_column;
begin
    foreach col in array columns loop
        if pgaudit_wf._large_test(col, record_name) is not null then
            large := pgaudit_wf._put_expression(col, record_name, large || e'\n                ', array[member, col.name]);
        end if;
    end loop;
    if large_test is not null then
        diff := pgaudit_wf._fill(
$either$case when {{large}}
    then jsonb_build_array({{digested}})
    else {{plain}} end$either$, jsonb_build_object('large', large_test, 'digested', large, 'plain', plain));
    end if;
    return case when nulls is null then diff else pgaudit_wf._fill(
$nulls$jsonb_set_lax(
    {{diff}}
    '{0,json_null}', {{nulls}}, true, 'return_target')$nulls$,
        jsonb_build_object('diff', pgaudit_wf._ending(diff, ','), 'nulls', nulls)) end;
end
$$;
comment on function pgaudit_wf._row_diff_expression(pgaudit_wf.attachment, text) is
    'SQL expression for the diff of a row that was inserted (new) or deleted (old): what _row_diff_statements() makes of it.';

create function pgaudit_wf._batch_insert(setting pgaudit_wf.attachment, record_name text) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    statement constant text :=
$insert$insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
select {{org}},
    {{action}}
    {{type}}, {{key}}, true,
    {{diff}}
    jsonb_strip_nulls(jsonb_build_object({{label}}'reason', pgaudit_wf._context_reason(), 'undoes', pgaudit_wf._undoes({{type}}, {{key}})))
from {{rows}};$insert$;
    op constant text := case record_name when 'new' then 'insert' else 'delete' end;
    action constant text[] := pgaudit_wf._action_expression(setting, op);
    pieces constant jsonb := jsonb_build_object(
        'org', coalesce('left(' || pgaudit_wf._column_text(setting, (setting).org_column, record_name) || ', 255)', 'event_org'),
        'action', pgaudit_wf._ending(action, ','),
        'type', quote_literal((setting).resource_type),
        'key', pgaudit_wf._key_expression(setting, record_name),
        'diff', pgaudit_wf._ending(pgaudit_wf._row_diff_expression(setting, record_name), ','),
        'label', coalesce(
            '''label'', left(' || pgaudit_wf._column_text(setting, (setting).label_column, record_name) || ', 255), ', ''),
        'rows', format('%1$s_rows as %1$s', record_name));
begin
    if cardinality(action) = 1 then
        return pgaudit_wf._fill(statement, pieces);
    end if;
    return pgaudit_wf._try_rules(setting, op, pgaudit_wf._fill(statement, pieces), pgaudit_wf._fill(statement,
        pieces || jsonb_build_object('action', pgaudit_wf._default_action(setting, op) || ',')));
end
$$;
comment on function pgaudit_wf._batch_insert(pgaudit_wf.attachment, text) is
    'PL/pgSQL that records all rows that a statement inserted (new) or deleted (old).';

create function pgaudit_wf._batch_pieces(setting pgaudit_wf.attachment) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'inserted rows', pgaudit_wf._batch_insert(setting, 'new'),
        'deleted rows', pgaudit_wf._batch_insert(setting, 'old'))
$$;
comment on function pgaudit_wf._batch_pieces(pgaudit_wf.attachment) is
    'The pieces of _batch_template() that the row trigger does not have.';

create function pgaudit_wf._batch_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array_to_string(pgaudit_wf._fill(pgaudit_wf._batch_template(),
        pgaudit_wf._common_pieces(setting) || pgaudit_wf._compiled_pieces(setting) || pgaudit_wf._batch_pieces(setting)), e'\n')
$$;
comment on function pgaudit_wf._batch_body(pgaudit_wf.attachment) is 'The body of an attached table''s statement trigger function.';

create function pgaudit_wf._place_batch(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    op text;
    transition text;
begin
    for op, transition in values
        ('insert', 'new table as new_rows'), ('update', 'old table as old_rows new table as new_rows'), ('delete', 'old table as old_rows')
    loop
        if pgaudit_wf._has_batch(setting) then
            perform pgaudit_wf._install_trigger((setting).target, '!pgaudit_wf_batch_' || op, 'after ' || op,
                format('referencing %s for each statement', transition), pgaudit_wf._batch_function_name(setting));
        elsif exists (select from pg_trigger where tgrelid = (setting).target and tgname = '!pgaudit_wf_batch_' || op) then
            execute format('drop trigger %I on %s', '!pgaudit_wf_batch_' || op, (setting).target);
        end if;
    end loop;
    if pgaudit_wf._has_batch(setting) then
        -- At once, as each ALTER TABLE is followed.
        execute (
            select format('alter table %s %s', (setting).target, string_agg(format(
                case when pgaudit_wf._needs_rows((setting).target, change) then 'disable trigger %I, enable always trigger %I'
                    else 'enable trigger %I, enable replica trigger %I' end,
                '!pgaudit_wf_batch_' || change, '!pgaudit_wf_' || change), ', '))
            from unnest(array['insert', 'update', 'delete']) as change);
    end if;
    perform pgaudit_wf._drop_functions(array[pgaudit_wf._batch_function_name(setting)]) where not pgaudit_wf._has_batch(setting);
end
$$;
comment on function pgaudit_wf._place_batch(pgaudit_wf.attachment) is
    'Puts the statement triggers on an attached table that is to have them, and lets either these or the row triggers record.';
