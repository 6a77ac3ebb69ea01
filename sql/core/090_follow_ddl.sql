-- A table changes under its compiled trigger: event triggers recompile it in the transaction of the DDL.

create function pgaudit_wf.renamed(name text, renames jsonb) returns text
language sql immutable parallel safe
as $$ select coalesce(renames ->> name, name) $$;
comment on function pgaudit_wf.renamed(text, jsonb) is 'A column''s name after the renames ({old: new}).';

create function pgaudit_wf.rename_in_rules(resource_type text, old_name text, new_name text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    -- Case counts only between quotes.
    update pgaudit_wf.action_rule
    set condition = regexp_replace(regexp_replace(condition, plain, replacement, 'gi'), quoted, replacement, 'g')
    from (
        select
            case when old_name ~ '^[a-z_][a-z0-9_$]*$'
                then format('\m(old|new)\s*\.\s*%s(?![[:alnum:]_$])', replace(old_name, '$', '\$')) else '(?!)' end as plain,
            format('\m([oO][lL][dD]|[nN][eE][wW])\s*\.\s*%s',
                regexp_replace(format('"%s"', replace(old_name, '"', '""')), '([][\\.^$*+?(){}|-])', '\\\1', 'g')) as quoted,
            '\1.' || replace(quote_ident(new_name), '\', '\\') as replacement
    ) as rename
    where action_rule.resource_type = rename_in_rules.resource_type and (condition ~* plain or condition ~ quoted)
$$;
comment on function pgaudit_wf.rename_in_rules(text, text, text) is 'Follows a renamed column in the conditions of the rules of a resource type.';

create function pgaudit_wf.column_default(target regclass, name text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
    type text;
    value jsonb;
begin
    -- What PostgreSQL shows in the rows that were there before the column was added.
    select (attmissingval::text::text[])[1], format_type(atttypid, atttypmod) into missing, type
    from pg_attribute where attrelid = column_default.target and attname = column_default.name;
    execute format('select to_jsonb($1::%s)', type) into value using missing;
    return value;
end
$$;
comment on function pgaudit_wf.column_default(regclass, text) is 'The constant default that an added column has in the rows that were there before.';

create function pgaudit_wf.recompile(target regclass, renamed_to text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    columns_now constant text[] := pgaudit_wf.column_names(recompile.target);
    renames jsonb := '{}';
    altered jsonb;
begin
    select * into strict setting from pgaudit_wf.attachment as a where a.target = recompile.target;
    if recompile.renamed_to = any (columns_now) and recompile.renamed_to <> all (setting.columns) then
        select jsonb_build_object(name, recompile.renamed_to) into strict renames
        from unnest(setting.columns) as name where name <> all (columns_now);
    end if;
    altered := (select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(jsonb_build_object(
        'renamed', nullif(renames, '{}'),
        'added', (
            select jsonb_object_agg(name, coalesce(pgaudit_wf.column_default(recompile.target, name), 'null')) from unnest(columns_now) as name
            where name <> all (setting.columns) and (recompile.renamed_to is null or renames = '{}')),
        'dropped', (
            select jsonb_agg(name) from unnest(setting.columns) as name
            where name <> all (columns_now) and not renames ? name))) where value <> 'null');

    setting.columns := columns_now;
    setting.id_columns := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.id_columns) with ordinality as k (name, position) order by position);
    setting.org_column := pgaudit_wf.renamed(setting.org_column, renames);
    setting.label_column := pgaudit_wf.renamed(setting.label_column, renames);
    setting.ignore := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.ignore) as name where pgaudit_wf.renamed(name, renames) = any (columns_now));
    setting.redact := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.redact) as name where pgaudit_wf.renamed(name, renames) = any (columns_now));
    if not columns_now @> setting.id_columns then
        raise exception '% is audited, and a column that identifies its rows (%) cannot be dropped', recompile.target, array_to_string(setting.id_columns, ', ')
            using errcode = 'PA002', hint = format('Attach it by other columns first: select pgaudit_wf.attach(%L, id_columns => …).', recompile.target);
    end if;
    setting.org_column := case when setting.org_column = any (columns_now) then setting.org_column end;
    setting.label_column := case when setting.label_column = any (columns_now) then setting.label_column end;
    update pgaudit_wf.attachment as a
    set (id_columns, org_column, label_column, ignore, redact, columns)
        = (setting.id_columns, setting.org_column, setting.label_column, setting.ignore, setting.redact, setting.columns)
    where a.target = recompile.target;

    update pgaudit_wf.workflow_attachment as w
    set nodes_column = pgaudit_wf.renamed(nodes_column, renames),
        edges_column = pgaudit_wf.renamed(edges_column, renames),
        name_column = pgaudit_wf.renamed(name_column, renames),
        description_column = pgaudit_wf.renamed(description_column, renames),
        visibility_column = pgaudit_wf.renamed(visibility_column, renames),
        enabled_column = pgaudit_wf.renamed(enabled_column, renames),
        listed_column = pgaudit_wf.renamed(listed_column, renames),
        listing_columns = array(select pgaudit_wf.renamed(name, renames) from unnest(listing_columns) as name)
    where w.target = recompile.target;
    perform pgaudit_wf.check_workflow_columns(w) from pgaudit_wf.workflow_attachment as w where w.target = recompile.target;

    perform pgaudit_wf.rename_in_rules(setting.resource_type, key, value) from jsonb_each_text(renames);
    perform pgaudit_wf.rename_in_limit_condition(setting.target, setting.resource_type, renames);
    perform pgaudit_wf.install_capture(setting, true);
    if altered <> '{}' then
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, 'altered', altered);
    end if;
