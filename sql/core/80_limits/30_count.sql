-- Counting the rows of a resource type: when its first limit is set, after DDL, and on request.

create function pgaudit_wf._count_usage(limited pgaudit_wf.limit_target) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- Better an error than a policy evaluated with our rights, or a count of part of the rows.
set row_security = off
as $$
begin
    perform pgaudit_wf._check_limit_casts(limited);
    execute array_to_string(pgaudit_wf._fill(
            'insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)'
            ' select {{org}}, $1, count(*) from {{rows}} where {{counts}} group by 1'
            ' on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used',
            pgaudit_wf._counted_pieces(limited) || jsonb_build_object('rows', format('%s%s as %s',
                -- The rows of an inheriting table are not its parent's.
                case when (select relkind from pg_class where oid = (limited).target) = 'p' then '' else 'only ' end,
                (limited).target, pgaudit_wf._counted_alias(limited)))), e'\n')
        using (limited).resource_type;
    update pgaudit_wf.limit_target as t set stale_since = null where t.target = (limited).target;
    delete from pgaudit_wf.capture_failure as f where f.op = 'COUNT' and to_regclass(f.target) = (limited).target;
end
$$;
comment on function pgaudit_wf._count_usage(pgaudit_wf.limit_target) is
    'Adds the rows of a counted table to its organizations'' counters.';

create function pgaudit_wf.recount_usage(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    counted pgaudit_wf.limit_target;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'rows cannot be counted in a % transaction, which does not see what others have committed since it began',
            current_setting('transaction_isolation')
            using errcode = 'PA008', hint = 'Use a read committed transaction.';
    end if;
    -- Writers hold the table's lock until they commit, so nobody holds a counter once we have all of these locks.
    for counted in
        select t.* from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type order by t.target::oid
    loop
        execute format('lock table %s in share row exclusive mode', counted.target);
    end loop;
    delete from pgaudit_wf.org_usage as u where u.resource_type = recount_usage.resource_type;
    perform pgaudit_wf._count_usage(t) from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type;
end
$$;
comment on function pgaudit_wf.recount_usage(text) is
    'Recounts the rows of a resource type, while its tables are locked against writing. '
    'For use after triggers were disabled or data was restored without them. Raises PA008 unless read committed.';

create function pgaudit_wf._recount_after_ddl(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Without a lock, which only the tables' owners may take: the DDL has its own. The delete waits for a counter that another
    -- transaction has raised and not committed, and one that it raises later is raised on top of ours.
    delete from pgaudit_wf.org_usage as u where u.resource_type = _recount_after_ddl.resource_type;
    perform pgaudit_wf._count_usage(t) from pgaudit_wf.limit_target as t where t.resource_type = _recount_after_ddl.resource_type;
exception
    -- Whatever prevents counting must not prevent the DDL.
    when others then
        update pgaudit_wf.limit_target as t set stale_since = coalesce(t.stale_since, now())
        where t.resource_type = _recount_after_ddl.resource_type;
        raise warning 'the rows of % could not be counted after this change (%)', _recount_after_ddl.resource_type, sqlerrm
            using hint = format('Count them as the tables'' owner: select pgaudit_wf.recount_usage(%L);', _recount_after_ddl.resource_type);
end
$$;
comment on function pgaudit_wf._recount_after_ddl(text) is
    'Recounts the rows of a resource type after DDL that changed which rows there are; marks the count as stale where it cannot.';

create function pgaudit_wf._count_truncated(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if 1 = (
        select sum(jsonb_array_length(t.basis -> 'relations')) from pgaudit_wf.limit_target as t
        where t.resource_type = _count_truncated.resource_type)
    then
        delete from pgaudit_wf.org_usage as u where u.resource_type = _count_truncated.resource_type;
    else
        perform pgaudit_wf._recount_after_ddl(_count_truncated.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf._count_truncated(text) is 'Recounts a resource type after one of its tables was truncated.';

create function pgaudit_wf._limit_basis(limited pgaudit_wf.limit_target) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'org', (limited).org_column,
        'relations', (
            select coalesce(jsonb_agg(leaf::oid::bigint order by leaf::oid), '[]')
            from pgaudit_wf._leaf_tables((limited).target) as leaf),
        'types', (
            select jsonb_object_agg(alias.value, format_type(atttypid, atttypmod))
            from jsonb_each_text((limited).aliases) as alias
            join pg_attribute on attrelid = (limited).target and attname = alias.key and not attisdropped
            where alias.value = (limited).org_column or alias.value = any ((limited).condition_columns)))
$$;
comment on function pgaudit_wf._limit_basis(pgaudit_wf.limit_target) is 'What the count of a table rests on now: limit_target.basis.';

create function pgaudit_wf._needs_recount(before jsonb, after jsonb) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select before is null or before -> 'org' <> after -> 'org' or before -> 'types' is distinct from after -> 'types'
        or not before -> 'relations' <@ (after -> 'relations')
        -- A new partition is usually empty, and not worth recounting an old table for.
        or exists (
            select from jsonb_array_elements(after -> 'relations') as relation
            where not before -> 'relations' @> relation and pg_relation_size(relation::bigint::oid::regclass) > 0)
$$;
comment on function pgaudit_wf._needs_recount(jsonb, jsonb) is
    'Whether a count that rests on one basis does not hold on another: limit_target.basis before and after DDL.';
