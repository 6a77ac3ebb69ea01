-- Runs: stamped by a trigger, immutably, with the credential that started them and the definition that ran.

create view pgaudit_wf.credential_directory as
select
    null::text as credential_id,
    null::text as credential_type,
    null::text as label
where false;
comment on view pgaudit_wf.credential_directory is
    'API keys by a displayable label, for the stamp of a run. '
    'Empty until you point it at your own keys: create or replace view pgaudit_wf.credential_directory as select id::text '
    'as credential_id, ''org_api_key'' as credential_type, prefix as label from …';
comment on column pgaudit_wf.credential_directory.credential_id is 'Id as in app.api_key_id.';
comment on column pgaudit_wf.credential_directory.credential_type is 'webhook_key or org_api_key.';
comment on column pgaudit_wf.credential_directory.label is 'A handle that people recognize and that is not secret, such as kh_9f2….';

create function pgaudit_wf._current_credential(out credential_type text, out label text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
declare
    key_id constant text := left(pgaudit_wf._context_text('api_key_id'), 255);
    method constant text := left(pgaudit_wf._context_text('auth_method'), 255);
    actor constant text := left(pgaudit_wf._context_text('actor_id'), 255);
    known text;
begin
    -- A directory that we may not read must not fail the run: it only costs the name.
    begin
        if key_id is not null then
            select d.credential_type, d.label into credential_type, label
            from pgaudit_wf.credential_directory as d where d.credential_id = key_id limit 1;
        elsif actor is not null then
            select coalesce(d.email, d.name) into known from pgaudit_wf.actor_directory as d where d.actor_id = actor limit 1;
        end if;
    exception
        when insufficient_privilege then
            raise warning 'the directory of credentials or actors cannot be read' using hint = 'pgaudit_wf.doctor() says why.';
    end;
    credential_type := coalesce(credential_type, case
        when method in ('webhook_key', 'org_api_key', 'oauth', 'session', 'internal') then method
        when method in ('api_key', 'key') or key_id is not null then 'org_api_key'
        when method = 'webhook' then 'webhook_key'
        when actor is not null then 'session'
        else 'internal'
    end);
    if label is null and key_id is null then
        label := coalesce(
            left(pgaudit_wf._context_text('actor_label'), 255),
            known,
            actor,
            session_user::text);
    end if;
    label := coalesce(label, key_id);
end
$$;
comment on function pgaudit_wf._current_credential() is
    'The credential behind the current transaction: its type (webhook_key, org_api_key, oauth, session, internal; '
    'from credential_directory by app.api_key_id, else from app.auth_method) and a handle that is not secret.';

create table pgaudit_wf.execution_attachment (
    target regclass primary key,
    workflow_target regclass not null,
    workflow_column text not null,
    hash_column text not null,
    type_column text not null,
    label_column text not null,
    id_column text not null,
    org_column text,
    time_column text,
    function_name text not null unique,
    columns text[] not null
);
comment on table pgaudit_wf.execution_attachment is
    'Tables that hold the runs of workflows, and where; written by attach_execution() and detach_execution() only.';
comment on column pgaudit_wf.execution_attachment.target is 'The table of runs.';
comment on column pgaudit_wf.execution_attachment.workflow_target is 'The attached workflow table whose workflows run.';
comment on column pgaudit_wf.execution_attachment.workflow_column is 'Column with the workflow''s id.';
comment on column pgaudit_wf.execution_attachment.hash_column is 'Column that is stamped with the hash of the definition.';
comment on column pgaudit_wf.execution_attachment.type_column is 'Column that is stamped with the credential''s type.';
comment on column pgaudit_wf.execution_attachment.label_column is 'Column that is stamped with the credential''s handle.';
comment on column pgaudit_wf.execution_attachment.id_column is 'Primary key of the table.';
comment on column pgaudit_wf.execution_attachment.org_column is 'Column with the organization, if any.';
comment on column pgaudit_wf.execution_attachment.time_column is 'Column that says when the run started, if any.';
comment on column pgaudit_wf.execution_attachment.function_name is 'Trigger function in schema pgaudit_wf.';
comment on column pgaudit_wf.execution_attachment.columns is 'The table''s columns, in order: how a rename is recognized.';

create function pgaudit_wf._stamp_problems(run pgaudit_wf.execution_attachment) returns table (role text, name text, given text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- 64: a SHA-256 in hex. Other values are cut to fit.
    select named.role, named.name, format_type(atttypid, atttypmod)
    from (values
        ('workflow_column', (run).workflow_column, null),
        ('hash_column', (run).hash_column, 64),
        ('type_column', (run).type_column, 0),
        ('label_column', (run).label_column, 0)
    ) as named (role, name, length)
    left join pg_attribute on attrelid = (run).target and attname = named.name and not attisdropped
    left join pg_type as t on t.oid = atttypid
    where attname is null
        or (named.length is not null
            and (atttypid >= 16384 or typcategory <> 'S' or attgenerated <> '' or atttypmod between 0 and named.length + 3))
$$;
comment on function pgaudit_wf._stamp_problems(pgaudit_wf.execution_attachment) is
    'The columns of a table of runs that were dropped or retyped since, so that they cannot be stamped.';

create function pgaudit_wf._runnable_hash(workflow_target regclass, id text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    prefix text;
    shape text;
    workflow_id text;
    newest record;
begin
    select w.id_prefix, w.shape into prefix, shape
    from pgaudit_wf.workflow_attachment as w where w.target = _runnable_hash.workflow_target;
    workflow_id := pgaudit_wf._workflow_id(prefix, pgaudit_wf._bounded_key(_runnable_hash.id));
    -- The history, not the table: reading that would run its owner's policies, casts and domains with our rights.
    select h.content_hash, h.snapshot #> '{}' as snapshot into newest
    from pgaudit_wf.workflow_history as h
    where h.workflow_id = workflow_id and h.version <= coalesce((
        select p.version from pgaudit_wf.published_version as p where p.workflow_id = workflow_id order by p.id desc limit 1), 2147483647)
    order by h.version desc limit 1;
    -- What a graph of another product must have to run is that product's to say.
    if found and shape = 'reactflow' then
        perform pgaudit_wf._check_definition(newest.snapshot -> 'nodes', newest.snapshot -> 'edges', 'run');
    end if;
    return newest.content_hash;
end
$$;
comment on function pgaudit_wf._runnable_hash(regclass, text) is
    'Hash of a workflow''s published version, or else its newest, which a run executes now; null for a workflow without versions; '
    'raises PA301 if the definition is invalid.';

create function pgaudit_wf._refuse_restamp(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- What a subscription applies was accepted where it was written; refusing it here would stop the subscription.
    if not exists (select from pg_stat_subscription where pid = pg_backend_pid()) then
        raise exception 'the stamp of a run in % cannot be altered', _refuse_restamp.target
            using errcode = 'PA303',
                hint = 'Credential and definition hash are written once, when the run is inserted; leave them out of the update.';
    end if;
end
$$;
comment on function pgaudit_wf._refuse_restamp(regclass) is
    'Keeps the stamp of a run as it is: raises PA303, except for what a logical subscription applies.';

create function pgaudit_wf._execution_settings(run pgaudit_wf.execution_attachment) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_strip_nulls(to_jsonb(run) - '{target,workflow_target,id_column,function_name,columns}'::text[])
        || jsonb_build_object('workflow', (run).workflow_target)
$$;
comment on function pgaudit_wf._execution_settings(pgaudit_wf.execution_attachment) is 'What attach_execution() would be given for it.';

create function pgaudit_wf._write_stamp(run pgaudit_wf.execution_attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    problem text;
    faulty text[];
    generic constant boolean := not pgaudit_wf._can_follow_ddl();
    type text := pgaudit_wf._field('new', (run).type_column);
    label text := pgaudit_wf._field('new', (run).label_column);
    hash text := pgaudit_wf._field('new', (run).hash_column);
    workflow text := pgaudit_wf._field('new', (run).workflow_column);
    stamped text[];
begin
    select string_agg(format('%s is "%s", which %s', p.role, p.name, coalesce('is of type ' || p.given, 'does not exist')), ', '),
        coalesce(array_agg(p.role), '{}')
    into problem, faulty
    from pgaudit_wf._stamp_problems(run) as p;
    type := case when 'type_column' <> all (faulty) then type end;
    label := case when 'label_column' <> all (faulty) then label end;
    hash := case when 'hash_column' <> all (faulty) then hash end;
    workflow := case when 'workflow_column' <> all (faulty) then workflow end;
    stamped := array_remove(array[type, label, hash], null);
    perform pgaudit_wf._replace_function((run).function_name, array_to_string(pgaudit_wf._fill($body$
-- Stamps each run with credential and definition; written by pgaudit_wf.attach_execution(). Columns as of {{shape}}.
declare
    credential record;
begin
    {{check of the place}}
    {{begin of the attempt}}
    if greatest({{types}}) >= 16384 then
        if tg_op = 'INSERT' then
            raise warning 'this run has no stamp: a column for it was given a type that is not PostgreSQL''s own';
        end if;
        return new;
    end if;
    if tg_op = 'UPDATE' then
        if {{restamped}} then
            perform pgaudit_wf._refuse_restamp(tg_relid);
        end if;
        return new;
    end if;
    if pgaudit_wf._is_restored(tg_relid, {{has stamp}}) then
        return new;
    end if;
    {{warning}}
    select * into credential from pgaudit_wf._current_credential();
    {{type}}
    {{label}}
    {{hash}}
    {{end of the attempt}}
    return new;
end
$body$,
            jsonb_build_object(
                'shape', pgaudit_wf._shape_of((run).target),
                'check of the place', pgaudit_wf._check_place((run).target, (run).function_name),
                'begin of the attempt', case when generic then 'begin' else '' end,
                'types', coalesce((select string_agg(format('pg_typeof(%s)::oid', name), ', ') from unnest(stamped) as name), '0'),
                'restamped', coalesce((
                    select string_agg(format('old%s is distinct from %s', substr(name, 4), name), ' or ') from unnest(stamped) as name),
                    'false'),
                'has stamp', coalesce(type || ' is not null', 'false'),
                'warning', coalesce(format('raise warning ''this run is not stamped in full: %%'', %L using hint = %L;',
                    problem, 'pgaudit_wf.doctor() says how to mend it.'), ''),
                'type', coalesce(pgaudit_wf._stamp_statement(run, (run).type_column, type, 'credential.credential_type'), ''),
                'label', coalesce(pgaudit_wf._stamp_statement(run, (run).label_column, label, 'credential.label'), ''),
                -- The workflow table is looked up, as it can be renamed. A type of others is not cast, as the cast can be theirs too.
                'hash', case when hash is null or workflow is null then '{}' else pgaudit_wf._fill(
$hash${{hash}} := pgaudit_wf._runnable_hash(
    (select e.workflow_target from pgaudit_wf.execution_attachment as e where e.function_name = {{function}}),
    case when pg_typeof({{workflow}})::oid < 16384 then {{workflow}}::text else concat({{workflow}}) end);$hash$,
                    jsonb_build_object('hash', hash, 'function', quote_literal((run).function_name), 'workflow', workflow)) end,
                'end of the attempt', case when generic then pgaudit_wf._fill($failure$exception
    -- Where DDL cannot be followed, a column can be gone or have another type.
    when undefined_column or data_exception or datatype_mismatch then
        raise warning 'this run is not stamped in full (SQLSTATE %)', sqlstate
            using hint = 'pgaudit_wf.doctor() says how to mend it.';
end;$failure$, '{}') else '{}' end)), e'\n'),
        '{}', (run).target, 'Stamps the runs of a table; see pgaudit_wf.execution_attachment.');
    perform pgaudit_wf._note_settings((run).function_name, pgaudit_wf._execution_settings(run));
end
$$;
comment on function pgaudit_wf._write_stamp(pgaudit_wf.execution_attachment) is
    'Writes the trigger function that stamps the runs of a table, as far as it has the columns for it.';

create function pgaudit_wf._stamp_statement(
    run pgaudit_wf.execution_attachment, column_name text, field text, value text
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format(case when atttypmod < 0 then '%s := %s;' else '%s := left(%s, %s);' end, field, value, atttypmod - 4)
    from pg_attribute where attrelid = (run).target and attname = column_name and field is not null
$$;
comment on function pgaudit_wf._stamp_statement(pgaudit_wf.execution_attachment, text, text, text) is
    'PL/pgSQL that stamps a column with a value, cut to fit; null without a column.';

create function pgaudit_wf._keep_run(run pgaudit_wf.execution_attachment) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.execution_attachment select (run).*
    on conflict on constraint execution_attachment_pkey do update
    set (workflow_target, workflow_column, hash_column, type_column, label_column, id_column, org_column, time_column, columns)
        = (excluded.workflow_target, excluded.workflow_column, excluded.hash_column, excluded.type_column, excluded.label_column,
            excluded.id_column, excluded.org_column, excluded.time_column, excluded.columns)
$$;
comment on function pgaudit_wf._keep_run(pgaudit_wf.execution_attachment) is 'Writes the settings of a table of runs.';

create function pgaudit_wf._follow_stamp(target regclass, renamed_to text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    run pgaudit_wf.execution_attachment := (select e from pgaudit_wf.execution_attachment as e where e.target = _follow_stamp.target);
    columns_now constant text[] := pgaudit_wf._column_names(_follow_stamp.target);
    renames jsonb := pgaudit_wf._find_rename(run.columns, columns_now, _follow_stamp.renamed_to);
    problem record;
begin
    run.workflow_column := pgaudit_wf._renamed(run.workflow_column, renames);
    run.hash_column := pgaudit_wf._renamed(run.hash_column, renames);
    run.type_column := pgaudit_wf._renamed(run.type_column, renames);
    run.label_column := pgaudit_wf._renamed(run.label_column, renames);
    run.id_column := pgaudit_wf._renamed(run.id_column, renames);
    run.org_column := pgaudit_wf._renamed(run.org_column, renames);
    run.time_column := pgaudit_wf._renamed(run.time_column, renames);
    if run.columns is distinct from columns_now then
        run.columns := columns_now;
        perform pgaudit_wf._keep_run(run);
    end if;
    perform pgaudit_wf._write_stamp(run);
    for problem in select * from pgaudit_wf._lost_stamps(run) loop
        raise warning '%', concat(run.target, ': ', problem.problem) using hint = problem.remedy;
    end loop;
end
$$;
comment on function pgaudit_wf._follow_stamp(regclass, text) is
    'Rewrites the trigger function of a table of runs after DDL; its columns follow a rename.';

create function pgaudit_wf._lost_stamps(run pgaudit_wf.execution_attachment) returns table (problem text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('%s is "%s", which %s: its runs are not stamped in full', p.role, p.name,
            coalesce('is of type ' || p.given, 'does not exist')),
        format(case when p.given is null then 'alter table %s add column %I text;' else 'alter table %s alter column %I type text;' end
            || ' -- or name another one by attach_execution()', (run).target, p.name)
    from pgaudit_wf._stamp_problems(run) as p
$$;
comment on function pgaudit_wf._lost_stamps(pgaudit_wf.execution_attachment) is
    'What is no longer stamped in a table of runs because of DDL, and the remedy.';

create function pgaudit_wf.attach_execution(
    target regclass,
    workflow regclass default null,
    workflow_column text default 'workflow_id',
    hash_column text default 'executed_workflow_hash',
    type_column text default 'triggered_by_credential_type',
    label_column text default 'triggered_by_credential_label',
    org_column text default null,
    time_column text default null,
    add_columns boolean default false
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    columns_now text[] := pgaudit_wf._column_names(attach_execution.target);
    run pgaudit_wf.execution_attachment;
    missing text;
    unstamped text;
    foreign_type text;
begin
    perform pgaudit_wf._check_attachable(attach_execution.target);
    run.target := attach_execution.target;
    run.workflow_target := coalesce(
        attach_execution.workflow, (select w.target from pgaudit_wf.workflow_attachment as w order by w.id_prefix limit 1));
    if run.workflow_target is null then
        raise exception 'no workflow table is attached' using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for one first.';
    end if;
    if not exists (select from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target) then
        raise exception '% is not an attached workflow table', run.workflow_target
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it first.';
    end if;
    run.workflow_column := attach_execution.workflow_column;
    run.hash_column := attach_execution.hash_column;
    run.type_column := attach_execution.type_column;
    run.label_column := attach_execution.label_column;
    run.org_column := coalesce(attach_execution.org_column, case when 'org_id' = any (columns_now) then 'org_id' end);
    run.time_column := coalesce(attach_execution.time_column, (
        select name from unnest(array['started_at', 'created_at']) with ordinality as usual (name, position)
        where name = any (columns_now) order by position limit 1));
    -- Without event triggers a dropped table goes unnoticed; and a renamed one keeps the function of its old name.
    delete from pgaudit_wf.execution_attachment as e where not exists (select from pg_class where oid = e.target);
    run.function_name := 'stamp_' || substr(pgaudit_wf._capture_function_name(attach_execution.target), 9);
    run.function_name := coalesce(
        (select e.function_name from pgaudit_wf.execution_attachment as e where e.target = run.target),
        (select run.function_name || '_' || run.target::oid
            from pgaudit_wf.execution_attachment as e where e.function_name = run.function_name),
        run.function_name);
    select string_agg(format('add column %I text', name), ', ' order by place) into unstamped
    from unnest(array[run.hash_column, run.type_column, run.label_column]) with ordinality as stamp (name, place)
    where name <> all (columns_now);
    if unstamped is not null and attach_execution.add_columns then
        -- Without a default, so that no row is rewritten.
        execute format('alter table %s %s', run.target, unstamped);
        columns_now := pgaudit_wf._column_names(run.target);
    elsif unstamped is not null then
        raise exception '% needs three text columns for the stamp of a run, and lacks %', run.target, (
                select string_agg(format('"%s"', name), ', ' order by place)
                from unnest(array[run.hash_column, run.type_column, run.label_column]) with ordinality as stamp (name, place)
                where name <> all (columns_now))
            using errcode = 'PA002', hint = format('Pass add_columns => true, or run: alter table %s %s; or name others by '
                'hash_column (hash of the definition), type_column (type of the credential) and label_column (its handle).',
                run.target, unstamped);
    end if;
    select name into missing
    from unnest(array[run.workflow_column, run.org_column, run.time_column]) as name
    where name <> all (columns_now) limit 1;
    if found then
        raise exception '% has no column "%"', run.target, missing
            using errcode = 'PA002', hint = format('Its columns are %s.', array_to_string(columns_now, ', '));
    end if;
    select attname into run.id_column
    from pg_index join pg_attribute on attrelid = run.target and attnum = indkey[0]
    where indrelid = run.target and indisprimary and indnkeyatts = 1;
    if run.id_column is null then
        raise exception '% has no single-column primary key', run.target using errcode = 'PA002', hint = 'It identifies a run.';
    end if;

    select name into foreign_type
    from unnest(array[run.hash_column, run.type_column, run.label_column]) as name
    join pg_attribute on attrelid = run.target and attname = name and atttypid >= 16384 limit 1;
    if found then
        raise exception 'column "%" of % cannot be stamped, as its type is not one of PostgreSQL''s own', foreign_type, run.target
            using errcode = 'PA002', hint = 'Make it text or varchar: other types can run user-defined code with our rights.';
    end if;

    run.columns := columns_now;
    perform pgaudit_wf._write_stamp(run);
    -- prune_history() reads, as the owner of our schema, which versions have run.
    perform pgaudit_wf._let_owner_read(run.target, array[run.hash_column]);
    -- Not "always": what a subscriber applies was stamped where it ran. Those who can turn their session into a replica could also
    -- disable the trigger.
    perform pgaudit_wf._install_trigger(run.target, pgaudit_wf._trigger_name(run.target, 'pgaudit_wf_stamp', run.function_name),
        'before insert', 'for each row', run.function_name);
    perform pgaudit_wf._install_trigger(run.target, pgaudit_wf._trigger_name(run.target, 'pgaudit_wf_restamp', run.function_name),
        'before update', 'for each row', run.function_name, always => true);

    perform pgaudit_wf._keep_run(run);
end
$$;
comment on function pgaudit_wf.attach_execution(regclass, regclass, text, text, text, text, text, text, boolean) is
    'Stamps every run inserted into the table with the credential that started it and the hash of the definition that runs, '
    'whatever the application writes there; refuses runs of an invalid definition (PA301) and later changes of the stamp (PA303). '
    'Runs that a subscription applies or the table''s owner restores keep the stamp that they come with. '
    'workflow is the attached workflow table (default: the first); '
    'back-fill it first, as a run of a workflow without a version gets no hash. '
    'The table needs three columns for the stamp, hash_column, type_column and label_column; with add_columns, those that it lacks are '
    'added to it, as text. '
    'Raises PA002 on a missing column, PA005 without a workflow table. '
    'Where DDL is not followed, call it again after renaming one of the columns.';

create function pgaudit_wf.detach_execution(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    run pgaudit_wf.execution_attachment;
begin
    delete from pgaudit_wf.execution_attachment as e where e.target = detach_execution.target returning e.* into run;
    if not found then
        raise exception '% is not attached', detach_execution.target using errcode = 'PA005';
    end if;
    execute format('drop trigger if exists %I on %s',
        pgaudit_wf._trigger_name(run.target, 'pgaudit_wf_stamp', run.function_name), run.target);
    execute format('drop trigger if exists %I on %s',
        pgaudit_wf._trigger_name(run.target, 'pgaudit_wf_restamp', run.function_name), run.target);
    execute format('drop function pgaudit_wf.%I()', run.function_name);
end
$$;
comment on function pgaudit_wf.detach_execution(regclass) is
    'Stops stamping runs; the stamps stay. Raises PA005 if the table is not attached.';
