-- Personal values: what in the log and the history identifies an actor.

create type pgaudit_wf.personal_value as (kind text, value text);
comment on type pgaudit_wf.personal_value is 'A value that identifies a person, with its kind: name, email, ip or user_agent.';

create function pgaudit_wf._actor_resource_types() returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(array_agg(distinct a.resource_type), '{}')
    from pgaudit_wf.attachment as a
    join pg_depend as d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.target and d.classid = 'pg_rewrite'::regclass
    join pg_rewrite as r on r.oid = d.objid
    where r.ev_class = 'pgaudit_wf.actor_directory'::regclass
$$;
comment on function pgaudit_wf._actor_resource_types() is
    'Resource types of the attached tables that actor_directory reads: whose rows are the actors themselves.';

create function pgaudit_wf._kind_of_value(value text) returns text
language sql immutable strict parallel safe
as $$ select case when value ~ e'^[^@\\s]+@[^@\\s]+$' then 'email' else 'name' end $$;
comment on function pgaudit_wf._kind_of_value(text) is 'Whether a label is an e-mail address or a name.';

create function pgaudit_wf._personal_members(diff jsonb) returns setof pgaudit_wf.personal_value
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._kind_of_value(item #>> '{}'), item #>> '{}'
    from jsonb_array_elements(case when jsonb_typeof(diff) = 'array' then diff else '[]' end) as op,
    lateral (values (op -> 'old'), (op -> 'value')) as side (value),
    lateral (
        select pgaudit_wf._unpointer(substring(op ->> 'path' from '(/[^/]*)(?:/[0-9]+)*$')) as name, side.value where op ->> 'path' <> ''
        union all
        select whole ->> 'key', whole -> 'value'
        from jsonb_path_query(side.value, 'strict $.** ? (@.type() == "object").keyvalue()') as whole
    ) as member,
    -- What is in an array goes by the array's name.
    lateral jsonb_path_query(member.value, '$[*]') as item
    where jsonb_typeof(item) = 'string'
        and member.name ~* '(^|_|-|[a-z])(e[-_]?mail|name|phone)([-_]|$)'
        and item #>> '{}' not in ('', '[redacted]')
$$;
comment on function pgaudit_wf._personal_members(jsonb) is
    'Names, e-mail addresses and telephone numbers in the diff of an actor''s own record, by the names of its columns '
    'and of the members of documents in them.';

create function pgaudit_wf._event_values(
    event pgaudit_wf.security_audit_log, actor_id text, actor_types text[]
) returns setof pgaudit_wf.personal_value
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select v.kind, v.value
    from (
        select pgaudit_wf._kind_of_value((event).actor_label), (event).actor_label where (event).actor_id = _event_values.actor_id
        union all select 'ip', host((event).ip) where (event).actor_id = _event_values.actor_id
        union all select 'user_agent', (event).user_agent where (event).actor_id = _event_values.actor_id
        union all
        select own.kind, own.value
        from (
            select pgaudit_wf._kind_of_value((event).metadata ->> 'label'), (event).metadata ->> 'label'
            union all
            select m.kind, m.value from pgaudit_wf._personal_members((event).diff) as m
        ) as own (kind, value)
        where (event).resource_type = any (actor_types) and (event).resource_id = _event_values.actor_id
    ) as v (kind, value)
    where v.value <> ''
$$;
comment on function pgaudit_wf._event_values(pgaudit_wf.security_audit_log, text, text[]) is
    'The values in an event that identify an actor, who performed it or is its resource.';

create function pgaudit_wf._actor_values(actor_id text) returns setof pgaudit_wf.personal_value
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    types constant text[] := pgaudit_wf._actor_resource_types();
    known constant text := (select e.pseudonym from pgaudit_wf.erasure as e where e.actor_id = _actor_values.actor_id);
begin
    return query
        select distinct v.kind, v.value
        from (
            select 'name' as kind, d.name as value from pgaudit_wf.actor_directory as d where d.actor_id = _actor_values.actor_id
            union all select 'email', d.email from pgaudit_wf.actor_directory as d where d.actor_id = _actor_values.actor_id
            union all select pgaudit_wf._kind_of_value(h.actor_label), h.actor_label
            from pgaudit_wf.workflow_history as h where h.actor_id = _actor_values.actor_id
            union all
            select e.kind, e.value
            from pgaudit_wf.security_audit_log as l, lateral pgaudit_wf._event_values(l, _actor_values.actor_id, types) as e
            where l.actor_id = _actor_values.actor_id
            union all
            select e.kind, e.value
            from pgaudit_wf.security_audit_log as l, lateral pgaudit_wf._event_values(l, _actor_values.actor_id, types) as e
            where l.resource_type = any (types) and l.resource_id = _actor_values.actor_id
        ) as v
        where v.value <> '' and v.value is distinct from known;
end
$$;
comment on function pgaudit_wf._actor_values(text) is
    'All values in the directory, the log and the history that identify an actor. For the owner only, before an erasure.';
