-- Which rows count towards a limit: the condition as PostgreSQL writes it, over columns that may since have been renamed.

create function pgaudit_wf._compile_limit_condition(target regclass, resource_type text, out condition text, out condition_columns text[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    written constant text := (
        select c.condition from pgaudit_wf.limit_condition as c where c.resource_type = _compile_limit_condition.resource_type);
begin
    condition := 'true';
    condition_columns := '{}';
    if written is null then
        return;
    end if;
    -- As the predicate of an index PostgreSQL itself checks the condition (boolean, immutable, no subquery), writes it out unambiguously
    -- and says what it depends on. The copy of the table has no rows.
    execute format('create temporary table pgaudit_wf_limit as select %s from %s with no data',
        -- Virtual generated columns are not in the rows that a trigger counts.
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
                hint = 'It must be an immutable boolean expression over the columns of the row, without subqueries or now(); '
                    'name functions and types outside pg_catalog with their schema.';
end
$$;
comment on function pgaudit_wf._compile_limit_condition(regclass, text) is
    'The limit condition of a resource type as PostgreSQL writes it, and the columns that it names; '
    'raises PA003 if it is not an immutable boolean expression over a row of the table.';

create function pgaudit_wf._counted_alias(limited pgaudit_wf.limit_target) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        -- Without event triggers renames are not followed: the actual names have to do.
        when (select a.form from pgaudit_wf.attachment as a where a.target = (limited).target) = 'generic' then 'r'
        else (
            select format('r (%s)', string_agg(
                quote_ident(coalesce(
                    (limited).aliases ->> attname,
                    -- A column added later must not take the name that the condition has for another one.
                    case when exists (select from jsonb_each_text((limited).aliases) as taken where taken.value = attname)
                        then '!' || attnum else attname end)),
                ', ' order by attnum))
            from pg_attribute where attrelid = (limited).target and attnum > 0 and not attisdropped)
    end
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
        raise exception '% is no longer a table', (limited).target using errcode = 'PA004';
    end if;
    select casts.name into name from unnest(pgaudit_wf._columns_with_casts((limited).target)) as casts (name)
    where (limited).aliases ->> casts.name = any ((limited).condition_columns) limit 1;
    if found then
        raise exception 'the limit condition of % names column "%" of %, whose type has a user-defined cast',
            (limited).resource_type, name, (limited).target
            using errcode = 'PA003',
                hint = 'The cast would be run with our rights: drop it, or let the condition name another column.';
    end if;
end
$$;
comment on function pgaudit_wf._check_limit_casts(pgaudit_wf.limit_target) is
    'Raises PA003 where the condition of a counted table could run somebody''s code, PA004 where the table has become something else.';

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

create function pgaudit_wf._counted_pieces(limited pgaudit_wf.limit_target) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'org', format('left(%s, 255)', pgaudit_wf._limit_org_expression(limited, 'r')),
        'counts', format('%I is not null and %s', (limited).org_column, (limited).condition))
$$;
comment on function pgaudit_wf._counted_pieces(pgaudit_wf.limit_target) is
    'Pieces of a query over the rows of a counted table, r: their organization, and whether they count towards the limit.';
