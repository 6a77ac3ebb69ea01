-- Limits: how many rows of a kind an organisation may have. A counter for each organisation and type is kept by statement
-- triggers, which only tables whose type has a limit have.

create table pgaudit_wf.org_limit (
    id bigint generated always as identity primary key,
    org_id text,
    resource_type text not null,
    max_count bigint,
    constraint org_limit_key unique nulls not distinct (org_id, resource_type),
    constraint org_limit_max_count check (max_count >= 0),
    constraint org_limit_default check (org_id is not null or max_count is not null),
    constraint org_limit_org_id check (org_id <> '' and length(org_id) <= 255),
    constraint org_limit_resource_type check (resource_type <> '')
);
comment on table pgaudit_wf.org_limit is
    'How many rows of a resource type an organisation may have; takes effect at once on attached tables of that type: the statement that goes over is refused with PA330. Lowering a limit below what is there refuses new rows only.';
comment on column pgaudit_wf.org_limit.id is 'Number of the limit.';
comment on column pgaudit_wf.org_limit.org_id is 'The organisation; null: all that have no limit of their own.';
comment on column pgaudit_wf.org_limit.resource_type is 'Resource type of the attached tables, as given to attach().';
comment on column pgaudit_wf.org_limit.max_count is 'How many there may be; null: as many as it likes, whatever the default is.';

create table pgaudit_wf.limit_condition (
    resource_type text primary key,
    condition text not null,
    constraint limit_condition_condition check (condition <> '')
);
comment on table pgaudit_wf.limit_condition is
    'Which rows of a resource type take a place, where not all do: a row for which the condition ceases to hold (a key that is revoked) frees its place.';
comment on column pgaudit_wf.limit_condition.resource_type is 'Resource type of the attached tables.';
comment on column pgaudit_wf.limit_condition.condition is
    'Boolean SQL expression over the row''s columns, such as revoked_at is null; immutable, as a count cannot follow the clock. Functions outside pg_catalog need their schema.';

-- Room on the page, so that counting up makes no index entries.
create table pgaudit_wf.org_usage (
    org_id text not null,
    resource_type text not null,
    used bigint not null,
    primary key (org_id, resource_type)
) with (fillfactor = 50);
comment on table pgaudit_wf.org_usage is
    'How many rows that take a place each organisation has, for resource types that have a limit; written by triggers only. recount_usage() counts anew.';
comment on column pgaudit_wf.org_usage.org_id is 'The organisation.';
comment on column pgaudit_wf.org_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.org_usage.used is 'Rows that take a place.';

create table pgaudit_wf.limit_target (
    target regclass primary key,
    resource_type text not null,
    org_column text not null,
    function_name text not null unique,
    basis jsonb not null
);
comment on table pgaudit_wf.limit_target is 'Tables that are counted; written by install_limit() only.';
comment on column pgaudit_wf.limit_target.target is 'The table.';
comment on column pgaudit_wf.limit_target.resource_type is 'Its resource type.';
comment on column pgaudit_wf.limit_target.org_column is 'Column with the organisation; rows without one take no place.';
comment on column pgaudit_wf.limit_target.function_name is 'Trigger function in schema pgaudit_wf.';
comment on column pgaudit_wf.limit_target.basis is 'What the count rests on: number of the org column, types of the columns by number, relations that hold the rows.';

alter table pgaudit_wf.org_limit enable row level security;
create policy readable_org on pgaudit_wf.org_limit for select using (org_id is null or org_id = (select pgaudit_wf.readable_org()));
alter table pgaudit_wf.org_usage enable row level security;
create policy readable_org on pgaudit_wf.org_usage for select using (org_id = (select pgaudit_wf.readable_org()));

create function pgaudit_wf.limit_of(org_id text, resource_type text) returns bigint
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select max_count from pgaudit_wf.org_limit as l
    where l.resource_type = limit_of.resource_type and (l.org_id = limit_of.org_id or l.org_id is null)
    order by l.org_id nulls last limit 1
$$;
comment on function pgaudit_wf.limit_of(text, text) is 'How many rows of a resource type an organisation may have: its own limit, else the default; null: any number.';

create view pgaudit_wf.limit_usage with (security_invoker = true) as
select
    known.org_id,
    known.resource_type,
    coalesce(u.used, 0) as used,
    pgaudit_wf.limit_of(known.org_id, known.resource_type) as max_count,
    not exists (select from pgaudit_wf.org_limit as l where l.org_id = known.org_id and l.resource_type = known.resource_type) as is_default
