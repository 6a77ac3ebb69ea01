-- What attaching many tables at once would do: settings with what looks like a secret redacted, and why a table is left out.

create function pgaudit_wf._secret_members(target regclass, column_name text) returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    return query execute format(
        $query$
        with recursive member (path, key, value) as (
            select %1$L, '', found.value
            from (select pgaudit_wf._json_value(s.%2$I::json) as value from %3$s as s where s.%2$I is not null limit 200) as found
            union all
            select member.path || next.step, next.key, next.value
            from member, lateral (
                select e.key, e.value,
                    case
                        when e.key = '' then '.*'
                        when e.key ~ '^[[:alnum:]_-]+$' then '.' || e.key
                        else '."' || replace(e.key, '"', '""') || '"'
                    end as step
                from jsonb_each(case jsonb_typeof(member.value) when 'object' then member.value else '{}' end) as e
                union all
                select '', element, '.*'
                from jsonb_array_elements(case jsonb_typeof(member.value) when 'array' then member.value else '[]' end) as element
            ) as next
            -- Below what is hidden, nothing is left to hide.
            where not pgaudit_wf._has_secret_name(member.key)
        )
        select distinct path from member
        where pgaudit_wf._has_secret_name(key) and jsonb_typeof(value) not in ('null', 'boolean')
        $query$,
        quote_ident(column_name), column_name, target);
end
$$;
comment on function pgaudit_wf._secret_members(regclass, text) is
    'Paths, as redact takes them, to members of a json or jsonb column that have the name of a secret in one of its first 200 values.';

create function pgaudit_wf._secret_looking(target regclass) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    readable constant boolean := has_table_privilege(_secret_looking.target, 'select') and not row_security_active(_secret_looking.target);
    col record;
    paths text[];
    found_names text[] := '{}';
begin
    for col in
        select a.attname::text as name, a.atttypid as type, pgaudit_wf._looks_secret(a.attname, a.atttypid) as is_secret
        from pg_attribute as a
        where a.attrelid = _secret_looking.target and a.attnum > 0 and not a.attisdropped
        order by a.attnum
    loop
        if col.is_secret then
            found_names := found_names || col.name;
        elsif readable and col.type in ('json'::regtype, 'jsonb'::regtype) then
            paths := array(select path from pgaudit_wf._secret_members(_secret_looking.target, col.name) as path order by path);
            -- Names that are data: as good as none to list.
            found_names := found_names || case when cardinality(paths) > 20 then array[col.name] else paths end;
        end if;
    end loop;
    return found_names;
end
$$;
comment on function pgaudit_wf._secret_looking(regclass) is
    'What attach --all redacts: columns with the name of a secret, and paths to such members of json and jsonb columns, '
    'or these columns where there are more than 20 paths.';

