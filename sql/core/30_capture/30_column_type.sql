-- How a column has to be compared and read, by its type.

create function pgaudit_wf._domain_base(domain oid) returns oid
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = _domain_base.domain);
begin
    return case when info.typtype = 'd' then pgaudit_wf._domain_base(info.typbasetype) else info.oid end;
end
$$;
comment on function pgaudit_wf._domain_base(oid) is 'What a domain is made of, which may be a domain, too; any other type itself.';

create function pgaudit_wf._base_type(type oid) returns oid
-- Inlined, as attach() asks hundreds of times. No type of PostgreSQL's own with a number below 10,000 is a domain.
language sql stable parallel safe
as $$ select case when type operator(pg_catalog.<) 10000::pg_catalog.oid then type else pgaudit_wf._domain_base(type) end $$;
comment on function pgaudit_wf._base_type(oid) is 'The type itself, or what a domain is made of.';

create function pgaudit_wf._quote_column(name text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    -- PL/pgSQL takes these for keywords of its own, whatever precedes them; quote_ident() only knows SQL's.
    return case
        when name in ('begin', 'by', 'declare', 'execute', 'foreach', 'if', 'loop', 'strict', 'while') then '"' || name || '"'
        else quote_ident(name)
    end;
end
$$;
comment on function pgaudit_wf._quote_column(text) is 'A column''s name as it can stand after old. and new. in PL/pgSQL.';

create function pgaudit_wf._field(record_name text, column_name text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return quote_ident(record_name) || '.' || pgaudit_wf._quote_column(column_name);
end
$$;
comment on function pgaudit_wf._field(text, text) is 'A column of a record as PL/pgSQL reads it, whatever it is called.';

create function pgaudit_wf._is_built_in(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    -- initdb gives out the numbers below 16,384 only (FirstNormalObjectId); nobody else can define a cast between two of those types.
    return pgaudit_wf._base_type(_is_built_in.type) < 16384;
end
$$;
comment on function pgaudit_wf._is_built_in(oid) is 'Whether a type is PostgreSQL''s own, or a domain over one that is.';

create function pgaudit_wf._compare_by_text(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = pgaudit_wf._base_type(_compare_by_text.type));
begin
    return case
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf._compare_by_text(info.typelem)
        -- 1.0 and 1.00 are equal; as bounds they read differently.
        when info.typtype in ('r', 'm') then (
            select rngsubtype = 'numeric'::regtype or pgaudit_wf._compare_by_text(rngsubtype)
            from pg_range where info.oid in (rngtypid, rngmultitypid))
        -- To "=", a month is 30 days.
        when info.oid = 'interval'::regtype then true
        else not exists (
            select from pg_opclass as class
            join pg_am as method on method.oid = class.opcmethod and method.amname in ('btree', 'hash')
            where class.opcintype = info.oid
                or exists (
                    select from pg_cast
                    where castsource = info.oid and casttarget = class.opcintype and castmethod = 'b' and castcontext = 'i'))
    end;
end
$$;
comment on function pgaudit_wf._compare_by_text(oid) is
    'Whether values of a built-in type must be compared as text, for lack of an equality that distinguishes what reads differently '
    '(json, xml, point, interval, and what contains them).';

create function pgaudit_wf._holds_json(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = _holds_json.type);
begin
    return case
        when info.oid = 'json'::regtype then true
        when info.typtype = 'd' then pgaudit_wf._holds_json(info.typbasetype)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf._holds_json(info.typelem)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and pgaudit_wf._holds_json(atttypid))
        else false
    end;
end
$$;
comment on function pgaudit_wf._holds_json(oid) is
    'Whether values of a type are or contain json, which can hold what jsonb cannot.';

create function pgaudit_wf._json_value(value json) returns jsonb
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
comment on function pgaudit_wf._json_value(json) is
    e'json as jsonb; its text as a JSON string where jsonb cannot hold it (\\u0000, a lone surrogate, a number beyond numeric).';

create function pgaudit_wf._json_without_casts(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = pgaudit_wf._base_type(_json_without_casts.type));
begin
    return case
        when pgaudit_wf._is_built_in(info.oid) then true
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf._json_without_casts(info.typelem)
        when info.typtype = 'c' then not exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and not pgaudit_wf._json_without_casts(atttypid))
        -- Only the owner of a type can make a cast of it to json; 10 is the superuser that initdb made, who stays one. Of such casts,
        -- hstore's is faithful; postgis' rounds, looks up a table that we may not read, and raises for some values.
        else info.typowner = 10 and not exists (
            select from pg_cast join pg_proc on pg_proc.oid = castfunc
            where castsource = info.oid and casttarget = 'json'::regtype and probin is distinct from '$libdir/hstore')
    end;
end
$$;
comment on function pgaudit_wf._json_without_casts(oid) is
    'Whether to_jsonb() turns values of a type into JSON without running a cast that somebody other than a superuser can define, '
    'or that may lose something of the value, or raise.';

create function pgaudit_wf._text_expression(type oid, expression text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- format() asks the type's output function, where "::text" would look for a cast first.
    select case
        when pgaudit_wf._is_built_in(type) then expression || '::text'
        else format('case when %1$s is distinct from null then format(''%%s'', %1$s) end', expression)
    end
$$;
comment on function pgaudit_wf._text_expression(oid, text) is
    'SQL expression for a value of a type as text that runs no user-defined cast.';

create function pgaudit_wf._array_json(elements anyarray) returns jsonb
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when elements is null then null
        when array_ndims(elements) > 1 then to_jsonb(format('%s', elements))
        else to_jsonb(array(select case when element is distinct from null then format('%s', element) end
            from unnest(elements) with ordinality as listed (element, position) order by position))
    end
$$;
comment on function pgaudit_wf._array_json(anyarray) is
    'An array as jsonb, its elements as text, without running a user-defined cast; '
    'one of several dimensions as the text that PostgreSQL prints.';

create function pgaudit_wf._json_expression(type oid, expression text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = pgaudit_wf._base_type(_json_expression.type));
begin
    return case
        when pgaudit_wf._json_without_casts(info.oid) then
            case when pgaudit_wf._holds_json(info.oid) then format('pgaudit_wf._json_value(to_json(%s))', expression) else expression end
        when info.typcategory = 'A' and info.typelem <> 0 then format('pgaudit_wf._array_json(%s)', expression)
        -- A function takes 100 arguments at most.
        when info.typtype = 'c'
            and (select count(*) from pg_attribute where attrelid = info.typrelid and attnum > 0 and not attisdropped) between 1 and 50
        then (
            select format('case when %s is distinct from null then jsonb_build_object(%s) end', expression, string_agg(
                format('%L, %s', attname, pgaudit_wf._json_expression(atttypid, format('(%s).%I', expression, attname))),
                ', ' order by attnum))
            from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped)
        else pgaudit_wf._text_expression(info.oid, expression)
    end;
end
$$;
comment on function pgaudit_wf._json_expression(oid, text) is
    'SQL expression for a value of a type, fit to be an argument of jsonb_build_object(): '
    'as the server writes it in JSON, or as text where that would run a user-defined cast.';

create function pgaudit_wf._contains_type(type oid, wanted oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = _contains_type.type);
begin
    return case
        when info.oid = _contains_type.wanted then true
        when info.typtype = 'd' then pgaudit_wf._contains_type(info.typbasetype, _contains_type.wanted)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf._contains_type(info.typelem, _contains_type.wanted)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped
                and pgaudit_wf._contains_type(atttypid, _contains_type.wanted))
        else false
    end;
end
$$;
comment on function pgaudit_wf._contains_type(oid, oid) is 'Whether values of a type are or contain values of another.';

create function pgaudit_wf._columns_with_casts(relation oid) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select attname::text from pg_attribute
        where attrelid = _columns_with_casts.relation and attnum > 0 and not attisdropped and atttypid >= 16384
            and exists (
                select from pg_cast join pg_proc on pg_proc.oid = castfunc
                where castsource >= 16384 and proowner <> 10 and pgaudit_wf._contains_type(atttypid, castsource))
        order by attnum)
