-- use_directory(): points the views that say who people are at an application's own tables, whatever the types of their columns.

create function pgaudit_wf._directory_columns(directory text) returns table (name text, usual text[], otherwise text)
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select listed.name, listed.usual, listed.otherwise
    from (values
        ('actor_directory', 1, 'actor_id', '{actor_id,id}'::text[], null),
        ('actor_directory', 2, 'name', '{name}', 'null::text'),
        ('actor_directory', 3, 'email', '{email}', 'null::text'),
        ('org_member', 1, 'org_id', '{org_id,organization_id}', null),
        ('org_member', 2, 'actor_id', '{actor_id,user_id}', null),
        ('org_member', 3, 'role', '{role}', null),
        ('credential_directory', 1, 'credential_id', '{credential_id,id}', null),
        ('credential_directory', 2, 'credential_type', '{credential_type}', '''org_api_key''::text'),
        ('credential_directory', 3, 'label', '{label,key_prefix,prefix,name}', null)
    ) as listed (directory, place, name, usual, otherwise)
    where listed.directory = _directory_columns.directory
    order by listed.place
$$;
comment on function pgaudit_wf._directory_columns(text) is
    'The columns of a directory, in order: the names under which they are looked for, and what stands in for one that may be missing.';

create function pgaudit_wf._directory_column(source regclass, column_name text, given jsonb, usual text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted text[];
    expressions text[];
    missing text;
    joined text;
begin
    if given is null then
        select array[u.name] into wanted
        from unnest(usual) with ordinality as u (name, place)
        join pg_attribute on attrelid = source and attname = u.name and attnum > 0 and not attisdropped
        order by u.place limit 1;
    elsif jsonb_typeof(given) = 'string' then
        wanted := array[given #>> '{}'];
    elsif jsonb_typeof(given) = 'array' and given <> '[]' and not jsonb_path_exists(given, '$[*] ? (@.type() != "string")') then
        wanted := array(select jsonb_array_elements_text(given));
    else
        raise exception 'columns names no column for %: %', column_name, left(given::text, 100)
            using errcode = 'PA008', hint = 'Give the name of a column, or an array of names whose values are joined by blanks.';
    end if;
    select w.name into missing
    from unnest(wanted) as w (name)
    where not exists (select from pg_attribute where attrelid = source and attname = w.name and attnum > 0 and not attisdropped)
    limit 1;
    if missing is not null then
        raise exception '% has no column "%", named for %', source, missing, column_name
            using errcode = 'PA002', hint = format('Its columns are %s.', (
                select string_agg(quote_ident(attname), ', ' order by attnum)
                from pg_attribute where attrelid = source and attnum > 0 and not attisdropped));
    end if;
    select w.name into missing from unnest(wanted) as w (name) where pgaudit_wf._has_secret_name(w.name) limit 1;
    if missing is not null then
        raise exception 'column "%" of % has the name of a secret, and % is shown to people', missing, source, column_name
            using errcode = 'PA002', hint = 'Name another column; if it is no secret, pass a query that says so by an alias.';
    end if;
    select array_agg(pgaudit_wf._text_expression(atttypid, 's.' || quote_ident(attname)) order by w.place) into expressions
    from unnest(wanted) with ordinality as w (name, place)
    join pg_attribute on attrelid = source and attname = w.name and attnum > 0;
    joined := array_to_string(expressions, ', ');
    return case when cardinality(expressions) > 1 then format('nullif(concat_ws('' '', %s), '''')', joined) else joined end;
end
$$;
comment on function pgaudit_wf._directory_column(regclass, text, jsonb, text[]) is
    'SQL expression for a column of a directory from those of a table, as text; null if none is given or has a usual name.';

create function pgaudit_wf._directory_query(directory text, source regclass, columns jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    kind "char" := (select c.relkind from pg_class as c where c.oid = _directory_query.source);
    wanted record;
    expression text;
    chosen text[] := '{}';
begin
    if kind is null then
        raise exception 'there is no such table' using errcode = 'PA004', hint = 'Name one that is there, with its schema.';
    end if;
    if kind not in ('r', 'p', 'v', 'm', 'f') or _directory_query.source in (
        'pgaudit_wf.actor_directory'::regclass, 'pgaudit_wf.org_member'::regclass, 'pgaudit_wf.credential_directory'::regclass)
    then
        raise exception '% cannot be the source of a directory', _directory_query.source
            using errcode = 'PA004', hint = 'Name a table or view of the application.';
    end if;
    for wanted in select * from pgaudit_wf._directory_columns(_directory_query.directory) loop
        expression := coalesce(
            pgaudit_wf._directory_column(_directory_query.source, wanted.name, _directory_query.columns -> wanted.name, wanted.usual),
            wanted.otherwise);
        if expression is null then
            raise exception '% has none of the columns %, so that % is not known',
                _directory_query.source, array_to_string(wanted.usual, ', '), wanted.name
                using errcode = 'PA002', hint = format('Say which one it is: columns => ''{"%s": "…"}''.', wanted.name);
        end if;
        chosen := chosen || format('%s as %I', expression, wanted.name);
    end loop;
    return format(e'select\n    %s\nfrom %s as s', array_to_string(chosen, e',\n    '), _directory_query.source);
end
$$;
comment on function pgaudit_wf._directory_query(text, regclass, jsonb) is 'The query of a directory over a table.';

create function pgaudit_wf._check_directory_query(directory text, query text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    statement constant text := regexp_replace(query, e';\\s*$', '');
    opened refcursor;
    wanted record;
    found_type oid;
    chosen text[] := '{}';
begin
    begin
        -- A cursor takes one statement only, so nothing can follow what is given here.
        open opened for execute format(e'select from (%s\n) as q limit 0', statement);
        close opened;
    exception
        when syntax_error_or_access_rule_violation or feature_not_supported or invalid_cursor_definition then
            if sqlstate = '42501' then
                raise;
            end if;
            raise exception 'the query for % cannot be used: %', _check_directory_query.directory, sqlerrm
                using errcode = 'PA008', hint = 'It must be one SELECT, which names tables with their schemas.';
    end;
    for wanted in select * from pgaudit_wf._directory_columns(_check_directory_query.directory) loop
        begin
            -- Joined to nothing, the query is not run.
            execute format(
                e'select pg_typeof(q.%I)::oid from (values (1)) as one (row) left join (%s\n) as q on false', wanted.name, statement)
            into found_type;
            chosen := chosen || format('%s as %I',
                pgaudit_wf._text_expression(found_type, 'q.' || quote_ident(wanted.name)), wanted.name);
        exception
            when undefined_column or ambiguous_column then
                if wanted.otherwise is null then
                    raise exception 'the query for % has no column % of its own', _check_directory_query.directory, wanted.name
                        using errcode = 'PA002', hint = format('Name it in the query: … as %I.', wanted.name);
                end if;
                chosen := chosen || format('%s as %I', wanted.otherwise, wanted.name);
        end;
    end loop;
    return format(e'select\n    %s\nfrom (%s\n) as q', array_to_string(chosen, e',\n    '), statement);
end
$$;
comment on function pgaudit_wf._check_directory_query(text, text) is
    'The query of a directory over a query of the application, each column as text; raises PA008 where that is not one SELECT, '
    'PA002 where it lacks a column.';

create function pgaudit_wf.use_directory(
    directory text, source regclass default null, columns jsonb default null, query text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    target regclass;
    written text;
    before text;
    unknown text;
    unreadable record;
    guarded regclass;
begin
    if not exists (select from pgaudit_wf._directory_columns(use_directory.directory)) then
        raise exception 'there is no directory "%"', use_directory.directory
            using errcode = 'PA008', hint = 'There are actor_directory, org_member and credential_directory.';
    end if;
    if (use_directory.source is null) = (use_directory.query is null) then
        raise exception 'a directory is made from either a table or a query'
            using errcode = 'PA008', hint = 'Pass source or query: source => ''public.app_user''.';
    end if;
    if use_directory.query is not null and use_directory.columns is not null then
        raise exception 'columns goes with a table, not with a query' using errcode = 'PA008', hint = 'Name them in the query, by "as".';
    end if;
    if jsonb_typeof(use_directory.columns) <> 'object' then
        raise exception 'columns is not a JSON object' using errcode = 'PA008', hint = 'Such as ''{"actor_id": "id"}''.';
    end if;
    select key into unknown
    from jsonb_object_keys(coalesce(use_directory.columns, '{}')) as key
    where key not in (select d.name from pgaudit_wf._directory_columns(use_directory.directory) as d)
    limit 1;
    if found then
        raise exception '% has no column "%"', use_directory.directory, unknown
            using errcode = 'PA008', hint = format('It has %s.', (
                select string_agg(d.name, ', ') from pgaudit_wf._directory_columns(use_directory.directory) as d));
    end if;
    target := format('pgaudit_wf.%I', use_directory.directory)::regclass;
    before := pg_get_viewdef(target);
    written := case
        when use_directory.source is not null
            then pgaudit_wf._directory_query(use_directory.directory, use_directory.source, use_directory.columns)
        else pgaudit_wf._check_directory_query(use_directory.directory, use_directory.query)
    end;
    execute format('create or replace view %s as %s', target, written);
    perform pgaudit_wf.grant_directory();

    select d.refobjid::regclass as relation, v.relowner::regrole as reader into unreadable
    from pg_class as v
    join pg_rewrite as r on r.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0 and d.refobjid <> v.oid
    where v.oid = target and not has_column_privilege(v.relowner, d.refobjid, d.refobjsubid::smallint, 'select')
    limit 1;
    if found then
        raise exception '% may not read %, so that nobody could read %', unreadable.reader, unreadable.relation, target
            using errcode = 'insufficient_privilege',
                hint = format('Have its owner run first: grant select on %s to %s', unreadable.relation, unreadable.reader);
    end if;
    select t.oid into guarded
    from pg_class as v
    join pg_rewrite as r on r.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
    join pg_class as t on t.oid = d.refobjid and t.relrowsecurity and (t.relforcerowsecurity or t.relowner <> v.relowner)
    where v.oid = target and not (select rolsuper or rolbypassrls from pg_roles where oid = v.relowner)
    limit 1;
    if found then
        raise warning '% has row-level security, so that % cannot be read yet', guarded, target
            using hint = 'pgaudit_wf.doctor() says how to mend it.';
    end if;
    if before is distinct from pg_get_viewdef(target) then
        perform pgaudit_wf._record_audit('audit.directory_changed', 'pgaudit_wf.' || use_directory.directory, use_directory.directory,
            pgaudit_wf._json_diff(
                jsonb_build_object('definition', before), jsonb_build_object('definition', pg_get_viewdef(target))),
            jsonb_strip_nulls(jsonb_build_object('reason', pgaudit_wf._context_reason())));
    end if;
end
$$;
comment on function pgaudit_wf.use_directory(text, regclass, jsonb, text) is
    'Writes one of the views actor_directory, org_member and credential_directory over your own tables, whatever the types of their '
    'columns: use_directory(''org_member'', ''public.member'', ''{"actor_id": "user_id"}''). '
    'columns says which of the table''s are meant, where they have other names, or an array of them, joined by blanks '
    '({"name": ["first_name", "last_name"]}); or give, in place of both, a query with the view''s columns. '
    'It runs with the caller''s rights: the schema''s owner, who may read the tables or let the owner read them. '
    'Who owners and admins are decides who may read the trail, so the change is an event (audit.directory_changed). '
    'Raises PA002 on a missing column, or one with the name of a secret, PA004 on what is no table, PA008 on a wrong argument or query.';

create function pgaudit_wf._unset_directories() returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- As installed, they read nothing.
    select array(
        select c.relname::text
        from pg_class as c
        where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relname in ('actor_directory', 'org_member', 'credential_directory')
            and pg_get_viewdef(c.oid) ~* e'where false;\\s*$'
        order by c.relname)
$$;
comment on function pgaudit_wf._unset_directories() is 'The directories that nobody has pointed at tables yet.';
