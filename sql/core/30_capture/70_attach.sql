-- attach() and detach(): what a user calls to have a table audited.

create function pgaudit_wf._can_follow_ddl() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select count(*) = 3 from pg_event_trigger
    where evtname in ('pgaudit_wf_after_ddl', 'pgaudit_wf_after_drop', 'pgaudit_wf_follow_as_author') and evtenabled in ('O', 'A')
$$;
comment on function pgaudit_wf._can_follow_ddl() is
    'Whether the event triggers that recompile triggers after DDL are there; without them attach() compiles the generic form.';

create function pgaudit_wf._capture_function_name(target regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Distinct tables may look alike once the schema and the name are joined or cut.
    select case
        when octet_length(plain) <= 63 and not exists (select from pgaudit_wf.attachment where function_name = plain) then plain
        else left(regexp_replace(plain, '[^ -~]', '_', 'g'), 40) || '_' || left(md5(n.nspname || '.' || quote_ident(c.relname)), 12)
    end
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace,
    lateral (select concat('capture_', case when n.nspname <> 'public' then n.nspname || '_' end, c.relname) as plain) as name
    where c.oid = _capture_function_name.target
$$;
comment on function pgaudit_wf._capture_function_name(regclass) is 'Name for the trigger function of a table, such as capture_invoice.';

create function pgaudit_wf._descendants(target regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive descendant as (
        select inhrelid from pg_inherits where inhparent = _descendants.target
        union
        select i.inhrelid from pg_inherits as i join descendant as d on i.inhparent = d.inhrelid
    )
    select inhrelid::regclass from descendant
$$;
comment on function pgaudit_wf._descendants(regclass) is 'Partitions and inheriting tables, which DDL on their parent also alters.';

create function pgaudit_wf._check_attachable(target regclass) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    class pg_class := (select c from pg_class as c where c.oid = _check_attachable.target);
    related regclass;
begin
    if _check_attachable.target is null or class.oid is null then
        raise exception 'there is no such table to attach' using errcode = 'PA004';
    end if;
    if class.relkind not in ('r', 'p') then
        raise exception '% is not a table', _check_attachable.target
            using errcode = 'PA004', hint = 'Only tables and partitioned tables can be attached.';
    end if;
    if class.relpersistence = 't' then
        raise exception '% is a temporary table', _check_attachable.target using errcode = 'PA004';
    end if;
    if class.relnamespace in ('pgaudit_wf'::regnamespace, 'pg_catalog'::regnamespace, 'information_schema'::regnamespace) then
        raise exception '% belongs to the system and cannot be attached', _check_attachable.target using errcode = 'PA004';
    end if;
    select a.target into related
    from pgaudit_wf.attachment as a
    where a.target <> _check_attachable.target
        and (a.target in (select relid from pg_partition_ancestors(_check_attachable.target))
            or _check_attachable.target in (select relid from pg_partition_ancestors(a.target)));
    if found then
        raise exception '% is already recorded through %', _check_attachable.target, related
            using errcode = 'PA004', hint = format('Detach %s first: a partition and its parent cannot both be attached.', related);
    end if;
    -- Triggers are not inherited, and a parent's rows are read together with its children's.
    select child into related
    from pgaudit_wf._descendants(_check_attachable.target) as child
    where class.relkind = 'r' and child not in (select a.target from pgaudit_wf.attachment as a) order by child::text limit 1;
    if found then
        raise exception '% has a table that inherits from it, %, whose rows its triggers would not see', _check_attachable.target, related
            using errcode = 'PA004', hint = format('Attach the child first: select pgaudit_wf.attach(%L);', related);
    end if;
    if not pg_has_role(current_user, class.relowner, 'usage') then
        raise exception '% must own % to attach it', current_user, _check_attachable.target
            using errcode = 'PA004', hint = format('Run attach as %I or as a superuser.', class.relowner::regrole::text);
    end if;
end
$$;
comment on function pgaudit_wf._check_attachable(regclass) is 'Raises PA004 if the table cannot be attached, saying why.';

create function pgaudit_wf._check_columns(setting pgaudit_wf.attachment, mentioned text[] default null) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    secret_columns constant text[] := pgaudit_wf._secret_columns((setting).redact, (setting).columns);
    problem record;
begin
    with named (role, name, rank) as (
        select 'id_columns', unnest((setting).id_columns), 1
        union all select 'org_column', (setting).org_column, 2
        union all select 'label_column', (setting).label_column, 3
        union all select 'ignore', unnest((setting).ignore), 4
        union all select 'redact', unnest(secret_columns), 5
        union all select 'shallow', unnest((setting).shallow), 6
        union all
        -- Versions keep these.
        select role, name, 7
        from pgaudit_wf.workflow_attachment as w,
        lateral (values ('nodes_column', w.nodes_column), ('edges_column', w.edges_column), ('name_column', w.name_column),
            ('description_column', w.description_column), ('visibility_column', w.visibility_column),
            ('enabled_column', w.enabled_column)) as part (role, name)
        where w.target = (setting).target
    ), checked as (
        select named.*, case
            when name <> all ((setting).columns) and rank < 7
                and (role = 'id_columns' or mentioned is null or name = any (mentioned)) then 'missing'
            when role in ('ignore', 'redact', 'shallow') then null
            when role = 'id_columns' and name = any ((setting).ignore) then 'ignored'
            when name = any (secret_columns) then 'redacted'
            when rank = 7 then null
            when attgenerated = 'v' then 'virtual'
        end as fault
        from named left join pg_attribute on attrelid = (setting).target and attname = name
        where name is not null
    )
    select * into problem from checked where fault is not null
    order by array_position(array['missing', 'ignored', 'redacted', 'virtual'], fault), rank limit 1;
    case problem.fault
        when 'missing' then
            raise exception '% has no column "%", named in %', (setting).target, problem.name, problem.role
                using errcode = 'PA002', hint = format('Its columns are %s.',
                    (select string_agg(quote_ident(name), ', ') from unnest((setting).columns) as name));
        when 'ignored' then
            raise exception 'column "%" of % is both in ignore and in id_columns', problem.name, (setting).target
                using errcode = 'PA002', hint = 'A change to what identifies a row must be recorded, or its history ends there.';
        when 'redacted' then
            raise exception 'column "%" of % is both in redact and in %', problem.name, (setting).target, problem.role
                using errcode = 'PA002', hint = 'What names a row in the log cannot be kept out of it; choose another column.';
        when 'virtual' then
            raise exception 'column "%" of % is computed when read and cannot be in %', problem.name, (setting).target, problem.role
                using errcode = 'PA002', hint = 'Name stored columns.';
        else
            null;
    end case;
end
$$;
comment on function pgaudit_wf._check_columns(pgaudit_wf.attachment, text[]) is
    'Raises PA002, naming the column, where the settings are wrong. mentioned: those that must exist, besides id_columns; null: all.';

create function pgaudit_wf._rows_before(setting pgaudit_wf.attachment) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    key_column constant text := (
        select attname from pg_attribute
        where attrelid = (setting).target and array[attname::text] = (setting).id_columns
            and atttypid in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype)
            -- Its index has the highest one at its end.
            and (setting).id_columns = pgaudit_wf._primary_key((setting).target));
    -- The rows of tables that inherit from it are not its own.
    source constant text := (
        select case relkind when 'p' then '' else 'only ' end || (setting).target from pg_class where oid = (setting).target);
    has_rows boolean;
    highest bigint;
begin
    if not has_table_privilege((setting).target, 'select') or row_security_active((setting).target)
        -- Another server's are not read for this.
        or exists (
            select from pg_class
            where relkind = 'f' and (oid = (setting).target or oid in (select relid from pg_partition_tree((setting).target))))
    then
        return '{}';
    end if;
    execute format('select exists (select from %s)', source) into has_rows;
    if not has_rows then
        return '{"before": {"rows": "none"}}';
    elsif key_column is null then
        return '{}';
    end if;
    execute format('select max(%I) from %s', key_column, source) into highest;
    return jsonb_build_object('before', jsonb_build_object('highest', highest));
end
$$;
comment on function pgaudit_wf._rows_before(pgaudit_wf.attachment) is
    'What tells the rows that a table has when it is attached from those that come later without an event, in attachment_history.detail: '
    '{"before": {"rows": "none"}} or {"before": {"highest": key}}, for keys that are numbers; else nothing.';

create function pgaudit_wf.attach(
    target regclass,
    resource_type text default null,
    id_columns text[] default null,
    org_column text default null,
    label_column text default null,
    ignore text[] default null,
    redact text[] default null,
    on_failure text default null,
    max_value integer default null,
    shallow text[] default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    setting pgaudit_wf.attachment;
    known boolean;
    before jsonb;
begin
    if exists (select from pgaudit_wf.hub_node) then
        raise exception 'this database is a hub, which records no tables of its own'
            using errcode = 'PA013',
                hint = 'Undoing and comparing rows would take those of nodes for its own. Attach the table on its node.';
    end if;
    perform pgaudit_wf._check_attachable(attach.target);
    -- Without event triggers, dropped tables go unnoticed.
    delete from pgaudit_wf.attachment as a where not exists (select from pg_class where oid = a.target);
    if attach.on_failure not in ('abort', 'warn') then
        raise exception 'on_failure is "%": it must be abort or warn', attach.on_failure using errcode = 'PA008';
    end if;
    if attach.max_value < 0 then
        raise exception 'max_value is %: it must be a number of bytes, or 0 for no bound', attach.max_value using errcode = 'PA008';
    end if;
    -- With the suffix of an action, it fits the 128 characters of one.
    if length(attach.resource_type) > 100 then
        raise exception 'resource_type has % characters: at most 100 are allowed', length(attach.resource_type) using errcode = 'PA008';
    end if;
    -- One at a time for a table; and the table's own lock before ours, in the order in which DDL takes them.
    execute format('lock table only %s in share row exclusive mode', attach.target);

    select * into setting from pgaudit_wf.attachment as a where a.target = attach.target for update;
    known := found;
    before := to_jsonb(setting);
    setting.target := attach.target;
    setting.columns := pgaudit_wf._column_names(attach.target);
    setting.form := case when pgaudit_wf._can_follow_ddl() then 'compiled' else 'generic' end;
    setting.function_name := coalesce(setting.function_name, pgaudit_wf._capture_function_name(attach.target));
    setting.resource_type := coalesce(nullif(attach.resource_type, ''), setting.resource_type,
        (select relname from pg_class where oid = attach.target));
    setting.id_columns := coalesce(
        nullif(attach.id_columns, '{}'),
        case when setting.id_columns <@ setting.columns then setting.id_columns end,
        pgaudit_wf._primary_key(attach.target));
    if setting.id_columns is null then
        raise exception '% has no primary key', attach.target
            using errcode = 'PA002', hint = 'Say which columns identify a row: id_columns => array[''…''].';
    end if;
    setting.org_column := nullif(coalesce(attach.org_column, setting.org_column, case when not known then (
        select name from unnest(array['org_id', 'organization_id']) with ordinality as usual (name, position)
        where name = any (setting.columns) order by position limit 1) end), '');
    setting.label_column := nullif(coalesce(attach.label_column, setting.label_column), '');
    setting.ignore := coalesce(attach.ignore, setting.ignore, array['updated_at']);
    setting.redact := coalesce(attach.redact, setting.redact, '{}');
    setting.shallow := coalesce(attach.shallow, setting.shallow, '{}');
    setting.max_value := nullif(coalesce(attach.max_value, setting.max_value), 0);
    setting.on_failure := coalesce(attach.on_failure, setting.on_failure, 'abort');
    if not known and 'updated_at' <> all (setting.columns) then
        setting.ignore := array_remove(setting.ignore, 'updated_at');
    end if;

    -- What is named here must exist; what was named before may have been dropped meanwhile, and applies again if it comes back.
    perform pgaudit_wf._check_columns(setting, case when known
        then coalesce(attach.ignore, '{}') || pgaudit_wf._secret_columns(attach.redact, setting.columns) || coalesce(attach.shallow, '{}')
            || attach.org_column || attach.label_column end);
    perform pgaudit_wf._check_action_rule(setting.target, r)
    from pgaudit_wf.action_rule as r where r.resource_type = setting.resource_type;

    setting.attached_at := coalesce(setting.attached_at, now());
    setting.attached_by := coalesce(setting.attached_by, session_user);
    insert into pgaudit_wf.attachment as a select setting.*
    on conflict on constraint attachment_pkey do update
    set (resource_type, id_columns, org_column, label_column, ignore, redact, shallow, max_value, on_failure, form, columns)
        = (setting.resource_type, setting.id_columns, setting.org_column, setting.label_column, setting.ignore, setting.redact,
            setting.shallow, setting.max_value, setting.on_failure, setting.form, setting.columns);
    if before is distinct from to_jsonb(setting) then
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, case when known then 'changed' else 'attached' end,
            to_jsonb(setting) - '{target,columns,usage_granted,written_for,attached_at,attached_by}'::text[]
            || case when known then '{}' else pgaudit_wf._rows_before(setting) end);
    end if;
    perform pgaudit_wf._write_functions(setting);
    perform pgaudit_wf._place_triggers(setting);
    -- A parent's statement triggers would record the rows of a child as its own.
    perform pgaudit_wf._place_batch(a) from pgaudit_wf.attachment as a
    where a.target in (select inhparent from pg_inherits where inhrelid = attach.target) and pgaudit_wf._batched_ops(a.target) <> '{}';
    -- Again where it has changed which of the triggers record.
    perform pgaudit_wf._write_functions(a) from pgaudit_wf.attachment as a
    where a.target = attach.target and a.written_for <> pgaudit_wf._written_state(a.target);
    perform pgaudit_wf._place_limit(setting);
    perform pgaudit_wf._try_log_partitions();
end
$$;
comment on function pgaudit_wf.attach(regclass, text, text[], text, text, text[], text[], text, integer, text[]) is
    'Records every change to a table in security_audit_log from now on. '
    'Called again, it changes the named settings in place; one that is not named keeps its value, '''', ''{}'' or 0 clears it. '
    'Defaults: resource_type is the table''s name; id_columns its primary key; '
    'org_column is org_id or organization_id if it exists (else events take app.org_id); label_column none; '
    'ignore {updated_at} (columns left out of the log); '
    'redact none (columns shown as "[redacted]", or paths within json, jsonb and text columns: options.headers.*, '
    'where * is every member or element, a name in an array is looked for in each element, and "a.b" is one name); '
    'on_failure abort (or warn: let the change through and count the failure); '
    'max_value none (bytes up to which a value is recorded as it is, a longer one by its SHA-256 and length; '
    'without it, values are recorded as they are as far as jsonb can hold them); '
    'shallow none (json and jsonb columns that are replaced as a whole instead of by operations within the value). '
    'Raises PA002 (column), PA003 (rule), PA004 (table), PA008 (argument); the table is then left as it was.';

create function pgaudit_wf._stands_on(relation oid, function_name text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from (
            select a.target, a.function_name from pgaudit_wf.attachment as a
            union all select a.target, pgaudit_wf._guard_function_name(a) from pgaudit_wf.attachment as a
            union all select a.target, pgaudit_wf._graph_function_name(a) from pgaudit_wf.attachment as a
            union all select t.target, t.function_name from pgaudit_wf.limit_target as t
            union all select e.target, e.function_name from pgaudit_wf.execution_attachment as e
        ) as written
        where written.function_name = _stands_on.function_name
            and pg_partition_root(written.target) = pg_partition_root(_stands_on.relation));
end
$$;
comment on function pgaudit_wf._stands_on(oid, text) is
    'Whether a trigger function was written for a table or for others of its partition tree.';

create function pgaudit_wf._check_place(target regclass, function_name text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The owner of a partitioned table may execute its trigger functions, in order to create partitions. On another table of the owner,
    -- whose columns can have any type, they would run the casts of that type with our rights, or record what never happened.
    select case when (select relkind from pg_class where oid = _check_place.target) = 'p' then pgaudit_wf._fill(
$check$if pg_partition_root(tg_relid) is distinct from {{root}} and not pgaudit_wf._stands_on(tg_relid, {{function}}) then
    raise exception 'this trigger function is not for table %', tg_relid::regclass using errcode = 'insufficient_privilege';
end if;$check$,
        jsonb_build_object(
            'root', pg_partition_root(_check_place.target)::oid,
            'function', quote_literal(_check_place.function_name))) else '{}' end
$$;
comment on function pgaudit_wf._check_place(regclass, text) is
    'PL/pgSQL by which the trigger function of a partitioned table refuses to run on any other table; nothing for other tables.';

create function pgaudit_wf._leave_to_partition(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Where DDL is followed, such a partition's attachment is folded into the parent's.
    select case when (setting).form = 'generic' and (select relkind from pg_class where oid = (setting).target) = 'p' then pgaudit_wf._fill(
$check$if exists (
    select from pgaudit_wf.attachment as own
    join pg_partition_ancestors(tg_relid) as nearer on true
    join pgaudit_wf.attachment as other on other.target = nearer.relid and other.target <> own.target
    where own.function_name = {{function}} and own.target in (select parent.relid from pg_partition_ancestors(other.target) as parent))
then
    -- This partition was attached by itself before, and still records its rows.
    return null;
end if;$check$, jsonb_build_object('function', quote_literal((setting).function_name))) else '{}' end
$$;
comment on function pgaudit_wf._leave_to_partition(pgaudit_wf.attachment) is
    'PL/pgSQL by which a partitioned table of the generic form leaves alone what a partition of its own attachment records.';

create function pgaudit_wf._let_owner_read(target regclass, columns text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    reader constant name := pgaudit_wf._schema_owner();
    class pg_class := (select c from pg_class as c where c.oid = _let_owner_read.target);
    name text;
begin
    if pg_has_role(reader, class.relowner, 'usage') then
        return;
    end if;
    foreach name in array _let_owner_read.columns loop
        if not has_column_privilege(reader, _let_owner_read.target, name, 'select') then
            execute format('grant select (%I) on %s to %I', name, _let_owner_read.target, reader);
        end if;
    end loop;
    if not has_schema_privilege(reader, class.relnamespace, 'usage') then
        execute format('grant usage on schema %s to %I', class.relnamespace::regnamespace, reader);
    end if;
end
$$;
comment on function pgaudit_wf._let_owner_read(regclass, text[]) is
    'Lets the owner of our schema read columns of a table, with the rights of the caller; does nothing where it already may.';

create function pgaudit_wf._replace_function(
    function_name text, body text, settings text[], target regclass, description text, definer boolean default true
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant oid := (select relowner from pg_class where oid = _replace_function.target);
    function regprocedure := to_regprocedure(format('pgaudit_wf.%I()', _replace_function.function_name));
    grantee regrole;
begin
    -- Two sessions that follow DDL on partitions of one table at once must not both replace its function: the second would fail.
    if function is null or not exists (
        select from pg_proc
        where oid = function and prosrc = _replace_function.body and proowner = pgaudit_wf._schema_owner()::regrole
            and prosecdef = _replace_function.definer
            and array(select lower(config) from unnest(proconfig) as config where config !~ '^search_path=' order by 1)
                = array(
                    select replace(replace(lower(setting), ' = ', '='), '''', '')
                    from unnest(_replace_function.settings) as setting order by 1))
    then
        -- In turn, if two sessions change something that the function reads (a type and the rules, say): the second would fail otherwise.
        perform from pgaudit_wf.attachment as a where a.target = _replace_function.target for update;
        execute format(e'create or replace function pgaudit_wf.%I() returns trigger\n'
            'language plpgsql%s\n'
            'set search_path = pg_catalog, pg_temp%s\n'
            'as %L',
            _replace_function.function_name, case when _replace_function.definer then ' security definer' else '' end,
            (select string_agg(e'\nset ' || setting, '' order by setting) from unnest(_replace_function.settings) as setting),
            _replace_function.body);
        function := format('pgaudit_wf.%I()', _replace_function.function_name)::regprocedure;
        execute format('comment on function %s is %L', function, _replace_function.description);
        execute format('revoke all on function %s from public', function);
        perform pgaudit_wf._note_generated(function);
    end if;
    for grantee in
        select acl.grantee from pg_proc as p, aclexplode(p.proacl) as acl
        where p.oid = function and acl.grantee not in (p.proowner, owner, 0)
    loop
        execute format('revoke all on function %s from %s', function, grantee);
    end loop;
    -- Creating a partition puts the table's triggers on it, which takes EXECUTE on their functions.
    if (select relkind from pg_class where oid = _replace_function.target) = 'p'
        and not has_function_privilege(owner, function, 'execute')
    then
        execute format('grant execute on function %s to %s', function, owner::regrole);
    end if;