from (
    select counted.org_id, counted.resource_type from pgaudit_wf.org_usage as counted
    union
    select l.org_id, l.resource_type from pgaudit_wf.org_limit as l where l.org_id is not null
) as known
left join pgaudit_wf.org_usage as u on u.org_id = known.org_id and u.resource_type = known.resource_type;
comment on view pgaudit_wf.limit_usage is 'How much of its limits each organisation has used. Owners and admins see their own organisation, as reader.';
comment on column pgaudit_wf.limit_usage.org_id is 'The organisation.';
comment on column pgaudit_wf.limit_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.limit_usage.used is 'Rows that take a place now.';
comment on column pgaudit_wf.limit_usage.max_count is 'How many there may be; null: any number.';
comment on column pgaudit_wf.limit_usage.is_default is 'True when the limit is the default for all organisations.';

create function pgaudit_wf.compile_limit_condition(target regclass, condition text, renames jsonb default '{}') returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    outer_state constant text := coalesce(current_setting('pgaudit_wf.compiling', true), 'off');
    compiled text;
    old_name text;
    new_name text;
begin
    perform set_config('pgaudit_wf.compiling', 'on', true);
    -- As the predicate of an index PostgreSQL itself checks the condition (boolean, immutable, no subquery), follows renamed
    -- columns and writes it out unambiguously. The copy of the table has no rows.
    execute format('create temporary table pgaudit_wf_limit (like %s)', compile_limit_condition.target);
    for old_name, new_name in select key, value from jsonb_each_text(compile_limit_condition.renames) loop
        execute format('alter table pg_temp.pgaudit_wf_limit rename %I to %I', new_name, old_name);
    end loop;
    execute format(e'create index pgaudit_wf_limit_condition on pg_temp.pgaudit_wf_limit ((1)) where (%s\n)', compile_limit_condition.condition);
    for old_name, new_name in select key, value from jsonb_each_text(compile_limit_condition.renames) loop
        execute format('alter table pg_temp.pgaudit_wf_limit rename %I to %I', old_name, new_name);
    end loop;
    select pg_get_expr(indpred, indrelid) into strict compiled
    from pg_index where indexrelid = to_regclass('pg_temp.pgaudit_wf_limit_condition');
    drop table pg_temp.pgaudit_wf_limit;
    perform set_config('pgaudit_wf.compiling', outer_state, true);
    return compiled;
exception
    when others then
        raise exception 'the limit condition of % does not compile for %: %',
            coalesce((select c.resource_type from pgaudit_wf.limit_condition as c where c.condition = compile_limit_condition.condition limit 1), 'this type'),
            compile_limit_condition.target, sqlerrm
            using errcode = 'PA003',
                detail = format('The condition is: %s', compile_limit_condition.condition),
                hint = 'It is a boolean expression over the columns of the row, without subqueries and without what changes by itself, such as now(); name functions and types outside pg_catalog with their schema.';
end
$$;
comment on function pgaudit_wf.compile_limit_condition(regclass, text, jsonb) is
    'The condition as PostgreSQL writes it, after renames of columns ({old: new}) that the table has already undergone; raises PA003 if it is no immutable boolean expression over a row of the table.';

create function pgaudit_wf.counting_condition(target regclass, resource_type text) returns text
language sql
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        (select pgaudit_wf.compile_limit_condition(counting_condition.target, c.condition)
            from pgaudit_wf.limit_condition as c where c.resource_type = counting_condition.resource_type),
        'true')
$$;
comment on function pgaudit_wf.counting_condition(regclass, text) is 'SQL condition that is true for the rows of a table that take a place.';

