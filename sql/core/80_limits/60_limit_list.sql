-- Limits as people see and change them: one row for each default and for each organization, with what is used of it.

create view pgaudit_wf.limit_list with (security_invoker = true) as
select
    l.org_id,
    l.resource_type,
    l.used,
    l.max_count,
    l.is_default,
    c.condition
from (
    select
        u.org_id,
        u.resource_type,
        u.used,
        u.max_count,
        u.is_default
    from pgaudit_wf.limit_usage as u
    union all
    select
        null as org_id,
        d.resource_type,
        null as used,
        d.max_count,
        true as is_default
    from pgaudit_wf.org_limit as d
    where d.org_id is null
) as l
left join pgaudit_wf.limit_condition as c on c.resource_type = l.resource_type;
comment on view pgaudit_wf.limit_list is
    'The limits, the defaults included, and how much of them each organization has used. '
    'Owners and admins see the defaults and their own organization, as reader.';
comment on column pgaudit_wf.limit_list.org_id is 'The organization; null: the default for all that have no limit of their own.';
comment on column pgaudit_wf.limit_list.resource_type is 'Resource type of the attached tables.';
comment on column pgaudit_wf.limit_list.used is 'Rows that count towards the limit now; null for a default.';
comment on column pgaudit_wf.limit_list.max_count is 'How many there may be; null: any number.';
comment on column pgaudit_wf.limit_list.is_default is 'True when the limit is the default for all organizations.';
comment on column pgaudit_wf.limit_list.condition is 'Which rows count towards the limit; null: all of them.';

create function pgaudit_wf._remove_org_limit(org_id text, resource_type text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgaudit_wf.org_limit as l
    where l.resource_type = _remove_org_limit.resource_type and l.org_id is not distinct from _remove_org_limit.org_id;
    return found;
end
$$;
comment on function pgaudit_wf._remove_org_limit(text, text) is
    'Removes the limit of an organization, or the default for a null one; returns whether there was one.';

create function pgaudit_wf._set_limit_condition(resource_type text, condition text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    if trim(condition) = '' then
        delete from pgaudit_wf.limit_condition as c where c.resource_type = _set_limit_condition.resource_type;
    else
        insert into pgaudit_wf.limit_condition (resource_type, condition) values (resource_type, trim(condition))
        on conflict on constraint limit_condition_pkey do update set condition = excluded.condition;
    end if;
end
$$;
comment on function pgaudit_wf._set_limit_condition(text, text) is
    'Sets which rows of a resource type count towards its limits; an empty condition: all of them.';
