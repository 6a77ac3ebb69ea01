-- Who the actors are: two views that an application points at its own tables with CREATE OR REPLACE VIEW.

create view pgaudit_wf.actor_directory as
select
    null::text as actor_id,
    null::text as name,
    null::text as email
where false;
comment on view pgaudit_wf.actor_directory is
    'Names of actors, looked up when the trail is read. Empty until you point it at your own users: '
    'create or replace view pgaudit_wf.actor_directory as select id::text as actor_id, name, email from …';
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
    'Who belongs to which organization, in which role: owners and admins may read its trail. '
    'Empty until you point it at your own memberships: '
    'create or replace view pgaudit_wf.org_member as select org_id::text, user_id::text as actor_id, role::text from …';
comment on column pgaudit_wf.org_member.org_id is 'Id as in app.org_id.';
comment on column pgaudit_wf.org_member.actor_id is 'Id as in app.actor_id.';
comment on column pgaudit_wf.org_member.role is 'Role in the organization; owner and admin may read.';

create function pgaudit_wf._readable_org() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
    select m.org_id from pgaudit_wf.org_member as m
    where m.org_id = pgaudit_wf._context_text('org_id')
        and m.actor_id = pgaudit_wf._context_text('actor_id')
        and m.role in ('owner', 'admin')
    limit 1
$$;
comment on function pgaudit_wf._readable_org() is
    'The organization whose trail the current actor may read: app.org_id, if org_member has app.actor_id as its owner or admin; else null.';

-- One subquery, evaluated once a query, so that the index on org_id serves the policy too.
alter table pgaudit_wf.security_audit_log enable row level security;
create policy readable_org on pgaudit_wf.security_audit_log for select using (org_id = (select pgaudit_wf._readable_org()));
alter table pgaudit_wf.key_change enable row level security;
create policy readable_org on pgaudit_wf.key_change for select using (org_id = (select pgaudit_wf._readable_org()));

create function pgaudit_wf.describe_actors(org_id text, actor_ids text[] default null, pattern text default null)
returns table (actor_id text, name text, email text, role text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
-- Better an error than running the policies of the tables behind the views with our rights.
set row_security = off
as $$
    select d.actor_id, d.name, d.email, m.role
    from pgaudit_wf.actor_directory as d
    left join pgaudit_wf.org_member as m on m.actor_id = d.actor_id and m.org_id = describe_actors.org_id
    where (describe_actors.actor_ids is null or d.actor_id = any (describe_actors.actor_ids))
        and (describe_actors.pattern is null or d.name ilike describe_actors.pattern or d.email ilike describe_actors.pattern)
        and describe_actors.org_id = (select pgaudit_wf._readable_org())
        -- Of non-members, only those who acted in this organization.
        and (m.actor_id is not null or exists (
            select from pgaudit_wf.security_audit_log as l
            where l.actor_id = d.actor_id and l.org_id = describe_actors.org_id
                -- A denial can be recorded by somebody who only reads.
                and l.outcome = 'succeeded'))
$$;
comment on function pgaudit_wf.describe_actors(text, text[], text) is
    'Name, e-mail and role of the organization''s members and of actors in its trail, for its owners and admins only: '
    'those with the given ids, or whose name or e-mail matches an ILIKE pattern.';

create function pgaudit_wf.grant_directory() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    needed record;
begin
    for needed in
        select d.refobjid::regclass as relation, string_agg(distinct quote_ident(a.attname), ', ') as columns,
            pgaudit_wf._schema_owner() as reader
        from pg_class as v
        join pg_rewrite as r on r.ev_class = v.oid
        join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
            and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
        join pg_class as c on c.oid = d.refobjid and c.relnamespace not in ('pgaudit_wf'::regnamespace, 'pg_catalog'::regnamespace)
        join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where v.relnamespace = 'pgaudit_wf'::regnamespace and v.relkind = 'v'
            and not has_column_privilege(v.relowner, d.refobjid, d.refobjsubid::smallint, 'select')
        group by d.refobjid
    loop
        begin
            execute format('grant select (%s) on %s to %I', needed.columns, needed.relation, needed.reader);
        exception
            when insufficient_privilege then
                raise warning 'views of pgaudit_wf read %, but % is not allowed to (%)', needed.relation, needed.reader, sqlerrm
                    using hint = format('Have its owner run: grant select (%s) on %s to %I',
                        needed.columns, needed.relation, needed.reader);
        end;
    end loop;
end
$$;
comment on function pgaudit_wf.grant_directory() is
    'Grants the owner of our schema, as which actor_directory, org_member, credential_directory and api_key_directory are read, SELECT on '
    'the columns that these views name, with the rights of the caller. Where event triggers are available, CREATE VIEW does it by itself.';

create function pgaudit_wf._actors_like(pattern text) returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    select d.actor_id from pgaudit_wf.actor_directory as d where d.name ilike _actors_like.pattern or d.email ilike _actors_like.pattern
$$;
comment on function pgaudit_wf._actors_like(text) is
    'Ids of the actors whose name or e-mail matches an ILIKE pattern, for those who may read actor_directory.';

create function pgaudit_wf.resource_names(resource_types text[], resource_ids text[], org_id text)
returns table (resource_type text, resource_id text, name text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- From the log, not the table: so no table, policy or type of others is touched, and what was deleted still has its name.
    select wanted.type, wanted.id, named.label
    from (select distinct u.type, u.id from unnest(resource_names.resource_types, resource_names.resource_ids) as u (type, id)) as wanted,
    lateral (
        select l.metadata ->> 'label' as label from pgaudit_wf.security_audit_log as l
        where l.resource_type = wanted.type and l.resource_id = wanted.id and l.captured and l.metadata ? 'label'
            and (resource_names.org_id is null or l.org_id = resource_names.org_id)
        order by l.occurred_at desc, l.id desc limit 1
    ) as named
$$;
comment on function pgaudit_wf.resource_names(text[], text[], text) is
    'Newest names of resources, by the label column of the attached tables, as far as the caller may read their events; '
    'of one organization, or (null) of all.';