$$;
comment on function pgaudit_wf._columns_with_casts(oid) is
    'Columns that an expression cannot name without the risk of running other people''s code: '
    'their type has a cast by a function that the bootstrap superuser does not own.';

create function pgaudit_wf._output_settings(type oid, as_text boolean) returns text[]
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = _output_settings.type);
begin
    return case
        when info.typtype = 'd' then pgaudit_wf._output_settings(info.typbasetype, _output_settings.as_text)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf._output_settings(info.typelem, _output_settings.as_text)
        when info.typtype in ('r', 'm') then (
            select pgaudit_wf._output_settings(rngsubtype, true) from pg_range where info.oid in (rngtypid, rngmultitypid))
        when info.typtype = 'c' then coalesce((
            select array_agg(distinct setting)
            from pg_attribute, unnest(pgaudit_wf._output_settings(atttypid, _output_settings.as_text)) as setting
            where attrelid = info.typrelid and attnum > 0 and not attisdropped), '{}')
        when info.typtype = 'e' then '{}'
        -- As JSON, dates and times are ISO 8601 whatever DateStyle says; only the offset of timestamptz follows the session.
        when info.oid in ('date'::regtype, 'timestamp'::regtype, 'time'::regtype) and not _output_settings.as_text then '{}'
        when info.oid in ('timestamptz'::regtype, 'timetz'::regtype) and not _output_settings.as_text then array['timezone = ''UTC''']
        when info.oid in ('date'::regtype, 'timestamp'::regtype, 'time'::regtype, 'timestamptz'::regtype, 'timetz'::regtype)
            then array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''']
        when info.oid = 'interval'::regtype then array['intervalstyle = ''postgres''']
        when info.oid = 'bytea'::regtype then array['bytea_output = ''hex''']
        when info.oid = 'money'::regtype then array['lc_monetary = ''C''']
        when info.oid = any (array['regclass', 'regproc', 'regprocedure', 'regoper', 'regoperator', 'regtype', 'regrole', 'regnamespace',
                'regcollation', 'regconfig', 'regdictionary']::regtype[])
            then array['quote_all_identifiers = off']
        when info.oid in ('real'::regtype, 'double precision'::regtype) or info.typcategory = 'G' then array['extra_float_digits = 1']
        when info.typnamespace = 'pg_catalog'::regnamespace then '{}'
        -- An extension's type can depend on anything.
        else array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
            'extra_float_digits = 1']
    end;