create function pgaudit_wf._attach_plan() returns table (name text, redact text[], left_out text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    listed record;
    secrets text[];
    problem text;
begin
    for listed in
        select c.oid, c.relowner, coverage.subject
        from pgaudit_wf._coverage(interval '0') as coverage
        join pg_namespace as n on true
        join pg_class as c on c.relnamespace = n.oid and format('%I.%I', n.nspname, c.relname) = coverage.subject
        where coverage.kind = 'table'
        -- Children by inheritance before their parents, as attach() wants it.
        order by (select count(*) from pgaudit_wf._descendants(c.oid)), coverage.subject
    loop
        secrets := '{}';
        problem := case
            when not pg_has_role(listed.relowner, 'usage') then
                format('it belongs to %I: attach it as that role or as a superuser', listed.relowner::regrole::text)
            when pgaudit_wf._primary_key(listed.oid) is null then 'it has no primary key: name the columns by attach --id-column'
        end;
        if problem is null then
            secrets := pgaudit_wf._secret_looking(listed.oid);
            if pgaudit_wf._primary_key(listed.oid) && secrets then
                problem := 'its key looks like a secret, and would be shown: attach it with another --id-column, or waive it';
            end if;
        end if;
        name := listed.subject;
        redact := case when problem is null then secrets else '{}' end;
        left_out := problem;
        return next;
    end loop;
end
$$;
comment on function pgaudit_wf._attach_plan() is
    'The tables that are neither attached nor waived, in the order in which they can be attached: what would be redacted, '
    'or why a table is left out.';

create function pgaudit_wf._preset_table(target regclass, setting jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    columns_now constant text[] := pgaudit_wf._column_names(_preset_table.target);
    known pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = _preset_table.target);
    given constant text[] := array(select jsonb_array_elements_text(coalesce(setting -> 'redact', '[]')));
    shown constant text[] := array_remove(array(
        select jsonb_array_elements_text(coalesce(setting -> 'id_columns', to_jsonb(pgaudit_wf._primary_key(_preset_table.target)))))
        || array[setting ->> 'label_column', setting ->> 'org_column', setting ->> 'nodes_column', setting ->> 'edges_column',
            setting ->> 'enabled_column', setting ->> 'name_column'], null);
    graph constant text[] := case setting ->> 'shape'
        when 'n8n' then '{nodes,connections}' when 'flowise' then '{flowData}' when 'reactflow' then '{nodes,edges}' else '{}' end;
    ignored constant text[] := array(
        select name from jsonb_array_elements_text(coalesce(setting -> 'ignore', '[]')) as name where name = any (columns_now));
    redacted text[];
    absent text[];
begin
    select array_agg(distinct entry order by entry) into redacted
    from (
        select entry from unnest(given) as entry where pgaudit_wf._secret_column(entry, columns_now) = any (columns_now)
        union all
        -- What the preset does not name, because it is newer, or of the site's own.
        select entry from unnest(pgaudit_wf._secret_looking(_preset_table.target)) as entry
        where pgaudit_wf._secret_column(entry, columns_now) <> all (shown || graph || ignored)
            and pgaudit_wf._secret_column(entry, columns_now) <> all (given)
            and entry <> all (array(select jsonb_array_elements_text(coalesce(setting -> 'not_secret', '[]'))))
        union all
        select entry from unnest(known.redact) as entry
    ) as every;
    absent := array(
        select name from (
            select setting ->> 'label_column' union all select setting ->> 'org_column' union all
            select jsonb_array_elements_text(coalesce(setting -> 'ignore', '[]')) union all
            select pgaudit_wf._secret_column(entry, columns_now) from unnest(given) as entry) as named (name)
        where name <> all (columns_now) order by name);
    return jsonb_strip_nulls(setting - '{not_secret,label_column,org_column}'::text[] || jsonb_build_object(
        'label_column', case when setting ->> 'label_column' = any (columns_now) then setting -> 'label_column' end,
        'org_column', case when setting ->> 'org_column' = any (columns_now) then setting -> 'org_column' end,
        'ignore', to_jsonb(ignored), 'redact', to_jsonb(coalesce(redacted, '{}'))))
        || jsonb_build_object('absent', to_jsonb(absent), 'is_attached', known.target is not null);
end
$$;
comment on function pgaudit_wf._preset_table(regclass, jsonb) is
    'The settings of a preset for a table as it is: without columns that it lacks (listed as absent), and with what looks '
    'like a secret; is_attached: it has settings already.';

create function pgaudit_wf._add_rule(rule jsonb) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position)
    select r.resource_type, r.op, r.condition, r.action, coalesce(r.position, 100)
    from jsonb_to_record(rule) as r (resource_type text, op text, condition text, action text, position integer)
    where not exists (
        select from pgaudit_wf.action_rule as known
        where (known.resource_type, known.op, known.action) = (r.resource_type, r.op, r.action)
            and known.condition is not distinct from r.condition)
    returning true
$$;
comment on function pgaudit_wf._add_rule(jsonb) is 'Adds a rule of a preset, unless there is the same; null: there was.';

create function pgaudit_wf._add_waiver(subject text, reason text) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.waiver (subject, reason) values (_add_waiver.subject, _add_waiver.reason)
    on conflict do nothing
    returning true
$$;
comment on function pgaudit_wf._add_waiver(text, text) is 'Says why something is not recorded, unless that is said already; null: it was.';