end
$$;
comment on function pgaudit_wf._replace_function(text, text, text[], regclass, text, boolean) is
    'Writes a trigger function of an attached table, unless it is already as it should be, and lets the owner of a partitioned table '
    'execute it. It runs with the rights of our schema''s owner, or (not definer) of whoever writes the table.';

create function pgaudit_wf._install_trigger(
    relation regclass, name text, event text, scope text, function_name text, always boolean default false
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('create or replace trigger %I %s on %s %s execute function pgaudit_wf.%I()',
        name, event, relation, scope, function_name);
    if always then
        execute format('alter table %s enable always trigger %I', relation, name);
    end if;
end
$$;
comment on function pgaudit_wf._install_trigger(regclass, text, text, text, text, boolean) is
    'Puts a trigger on a table with the rights of the caller: event is "after insert", say, and scope "for each row" with what precedes '
    'and follows it. always: it also fires in a session that calls itself a replica.';

create function pgaudit_wf._trigger_name(relation regclass, name text, function_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Those of a partitioned table are also put on each partition, which may have been attached by itself before: no two names must clash.
    select name || case when relkind = 'p' then '_' || left(md5(_trigger_name.function_name), 8) else '' end
    from pg_class where oid = _trigger_name.relation
$$;
comment on function pgaudit_wf._trigger_name(regclass, text, text) is
    'Name of a row trigger of ours on a table; on a partitioned one it is unique to its function.';

create function pgaudit_wf._revoke_usage(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole(quote_ident((setting).usage_granted)) is not null
        and not exists (
            select from pgaudit_wf.attachment as a where a.usage_granted = (setting).usage_granted and a.target <> (setting).target)
    then
        execute format('revoke usage on schema pgaudit_wf from %I', (setting).usage_granted);
    end if;
end
$$;
comment on function pgaudit_wf._revoke_usage(pgaudit_wf.attachment) is
    'Revokes USAGE on our schema from the owner of a partitioned table that is no longer attached, if granted for that table alone.';

create function pgaudit_wf._written_state(target regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws(' ', pgaudit_wf._shape_of(c.oid), c.relowner, pg_partition_root(c.oid)::oid, pgaudit_wf._batched_ops(c.oid))
    from pg_class as c where c.oid = _written_state.target
$$;
comment on function pgaudit_wf._written_state(regclass) is
    'What the functions of an attached table are written for: attachment.written_for.';

create function pgaudit_wf._write_functions(setting pgaudit_wf.attachment) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._replace_function((setting).function_name, pgaudit_wf._capture_body(setting), pgaudit_wf._capture_settings(setting),
        (setting).target, format('Records the changes of %s.', (setting).target));
    perform pgaudit_wf._replace_function(pgaudit_wf._guard_function_name(setting), pgaudit_wf._guard_body(setting), '{}',
        (setting).target, format('Keeps an invalid workflow of %s from being enabled or listed.', (setting).target))
        where pgaudit_wf._guard_body(setting) is not null;
    perform pgaudit_wf._replace_function(pgaudit_wf._graph_function_name(setting), pgaudit_wf._graph_body(setting), '{}',
        (setting).target, format('Reads the graphs of %s.', (setting).target), definer => false)
        where pgaudit_wf._graph_body(setting) is not null;
    perform pgaudit_wf._replace_function(pgaudit_wf._batch_function_name(setting), pgaudit_wf._batch_body(setting),
        pgaudit_wf._capture_settings(setting), (setting).target, format('Records the changes of %s by statement.', (setting).target))
        where pgaudit_wf._has_batch(setting);
    perform pgaudit_wf._note_settings((setting).function_name,
        to_jsonb(setting) - '{target,columns,form,function_name,usage_granted,written_for,attached_at,attached_by}'::text[]
        || coalesce((
            select jsonb_build_object('workflow', to_jsonb(w) - 'target') from pgaudit_wf.workflow_attachment as w
            where w.target = (setting).target), '{}'));
    perform pgaudit_wf._replace_function(t.function_name, pgaudit_wf._limit_body(t), '{}',
        t.target, format('Counts the rows of %s for pgaudit_wf.org_limit.', t.target))
        from pgaudit_wf.limit_target as t where t.target = (setting).target;
    update pgaudit_wf.attachment as a set written_for = pgaudit_wf._written_state(a.target)
    where a.target = (setting).target and a.written_for is distinct from pgaudit_wf._written_state(a.target);
    -- _follow_as_author() names them.
    if (select relkind = 'p' and not has_schema_privilege(relowner, 'pgaudit_wf', 'usage') from pg_class where oid = (setting).target) then
        perform pgaudit_wf._revoke_usage(setting);
        update pgaudit_wf.attachment as a set usage_granted = (select pg_get_userbyid(relowner) from pg_class where oid = (setting).target)
        where a.target = (setting).target;
        execute format('grant usage on schema pgaudit_wf to %s', (select relowner::regrole from pg_class where oid = (setting).target));
    end if;
end
$$;
comment on function pgaudit_wf._write_functions(pgaudit_wf.attachment) is
    'Writes the trigger functions of an attached table, as the owner of our schema: following DDL takes no more than this.';

create function pgaudit_wf._place_triggers(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    op text;
    leaf regclass;
begin
    -- First, or the event trigger would put them there when it sees the others. A foreign partition can have no such trigger.
    for leaf in select l from pgaudit_wf._leaf_tables((setting).target) as l join pg_class as c on c.oid = l where c.relkind <> 'f' loop
        perform pgaudit_wf._install_trigger(
            leaf, 'pgaudit_wf_truncate', 'after truncate', 'for each statement', (setting).function_name, always => true);
    end loop;
    -- Triggers fire in the order of their names, and one that changes the row again must come after the first change was recorded:
    -- "!" sorts before whatever else a name begins with, including PostgreSQL's own for foreign keys (RI_…).
    -- No WHEN clause: PostgreSQL parses and plans it again for each statement, which costs more than entering and leaving the
    -- function (12 against 4 µs), and its columns could not be dropped or retyped.
    foreach op in array array['insert', 'update', 'delete'] loop
        perform pgaudit_wf._install_trigger(
            (setting).target, pgaudit_wf._trigger_name((setting).target, '!pgaudit_wf_' || op, (setting).function_name),
            'after ' || op, 'for each row', (setting).function_name, always => true);
    end loop;
    perform pgaudit_wf._place_batch(setting);
    -- A detached partition is no longer audited.
    for leaf in
        select tgrelid from pg_trigger
        where tgfoid = format('pgaudit_wf.%I()', (setting).function_name)::regprocedure and tgname = 'pgaudit_wf_truncate'
            and tgrelid not in (select pgaudit_wf._leaf_tables((setting).target))
    loop
        execute format('drop trigger pgaudit_wf_truncate on %s', leaf);
    end loop;
    if pgaudit_wf._guard_body(setting) is not null then
        -- Not "always": what a subscriber applies went live where it was written, and refusing it here would stop the subscription.
        perform pgaudit_wf._install_trigger(
            (setting).target, pgaudit_wf._trigger_name((setting).target, 'pgaudit_wf_guard', (setting).function_name),
            'before insert or update', 'for each row', pgaudit_wf._guard_function_name(setting));
    else
        perform pgaudit_wf._drop_functions(array[pgaudit_wf._guard_function_name(setting)]);
    end if;
    if pgaudit_wf._graph_body(setting) is not null then
        -- By its name, it fires before those that record inserts and updates.
        perform pgaudit_wf._install_trigger(
            (setting).target, pgaudit_wf._trigger_name((setting).target, '!pgaudit_wf_graph', (setting).function_name),
            'after insert or update', 'for each row', pgaudit_wf._graph_function_name(setting), always => true);
    else
        perform pgaudit_wf._drop_functions(array[pgaudit_wf._graph_function_name(setting)]);
    end if;
end
$$;
comment on function pgaudit_wf._place_triggers(pgaudit_wf.attachment) is
    'Puts the triggers on an attached table, with the rights of the caller, who must own it.';

create function pgaudit_wf._leaf_tables(target regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A statement trigger is not inherited by partitions, so TRUNCATE is watched where the rows are. Not by pg_partition_tree(), which
    -- locks every partition: DDL calls this, too.
    select part.relid
    from (
        select _leaf_tables.target as relid
        union all
        select d.relid from pgaudit_wf._descendants(_leaf_tables.target) as d (relid)
        join pg_class as c on c.oid = d.relid and c.relispartition
    ) as part
    join pg_class as c on c.oid = part.relid and c.relkind <> 'p'
$$;
comment on function pgaudit_wf._leaf_tables(regclass) is 'The tables that hold a table''s rows: itself, or its partitions.';

create function pgaudit_wf._drop_functions(names text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace and p.pronargs = 0 and p.proname = any (names)
    loop
        -- Cascade: partitions that were detached unnoticed have kept its triggers.
        execute format('drop function %s cascade', function);
    end loop;
end
$$;
comment on function pgaudit_wf._drop_functions(text[]) is
    'Drops those trigger functions written for a table that exist, and what is left of their triggers.';

create function pgaudit_wf.detach(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    setting pgaudit_wf.attachment;
    installed record;
begin
    -- Without event triggers, a dropped table goes unnoticed.
    if exists (select from pg_class where oid = detach.target) then
        execute format('lock table only %s in access exclusive mode', detach.target);
    end if;
    delete from pgaudit_wf.attachment as a where a.target = detach.target returning a.* into setting;
    if not found then
        raise exception '% is not attached', detach.target
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists the attached tables.';
    end if;
    perform pgaudit_wf._uninstall_limit(detach.target);
    -- Also from partitions that have been detached since.
    for installed in
        select tgname as name, tgrelid::regclass as relation from pg_trigger
        where tgparentid = 0 and tgfoid in (
            to_regprocedure(format('pgaudit_wf.%I()', setting.function_name)),
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._batch_function_name(setting))),
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._guard_function_name(setting))),
            to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf._graph_function_name(setting))))
    loop
        execute format('drop trigger %I on %s', installed.name, installed.relation);
    end loop;
    perform pgaudit_wf._drop_functions(array[
        setting.function_name, pgaudit_wf._batch_function_name(setting), pgaudit_wf._guard_function_name(setting),
        pgaudit_wf._graph_function_name(setting)]);
    perform pgaudit_wf._revoke_usage(setting);
    delete from pgaudit_wf.workflow_attachment as w where w.target = detach.target;
    insert into pgaudit_wf.attachment_history (target, resource_type, change) values (setting.target, setting.resource_type, 'detached');
end
$$;
comment on function pgaudit_wf.detach(regclass) is
    'Stops recording a table and removes its triggers; what was recorded stays. Raises PA005 if it is not attached.';

create function pgaudit_wf._recompile_for_rules() returns trigger
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
        perform pgaudit_wf._check_action_rule(setting.target, r)
        from pgaudit_wf.action_rule as r where r.resource_type = setting.resource_type;
        perform pgaudit_wf._write_functions(setting);
        if exists (
            select from unnest(pgaudit_wf._batched_ops(setting.target)) as op where pgaudit_wf._needs_rows(setting.target, op))
        then
            perform pgaudit_wf._place_batch(setting);
        end if;
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf._recompile_for_rules() is
    'Trigger of action_rule: compiles the rule into the attached tables of its type, or refuses it.';

create trigger recompile_insert after insert on pgaudit_wf.action_rule
    referencing new table as touched for each statement execute function pgaudit_wf._recompile_for_rules();
create trigger recompile_update_new after update on pgaudit_wf.action_rule
    referencing new table as touched for each statement execute function pgaudit_wf._recompile_for_rules();
create trigger recompile_update_old after update on pgaudit_wf.action_rule
    referencing old table as touched for each statement execute function pgaudit_wf._recompile_for_rules();
create trigger recompile_delete after delete on pgaudit_wf.action_rule
    referencing old table as touched for each statement execute function pgaudit_wf._recompile_for_rules();

create view pgaudit_wf.attached as
select
    a.target,
    a.resource_type,
    a.id_columns,
    a.org_column,
    a.label_column,
    a.ignore,
    a.redact,
    a.shallow,
    a.max_value,
    a.on_failure,
    a.form,
    a.function_name,
    (select count(*) from pgaudit_wf.action_rule as r where r.resource_type = a.resource_type) as rules,
    (select count(*) from pgaudit_wf.capture_failure as f where f.op <> 'COUNT' and to_regclass(f.target) = a.target) as failures,
    a.attached_at,
    a.attached_by
from pgaudit_wf.attachment as a;
comment on view pgaudit_wf.attached is 'What is audited, and how. doctor() says whether it still is.';
comment on column pgaudit_wf.attached.target is 'The audited table.';
comment on column pgaudit_wf.attached.resource_type is 'resource_type of its events.';
comment on column pgaudit_wf.attached.id_columns is 'Columns that make up resource_id.';
comment on column pgaudit_wf.attached.org_column is 'Column that gives org_id; null: app.org_id is taken.';
comment on column pgaudit_wf.attached.label_column is 'Column kept as metadata.label.';
comment on column pgaudit_wf.attached.ignore is 'Columns left out of the log.';
comment on column pgaudit_wf.attached.redact is 'Columns shown as "[redacted]".';
comment on column pgaudit_wf.attached.shallow is 'json and jsonb columns that are replaced as a whole.';
comment on column pgaudit_wf.attached.max_value is 'Bytes up to which a value is recorded as it is; null: no bound but jsonb''s.';
comment on column pgaudit_wf.attached.on_failure is 'abort or warn.';
comment on column pgaudit_wf.attached.form is 'compiled or generic.';
comment on column pgaudit_wf.attached.function_name is e'Trigger function: \\sf pgaudit_wf.<function_name>.';
comment on column pgaudit_wf.attached.rules is 'Number of action rules for its resource type.';
comment on column pgaudit_wf.attached.failures is 'Changes that went through unrecorded (on_failure warn).';
comment on column pgaudit_wf.attached.attached_at is 'When it was first attached.';
comment on column pgaudit_wf.attached.attached_by is 'Login role that first attached it.';