end
$$;
comment on function pgaudit_wf._output_settings(oid, boolean) is
    'The settings a trigger must pin so that a value of the type, as JSON or as text, is written the same way in every session.';

create function pgaudit_wf._optional_column(template text, column_name text, otherwise text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- format() refuses a null identifier, also where coalesce() would not use it.
    select case when column_name is null then otherwise else format(template, column_name) end
$$;
comment on function pgaudit_wf._optional_column(text, text, text) is
    'A piece of SQL with the column''s name in place of %I, or the other one for a table without it.';

create function pgaudit_wf._longest_value(type oid, modifier integer) returns integer
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
            when typlen > 0 then 0
            -- A character takes 4 bytes at most.
            when oid in ('varchar'::regtype, 'bpchar'::regtype) and modifier >= 4 then 4 * (modifier - 4)
            when oid in ('bit'::regtype, 'varbit'::regtype) and modifier >= 0 then modifier
            when oid = 'numeric'::regtype then case when modifier >= 4 then 2048 else 147456 end
            when oid in ('inet'::regtype, 'cidr'::regtype, 'int4range'::regtype, 'int8range'::regtype, 'daterange'::regtype,
                'tsrange'::regtype, 'tstzrange'::regtype) then 128
        end
        from pg_type where oid = pgaudit_wf._base_type(_longest_value.type)
    );
end
$$;
comment on function pgaudit_wf._longest_value(oid, integer) is
    'Most bytes that a value of a type with such a modifier has as text: 0 for types of fixed length, null where there is no bound.';

