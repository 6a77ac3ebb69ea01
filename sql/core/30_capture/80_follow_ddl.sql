-- A table changes under its compiled trigger: event triggers rewrite its functions in the transaction of the DDL.
--
-- The author of the DDL need not have any right here, so _after_ddl() and _after_drop() run as the owner of our schema; that role owns
-- none of the attached tables and can do nothing to one. What has to be done to a table (a new partition's own triggers) is done by
-- _follow_as_author(), as the author of the DDL. Nothing here evaluates a default, a cast, a domain or a condition. The event
-- triggers themselves are created last, by the installing role.

create function pgaudit_wf._renamed(name text, renames jsonb) returns text
language sql immutable parallel safe
as $$ select coalesce(renames ->> name, name) $$;
comment on function pgaudit_wf._renamed(text, jsonb) is 'A column''s name after the renames ({old: new}).';

create function pgaudit_wf._find_rename(columns_before text[], columns_now text[], renamed_to text) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when renamed_to = any (columns_now) and renamed_to <> all (columns_before) and count(*) = 1
        then jsonb_build_object(min(name), renamed_to) else '{}' end
    from unnest(columns_before) as name where name <> all (columns_now)
$$;
comment on function pgaudit_wf._find_rename(text[], text[], text) is
    'The rename ({old: new}) by which a table''s columns came to be what they are; an empty object if that is not how.';

create function pgaudit_wf._quote_regexp(literal text) returns text
language sql immutable strict parallel safe
as $$ select regexp_replace(literal, e'([][\\\\.^$*+?(){}|-])', e'\\\\\\1', 'g') $$;
comment on function pgaudit_wf._quote_regexp(text) is 'A regular expression that matches the text, taken literally.';

create function pgaudit_wf._rename_in_rules(resource_type text, old_name text, new_name text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    -- Case counts only between quotes.
    update pgaudit_wf.action_rule
    set condition = regexp_replace(regexp_replace(condition, plain, replacement, 'gi'), quoted, replacement, 'g')
    from (
        select
            case when old_name ~ '^[a-z_][a-z0-9_$]*$'
                then format(e'\\m(old|new)\\s*\\.\\s*%s(?![[:alnum:]_$])', replace(old_name, '$', e'\\$')) else '(?!)' end as plain,
            format(e'\\m([oO][lL][dD]|[nN][eE][wW])\\s*\\.\\s*%s',
                pgaudit_wf._quote_regexp(format('"%s"', replace(old_name, '"', '""')))) as quoted,
            e'\\1.' || replace(pgaudit_wf._quote_column(new_name), e'\\', e'\\\\') as replacement
    ) as rename
    where action_rule.resource_type = _rename_in_rules.resource_type and (condition ~* plain or condition ~ quoted)
$$;
comment on function pgaudit_wf._rename_in_rules(text, text, text) is
    'Follows a renamed column in the conditions of the rules of a resource type.';

create function pgaudit_wf._column_default(target regclass, name text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write it.
set timezone = 'UTC'
as $$
declare
    missing text;
    type oid;
    value jsonb;
begin
    -- What PostgreSQL shows in the rows that were there before the column was added, as it keeps it.
    select (attmissingval::text::text[])[1], pgaudit_wf._base_type(atttypid) into missing, type
    from pg_attribute where attrelid = _column_default.target and attname = _column_default.name;
    if pgaudit_wf._is_built_in(type) then
        begin
            -- -1: without it, char and bit would be cut to their first character or bit.
            execute format('select to_jsonb($1::%s)', format_type(type, -1)) into value using missing;
            return value;
        exception
            -- What jsonb cannot hold; and a box, whose arrays are not separated by commas.
            when data_exception or program_limit_exceeded then
                null;
        end;
    end if;
    return to_jsonb(missing);
end
$$;
comment on function pgaudit_wf._column_default(regclass, text) is
    'The constant default that an added column has in the rows that were there before; '
    'as text unless its type is one of PostgreSQL''s own.';

create function pgaudit_wf._switched_off(setting pgaudit_wf.attachment) returns table (problem text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('column %s, which identifies its rows, does not exist: %s', string_agg(format('"%s"', name), ', '), case
            when pgaudit_wf._key_columns(setting) = '{}' then 'its events have no resource_id'
            else format('its primary key does it now (%s)', array_to_string(pgaudit_wf._key_columns(setting), ', ')) end),
        case when pgaudit_wf._key_columns(setting) = '{}' then format('alter table %s %s; ', (setting).target,
            string_agg(format('add column %I bigserial', name), ', ')) else '' end
            || format('select pgaudit_wf.attach(%L);', (setting).target)
    from unnest((setting).id_columns) as name where name <> all (pgaudit_wf._column_names((setting).target))
    having count(*) > 0
    union all
    select format('%s is "%s", which %s: %s', problem.role, problem.name, coalesce('is of type ' || problem.given, 'does not exist'), case
            when problem.role in ('nodes_column', 'edges_column') then 'no versions are kept'
            else 'versions are kept without it' end),
        case
            when problem.role in ('nodes_column', 'edges_column') and problem.given is null then
                -- No name in a comment, which a line break would end: what follows would be run by whoever pastes it.
                format('alter table %s add column %I jsonb not null default ''[]''; -- or name another one by attach_workflow()',
                    (setting).target, problem.name)
            when problem.role in ('nodes_column', 'edges_column') then
                format('alter table %s alter column %I type jsonb using %2$I::jsonb;', (setting).target, problem.name)
            when problem.role = 'listing_columns' then
                format('select pgaudit_wf.attach_workflow(%L, listing_columns => %L);', (setting).target,
                    array_remove(w.listing_columns, problem.name))
            else format('select pgaudit_wf.attach_workflow(%L, %s => '''');', (setting).target, problem.role)
        end
    from pgaudit_wf.workflow_attachment as w, pgaudit_wf._workflow_problems(w) as problem
    where w.target = (setting).target
    union all
    select pgaudit_wf._shape_problem(w) || ': no versions are kept',
        format('select pgaudit_wf.attach_workflow(%L, shape => %L); -- once it can', (setting).target, w.shape)
    from pgaudit_wf.workflow_attachment as w
    where w.target = (setting).target and pgaudit_wf._shape_problem(w) is not null
$$;
comment on function pgaudit_wf._switched_off(pgaudit_wf.attachment) is
    'What is no longer recorded of a table because of DDL, and the remedy: the key or the versions that rested on a column.';

create function pgaudit_wf._note_broken_rules(concerned regclass default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    rule pgaudit_wf.action_rule;
begin
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.form = 'compiled' and (a.target = concerned or concerned is null and exists (select from pg_class where oid = a.target))
    loop
        for rule in
            select r.* from pgaudit_wf.action_rule as r where r.resource_type = setting.resource_type and r.condition is not null
        loop
            begin
                perform pgaudit_wf._check_action_rule(setting.target, rule);
            exception
                when sqlstate 'PA003' then
                    -- Once is enough: doctor() goes on naming it.
                    continue when exists (
                        select from pgaudit_wf.attachment_history as h
                        where h.target = setting.target::text and h.detail -> 'switched_off' ? sqlerrm);
                    raise warning '%', sqlerrm
                        using hint = 'Changes are recorded under the default action until the rule in pgaudit_wf.action_rule is fixed; '
                            'pgaudit_wf.doctor() names it.';
                    insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
                    values (setting.target, setting.resource_type, 'altered',
                        jsonb_build_object('switched_off', jsonb_build_array(sqlerrm)));
            end;
        end loop;
    end loop;
end
$$;
comment on function pgaudit_wf._note_broken_rules(regclass) is
    'Warns of rules that no longer compile after DDL, of one table or of all, and notes them in attachment_history.';

create function pgaudit_wf._after_other_ddl() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    perform pgaudit_wf._note_broken_rules();
exception
    -- It only warns, and DDL that has nothing to do with us must not fail for it.
    when others then
        raise warning 'the rules in pgaudit_wf.action_rule could not be checked: %', sqlerrm;
end
$$;
comment on function pgaudit_wf._after_other_ddl() is
    'Event trigger after DDL on types, functions, schemas and the like: notes the rules that rested on what is gone.';

create function pgaudit_wf.recompile(target regclass, renamed_to text, in_any_case boolean default true) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    setting pgaudit_wf.attachment;
    columns_now constant text[] := pgaudit_wf._column_names(recompile.target);
    renames jsonb;
    altered jsonb;
    lost record;
begin
    select * into strict setting from pgaudit_wf.attachment as a where a.target = recompile.target;
    renames := pgaudit_wf._find_rename(setting.columns, columns_now, recompile.renamed_to);
    altered := (select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(jsonb_build_object(
        'renamed', nullif(renames, '{}'),
        'added', (
            select jsonb_object_agg(name, case
                when name = any (pgaudit_wf._secret_columns(setting.redact, columns_now))
                    then case when atthasmissing then to_jsonb('[redacted]'::text) else 'null' end
                else coalesce(pgaudit_wf._column_default(recompile.target, name), 'null') end)
            from unnest(columns_now) as name
            join pg_attribute on attrelid = recompile.target and attname = name
            where name <> all (setting.columns || setting.ignore) and attgenerated <> 'v'
                and (recompile.renamed_to is null or renames = '{}')),
        'dropped', (
            select jsonb_agg(name) from unnest(setting.columns) as name
            where name <> all (columns_now) and not renames ? name))) where value <> 'null');

    if altered <> '{}' then
        setting.columns := columns_now;
        setting.id_columns := array(
            select pgaudit_wf._renamed(name, renames)
            from unnest(setting.id_columns) with ordinality as k (name, position) order by position);
        -- A setting keeps naming a column that was dropped: it applies to the column that replaces it. And the old name of a redacted
        -- column stays redacted, for the column that is next created under it.
        setting.org_column := pgaudit_wf._renamed(setting.org_column, renames);
        setting.label_column := pgaudit_wf._renamed(setting.label_column, renames);
        setting.ignore := array(select pgaudit_wf._renamed(name, renames) from unnest(setting.ignore) as name);
        setting.redact := setting.redact || array(
            select secret.renamed from unnest(setting.redact) as entry,
            lateral (
                select pgaudit_wf._renamed_secret(entry, columns_now || array(select jsonb_object_keys(renames)), renames) as renamed
            ) as secret
            where secret.renamed is not null);
        setting.shallow := array(select pgaudit_wf._renamed(name, renames) from unnest(setting.shallow) as name);
        update pgaudit_wf.attachment as a
        set (id_columns, org_column, label_column, ignore, redact, shallow, columns)
            = (setting.id_columns, setting.org_column, setting.label_column, setting.ignore, setting.redact, setting.shallow,
                setting.columns)
        where a.target = recompile.target;

        update pgaudit_wf.workflow_attachment as w
        set nodes_column = pgaudit_wf._renamed(nodes_column, renames),
            edges_column = pgaudit_wf._renamed(edges_column, renames),
            name_column = pgaudit_wf._renamed(name_column, renames),
            description_column = pgaudit_wf._renamed(description_column, renames),
            visibility_column = pgaudit_wf._renamed(visibility_column, renames),
            enabled_column = pgaudit_wf._renamed(enabled_column, renames),
            listed_column = pgaudit_wf._renamed(listed_column, renames),
            listing_columns = array(select pgaudit_wf._renamed(name, renames) from unnest(listing_columns) as name)
        where w.target = recompile.target;
        begin
            perform pgaudit_wf._rename_in_rules(setting.resource_type, key, value) from jsonb_each_text(renames);
        exception
            when sqlstate 'PA003' then
                raise warning '%', sqlerrm
                    using hint = 'Changes are recorded under the default action until the rule in pgaudit_wf.action_rule is fixed; '
                        'pgaudit_wf.doctor() names it.';
        end;
    end if;
    perform pgaudit_wf._follow_limit(setting, renames);
    -- Most DDL changes nothing that a trigger reads, and attach() itself sets this off once for each partition.
    if in_any_case or altered <> '{}' or setting.written_for is distinct from pgaudit_wf._written_state(recompile.target) then
        perform pgaudit_wf._write_functions(setting);
        for lost in select * from pgaudit_wf._switched_off(setting) loop
            raise warning '%', concat(setting.target, ': ', lost.problem) using hint = lost.remedy;
            altered := altered || jsonb_build_object('switched_off', coalesce(altered -> 'switched_off', '[]') || to_jsonb(lost.problem));
        end loop;
        perform pgaudit_wf._note_broken_rules(setting.target);
    end if;
    if altered <> '{}' then
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, 'altered', altered);
    end if;
end
$$;
comment on function pgaudit_wf.recompile(regclass, text, boolean) is
    'Rewrites an attached table''s trigger functions after DDL; its settings and rules follow a renamed column.';

create function pgaudit_wf._forget(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgaudit_wf.attachment as a where a.target = (setting).target;
    delete from pgaudit_wf.workflow_attachment as w where w.target = (setting).target;
    perform pgaudit_wf._uninstall_limit((setting).target);
    perform pgaudit_wf._drop_functions(array[
        (setting).function_name, pgaudit_wf._batch_function_name(setting), pgaudit_wf._guard_function_name(setting),
        pgaudit_wf._graph_function_name(setting)]);
    perform pgaudit_wf._revoke_usage(setting);
end
$$;
comment on function pgaudit_wf._forget(pgaudit_wf.attachment) is
    'Removes the attachment of a table that DDL dropped or made a partition of an attached one, and what was written for it.';

create function pgaudit_wf._fold_partitions() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    part pgaudit_wf.attachment;
    parent pgaudit_wf.attachment;
begin
    for part in
        select a.* from pgaudit_wf.attachment as a join pg_class as c on c.oid = a.target and c.relispartition order by a.target::oid
    loop
        select a.* into parent
        from pg_partition_ancestors(part.target) with ordinality as above (relid, distance)
        join pgaudit_wf.attachment as a on a.target = above.relid and a.target <> part.target
        order by above.distance desc limit 1;
        continue when not found;
        perform pgaudit_wf._forget(part);
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (part.target, part.resource_type, 'altered', jsonb_build_object('recorded_through', parent.target::text));
        -- What was hidden stays hidden.
        if not part.redact <@ parent.redact then
            update pgaudit_wf.attachment as a
            set redact = a.redact || array(select name from unnest(part.redact) as name where name <> all (a.redact))
            where a.target = parent.target returning a.* into parent;
            perform pgaudit_wf._write_functions(parent);
        end if;
        raise notice '% is now recorded through %, and its own attachment is gone', part.target, parent.target;
    end loop;
end
$$;
comment on function pgaudit_wf._fold_partitions() is
    'Ends the attachments of tables that became partitions of attached ones, whose triggers they then have.';

create function pgaudit_wf._before_ddl() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    perform pgaudit_wf._write_functions(a)
    from pgaudit_wf.attachment as a
    join pg_class as c on c.oid = a.target and c.relkind = 'p'
    join pg_proc as p on p.pronamespace = 'pgaudit_wf'::regnamespace and p.proname = a.function_name
    where a.form = 'compiled' and not has_function_privilege(c.relowner, p.oid, 'execute');
    perform pgaudit_wf._write_stamp(e)
    from pgaudit_wf.execution_attachment as e
    join pg_class as c on c.oid = e.target and c.relkind = 'p'
    join pg_proc as p on p.pronamespace = 'pgaudit_wf'::regnamespace and p.proname = e.function_name
    where not has_function_privilege(c.relowner, p.oid, 'execute');
end
$$;
comment on function pgaudit_wf._before_ddl() is
    'Event trigger before ALTER TABLE, CREATE TABLE and CREATE SCHEMA: lets a new owner of an attached table make partitions, '
    'as REASSIGN OWNED fires no event trigger.';

create function pgaudit_wf._after_ddl() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    command record;
    renamed_to text;
    concerned regclass;
begin
    perform pgaudit_wf._fold_partitions();
    for command in
        select done.classid, done.objid, done.objsubid from pg_event_trigger_ddl_commands() as done
        where done.classid in ('pg_class'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass)
    loop
        -- A new cast concerns its source type: a rule over it may no longer be safe to run.
        if command.classid = 'pg_cast'::regclass then
            select 'pg_type'::regclass, castsource into command.classid, command.objid from pg_cast where oid = command.objid;
        end if;
        -- Only RENAME COLUMN reports a column; it says the new name.
        renamed_to := (
            select attname from pg_attribute
            where command.classid = 'pg_class'::regclass and attrelid = command.objid and attnum = nullif(command.objsubid, 0));
        for concerned in
            select a.target from pgaudit_wf.attachment as a
            where a.form = 'compiled'
                and (
                    -- A typed table takes its columns from the type.
                    (select reloftype from pg_class where oid = a.target) = case command.classid
                        when 'pg_type'::regclass then command.objid
                        else (select nullif(reltype, 0) from pg_class where oid = command.objid) end
                    or command.classid = 'pg_class'::regclass and (a.target = command.objid
                        or a.target in (select pgaudit_wf._descendants(command.objid))
                        or a.target in (select relid from pg_partition_ancestors(command.objid)))
                    or exists (
                        select from pg_attribute
                        where attrelid = a.target and attnum > 0 and not attisdropped and atttypid >= 16384
                            and pgaudit_wf._contains_type(atttypid, case command.classid when 'pg_type'::regclass then command.objid
                                else (select reltype from pg_class where oid = command.objid) end)))
            order by a.target::oid
        loop
            perform pgaudit_wf.recompile(concerned, renamed_to,
                -- A type can change in ways that no column shows.
                not exists (
                    select from pg_class
                    where oid = command.objid and relkind in ('r', 'p', 'f') and command.classid = 'pg_class'::regclass));
        end loop;
        perform pgaudit_wf._follow_stamp(e.target, renamed_to) from pgaudit_wf.execution_attachment as e
        where command.classid = 'pg_class'::regclass
            and (e.target = command.objid
                or e.target in (select pgaudit_wf._descendants(command.objid))
                or e.target in (select relid from pg_partition_ancestors(command.objid)));
    end loop;
end
$$;
comment on function pgaudit_wf._after_ddl() is
    'Event trigger after ALTER TABLE, ALTER TYPE, CREATE TABLE, CREATE SCHEMA and CREATE CAST: '
    'rewrites the functions of the attached tables concerned.';

create function pgaudit_wf._follow_as_author() returns event_trigger
language plpgsql
set search_path = pg_catalog, pg_temp
-- While a table of many partitions is attached, pg_trigger grows in one transaction, and the planner goes by its size of before. Before
-- PostgreSQL 18, a plan that cannot but read all of a table then looks so dear that it is JIT-compiled.
set enable_seqscan = off
set jit = off
as $$
declare
    wanted record;
begin
    -- Statement triggers are not inherited by partitions, as row triggers are. Only pg_catalog is read until the partition is known to
    -- belong to an attached table: only that one's owner may execute our trigger functions, and others need no right of ours.
    -- pg_partition_tree() would lock every partition, and wait for whoever holds one.
    for wanted in
        with recursive part (relid) as (
            select command.objid from pg_event_trigger_ddl_commands() as command
            where command.classid = 'pg_class'::regclass and command.object_type = 'table'
            union
            select i.inhrelid from pg_inherits as i join part on i.inhparent = part.relid
        )
        select distinct part.relid::regclass as relation, p.proname as function_name, own.name, own.event, own.transition
        from part
        -- "offset 0": the planner takes functions for many rows, and would read all of pg_class and pg_trigger rather than look these up.
        cross join lateral (
            -- A foreign table can have none of these.
            select found.relkind from pg_class as found
            where found.oid = part.relid and found.relispartition and found.relkind <> 'f' offset 0
        ) as c
        join pg_partition_ancestors(part.relid) as parent on parent.relid <> part.relid
        cross join lateral (
            select found.tgname, found.tgfoid from pg_trigger as found
            where found.tgrelid = parent.relid and found.tgname ~ '^(!pgaudit_wf_insert_|pgaudit_wf_limit_insert$)' offset 0
        ) as t
        join (values
            ('!pgaudit_wf_insert_', 'pgaudit_wf_truncate', 'truncate', ''),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_insert', 'insert', 'referencing new table as new_rows'),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_update', 'update', 'referencing old table as old_rows new table as new_rows'),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_delete', 'delete', 'referencing old table as old_rows'),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_truncate', 'truncate', '')
        ) as own (parent_trigger, name, event, transition) on starts_with(t.tgname, own.parent_trigger)
        join pg_proc as p on p.oid = t.tgfoid
        join pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'pgaudit_wf'
        where (own.event <> 'truncate' or c.relkind <> 'p')
            and (
                select present.tgfoid from pg_trigger as present
                where present.tgrelid = part.relid and present.tgname = own.name) is distinct from t.tgfoid
    loop
        begin
            -- Not by _install_trigger(), which the author need not be allowed to execute.
            execute format('create or replace trigger %I after %s on %s %s for each statement execute function pgaudit_wf.%I()',
                wanted.name, wanted.event, wanted.relation, wanted.transition, wanted.function_name);
            if wanted.name = 'pgaudit_wf_truncate' then
                execute format('alter table %s enable always trigger pgaudit_wf_truncate', wanted.relation);
            end if;
        exception
            when insufficient_privilege then
                raise warning 'partition % of an audited table lacks the trigger % (%)', wanted.relation, wanted.name, sqlerrm
                    using hint = 'The table must be attached again: pgaudit_wf.doctor() says how.';
        end;
    end loop;
    -- A detached partition keeps its statement triggers but is no longer audited.
    for wanted in
        select distinct stray.tgname as name, stray.tgrelid::regclass as relation
        from pg_event_trigger_ddl_commands() as command
        join pg_class as c on c.oid = command.objid and c.relkind = 'p'
        join pg_trigger as own on own.tgrelid = c.oid and own.tgname ~ '^(!pgaudit_wf_insert_|pgaudit_wf_limit_insert$)'
        join pg_trigger as stray on stray.tgfoid = own.tgfoid and stray.tgparentid = 0
        where command.classid = 'pg_class'::regclass and command.command_tag = 'ALTER TABLE' and own.tgparentid = 0
            and not exists (select from pg_partition_ancestors(stray.tgrelid) as parent where parent.relid = pg_partition_root(c.oid))
    loop
        begin
            execute format('drop trigger %I on %s', wanted.name, wanted.relation);
        exception
            when insufficient_privilege then
                raise warning 'the trigger % stays on %, which is no longer a partition of an audited table (%)',
                    wanted.name, wanted.relation, sqlerrm;
        end;
    end loop;
    -- Where changes were recorded at the end of their statement, and that is now too late or the wrong place: as _needs_rows() has it.
    for wanted in
        with command as (
            select done.objid from pg_event_trigger_ddl_commands() as done where done.classid = 'pg_class'::regclass
            union
            select t.tgrelid from pg_event_trigger_ddl_commands() as done join pg_trigger as t on t.oid = done.objid
            where done.classid = 'pg_trigger'::regclass
        ), concerned as (
            select command.objid as relation from command
            union
            select k.confrelid from command join pg_constraint as k on k.conrelid = command.objid and k.contype = 'f'
            union
            select i.inhrelid from command join pg_inherits as i on i.inhparent = command.objid
        )
        select batch.tgrelid::regclass as relation, batch.tgname as batch, replace(batch.tgname, '_batch_', '_') as by_row
        from concerned
        -- As above: there may be thousands of these, each to be looked for among all constraints.
        cross join lateral (
            select found.tgrelid, found.tgname, found.tgtype from pg_trigger as found
            where found.tgrelid = concerned.relation and found.tgname ~ '^!pgaudit_wf_batch_' and found.tgenabled <> 'D' offset 0
        ) as batch
        -- Not for a parent: whoever adds a child takes no lock that its writers would wait for. Attaching the child sees to it.
        where exists (select from pg_inherits where inhrelid = batch.tgrelid)
            or exists (
                select from pg_trigger as other
                where other.tgrelid = batch.tgrelid and not other.tgisinternal and other.tgenabled <> 'D'
                    and other.tgname !~ '^!?pgaudit_wf_' and other.tgtype & 3 = 1 and other.tgtype & batch.tgtype & 28 <> 0)
            or exists (
                select from pg_constraint
                where contype = 'f' and confrelid = batch.tgrelid
                    and case batch.tgtype & 28 when 8 then confdeltype when 16 then confupdtype end in ('c', 'n', 'd'))
    loop
        begin
            execute format('alter table %s disable trigger %I, enable always trigger %I', wanted.relation, wanted.batch, wanted.by_row);
        exception
            when insufficient_privilege then
                raise warning 'changes of % are still recorded at the end of each statement, after what its other triggers change (%)',
                    wanted.relation, sqlerrm
                    using hint = 'The table must be attached again: pgaudit_wf.doctor() says how.';
        end;
    end loop;
    if exists (
        select from pg_event_trigger_ddl_commands() as command where command.object_type = 'view' and command.schema_name = 'pgaudit_wf')
    then
        perform pgaudit_wf.grant_directory();
    end if;
end
$$;
comment on function pgaudit_wf._follow_as_author() is
    'Event trigger after CREATE TABLE, ALTER TABLE, CREATE TRIGGER and CREATE VIEW, as the author of the DDL: '
    'gives new partitions of an attached table their own statement triggers, lets row triggers record where statement triggers no longer '
    'can, and lets a view of ours read the columns that it names.';

create function pgaudit_wf._after_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    setting pgaudit_wf.attachment;
    stamp text;
    broken regclass;
begin
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.target in (
            select dropped.objid from pg_event_trigger_dropped_objects() as dropped
            where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0)
    loop
        insert into pgaudit_wf.attachment_history (target, resource_type, change)
        select dropped.object_identity, setting.resource_type, 'dropped'
        from pg_event_trigger_dropped_objects() as dropped
        where dropped.objid = setting.target and dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0;
        perform pgaudit_wf._forget(setting);
    end loop;
    for stamp in
        delete from pgaudit_wf.execution_attachment as e
        where e.target in (
            select dropped.objid from pg_event_trigger_dropped_objects() as dropped
            where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0)
        returning e.function_name
    loop
        perform pgaudit_wf._drop_functions(array[stamp]);
    end loop;
    -- A partition that was dropped took its rows with it.
    for setting in
        select a.* from pgaudit_wf.attachment as a
        join pgaudit_wf.limit_target as t on t.target = a.target
        where exists (
            select from pg_event_trigger_dropped_objects() as dropped
            where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0
                and t.basis -> 'relations' @> to_jsonb(dropped.objid::bigint))
    loop
        perform pgaudit_wf._follow_limit(setting, '{}');
    end loop;
    perform pgaudit_wf._note_dropped_triggers();
    -- A CASCADE (of a type, say) dropped columns of attached tables; ALTER TABLE is seen by _after_ddl().
    if tg_tag <> 'ALTER TABLE' then
        for broken in
            select distinct a.target from pgaudit_wf.attachment as a
            join pg_event_trigger_dropped_objects() as dropped
                on dropped.objid = a.target and dropped.classid = 'pg_class'::regclass and dropped.objsubid <> 0
            where a.form = 'compiled'
        loop
            perform pgaudit_wf.recompile(broken, null);
        end loop;
    end if;
end
$$;
comment on function pgaudit_wf._after_drop() is
    'Event trigger: forgets attached tables that were dropped, rewrites the functions of those that lost a column by CASCADE.';
