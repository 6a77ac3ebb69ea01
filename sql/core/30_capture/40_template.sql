-- What the trigger function of an attached table looks like: one template for both forms, whose slots are filled with pieces of
-- PL/pgSQL. The result is meant to be read: \sf pgaudit_wf.capture_<table>; for samples, see tests/capture/golden/.

create function pgaudit_wf._fill(template text, pieces jsonb) returns text[]
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    missing constant text := (
        select slot[1] from regexp_matches(template, e'\\{\\{([^{}]+)\\}\\}', 'g') as slot where pieces ->> slot[1] is null limit 1);
begin
    if missing is not null then
        raise exception 'no piece for the slot "%"', missing using errcode = 'internal_error';
    end if;
    -- The template is cut once: what fills a slot, such as the name of a column, is never searched for others. And only whole lines of
    -- templates are indented: what is quoted in one, such as a rule, can have line breaks that must stay as they are.
    return array(
        select filled.line
        from string_to_table(template, e'\n') with ordinality as given (line, number)
        cross join lateral regexp_match(given.line, e'^( *)\\{\\{([^{}]+)\\}\\}$') as alone
        cross join lateral (
            select alone[1] || piece.line as line, piece.number
            from jsonb_array_elements_text(
                case when jsonb_typeof(pieces -> alone[2]) = 'array' then pieces -> alone[2]
                    when pieces ->> alone[2] = '' then '[]'
                    else jsonb_build_array(pieces -> alone[2]) end) with ordinality as piece (line, number)
            where alone is not null
            union all
            select coalesce(string_agg(
                case when part.number = 1 then part.line
                    else (pieces ->> split_part(part.line, '}}', 1)) || substr(part.line, strpos(part.line, '}}') + 2) end,
                '' order by part.number), ''), 1
            from string_to_table(given.line, '{{') with ordinality as part (line, number)
            having alone is null
        ) as filled
        order by given.number, filled.number);
end
$$;
comment on function pgaudit_wf._fill(text, jsonb) is
    'The lines of a template with pieces in its {{slots}}. '
    'On a line of its own, a slot takes an array of lines, each of which is indented as the slot is; '
    'none, or an empty text, removes the line. Elsewhere it takes a text. Raises an error if a slot has no piece.';

create function pgaudit_wf._ending(lines text[], suffix text) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select lines[:cardinality(lines) - 1] || (lines[cardinality(lines)] || suffix) $$;
comment on function pgaudit_wf._ending(text[], text) is 'The lines with something more after the last.';

create function pgaudit_wf._trigger_template() returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $template$ select $body$
-- Records every change of an attached table; written by pgaudit_wf.attach().
-- To change it, attach the table again or edit pgaudit_wf.action_rule. Columns as of {{shape}}.
declare
    event_id text;
    event_previous_id text;
    event_org text;
    event_label text;
    event_action text;
    event_diff jsonb;
    event_metadata jsonb;
    {{variables of the form}}
    {{variables of a version}}
begin
    {{check of the place}}
    if current_setting('session_replication_role') = 'replica' and pgaudit_wf._is_applied() then
        -- A subscription that brings the log along brings this event, too.
        return null;
    end if;
    {{check of the statement trigger}}
    {{begin of the attempt}}
    if pgaudit_wf._is_packed() then
        perform pgaudit_wf._unpack_context();
    end if;
    {{org of the context}}
    {{rows as JSON}}
    if tg_op = 'UPDATE' then
        {{changed columns}}
        {{version of the update}}
        if event_diff is null then
            return null;
        end if;
        {{key of the update}}
        {{org and label of the update}}
        {{action of the update}}
    elsif tg_op = 'INSERT' then
        {{key of the insert}}
        {{org and label of the insert}}
        {{version of the insert}}
        {{diff of the insert}}
        {{action of the insert}}
    elsif tg_op = 'DELETE' then
        {{key of the delete}}
        {{org and label of the delete}}
        {{version of the delete}}
        {{diff of the delete}}
        {{action of the delete}}
    else
        event_action := {{action of the truncate}};
        event_metadata := jsonb_build_object('table', format('%I.%I', tg_table_schema, tg_table_name));
    end if;
    {{action of a restore}}
    {{label, reason and previous key}}

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, {{type}}, event_id, true, event_diff, coalesce(event_metadata, '{}'));
    {{end of the attempt}}
    return null;
