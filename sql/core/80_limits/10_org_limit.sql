-- Limits: how many rows of a kind an organization may have. A counter for each organization and type is kept by statement
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
    'How many rows of a resource type an organization may have; takes effect at once on attached tables of that type: '
    'the statement that goes over is refused with PA330. Lowering a limit below what is there refuses new rows only.';
comment on column pgaudit_wf.org_limit.id is 'Number of the limit.';
comment on column pgaudit_wf.org_limit.org_id is 'The organization; null: all that have no limit of their own.';
comment on column pgaudit_wf.org_limit.resource_type is 'Resource type of the attached tables, as given to attach().';
comment on column pgaudit_wf.org_limit.max_count is 'How many there may be; null: as many as it likes, whatever the default is.';

create table pgaudit_wf.limit_condition (
    resource_type text primary key,
    condition text not null,
    constraint limit_condition_condition check (condition <> '')
);
comment on table pgaudit_wf.limit_condition is
    'Which rows of a resource type take a place, where not all do: '
    'a row for which the condition ceases to hold (a key that is revoked) frees its place.';
comment on column pgaudit_wf.limit_condition.resource_type is 'Resource type of the attached tables.';
comment on column pgaudit_wf.limit_condition.condition is
    'Boolean SQL expression over the row''s columns, such as revoked_at is null; immutable, as a count cannot follow the clock. '
    'Functions outside pg_catalog need their schema.';

-- Room on the page, so that counting up makes no index entries.
create table pgaudit_wf.org_usage (
    org_id text not null,
    resource_type text not null,
    used bigint not null,
    primary key (org_id, resource_type)
) with (fillfactor = 50);
comment on table pgaudit_wf.org_usage is
    'How many rows that take a place each organization has, for resource types that have a limit; written by triggers only. '
    'recount_usage() counts anew.';
comment on column pgaudit_wf.org_usage.org_id is 'The organization.';
comment on column pgaudit_wf.org_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.org_usage.used is 'Rows that take a place.';

create table pgaudit_wf.limit_target (
    target regclass primary key,
    resource_type text not null,
    org_column text not null,
    condition text not null,
    condition_columns text[] not null,
    aliases jsonb not null,
    function_name text not null unique,
    basis jsonb not null,
    stale_since timestamptz
);
comment on table pgaudit_wf.limit_target is 'Tables that are counted; written by install_limit() only.';
comment on column pgaudit_wf.limit_target.target is 'The table.';
comment on column pgaudit_wf.limit_target.resource_type is 'Its resource type.';
comment on column pgaudit_wf.limit_target.org_column is 'Column with the organization, by its alias; rows without one take no place.';
comment on column pgaudit_wf.limit_target.condition is
    'Condition for a row to take a place, as PostgreSQL writes it, over the aliases of the columns.';
comment on column pgaudit_wf.limit_target.condition_columns is 'Aliases of the columns that the condition names.';
comment on column pgaudit_wf.limit_target.aliases is
    'The columns'' names when the condition was compiled, by what they are called now ({name: alias}): '
    'so a renamed column is counted as before.';
comment on column pgaudit_wf.limit_target.function_name is 'Trigger function in schema pgaudit_wf.';
comment on column pgaudit_wf.limit_target.basis is
    'What the count rests on: number of the org column, types of the columns by alias, relations that hold the rows.';
comment on column pgaudit_wf.limit_target.stale_since is
    'Since when DDL may have made the count wrong that could not be counted anew there and then; recount_usage() does.';

alter table pgaudit_wf.org_limit enable row level security;
create policy readable_org on pgaudit_wf.org_limit for select using (org_id is null or org_id = (select pgaudit_wf._readable_org()));
alter table pgaudit_wf.org_usage enable row level security;
create policy readable_org on pgaudit_wf.org_usage for select using (org_id = (select pgaudit_wf._readable_org()));