exception
    when sqlstate 'PA003' then
        raise exception '% is audited, and this change breaks a rule: %', recompile.target, sqlerrm
            using errcode = 'PA003', hint = 'Change or delete it first, in pgaudit_wf.action_rule or pgaudit_wf.limit_condition.';
end
$$;
comment on function pgaudit_wf.recompile(regclass, text) is
    'Compiles an attached table''s trigger anew after DDL; its settings and rules follow a column that was renamed.';

create function pgaudit_wf.descendants(target regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive descendant as (
        select inhrelid from pg_inherits where inhparent = descendants.target
        union
        select i.inhrelid from pg_inherits as i join descendant as d on i.inhparent = d.inhrelid
    )
    select inhrelid::regclass from descendant
$$;
comment on function pgaudit_wf.descendants(regclass) is 'Partitions and inheriting tables, which DDL on their parent alters too.';

create function pgaudit_wf.contains_type(type oid, wanted oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = contains_type.type);
begin
    return case
        when info.oid = contains_type.wanted then true
        when info.typtype = 'd' then pgaudit_wf.contains_type(info.typbasetype, contains_type.wanted)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.contains_type(info.typelem, contains_type.wanted)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and pgaudit_wf.contains_type(atttypid, contains_type.wanted))
        else false
    end;
end
$$;
comment on function pgaudit_wf.contains_type(oid, oid) is 'Whether values of a type are or contain values of another, a row type.';

create function pgaudit_wf.after_ddl() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    command record;
    concerned regclass;
begin
    if current_setting('pgaudit_wf.compiling', true) = 'on' then
        return;
    end if;
    if tg_tag = 'CREATE CAST' then
        perform pgaudit_wf.check_casts(a.target) from pgaudit_wf.attachment as a;
    end if;
    for command in
        select done.objid, done.objsubid from pg_event_trigger_ddl_commands() as done where done.classid = 'pg_class'::regclass
    loop
        for concerned in
            select a.target from pgaudit_wf.attachment as a
            where a.form = 'compiled'
                and (a.target = command.objid
                    or a.target in (select pgaudit_wf.descendants(command.objid))
                    or a.target in (select relid from pg_partition_ancestors(command.objid))
                    or exists (
                        select from pg_attribute
                        where attrelid = a.target and attnum > 0 and not attisdropped and atttypid >= 16384
                            and pgaudit_wf.contains_type(atttypid, (select reltype from pg_class where oid = command.objid))))
            order by a.target::oid
        loop
            -- Only RENAME COLUMN reports a column; it says the new name.
            perform pgaudit_wf.recompile(concerned, (select attname from pg_attribute where attrelid = command.objid and attnum = nullif(command.objsubid, 0)));
        end loop;
    end loop;
end
$$;
comment on function pgaudit_wf.after_ddl() is 'Event trigger after ALTER TABLE, ALTER TYPE and CREATE TABLE: recompiles the attached tables concerned; after CREATE CAST: checks them.';

create function pgaudit_wf.after_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    broken regclass;
begin
    if current_setting('pgaudit_wf.compiling', true) = 'on' then
        return;
    end if;
    for setting in
        delete from pgaudit_wf.attachment as a
        where a.target in (select dropped.objid from pg_event_trigger_dropped_objects() as dropped where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0)
        returning a.*
    loop
        insert into pgaudit_wf.attachment_history (target, resource_type, change)
        select dropped.object_identity, setting.resource_type, 'dropped'
        from pg_event_trigger_dropped_objects() as dropped
        where dropped.objid = setting.target and dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0;
        delete from pgaudit_wf.workflow_attachment as w where w.target = setting.target;
        perform pgaudit_wf.uninstall_limit(setting.target);
        perform set_config('pgaudit_wf.compiling', 'on', true);
        execute format('drop function if exists pgaudit_wf.%I()', pgaudit_wf.guard_function_name(setting));
        execute format('drop function if exists pgaudit_wf.%I()', setting.function_name);
        perform set_config('pgaudit_wf.compiling', 'off', true);
    end loop;
    -- A partition that was dropped took its rows with it.
    for setting in
        select a.* from pgaudit_wf.attachment as a
        join pgaudit_wf.limit_target as t on t.target = a.target
        where exists (
            select from pg_event_trigger_dropped_objects() as dropped
            where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0 and t.basis -> 'relations' @> to_jsonb(dropped.objid::bigint))
    loop
        perform pgaudit_wf.install_limit(setting);
    end loop;
    -- A CASCADE (of a type, say) took columns of attached tables; ALTER TABLE is seen by after_ddl().
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
comment on function pgaudit_wf.after_drop() is 'Event trigger: forgets attached tables that were dropped, recompiles those that lost a column by CASCADE.';

do $$
begin
    create event trigger pgaudit_wf_after_ddl on ddl_command_end when tag in ('ALTER TABLE', 'ALTER TYPE', 'CREATE TABLE', 'CREATE CAST') execute function pgaudit_wf.after_ddl();
    create event trigger pgaudit_wf_after_drop on sql_drop execute function pgaudit_wf.after_drop();
    alter event trigger pgaudit_wf_after_ddl enable always;
    comment on event trigger pgaudit_wf_after_ddl is 'Recompiles the triggers of attached tables after ALTER TABLE, ALTER TYPE and CREATE TABLE; refuses a cast that they would run with our rights.';
    comment on event trigger pgaudit_wf_after_drop is 'Forgets attached tables that are dropped; recompiles those that lose a column by CASCADE.';
    alter event trigger pgaudit_wf_after_drop enable always;
exception
    when insufficient_privilege then
        raise notice '% may not create event triggers: attach() will compile the generic form, which is slower but needs none', current_user;
end
$$;