end
$body$ $template$;
comment on function pgaudit_wf._trigger_template() is
    e'The trigger function of an attached table as \\sf shows it, with slots for _fill(): '
    'see _common_pieces(), _compiled_pieces() and _generic_pieces().';

create function pgaudit_wf._mentions_row(condition text) returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select condition ~* e'\\m(old|new)\\M\\s*($|[^.[:space:]]|\\.\\s*\\*)' $$;
comment on function pgaudit_wf._mentions_row(text) is
    'Whether a condition mentions old or new as a whole: by its text, so rather too often.';

create function pgaudit_wf._rule_could_cast(target oid, condition text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By its text alone, so rather too often: a mention of the column, or of the row as a whole.
    select coalesce(bool_or(
        case
            when name ~ e'^\\w+$' then condition ~* (e'\\m' || name || e'\\M')
            else strpos(condition, replace(name, '"', '""')) > 0
        end
        or pgaudit_wf._mentions_row(condition)), false)
    from unnest(pgaudit_wf._columns_with_casts(target)) as name
$$;
comment on function pgaudit_wf._rule_could_cast(oid, text) is
    'Whether a rule''s condition may run, with our rights, a user-defined cast from the type of one of the table''s columns: '
    'the rule is then left out.';

create function pgaudit_wf._refuse_casts(relation oid, conditions text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pg_attribute where attrelid = relation and attnum > 0 and not attisdropped and atttypid >= 16384)
        and pgaudit_wf._rule_could_cast(relation, conditions)
    then
        raise exception 'a column of % has a type with a cast that this could run: %', relation::regclass, conditions
            using errcode = 'PA003';
    end if;
end
$$;
comment on function pgaudit_wf._refuse_casts(oid, text) is
    'Raises PA003 where a condition over the table''s columns could run a user-defined cast with our rights; for the generic form.';

create function pgaudit_wf._default_action(setting pgaudit_wf.attachment, op text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select quote_literal((setting).resource_type || case op when 'insert' then '.created' when 'update' then '.updated' else '.deleted' end)
$$;
comment on function pgaudit_wf._default_action(pgaudit_wf.attachment, text) is
    'SQL literal for the action of an insert, update or delete to which no rule applies.';

create function pgaudit_wf._action_expression(setting pgaudit_wf.attachment, op text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with rule as (
        select id, position, condition, action from pgaudit_wf.action_rule
        where action_rule.resource_type = (setting).resource_type and action_rule.op = $2
            and not pgaudit_wf._rule_could_cast((setting).target, condition)
    )
    select case when exists (select from rule where condition is not null) then pgaudit_wf._fill(
$rules$case
    {{rules}}
    else {{default}}
end$rules$,
        jsonb_build_object(
            'rules', (
                select array_agg(line order by position, id, number)
                from rule
                cross join lateral unnest(
                    -- What follows a comment has to stand on a line of its own.
                    case when strpos(condition, '--') > 0 then array['when ' || condition, format('then %L', action)]
                        else array[format('when %s then %L', coalesce(condition, 'true'), action)] end
                ) with ordinality as branch (line, number)),
            'default', pgaudit_wf._default_action(setting, op)))
        else array[coalesce(
            (select quote_literal(rule.action) from rule order by position, id limit 1), pgaudit_wf._default_action(setting, op))] end
$$;
comment on function pgaudit_wf._action_expression(pgaudit_wf.attachment, text) is
    'The lines of an SQL expression that names the action of an insert, update or delete, from action_rule: '
    'a single one, a literal, where no rule has a condition.';

create function pgaudit_wf._try_rules(
    setting pgaudit_wf.attachment, op text, with_rules text[], without_rules text[]
) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._fill(
$attempt$begin
    {{with rules}}
exception
    -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
    when others then
        if sqlstate ~ '^(40|53|57)' then
            raise;
        end if;
        {{without rules}}
        raise warning 'an action rule of % failed (SQLSTATE %), and the change is recorded as %', {{type}}, sqlstate, {{default}}
            using hint = 'pgaudit_wf.doctor() names the rule.';
end;$attempt$,
        jsonb_build_object(
            'with rules', with_rules,
            'without rules', without_rules,
            'type', quote_literal((setting).resource_type),
            'default', pgaudit_wf._default_action(setting, op)))
$$;
comment on function pgaudit_wf._try_rules(pgaudit_wf.attachment, text, text[], text[]) is
    'PL/pgSQL that does what evaluates the rules, or else what takes the default action.';

create function pgaudit_wf._action_statements(setting pgaudit_wf.attachment, op text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when cardinality(expression) = 1 then assignment else pgaudit_wf._try_rules(
            setting, op,
            -- A trigger of the generic form is not rewritten when a cast is created later.
            case when (setting).form = 'generic' then (
                select array[format('perform pgaudit_wf._refuse_casts(tg_relid, %L);', string_agg(condition, e'\n'))]
                from pgaudit_wf.action_rule as r
                where r.resource_type = (setting).resource_type and r.op = $2
                    and not pgaudit_wf._rule_could_cast((setting).target, condition)) else '{}' end
                || assignment,
            array[format('event_action := %s;', pgaudit_wf._default_action(setting, op))]) end
    from pgaudit_wf._action_expression(setting, op) as expression,
    lateral (
        select pgaudit_wf._ending(('event_action := ' || expression[1]) || expression[2:], ';') as assignment
    ) as written
$$;
comment on function pgaudit_wf._action_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that names the action of an insert, update or delete, from action_rule.';

create function pgaudit_wf._shape_of(relation oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(string_agg(concat_ws(',', attnum, attname, atttypid, attcollation, attgenerated, (
            select pgaudit_wf._shape_of(c.oid) from pg_class as c
            join pg_type as t on t.typrelid = c.oid
            where atttypid >= 16384 and t.typtype = 'c' and t.oid >= 16384 and pgaudit_wf._contains_type(atttypid, t.oid)
                and t.oid <> (select reltype from pg_class where oid = _shape_of.relation)
            order by c.oid limit 1)), ';' order by attnum))
        from pg_attribute where attrelid = _shape_of.relation and attnum > 0 and not attisdropped);
end
$$;
comment on function pgaudit_wf._shape_of(oid) is 'A fingerprint of the names and types of a relation''s columns.';

create function pgaudit_wf._capture_settings(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select distinct pinned
        from (
            select unnest(pgaudit_wf._output_settings(atttypid, attname = any (
                pgaudit_wf._key_columns(setting) || array[coalesce((setting).org_column, ''), coalesce((setting).label_column, '')])))
            from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped and attname <> all ((setting).ignore || (setting).redact)
            -- The generic form does not know what columns will come.
            union all
            select unnest(array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
                'lc_monetary = ''C''', 'extra_float_digits = 1', 'quote_all_identifiers = off'])
            where (setting).form = 'generic'
        ) as type_setting (pinned)
        order by pinned)
$$;
comment on function pgaudit_wf._capture_settings(pgaudit_wf.attachment) is
    'The settings that an attached table''s trigger pins, so that what it records does not depend on the session.';

create function pgaudit_wf._with_hash(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when not pgaudit_wf._keeps_versions((setting).target) then ''
        else ' || jsonb_build_object(''content_hash'', event_hash)' end
$$;
comment on function pgaudit_wf._with_hash(pgaudit_wf.attachment) is
    'What follows the expression for a whole row so that a workflow''s has its content_hash; nothing for other tables.';

create function pgaudit_wf._metadata_statements(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._fill(
$metadata$if event_label is not null then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('label', event_label);
end if;
if current_setting('app.reason', true) <> '' then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('reason', pgaudit_wf._context_reason());
end if;
if current_setting('pgaudit_wf.undoing', true) <> '' then
    event_metadata := coalesce(event_metadata, '{}')
        || jsonb_strip_nulls(jsonb_build_object('undoes', pgaudit_wf._undoes({{type}}, coalesce(event_previous_id, event_id))));
end if;
if event_previous_id is not null then
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
    insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
    select {{type}}, event_previous_id, event_id, event_org where event_id is not null
    on conflict on constraint key_change_pkey do nothing;
end if;$metadata$, jsonb_build_object('type', quote_literal((setting).resource_type)))
$$;
comment on function pgaudit_wf._metadata_statements(pgaudit_wf.attachment) is
    'PL/pgSQL that notes label, reason, what it undoes and previous key of an event in its metadata.';

create function pgaudit_wf._common_pieces(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    versioned constant boolean := pgaudit_wf._keeps_versions((setting).target);
    warns constant boolean := (setting).on_failure = 'warn';
begin
    return jsonb_build_object(
        -- PL/pgSQL keeps plans by the types of a row's columns: another type must make it another function.
        'shape', pgaudit_wf._shape_of((setting).target),
        'org of the context', case when (setting).org_column = any ((setting).columns) then ''
            else 'event_org := pgaudit_wf._context_value(''app.org_id'');' end,
        'variables of a version', case when versioned then array[
            'event_hash text;',
            'event_version pgaudit_wf.version_ref;',
            'definition_changed boolean := false;',
            'old_nodes jsonb;',
            'old_edges jsonb;',
            'new_nodes jsonb;',
            'new_edges jsonb;']
            || case when pgaudit_wf._has_own_shape((setting).target) then array['event_graph jsonb;'] else '{}' end else '{}' end,
        'check of the place',
        pgaudit_wf._check_place((setting).target, (setting).function_name) || pgaudit_wf._leave_to_partition(setting),
        'check of the statement trigger', pgaudit_wf._leave_to_batch(setting),
        'begin of the attempt', case when warns then 'begin' else '' end,
        'version of the update', pgaudit_wf._version_statements(setting, 'update'),
        'action of the update', pgaudit_wf._action_statements(setting, 'update'),
        'version of the insert', pgaudit_wf._version_statements(setting, 'insert'),
        'action of the insert', pgaudit_wf._action_statements(setting, 'insert'),
        'version of the delete', pgaudit_wf._version_statements(setting, 'delete'),
        'action of the delete', pgaudit_wf._action_statements(setting, 'delete'),
        'action of the truncate', quote_literal((setting).resource_type || '.truncated'),
        'action of a restore', case when versioned then pgaudit_wf._fill(
$restore$if event_version.restored_from is not null then
    event_action := {{type}} || case tg_op when 'INSERT' then '.undeleted' else '.restored' end;
    event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('restored_from', event_version.restored_from);
end if;$restore$, jsonb_build_object('type', quote_literal((setting).resource_type))) else '{}' end,
        'label, reason and previous key', pgaudit_wf._metadata_statements(setting),
        'type', quote_literal((setting).resource_type),
        'end of the attempt', case when warns then pgaudit_wf._fill(
$failure$exception
    when others then
        -- What goes away when it is tried again, the application is to try again; a stale save it is to show.
        if sqlstate ~ '^(40|53|55P03|57|PA305)' then
            raise;
        end if;
        perform pgaudit_wf._count_failure({{table}}, tg_op, sqlstate);
        raise warning '% of % went through unrecorded (SQLSTATE %)', tg_op, {{table}}, sqlstate;
end;$failure$, jsonb_build_object('table', quote_literal((setting).target::text))) else '{}' end);
end
$$;
comment on function pgaudit_wf._common_pieces(pgaudit_wf.attachment) is
    'The pieces of _trigger_template() that both forms share, in the order of its slots.';

create function pgaudit_wf._capture_body(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return array_to_string(
        pgaudit_wf._fill(pgaudit_wf._trigger_template(), pgaudit_wf._common_pieces(setting) || case (setting).form
            when 'compiled' then pgaudit_wf._compiled_pieces(setting)
            else pgaudit_wf._generic_pieces(setting) end),
        e'\n');
end
$$;
comment on function pgaudit_wf._capture_body(pgaudit_wf.attachment) is 'The body of an attached table''s trigger function.';
