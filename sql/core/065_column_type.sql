-- How a column has to be compared and read, by its type.

create function pgaudit_wf.compare_by_text(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = compare_by_text.type);
begin
    return case
        when info.typtype = 'd' then pgaudit_wf.compare_by_text(info.typbasetype)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.compare_by_text(info.typelem)
        -- Whatever attributes ALTER TYPE gives it.
        when info.typtype = 'c' then true
        -- 1.0 and 1.00 are equal; as bounds they read differently.
        when info.typtype in ('r', 'm') then (
            select rngsubtype = 'numeric'::regtype or pgaudit_wf.compare_by_text(rngsubtype)
            from pg_range where info.oid in (rngtypid, rngmultitypid))
        when info.typtype = 'e' then false
        -- To "=", a month is 30 days.
        when info.oid = 'interval'::regtype then true
        -- An extension's "=" is out of reach of a pinned search_path, and may call different values equal (citext).
        when info.typnamespace <> 'pg_catalog'::regnamespace then true
        else not exists (
            select from pg_opclass as class
            join pg_am as method on method.oid = class.opcmethod and method.amname in ('btree', 'hash')
            where class.opcintype = info.oid
                or exists (select from pg_cast where castsource = info.oid and casttarget = class.opcintype and castmethod = 'b' and castcontext = 'i'))
    end;
end
$$;
comment on function pgaudit_wf.compare_by_text(oid) is
    'Whether values of a type must be compared as text, for want of an equality that tells apart what reads differently (json, xml, point, interval, and what contains them).';

create function pgaudit_wf.holds_json(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = holds_json.type);
begin
    return case
        when info.oid = 'json'::regtype then true
        when info.typtype = 'd' then pgaudit_wf.holds_json(info.typbasetype)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.holds_json(info.typelem)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and pgaudit_wf.holds_json(atttypid))
        else false
    end;
end
$$;
comment on function pgaudit_wf.holds_json(oid) is
    'Whether values of a type are or contain json, which can hold what jsonb cannot.';

create function pgaudit_wf.json_value(value json) returns jsonb
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return value::jsonb;
exception
    when data_exception or program_limit_exceeded then
        return to_jsonb(value::text);
end
$$;
comment on function pgaudit_wf.json_value(json) is
    'json as jsonb; its text as a JSON string where jsonb cannot hold it (\u0000, a lone surrogate, a number beyond numeric).';

create function pgaudit_wf.utc_row(record anyelement) returns jsonb
language plpgsql stable strict
set timezone = 'UTC'
as $$
begin
    return pg_catalog.to_jsonb(record);
end
$$;
comment on function pgaudit_wf.utc_row(anyelement) is
    'A row as jsonb, its times in UTC. A function of its own, because the setting costs a trigger 5 µs that an update of other columns need not pay.';

create function pgaudit_wf.utc_json(value anyelement) returns jsonb
language plpgsql stable strict
set timezone = 'UTC'
as $$
begin
    return pg_catalog.to_jsonb(value);
end
$$;
comment on function pgaudit_wf.utc_json(anyelement) is 'A value as jsonb, its times in UTC.';

create function pgaudit_wf.json_row(record anyelement) returns jsonb
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    shown jsonb;
begin
    return to_jsonb(json_row.record);
exception
    when data_exception or program_limit_exceeded then
        execute (
            select format('select jsonb_object_agg(name, value) from (values %s) as member (name, value)',
                string_agg(format('(%1$L, pgaudit_wf.json_value(to_json(($1).%1$I)))', attname), ', '))
            from pg_attribute
            where attrelid = (select typrelid from pg_type where oid = pg_typeof(json_row.record)) and attnum > 0 and not attisdropped)
            into shown using json_row.record;
        return shown;
end
$$;
comment on function pgaudit_wf.json_row(anyelement) is 'A row as jsonb; a column that jsonb cannot hold as by json_value().';

create function pgaudit_wf.output_settings(type oid, as_text boolean) returns text[]
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = output_settings.type);
begin
    return case
        when info.typtype = 'd' then pgaudit_wf.output_settings(info.typbasetype, output_settings.as_text)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.output_settings(info.typelem, output_settings.as_text)
        when info.typtype in ('r', 'm') then (
            select pgaudit_wf.output_settings(rngsubtype, true) from pg_range where info.oid in (rngtypid, rngmultitypid))
        when info.typtype = 'c' then coalesce((
            select array_agg(distinct setting)
            from pg_attribute, unnest(pgaudit_wf.output_settings(atttypid, output_settings.as_text)) as setting
            where attrelid = info.typrelid and attnum > 0 and not attisdropped), '{}')
        when info.typtype = 'e' then '{}'
        -- As JSON, dates and times are ISO 8601 whatever DateStyle says; only the offset of timestamptz follows the session.
        when info.oid in ('date'::regtype, 'timestamp'::regtype, 'time'::regtype) and not output_settings.as_text then '{}'
        when info.oid in ('timestamptz'::regtype, 'timetz'::regtype) and not output_settings.as_text then array['timezone = ''UTC''']
        when info.oid in ('date'::regtype, 'timestamp'::regtype, 'time'::regtype, 'timestamptz'::regtype, 'timetz'::regtype)
            then array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''']
        when info.oid = 'interval'::regtype then array['intervalstyle = ''postgres''']
        when info.oid = 'bytea'::regtype then array['bytea_output = ''hex''']
        when info.oid = 'money'::regtype then array['lc_monetary = ''C''']
        when info.oid = any ('{regclass,regproc,regprocedure,regoper,regoperator,regtype,regrole,regnamespace,regcollation,regconfig,regdictionary}'::regtype[])
            then array['quote_all_identifiers = off']
        when info.oid in ('real'::regtype, 'double precision'::regtype) or info.typcategory = 'G' then array['extra_float_digits = 1']
        when info.typnamespace = 'pg_catalog'::regnamespace then '{}'
        -- An extension's type can depend on anything.
        else array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
            'extra_float_digits = 1']
    end;
end
$$;
comment on function pgaudit_wf.output_settings(oid, boolean) is
    'The settings a trigger must pin so that a value of the type, as JSON or as text, is written the same way in every session.';

create function pgaudit_wf.follows_timezone(type oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select pgaudit_wf.output_settings(type, false) = array['timezone = ''UTC'''] $$;
comment on function pgaudit_wf.follows_timezone(oid) is 'Whether the time zone is all that a value of the type, as JSON, depends on.';

create function pgaudit_wf.optional_column(template text, column_name text, otherwise text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- format() refuses a null identifier, also where coalesce() would not use it.
    select case when column_name is null then otherwise else format(template, column_name) end
$$;
comment on function pgaudit_wf.optional_column(text, text, text) is 'A piece of SQL with the column''s name in place of %I, or the other one for a table without it.';