create function pgaudit_wf.recount_usage(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    counted pgaudit_wf.limit_target;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'rows cannot be counted in a % transaction, which does not see what others committed since it began', current_setting('transaction_isolation')
            using errcode = 'PA008', hint = 'Do it in a read committed transaction.';
    end if;
    -- Whoever writes has the table's lock until he commits, so nobody holds a counter once we have all of them.
    for counted in select t.* from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type order by t.target::oid loop
        execute format('lock table %s in share row exclusive mode', counted.target);
    end loop;
    delete from pgaudit_wf.org_usage as u where u.resource_type = recount_usage.resource_type;
    for counted in select t.* from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type loop
        execute format(
            'insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)'
            ' select left(%1$I::text, 255), $1, count(*) from %2$s where %1$I is not null and %3$s group by 1'
            ' on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used',
            counted.org_column,
            -- Of an inheriting table, the rows are its own.
            case when (select relkind from pg_class where oid = counted.target) = 'p' then '' else 'only ' end || counted.target::text,
            pgaudit_wf.counting_condition(counted.target, counted.resource_type)) using recount_usage.resource_type;
    end loop;
end
$$;
comment on function pgaudit_wf.recount_usage(text) is
    'Counts the rows of a resource type anew, while its tables are locked against writing. For when triggers were switched off or data was restored beside them. Raises PA008 unless read committed.';

create function pgaudit_wf.count_truncated(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if (select sum(jsonb_array_length(t.basis -> 'relations')) from pgaudit_wf.limit_target as t where t.resource_type = count_truncated.resource_type) = 1 then
        delete from pgaudit_wf.org_usage as u where u.resource_type = count_truncated.resource_type;
    else
        perform pgaudit_wf.recount_usage(count_truncated.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf.count_truncated(text) is 'Counts what is left of a resource type after one of its tables was emptied.';

create function pgaudit_wf.moved_rows(org_column text, condition text, op text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case op
        when 'insert' then format('select left(%1$I::text, 255) as org_id, count(*) as change from new_rows where %1$I is not null and %2$s group by 1', org_column, condition)
        when 'delete' then format('select left(%1$I::text, 255) as org_id, -count(*) as change from old_rows where %1$I is not null and %2$s group by 1', org_column, condition)
        else format(
            e'select org_id, sum(change)::bigint as change from ('
            '\n                select left(%1$I::text, 255) as org_id, -1 as change from old_rows where %1$I is not null and %2$s'
            '\n                union all'
            '\n                select left(%1$I::text, 255), 1 from new_rows where %1$I is not null and %2$s'
            '\n            ) as row_change group by org_id having sum(change) <> 0', org_column, condition)
    end
$$;
comment on function pgaudit_wf.moved_rows(text, text, text) is 'Query for how many places each organisation takes (or frees) by a statement.';

create function pgaudit_wf.compile_limit(target regclass, resource_type text, org_column text, function_name text, generic boolean) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    condition constant text := pgaudit_wf.counting_condition(compile_limit.target, compile_limit.resource_type);
    statements text := '';
    op text;
begin
    foreach op in array array['insert', 'update', 'delete'] loop
        statements := statements || format($branch$
    %1$s tg_op = %2$L then
        with moved as materialized (
            %3$s
        ), counted as (
            insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)
            select moved.org_id, %4$L, moved.change from moved order by moved.org_id
            on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used
            returning u.org_id, u.used
        )
        select counted.org_id, own.max_count into refused_org, maximum
        from counted,
        lateral (
            select l.max_count from pgaudit_wf.org_limit as l
            where l.resource_type = %4$L and (l.org_id = counted.org_id or l.org_id is null)
            order by l.org_id nulls last limit 1
        ) as own
        where %5$s
        order by 1 limit 1;$branch$,
            case op when 'insert' then 'if' else 'elsif' end, upper(op),
            pgaudit_wf.moved_rows(compile_limit.org_column, condition, op), compile_limit.resource_type,
            case op
                when 'insert' then 'counted.used > own.max_count'
                -- Asked for those over the limit only: whose places became fewer is not to be refused.
                when 'update' then 'counted.used > own.max_count and (select moved.change from moved where moved.org_id = counted.org_id) > 0'
                -- Who frees places is never over.
                else 'false'
            end);
    end loop;
    statements := statements || format($last$
    else
        perform pgaudit_wf.count_truncated(%L);
    end if;$last$, compile_limit.resource_type);
    if compile_limit.generic then
        -- Nobody tells us of a renamed column here, and it must not fail the write.
        statements := e'\n    begin' || statements || format($drift$
    exception
        when undefined_column then
            raise warning 'rows of %% are not being counted: a column was renamed or dropped', %1$L
                using hint = format('Mend pgaudit_wf.limit_condition if it names it, then: select pgaudit_wf.attach(%%L);', %1$L);
            return null;
    end;$drift$, compile_limit.target);
    end if;
    return format(
        e'create or replace function pgaudit_wf.%I() returns trigger\nlanguage plpgsql security definer\nset search_path = pg_catalog, pg_temp\nas %L',
        compile_limit.function_name, format($body$
-- Counts the rows of %1$s that take a place and refuses those over the limit; written because of pgaudit_wf.org_limit.
-- The counters are locked in the order of their organisations, so that two statements never wait for each other.
#variable_conflict use_column
declare
    refused_org text;
    maximum bigint;
begin%2$s
    if refused_org is not null then
        raise exception 'organisation %% has reached its limit of %% for %%', refused_org, maximum, %3$L
            using errcode = 'PA330', schema = tg_table_schema, table = tg_table_name,
                detail = jsonb_build_object('org_id', refused_org, 'resource_type', %3$L, 'max_count', maximum)::text,
                hint = 'Delete or revoke one first, or raise the limit in pgaudit_wf.org_limit.';
    end if;
    return null;
end
$body$, translate(compile_limit.target::text, e'\r\n', '  '), statements, compile_limit.resource_type));
end
$$;
comment on function pgaudit_wf.compile_limit(regclass, text, text, text, boolean) is 'The CREATE FUNCTION statement of the trigger that counts the rows of a table.';

create function pgaudit_wf.must_recount(before jsonb, after jsonb) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    relation regclass;
    filled boolean;
begin
    if must_recount.before is null or before -> 'org' <> after -> 'org' or not before -> 'relations' <@ (after -> 'relations')
        or exists (
            select from jsonb_each(before -> 'types') as b join jsonb_each(after -> 'types') as a using (key) where a.value <> b.value) then
        return true;
    end if;
    -- A new partition is empty, as a rule, and an old table not worth reading for it.
    for relation in
        select value::oid::regclass from jsonb_array_elements_text(after -> 'relations') where not before -> 'relations' @> to_jsonb(value::bigint)
    loop
        execute format('select exists (select from only %s)', relation) into filled;
        if filled then
            return true;
        end if;
    end loop;
    return false;
end
$$;
comment on function pgaudit_wf.must_recount(jsonb, jsonb) is 'Whether a count that rests on one basis does not hold on another: limit_target.basis before and after DDL.';

create function pgaudit_wf.install_limit(setting pgaudit_wf.attachment, recount boolean default false) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    outer_state constant text := coalesce(current_setting('pgaudit_wf.compiling', true), 'off');
    function_name constant text := 'limit_' || substr((setting).function_name, length('capture_') + 1);
    known pgaudit_wf.limit_target;
    basis jsonb;
    relation regclass;
begin
    -- Limits of the type come and go in other transactions too.
    perform pg_advisory_xact_lock(hashtext('pgaudit_wf.org_limit'), hashtext((setting).resource_type));
    select * into known from pgaudit_wf.limit_target as t where t.target = (setting).target;
    if not exists (select from pgaudit_wf.org_limit as l where l.resource_type = (setting).resource_type) then
        if known.target is not null then
            perform pgaudit_wf.uninstall_limit((setting).target);
        end if;
        return;
    end if;
    if (setting).org_column is null then
        raise exception '% has a limit for each organisation, and % has no column that says whose a row is', (setting).resource_type, (setting).target
            using errcode = 'PA002', hint = format('Attach the table with its org_column, or delete the limits of %s from pgaudit_wf.org_limit.', (setting).resource_type);
    end if;

    perform set_config('pgaudit_wf.compiling', 'on', true);
    execute pgaudit_wf.compile_limit((setting).target, (setting).resource_type, (setting).org_column, function_name, (setting).form = 'generic');
    execute format('comment on function pgaudit_wf.%I() is %L', function_name, format('Counts the rows of %s for pgaudit_wf.org_limit.', (setting).target));
    execute format('revoke all on function pgaudit_wf.%I() from public', function_name);
    execute format('alter function pgaudit_wf.%I() owner to %s', function_name, (select nspowner::regrole::text from pg_namespace where nspname = 'pgaudit_wf'));

    -- A statement trigger fires for the table that the statement names, which may be any partition.
    for relation in select (setting).target union select relid from pg_partition_tree((setting).target) order by 1 loop
        execute format('create or replace trigger pgaudit_wf_limit_insert after insert on %s referencing new table as new_rows for each statement execute function pgaudit_wf.%I()', relation, function_name);
        execute format('create or replace trigger pgaudit_wf_limit_update after update on %s referencing old table as old_rows new table as new_rows for each statement execute function pgaudit_wf.%I()', relation, function_name);
        execute format('create or replace trigger pgaudit_wf_limit_delete after delete on %s referencing old table as old_rows for each statement execute function pgaudit_wf.%I()', relation, function_name);
        execute format('alter table only %s enable always trigger pgaudit_wf_limit_insert, enable always trigger pgaudit_wf_limit_update, enable always trigger pgaudit_wf_limit_delete', relation);
    end loop;
    for relation in select pgaudit_wf.leaf_tables((setting).target) loop
        execute format('create or replace trigger pgaudit_wf_limit_truncate after truncate on %s for each statement execute function pgaudit_wf.%I()', relation, function_name);
        execute format('alter table only %s enable always trigger pgaudit_wf_limit_truncate', relation);
    end loop;
    perform pgaudit_wf.drop_limit_triggers(function_name, (setting).target);
    perform set_config('pgaudit_wf.compiling', outer_state, true);

    basis := jsonb_build_object(
        'org', (select attnum from pg_attribute where attrelid = (setting).target and attname = (setting).org_column),
        'relations', (select jsonb_agg(leaf::oid::bigint order by leaf::oid) from pgaudit_wf.leaf_tables((setting).target) as leaf),
        'types', (select jsonb_object_agg(attnum, format_type(atttypid, atttypmod)) from pg_attribute where attrelid = (setting).target and attnum > 0 and not attisdropped));
    delete from pgaudit_wf.limit_target as t where t.target = (setting).target;
    insert into pgaudit_wf.limit_target (target, resource_type, org_column, function_name, basis)
    values ((setting).target, (setting).resource_type, (setting).org_column, function_name, basis);
    if known.resource_type <> (setting).resource_type then
        perform pgaudit_wf.recount_usage(known.resource_type);
    end if;
    if recount or known.resource_type <> (setting).resource_type or pgaudit_wf.must_recount(known.basis, basis) then
        perform pgaudit_wf.recount_usage((setting).resource_type);
    end if;
end
$$;
comment on function pgaudit_wf.install_limit(pgaudit_wf.attachment, boolean) is
    'Has the rows of an attached table counted if its resource type has a limit, and not counted otherwise. Raises PA002 if it has no org column, PA003 if the condition does not compile.';

create function pgaudit_wf.drop_limit_triggers(function_name text, keep_for regclass default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    installed record;
begin
    for installed in
        select tgname as name, tgrelid::regclass as relation from pg_trigger
        where tgfoid = to_regprocedure(format('pgaudit_wf.%I()', drop_limit_triggers.function_name))
            and (drop_limit_triggers.keep_for is null
                or (tgrelid <> drop_limit_triggers.keep_for and tgrelid not in (select relid from pg_partition_tree(drop_limit_triggers.keep_for))))
    loop
        execute format('drop trigger %I on %s', installed.name, installed.relation);
    end loop;
end
$$;
comment on function pgaudit_wf.drop_limit_triggers(text, regclass) is 'Drops the triggers that count rows by a function, but those of the given table and its partitions.';

create function pgaudit_wf.uninstall_limit(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    outer_state constant text := coalesce(current_setting('pgaudit_wf.compiling', true), 'off');
    known pgaudit_wf.limit_target;
begin
    delete from pgaudit_wf.limit_target as t where t.target = uninstall_limit.target returning t.* into known;
    if not found then
        return;
    end if;
    perform set_config('pgaudit_wf.compiling', 'on', true);
    perform pgaudit_wf.drop_limit_triggers(known.function_name);
    execute format('drop function if exists pgaudit_wf.%I()', known.function_name);
    perform set_config('pgaudit_wf.compiling', outer_state, true);
    if exists (select from pgaudit_wf.limit_target as t where t.resource_type = known.resource_type) then
        perform pgaudit_wf.recount_usage(known.resource_type);
    else
        delete from pgaudit_wf.org_usage as u where u.resource_type = known.resource_type;
    end if;
end
$$;
comment on function pgaudit_wf.uninstall_limit(regclass) is 'No longer counts the rows of a table.';

create function pgaudit_wf.rename_in_limit_condition(target regclass, resource_type text, renames jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    outer_state constant text := coalesce(current_setting('pgaudit_wf.compiling', true), 'off');
    other regclass;
begin
    perform set_config('pgaudit_wf.compiling', 'on', true);
    update pgaudit_wf.limit_condition as c
    set condition = pgaudit_wf.compile_limit_condition(rename_in_limit_condition.target, c.condition, renames)
    where c.resource_type = rename_in_limit_condition.resource_type
        and exists (select from jsonb_each_text(renames) where strpos(lower(c.condition), lower(key)) > 0);
    if found then
        for other in
            select a.target from pgaudit_wf.attachment as a
            where a.resource_type = rename_in_limit_condition.resource_type and a.target <> rename_in_limit_condition.target
        loop
            perform pgaudit_wf.counting_condition(other, rename_in_limit_condition.resource_type);
        end loop;
    end if;
    perform set_config('pgaudit_wf.compiling', outer_state, true);
end
$$;
comment on function pgaudit_wf.rename_in_limit_condition(regclass, text, jsonb) is
    'Follows renamed columns ({old: new}) in the limit condition of a resource type. Raises PA003 if another table of the type cannot follow.';

create function pgaudit_wf.apply_org_limit() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    type text;
    setting pgaudit_wf.attachment;
    counted regclass;
begin
    for type in select distinct touched.resource_type from touched order by 1 loop
        perform pg_advisory_xact_lock(hashtext('pgaudit_wf.org_limit'), hashtext(type));
        if exists (select from pgaudit_wf.org_limit as l where l.resource_type = type) then
            for setting in
                select a.* from pgaudit_wf.attachment as a
                where a.resource_type = type and not exists (select from pgaudit_wf.limit_target as t where t.target = a.target)
                order by a.target::oid
            loop
                perform pgaudit_wf.install_limit(setting, true);
            end loop;
        else
            for counted in select t.target from pgaudit_wf.limit_target as t where t.resource_type = type order by t.target::oid loop
                perform pgaudit_wf.uninstall_limit(counted);
            end loop;
        end if;
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf.apply_org_limit() is 'Trigger of org_limit: has tables counted from the first limit of their type until the last.';

create trigger apply_insert after insert on pgaudit_wf.org_limit
    referencing new table as touched for each statement execute function pgaudit_wf.apply_org_limit();
create trigger apply_update_new after update on pgaudit_wf.org_limit
    referencing new table as touched for each statement execute function pgaudit_wf.apply_org_limit();
create trigger apply_update_old after update on pgaudit_wf.org_limit
    referencing old table as touched for each statement execute function pgaudit_wf.apply_org_limit();
create trigger apply_delete after delete on pgaudit_wf.org_limit
    referencing old table as touched for each statement execute function pgaudit_wf.apply_org_limit();

create function pgaudit_wf.apply_limit_condition() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
begin
    -- A renamed column counts the same rows.
    if current_setting('pgaudit_wf.compiling', true) = 'on' then
        return null;
    end if;
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.resource_type in (select touched.resource_type from touched) order by a.target::oid
    loop
        perform pgaudit_wf.counting_condition(setting.target, setting.resource_type);
        perform pgaudit_wf.install_limit(setting, true);
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf.apply_limit_condition() is 'Trigger of limit_condition: checks the condition on the attached tables of its type and counts their rows by it.';

create trigger apply_insert after insert on pgaudit_wf.limit_condition
    referencing new table as touched for each statement execute function pgaudit_wf.apply_limit_condition();
create trigger apply_update_new after update on pgaudit_wf.limit_condition
    referencing new table as touched for each statement execute function pgaudit_wf.apply_limit_condition();
create trigger apply_update_old after update on pgaudit_wf.limit_condition
    referencing old table as touched for each statement execute function pgaudit_wf.apply_limit_condition();
create trigger apply_delete after delete on pgaudit_wf.limit_condition
    referencing old table as touched for each statement execute function pgaudit_wf.apply_limit_condition();

create function pgaudit_wf.record_org_limit() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    before constant jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) - 'id' end;
    after constant jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) - 'id' end;
begin
    if before is distinct from after then
        insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff)
        values (coalesce(after, before) ->> 'org_id', case when tg_op = 'DELETE' then 'org_limit.removed' else 'org_limit.set' end,
            'org_limit', coalesce(after, before) ->> 'resource_type', true, pgaudit_wf.json_diff(before, after));
    end if;
    return null;
end
$$;
comment on function pgaudit_wf.record_org_limit() is 'Trigger of org_limit: records as org_limit.set and org_limit.removed who allowed whom how much.';
create trigger record after insert or update or delete on pgaudit_wf.org_limit
    for each row execute function pgaudit_wf.record_org_limit();

create function pgaudit_wf.set_org_limit(org_id text, resource_type text, max_count bigint) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.org_limit (org_id, resource_type, max_count)
    values (set_org_limit.org_id, set_org_limit.resource_type, set_org_limit.max_count)
    on conflict on constraint org_limit_key do update set max_count = excluded.max_count
$$;
comment on function pgaudit_wf.set_org_limit(text, text, bigint) is
    'Sets the limit of an organisation (null: of all that have none of their own) for a resource type, whether it had one or not; max_count null: no limit for this organisation. Granted to nobody: whoever may call it decides what is paid for.';
