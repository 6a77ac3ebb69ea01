-- Reading the trail: filtered, with names, newest first, a page at a time.

create function pgaudit_wf._trail_cursor(occurred_at timestamptz, id bigint) returns text
language sql immutable strict parallel safe
as $$
    select translate(
        encode(convert_to(format('%s %s', (extract(epoch from occurred_at) * 1000000)::bigint, id), 'UTF8'), 'base64'), '+/=', '-_')
$$;
comment on function pgaudit_wf._trail_cursor(timestamptz, bigint) is 'Opaque position of an event in the trail.';

create function pgaudit_wf._trail_position(cursor text, out occurred_at timestamptz, out id bigint)
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    part text[];
begin
    part := string_to_array(convert_from(decode(
        translate(cursor, '-_', '+/') || repeat('=', -length(cursor) & 3), 'base64'), 'UTF8'), ' ');
    if cardinality(part) <> 2 then
        raise invalid_parameter_value;
    end if;
    occurred_at := timestamptz 'epoch' + part[1]::bigint * interval '1 microsecond';
    id := part[2]::bigint;
exception
    when others then
        raise exception 'the cursor "%" was not made by audit_trail()', left(_trail_position.cursor, 100)
            using errcode = 'PA007', hint = 'Pass the cursor of the last event of the previous page, or null for the first page.';
end
$$;
comment on function pgaudit_wf._trail_position(text) is 'The position that an opaque cursor stands for; raises PA007 on anything else.';