create function pgaudit_wf._value_bytes(value anyelement) returns bytea
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Not a function of its own: a type with an implicit cast to bytea, as postgis' are, could be meant by either.
    if pgaudit_wf._base_type(pg_typeof(value)) = 'bytea'::regtype then
        return value;
    elsif pgaudit_wf._is_built_in(pg_typeof(value)) then
        return convert_to(value::text, 'UTF8');
    end if;
    return convert_to(format('%s', value), 'UTF8');
end
$$;
comment on function pgaudit_wf._value_bytes(anyelement) is
    'The bytes of a value that its digest is of: those that a bytea consists of, else its text in UTF-8.';

create function pgaudit_wf._unprinted(value anyelement) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object('hash', hash_record_extended(row(value), 0)::text, 'bytes', 'more than 1 GB');
exception
    when others then
        return '{"hash": null, "bytes": "more than 1 GB"}';
end
$$;
comment on function pgaudit_wf._unprinted(anyelement) is
    'What stands for a value that PostgreSQL cannot print: its hash, which still shows when it differs; null for a type without one.';

create function pgaudit_wf._digest(value anyelement) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    raw bytea;
begin
    raw := pgaudit_wf._value_bytes(value);
    return jsonb_build_object('sha256', encode(sha256(raw), 'hex'), 'bytes', octet_length(raw));
exception
    when others then
        return pgaudit_wf._unprinted(value);
end
$$;
comment on function pgaudit_wf._digest(anyelement) is 'A value as {"sha256": …, "bytes": …} of its bytes.';

create function pgaudit_wf._put_large(
    op jsonb, path text[], value anyelement, beside jsonb default null, expression text default null, longest integer default null,
    room integer default 234881024
) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    made jsonb;
begin
    if value is not distinct from null then
        return jsonb_set(op, path, 'null');
    end if;
    begin
        if longest is null or octet_length(pgaudit_wf._value_bytes(value)) <= longest then
            if expression is null then
                made := to_jsonb(value);
            else
                execute format('select to_jsonb(%s)', expression) into made using value;
            end if;
            if pg_column_size(made) > room - pg_column_size(op) - coalesce(pg_column_size(beside), 0) then
                made := null;
            end if;
        end if;
    exception
        -- jsonb cannot hold it, or there is not enough memory to try.
        when others then
            made := null;
    end;
    if made is not null then
        return jsonb_set(op, path, made);
    end if;
    return jsonb_set(jsonb_set(op, path, pgaudit_wf._digest(value)), '{digest}',
        coalesce(op -> 'digest', '[]') || to_jsonb(path[cardinality(path)]));
end
$$;
comment on function pgaudit_wf._put_large(jsonb, text[], anyelement, jsonb, text, integer, integer) is
    'An operation of a diff with a value that may be too large at the given path: as it is where it has at most longest bytes '
    'and jsonb can hold it; else its digest, which the member digest of the operation then names. '
    'beside is the rest of the diff, room the bytes that it and the operation may take together; '
    'expression makes the value JSON or text ($1 is the value; null: to_jsonb).';

create function pgaudit_wf._put_array(
    op jsonb, path text[], value anyarray, beside jsonb default null, expression text default null, longest integer default null,
    room integer default 234881024
) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- To print an element takes up to a kilobyte, which is held until all are printed: 20 million points took 20 GB.
    most constant integer := case
        when (select typcategory from pg_type where oid = pg_typeof(value[1])) in ('N', 'B', 'S', 'E', 'D') then 10000000 else 1000000 end;
    digest jsonb;
begin
    if value is null or cardinality(value) <= most then
        return pgaudit_wf._put_large(op, path, value, beside, expression, longest, room);
    end if;
    begin
        digest := pgaudit_wf._digest(array_send(value));
    exception
        when others then
            digest := pgaudit_wf._unprinted(value);
    end;
    return jsonb_set(jsonb_set(op, path, digest), '{digest}',
        coalesce(op -> 'digest', '[]') || to_jsonb(path[cardinality(path)]));
end
$$;
comment on function pgaudit_wf._put_array(jsonb, text[], anyarray, jsonb, text, integer, integer) is
    '_put_large() for an array: one of more elements than can be printed without taking gigabytes goes by the digest of its binary form.';