create function pgaudit_wf._limit_of(org_id text, resource_type text) returns bigint
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select max_count from pgaudit_wf.org_limit as l
    where l.resource_type = _limit_of.resource_type and (l.org_id = _limit_of.org_id or l.org_id is null)
    order by l.org_id nulls last limit 1
$$;
comment on function pgaudit_wf._limit_of(text, text) is
    'How many rows of a resource type an organization may have: its own limit, else the default; null: any number.';

create view pgaudit_wf.limit_usage with (security_invoker = true) as
select
    known.org_id,
    known.resource_type,
    coalesce(u.used, 0) as used,
    pgaudit_wf._limit_of(known.org_id, known.resource_type) as max_count,
    not exists (select from pgaudit_wf.org_limit as l where l.org_id = known.org_id and l.resource_type = known.resource_type) as is_default
from (
    select counted.org_id, counted.resource_type from pgaudit_wf.org_usage as counted
    union
    select l.org_id, l.resource_type from pgaudit_wf.org_limit as l where l.org_id is not null
) as known
left join pgaudit_wf.org_usage as u on u.org_id = known.org_id and u.resource_type = known.resource_type;
comment on view pgaudit_wf.limit_usage is
    'How much of its limits each organization has used. Owners and admins see their own organization, as reader.';
comment on column pgaudit_wf.limit_usage.org_id is 'The organization.';
comment on column pgaudit_wf.limit_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.limit_usage.used is 'Rows that take a place now.';
comment on column pgaudit_wf.limit_usage.max_count is 'How many there may be; null: any number.';
comment on column pgaudit_wf.limit_usage.is_default is 'True when the limit is the default for all organizations.';