create function pgaudit_wf._event_cursor(id bigint, org_id text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf._trail_cursor(l.occurred_at, l.id) from pgaudit_wf.security_audit_log as l
    where l.id = _event_cursor.id and l.org_id = _event_cursor.org_id
$$;
comment on function pgaudit_wf._event_cursor(bigint, text) is 'The position of an event of an organization; null: it has no such event.';

create type pgaudit_wf.trail_entry as (
    id bigint,
    tx_id bigint,
    occurred_at timestamptz,
    org_id text,
    org_label text,
    actor_id text,
    actor_name text,
    actor_email text,
    actor_role text,
    actor_type text,
    on_behalf_of text,
    on_behalf_of_name text,
    client text,
    auth_method text,
    api_key_id text,
    action text,
    resource_type text,
    resource_id text,
    resource_name text,
    outcome text,
    captured boolean,
    attested boolean,
    diff jsonb,
    metadata jsonb,
    ip inet,
    country text,
    user_agent text,
    correlation_id text,
    db_user text,
    application_name text,
    cursor text
);
comment on type pgaudit_wf.trail_entry is
    'An event of the trail as people read it: with the current names of actor and resource, else the ones stored in the event.';

create function pgaudit_wf._like_literal(text_part text) returns text
language sql immutable strict parallel safe
as $$ select replace(replace(replace(text_part, e'\\', e'\\\\'), '%', e'\\%'), '_', e'\\_') $$;
comment on function pgaudit_wf._like_literal(text) is 'LIKE pattern for a text, taken literally.';

create function pgaudit_wf._like_pattern(text_part text) returns text
language sql immutable strict parallel safe
as $$ select '%' || pgaudit_wf._like_literal(text_part) || '%' $$;
comment on function pgaudit_wf._like_pattern(text) is 'LIKE pattern for a text that contains the given one, taken literally.';

create function pgaudit_wf._matches_pattern(action text, pattern text) returns boolean
language sql immutable strict parallel safe
as $$
    select action like replace(pgaudit_wf._like_literal(pattern), '*', '%')
$$;
comment on function pgaudit_wf._matches_pattern(text, text) is
    'Whether an action matches a pattern in which * stands for any characters. Inlined, so that an index on the action can serve it.';

create function pgaudit_wf._present_actors(actor_ids text[], org_ids text[], restricted boolean)
returns table (actor_id text, org_id text, name text, email text, role text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
#variable_conflict use_column
begin
    if _present_actors.restricted then
        -- Row-level security has left one organization.
        return query
            select d.actor_id, asked.org_id, d.name, d.email, d.role
            from (select org_id from unnest(_present_actors.org_ids) as org (org_id) where org_id is not null limit 1) as asked,
            lateral pgaudit_wf.describe_actors(asked.org_id, _present_actors.actor_ids) as d;
    else
        return query
            select asked.actor_id, asked.org_id, d.name, d.email, (
                select m.role from pgaudit_wf.org_member as m where m.actor_id = asked.actor_id and m.org_id = asked.org_id limit 1)
            from (
                select distinct pair.actor_id, pair.org_id
                from unnest(_present_actors.actor_ids, _present_actors.org_ids) as pair (actor_id, org_id)) as asked
            join pgaudit_wf.actor_directory as d on d.actor_id = asked.actor_id;
    end if;
end
$$;
comment on function pgaudit_wf._present_actors(text[], text[], boolean) is
    'Current names of the actors of a page of the trail, with their roles in the events'' organizations, '
    'as far as the caller may see them: $1 actors, $2 organizations, pairwise.';

create type pgaudit_wf.trail_filter as (
    org_id text,
    actions text[],
    resource_types text[],
    resource_id text,
    actor_ids text[],
    correlation_id text,
    outcome text,
    since timestamptz,
    until timestamptz,
    search text,
    not_actions text[],
    not_resource_types text[],
    not_actor_ids text[],
    api_key_id text,
    network inet,
    changed text,
    value text
);
comment on type pgaudit_wf.trail_filter is 'The filters of audit_trail(); null ones and empty ones are not in use.';

create function pgaudit_wf._values(one text, more text[]) returns text[]
language sql immutable parallel safe
as $$ select nullif(case when one is null then '{}' else array[one] end || coalesce(more, '{}'), '{}') $$;
comment on function pgaudit_wf._values(text, text[]) is 'The values of a filter: one, several, or (null) any.';

create function pgaudit_wf._action_condition(actions text[], parameter text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select '(' || string_agg(distinct case
            when strpos(action, '*') > 0 then format('pgaudit_wf._matches_pattern(l.action, %L)', action)
            when cardinality(actions) = 1 then format('l.action = %s[1]', parameter)
            else format('l.action = any (%s)', parameter) end, ' or ') || ')'
    from unnest(actions) as action
$$;
comment on function pgaudit_wf._action_condition(text[], text) is
    'SQL condition for actions of which some may have wildcards; they are in the parameter, too.';

create function pgaudit_wf._change_path(changed text, value text) returns jsonpath
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select (case
        when value is null then '$[*] ? (@.path == $path || @.path starts with $within)'
        when changed is null
            then '$[*] ? (@.old == $text || @.value == $text || @.old == $json || @.value == $json || @.path == "" && ('
                '@.old.* == $text || @.value.* == $text || @.old.* == $json || @.value.* == $json))'
        else '$[*] ? ((@.path == $path || @.path starts with $within)'
            ' && (@.old == $text || @.value == $text || @.old == $json || @.value == $json))' end)::jsonpath
$$;
comment on function pgaudit_wf._change_path(text, text) is
    'Where a diff changed a column (or, null, any), or something within it, from or to a value (or, null, any); with _change_variables().';

create function pgaudit_wf._change_variables(changed text, value text) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object('path', pgaudit_wf._pointer(changed), 'within', pgaudit_wf._pointer(changed) || '/', 'text', value,
        -- What reads like it in JSON: 42 is a number there, or a text.
        'json', case when value ~ '^(-?(0|[1-9][0-9]{0,99})([.][0-9]{1,99})?|true|false)$' then value::jsonb else to_jsonb(value) end)
$$;
comment on function pgaudit_wf._change_variables(text, text) is 'The variables of _change_path().';

create function pgaudit_wf._typed_key(resource_types text[], id text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((
        select pgaudit_wf._given_key(a.target, _typed_key.id) from pgaudit_wf.attachment as a
        where strpos(_typed_key.id, ',') > 0 and left(_typed_key.id, 1) <> '[' and cardinality(_typed_key.resource_types) = 1
            and a.resource_type = _typed_key.resource_types[1]
            and cardinality(pgaudit_wf._key_columns(a)) = cardinality(string_to_array(_typed_key.id, ','))
        limit 1), _typed_key.id);
end
$$;
comment on function pgaudit_wf._typed_key(text[], text) is
    'The resource_id that a filter asks for: a key of several columns as people write it (5,1), if the type is known.';

create function pgaudit_wf._trail_page(wanted pgaudit_wf.trail_filter, after text, page_size integer)
returns setof pgaudit_wf.trail_entry
language plpgsql stable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set jit = off
as $$
declare
    restricted constant boolean := row_security_active('pgaudit_wf.security_audit_log');
    org constant text := coalesce(wanted.org_id, case when restricted then pgaudit_wf._context_text('org_id') end);
    key constant text := pgaudit_wf._typed_key(wanted.resource_types, wanted.resource_id);
    last_seen record;
    filter text;
begin
    if coalesce(_trail_page.page_size, 0) not between 1 and 1000 then
        raise exception 'page_size must be from 1 to 1000' using errcode = 'PA008';
    end if;
    if restricted and (org is null or org is distinct from pgaudit_wf._readable_org()) then
        raise exception 'only owners and admins of an organization may read its trail'
            using errcode = 'PA006',
                hint = 'Set app.org_id and app.actor_id in the transaction; '
                    'pgaudit_wf.org_member must list the actor as an owner or admin of the organization.';
    end if;
    select p.occurred_at, p.id into last_seen from pgaudit_wf._trail_position(_trail_page.after) as p;

    -- Only the conditions in use, so that each combination gets the index that serves it.
    filter := concat(
        case when org is not null then ' and l.org_id = $1' end,
        ' and ' || pgaudit_wf._action_condition(wanted.actions, '$2'),
        case cardinality(wanted.resource_types) when 1 then ' and l.resource_type = $3[1]'
            else case when wanted.resource_types is not null then ' and l.resource_type = any ($3)' end end,
        case when key is not null then ' and l.resource_id = $4' end,
        case cardinality(wanted.actor_ids) when 1 then ' and l.actor_id = $5[1]'
            else case when wanted.actor_ids is not null then ' and l.actor_id = any ($5)' end end,
        case when wanted.correlation_id is not null then ' and l.correlation_id = $6' end,
        case when wanted.outcome is not null then ' and l.outcome = $7' end,
        case when wanted.since is not null then ' and l.occurred_at >= $8' end,
        case when wanted.until is not null then ' and l.occurred_at < $9' end,
        case when last_seen.id is not null then ' and (l.occurred_at, l.id) < ($11, $12)' end,
        ' and not ' || pgaudit_wf._action_condition(wanted.not_actions, '$15'),
        case when wanted.not_resource_types is not null then ' and (l.resource_type = any ($16)) is not true' end,
        case when wanted.not_actor_ids is not null then ' and (l.actor_id = any ($17)) is not true' end,
        case when wanted.api_key_id is not null then ' and l.api_key_id = $18' end,
        case when wanted.network is not null then ' and l.ip <<= $19' end,
        case when wanted.changed is not null or wanted.value is not null then ' and jsonb_path_exists(l.diff, $20, $21)' end,
        case when wanted.search is not null then
            ' and (l.actor_label ilike $10 or l.action ilike $10 or l.resource_id ilike $10 or l.metadata ->> ''label'' ilike $10'
            ' or l.metadata ->> ''reason'' ilike $10 or host(l.ip) ilike $10 or l.user_agent ilike $10 or l.correlation_id ilike $10'
            ' or l.on_behalf_of ilike $10 or l.client ilike $10'
            ' or l.actor_id in (select d.actor_id from ' || case when restricted
                then 'pgaudit_wf.describe_actors($1, pattern => $10) as d'
                else 'pgaudit_wf._actors_like($10) as d (actor_id)' end || '))'
        end);
    -- One statement that returns rows, never all of them in one value, which could not exceed 1 GB.
    return query execute 'with event as materialized (select l.* from pgaudit_wf.security_audit_log as l where true'
        || filter || ' order by l.occurred_at desc, l.id desc limit $13), actor as (
            select d.* from pgaudit_wf._present_actors(
                array(select who.id from event as e, unnest(array[e.actor_id, e.on_behalf_of]) as who (id) order by e.id),
                array(select e.org_id from event as e, unnest(array[e.actor_id, e.on_behalf_of]) as who (id) order by e.id), $14) as d
        ), resource as (
            select n.* from pgaudit_wf.resource_names(
                array(select e.resource_type from event as e order by e.id),
                array(select e.resource_id from event as e order by e.id), $1) as n
        )
        select
            e.id, e.tx_id, e.occurred_at, e.org_id, e.org_label,
            e.actor_id, left(coalesce(actor.name, e.actor_label), 255), left(actor.email, 255), left(actor.role, 255),
            e.actor_type, e.on_behalf_of, left(coalesce(principal.name, principal.email), 255), e.client,
            e.auth_method, e.api_key_id, e.action,
            e.resource_type, e.resource_id, left(coalesce(resource.name, e.metadata ->> ''label''), 255),
            e.outcome::text, e.captured, e.attested,
            case when pg_column_size(e.diff) < 256 then e.diff else pgaudit_wf._readable_json(e.diff, 16777216) end,
            case when pg_column_size(e.metadata) < 256 then e.metadata else pgaudit_wf._readable_json(e.metadata, 16777216) end,
            e.ip, e.country, e.user_agent, e.correlation_id, e.db_user, e.application_name,
            pgaudit_wf._trail_cursor(e.occurred_at, e.id)
        from event as e
        left join actor on actor.actor_id = e.actor_id and actor.org_id is not distinct from e.org_id
        left join actor as principal on principal.actor_id = e.on_behalf_of and principal.org_id is not distinct from e.org_id
        left join resource on resource.resource_type = e.resource_type and resource.resource_id = e.resource_id
        order by e.occurred_at desc, e.id desc'
        using org, wanted.actions, wanted.resource_types, key, wanted.actor_ids, wanted.correlation_id,
            wanted.outcome, wanted.since, wanted.until, pgaudit_wf._like_pattern(wanted.search),
            last_seen.occurred_at, last_seen.id, _trail_page.page_size, restricted,
            wanted.not_actions, wanted.not_resource_types, wanted.not_actor_ids, wanted.api_key_id, wanted.network,
            pgaudit_wf._change_path(wanted.changed, wanted.value), pgaudit_wf._change_variables(wanted.changed, wanted.value);
end
$$;
comment on function pgaudit_wf._trail_page(pgaudit_wf.trail_filter, text, integer) is 'audit_trail() by its filters as one value.';

create function pgaudit_wf.audit_trail(
    org_id text default null,
    action text default null,
    resource_type text default null,
    resource_id text default null,
    actor_id text default null,
    correlation_id text default null,
    outcome text default null,
    since timestamptz default null,
    until timestamptz default null,
    search text default null,
    after text default null,
    page_size integer default 50,
    actions text[] default null,
    not_actions text[] default null,
    resource_types text[] default null,
    not_resource_types text[] default null,
    actor_ids text[] default null,
    not_actor_ids text[] default null,
    api_key_id text default null,
    network inet default null,
    changed text default null,
    value text default null
) returns setof pgaudit_wf.trail_entry
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select t.* from pgaudit_wf._trail_page(
        row(org_id, pgaudit_wf._values(action, actions), pgaudit_wf._values(resource_type, resource_types), resource_id,
            pgaudit_wf._values(actor_id, actor_ids), correlation_id, outcome, since, until, search, nullif(not_actions, '{}'),
            nullif(not_resource_types, '{}'), nullif(not_actor_ids, '{}'), api_key_id, network, changed, value)::pgaudit_wf.trail_filter,
        after, page_size) as t
$$;
comment on function pgaudit_wf.audit_trail(text, text, text, text, text, text, text, timestamptz, timestamptz, text, text, integer,
    text[], text[], text[], text[], text[], text[], text, inet, text, text) is
    'A page of the trail, newest first. '
    'Every filter is optional: org_id, action (* is a wildcard: api_key.*), resource_type, resource_id, actor_id, correlation_id, '
    'outcome, since (inclusive) and until (exclusive), search (text in names, labels, action, address, user agent, ids); '
    'actions, resource_types and actor_ids take several values, not_actions, not_resource_types and not_actor_ids leave some out; '
    'api_key_id, network (an address or a network: 203.0.113.0/24), changed (a column that was updated, or something within its value), '
    'value (what a column, that of changed if it is given, had before or after). '
    'A diff or metadata of more than 16 MiB is shown as its SHA-256 and length. Next page: after => the cursor of the last event. '
    'The reader role only sees the organization app.org_id, and only if app.actor_id is an owner or admin of it (else PA006). '
    'Raises PA007 on an invalid cursor, PA008 on a page_size outside 1 to 1000.';
