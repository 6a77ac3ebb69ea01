-- The trigger function of a table whose rows are counted: it updates the counters and refuses statements that exceed the limit.

create function pgaudit_wf._moved_rows(limited pgaudit_wf.limit_target, op text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._fill(
        case op
            when 'insert' then 'select {{org}} as org_id, count(*) as change from new_rows as {{alias}} where {{counts}} group by 1'
            when 'delete' then 'select {{org}} as org_id, -count(*) as change from old_rows as {{alias}} where {{counts}} group by 1'
            else $update$select org_id, sum(change)::bigint as change from (
    select {{org}} as org_id, -1 as change from old_rows as {{alias}} where {{counts}}
    union all
    select {{org}}, 1 from new_rows as {{alias}} where {{counts}}
) as row_change group by org_id having sum(change) <> 0$update$
        end,
        pgaudit_wf._counted_pieces(limited) || jsonb_build_object('alias', pgaudit_wf._counted_alias(limited)))
$$;
comment on function pgaudit_wf._moved_rows(pgaudit_wf.limit_target, text) is
    'Query for how many more (or fewer) rows of each organization count after a statement.';

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
            return format($body$
begin
    raise warning 'rows of %% are not being counted: its limit condition names a column with a cast', %L;
    return null;
end
$body$, (limited).resource_type);
    end;
    if pgaudit_wf._limit_org_expression(limited, 'r') is null then
        return format($body$
begin
    raise warning 'rows of %% are not being counted: their organization column is gone', %L
        using hint = 'Attach the table again with another org_column: pgaudit_wf.doctor() says how.';
    return null;
end
$body$, (limited).resource_type);
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
                    -- The subquery runs only for those over the limit: an organization whose count fell must not be refused.
                    when 'update' then 'counted.used > own.max_count'
                        ' and (select moved.change from moved where moved.org_id = counted.org_id) > 0'
                    -- A delete cannot exceed the limit.
                    else 'false'
                end));
    end loop;
    return array_to_string(pgaudit_wf._fill($body$
-- Counts the rows of an attached table towards the limits in pgaudit_wf.org_limit and refuses those that exceed one.
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
        -- What the condition names was renamed or dropped meanwhile, or raises now, and that must not fail the write.
        when others then
            -- What goes away when it is tried again, the application is to try again.
            if sqlstate ~ '^(40|53|55P03|57)' then
                raise;
            end if;
            -- Only added to, so that nobody waits for another's transaction.
            perform pgaudit_wf._count_failure({{table}}, 'COUNT', sqlstate);
            raise warning 'rows of % are not being counted (SQLSTATE %)', {{type}}, sqlstate
                using hint = 'Fix pgaudit_wf.limit_condition and attach the table again: pgaudit_wf.doctor() says how.';
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
            'table', quote_literal((limited).target),
            'type', quote_literal((limited).resource_type))), e'\n');
end
$$;
comment on function pgaudit_wf._limit_body(pgaudit_wf.limit_target) is 'The body of the trigger function that counts the rows of a table.';
