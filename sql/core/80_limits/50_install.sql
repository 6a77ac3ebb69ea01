-- Counting begins with the first limit of a resource type and ends with the last: the rows of org_limit install and remove the triggers.

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
        raise exception 'cannot enforce the limit on %: table % has no organization column', (setting).resource_type, (setting).target
            using errcode = 'PA002', hint = format(
                'Attach the table with its org_column, or delete the limits of %s from pgaudit_wf.org_limit.', (setting).resource_type);
    end if;
    if not pg_has_role((select relowner from pg_class where oid = (setting).target), 'usage') then
        raise exception 'the rows of % are not counted yet, and % may not start that: it does not own the table',
            (setting).target, current_user
            using errcode = 'PA331', hint = format(
                'Have the table''s owner, who must be allowed to write pgaudit_wf.org_limit, or a superuser set the first limit of %s.',
                (setting).resource_type);
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

    -- After DDL the owner of our schema recounts, so it must be able to read what the triggers see of each row.
    perform pgaudit_wf._let_owner_read(limited.target, limited.org_column || limited.condition_columns);
    -- A statement trigger fires for the table that the statement names, which may be any partition.
    for relation in
        select tree.relid from (select limited.target as relid union select relid from pg_partition_tree(limited.target)) as tree
        join pg_class as c on c.oid = tree.relid where c.relkind <> 'f' order by 1
    loop
        perform pgaudit_wf._install_trigger(relation, 'pgaudit_wf_limit_insert', 'after insert',
            'referencing new table as new_rows for each statement', limited.function_name);
        perform pgaudit_wf._install_trigger(relation, 'pgaudit_wf_limit_update', 'after update',
            'referencing old table as old_rows new table as new_rows for each statement', limited.function_name);
        perform pgaudit_wf._install_trigger(relation, 'pgaudit_wf_limit_delete', 'after delete',
            'referencing old table as old_rows for each statement', limited.function_name);
    end loop;
    for relation in select l from pgaudit_wf._leaf_tables(limited.target) as l join pg_class as c on c.oid = l where c.relkind <> 'f' loop
        perform pgaudit_wf._install_trigger(
            relation, 'pgaudit_wf_limit_truncate', 'after truncate', 'for each statement', limited.function_name);
    end loop;
    perform pgaudit_wf._drop_limit_triggers(limited.function_name, limited.target);
    if known.resource_type <> limited.resource_type then
        perform pgaudit_wf.recount_usage(known.resource_type);
    end if;
    if recount or known.resource_type <> limited.resource_type or known.stale_since is not null
        or known.condition is distinct from limited.condition or pgaudit_wf._needs_recount(known.basis, limited.basis)
        or exists (select from pgaudit_wf.capture_failure as f where f.op = 'COUNT' and to_regclass(f.target) = limited.target)
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
        select coalesce(jsonb_object_agg(pgaudit_wf._renamed(alias.key, renames), alias.value), '{}')
        from jsonb_each(limited.aliases) as alias
        where pgaudit_wf._renamed(alias.key, renames) = any (pgaudit_wf._column_names(limited.target)));
    basis_now := pgaudit_wf._limit_basis(limited);
    update pgaudit_wf.limit_target as t set aliases = limited.aliases, basis = basis_now where t.target = limited.target;
    if pgaudit_wf._needs_recount(limited.basis, basis_now) then
        perform pgaudit_wf._recount_after_ddl(limited.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf._follow_limit(pgaudit_wf.attachment, jsonb) is
    'After DDL: maps a counted table''s columns to their new names ({old: new}), and recounts its rows where they changed.';

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
                or (tgrelid <> _drop_limit_triggers.keep_for
                    and tgrelid not in (select relid from pg_partition_tree(_drop_limit_triggers.keep_for))))
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
comment on function pgaudit_wf._uninstall_limit(regclass) is 'Stops counting the rows of a table.';

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
            -- A caller who may not drop the triggers leaves them: they then count needlessly.
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