create function pgaudit_wf._compile_limit_condition(target regclass, resource_type text, out condition text, out condition_columns text[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    written constant text := (select c.condition from pgaudit_wf.limit_condition as c where c.resource_type = _compile_limit_condition.resource_type);
begin
    condition := 'true';
    condition_columns := '{}';
    if written is null then
        return;
    end if;
    -- As the predicate of an index PostgreSQL itself checks the condition (boolean, immutable, no subquery), writes it out unambiguously
    -- and says what it depends on. The copy of the table has no rows.
    execute format('create temporary table pgaudit_wf_limit as select %s from %s with no data',
        -- Those that are computed when read are not in the rows that a trigger counts.
        (select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
            where attrelid = _compile_limit_condition.target and attnum > 0 and not attisdropped and attgenerated <> 'v'),
        _compile_limit_condition.target);
    execute format(e'create index pgaudit_wf_limit_condition on pg_temp.pgaudit_wf_limit ((1)) where (%s\n)', written);
    select pg_get_expr(indpred, indrelid) into strict condition
    from pg_index where indexrelid = to_regclass('pg_temp.pgaudit_wf_limit_condition');
    condition_columns := array(
        select attname::text from pg_depend join pg_attribute on attrelid = refobjid and attnum = refobjsubid
        where classid = 'pg_class'::regclass and objid = to_regclass('pg_temp.pgaudit_wf_limit_condition')
            and refclassid = 'pg_class'::regclass and refobjid = to_regclass('pg_temp.pgaudit_wf_limit') order by attnum);
    drop table pg_temp.pgaudit_wf_limit;
exception
    when others then
        raise exception 'the limit condition of % does not compile for %: %',
            _compile_limit_condition.resource_type, _compile_limit_condition.target, sqlerrm
            using errcode = 'PA003',
                detail = format('The condition is: %s', written),
                hint = 'It is a boolean expression over the columns of the row, without subqueries and without what changes by itself, such as now(); name functions and types outside pg_catalog with their schema.';
end
$$;
comment on function pgaudit_wf._compile_limit_condition(regclass, text) is
    'The limit condition of a resource type as PostgreSQL writes it, and the columns that it names; '
    'raises PA003 if it is no immutable boolean expression over a row of the table.';

create function pgaudit_wf._counted_alias(limited pgaudit_wf.limit_target) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Where nobody says what became of a column, its name has to do. A column that came later could have the name by which another one
    -- is known.
    select case when (select a.form from pgaudit_wf.attachment as a where a.target = (limited).target) = 'generic' then 'r' else format('r (%s)', string_agg(quote_ident(coalesce((limited).aliases ->> attname,
            case when exists (select from jsonb_each_text((limited).aliases) as taken where taken.value = attname) then '!' || attnum else attname end)),
        ', ' order by attnum)) end
    from pg_attribute where attrelid = (limited).target and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf._counted_alias(pgaudit_wf.limit_target) is
    'Alias for the rows of a counted table, with its columns under the names that its condition knows them by.';

create function pgaudit_wf._check_limit_casts(limited pgaudit_wf.limit_target) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
begin
    if (select relkind from pg_class where oid = (limited).target) not in ('r', 'p') then
        raise exception '% is not a table any more', (limited).target using errcode = 'PA004';
    end if;
    select casts.name into name from unnest(pgaudit_wf._columns_with_casts((limited).target)) as casts (name)
    where (limited).aliases ->> casts.name = any ((limited).condition_columns) limit 1;
    if found then
        raise exception 'the limit condition of % names column "%" of %, whose type has a cast of somebody''s: it would be run with our rights',
            (limited).resource_type, name, (limited).target
            using errcode = 'PA003', hint = 'Drop the cast, or let the condition name another column.';
    end if;
end
$$;
comment on function pgaudit_wf._check_limit_casts(pgaudit_wf.limit_target) is
    'Raises PA003 where the condition of a counted table could run somebody''s code, PA004 where the table has become something else.';

create function pgaudit_wf._count_usage(limited pgaudit_wf.limit_target) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- Rather an error than somebody's policy, run by us, or a count of part of the rows.
set row_security = off
as $$
begin
    perform pgaudit_wf._check_limit_casts(limited);
    execute format(
        'insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)'
        ' select left(%1$s, 255), $1, count(*) from %2$s as %3$s where %4$I is not null and %5$s group by 1'
        ' on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used',
        pgaudit_wf._limit_org_expression(limited, 'r'),
        -- Of an inheriting table, the rows are its own.
        case when (select relkind from pg_class where oid = (limited).target) = 'p' then '' else 'only ' end || (limited).target::text,
        pgaudit_wf._counted_alias(limited), (limited).org_column, (limited).condition) using (limited).resource_type;
    update pgaudit_wf.limit_target as t set stale_since = null where t.target = (limited).target;
end
$$;
comment on function pgaudit_wf._count_usage(pgaudit_wf.limit_target) is
    'Adds the rows of a counted table that take a place to its organizations'' counters.';

create function pgaudit_wf.recount_usage(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
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
    perform pgaudit_wf._count_usage(t) from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type;
end
$$;
comment on function pgaudit_wf.recount_usage(text) is
    'Counts the rows of a resource type anew, while its tables are locked against writing. '
    'For when triggers were switched off or data was restored beside them. Raises PA008 unless read committed.';

create function pgaudit_wf._recount_after_ddl(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Without a lock, which only the tables' owners may take: the DDL has its own. A counter that another transaction has raised and
    -- not committed makes the delete wait for it, and one that it raises later is raised on top of ours.
    delete from pgaudit_wf.org_usage as u where u.resource_type = _recount_after_ddl.resource_type;
    perform pgaudit_wf._count_usage(t) from pgaudit_wf.limit_target as t where t.resource_type = _recount_after_ddl.resource_type;
exception
    -- Whatever stands in the way of counting does not stand in the way of the DDL.
    when others then
        update pgaudit_wf.limit_target as t set stale_since = coalesce(t.stale_since, now()) where t.resource_type = _recount_after_ddl.resource_type;
        raise warning 'the rows of % could not be counted after this change (%)', _recount_after_ddl.resource_type, sqlerrm
            using hint = format('Count them as the tables'' owner: select pgaudit_wf.recount_usage(%L);', _recount_after_ddl.resource_type);
end
$$;
comment on function pgaudit_wf._recount_after_ddl(text) is
    'Counts the rows of a resource type anew after DDL that changed which rows there are; marks the count as stale where it cannot.';

create function pgaudit_wf._count_truncated(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if (select sum(jsonb_array_length(t.basis -> 'relations')) from pgaudit_wf.limit_target as t where t.resource_type = _count_truncated.resource_type) = 1 then
        delete from pgaudit_wf.org_usage as u where u.resource_type = _count_truncated.resource_type;
    else
        perform pgaudit_wf._recount_after_ddl(_count_truncated.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf._count_truncated(text) is 'Counts what is left of a resource type after one of its tables was emptied.';

create function pgaudit_wf._limit_org_expression(limited pgaudit_wf.limit_target, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._text_expression(atttypid, format('%I.%I', record_name, (limited).org_column))
    from pg_attribute
    where attrelid = (limited).target and attnum > 0 and not attisdropped and (limited).aliases ->> attname = (limited).org_column
$$;
comment on function pgaudit_wf._limit_org_expression(pgaudit_wf.limit_target, text) is
    'SQL expression for the organization of a counted row; null where the column is gone.';

create function pgaudit_wf._moved_rows(limited pgaudit_wf.limit_target, op text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case op
        when 'insert' then format('select left(%1$s, 255) as org_id, count(*) as change from new_rows as %4$s where %2$I is not null and %3$s group by 1', org, (limited).org_column, (limited).condition, alias)
        when 'delete' then format('select left(%1$s, 255) as org_id, -count(*) as change from old_rows as %4$s where %2$I is not null and %3$s group by 1', org, (limited).org_column, (limited).condition, alias)
        else format(
            e'select org_id, sum(change)::bigint as change from ('
            '\n                select left(%1$s, 255) as org_id, -1 as change from old_rows as %4$s where %2$I is not null and %3$s'
            '\n                union all'
            '\n                select left(%1$s, 255), 1 from new_rows as %4$s where %2$I is not null and %3$s'
            '\n            ) as row_change group by org_id having sum(change) <> 0', org, (limited).org_column, (limited).condition, alias)
    end
    from (select pgaudit_wf._limit_org_expression(limited, 'r') as org, pgaudit_wf._counted_alias(limited) as alias) as names
$$;
comment on function pgaudit_wf._moved_rows(pgaudit_wf.limit_target, text) is
    'Query for how many places each organization takes (or frees) by a statement.';

create function pgaudit_wf._limit_body(limited pgaudit_wf.limit_target) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    branches text[] := '{}';
    op text;
begin
    begin
        perform pgaudit_wf._check_limit_casts(limited);
    exception
        when sqlstate 'PA003' then
            return format(e'\nbegin\n    raise warning ''rows of %% are not being counted: its limit condition names a column with a cast'', %L;\n    return null;\nend\n', (limited).resource_type);
    end;
    if pgaudit_wf._limit_org_expression(limited, 'r') is null then
        return format(e'\nbegin\n    raise warning ''rows of %% are not being counted: the column that says whose they are is gone'', %L\n'
            '        using hint = ''Attach the table again with another org_column: pgaudit_wf.doctor() says how.'';\n    return null;\nend\n', (limited).resource_type);
    end if;
    foreach op in array array['insert', 'update', 'delete'] loop
        branches := branches || pgaudit_wf._fill(
$branch${{if}} tg_op = {{op}} then
    with moved as materialized (
        {{moved rows}}
    ), counted as (
        insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)
        select moved.org_id, {{type}}, moved.change from moved order by moved.org_id
        on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used
        returning u.org_id, u.used
    )
    select counted.org_id, own.max_count into refused_org, maximum
    from counted,
    lateral (
        select l.max_count from pgaudit_wf.org_limit as l
        where l.resource_type = {{type}} and (l.org_id = counted.org_id or l.org_id is null)
        order by l.org_id nulls last limit 1
    ) as own
    where {{refused}}
    order by 1 limit 1;$branch$,
            jsonb_build_object(
                'if', case op when 'insert' then 'if' else 'elsif' end,
                'op', quote_literal(upper(op)),
                'moved rows', pgaudit_wf._moved_rows(limited, op),
                'type', quote_literal((limited).resource_type),
                'refused', case op
                    when 'insert' then 'counted.used > own.max_count'
                    -- Asked for those over the limit only: whose places became fewer is not to be refused.
                    when 'update' then 'counted.used > own.max_count and (select moved.change from moved where moved.org_id = counted.org_id) > 0'
                    -- Who frees places is never over.
                    else 'false'
                end));
    end loop;
    return array_to_string(pgaudit_wf._fill($body$
-- Counts the rows of an attached table that take a place and refuses those over the limit; written because of pgaudit_wf.org_limit.
-- The counters are locked in the order of their organizations, so that two statements never wait for each other.
#variable_conflict use_column
declare
    refused_org text;
    maximum bigint;
begin
    {{check of the place}}
    begin
        {{check of casts}}
        {{branches}}
        else
            perform pgaudit_wf._count_truncated({{type}});
        end if;
    exception
        -- What the condition names was renamed or dropped meanwhile, and that must not fail the write.
        -- An internal error is what naming a virtual generated column ends in.
        when syntax_error_or_access_rule_violation or invalid_text_representation or invalid_schema_name or internal_error or sqlstate 'PA003' then
            raise warning 'rows of % are not being counted (SQLSTATE %)', {{type}}, sqlstate
                using hint = 'Mend pgaudit_wf.limit_condition and attach the table again: pgaudit_wf.doctor() says how.';
            return null;
    end;
    if refused_org is not null then
        raise exception 'organization % has reached its limit of % for %', refused_org, maximum, {{type}}
            using errcode = 'PA330', schema = tg_table_schema, table = tg_table_name,
                detail = jsonb_build_object('org_id', refused_org, 'resource_type', {{type}}, 'max_count', maximum)::text,
                hint = 'Delete or revoke one first, or raise the limit in pgaudit_wf.org_limit.';
    end if;
    return null;
end
$body$,
        jsonb_build_object(
            'check of the place', pgaudit_wf._check_place((limited).target, (limited).function_name),
            'check of casts', case when (select a.form from pgaudit_wf.attachment as a where a.target = (limited).target) = 'generic'
                then format('perform pgaudit_wf._refuse_casts(tg_relid, %L);', (limited).condition) else '' end,
            'branches', branches,
            'type', quote_literal((limited).resource_type))), e'\n');
end
$$;
comment on function pgaudit_wf._limit_body(pgaudit_wf.limit_target) is 'The body of the trigger function that counts the rows of a table.';

create function pgaudit_wf._limit_basis(limited pgaudit_wf.limit_target) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'org', (limited).org_column,
        'relations', (select coalesce(jsonb_agg(leaf::oid::bigint order by leaf::oid), '[]') from pgaudit_wf._leaf_tables((limited).target) as leaf),
        'types', (
            select jsonb_object_agg(alias.value, format_type(atttypid, atttypmod))
            from jsonb_each_text((limited).aliases) as alias join pg_attribute on attrelid = (limited).target and attname = alias.key and not attisdropped
            where alias.value = (limited).org_column or alias.value = any ((limited).condition_columns)))
$$;
comment on function pgaudit_wf._limit_basis(pgaudit_wf.limit_target) is 'What the count of a table rests on now: limit_target.basis.';

create function pgaudit_wf._must_recount(before jsonb, after jsonb) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select before is null or before -> 'org' <> after -> 'org' or before -> 'types' is distinct from after -> 'types'
        or not before -> 'relations' <@ (after -> 'relations')
        -- A new partition is empty, as a rule, and an old table not worth reading for it.
        or exists (
            select from jsonb_array_elements(after -> 'relations') as relation
            where not before -> 'relations' @> relation and pg_relation_size(relation::bigint::oid::regclass) > 0)
$$;
comment on function pgaudit_wf._must_recount(jsonb, jsonb) is
    'Whether a count that rests on one basis does not hold on another: limit_target.basis before and after DDL.';

create function pgaudit_wf._place_limit(setting pgaudit_wf.attachment, recount boolean default false) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known pgaudit_wf.limit_target;
    limited pgaudit_wf.limit_target;
    relation regclass;
begin
    -- Limits of the type come and go in other transactions too.
    perform pgaudit_wf._take_turn('limit of ' || (setting).resource_type);
    select * into known from pgaudit_wf.limit_target as t where t.target = (setting).target;
    if not exists (select from pgaudit_wf.org_limit as l where l.resource_type = (setting).resource_type) then
        if known.target is not null then
            perform pgaudit_wf._uninstall_limit((setting).target);
        end if;
        return;
    end if;
    if (setting).org_column is null or (setting).org_column <> all ((setting).columns) then
        raise exception '% has a limit for each organization, and % has no column that says whose a row is', (setting).resource_type, (setting).target
            using errcode = 'PA002', hint = format('Attach the table with its org_column, or delete the limits of %s from pgaudit_wf.org_limit.', (setting).resource_type);
    end if;
    if not pg_has_role((select relowner from pg_class where oid = (setting).target), 'usage') then
        raise exception 'the rows of % have not been counted so far, and % may not start it: it does not own the table', (setting).target, current_user
            using errcode = 'PA331', hint = format('Have the table''s owner, who must be allowed to write pgaudit_wf.org_limit, or a superuser set the first limit of %s.', (setting).resource_type);
    end if;

    limited.target := (setting).target;
    limited.resource_type := (setting).resource_type;
    limited.org_column := (setting).org_column;
    select c.condition, c.condition_columns into limited.condition, limited.condition_columns
    from pgaudit_wf._compile_limit_condition((setting).target, (setting).resource_type) as c;
    limited.aliases := (select jsonb_object_agg(name, name) from unnest((setting).columns) as name);
    perform pgaudit_wf._check_limit_casts(limited);
    limited.function_name := 'limit_' || substr((setting).function_name, length('capture_') + 1);
    limited.basis := pgaudit_wf._limit_basis(limited);
    delete from pgaudit_wf.limit_target as t where t.target = (setting).target;
    insert into pgaudit_wf.limit_target select limited.*;
    perform pgaudit_wf._write_functions(setting);

    -- After DDL the owner of our schema counts anew: what the triggers see of each row, it may then read.
    perform pgaudit_wf._let_owner_read(limited.target, limited.org_column || limited.condition_columns);
    -- A statement trigger fires for the table that the statement names, which may be any partition.
    for relation in
        select tree.relid from (select limited.target as relid union select relid from pg_partition_tree(limited.target)) as tree
        join pg_class as c on c.oid = tree.relid where c.relkind <> 'f' order by 1
    loop
        execute format('create or replace trigger pgaudit_wf_limit_insert after insert on %s referencing new table as new_rows for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
        execute format('create or replace trigger pgaudit_wf_limit_update after update on %s referencing old table as old_rows new table as new_rows for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
        execute format('create or replace trigger pgaudit_wf_limit_delete after delete on %s referencing old table as old_rows for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
    end loop;
    for relation in select l from pgaudit_wf._leaf_tables(limited.target) as l join pg_class as c on c.oid = l where c.relkind <> 'f' loop
        execute format('create or replace trigger pgaudit_wf_limit_truncate after truncate on %s for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
    end loop;
    perform pgaudit_wf._drop_limit_triggers(limited.function_name, limited.target);
    if known.resource_type <> limited.resource_type then
        perform pgaudit_wf.recount_usage(known.resource_type);
    end if;
    if recount or known.resource_type <> limited.resource_type or known.stale_since is not null or known.condition is distinct from limited.condition
        or pgaudit_wf._must_recount(known.basis, limited.basis)
    then
        perform pgaudit_wf.recount_usage(limited.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf._place_limit(pgaudit_wf.attachment, boolean) is
    'Has the rows of an attached table counted if its resource type has a limit, and not counted otherwise, '
    'with the rights of the caller, who must own it. '
    'Raises PA002 if it has no org column, PA003 if the condition does not compile, PA331 if the caller does not own the table.';

create function pgaudit_wf._follow_limit(setting pgaudit_wf.attachment, renames jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    limited pgaudit_wf.limit_target;
    basis_now jsonb;
begin
    select * into limited from pgaudit_wf.limit_target as t where t.target = (setting).target;
    if not found then
        return;
    end if;
    limited.aliases := (
        select coalesce(jsonb_object_agg(pgaudit_wf._renamed(alias.key, renames), alias.value), '{}') from jsonb_each(limited.aliases) as alias
        where pgaudit_wf._renamed(alias.key, renames) = any (pgaudit_wf._column_names(limited.target)));
    basis_now := pgaudit_wf._limit_basis(limited);
    update pgaudit_wf.limit_target as t set aliases = limited.aliases, basis = basis_now where t.target = limited.target;
    if pgaudit_wf._must_recount(limited.basis, basis_now) then
        perform pgaudit_wf._recount_after_ddl(limited.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf._follow_limit(pgaudit_wf.attachment, jsonb) is
    'After DDL: has a counted table''s columns known by their new names ({old: '
    'new}), and its rows counted anew where others are there now.';

create function pgaudit_wf._drop_limit_triggers(function_name text, keep_for regclass default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    installed record;
begin
    for installed in
        select tgname as name, tgrelid::regclass as relation from pg_trigger
        where tgfoid = to_regprocedure(format('pgaudit_wf.%I()', _drop_limit_triggers.function_name))
            and (_drop_limit_triggers.keep_for is null
                or (tgrelid <> _drop_limit_triggers.keep_for and tgrelid not in (select relid from pg_partition_tree(_drop_limit_triggers.keep_for))))
    loop
        execute format('drop trigger %I on %s', installed.name, installed.relation);
    end loop;
end
$$;
comment on function pgaudit_wf._drop_limit_triggers(text, regclass) is
    'Drops the triggers that count rows by a function, but those of the given table and its partitions.';

create function pgaudit_wf._uninstall_limit(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known pgaudit_wf.limit_target;
begin
    delete from pgaudit_wf.limit_target as t where t.target = _uninstall_limit.target returning t.* into known;
    if not found then
        return;
    end if;
    perform pgaudit_wf._drop_functions(array[known.function_name]);
    if exists (select from pgaudit_wf.limit_target as t where t.resource_type = known.resource_type) then
        perform pgaudit_wf._recount_after_ddl(known.resource_type);
    else
        delete from pgaudit_wf.org_usage as u where u.resource_type = known.resource_type;
    end if;
end
$$;
comment on function pgaudit_wf._uninstall_limit(regclass) is 'No longer counts the rows of a table.';

create function pgaudit_wf._apply_org_limit() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    type text;
    setting pgaudit_wf.attachment;
    counted regclass;
begin
    for type in select distinct touched.resource_type from touched order by 1 loop
        perform pgaudit_wf._take_turn('limit of ' || type);
        if exists (select from pgaudit_wf.org_limit as l where l.resource_type = type) then
            for setting in
                select a.* from pgaudit_wf.attachment as a
                where a.resource_type = type and not exists (select from pgaudit_wf.limit_target as t where t.target = a.target)
                order by a.target::oid
            loop
                perform pgaudit_wf._place_limit(setting, true);
            end loop;
        else
            -- Whoever may not drop the triggers leaves them: they then count what nobody asks for.
            for counted in
                select t.target from pgaudit_wf.limit_target as t join pg_class as c on c.oid = t.target
                where t.resource_type = type and pg_has_role(c.relowner, 'usage') order by t.target::oid
            loop
                perform pgaudit_wf._uninstall_limit(counted);
            end loop;
        end if;
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf._apply_org_limit() is
    'Trigger of org_limit: has tables counted from the first limit of their type until the last.';

create trigger apply_insert after insert on pgaudit_wf.org_limit
    referencing new table as touched for each statement execute function pgaudit_wf._apply_org_limit();
create trigger apply_update_new after update on pgaudit_wf.org_limit
    referencing new table as touched for each statement execute function pgaudit_wf._apply_org_limit();
create trigger apply_update_old after update on pgaudit_wf.org_limit
    referencing old table as touched for each statement execute function pgaudit_wf._apply_org_limit();
create trigger apply_delete after delete on pgaudit_wf.org_limit
    referencing old table as touched for each statement execute function pgaudit_wf._apply_org_limit();

create function pgaudit_wf._apply_limit_condition() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
begin
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.resource_type in (select touched.resource_type from touched) order by a.target::oid
    loop
        perform pgaudit_wf._compile_limit_condition(setting.target, setting.resource_type);
        perform pgaudit_wf._place_limit(setting, true);
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf._apply_limit_condition() is
    'Trigger of limit_condition: checks the condition on the attached tables of its type and counts their rows by it.';

create trigger apply_insert after insert on pgaudit_wf.limit_condition
    referencing new table as touched for each statement execute function pgaudit_wf._apply_limit_condition();
create trigger apply_update_new after update on pgaudit_wf.limit_condition
    referencing new table as touched for each statement execute function pgaudit_wf._apply_limit_condition();
create trigger apply_update_old after update on pgaudit_wf.limit_condition
    referencing old table as touched for each statement execute function pgaudit_wf._apply_limit_condition();
create trigger apply_delete after delete on pgaudit_wf.limit_condition
    referencing old table as touched for each statement execute function pgaudit_wf._apply_limit_condition();

create function pgaudit_wf._record_org_limit() returns trigger
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
            'org_limit', coalesce(after, before) ->> 'resource_type', true, pgaudit_wf._json_diff(before, after));
    end if;
    return null;
end
$$;
comment on function pgaudit_wf._record_org_limit() is
    'Trigger of org_limit: records as org_limit.set and org_limit.removed who allowed whom how much.';
create trigger record after insert or update or delete on pgaudit_wf.org_limit
    for each row execute function pgaudit_wf._record_org_limit();

create function pgaudit_wf._write_org_limit(org_id text, resource_type text, max_count bigint) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.org_limit (org_id, resource_type, max_count)
    values (_write_org_limit.org_id, _write_org_limit.resource_type, _write_org_limit.max_count)
    on conflict on constraint org_limit_key do update set max_count = excluded.max_count
$$;
comment on function pgaudit_wf._write_org_limit(text, text, bigint) is
    'set_org_limit() for whom the table org_limit is closed. Granted to nobody.';

create function pgaudit_wf.set_org_limit(org_id text, resource_type text, max_count bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    -- The first limit of a type puts triggers on its tables, which takes the rights of whoever owns them: ours do not reach so far.
    if has_table_privilege('pgaudit_wf.org_limit', 'insert') and has_table_privilege('pgaudit_wf.org_limit', 'update') then
        insert into pgaudit_wf.org_limit (org_id, resource_type, max_count) values (org_id, resource_type, max_count)
        on conflict on constraint org_limit_key do update set max_count = excluded.max_count;
    else
        perform pgaudit_wf._write_org_limit(org_id, resource_type, max_count);
    end if;
end
$$;
comment on function pgaudit_wf.set_org_limit(text, text, bigint) is
    'Sets the limit of an organization (null: of all that have none of their own) for a resource type, whether it had one or not; '
    'max_count null: no limit for this organization. Granted to nobody: whoever may call it decides what is paid for. '
    'A login that is to set limits and no more needs EXECUTE on it and on _write_org_limit(); '
    'the first limit of a type must come from the owner of its tables or a superuser (else PA331).';
