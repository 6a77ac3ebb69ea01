-- Who the actors are: two views that an application points at its own tables with CREATE OR REPLACE VIEW.

create view pgaudit_wf.actor_directory as
select
    null::text as actor_id,
    null::text as name,
    null::text as email
where false;
comment on view pgaudit_wf.actor_directory is
    'Names of actors, looked up when the trail is read. Empty until you point it at your own users: create or replace view pgaudit_wf.actor_directory as select id::text as actor_id, name, email from …';
comment on column pgaudit_wf.actor_directory.actor_id is 'Id as in app.actor_id.';
comment on column pgaudit_wf.actor_directory.name is 'Name as shown to people.';
comment on column pgaudit_wf.actor_directory.email is 'E-mail address.';

create view pgaudit_wf.org_member as
select
    null::text as org_id,
    null::text as actor_id,
    null::text as role
where false;
comment on view pgaudit_wf.org_member is
    'Who belongs to which organisation, and as what: owners and admins may read its trail. Empty until you point it at your own memberships: create or replace view pgaudit_wf.org_member as select org_id::text, user_id::text as actor_id, role::text from …';
comment on column pgaudit_wf.org_member.org_id is 'Id as in app.org_id.';
comment on column pgaudit_wf.org_member.actor_id is 'Id as in app.actor_id.';
comment on column pgaudit_wf.org_member.role is 'Role in the organisation; owner and admin may read.';

create function pgaudit_wf.readable_org() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select m.org_id from pgaudit_wf.org_member as m
    where m.org_id = nullif(current_setting('app.org_id', true), '')
        and m.actor_id = nullif(current_setting('app.actor_id', true), '')
        and m.role in ('owner', 'admin')
    limit 1
$$;
comment on function pgaudit_wf.readable_org() is
    'The organisation whose trail the current actor may read: app.org_id, if org_member has app.actor_id as its owner or admin; else null.';

-- One subquery, evaluated once a query, so that the index on org_id serves the policy too.
alter table pgaudit_wf.security_audit_log enable row level security;
create policy readable_org on pgaudit_wf.security_audit_log for select using (org_id = (select pgaudit_wf.readable_org()));
alter table pgaudit_wf.key_change enable row level security;
create policy readable_org on pgaudit_wf.key_change for select using (org_id = (select pgaudit_wf.readable_org()));

create function pgaudit_wf.describe_actors(org_id text, actor_ids text[] default null, pattern text default null)
returns table (actor_id text, name text, email text, role text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select d.actor_id, d.name, d.email, m.role
    from pgaudit_wf.actor_directory as d
    left join pgaudit_wf.org_member as m on m.actor_id = d.actor_id and m.org_id = describe_actors.org_id
    where (describe_actors.actor_ids is null or d.actor_id = any (describe_actors.actor_ids))
        and (describe_actors.pattern is null or d.name ilike describe_actors.pattern or d.email ilike describe_actors.pattern)
        and describe_actors.org_id = (select pgaudit_wf.readable_org())
        -- Of strangers, only those who left a trace in this organisation.
        and (m.actor_id is not null or exists (
            select from pgaudit_wf.security_audit_log as l where l.actor_id = d.actor_id and l.org_id = describe_actors.org_id))
$$;
comment on function pgaudit_wf.describe_actors(text, text[], text) is
    'Name, e-mail and role of the organisation''s members and of actors in its trail, for its owners and admins only: those with the given ids, or whose name or e-mail matches an ILIKE pattern.';

create function pgaudit_wf.resource_names(resource_types text[], resource_ids text[], org_id text) returns table (resource_type text, resource_id text, name text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    setting pgaudit_wf.attachment;
begin
    if resource_names.org_id is distinct from pgaudit_wf.readable_org() then
        return;
    end if;
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.resource_type = any (resource_names.resource_types) and a.label_column is not null and a.org_column is not null
    loop
        return query execute pgaudit_wf.resource_names_query(setting) || format(' and %I::text = $3', setting.org_column)
            using resource_names.resource_types, resource_names.resource_ids, resource_names.org_id;
    end loop;
end
$$;
comment on function pgaudit_wf.resource_names(text[], text[], text) is
    'Present names of resources of the organisation, for its owners and admins: from the label column of the attached tables.';

create function pgaudit_wf.resource_names_query(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A single key is compared in its own type, so that its index is used. An application may tell of an id that no key can be:
    -- it names nothing, and must not keep the rest of the page from being read.
    select format(
        'select %1$L::text, %2$s, left(r.%3$I::text, 255) from %4$s as r'
        ' where %5$s = any (array(select distinct wanted.id%6$s from unnest($1, $2) as wanted (type, id) where wanted.type = %1$L%7$s))',
        (setting).resource_type, pgaudit_wf.key_expression(setting, 'r'), (setting).label_column, (setting).target,
        case when kind is null then pgaudit_wf.key_expression(setting, 'r') else format('r.%I', (setting).id_columns[1]) end,
        case kind when 'uuid' then '::uuid' when 'integer' then '::bigint' else '' end,
        case kind
            when 'uuid' then ' and wanted.id ~ ''^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'''
            when 'integer' then ' and wanted.id ~ ''^-?[0-9]{1,18}$'''
            else ''
        end)
    from (
        select case
            when cardinality((setting).id_columns) > 1 then null
            when atttypid = 'uuid'::regtype then 'uuid'
            when atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) then 'integer'
            when atttypid in ('text'::regtype, 'varchar'::regtype) then 'text'
        end as kind
        from pg_attribute
        where attrelid = (setting).target and attname = (setting).id_columns[1]
    ) as key_type
$$;
comment on function pgaudit_wf.resource_names_query(pgaudit_wf.attachment) is
    'Query for the names of resources of an attached table: $1 resource types, $2 resource ids, pairwise.';
